package dgm

import (
	"slices"
	"syscall"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/file"
	"github.com/gearsfs/gearsfs/wire"
)

// startTake sends a take to the log where records may be ready for it, and
// lets it wait otherwise. Older waiters of its keys go first.
func (v *Volume) startTake(o *op, t *wire.Take) canceller {
	keys, err := takeKeys(t.Keys)
	if err != nil {
		o.fail(err)
		return nil
	}
	if err := v.resolve(o.sess, o.path, &t.Target); err != nil {
		o.failDurable(err)
		return nil
	}
	t.Max = max(1, min(t.Max, gearsfs.BatchRecordsMax))
	v.place(o, t.Target, keys)
	v.mu.Lock()
	now := o.change.Retry || v.runnableLocked(o)
	if now {
		o.state = opProposed
		v.promiseLocked(o)
	}
	v.mu.Unlock()
	switch {
	case now:
		v.submit(o)
	case !v.park(o):
		v.failEmpty(o)
	}
	return o
}

// takeKeys checks the keys of a take and drops repeated ones.
func takeKeys(names []string) ([]gearsfs.Key, error) {
	if len(names) == 0 || len(names) > takeKeysMax {
		return nil, gearsfs.ErrInvalid.Because("a take names 1 to %d keys", takeKeysMax)
	}
	keys := make([]gearsfs.Key, 0, len(names))
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
func (v *Volume) place(o *op, t *wire.Target, keys []gearsfs.Key) {
	if o.since.IsZero() {
		o.since = v.cfg.Clock()
	}
	o.keys = keys
	o.ino = gearsfs.Ino(t.Ino)
	if o.ino == 0 {
		o.name = nameKey{gearsfs.Ino(t.Dir), t.Name}
	}
}

// runnableLocked says whether a new take may be proposed: nobody older waits
// for any of its keys and records are there that are promised to nobody.
func (v *Volume) runnableLocked(o *op) bool {
	if o.ino == 0 {
		return false
	}
	ready := false
	for _, key := range o.keys {
		var promised uint64
		if s := v.waits.spot(o.ino, key); s != nil {
			if s.takes.Len() > 0 && !o.noWait() {
				return false
			}
			promised = s.takes.promised
		}
		if st := v.machine.StreamState(o.ino, key); st.Ready > promised || o.noWait() && st.Ready > 0 {
			ready = true
		}
	}
	return ready
}

// promiseLocked counts the records that a proposed take will have.
func (v *Volume) promiseLocked(o *op) {
	want := uint64(o.change.Command.GetTake().Max)
	for _, key := range o.keys {
		if o.ino == 0 {
			return
		}
		st := v.machine.StreamState(o.ino, key)
		l := &v.waits.makeSpot(o.ino, key).takes
		if st.Ready <= l.promised {
			v.waits.tidy(o.ino, key)
			continue
		}
		v.promiseTo(o, l, key, min(want, st.Ready-l.promised))
		return
	}
}

func (v *Volume) promiseTo(o *op, l *line, key gearsfs.Key, records uint64) {
	l.promised += records
	o.promised = promise{l, key, records}
}

// park lets an operation wait whose attempt found nothing, or that has not
// been tried. It reports false where the operation may not wait.
func (v *Volume) park(o *op) bool {
	v.mu.Lock()
	o.takeBackLocked()
	if !v.mayWaitLocked(o) {
		v.mu.Unlock()
		return false
	}
	v.waits.join(o)
	v.mu.Unlock()
	v.lookAgain(o)
	return true
}

// mayWaitLocked ends an operation that must not wait, or not any more.
func (v *Volume) mayWaitLocked(o *op) bool {
	switch {
	case o.ended != nil, o.noWait():
	case o.sess.ended || v.closed:
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
func (v *Volume) lookAgain(o *op) {
	v.mu.Lock()
	ino, name := o.ino, o.name
	v.mu.Unlock()
	if err := v.hopeless(o, ino, name); err != nil {
		v.giveUp([]*op{o}, err)
		return
	}
	if ino == 0 {
		v.appeared(name)
		return
	}
	if o.peek != nil {
		return // runPeek has looked
	}
	for _, key := range o.keys {
		v.wake(ino, key)
	}
}

// hopeless returns why an operation must not wait at a place: the file or the
// directory is gone, is no file, or may not be used.
func (v *Volume) hopeless(o *op, ino gearsfs.Ino, name nameKey) error {
	if ino == 0 {
		attr, err := v.machine.GetAttr(name.dir)
		if gearsfs.CodeOf(err) == gearsfs.ErrStale.Code || err == nil && attr.Nlink == 0 {
			return gearsfs.ErrRemoved
		}
		return err
	}
	put := o.peek == nil && !o.isTake()
	err := v.machine.MayWait(ino, !put, o.peek == nil, o.sess.caller)
	if put && gearsfs.CodeOf(err) == gearsfs.ErrAccess.Code {
		return nil // it was let in when it was applied
	}
	if gearsfs.CodeOf(err) == gearsfs.ErrStale.Code && o.path != "" {
		return gearsfs.ErrRemoved
	}
	return err
}

// giveUp ends those of ops that still wait.
func (v *Volume) giveUp(ops []*op, why error) {
	v.mu.Lock()
	over := slices.DeleteFunc(ops, func(o *op) bool { return o.state != opWaiting })
	for _, o := range over {
		v.waits.leave(o)
		o.state = opDone
	}
	v.mu.Unlock()
	for _, o := range over {
		o.failDurable(why)
	}
}

// failEmpty ends an operation that found nothing and does not wait.
func (v *Volume) failEmpty(o *op) {
	err := o.endedBy()
	if err == nil {
		err = v.hopeless(o, o.ino, o.name)
	}
	switch {
	case err != nil:
	case v.drained(o):
		err = gearsfs.ErrEnd
	default:
		err = gearsfs.ErrEmpty
	}
	o.failDurable(err)
}

// drained says whether nothing can come any more from any of o's keys.
func (v *Volume) drained(o *op) bool {
	if o.ino == 0 {
		return false
	}
	return !slices.ContainsFunc(o.keys, func(key gearsfs.Key) bool {
		st := v.machine.StreamState(o.ino, key)
		return !st.Drained()
	})
}

// startPut sends a put to the log, behind those that already wait for room in
// its stream. Takes that wait for what it puts go with it in one entry.
func (v *Volume) startPut(o *op, p *wire.Put) canceller {
	if err := v.resolve(o.sess, o.path, &p.Target); err != nil {
		o.fail(err)
		return nil
	}
	p.Retry = false // is the node's to say
	key := gearsfs.Key(p.Key)
	v.place(o, p.Target, []gearsfs.Key{key})
	v.mu.Lock()
	var behind bool
	if s := v.waits.spot(o.ino, key); s != nil && o.ino != 0 && !o.change.Retry {
		behind = s.puts.Len() > 0 || s.putting
	}
	var batch []*op
	if !behind {
		o.state = opProposed
		batch = v.withTakersLocked(o, key, uint64(len(p.Records)))
	}
	v.mu.Unlock()
	switch {
	case batch != nil:
		v.submit(batch...)
	case !behind:
		v.submit(o)
	case !v.park(o):
		err := o.endedBy()
		if err == nil {
			err = gearsfs.ErrFull
		}
		o.failDurable(err)
	}
	return o
}

// withTakersLocked collects a put and the oldest takes that wait for its
// records; nil where none does.
func (v *Volume) withTakersLocked(o *op, key gearsfs.Key, records uint64) []*op {
	var takes []*op
	if o.ino == 0 {
		if l := v.waits.names[o.name]; l != nil {
			l.each(func(t *op) {
				if records > 0 && t.isTake() && slices.Contains(t.keys, key) {
					takes = append(takes, t)
					records -= min(records, uint64(t.change.Command.GetTake().Max))
				}
			})
		}
	} else if s := v.waits.spot(o.ino, key); s != nil {
		s.takes.each(func(t *op) {
			if records > 0 {
				takes = append(takes, t)
				records -= min(records, uint64(t.change.Command.GetTake().Max))
			}
		})
	}
	if takes == nil {
		return nil
	}
	batch := []*op{o}
	for _, t := range takes {
		v.waits.leave(t)
		t.state = opProposed
		batch = append(batch, t)
	}
	return batch
}

// startPeek reads a stream, waiting for what it asks for.
func (v *Volume) startPeek(o *op) canceller {
	if err := gearsfs.Key(o.peek.Key).Check(); err != nil {
		o.fail(err)
		return nil
	}
	if err := v.resolve(o.sess, o.path, &o.peek.Target); err != nil {
		o.failDurable(err)
		return nil
	}
	o.peek.Max = max(1, min(o.peek.Max, gearsfs.BatchRecordsMax))
	v.place(o, o.peek.Target, []gearsfs.Key{gearsfs.Key(o.peek.Key)})
	return v.runPeek(o)
}

// runPeek answers a peek, or lets it wait where nothing is there for it. It
// looks again where the stream changed between the look and the wait.
func (v *Volume) runPeek(o *op) canceller {
	for {
		version := v.machine.StreamState(o.ino, o.keys[0]).Version
		if v.tryPeek(o) {
			return nil
		}
		v.mu.Lock()
		if !v.mayWaitLocked(o) {
			v.mu.Unlock()
			v.failEmpty(o)
			return nil
		}
		if o.ino != 0 && v.machine.StreamState(o.ino, o.keys[0]).Version != version {
			v.mu.Unlock()
			continue
		}
		v.waits.join(o)
		v.mu.Unlock()
		v.lookAgain(o)
		return o
	}
}

// tryPeek answers a peek that finds something, or that can't find anything any
// more. It is called for an op that is not waiting.
func (v *Volume) tryPeek(o *op) bool {
	if o.ino == 0 {
		return false
	}
	records, err := v.machine.Peek(o.ino, o.keys[0], file.PeekWhat{
		Max: int(o.peek.Max), Follow: o.peek.Follow, After: gearsfs.Seq(o.peek.After), Last: o.peek.Last,
	}, o.sess.caller)
	if gearsfs.CodeOf(err) == gearsfs.ErrEmpty.Code {
		return false
	}
	o.settled()
	v.answer(&wire.Response{Answer: &wire.Answer{Records: records}}, err, false, o.done)
	return true
}

// Applied implements file.Observer: it tries what waits for the streams and
// names that an entry touched.
func (v *Volume) Applied(_ uint64, touched []file.Touched, changed []file.Changed) {
	if len(changed) > 0 {
		v.watches.tell(changed)
	}
	v.mu.Lock()
	idle := v.waits.count == 0
	v.mu.Unlock()
	if idle {
		return
	}
	for _, t := range touched {
		if t.Gone && t.Key == "" {
			v.gone(t.Ino)
			continue
		}
		v.wake(t.Ino, t.Key)
	}
	for _, c := range changed {
		if c.Name != "" {
			v.appeared(nameKey{c.Ino, c.Name})
		}
	}
}

// wake proposes the oldest of those that wait at a stream and can run now.
func (v *Volume) wake(ino gearsfs.Ino, key gearsfs.Key) {
	v.mu.Lock()
	s := v.waits.spot(ino, key)
	if s == nil || v.closed {
		v.mu.Unlock()
		return
	}
	st := v.machine.StreamState(ino, key)
	var run, over, peeks []*op
	for s.takes.Len() > 0 && st.Ready > s.takes.promised {
		o := s.takes.first()
		v.waits.leave(o)
		o.state = opProposed
		s = v.waits.makeSpot(ino, key) // leaving may have dropped it
		v.promiseTo(o, &s.takes, key, min(uint64(o.change.Command.GetTake().Max), st.Ready-s.takes.promised))
		run = append(run, o)
	}
	if st.Drained() {
		over = v.overLocked(s)
	}
	if o := s.puts.first(); o != nil && !s.putting && (st.Sealed || st.Fits(putSize(o))) {
		s.putting, o.turn = true, s // keeps the spot while o leaves it
		v.waits.leave(o)
		o.state = opProposed
		o.change.Command.GetPut().Retry = true
		run = append(run, o)
	}
	for s.peeks.Len() > 0 {
		o := s.peeks.first()
		v.waits.leave(o)
		o.state = opProposed
		peeks = append(peeks, o)
	}
	if len(peeks) > 0 {
		v.owned.Go(func() { // not on the goroutine that applies
			for _, o := range peeks {
				v.runPeek(o)
			}
		})
	}
	v.mu.Unlock()
	v.submit(run...)
	for _, o := range over {
		o.failDurable(gearsfs.ErrEnd)
	}
}

// overLocked takes those out of a drained stream's line that nothing can come
// for any more.
func (v *Volume) overLocked(s *spot) []*op {
	var over []*op
	s.takes.each(func(o *op) {
		if v.drained(o) {
			over = append(over, o)
		}
	})
	for _, o := range over {
		v.waits.leave(o)
		o.state = opDone
	}
	return over
}

func putSize(o *op) (records, bytes uint64) {
	p := o.change.Command.GetPut()
	for _, r := range p.Records {
		bytes += uint64(len(r.Data))
	}
	return uint64(len(p.Records)), bytes
}

// gone tells those that wait at a file which lost its last name.
func (v *Volume) gone(ino gearsfs.Ino) {
	v.mu.Lock()
	ops := v.waits.at(ino)
	v.mu.Unlock()
	v.giveUp(ops, gearsfs.ErrRemoved)
}

// appeared moves those that wait for a missing file to the file, where it is
// there now. Where the name is a symbolic link they look where it leads.
func (v *Volume) appeared(name nameKey) {
	v.mu.Lock()
	l := v.waits.names[name]
	if l == nil {
		v.mu.Unlock()
		return
	}
	attr, err := v.machine.Lookup(name.dir, name.name, gearsfs.Root)
	if err != nil {
		v.mu.Unlock()
		return
	}
	link := attr.Mode&syscall.S_IFMT == syscall.S_IFLNK
	var ops, again []*op
	l.each(func(o *op) { ops = append(ops, o) })
	keys := make(map[gearsfs.Key]bool)
	for _, o := range ops {
		v.waits.leave(o)
		if link && o.path != "" {
			o.state = opProposed
			again = append(again, o)
			continue
		}
		o.ino = attr.Ino
		v.retarget(o)
		v.waits.join(o)
		for _, key := range o.keys {
			keys[key] = true
		}
	}
	v.mu.Unlock()
	for _, o := range again {
		v.begin(o)
	}
	if attr.Mode&syscall.S_IFMT != syscall.S_IFREG {
		for _, o := range ops {
			if !slices.Contains(again, o) {
				v.giveUp([]*op{o}, v.hopeless(o, attr.Ino, name))
			}
		}
		return
	}
	for key := range keys {
		v.wake(attr.Ino, key)
	}
}

// retarget points a waiting operation at the file that appeared.
func (v *Volume) retarget(o *op) {
	t := &wire.Target{Ino: uint64(o.ino)}
	switch {
	case o.peek != nil:
		o.peek.Target = t
	case o.isTake():
		o.change.Command.GetTake().Target = t
	default:
		o.change.Command.GetPut().Target = t
	}
}
