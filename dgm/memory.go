package dgm

import (
	"bytes"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/file"
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
	streams map[place]*memoryStream
	answers map[gearsfs.SessionID]map[uint64]*wire.Answer
	fence   uint64  // of the next lease
	touched []place // where something has changed that nobody was woken for
}

func (m *memory) init(v *Volume) {
	m.vol = v
	m.streams = make(map[place]*memoryStream)
	m.answers = make(map[gearsfs.SessionID]map[uint64]*wire.Answer)
}

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

// streamLocked is the stream at a place, with its settings as of now.
func (m *memory) streamLocked(at place) *memoryStream {
	st := m.vol.machine.StreamState(at.ino, at.key)
	rules := st.State()
	s := m.streams[at]
	if s == nil {
		s = newMemoryStream(at, m.vol.group.Time(), rules.Version)
		m.streams[at] = s
		m.count.Store(int32(len(m.streams)))
	}
	state := s.State()
	if state.Sealed != rules.Sealed {
		s.SetSealed(rules.Sealed)
	}
	if state.Limits != rules.Limits {
		s.SetLimits(rules.Limits)
	}
	state.Full, state.Type, state.Tries, state.Age, state.AppendOnly, state.Memory = rules.Full, rules.Type, rules.Tries, rules.Age, rules.AppendOnly, true
	state.IDWindow = rules.IDWindow
	return s
}

// currentLocked is a stream of which all is done that is due.
func (m *memory) currentLocked(at place) *memoryStream {
	s := m.streamLocked(at)
	m.dueLocked(s)
	return s
}

// touchLocked notes that something of a stream has changed.
func (m *memory) touchLocked(at place) {
	if !slices.Contains(m.touched, at) {
		m.touched = append(m.touched, at)
	}
}

// wakeTouched wakes who waits at the streams that have changed.
func (m *memory) wakeTouched() {
	m.mu.Lock()
	touched := m.touched
	m.touched = nil
	for _, at := range touched {
		if s := m.streams[at]; s != nil {
			m.armLocked(s)
		}
	}
	m.mu.Unlock()
	if t := m.vol.tenure.Load(); t != nil {
		t.wakeAll(touched)
	}
}

// submitMemory does what an operation asks for; the answer comes as from the log.
func (t *tenure) submitMemory(o *op) {
	m := &t.vol.memory
	if k := &t.vol.payloads; k.Refers(o.change.Command) {
		if err := k.Inline(t.vol.busy, o.change.Command); err != nil {
			o.outcome(nil, err)
			return
		}
	}
	m.push(func() {
		defer m.wakeTouched()
		answer, further := t.answerMemory(o)
		switch {
		case further != nil:
			further()
		case o.isPut() && o.change.Command.GetPut().Seal && answer.Code == 0:
			t.sealMemory(o, answer)
		default:
			o.outcome(answer, nil)
		}
	})
}

// sealMemory seals a stream behind what was put to it, which is a setting.
func (t *tenure) sealMemory(o *op, answer *wire.Answer) {
	at, yes := place{o.ino, o.keys[0]}, true
	t.order(nil, &wire.Command{Checked: true, Op: &wire.Command_Configure{Configure: &wire.Configure{
		Target: &wire.Target{Ino: uint64(at.ino)}, Key: string(at.key), Seal: &yes,
	}}}, func(sealed *wire.Answer, err error) {
		if err == nil && sealed.Code != 0 {
			answer = sealed
		}
		o.outcome(answer, err)
		t.vol.memory.push(func() { t.settingsChanged(at) })
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
		m.currentLocked(at)
	}
	m.touchLocked(at)
	m.mu.Unlock()
	m.wakeTouched()
}

// answerMemory does an operation, or says what is to be done further for it.
func (t *tenure) answerMemory(o *op) (answer *wire.Answer, further func()) {
	m, cmd := &t.vol.memory, o.change.Command
	t.mu.Lock()
	ended, givenUp := o.sess.ended, o.epoch != o.sess.epoch.Load()
	before := o.isPut() && t.earlierWaitsLocked(o)
	t.mu.Unlock()
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case ended:
		return refusal(gearsfs.ErrClosed), nil
	case givenUp: // its client has asked again, and may have been answered from elsewhere
		return refusal(gearsfs.ErrCancelled), nil
	}
	if answer := m.keptLocked(o); answer != nil {
		return answer, nil
	}
	var err error
	switch {
	case before && !m.addsNothingLocked(o):
		err = gearsfs.ErrFull
	case o.isTake():
		answer, further, err = t.takeMemoryLocked(o, cmd.GetTake())
	case cmd.GetSettle() != nil:
		answer, further, err = t.settleMemoryLocked(o, cmd.GetSettle())
	default:
		answer, err = m.doLocked(o, place{o.ino, o.keys[0]})
	}
	switch {
	case err != nil:
		return refusal(err), nil
	case further != nil:
		return nil, further
	}
	m.keepLocked(o, answer)
	return answer, nil
}

// keptLocked is the answer that an operation had before, if it had one. One of a
// take is without the records whose leases have ended; where none is left the
// take begins anew, as it does in the log.
func (m *memory) keptLocked(o *op) *wire.Answer {
	cmd := o.change.Command
	kept := m.answers[o.sess.id]
	for seq := range kept {
		if seq < cmd.Confirmed && !slices.Contains(cmd.Unconfirmed, seq) {
			delete(kept, seq)
		}
	}
	answer := kept[cmd.Seq]
	if answer == nil || cmd.Seq == 0 {
		return nil
	}
	answer = copyAnswer(answer)
	if cmd.GetTake().GetLease() {
		answer.Records = slices.DeleteFunc(answer.Records, func(r *wire.TakenRecord) bool {
			at := place{gearsfs.Ino(r.Ino), gearsfs.Key(r.Key)}
			s := m.streams[at]
			if s == nil {
				return true
			}
			m.dueLocked(s)
			out, ok := s.Out(gearsfs.Place{Pos: gearsfs.Pos(r.Pos), Seq: gearsfs.Seq(r.Seq)})
			return !ok || !out.Leased || out.Fence != r.Fence
		})
		if len(answer.Records) == 0 {
			delete(kept, cmd.Seq)
			return nil
		}
	}
	return answer
}

// keepLocked keeps an answer until the session confirms it.
func (m *memory) keepLocked(o *op, answer *wire.Answer) {
	seq := o.change.Command.Seq
	if seq == 0 {
		return
	}
	kept := m.answers[o.sess.id]
	if kept == nil {
		kept = make(map[uint64]*wire.Answer)
		m.answers[o.sess.id] = kept
	}
	kept[seq] = copyAnswer(answer)
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

// endMemory gives back what a session that ends holds in memory. Its answers stay
// for a retry until SessionTTL, or go now with forget.
func (t *tenure) endMemory(id gearsfs.SessionID, forget bool) {
	m := &t.vol.memory
	if m.count.Load() == 0 {
		return
	}
	m.push(func() {
		m.mu.Lock()
		if forget {
			delete(m.answers, id)
		} else if m.answers[id] != nil {
			time.AfterFunc(gearsfs.SessionTTL, func() { t.forgetMemory(id) })
		}
		for at, s := range m.streams {
			for record, out := range s.EachOut() {
				if out.Leased && out.Holder == id {
					m.comeBackLocked(s, record, 0, 0)
					m.touchLocked(at)
				}
			}
		}
		m.mu.Unlock()
		m.wakeTouched()
	})
}

// forgetMemory forgets the answers of a session that has ended, unless it is back:
// then its next end does it.
func (t *tenure) forgetMemory(id gearsfs.SessionID) {
	t.mu.Lock()
	back := t.sessions[id] != nil
	t.mu.Unlock()
	if back {
		return
	}
	m := &t.vol.memory
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.answers, id)
}

// drop forgets a stream, or with key "" all of a file.
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
// there, or is left there, may be in the wrong place now. then is called when that
// is done.
func (t *tenure) configured(c *wire.Configure, then func()) {
	at := place{gearsfs.Ino(c.Target.GetIno()), gearsfs.Key(c.Key)}
	m := &t.vol.memory
	if !t.inMemory(at) {
		m.drop(at)
		then()
		return
	}
	m.push(func() {
		m.mu.Lock()
		if s := m.streams[at]; s != nil && c.Clear {
			if err := s.Clear(); err != nil {
				panic(err) // rows in memory are read without errors
			}
		}
		m.mu.Unlock()
		t.settingsChanged(at)
		then()
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
		t.startConfigure(o, c.Configure)
		return
	}
	t.submit(o)
}

// startConfigure sends a change of a stream's settings on its way. No node joins
// while one is that brings a stream into memory: it would be refused, or is there
// first.
func (t *tenure) startConfigure(o *op, c *wire.Configure) {
	into := c.Settings.GetMemory()
	var err error
	if into && !t.vol.joining.TryRLock() {
		into, err = false, gearsfs.ErrBusy.Because("a node joins or leaves the volume just now")
	}
	if err == nil {
		err = t.refuseMemory(c)
	}
	done := func() {
		if into {
			t.vol.joining.RUnlock()
		}
	}
	if err != nil {
		done()
		o.refuse(err)
		return
	}
	o.then = func(answer *wire.Answer, err error) {
		done()
		o.then = nil
		if err == nil && answer.Code == 0 && t.vol.alone() && c.Target.GetIno() != 0 {
			t.configured(c, func() { o.answered(answer, nil) })
			return
		}
		o.answered(answer, err)
	}
	t.submit(o)
}

// startSettle sends a settlement on its way.
func (t *tenure) startSettle(o *op, s *wire.Settle) {
	for _, r := range s.Receipts {
		if at, _ := receiptAt(r); t.inMemory(at) {
			o.inMemory, o.ino, o.keys = true, at.ino, []gearsfs.Key{at.key}
			break
		}
	}
	t.submit(o)
}
