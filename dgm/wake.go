package dgm

import (
	"slices"
	"syscall"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm/internal/memory"
	"github.com/gearsfs/gearsfs/file"
	"github.com/gearsfs/gearsfs/replica"
	"github.com/gearsfs/gearsfs/wire"
)

// startTake sends a take to the log where records may be ready for it, and
// lets it wait otherwise. Older waiters of its keys go first.
func (t *tenure) startTake(o *op, take *wire.Take) canceller {
	keys, err := takeKeys(take.Keys, o.keyed[:0])
	if err != nil {
		o.fail(err)
		return nil
	}
	if err := t.resolve(o.sess, o.path, &take.Target); err != nil {
		o.refuse(err)
		return nil
	}
	take.Max = max(1, min(take.Max, gearsfs.BatchRecordsMax))
	t.place(o, take.Target, keys)
	o.inMemory = slices.ContainsFunc(keys, func(key gearsfs.Key) bool { return t.inMemory(place{o.ino, key}) })
	o.asking = t.toAsk(o, o.inMemory)
	t.mu.Lock()
	now := o.change.Retry || t.runnableLocked(o)
	if now {
		o.state = opProposed
		t.promiseLocked(o)
	}
	t.mu.Unlock()
	switch {
	case now:
		t.submit(o.byItself()...)
	case !t.park(o):
		t.failEmpty(o)
	}
	return o
}

// takeKeys appends the keys of a take to keys, checked and but for repeated ones.
func takeKeys(names []string, keys []gearsfs.Key) ([]gearsfs.Key, error) {
	if len(names) == 0 || len(names) > takeKeysMax {
		return nil, gearsfs.ErrInvalid.Because("a take names 1 to %d keys", takeKeysMax)
	}
	for _, name := range names {
		key := gearsfs.Key(name)
		if err := key.Check(); err != nil {
			return nil, err
		}
		if !slices.Contains(keys, key) {
			keys = append(keys, key)
		}
	}
	return keys, nil
}

// place notes where an operation stands.
func (t *tenure) place(o *op, target *wire.Target, keys []gearsfs.Key) {
	o.keys = keys
	o.ino = gearsfs.Ino(target.Ino)
	if o.ino == 0 {
		o.name = nameKey{gearsfs.Ino(target.Dir), target.Name}
	}
}

// runnableLocked says whether a new take may be proposed: nobody older waits
// for records of any of its keys, and records are there that are promised to nobody.
func (t *tenure) runnableLocked(o *op) bool {
	if o.ino == 0 {
		return false
	}
	ready := false
	for _, key := range o.keys {
		var promised uint64
		if s := t.waits.spot(o.ino, key); s != nil {
			if s.takes.Len()+s.txs.Len() > 0 && !o.noWait() {
				return false
			}
			promised = s.takes.promised
		}
		if st := t.stateOf(o.ino, key); st.Ready > promised || o.noWait() && st.Ready > 0 {
			ready = true
		}
	}
	return ready
}

// promiseLocked counts the records that a proposed take will have.
func (t *tenure) promiseLocked(o *op) {
	want := uint64(o.change.Command.GetTake().Max)
	for _, key := range o.keys {
		if o.ino == 0 {
			return
		}
		st := t.stateOf(o.ino, key)
		l := &t.waits.makeSpot(o.ino, key).takes
		if st.Ready <= l.promised {
			t.waits.tidy(o.ino, key)
			continue
		}
		t.promiseTo(o, l, key, min(want, st.Ready-l.promised))
		return
	}
}

func (t *tenure) promiseTo(o *op, l *line, key gearsfs.Key, records uint64) {
	l.promised += records
	o.promised = append(o.promised, promise{place{o.ino, key}, l, records})
}

// park lets an operation wait whose attempt found nothing, or that has not
// been tried. It reports false where the operation may not wait.
func (t *tenure) park(o *op) bool {
	if !o.noWait() && o.misplaced() {
		o.relaunch()
		return true
	}
	t.mu.Lock()
	wake := o.takeBackLocked()
	may := t.mayWaitLocked(o)
	if may {
		t.waits.join(o)
	} else {
		o.refusedLocked()
	}
	held := o.holdsBackLocked()
	t.mu.Unlock()
	if held {
		t.letOn(o.sess)
	}
	switch {
	case may:
		t.lookAgain(o)
	case o.isPut():
		t.passPut(o)
	default:
		t.wakeAll(wake)
	}
	return may
}

// mayWaitLocked ends an operation that must not wait, or not any more.
func (t *tenure) mayWaitLocked(o *op) bool {
	switch {
	case o.ended != nil, o.noWait():
	case t.over != nil:
		o.ended = t.over
	case o.sess.ended:
		o.ended = gearsfs.ErrClosed
	case o.epoch != o.sess.epoch.Load():
		o.ended = gearsfs.ErrCancelled // its client has asked again
	default:
		return true
	}
	o.state = opDone
	return false
}

// lookAgain is for an operation that has just begun to wait: what came between
// the attempt and now told nobody of it.
func (t *tenure) lookAgain(o *op) {
	if o.lock() != nil {
		t.wakeLocks(o.ino)
		return
	}
	t.mu.Lock()
	ino, name := o.ino, o.name
	t.mu.Unlock()
	if err := t.hopeless(o, ino, name); err != nil {
		t.giveUp([]*op{o}, err)
		return
	}
	if ino == 0 {
		t.appeared(name)
		return
	}
	if o.peek != nil {
		return // runPeek has looked
	}
	for _, key := range o.keys {
		t.wake(ino, key)
	}
	if o.isPut() {
		t.tryKnown(o)
	}
}

// hopeless returns why an operation must not wait at a place: the file or the
// directory is gone, is no file, or may not be used.
func (t *tenure) hopeless(o *op, ino gearsfs.Ino, name nameKey) error {
	if ino == 0 {
		attr, err := t.vol.machine.GetAttr(name.dir)
		if gearsfs.CodeOf(err) == gearsfs.ErrStale.Code || err == nil && attr.Nlink == 0 {
			return gearsfs.ErrRemoved
		}
		return err
	}
	if o.transaction() != nil {
		return t.vol.machine.MayWait(ino, false, false, o.sess.caller)
	}
	put := o.isPut()
	err := t.vol.machine.MayWait(ino, !put, o.peek == nil, o.sess.caller)
	if put && gearsfs.CodeOf(err) == gearsfs.ErrAccess.Code {
		return nil // it was let in when it was applied
	}
	if gearsfs.CodeOf(err) == gearsfs.ErrStale.Code && o.path != "" {
		return gearsfs.ErrRemoved
	}
	return err
}

// giveUp ends those of ops that still wait.
func (t *tenure) giveUp(ops []*op, why error) {
	t.mu.Lock()
	over := slices.DeleteFunc(ops, func(o *op) bool { return o.state != opWaiting })
	for _, o := range over {
		t.waits.leave(o)
		o.state = opDone
	}
	t.mu.Unlock()
	for _, o := range over {
		o.failCertain(why)
	}
}

// failEmpty ends an operation that found nothing and does not wait.
func (t *tenure) failEmpty(o *op) {
	err := o.endedBy()
	if err == nil {
		err = t.hopeless(o, o.ino, o.name)
	}
	switch {
	case err != nil:
	case t.drained(o):
		err = gearsfs.ErrEnd
	default:
		err = gearsfs.ErrEmpty
	}
	o.failCertain(err)
}

// drained says whether nothing can come any more from any of o's keys.
func (t *tenure) drained(o *op) bool {
	if o.ino == 0 {
		return false
	}
	return !slices.ContainsFunc(o.keys, func(key gearsfs.Key) bool {
		st := t.stateOf(o.ino, key)
		return !st.Drained()
	})
}

// withTakersLocked collects a put and the oldest takes that wait for its
// records; nil where none does, or where transactions do too: their turn shows
// when it is applied.
func (t *tenure) withTakersLocked(o *op, key gearsfs.Key, records uint64) []*op {
	var takes []*op
	elsewhere := false // one of them is served in another order, and those behind it wait
	if at := o.change.Command.GetPut(); at.At != 0 || at.Delay != 0 {
		return nil // they can't be taken yet
	}
	if o.ino == 0 {
		if l := t.waits.names[o.name]; l != nil && !l.hasTransaction() {
			l.each(func(take *op) {
				if records > 0 && take.isTake() && slices.Contains(take.keys, key) {
					takes = append(takes, take)
					records -= min(records, uint64(take.change.Command.GetTake().Max))
				}
			})
		}
	} else if s := t.waits.spot(o.ino, key); s != nil && s.txs.Len() == 0 {
		s.takes.each(func(take *op) {
			elsewhere = elsewhere || take.inMemory != o.inMemory
			if records > 0 && !elsewhere {
				takes = append(takes, take)
				records -= min(records, uint64(take.change.Command.GetTake().Max))
			}
		})
	}
	if takes == nil {
		return nil
	}
	batch := []*op{o}
	for _, take := range takes {
		t.waits.leave(take)
		take.state = opProposed
		batch = append(batch, take)
	}
	return batch
}

// startPeek reads a stream, waiting for what it asks for.
func (t *tenure) startPeek(o *op) canceller {
	if err := gearsfs.Key(o.peek.Key).Check(); err != nil {
		o.fail(err)
		return nil
	}
	if err := t.resolve(o.sess, o.path, &o.peek.Target); err != nil {
		o.failCertain(err)
		return nil
	}
	o.peek.Max = max(1, min(o.peek.Max, gearsfs.BatchRecordsMax))
	t.place(o, o.peek.Target, append(o.keyed[:0], gearsfs.Key(o.peek.Key)))
	return t.runPeek(o)
}

// runPeek answers a peek, or lets it wait where nothing is there for it. It
// looks again where the stream changed between the look and the wait.
func (t *tenure) runPeek(o *op) canceller {
	for {
		version := t.stateOf(o.ino, o.keys[0]).Version
		if t.tryPeek(o) {
			return nil
		}
		t.mu.Lock()
		if !t.mayWaitLocked(o) {
			t.mu.Unlock()
			t.failEmpty(o)
			return nil
		}
		if o.ino != 0 && t.stateOf(o.ino, o.keys[0]).Version != version {
			t.mu.Unlock()
			continue
		}
		t.waits.join(o)
		t.mu.Unlock()
		t.lookAgain(o)
		return o
	}
}

// tryPeek answers a peek that finds something, or that can't find anything any
// more. It is called for an op that is not waiting.
func (t *tenure) tryPeek(o *op) bool {
	if o.peek.Gone != 0 {
		return t.tryGone(o)
	}
	if o.ino == 0 {
		return false
	}
	records, err := t.look(o, o.peek)
	if gearsfs.CodeOf(err) == gearsfs.ErrEmpty.Code {
		return false
	}
	o.settled()
	t.vol.answer(&wire.Response{Answer: &wire.Answer{Records: records}}, err, false, replica.Vouch{}, o.done)
	return true
}

// look reads what a peek asks for.
func (t *tenure) look(o *op, p *wire.Peek) ([]*wire.TakenRecord, error) {
	if at := (place{o.ino, o.keys[0]}); t.inMemory(at) {
		return t.vol.memory.Peek(memory.Place{Ino: at.ino, Key: at.key}, p, o.sess.caller)
	}
	return t.vol.machine.Peek(o.ino, o.keys[0], file.PeekWhat{
		Max: int(p.Max), Follow: p.Follow, After: gearsfs.Seq(p.After), Last: p.Last,
	}, o.sess.caller)
}

// tryGone answers a peek that waits until records are gone, where they are.
func (t *tenure) tryGone(o *op) bool {
	if o.ino == 0 {
		o.settled()
		o.failCertain(gearsfs.ErrNotFound)
		return true
	}
	left, err := t.look(o, &wire.Peek{Max: 1, Follow: true, After: o.peek.After})
	switch code := gearsfs.CodeOf(err); {
	case err == nil && len(left) > 0 && left[0].Seq <= o.peek.Gone:
		if !o.noWait() {
			return false
		}
		err = gearsfs.ErrUnmet.Because("some of the records are left")
	case code == gearsfs.ErrEmpty.Code || code == gearsfs.ErrEnd.Code:
		err = nil
	}
	o.settled()
	t.vol.answer(&wire.Response{Answer: &wire.Answer{}}, err, false, replica.Vouch{}, o.done)
	return true
}

// applied tries what waits for the streams and names that an entry touched.
func (t *tenure) applied(touched []file.Touched, changed []file.Changed) {
	t.mu.Lock()
	idle := t.waits.count == 0
	t.mu.Unlock()
	if idle && !t.vol.memory.Any() {
		return
	}
	for _, at := range touched {
		if at.Ended {
			t.leaseEnded(place{at.Ino, at.Key})
		}
		if at.Gone {
			t.vol.memory.Drop(memory.Place{Ino: at.Ino, Key: at.Key})
		}
		if at.Unlocked {
			t.wakeLocks(at.Ino)
		}
		if at.Key == "" {
			if at.Gone {
				t.gone(at.Ino)
			}
			continue
		}
		t.wake(at.Ino, at.Key)
	}
	for _, c := range changed {
		if c.Name != "" {
			t.appeared(nameKey{c.Ino, c.Name})
		}
	}
}

// wake proposes the oldest of those that wait at a stream and can run now.
func (t *tenure) wake(ino gearsfs.Ino, key gearsfs.Key) {
	t.mu.Lock()
	s := t.waits.spot(ino, key)
	if s == nil || t.over != nil {
		t.mu.Unlock()
		return
	}
	st := t.stateOf(ino, key)
	run := t.takersLocked(place{ino, key}, &st)
	s = t.waits.makeSpot(ino, key) // they may have been the last there
	var over, peeks []*op
	if st.Drained() {
		over = t.overLocked(s)
	}
	if o := s.puts.first(); o != nil && !s.putting && !o.sess.putsBeforeLocked(o) && mayTryPut(o, &st) {
		s.putting, o.turn = true, s // keeps the spot while o leaves it
		t.waits.leave(o)
		o.state = opProposed
		o.sess.intoLogLocked(o)
		o.change.Command.GetPut().Retry = true
		run = append(run, o)
	}
	for s.peeks.Len() > 0 {
		o := s.peeks.first()
		t.waits.leave(o)
		o.state = opProposed
		peeks = append(peeks, o)
	}
	behind := slices.Clone(t.waits.ids[idAt{place: place{ino, key}}])
	t.waits.tidy(ino, key)
	if len(peeks) > 0 {
		t.vol.owned.Go(func() { // not on the goroutine that applies
			for _, o := range peeks {
				t.runPeek(o)
			}
		})
	}
	t.mu.Unlock()
	t.submit(run...)
	for _, o := range over {
		o.failCertain(gearsfs.ErrEnd)
	}
	for _, o := range behind {
		t.tryKnown(o)
	}
}

// wakeAll wakes who waits at some streams.
func (t *tenure) wakeAll(at []place) {
	for _, p := range at {
		t.wake(p.ino, p.key)
	}
}

// takersLocked makes those proposed that wait for what a stream has, the
// oldest that can run first, and returns them. A transaction that lacks
// something else goes to wait there.
func (t *tenure) takersLocked(at place, st *file.StreamState) (run []*op) {
	s := t.waits.makeSpot(at.ino, at.key)
	var txs []*op
	s.txs.each(func(o *op) { txs = append(txs, o) })
	for {
		s = t.waits.makeSpot(at.ino, at.key) // leaving may have dropped it
		var next *op
		if s.takes.Len() > 0 && st.Ready > s.takes.promised {
			next = s.takes.first()
		}
		for len(txs) > 0 && (next == nil || txs[0].ticket < next.ticket) {
			o := txs[0]
			txs = txs[1:]
			if t.tryTransactionLocked(o, at) {
				next = o
			}
		}
		if next == nil {
			return run
		}
		if next.isTake() {
			t.waits.leave(next)
			next.state = opProposed
			s = t.waits.makeSpot(at.ino, at.key)
			t.promiseTo(next, &s.takes, at.key, min(uint64(next.change.Command.GetTake().Max), st.Ready-s.takes.promised))
		}
		s.txs.each(func(o *op) {
			if o.ticket < next.ticket {
				o.passed++
			}
		})
		run = append(run, next)
	}
}

// overLocked takes those out of a drained stream's line that nothing can come
// for any more.
func (t *tenure) overLocked(s *spot) []*op {
	var over []*op
	s.takes.each(func(o *op) {
		if t.drained(o) {
			over = append(over, o)
		}
	})
	for _, o := range over {
		t.waits.leave(o)
		o.state = opDone
	}
	return over
}

// gone tells those that wait at a file which lost its last name.
func (t *tenure) gone(ino gearsfs.Ino) {
	t.mu.Lock()
	ops := t.waits.at(ino)
	t.mu.Unlock()
	t.giveUp(ops, gearsfs.ErrRemoved)
}

// appeared moves those that wait for a missing file to the file, where it is
// there now. Where the name is a symbolic link they look where it leads.
func (t *tenure) appeared(name nameKey) {
	t.mu.Lock()
	l := t.waits.names[name]
	if l == nil {
		t.mu.Unlock()
		return
	}
	attr, err := t.vol.machine.Lookup(name.dir, name.name, gearsfs.Root)
	if err != nil {
		t.mu.Unlock()
		return
	}
	link := attr.Mode&syscall.S_IFMT == syscall.S_IFLNK
	var ops, again []*op
	l.each(func(o *op) { ops = append(ops, o) })
	keys := make(map[gearsfs.Key]bool)
	for _, o := range ops {
		t.waits.leave(o)
		if link && o.path != "" || o.transaction() != nil {
			o.state = opProposed
			again = append(again, o)
			continue
		}
		o.ino = attr.Ino
		retarget(o)
		t.waits.join(o)
		for _, key := range o.keys {
			keys[key] = true
		}
	}
	t.mu.Unlock()
	for _, o := range again {
		t.launch(o)
	}
	if attr.Mode&syscall.S_IFMT != syscall.S_IFREG {
		for _, o := range ops {
			if !slices.Contains(again, o) {
				t.giveUp([]*op{o}, t.hopeless(o, attr.Ino, name))
			}
		}
		return
	}
	for key := range keys {
		t.wake(attr.Ino, key)
	}
}

// retarget points a waiting operation at the file that appeared.
func retarget(o *op) {
	target := &wire.Target{Ino: uint64(o.ino)}
	switch {
	case o.peek != nil:
		o.peek.Target = target
	case o.isTake():
		o.change.Command.GetTake().Target = target
	default:
		o.change.Command.GetPut().Target = target
	}
}
