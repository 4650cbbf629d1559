package block

import (
	"cmp"
	"errors"
	"io"
	"io/fs"
	"slices"

	"github.com/gearsfs/gearsfs"
)

// freeStep bounds what is punched before the rate is looked at again.
const freeStep = 4 << 20

// span is a range of whole pages of a segment.
type span struct {
	id      segmentID
	at, end uint64
}

// Free gives back the pages of extents, of which it looks only at Origin,
// Segment, At and Size; the inline ones have none. They read as ErrAbsent from
// then on. A segment of which nothing is left goes, but for the newest of each
// origin, so that numbers are not used again. What a power cut undoes of this,
// Sweep does again; and so does calling Free again with the same extents, which
// may be gone already. An error does not keep the other extents from being
// freed: the first one is returned; gearsfs.ErrNoSpace where a hole needs room
// that the disk has not.
func (s *Store) Free(extents []gearsfs.Extent) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.running.RUnlock()
	return s.free(extents)
}

func (s *Store) free(extents []gearsfs.Extent) error {
	spans, err := spansOf(extents)
	if err != nil {
		return err
	}
	var first error
	for len(spans) > 0 {
		n := 1
		for n < len(spans) && spans[n].id == spans[0].id {
			n++
		}
		if err := s.freeIn(spans[0].id, spans[:n]); err != nil && first == nil {
			first = noSpace(err)
		}
		spans = spans[n:]
	}
	for _, id := range s.table.passedBy() {
		if err := s.freeIn(id, nil); err != nil && first == nil {
			first = noSpace(err)
		}
	}
	return first
}

// spansOf returns the extents' pages in order, neighbours as one.
func spansOf(extents []gearsfs.Extent) ([]span, error) {
	spans := make([]span, 0, len(extents))
	for _, e := range extents {
		if e.Inline() {
			continue
		}
		if e.At%pageBytes != 0 || e.At > gearsfs.SegmentBytesMax || e.Size > gearsfs.SegmentBytesMax-e.At {
			return nil, gearsfs.ErrInvalid.Because("%d bytes at byte %d of a segment", e.Size, e.At)
		}
		spans = append(spans, span{idOf(e), e.At, e.At + e.Pages()*pageBytes})
	}
	slices.SortFunc(spans, func(a, b span) int {
		return cmp.Or(cmp.Compare(a.id.origin, b.id.origin), cmp.Compare(a.id.number, b.id.number), cmp.Compare(a.at, b.at))
	})
	joined := spans[:0]
	for _, p := range spans {
		if n := len(joined); n > 0 && joined[n-1].id == p.id && p.at <= joined[n-1].end {
			joined[n-1].end = max(joined[n-1].end, p.end)
			continue
		}
		joined = append(joined, p)
	}
	return joined, nil
}

// freeIn frees spans of one segment, and the segment where it is empty then.
func (s *Store) freeIn(id segmentID, spans []span) error {
	seg, err := s.table.get(id, openOnly)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer s.table.release(seg)
	for _, p := range spans {
		for p.at < p.end {
			n := min(p.end-p.at, freeStep)
			if err := s.pace.wait(s.closing, int64(n)); err != nil {
				return gearsfs.ErrClosed
			}
			if err := s.punch(seg, p.at, n); err != nil {
				return err
			}
			p.at += n
		}
	}
	if s.table.newestOf(id.origin) == id.number {
		return nil
	}
	return s.removeEmpty(seg)
}

// punch gives back whole pages of the segment. A file system that can't keeps
// them until all of the segment is free.
func (s *Store) punch(seg *segment, at, n uint64) error {
	if s.freed != nil {
		s.freed.mark(seg.id, at, n)
	}
	err := seg.file.Punch(int64(at), int64(n))
	if s.freed != nil && unsupported(err) {
		return nil
	}
	return err
}

// removeEmpty removes the segment's file where nothing is left in it.
func (s *Store) removeEmpty(seg *segment) error {
	if empty, err := s.isEmpty(seg); err != nil || !empty {
		return err
	}
	seg.life.Lock()
	defer seg.life.Unlock()
	if empty, err := s.isEmpty(seg); err != nil || !empty || seg.removed {
		return err
	}
	return s.removeLocked(seg)
}

// removeLocked removes the segment's file; life is held whole.
func (s *Store) removeLocked(seg *segment) error {
	err := s.table.fs.Remove(seg.path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	seg.removed = true
	s.table.drop(seg)
	if s.freed != nil {
		s.freed.forget(seg.id)
	}
	s.dirtyMu.Lock()
	defer s.dirtyMu.Unlock()
	delete(s.written, seg.id)
	return nil
}

// isEmpty reports whether the segment has no bytes that were not freed.
func (s *Store) isEmpty(seg *segment) (bool, error) {
	if s.freed != nil {
		info, err := s.table.fs.Stat(seg.path)
		if errors.Is(err, fs.ErrNotExist) {
			return false, nil
		}
		return err == nil && s.freed.all(seg.id, info.Size), err
	}
	_, _, err := seg.file.Data(0)
	if errors.Is(err, io.EOF) {
		return true, nil
	}
	return false, err
}

// Usage is the disk space of all segments.
type Usage struct {
	Segments int
	Bytes    int64 // allocated
}

// Usage looks at every segment's file, without opening it.
func (s *Store) Usage() (Usage, error) {
	if err := s.enter(); err != nil {
		return Usage{}, err
	}
	defer s.running.RUnlock()
	ids, err := s.table.list()
	if err != nil {
		return Usage{}, err
	}
	var u Usage
	for _, id := range ids {
		info, err := s.table.fs.Stat(s.table.pathOf(id))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return Usage{}, err
		}
		u.Segments++
		u.Bytes += info.Allocated
	}
	return u, nil
}
