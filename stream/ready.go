package stream

import "github.com/gearsfs/gearsfs"

// EachReady calls yield with the records that can be taken, in the order in
// which they are, until it returns false. What r points to is valid during the
// call only.
func (q *Queue) EachReady(yield func(at gearsfs.Place, r *Record) bool) error {
	for at := range q.back.from(gearsfs.Place{}) {
		rec, err := q.rows.Get(at)
		if err != nil || !yield(at, &rec) {
			return err
		}
	}
	from := q.s.Cursor
	for i := q.window.first; i < len(q.window.recs); i++ {
		w := &q.window.recs[i]
		if !yield(w.at, &w.rec) {
			return nil
		}
		from = next(w.at)
	}
	if q.windowIsWhole() {
		return nil
	}
	return q.rows.Scan(from, placeMax, func(at gearsfs.Place, r *Record) bool {
		return q.waits(at) || yield(at, r)
	})
}

// Measure returns how many bytes the first n records have that can be taken,
// of which there must be as many. Beyond bytesMax it stops counting.
func (q *Queue) Measure(n, bytesMax uint64) (bytes uint64, err error) {
	if n == 0 {
		return 0, nil
	}
	if fresh := q.fresh(); fresh > 0 { // who measures takes next
		if err := q.fill(int(min(n, fresh))); err != nil {
			return 0, err
		}
	}
	err = q.EachReady(func(_ gearsfs.Place, r *Record) bool {
		bytes += uint64(r.Len())
		n--
		return n > 0 && bytes <= bytesMax
	})
	return bytes, err
}

// First returns the place of the first record that can be taken; ok is false
// where there is none.
func (q *Queue) First() (at gearsfs.Place, ok bool, err error) {
	if at, ok := q.back.min(); ok {
		return at, true, nil
	}
	if q.fresh() == 0 {
		return at, false, nil
	}
	if err := q.fill(1); err != nil {
		return at, false, err
	}
	return q.window.front().at, true, nil
}

// Copied is the state of a stream that has copies of all records that live in
// one that is in state s, in their places, with the same settings: all of them
// can be taken.
func (s *State) Copied() State {
	c := *s
	c.Cursor, c.Cleaned = s.Head, s.Head
	c.Ready = s.records()
	c.Leased, c.Returned, c.Delayed, c.DelayedAhead = 0, 0, 0, 0
	c.Dead, c.Discarded, c.AgeDue, c.IDs, c.NextID, c.IDsDue = 0, 0, 0, 0, 0, 0
	c.Lost, c.LostBefore = nil, s.NextSeq-1
	return c
}
