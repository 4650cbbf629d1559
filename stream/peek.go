package stream

import (
	"slices"

	"github.com/gearsfs/gearsfs"
)

// Peek appends to dst what Take would hand out, and changes nothing.
func (q *Queue) Peek(dst []Taken, limit int, bytesMax int) ([]Taken, error) {
	p := peeking{dst: dst, limit: limit, bytesLeft: bytesMax}
	for at := range q.back.from(gearsfs.Place{}) {
		rec, err := q.rows.Get(at)
		if err != nil {
			return p.dst, err
		}
		out, _ := q.outs.get(at)
		if !p.add(at, &rec, out.Deliveries) {
			return p.dst, nil
		}
	}
	if q.fresh() == 0 {
		return p.dst, nil
	}
	err := q.rows.Scan(q.s.Cursor, placeMax, func(at gearsfs.Place, r *Record) bool {
		return q.waits(at) || p.add(at, r, 0)
	})
	return p.dst, err
}

// Newer appends to dst the first records with a greater seq than after, leased
// and delayed ones too, in the order of their places. It takes time for all of those, so it
// is for followers that are near the tail.
func (q *Queue) Newer(dst []Taken, after gearsfs.Seq, limit int, bytesMax int) ([]Taken, error) {
	if after+1 >= q.s.NextSeq || q.s.Drained() {
		return dst, nil
	}
	from := placeMax
	for {
		at, ok, err := q.rows.Before(from)
		if err != nil {
			return dst, err
		}
		if !ok || at.Less(q.s.Head) || at.Seq <= after && !q.s.Blocks {
			break
		}
		from = at
	}
	p := peeking{dst: dst, limit: limit, bytesLeft: bytesMax}
	err := q.rows.Scan(from, placeMax, func(at gearsfs.Place, r *Record) bool {
		if at.Seq <= after || !q.Lives(at) {
			return true
		}
		out, _ := q.outs.get(at)
		return p.add(at, r, out.Deliveries)
	})
	return p.dst, err
}

// peeking is one Peek or Newer.
type peeking struct {
	dst       []Taken
	n, limit  int
	bytesLeft int
}

// add shows a record; it returns false where there is to be no other.
func (p *peeking) add(at gearsfs.Place, r *Record, deliveries uint32) bool {
	n := r.Len()
	if p.n > 0 && n > p.bytesLeft || p.n >= p.limit {
		return false
	}
	rec := *r
	rec.Data = slices.Clone(r.Data)
	rec.Extents = CloneExtents(r.Extents)
	rec.Type = string([]byte(r.Type))
	p.dst = append(p.dst, Taken{Place: at, Record: rec, Deliveries: deliveries})
	p.n++
	p.bytesLeft -= n
	return p.n < p.limit
}
