package file

import (
	"cmp"
	"slices"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/persist"
	"github.com/gearsfs/gearsfs/wire"
)

// Who owns the pages of the block store
//
// A row (of a record, or one that an answer keeps) refers to each page that any of
// its extents touches, once. A page that one row refers to has nothing else in
// the tables: it is that row's own. Those that several refer to are in the table
// of shared ranges, with how many that are:
//
//	copy, range copy, look:  addRefs    (own) -> 2 -> 3 ...
//	row changed or deleted:  dropRefs   ... 3 -> 2 -> (own) -> freed
//
// Ranges of that table are cut where rows let go of parts of them, so that each
// page is counted. What is freed is told to the Observer, once.
//
// A row's changes are compared page by page: an overwrite of a part of a page
// leaves two extents that touch it, and the row still refers to it once.

// pageRun is a run of pages of one segment, counted in pages.
type pageRun struct {
	origin     gearsfs.MemberID
	segment    uint64
	first, end uint64
}

func (a pageRun) compare(b pageRun) int {
	return cmp.Or(cmp.Compare(a.origin, b.origin), cmp.Compare(a.segment, b.segment), cmp.Compare(a.first, b.first))
}

func (a *pageRun) sameSegment(b *pageRun) bool { return a.origin == b.origin && a.segment == b.segment }

// appendRuns appends the pages of extents, those of each in a run.
func appendRuns(dst []pageRun, extents []gearsfs.Extent) []pageRun {
	for i := range extents {
		if e := &extents[i]; !e.Inline() {
			first := e.At / gearsfs.PageBytes
			dst = append(dst, pageRun{e.Origin, e.Segment, first, first + e.Pages()})
		}
	}
	return dst
}

// tidyRuns sorts runs and joins those that overlap or touch, in place.
func tidyRuns(runs []pageRun) []pageRun {
	if len(runs) < 2 {
		return runs
	}
	slices.SortFunc(runs, pageRun.compare)
	n := 0
	for _, r := range runs[1:] {
		if last := &runs[n]; last.sameSegment(&r) && r.first <= last.end {
			last.end = max(last.end, r.end)
			continue
		}
		n++
		runs[n] = r
	}
	return runs[:n+1]
}

// subtractRuns calls yield with what of runs is not in others, in order. Both are
// tidy.
func subtractRuns(runs, others []pageRun, yield func(pageRun) error) error {
	for _, r := range runs {
		for len(others) > 0 && (others[0].compare(r) < 0 && (!others[0].sameSegment(&r) || others[0].end <= r.first)) {
			others = others[1:]
		}
		for i := 0; i < len(others) && r.first < r.end; i++ {
			o := &others[i]
			if !o.sameSegment(&r) || o.first >= r.end {
				break
			}
			if o.first > r.first {
				part := r
				part.end = o.first
				if err := yield(part); err != nil {
					return err
				}
			}
			r.first = max(r.first, o.end)
		}
		if r.first < r.end {
			if err := yield(r); err != nil {
				return err
			}
		}
	}
	return nil
}

// disjoint reports whether no page is in two of the runs, which it sorts.
func disjoint(runs []pageRun) bool {
	slices.SortFunc(runs, pageRun.compare)
	for i := 1; i < len(runs); i++ {
		if runs[i-1].sameSegment(&runs[i]) && runs[i].first < runs[i-1].end {
			return false
		}
	}
	return true
}

// changeRefs accounts for a row that was some extents and is others, of which it
// lets go of what it does not have any more. acquire says that what is new to it
// is another row's, too.
func (m *Machine) changeRefs(was, is []gearsfs.Extent, acquire bool) error {
	a := tidyRuns(appendRuns(m.scratch.runs[:0], was))
	m.scratch.runs = a
	b := tidyRuns(appendRuns(m.scratch.runs2[:0], is))
	m.scratch.runs2 = b
	if acquire {
		if err := subtractRuns(b, a, m.addRefs); err != nil {
			return err
		}
	}
	return subtractRuns(a, b, m.dropRefs)
}

// releaseExtents lets go of all that a row refers to.
func (m *Machine) releaseExtents(extents []gearsfs.Extent) error {
	return m.changeRefs(extents, nil, false)
}

// shareExtents accounts for another row that refers to the same as one there is.
func (m *Machine) shareExtents(extents []gearsfs.Extent) error {
	return m.changeRefs(nil, extents, true)
}

// sharedRange is a row of the table of shared ranges.
type sharedRange struct {
	pageRun
	refs uint64
}

// sharedOver returns the ranges that overlap a run, in order.
func (m *Machine) sharedOver(run pageRun) ([]sharedRange, error) {
	if m.volume.Shared == 0 {
		return nil, nil
	}
	lo := persist.SharedKey(run.origin, run.segment, 0)
	hi := persist.SharedKey(run.origin, run.segment, run.end*gearsfs.PageBytes)
	it, err := m.store.Scan(lo, hi)
	if err != nil {
		return nil, err
	}
	var found []sharedRange
	from := persist.SharedKey(run.origin, run.segment, run.first*gearsfs.PageBytes+1)
	for ok := it.SeekLT(from) || it.First(); ok; ok = it.Next() {
		r, err := parseShared(it.Key(), it.Value())
		if err != nil {
			it.Close() // the first error is the one to tell
			return nil, err
		}
		if r.end > run.first {
			found = append(found, r)
		}
	}
	return found, it.Close()
}

func parseShared(key, value []byte) (r sharedRange, err error) {
	var at uint64
	if r.origin, r.segment, at, err = persist.ParseSharedKey(key); err != nil {
		return r, err
	}
	var row wire.SharedRow
	if err := row.UnmarshalVT(value); err != nil {
		return r, damaged("shared", err)
	}
	r.first, r.end, r.refs = at/gearsfs.PageBytes, (at+row.Size)/gearsfs.PageBytes, row.Refs
	if at%gearsfs.PageBytes != 0 || row.Size == 0 || row.Size%gearsfs.PageBytes != 0 || row.Refs < 2 || r.end < r.first {
		return r, gearsfs.ErrDamaged.Because("shared row: %d references to %d bytes at %d", row.Refs, row.Size, at)
	}
	return r, nil
}

// addRefs counts one more row that refers to pages which one does already.
func (m *Machine) addRefs(run pageRun) error {
	return m.countRefs(run, 1, func(own pageRun) { m.setShared(own, 0, 2) })
}

// dropRefs counts one row fewer that refers to pages: what none does is free.
func (m *Machine) dropRefs(run pageRun) error { return m.countRefs(run, -1, m.free) }

// countRefs changes the counts of the shared pages of a run, and calls own with
// those that are one row's.
func (m *Machine) countRefs(run pageRun, by int, own func(pageRun)) error {
	shared, err := m.sharedOver(run)
	if err != nil {
		return err
	}
	piece := func(first, end uint64) pageRun { return pageRun{run.origin, run.segment, first, end} }
	at := run.first
	for _, s := range shared {
		if s.first > at {
			own(piece(at, s.first))
		}
		first, end := max(s.first, run.first), min(s.end, run.end)
		was := s.refs
		if s.first < first {
			m.setShared(piece(s.first, first), s.refs, s.refs)
			was = 0
		}
		m.setShared(piece(first, end), was, uint64(int(s.refs)+by))
		if end < s.end {
			m.setShared(piece(end, s.end), 0, s.refs)
		}
		at = end
	}
	if at < run.end {
		own(piece(at, run.end))
	}
	return nil
}

// setShared makes a row of the table of shared ranges, or changes that which
// begins there: was is 0 where there is none. What one row refers to has none.
func (m *Machine) setShared(run pageRun, was, refs uint64) {
	m.scratch.key = persist.AppendSharedKey(m.scratch.key[:0], run.origin, run.segment, run.first*gearsfs.PageBytes)
	switch {
	case refs >= 2:
		m.set(m.scratch.key, &wire.SharedRow{Size: (run.end - run.first) * gearsfs.PageBytes, Refs: refs})
	case was != 0:
		m.store.Delete(m.scratch.key)
	}
	if was == 0 && refs >= 2 {
		m.volume.Shared++
	}
	if was != 0 && refs < 2 {
		m.volume.Shared--
	}
}

// free notes that no row refers to pages any more.
func (m *Machine) free(run pageRun) {
	at, size := run.first*gearsfs.PageBytes, (run.end-run.first)*gearsfs.PageBytes
	if n := len(m.released); n > 0 {
		last := &m.released[n-1]
		if last.Origin == run.origin && last.Segment == run.segment && last.At+last.Size == at {
			last.Size += size
			last.Length += size
			return
		}
	}
	m.released = append(m.released, gearsfs.Extent{Origin: run.origin, Segment: run.segment, At: at, Size: size, Length: size})
}
