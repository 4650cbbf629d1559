package stream

import (
	"fmt"

	"github.com/gearsfs/gearsfs"
)

// DropOldest makes room for n records of together that many bytes: it removes
// the first records until they fit, ending the leases on them. They must be
// within the limits themselves.
func (q *Queue) DropOldest(n, bytes uint64) error {
	dropped := false
	for !q.s.Fits(n, bytes) {
		if err := q.dropFirst(); err != nil {
			return err
		}
		dropped = true
	}
	if !dropped {
		return nil
	}
	return q.moveHead()
}

// dropFirst removes the first record there is.
func (q *Queue) dropFirst() error {
	at, isOut := q.outs.min()
	if q.fresh() > 0 && (!isOut || !at.Less(q.s.Cursor)) {
		if err := q.fill(1); err != nil {
			return err
		}
		if front := q.window.front().at; !isOut || front.Less(at) {
			q.dropFresh()
			return nil
		}
	}
	out, ok := q.outs.get(at)
	if !ok {
		return fmt.Errorf("%w: a stream counts %d records and has none", gearsfs.ErrDamaged, q.s.records())
	}
	q.s.Bytes -= out.Bytes
	q.s.Version++
	q.discarded(at)
	q.endOut(at, out)
	if !at.Less(q.s.Cursor) {
		q.pass(behind(at, int(out.Bytes)))
	}
	q.dead(at)
	return nil
}

// dropFresh removes the first record of the window.
func (q *Queue) dropFresh() {
	w := q.window.front()
	at, n := w.at, w.rec.Len()
	q.window.pop()
	q.pass(behind(at, n))
	q.s.Ready--
	q.s.Bytes -= uint64(n)
	q.s.Dead++
	q.s.Version++
	q.discarded(at)
}

func (q *Queue) discarded(at gearsfs.Place) {
	q.s.Discarded++
	q.Lose(at.Seq, at.Seq, gearsfs.FateDiscarded)
}

// Front returns the time of the first record that can be taken, of which there
// must be one.
func (q *Queue) Front() (time uint64, err error) {
	if at, ok := q.back.min(); ok {
		rec, err := q.rows.Get(at)
		return rec.Time, err
	}
	if err := q.fill(1); err != nil {
		return 0, err
	}
	return q.window.front().rec.Time, nil
}

// Older reports whether a record became ready in front of others since the
// last call: the time of the first may be an earlier one then.
func (q *Queue) Older() bool {
	older := q.older
	q.older = false
	return older
}

// DiscardOlder removes up to limit records from the front of those that can be
// taken whose time is not behind last, and returns how many.
func (q *Queue) DiscardOlder(last uint64, limit int) (n int, err error) {
	for ; n < limit && q.s.Ready > 0; n++ {
		time, err := q.Front()
		if err != nil {
			return n, err
		}
		if time > last {
			break
		}
		at, returned := q.back.min()
		if !returned {
			q.dropFresh()
			continue
		}
		out, _ := q.outs.get(at)
		q.s.Bytes -= out.Bytes
		q.s.Version++
		q.discarded(at)
		q.endOut(at, out)
		q.dead(at)
	}
	if n == 0 {
		return 0, nil
	}
	return n, q.moveHead()
}
