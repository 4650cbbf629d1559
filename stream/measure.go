package stream

import "github.com/gearsfs/gearsfs"

// Measure returns how many bytes the first n records have that can be taken,
// of which there must be as many.
func (q *Queue) Measure(n uint64) (bytes uint64, err error) {
	for at := range q.back.from(gearsfs.Place{}) {
		if n == 0 {
			return bytes, nil
		}
		out, _ := q.outs.get(at)
		bytes += out.Bytes
		n--
	}
	from := q.s.Cursor
	for i := q.window.first; i < len(q.window.recs) && n > 0; i++ {
		w := &q.window.recs[i]
		bytes += uint64(len(w.rec.Data))
		from = next(w.at)
		n--
	}
	if n == 0 {
		return bytes, nil
	}
	err = q.rows.Scan(from, placeMax, func(at gearsfs.Place, r *Record) bool {
		if q.waits(at) {
			return true
		}
		bytes += uint64(len(r.Data))
		n--
		return n > 0
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
	if err := q.fill(); err != nil {
		return at, false, err
	}
	return q.window.front().at, true, nil
}
