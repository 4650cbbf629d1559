package stream

import (
	"slices"

	"github.com/gearsfs/gearsfs"
)

// A queue remembers the last records that went without having been acknowledged,
// in runs, so that whoever put them can be told.

// lostRunsMax bounds the runs.
const lostRunsMax = 16

// Lose notes the fate of records that are about to go, or have just gone.
func (q *Queue) Lose(first, last gearsfs.Seq, fate gearsfs.Fate) {
	runs := q.s.Lost
	if n := len(runs); n > 0 && runs[n-1].Fate == fate && runs[n-1].Last+1 == first {
		runs = slices.Clone(runs) // States have been handed out
		runs[n-1].Last = last
		q.s.Lost = runs
		return
	}
	if len(runs) == lostRunsMax {
		q.s.LostBefore = max(q.s.LostBefore, runs[0].Last)
		runs = runs[1:]
	}
	q.s.Lost = append(slices.Clip(runs), gearsfs.LostRun{First: first, Last: last, Fate: fate})
}

// loseAll notes that all records go. Those of a stream that was written in place
// may be in any order: what becomes of them is not told apart.
func (q *Queue) loseAll() error {
	if q.s.Drained() {
		return nil
	}
	if q.s.Blocks {
		q.s.LostBefore = q.s.NextSeq - 1
		return nil
	}
	for at := range q.outs.from(gearsfs.Place{}) {
		if !at.Less(q.s.Cursor) {
			break
		}
		q.Lose(at.Seq, at.Seq, gearsfs.FateCleared)
	}
	first := q.s.NextSeq
	if q.fresh() > 0 {
		if err := q.fill(1); err != nil {
			return err
		}
		first = q.window.front().at.Seq
	}
	for at := range q.outs.from(q.s.Cursor) { // waits for its time
		first = min(first, at.Seq)
		break
	}
	if first < q.s.NextSeq {
		q.Lose(first, q.s.NextSeq-1, gearsfs.FateCleared)
	}
	return nil
}
