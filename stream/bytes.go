package stream

import (
	"fmt"

	"github.com/gearsfs/gearsfs"
)

// What POSIX bytes need of a queue: records that are changed where they stand.
// The caller reads the rows itself and knows by Lives which of them count.
// All of these raise the version.

// Lives reports whether the record whose row is at that place is not gone.
func (q *Queue) Lives(at gearsfs.Place) bool {
	if !at.Less(q.s.Cursor) {
		return true
	}
	return q.outs.ref(at) != nil
}

// Replace changes the bytes of a record that lives, had oldBytes bytes, in those
// extents if any, and keeps its boundaries, or grows into a gap behind it, also
// at the tail. r is the whole new row and is not kept. A lease on it stays.
func (q *Queue) Replace(at gearsfs.Place, oldBytes int, was []gearsfs.Extent, r *Record) {
	q.s.Blocks = true
	q.resize(at, oldBytes, was, r)
	if end := at.Pos + gearsfs.Pos(r.Len()); end > q.s.Tail {
		q.s.Tail = end
	}
}

func (q *Queue) resize(at gearsfs.Place, oldBytes int, was []gearsfs.Extent, r *Record) {
	q.rows.Replace(at, was, r)
	n := uint64(r.Len())
	q.s.Bytes += n - uint64(oldBytes)
	q.s.Version++
	if out := q.outs.ref(at); out != nil && out.Bytes != n {
		was := *out
		out.Bytes = n
		q.rows.SetOut(at, was, *out)
	}
	q.dropWindowBehind(at)
}

// Rewrite gives a record that was those extents others with the same bytes. r is
// the whole new row and is not kept. To whoever uses the stream nothing changes.
func (q *Queue) Rewrite(at gearsfs.Place, was []gearsfs.Extent, r *Record) {
	q.rows.Replace(at, was, r)
	q.dropWindowBehind(at)
}

// dropWindowBehind forgets the window where it may hold something at or
// behind at.
func (q *Queue) dropWindowBehind(at gearsfs.Place) {
	if n := q.window.len(); n > 0 && !q.window.recs[len(q.window.recs)-1].at.Less(at) {
		q.window.drop()
	}
}

// Insert makes a record of at least one byte in a gap at or behind the cursor,
// or at or behind the tail; what it passes over there becomes a gap. r is its
// row and is not kept.
func (q *Queue) Insert(pos gearsfs.Pos, r *Record) gearsfs.Place {
	at := gearsfs.Place{Pos: pos, Seq: q.s.NextSeq}
	n := r.Len()
	if at.Less(q.s.Cursor) || n == 0 {
		panic(fmt.Sprintf("stream: a block of %d bytes at %v, the cursor is at %v", n, at, q.s.Cursor))
	}
	q.dropWindowBehind(at)
	q.rows.Set(at, r)
	q.s.NextSeq++
	q.s.Ready++
	q.s.Bytes += uint64(n)
	q.s.Blocks = true
	q.s.Version++
	if end := pos + gearsfs.Pos(n); end > q.s.Tail {
		q.s.Tail = end
	}
	return at
}

// Remove removes a record that lives, ending the lease on it: a gap is left.
// It had that many bytes. Head stays where it is.
func (q *Queue) Remove(at gearsfs.Place, bytes int) error {
	if err := q.rows.Delete(at, next(at)); err != nil {
		return err
	}
	q.s.Bytes -= uint64(bytes)
	q.s.Blocks = true
	q.s.Version++
	q.Lose(at.Seq, at.Seq, gearsfs.FateCleared)
	if out, ok := q.outs.get(at); ok {
		q.endOut(at, out)
		return nil
	}
	q.s.Ready--
	q.dropWindowBehind(at)
	return nil
}

// endOut removes the mark of a record that is removed: a lease on it ends.
func (q *Queue) endOut(at gearsfs.Place, out Out) {
	switch {
	case out.Leased:
		q.s.Leased--
	case out.Delayed():
		q.s.Delayed--
		if !at.Less(q.s.Cursor) {
			q.s.DelayedAhead--
		}
	default:
		q.s.Returned--
		q.s.Ready--
		q.back.delete(at)
	}
	q.removeOut(at, out)
}

// SetTail truncates the stream at tail or extends it with a gap. Records at or
// behind the new tail are removed, ending the leases on them; one that reaches
// across is cut. tail must not be in front of head: there it means clear.
func (q *Queue) SetTail(tail gearsfs.Pos) error {
	if tail <= q.s.Head.Pos {
		return q.Clear()
	}
	q.s.Version++
	if tail >= q.s.Tail {
		q.s.Tail = tail
		// Empty records at the old tail stay: they are in front of the gap.
		return nil
	}
	q.s.LostBefore = q.s.NextSeq - 1
	cut := gearsfs.Place{Pos: tail}
	if err := q.removeFrom(cut); err != nil {
		return err
	}
	q.s.Tail = tail
	at, ok, err := q.rows.Before(cut)
	if err != nil || !ok || !q.Lives(at) {
		return err
	}
	r, err := q.rows.Get(at)
	if err != nil {
		return err
	}
	if was := r.Len(); at.Pos+gearsfs.Pos(was) > tail {
		extents := r.Extents
		r.cut(int(tail - at.Pos))
		q.resize(at, was, extents, &r)
	}
	return nil
}

// Clear removes all records, ending the leases on them: tail moves to head, and
// the stream is a plain queue again.
func (q *Queue) Clear() error {
	q.s.Version++
	if err := q.loseAll(); err != nil {
		return err
	}
	cut := q.s.Head
	remove := q.removeFrom
	switch {
	case q.outs.len() > 0:
	case q.windowIsWhole() && q.window.len() <= clearFewMax:
		remove = q.removeWindow
	case q.fresh() == 1:
		remove = q.removeOnly
	}
	if err := remove(cut); err != nil {
		return err
	}
	q.s.Tail = cut.Pos
	q.s.Head = q.s.End()
	// Rows of this position were removed, at each update of a register: the next
	// scan begins behind them.
	q.s.Cursor = q.s.Head
	q.s.Blocks = false
	return nil
}

// SkipTo has the seqs of a queue without records go on from next, where they are not
// that far. What became of records with lower ones is not known any more.
func (q *Queue) SkipTo(next gearsfs.Seq) {
	if next <= q.s.NextSeq || !q.s.Drained() {
		return
	}
	q.s.NextSeq = next
	q.s.Head = q.s.End()
	q.s.Cursor = q.s.Head
	q.s.Lost, q.s.LostBefore = nil, next-1
	q.s.Version++
}

// clearFewMax is up to how many records are cleared row by row: that is cheaper
// than to look what there is, for a register that is updated all the time.
const clearFewMax = 8

// removeWindow removes the records of the window, which are all that there are.
func (q *Queue) removeWindow(gearsfs.Place) error {
	for _, w := range q.window.recs[q.window.first:] {
		if err := q.rows.Delete(w.at, next(w.at)); err != nil {
			return err
		}
	}
	q.window.drop()
	q.s.Ready, q.s.Bytes = 0, 0
	return nil
}

// removeOnly removes the only record there is, which in a small file mostly stands at
// the head: to ask for its row costs a third of a search for rows.
func (q *Queue) removeOnly(cut gearsfs.Place) error {
	only := q.s.Head
	there, err := q.rows.Has(only)
	if err != nil {
		return err
	}
	if !there { // it is of bytes further behind
		return q.removeFrom(cut)
	}
	q.window.drop()
	q.s.Ready, q.s.Bytes = 0, 0
	return q.rows.Delete(only, next(only))
}

// removeFrom removes the records at or behind cut, and their rows.
func (q *Queue) removeFrom(cut gearsfs.Place) error {
	q.window.drop()
	if cut.Pos > q.s.Head.Pos && q.fresh() > 0 { // else nothing is left
		from := cut
		if from.Less(q.s.Cursor) {
			from = q.s.Cursor
		}
		err := q.rows.Scan(from, placeMax, func(at gearsfs.Place, r *Record) bool {
			if !q.waits(at) {
				q.s.Ready--
				q.s.Bytes -= uint64(r.Len())
			}
			return true
		})
		if err != nil {
			return err
		}
	}
	for {
		at, ok := q.lastOut(cut)
		if !ok {
			break
		}
		out, _ := q.outs.get(at)
		q.s.Bytes -= out.Bytes
		q.endOut(at, out)
	}
	if cut.Pos <= q.s.Head.Pos {
		q.s.Ready, q.s.Bytes = 0, 0
	}
	if err := q.rows.Delete(cut, placeMax); err != nil {
		return err
	}
	if cut.Less(q.s.Cursor) {
		q.s.Cursor = cut
	}
	if cut.Less(q.s.Cleaned) {
		q.s.Cleaned = cut
	}
	return nil
}

// lastOut returns the last out, where it is at or behind cut.
func (q *Queue) lastOut(cut gearsfs.Place) (gearsfs.Place, bool) {
	at, ok := q.outs.before(placeMax)
	return at, ok && !at.Less(cut)
}
