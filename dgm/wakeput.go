package dgm

import (
	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/file"
	"github.com/gearsfs/gearsfs/wire"
)

// A session's puts to a stream keep their order, though some go to the log and
// find no room there, and others join those that wait without having been
// there. The state refuses what comes behind a put of the session that it has
// refused, until that is tried again as the first in line: what was first in
// line must be the session's first. So
//
//  1. puts wait in the order in which they came, not in which they were refused,
//     and
//  2. none that waits is tried while an earlier one of its session, to the same
//     stream, is on its way through the log: that may have been refused.

// startPut sends a put to the log, behind those that already wait for room in
// its stream. Takes that wait for what it puts go with it in one entry.
func (t *tenure) startPut(o *op, p *wire.Put) canceller {
	if err := t.resolve(o.sess, o.path, &p.Target); err != nil {
		t.forgo(o)
		o.refuse(err)
		return nil
	}
	p.Retry = false // is the node's to say
	key := gearsfs.Key(p.Key)
	t.mu.Lock()
	if o.ticket == 0 {
		o.ticket = t.waits.tickets.Next()
	}
	o.sess.refused.comesLocked(o)
	t.place(o, p.Target, append(o.keyed[:0], key))
	inMemory := t.inMemory(place{o.ino, key})
	asks := t.toAsk(o, inMemory)
	o.sess.noteLocked(o, func() { o.inMemory, o.asking = inMemory, asks })
	if o.sess.holdLocked(o) {
		t.mu.Unlock()
		return o
	}
	var behind bool
	if s := t.waits.spot(o.ino, key); s != nil && o.ino != 0 && !o.change.Retry {
		behind = (s.puts.Len() > 0 || s.putting) && !t.addsNothing(place{o.ino, key}, p.Records)
	}
	var batch []*op
	if !behind {
		o.state = opProposed
		o.sess.intoLogLocked(o)
		batch = t.withTakersLocked(o, key, uint64(len(p.Records)))
	}
	t.mu.Unlock()
	switch {
	case batch != nil:
		t.submit(batch...)
	case !behind:
		t.submit(o.byItself()...)
	case !t.park(o):
		err := o.endedBy()
		if err == nil {
			err = gearsfs.ErrFull
		}
		o.failCertain(err)
	}
	return o
}

// putsUnderWay are the puts of a session that are proposed, in the order in which
// they came: a list through the ops, so that it needs no memory and a put leaves
// it at once however many are in it. It is guarded by tenure.mu.
type putsUnderWay struct {
	first, last *op
	all         int
	inMemory    int // of those
	late        int // of those, to be awaited by later ones
}

// intoLogLocked notes that a put is proposed.
func (s *session) intoLogLocked(o *op) {
	if o.listed {
		return
	}
	before := s.puts.last
	for before != nil && before.ticket > o.ticket {
		before = before.putBefore
	}
	after := s.puts.first
	if before != nil {
		after = before.putBehind
	}
	s.puts.linkLocked(before, o)
	s.puts.linkLocked(o, after)
	o.listed = true
	s.puts.countLocked(o, 1)
	o.change.Command.GetPut().Refused = s.refused.beforeLocked(o)
}

// linkLocked makes two puts neighbours; nil stands for the end of the list.
func (l *putsUnderWay) linkLocked(before, after *op) {
	if before == nil {
		l.first = after
	} else {
		before.putBehind = after
	}
	if after == nil {
		l.last = before
	} else {
		after.putBefore = before
	}
}

// outOfLogLocked notes that a put is not proposed any more.
func (s *session) outOfLogLocked(o *op) {
	if !o.listed {
		return
	}
	s.puts.countLocked(o, -1)
	s.puts.linkLocked(o.putBefore, o.putBehind)
	o.putBefore, o.putBehind, o.listed = nil, nil, false
}

// putsBeforeLocked says whether an earlier put of the session to o's stream is
// proposed; one that named a missing file may be to any.
func (s *session) putsBeforeLocked(o *op) bool {
	for p := s.puts.first; p != nil && p.ticket < o.ticket; p = p.putBehind {
		if p.sameStream(o) {
			return true
		}
	}
	return false
}

// putsWaitLocked says whether o is a put and others may wait at its stream.
func (t *tenure) putsWaitLocked(o *op) bool {
	if !o.isPut() || t.waits.count == 0 {
		return false
	}
	s := t.waits.spot(o.ino, o.keys[0])
	return o.ino == 0 || s != nil && s.puts.Len() > 0
}

// passPut is for a put that is over: the next in line may fit, or may have been
// kept from trying by it.
func (t *tenure) passPut(o *op) {
	ino := o.ino
	if ino == 0 {
		attr, err := t.vol.machine.Lookup(o.name.dir, o.name.name, gearsfs.Root)
		if err != nil {
			return // nothing waits there for room
		}
		ino = attr.Ino
	}
	t.wake(ino, o.keys[0])
}

// mayTryPut says whether a put that waits for room can have another outcome than
// to wait on.
func mayTryPut(o *op, st *file.StreamState) bool {
	return st.Sealed || st.Full != gearsfs.FullWait || st.Fits(putSize(o))
}

// fullWaits says whether a put that finds no room waits for it.
func (t *tenure) fullWaits(o *op) bool {
	st := t.stateOf(o.ino, o.keys[0])
	return st.Full == gearsfs.FullWait
}

func putSize(o *op) (records, bytes uint64) { return sizeOf(o.change.Command.GetPut()) }

func sizeOf(p *wire.Put) (records, bytes uint64) {
	for _, r := range p.Records {
		bytes += uint64(len(r.Data))
	}
	return uint64(len(p.Records)), bytes
}
