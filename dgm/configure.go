package dgm

import (
	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm/internal/memory"
	"github.com/gearsfs/gearsfs/wire"
)

// What a command means for a stream is decided when it is sent on its way, by whether
// the stream is there, and where its records are. So commands that change that of
// streams of one file go in turn, each when the one before has been answered. What else
// removes a stream removes its file, and then the command finds none. An update, of
// which the state does not check where it belongs, goes behind those that are there.

// turn is a file's.
type turn struct {
	taken   bool     // an operation has it
	passing int      // what goes on its way without it: nobody begins a turn meanwhile
	waiting []func() // begin what waits, each as if it had the turn
}

// inTurn has an operation begun by do when it is its turn at a file, which lasts
// until the operation is done. One that begins anew gives its turn up.
func (t *tenure) inTurn(o *op, ino gearsfs.Ino, do func()) {
	if o.turnAt == nil {
		o.turnAt = new(gearsfs.Ino)
		done := o.done
		o.done = func(resp *wire.Response) {
			done(resp)
			t.giveTurn(o)
		}
	}
	t.giveTurn(o)
	if ino == 0 {
		do()
		return
	}
	t.takeTurn(ino, func() {
		*o.turnAt = ino
		do()
	})
}

// takeTurn has something done when it is its turn at a file, which endTurn ends.
func (t *tenure) takeTurn(ino gearsfs.Ino, do func()) {
	t.mu.Lock()
	at := t.turnLocked(ino)
	at.waiting = append(at.waiting, do)
	t.mu.Unlock()
	t.nextTurn(ino, at)
}

// behindTurns has something sent on its way behind those who have, or wait for, a
// turn at a file, and before those who come later.
func (t *tenure) behindTurns(ino gearsfs.Ino, do func()) {
	t.mu.Lock()
	at := t.turnLocked(ino)
	if at.taken || len(at.waiting) > 0 {
		at.waiting = append(at.waiting, func() {
			do()
			t.endTurn(ino)
		})
		t.mu.Unlock()
		return
	}
	at.passing++
	t.mu.Unlock()
	do()
	t.mu.Lock()
	at.passing--
	t.mu.Unlock()
	t.nextTurn(ino, at)
}

func (t *tenure) turnLocked(ino gearsfs.Ino) *turn {
	at := t.turns[ino]
	if at == nil {
		at = new(turn)
		t.turns[ino] = at
	}
	return at
}

// giveTurn ends an operation's turn, if it has one.
func (t *tenure) giveTurn(o *op) {
	if ino := *o.turnAt; ino != 0 {
		*o.turnAt = 0
		t.endTurn(ino)
	}
}

func (t *tenure) endTurn(ino gearsfs.Ino) {
	t.mu.Lock()
	at := t.turns[ino]
	at.taken = false
	t.mu.Unlock()
	t.nextTurn(ino, at)
}

// nextTurn begins who waits for the turn at a file, where nobody has it.
func (t *tenure) nextTurn(ino gearsfs.Ino, at *turn) {
	t.mu.Lock()
	if t.turns[ino] != at || at.taken || at.passing > 0 {
		t.mu.Unlock()
		return
	}
	if len(at.waiting) == 0 {
		delete(t.turns, ino)
		t.mu.Unlock()
		return
	}
	next := at.waiting[0]
	at.waiting = at.waiting[1:]
	at.taken = true
	t.mu.Unlock()
	next()
}

// lacksStream refuses what makes sense only for a stream that is there: to clear it
// or to take its seal off. The state would make one.
func (t *tenure) lacksStream(o *op, c *wire.Configure) error {
	at := place{gearsfs.Ino(c.Target.GetIno()), gearsfs.Key(c.Key)}
	switch makes := c.Drop || c.SetLimits || c.Settings != nil || c.GetSeal(); {
	case makes || !c.Clear && c.Seal == nil || at.key == gearsfs.DataKey || at.ino == 0 || at.key.Check() != nil:
		return nil
	case t.vol.machine.MayWait(at.ino, false, true, o.sess.caller) != nil: // the command says why
		return nil
	}
	if st := t.vol.machine.StreamState(at.ino, at.key); st.Exists() {
		return nil
	}
	return gearsfs.ErrNotFound.Because("the file has no stream %q", at.key)
}

// configured is for a stream whose settings a command has changed: what waits
// there, or is left there, may be in the wrong place now. then is called when that
// is done.
func (t *tenure) configured(c *wire.Configure, then func()) {
	at := place{gearsfs.Ino(c.Target.GetIno()), gearsfs.Key(c.Key)}
	m, stream := t.vol.memory, memory.Place{Ino: at.ino, Key: at.key}
	if !t.inMemory(at) {
		m.Drop(stream)
		then()
		return
	}
	m.Push(func() {
		if c.Clear {
			m.Clear(stream)
		}
		m.Changed(stream)
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
		o.beginAnewLocked()
	}
	t.mu.Unlock()
	for _, o := range moved {
		t.launchAnew(o)
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
		return errHasRecords
	}
	return nil
}

var errHasRecords = gearsfs.ErrInvalid.Because("the stream has records: where they are kept can't be changed")

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
	if err == nil {
		err = t.lacksStream(o, c)
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
	at := place{gearsfs.Ino(c.Target.GetIno()), gearsfs.Key(c.Key)}
	if c.Settings == nil || c.Settings.Memory == nil || into || !t.inMemory(at) {
		t.configure(o, c, done, func() {})
		return
	}
	m, stream := t.vol.memory, memory.Place{Ino: at.ino, Key: at.key}
	m.Push(func() { // behind the puts that have come
		if !m.Leave(stream) {
			o.refuse(errHasRecords)
			return
		}
		t.bequeath(c, m, stream, func(err error) {
			if err != nil {
				m.Left(stream)
				o.answered(nil, err)
				return
			}
			t.configure(o, c, func() {}, func() { m.Left(stream) })
		})
	})
}

// configure sends a change of a stream's settings on its way. applied is called when
// it has been made or not, and over when what it brings about is done, too.
func (t *tenure) configure(o *op, c *wire.Configure, applied, over func()) {
	o.then = func(answer *wire.Answer, err error) {
		applied()
		o.then = nil
		if err == nil && answer.Code == 0 && t.vol.alone() && c.Target.GetIno() != 0 {
			t.configured(c, func() {
				over()
				o.answered(answer, nil)
			})
			return
		}
		over()
		o.answered(answer, err)
	}
	t.submit(o)
}

// inheritMax is how many ids go into a command: they have at most 1 MiB.
const inheritMax = 4096

// bequeath has the state know what a stream that leaves memory goes on with. Its
// ids come to the disk before it does: there they do no harm should it stay.
func (t *tenure) bequeath(c *wire.Configure, m *memory.Machine, at memory.Place, then func(error)) {
	next, ids := m.Heritage(at)
	if next == 0 {
		then(nil)
		return
	}
	var send func()
	send = func() {
		n := min(len(ids), inheritMax)
		t.order(nil, &wire.Command{Checked: true, Op: &wire.Command_Inherit{Inherit: &wire.Inherit{
			Target: c.Target, Key: c.Key, NextSeq: uint64(next), Ids: ids[:n],
		}}}, func(answer *wire.Answer, err error) {
			if err == nil {
				err = answerError(answer)
			}
			if ids = ids[n:]; err != nil || len(ids) == 0 {
				then(err)
				return
			}
			send()
		})
	}
	send()
}
