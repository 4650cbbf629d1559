package wordcount

import (
	"cmp"
	"slices"

	"github.com/gearsfs/gearsfs"
)

// A tally adds up what workers report, each record once (see the package
// comment, "Exactly once"). It is not safe for concurrent use.
//
// Invariants:
//
//  1. total and words are those of the records in added.
//  2. No work in pending is settled as far as the reports so far tell.
type tally struct {
	total   Counts
	words   wordMap
	added   spans
	pending map[workID]*work
}

// report takes a report in.
func (t *tally) report(r *report) {
	for _, id := range r.Settled {
		if w := t.pending[id]; w != nil {
			delete(t.pending, id)
			t.add(w)
		}
	}
	if r.Work != nil {
		if t.pending == nil {
			t.pending = make(map[workID]*work)
		}
		t.pending[r.Work.ID] = r.Work
	}
}

// finish decides what is pending: by now all records are settled.
func (t *tally) finish() {
	left := make([]*work, 0, len(t.pending))
	for _, w := range t.pending {
		left = append(left, w)
	}
	slices.SortFunc(left, func(a, b *work) int {
		if c := cmp.Compare(b.ID.Fence, a.ID.Fence); c != 0 {
			return c
		}
		return cmp.Compare(a.ID.First, b.ID.First)
	})
	for _, w := range left {
		t.add(w)
	}
	t.pending = nil
}

// add counts w unless one of its records was counted.
func (t *tally) add(w *work) {
	if slices.ContainsFunc(w.Spans, t.added.overlap) {
		return
	}
	for _, s := range w.Spans {
		t.added.insert(s)
	}
	t.total = t.total.Add(w.Counts)
	for _, f := range w.Words {
		t.words.add([]byte(f.Word), f.Count)
	}
}

// agree compares the total with the result of a worker that has counted all of
// it: both sides have added up the same work, in their own ways.
func (t *tally) agree(result Counts) error {
	if result.Bytes == t.total.Bytes && result != t.total {
		return gearsfs.ErrDamaged.Because("the worker counted %v, its acknowledgements say %v", result, t.total)
	}
	return nil
}

// spans is a set of seqs: disjoint spans in order, with gaps between them.
type spans []span

// search returns the index of the first span that ends at seq or behind it.
func (s spans) search(seq gearsfs.Seq) int {
	i, _ := slices.BinarySearchFunc(s, seq, func(e span, seq gearsfs.Seq) int { return cmp.Compare(e.Last, seq) })
	return i
}

func (s spans) overlap(n span) bool {
	i := s.search(n.First)
	return i < len(s) && s[i].First <= n.Last
}

// insert adds n, which overlaps none of s, joining it to its neighbours.
func (s *spans) insert(n span) {
	lo := s.search(n.First)
	hi := lo
	if lo > 0 && (*s)[lo-1].Last+1 == n.First {
		lo--
		n.First = (*s)[lo].First
	}
	if hi < len(*s) && n.Last+1 == (*s)[hi].First {
		n.Last = (*s)[hi].Last
		hi++
	}
	*s = slices.Replace(*s, lo, hi, n)
}

// all reports whether the set is that of the seqs from 1 to last.
func (s spans) all(last gearsfs.Seq) bool {
	if last == 0 {
		return len(s) == 0
	}
	return len(s) == 1 && s[0] == span{1, last}
}
