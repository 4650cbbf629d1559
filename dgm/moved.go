package dgm

import (
	"cmp"
	"slices"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/wire"
)

// A stream may come into memory, or leave it, while operations on it are on their
// way.
//
// One that is asked for again may have been done where the stream's records were
// before, and its answer is there: with the streams in memory, or in the log. So it
// asks there first, once: on the goroutine of the streams in memory, behind what
// was pushed, or of the state behind a command that does nothing, and so behind
// what was on its way through the log. Earlier attempts have been given up by then.
//
// A session's puts to a stream keep their order, though some are on their way to
// the log and others to memory, and those that come to the wrong place begin anew.
// So
//
//  1. a put that begins anew stays among those under way (session.puts), and
//  2. one that comes while an earlier one to the same stream goes the other way,
//     asks, or begins anew, is held (session.held) until that is over or is on the
//     same way before it.

// toAsk says whether an operation, which goes to memory or to the log, may have
// been done in the other place.
func (t *tenure) toAsk(o *op, inMemory bool) bool {
	switch {
	case o.sess == nil || !o.change.Retry || o.asked:
		return false
	case !inMemory:
		return t.vol.memory.MayKnow(o.sess.id)
	}
	elsewhere := func(key gearsfs.Key) bool { return !t.inMemory(place{o.ino, key}) }
	switch c := o.change.Command.Op.(type) {
	case *wire.Command_Take: // else the take asks the log itself
		return !slices.ContainsFunc(o.keys, elsewhere)
	case *wire.Command_Settle: // of several streams a part may have been settled
		return !slices.ContainsFunc(c.Settle.Receipts, func(r *wire.Receipt) bool {
			at, _ := receiptAt(r)
			return at != place{o.ino, o.keys[0]}
		})
	}
	return true
}

// ask sends an operation on its way, behind the question whether it was done in the
// other place.
func (t *tenure) ask(o *op) {
	m := t.vol.memory
	if !o.inMemory {
		m.Push(func() {
			defer m.Wake()
			if before := m.Kept(o.sess.id, o.change.Command); before != nil {
				t.goOn(o, func() { t.doneMemory(o, before) })
				return
			}
			t.goOn(o, func() { t.toLog(o) })
		})
		return
	}
	t.askLog(o, func(happened bool, err error) {
		t.goOn(o, func() {
			switch {
			case err != nil:
				o.outcome(nil, err)
			case happened:
				t.answerFromLog(o)
			default:
				t.submitMemory(o)
			}
		})
	})
}

// goOn sends an operation that has asked on its way, and then those behind it.
func (t *tenure) goOn(o *op, on func()) {
	t.mu.Lock()
	o.sess.noteLocked(o, func() { o.asking, o.asked, o.coming = false, true, o.coming+1 })
	t.mu.Unlock()
	on()
	t.hasCome(o)
}

// askLog says whether the log has an operation done, behind all that is on its way
// there.
func (t *tenure) askLog(o *op, then func(happened bool, err error)) {
	t.order(nil, &wire.Command{Checked: true, Op: &wire.Command_Tick{Tick: &wire.Tick{}}}, func(_ *wire.Answer, err error) {
		var happened bool
		if err == nil {
			happened, err = t.vol.machine.Answered(o.sess.id, o.change.Command.Seq)
		}
		then(happened, err)
	})
}

// answerFromLog has an operation answered that the log has done. Where that was to
// lease what is not leased any more it begins anew, and its stream is in memory.
func (t *tenure) answerFromLog(o *op) {
	o.then = func(answer *wire.Answer, err error) {
		o.then = nil
		if err == nil && gearsfs.Code(answer.Code) == gearsfs.ErrUnsupported.Code {
			t.submitMemory(o)
			return
		}
		o.answered(answer, err)
	}
	t.toLog(o)
}

// beginAnewLocked has a put that is not proposed any more stay among those under
// way, behind which later ones wait, until launchAnew has sent it there again.
func (o *op) beginAnewLocked() {
	if o.isPut() {
		o.sess.intoLogLocked(o)
		o.sess.noteLocked(o, func() { o.coming++ })
	}
}

func (t *tenure) launchAnew(o *op) {
	t.launch(o)
	if o.isPut() {
		t.hasCome(o)
	}
}

// hasCome is for an operation that is on its way now, or over.
func (t *tenure) hasCome(o *op) {
	t.mu.Lock()
	o.sess.noteLocked(o, func() { o.coming-- })
	held := o.holdsBackLocked()
	t.mu.Unlock()
	if held {
		t.letOn(o.sess)
	}
}

// forgo takes a put that is not to be proposed again from those under way.
func (t *tenure) forgo(o *op) {
	t.mu.Lock()
	listed := o.listed
	t.mu.Unlock()
	if listed {
		o.settled()
	}
}

// holdsBackLocked says whether puts are held back that an operation which is not
// under way any more may have been in the way of.
func (o *op) holdsBackLocked() bool { return o.isPut() && len(o.sess.held) > 0 }

// noteLocked changes what is counted of a put under way.
func (s *session) noteLocked(o *op, change func()) {
	if o.listed {
		s.puts.countLocked(o, -1)
	}
	change()
	if o.listed {
		s.puts.countLocked(o, 1)
	}
}

func (l *putsUnderWay) countLocked(o *op, n int) {
	l.all += n
	if o.inMemory {
		l.inMemory += n
	}
	if o.asking || o.coming > 0 {
		l.late += n
	}
}

// otherwiseLocked says whether an earlier put of the session to o's stream is under
// way that o would overtake: it goes the other way, or is not on its way yet.
func (s *session) otherwiseLocked(o *op) bool {
	way := s.puts.inMemory
	if o.inMemory {
		way = s.puts.all - s.puts.inMemory
	}
	if way == 0 && s.puts.late == 0 {
		return false
	}
	for p := s.puts.first; p != nil && p.ticket < o.ticket; p = p.putBehind {
		if p.sameStream(o) && (p.inMemory != o.inMemory || p.asking || p.coming > 0) {
			return true
		}
	}
	return false
}

// sameStream says whether a put may be to the same stream as another: one that
// named a missing file may be to any.
func (o *op) sameStream(other *op) bool {
	return (o.ino == other.ino || o.ino == 0) && o.keys[0] == other.keys[0]
}

// holdLocked holds a put back that would overtake an earlier one of its session.
func (s *session) holdLocked(o *op) bool {
	behind := s.letting != nil && s.letting.ticket < o.ticket || len(s.held) > 0 && s.held[0].ticket < o.ticket
	if !behind && !s.otherwiseLocked(o) {
		return false
	}
	i, _ := slices.BinarySearchFunc(s.held, o.ticket, func(p *op, ticket uint64) int { return cmp.Compare(p.ticket, ticket) })
	s.held = slices.Insert(s.held, i, o)
	return true
}

// letOn sends those puts of a session on their way that are held back and overtake
// none any more, in their order.
func (t *tenure) letOn(s *session) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for s.letting == nil && len(s.held) > 0 {
		o := s.held[0]
		inMemory := t.inMemory(place{o.ino, o.keys[0]})
		s.noteLocked(o, func() { o.inMemory = inMemory })
		if s.otherwiseLocked(o) {
			return
		}
		s.held = slices.Delete(s.held, 0, 1)
		s.letting = o
		t.mu.Unlock()
		t.launch(o)
		t.mu.Lock()
		s.letting = nil
	}
}
