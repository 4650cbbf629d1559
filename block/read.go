package block

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"

	"github.com/gearsfs/gearsfs"
	"golang.org/x/sys/unix"
)

// bounceBytes is how much is read around a range that does not begin and end
// with pages.
const bounceBytes = 32 << 10

var bounces = sync.Pool{New: func() any { return new([bounceBytes]byte) }}

// Read reads the n bytes from off on, off+n <= e.Length, into dst, which holds
// at least n; where it fails dst has anything. Only pages that these bytes are
// in are read and compared with their checksums. Errors: gearsfs.ErrInvalid;
// ErrAbsent, some of them are not here; gearsfs.ErrDamaged, they are others than
// were written, or the disk can't read them.
func (s *Store) Read(e gearsfs.Extent, off, n uint64, dst []byte) error {
	if err := e.Check(); err != nil {
		return err
	}
	if off > e.Length || n > e.Length-off || n > uint64(len(dst)) {
		return gearsfs.ErrInvalid.Because("%d bytes from %d on of an extent of %d, into %d", n, off, e.Length, len(dst))
	}
	if e.Inline() {
		copy(dst, e.Data[off:off+n])
		return nil
	}
	return s.reading(e, func(seg *segment) error {
		return s.read(seg, &e, e.Offset+off, dst[:n])
	})
}

// ReadStored returns all e.Size bytes that e's checksums are of, for a member
// that lacks them to Store. Its errors are those of Read.
func (s *Store) ReadStored(e gearsfs.Extent) ([]byte, error) {
	if err := e.Check(); err != nil {
		return nil, err
	}
	if e.Inline() {
		return nil, gearsfs.ErrInvalid.Because("an inline extent is in no segment")
	}
	data := make([]byte, e.Size)
	if err := s.reading(e, func(seg *segment) error { return s.read(seg, &e, 0, data) }); err != nil {
		return nil, err
	}
	return data, nil
}

// Has reports whether e's pages are all here. It does not read them where the
// file system tells what was written, so they may be damaged. false also where
// that can't be found out.
func (s *Store) Has(e gearsfs.Extent) bool {
	if e.Inline() {
		return e.Check() == nil
	}
	if !s.sparse {
		_, err := s.ReadStored(e)
		return err == nil
	}
	if e.Check() != nil {
		return false
	}
	err := s.reading(e, func(seg *segment) error {
		start, end, err := seg.file.Data(int64(e.At))
		if err == nil && (start > int64(e.At) || end < int64(e.At+e.Size)) {
			err = ErrAbsent
		}
		return err
	})
	return err == nil
}

// reading calls do with e's segment.
func (s *Store) reading(e gearsfs.Extent, do func(*segment) error) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.running.RUnlock()
	seg, err := s.table.get(idOf(e), openOnly)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s: %w", s.table.pathOf(idOf(e)), ErrAbsent)
	}
	if err != nil {
		return err
	}
	defer s.table.release(seg)
	return do(seg)
}

// read reads bytes of e's Size from the given one on. Whole pages go into dst
// directly; the others, at its ends, by way of a buffer.
func (s *Store) read(seg *segment, e *gearsfs.Extent, from uint64, dst []byte) error {
	for end := from + uint64(len(dst)); from < end; {
		page, whole := pageOf(from), end
		if end != e.Size {
			whole = pageOf(end)
		}
		if from == page && from < whole {
			n := whole - from
			if err := s.readPages(seg, e, from, dst[:n]); err != nil {
				return err
			}
			from, dst = whole, dst[n:]
			continue
		}
		stop := min(pageOf(end+pageBytes-1), e.Size)
		if stop-page > bounceBytes {
			stop = page + pageBytes // and the rest directly
		}
		n, err := s.bounce(seg, e, from, stop, dst)
		if err != nil {
			return err
		}
		from, dst = from+n, dst[n:]
	}
	return nil
}

func pageOf(off uint64) uint64 { return off &^ (pageBytes - 1) }

// bounce reads from in the midst of a page up to stop, the end of one, or as
// much of that as dst takes.
func (s *Store) bounce(seg *segment, e *gearsfs.Extent, from, stop uint64, dst []byte) (uint64, error) {
	buf := bounces.Get().(*[bounceBytes]byte)
	defer bounces.Put(buf)
	page := pageOf(from)
	if err := s.readPages(seg, e, page, buf[:stop-page]); err != nil {
		return 0, err
	}
	return uint64(copy(dst, buf[from-page:stop-page])), nil
}

// readPages fills dst with e's pages from the byte from on, and compares their
// checksums.
func (s *Store) readPages(seg *segment, e *gearsfs.Extent, from uint64, dst []byte) error {
	if err := fill(seg, e.At+from, dst); err != nil {
		return err
	}
	page, ok := firstBad(e.Sums[from/pageBytes*sumBytes:], dst)
	if ok {
		return nil
	}
	off := page * pageBytes
	return s.judge(seg, e.At+from+off, dst[off:min(off+pageBytes, uint64(len(dst)))])
}

// fill reads from the segment's byte at on; behind the file's end are zeros.
func fill(seg *segment, at uint64, dst []byte) error {
	n, err := seg.file.ReadAt(dst, int64(at))
	if errors.Is(err, io.EOF) {
		clear(dst[n:])
		return nil
	}
	if errors.Is(err, unix.EIO) {
		return gearsfs.ErrDamaged.Because("%s at byte %d: %v", seg.path, at+uint64(n), err)
	}
	return err
}

// judge returns what is wrong with the page at a byte of the segment: it is a
// hole, or it is damaged. Without knowledge of holes, zeros are one.
func (s *Store) judge(seg *segment, at uint64, page []byte) error {
	absent := false
	if s.sparse {
		start, _, err := seg.file.Data(int64(at))
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		absent = err != nil || start >= int64(at)+int64(len(page))
	} else {
		absent = isZero(page)
	}
	if absent {
		return fmt.Errorf("%s at byte %d: %w", seg.path, at, ErrAbsent)
	}
	return gearsfs.ErrDamaged.Because("%s at byte %d: the page does not have its checksum", seg.path, at)
}

func isZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
