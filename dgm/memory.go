package dgm

import (
	"bytes"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/file"
	"github.com/gearsfs/gearsfs/stream"
	"github.com/gearsfs/gearsfs/wire"
)

// memory holds the streams of a volume whose records never touch the disk: those
// with the setting for it, in a volume that this node alone has. Their settings
// are in the state as all streams' are; what is put to them is here, and gone
// with the process.
//
// What would be proposed for one of them comes to work instead, in which one
// goroutine does it, in order, as the log would; so waiting, order and fairness
// are those of all streams, and so are the answers to retries, which are kept
// until the session confirms them.
type memory struct {
	vol   *Volume
	count atomic.Int32 // of streams, so that nothing is looked for in vain

	workMu sync.Mutex
	work   []func()
	runs   bool // a goroutine does the work

	// mu guards the rest. It is taken after tenure.mu; no lock is taken and
	// nothing waited for while it is held.
	mu      sync.Mutex
	streams map[place]*stream.Queue
	answers map[gearsfs.SessionID]map[uint64]*wire.Answer
	fence   uint64 // of the next lease
}

func (m *memory) init(v *Volume) {
	m.vol = v
	m.streams = make(map[place]*stream.Queue)
	m.answers = make(map[gearsfs.SessionID]map[uint64]*wire.Answer)
}

// errMemoryOnly says what streams in memory don't do.
var errMemoryOnly = gearsfs.ErrUnsupported.Because("not with a stream that is in memory")

// push has something done, behind what was pushed before.
func (m *memory) push(do func()) {
	m.workMu.Lock()
	defer m.workMu.Unlock()
	m.work = append(m.work, do)
	if m.runs || m.vol.isStopped() {
		return
	}
	m.runs = true
	m.vol.owned.Go(m.run)
}

func (m *memory) run() {
	for {
		m.workMu.Lock()
		todo := m.work
		m.work = nil
		m.runs = len(todo) > 0
		m.workMu.Unlock()
		if len(todo) == 0 {
			return
		}
		for _, do := range todo {
			do()
		}
	}
}

func (v *Volume) isStopped() bool { return v.root.Err() != nil }

// inMemory says whether a stream's records are in memory.
func (t *tenure) inMemory(at place) bool {
	return at.ino != 0 && t.vol.alone() && t.vol.machine.InMemory(at.ino, at.key)
}

// stateOf is the state of a stream, wherever its records are.
func (t *tenure) stateOf(ino gearsfs.Ino, key gearsfs.Key) file.StreamState {
	m := &t.vol.memory
	if m.count.Load() > 0 {
		m.mu.Lock()
		q := m.streams[place{ino, key}]
		if q != nil {
			defer m.mu.Unlock()
			return file.StreamStateOf(*q.State())
		}
		m.mu.Unlock()
	}
	return t.vol.machine.StreamState(ino, key)
}

// queueLocked is the stream at a place, with its settings as of now.
func (m *memory) queueLocked(at place) *stream.Queue {
	st := m.vol.machine.StreamState(at.ino, at.key)
	rules := st.State()
	q := m.streams[at]
	if q == nil {
		state := stream.NewState()
		state.Version = rules.Version
		var err error
		if q, err = stream.NewQueue(state, new(stream.Memory), stream.NewPool(memoryWindowBytes)); err != nil {
			panic(err) // an empty queue reads nothing
		}
		m.streams[at] = q
		m.count.Store(int32(len(m.streams)))
	}
	s := q.State()
	if s.Sealed != rules.Sealed {
		q.SetSealed(rules.Sealed)
	}
	if s.Limits != rules.Limits {
		q.SetLimits(rules.Limits)
	}
	s.Full, s.Type, s.Tries, s.Age, s.AppendOnly, s.Memory = rules.Full, rules.Type, rules.Tries, rules.Age, rules.AppendOnly, true
	return q
}

const memoryWindowBytes = 1 << 20

// submitMemory does what an operation asks for; the answer comes as from the log.
func (t *tenure) submitMemory(o *op, at place) {
	m := &t.vol.memory
	m.push(func() {
		answer := t.answerMemory(o, at)
		seal := o.isPut() && o.change.Command.GetPut().Seal && answer.Code == 0
		if !seal {
			o.outcome(answer, nil)
			t.wake(at.ino, at.key)
			return
		}
		yes := true // that is a setting
		t.order(nil, &wire.Command{Checked: true, Op: &wire.Command_Configure{Configure: &wire.Configure{
			Target: &wire.Target{Ino: uint64(at.ino)}, Key: string(at.key), Seal: &yes,
		}}}, func(sealed *wire.Answer, err error) {
			if err == nil && sealed.Code != 0 {
				answer = sealed
			}
			o.outcome(answer, err)
			m.push(func() { t.settingsChanged(at) })
		})
	})
}

// misplaced says whether a put or take went to the log although its stream's
// records are in memory by now, or the other way.
func (o *op) misplaced() bool {
	if !o.isPut() && !o.isTake() {
		return false
	}
	return o.inMemory != slices.ContainsFunc(o.keys, func(key gearsfs.Key) bool { return o.ten.inMemory(place{o.ino, key}) })
}

// settingsChanged has a stream take over its settings.
func (t *tenure) settingsChanged(at place) {
	m := &t.vol.memory
	m.mu.Lock()
	if m.streams[at] != nil {
		m.queueLocked(at)
	}
	m.mu.Unlock()
	t.wake(at.ino, at.key)
}

func (t *tenure) answerMemory(o *op, at place) *wire.Answer {
	m, cmd := &t.vol.memory, o.change.Command
	t.mu.Lock()
	ended, before := o.sess.ended, o.isPut() && t.earlierWaitsLocked(o)
	t.mu.Unlock()
	m.mu.Lock()
	defer m.mu.Unlock()
	if ended {
		return refusal(gearsfs.ErrClosed)
	}
	kept := m.answers[o.sess.id]
	for seq := range kept {
		if seq < cmd.Confirmed && !slices.Contains(cmd.Unconfirmed, seq) {
			delete(kept, seq)
		}
	}
	if answer := kept[cmd.Seq]; answer != nil && cmd.Seq != 0 {
		return copyAnswer(answer)
	}
	if before {
		return refusal(gearsfs.ErrFull)
	}
	answer, err := m.doLocked(o, at)
	if err != nil {
		return refusal(err)
	}
	if cmd.Seq != 0 {
		if kept == nil {
			kept = make(map[uint64]*wire.Answer)
			m.answers[o.sess.id] = kept
		}
		kept[cmd.Seq] = copyAnswer(answer)
	}
	return answer
}

func refusal(err error) *wire.Answer {
	return &wire.Answer{Code: uint32(gearsfs.CodeOf(err)), Reason: err.Error()}
}

// copyAnswer copies what a caller may write into.
func copyAnswer(a *wire.Answer) *wire.Answer {
	out := &wire.Answer{Ino: a.Ino, FirstSeq: a.FirstSeq, LastSeq: a.LastSeq, Records: make([]*wire.TakenRecord, len(a.Records))}
	for i, r := range a.Records {
		out.Records[i] = &wire.TakenRecord{
			Key: r.Key, Pos: r.Pos, Seq: r.Seq, Data: bytes.Clone(r.Data), Type: r.Type, Time: r.Time,
			Deliveries: r.Deliveries, Fence: r.Fence, Ino: r.Ino, Deadline: r.Deadline,
		}
	}
	return out
}

// earlierWaitsLocked says whether an earlier put of the session waits for room.
func (t *tenure) earlierWaitsLocked(o *op) bool {
	earlier := false
	if s := t.waits.spot(o.ino, o.keys[0]); s != nil {
		s.puts.each(func(p *op) { earlier = earlier || p.sess == o.sess && p.ticket < o.ticket })
	}
	return earlier
}

// later has a stream looked at again, after a while, for what is due then.
func (m *memory) later(at place, nanoseconds uint64) {
	time.AfterFunc(time.Duration(min(nanoseconds, uint64(1<<62))), func() {
		m.push(func() {
			m.mu.Lock()
			if m.streams[at] != nil {
				m.dueLocked(at)
			}
			m.mu.Unlock()
			if t := m.vol.tenure.Load(); t != nil {
				t.wake(at.ino, at.key)
			}
		})
	})
}

// dueLocked ends leases and delays whose time has come, and discards what is too
// old.
func (m *memory) dueLocked(at place) {
	q, now := m.queueLocked(at), m.vol.group.Time()
	for place, out := range q.EachOut() {
		switch {
		case out.Deadline == 0 || out.Deadline > now:
		case out.Leased:
			m.comeBackLocked(at, q, place, 0, 0)
		default:
			q.Due(place)
		}
	}
	if age := q.State().Age; age != 0 && age < now {
		if _, err := q.DiscardOlder(now-age, gearsfs.BatchRecordsMax); err != nil {
			panic(err) // rows in memory are read without errors
		}
	}
}

// endMemory gives back what a session that ends holds in memory, and forgets its
// answers.
func (t *tenure) endMemory(id gearsfs.SessionID) {
	m := &t.vol.memory
	if m.count.Load() == 0 {
		return
	}
	m.push(func() {
		var wake []place
		m.mu.Lock()
		delete(m.answers, id)
		for at, q := range m.streams {
			for p, out := range q.EachOut() {
				if out.Leased && out.Holder == id {
					m.comeBackLocked(at, q, p, 0, 0)
					wake = append(wake, at)
				}
			}
		}
		m.mu.Unlock()
		t.wakeAll(wake)
	})
}

// dropMemory forgets a stream, or with key "" all of a file.
func (m *memory) drop(at place) {
	if m.count.Load() == 0 {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for have := range m.streams {
		if have == at || at.key == "" && have.ino == at.ino {
			delete(m.streams, have)
		}
	}
	m.count.Store(int32(len(m.streams)))
}

// configured is for a stream whose settings a command has changed: what waits
// there, or is left there, may be in the wrong place now.
func (t *tenure) configured(c *wire.Configure) {
	at := place{gearsfs.Ino(c.Target.GetIno()), gearsfs.Key(c.Key)}
	m := &t.vol.memory
	if !t.inMemory(at) {
		m.drop(at)
		return
	}
	m.push(func() {
		m.mu.Lock()
		if q := m.streams[at]; q != nil && c.Clear {
			if err := q.Clear(); err != nil {
				panic(err) // rows in memory are read without errors
			}
		}
		m.mu.Unlock()
		t.settingsChanged(at)
	})
	var moved []*op
	t.mu.Lock()
	if s := t.waits.spot(at.ino, at.key); s != nil && t.over == nil {
		for _, l := range []*line{&s.takes, &s.puts} {
			l.each(func(o *op) {
				if !o.inMemory {
					moved = append(moved, o)
				}
			})
		}
	}
	for _, o := range moved {
		t.waits.leave(o)
		o.state = opProposed
	}
	t.mu.Unlock()
	for _, o := range moved {
		t.launch(o)
	}
}

// refuseMemory says why a stream can't be in memory, or not any more.
func (t *tenure) refuseMemory(c *wire.Configure) error {
	at := place{gearsfs.Ino(c.Target.GetIno()), gearsfs.Key(c.Key)}
	if c.Settings == nil || c.Settings.Memory == nil {
		return nil
	}
	st := t.stateOf(at.ino, at.key)
	switch {
	case *c.Settings.Memory && !t.vol.alone():
		return gearsfs.ErrUnsupported.Because("only a volume of one node has streams in memory")
	case !*c.Settings.Memory && st.Left() > 0:
		return gearsfs.ErrInvalid.Because("the stream has records: where they are kept can't be changed")
	}
	return nil
}

// startPlain sends an operation on its way that waits for nothing, once its
// files are known.
func (t *tenure) startPlain(o *op) {
	switch c := o.change.Command.Op.(type) {
	case *wire.Command_Update:
		at := place{gearsfs.Ino(c.Update.Target.Ino), gearsfs.Key(c.Update.Key)}
		o.keys = []gearsfs.Key{} // others may wait for its id
		if o.inMemory = t.inMemory(at); o.inMemory {
			o.ino, o.keys = at.ino, []gearsfs.Key{at.key}
		}
	case *wire.Command_Configure:
		if err := t.refuseMemory(c.Configure); err != nil {
			o.failCertain(err)
			return
		}
		if t.vol.alone() && c.Configure.Target.Ino != 0 {
			o.then = func(answer *wire.Answer, err error) {
				if err == nil && answer.Code == 0 {
					t.configured(c.Configure)
				}
				o.then = nil
				o.answered(answer, err)
			}
		}
	}
	t.submit(o)
}

// startSettle sends a settlement on its way.
func (t *tenure) startSettle(o *op, s *wire.Settle) {
	if len(s.Receipts) > 0 {
		if at, _ := receiptAt(s.Receipts[0]); t.inMemory(at) {
			o.inMemory, o.ino, o.keys = true, at.ino, []gearsfs.Key{at.key}
		}
	}
	t.submit(o)
}
