package dgm

import (
	"slices"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm/internal/answer"
	"github.com/gearsfs/gearsfs/dgm/internal/memory"
	"github.com/gearsfs/gearsfs/file"
	"github.com/gearsfs/gearsfs/wire"
)

// What is asked of streams in memory takes the way of all operations up to the log:
// instead of there it goes to the memory.Machine (submit), which a node alone has.

// memoryNode is a Volume as its streams in memory know it.
type memoryNode struct{ vol *Volume }

var _ memory.Node = memoryNode{}

func (n memoryNode) Now() uint64                   { return n.vol.group.Time() }
func (n memoryNode) InMemory(at memory.Place) bool { return n.vol.inMemory(place{at.Ino, at.Key}) }

func (n memoryNode) Wake(at []memory.Place) {
	t := n.vol.tenure.Load()
	if t == nil {
		return
	}
	for _, p := range at {
		t.wake(p.Ino, p.Key)
	}
}

func (n memoryNode) Configure() func(*wire.Configure, func()) {
	t := n.vol.tenure.Load()
	if t == nil {
		return nil
	}
	return func(c *wire.Configure, then func()) {
		ino := gearsfs.Ino(c.Target.GetIno())
		t.takeTurn(ino, func() {
			t.order(nil, &wire.Command{Checked: true, Op: &wire.Command_Configure{Configure: c}}, func(*wire.Answer, error) {
				t.configured(c, func() {})
				then()
				t.endTurn(ino)
			})
		})
	}
}

func (n memoryNode) Go(f func()) bool {
	if n.vol.root.Err() != nil {
		return false
	}
	n.vol.owned.Go(f)
	return true
}

// inMemory says whether a stream's records are in memory.
func (v *Volume) inMemory(at place) bool {
	return at.ino != 0 && v.alone() && v.machine.InMemory(at.ino, at.key)
}

func (t *tenure) inMemory(at place) bool { return t.vol.inMemory(at) }

// stateOf is the state of a stream, wherever its records are.
func (t *tenure) stateOf(ino gearsfs.Ino, key gearsfs.Key) file.StreamState {
	if m := t.vol.memory; m.Any() {
		if st, ok := m.State(memory.Place{Ino: ino, Key: key}); ok {
			return st
		}
	}
	return t.vol.machine.StreamState(ino, key)
}

// submitMemory does what operations ask for, one behind the other; the answers come
// as from the log. Nobody else is woken between them: a put's records are for the
// takes that come with it.
func (t *tenure) submitMemory(ops ...*op) {
	m := t.vol.memory
	var fit []*op
	for _, o := range ops {
		if k := &t.vol.payloads; k.Refers(o.change.Command) {
			if err := k.Inline(t.vol.busy, o.change.Command); err != nil {
				o.outcome(nil, err)
				continue
			}
		}
		fit = append(fit, o)
	}
	m.Push(func() {
		defer m.Wake()
		for _, o := range fit {
			t.doMemory(o)
		}
	})
}

func (t *tenure) doMemory(o *op) {
	answer, further := t.answerMemory(o)
	if further != nil {
		further()
		return
	}
	t.doneMemory(o, answer)
}

// doneMemory goes on with what has become of an operation in memory.
func (t *tenure) doneMemory(o *op, answer *wire.Answer) {
	switch {
	case o.isPut() && o.change.Command.GetPut().Seal && answer.Code == 0:
		t.sealMemory(o, answer)
	default:
		o.outcome(answer, nil)
	}
}

// sealMemory seals a stream behind what was put to it, which is a setting.
func (t *tenure) sealMemory(o *op, answer *wire.Answer) {
	at, yes := place{gearsfs.Ino(answer.Ino), gearsfs.Key(o.change.Command.GetPut().Key)}, true
	t.order(nil, &wire.Command{Checked: true, Op: &wire.Command_Configure{Configure: &wire.Configure{
		Target: &wire.Target{Ino: uint64(at.ino)}, Key: string(at.key), Seal: &yes,
	}}}, func(sealed *wire.Answer, err error) {
		if err == nil && sealed.Code != 0 {
			answer = sealed
		}
		o.outcome(answer, err)
		t.vol.memory.Push(func() { t.vol.memory.Changed(memory.Place{Ino: at.ino, Key: at.key}) })
	})
}

// misplaced says whether a put or take went to the log although its stream's
// records are in memory by now, or the other way.
func (o *op) misplaced() bool {
	if !o.isPut() && !o.isTake() && !(o.inMemory && o.change.Command.GetUpdate() != nil) {
		return false
	}
	return o.inMemory != slices.ContainsFunc(o.keys, func(key gearsfs.Key) bool { return o.ten.inMemory(place{o.ino, key}) })
}

// answerMemory does an operation, or says what is to be done further for it.
func (t *tenure) answerMemory(o *op) (done *wire.Answer, further func()) {
	t.mu.Lock()
	ended, givenUp := o.sess.ended, o.epoch != o.sess.epoch.Load()
	before := o.isPut() && t.earlierWaitsLocked(o)
	t.mu.Unlock()
	switch {
	case ended:
		return answer.Of(gearsfs.ErrClosed), nil
	case givenUp: // its client has asked again, and may have been answered from elsewhere
		return answer.Of(gearsfs.ErrCancelled), nil
	}
	out := t.vol.memory.Do(&memory.Request{
		Session: o.sess.id, Caller: o.sess.caller, Command: o.change.Command, Ino: o.ino, Keys: o.keys,
		Retry: o.change.Retry, Logged: o.logged, Behind: before, Again: o.relaunch,
	})
	switch {
	case out.Held:
		return nil, func() {}
	case out.Keys != nil:
		return nil, func() { t.takeOnDisk(o, out.Keys) }
	case out.Receipts != nil:
		return nil, func() { t.settleOnDisk(o, o.change.Command.GetSettle(), out.Receipts) }
	}
	return out.Answer, nil
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
	t.vol.memory.End(id, forget, func() bool { // then its next end does it
		t.mu.Lock()
		defer t.mu.Unlock()
		return t.sessions[id] != nil
	})
}

// startPlain sends an operation on its way that waits for nothing, once its
// files are known.
func (t *tenure) startPlain(o *op) {
	switch c := o.change.Command.Op.(type) {
	case *wire.Command_Update:
		at := place{gearsfs.Ino(c.Update.Target.Ino), gearsfs.Key(c.Update.Key)}
		t.behindTurns(at.ino, func() { t.startUpdate(o, at) })
		return
	case *wire.Command_Configure:
		t.inTurn(o, gearsfs.Ino(c.Configure.Target.GetIno()), func() { t.startConfigure(o, c.Configure) })
		return
	case *wire.Command_CopyFile:
		t.inTurn(o, gearsfs.Ino(c.CopyFile.To.GetIno()), func() { t.submit(o) })
		return
	}
	t.submit(o)
}

// startUpdate sends an update on its way to where its stream is.
func (t *tenure) startUpdate(o *op, at place) {
	o.keys = []gearsfs.Key{} // others may wait for its id
	if o.inMemory = t.inMemory(at); o.inMemory {
		o.ino, o.keys = at.ino, []gearsfs.Key{at.key}
	}
	o.asking = t.toAsk(o, o.inMemory)
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
	o.asking = t.toAsk(o, o.inMemory)
	t.submit(o)
}

// takeOnDisk sends a take to the log, with those of its keys that are on disk.
func (t *tenure) takeOnDisk(o *op, onDisk []gearsfs.Key) {
	take := o.change.Command.GetTake()
	all := take.Keys
	take.Keys = keysToWire(onDisk)
	o.then = func(answer *wire.Answer, err error) {
		take.Keys, o.then = all, nil
		if err != nil {
			o.answered(answer, err)
			return
		}
		switch gearsfs.Code(answer.Code) {
		case gearsfs.ErrEmpty.Code, gearsfs.ErrEnd.Code:
			o.logged, o.change.Retry = true, false
			t.submitMemory(o)
		case gearsfs.ErrUnsupported.Code: // one of them is in memory by now
			o.relaunch()
		default:
			o.answered(answer, nil)
		}
	}
	t.toLog(o)
}

// settleOnDisk sends a settlement to the log, with those of its receipts that are
// of streams on disk.
func (t *tenure) settleOnDisk(o *op, settle *wire.Settle, onDisk []*wire.Receipt) {
	all := settle.Receipts
	settle.Receipts = onDisk
	o.then = func(answer *wire.Answer, err error) {
		settle.Receipts, o.then = all, nil
		if err != nil || answer.Code != 0 {
			o.answered(answer, err)
			return
		}
		o.logged = true
		t.submitMemory(o)
	}
	t.toLog(o)
}
