package block

import (
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"io/fs"
	"time"

	"github.com/gearsfs/gearsfs"
)

const (
	// SettledAge is how long nothing may have been written to a segment before
	// Sweep looks for pages in it that nothing refers to.
	SettledAge = 20 * time.Minute

	checkBytes    = 256 << 10 // read and compared at once
	progressBytes = 64 << 20  // are checked between two calls of CheckOptions.Progress
	faultsDefault = 1000
)

// Live calls yield with every extent that something refers to, in any order,
// inline ones or not, as of one moment after it was called. It returns yield's
// first error at once, or its own.
type Live func(yield func(gearsfs.Extent) error) error

// Progress is how far a check or a sweep has come.
type Progress struct {
	Extents  uint64 // that were looked at
	Bytes    uint64 // read and compared, or freed
	Segments int    // of which all was looked at
}

// CheckOptions say how Check works.
type CheckOptions struct {
	Rate      int64         // bytes read in a second; 0 is no bound
	Age       time.Duration // how long nothing was written to segments that are settled; 0 is SettledAge
	FaultsMax int           // how many faults of a kind are listed; 0 is 1000
	// StillLive says whether something refers to an extent now. Check asks
	// before it reports one: it may have been freed since Live named it. nil
	// is always.
	StillLive func(gearsfs.Extent) bool
	// Found is told of each fault that is reported, with the extent that has
	// it, on Check's goroutine; may be nil. The Report has it in any case.
	Found    func(e gearsfs.Extent, absent bool, f Fault)
	Progress func(Progress) // called now and then, on Check's goroutine; may be nil
}

// Report is what Check found.
type Report struct {
	Extents  uint64 // in segments; one that is named more than once counts each time
	Bytes    uint64 // read and compared; a page that several refer to counts once
	Segments int
	Damaged  Faults // bytes that are others than were written, or can't be read
	Absent   Faults // bytes that are not here

	// Allocated is the disk space of all segments. Unreferenced is what of it
	// nothing refers to, in segments that Sweep would look at; Recent is that
	// in the others, uploads for instance. Where the file system does not know
	// holes, these are unreferenced too.
	Allocated, Unreferenced, Recent int64
}

// Healthy reports whether all that is referred to is there as it was written.
func (r Report) Healthy() bool { return r.Damaged.Bytes == 0 && r.Absent.Bytes == 0 }

// Faults are the faults of one kind.
type Faults struct {
	Count uint64
	Bytes uint64
	First []Fault // CheckOptions.FaultsMax of them
}

// Fault is a range of pages of a segment that is not as it should be.
type Fault struct {
	Origin  gearsfs.MemberID
	Segment uint64
	File    string
	At      uint64 // in the segment
	Bytes   uint64
	Reason  string
}

// Check reads all extents that live names and compares them with their
// checksums, and counts pages that none of them covers. What it finds is in the
// report; an error means that it could not go on: ctx's, live's,
// gearsfs.ErrClosed. The store is used meanwhile. It takes 2 KiB of memory for
// each segment.
func (s *Store) Check(ctx context.Context, live Live, opts CheckOptions) (Report, error) {
	if opts.FaultsMax == 0 {
		opts.FaultsMax = faultsDefault
	}
	if opts.Age == 0 {
		opts.Age = SettledAge
	}
	c := &checker{
		store: s, ctx: ctx, opts: opts, pace: newPace(opts.Rate),
		seen: map[segmentID]*pageSet{}, buf: make([]byte, checkBytes),
	}
	if err := live(c.extent); err != nil {
		return c.report, err
	}
	err := c.unreferenced()
	c.progress(0)
	return c.report, err
}

type checker struct {
	store  *Store
	ctx    context.Context
	opts   CheckOptions
	pace   *pace
	seen   map[segmentID]*pageSet
	buf    []byte
	report Report
	told   uint64 // Bytes at the last call of Progress
	faults []found
}

// found is a fault of the extent that is being checked.
type found struct {
	absent bool
	fault  Fault
}

// extent checks one extent, but for pages that were checked before.
func (c *checker) extent(e gearsfs.Extent) error {
	if err := c.ctx.Err(); err != nil {
		return err
	}
	if e.Origin == 0 {
		return nil
	}
	c.report.Extents++
	if err := e.Check(); err != nil {
		c.add(found{fault: Fault{Bytes: e.Length, Reason: err.Error()}}, e)
		return c.judged(e)
	}
	first, end := e.At/pageBytes, e.At/pageBytes+e.Pages()
	set := setOf(c.seen, idOf(e))
	for first < end {
		from, stop := set.run(first, min(end, first+checkBytes/pageBytes), false)
		for page := from; page < stop; page++ {
			set.add(page)
		}
		if from < stop {
			if err := c.pages(e, from*pageBytes-e.At, min(stop*pageBytes-e.At, e.Size)); err != nil {
				return err
			}
		}
		first = stop
	}
	c.progress(progressBytes)
	return c.judged(e)
}

func setOf(sets map[segmentID]*pageSet, id segmentID) *pageSet {
	set := sets[id]
	if set == nil {
		set = new(pageSet)
		sets[id] = set
	}
	return set
}

// pages checks the pages of e from the byte from of its Size up to end.
func (c *checker) pages(e gearsfs.Extent, from, end uint64) error {
	if err := c.pace.wait(c.ctx, int64(end-from)); err != nil {
		return err
	}
	buf := c.buf[:end-from]
	err := c.store.reading(e, func(seg *segment) error {
		err := fill(seg, e.At+from, buf)
		if errors.Is(err, gearsfs.ErrDamaged) { // find out which of them the disk can't read
			for at := from; at < end; at += pageBytes {
				stop := min(at+pageBytes, end)
				if err := c.page(seg, e, at, fill(seg, e.At+at, c.buf[:stop-at]), c.buf[:stop-at]); err != nil {
					return err
				}
			}
			return nil
		}
		if err != nil {
			return err
		}
		for at := from; at < end; at += pageBytes {
			if err := c.page(seg, e, at, nil, buf[at-from:min(at+pageBytes, end)-from]); err != nil {
				return err
			}
		}
		return nil
	})
	if errors.Is(err, ErrAbsent) { // the whole segment
		c.add(found{true, Fault{At: e.At + from, Bytes: end - from, Reason: err.Error()}}, e)
		return nil
	}
	c.report.Bytes += end - from
	return err
}

// page judges a page of e that was read, with err where it could not be.
func (c *checker) page(seg *segment, e gearsfs.Extent, at uint64, err error, page []byte) error {
	if err == nil {
		sum := binary.LittleEndian.Uint32(e.Sums[at/pageBytes*sumBytes:])
		if sum == crc32.Checksum(page, castagnoli) {
			return nil
		}
		err = c.store.judge(seg, e.At+at, page)
	}
	absent := errors.Is(err, ErrAbsent)
	if !absent && !errors.Is(err, gearsfs.ErrDamaged) {
		return err
	}
	c.add(found{absent, Fault{At: e.At + at, Bytes: uint64(len(page)), Reason: err.Error()}}, e)
	return nil
}

// add takes a fault of e, as one with the fault that ends where it begins.
func (c *checker) add(f found, e gearsfs.Extent) {
	f.fault.Origin, f.fault.Segment, f.fault.File = e.Origin, e.Segment, c.store.table.pathOf(idOf(e))
	if n := len(c.faults); n > 0 {
		last := &c.faults[n-1]
		if last.absent == f.absent && last.fault.At+last.fault.Bytes == f.fault.At {
			last.fault.Bytes += f.fault.Bytes
			return
		}
	}
	c.faults = append(c.faults, f)
}

// judged reports the faults of e, unless nothing refers to it any more.
func (c *checker) judged(e gearsfs.Extent) error {
	if len(c.faults) == 0 {
		return nil
	}
	faults := c.faults
	c.faults = c.faults[:0]
	if c.opts.StillLive != nil && !c.opts.StillLive(e) {
		return nil
	}
	for _, f := range faults {
		to := &c.report.Damaged
		if f.absent {
			to = &c.report.Absent
		}
		to.Count++
		to.Bytes += f.fault.Bytes
		if len(to.First) < c.opts.FaultsMax {
			to.First = append(to.First, f.fault)
		}
		if c.opts.Found != nil {
			c.opts.Found(e, f.absent, f.fault)
		}
	}
	return nil
}

func (c *checker) progress(every uint64) {
	if c.opts.Progress == nil || c.report.Bytes-c.told < every {
		return
	}
	c.told = c.report.Bytes
	c.opts.Progress(Progress{Extents: c.report.Extents, Bytes: c.report.Bytes, Segments: c.report.Segments})
}

// unreferenced counts the pages that no extent covered.
func (c *checker) unreferenced() error {
	files, err := c.store.survey()
	if err != nil {
		return err
	}
	for _, f := range files {
		if err := c.ctx.Err(); err != nil {
			return err
		}
		c.report.Segments++
		c.report.Allocated += f.info.Allocated
		n, err := c.store.uncovered(f.id, f.info.Size, c.seen[f.id])
		if err != nil {
			return err
		}
		if c.store.settled(f.id, f.info, c.opts.Age) {
			c.report.Unreferenced += n
		} else {
			c.report.Recent += n
		}
	}
	return nil
}

// uncovered is how many bytes of the segment's data are in none of the pages.
func (s *Store) uncovered(id segmentID, size int64, covered *pageSet) (n int64, err error) {
	err = s.reading(gearsfs.Extent{Origin: id.origin, Segment: id.number}, func(seg *segment) error {
		spans, err := s.uncoveredSpans(seg, size, covered)
		for _, p := range spans {
			n += int64(p.end - p.at)
		}
		return err
	})
	if errors.Is(err, ErrAbsent) { // it went meanwhile
		return 0, nil
	}
	return n, err
}

// uncoveredSpans returns the runs of pages with data that are not in covered.
func (s *Store) uncoveredSpans(seg *segment, size int64, covered *pageSet) ([]span, error) {
	if covered == nil {
		covered = new(pageSet)
	}
	var spans []span
	for off := int64(0); off < gearsfs.SegmentBytesMax; {
		start, end, err := off, size, error(nil)
		if s.sparse {
			start, end, err = seg.file.Data(off)
		}
		if errors.Is(err, io.EOF) || err == nil && start >= end {
			break
		}
		if err != nil {
			return nil, err
		}
		last := min((uint64(end)+pageBytes-1)/pageBytes, segmentPages)
		for page := uint64(start) / pageBytes; page < last; {
			from, stop := covered.run(page, last, false)
			if from < stop && !s.isFreed(seg.id, from, stop) {
				spans = append(spans, span{seg.id, from * pageBytes, stop * pageBytes})
			}
			page = stop
		}
		off = int64(last) * pageBytes
	}
	return spans, nil
}

// isFreed reports whether pages were freed that the file system can't give back.
func (s *Store) isFreed(id segmentID, from, stop uint64) bool {
	return s.freed != nil && s.freed.has(id, from, stop)
}

// segmentFile is a segment as it is on the disk.
type segmentFile struct {
	id   segmentID
	info FileInfo
}

// survey returns all segments.
func (s *Store) survey() ([]segmentFile, error) {
	if err := s.enter(); err != nil {
		return nil, err
	}
	defer s.running.RUnlock()
	ids, err := s.table.list()
	if err != nil {
		return nil, err
	}
	files := make([]segmentFile, 0, len(ids))
	for _, id := range ids {
		info, err := s.table.fs.Stat(s.table.pathOf(id))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		files = append(files, segmentFile{id, info})
	}
	return files, nil
}

// settled reports whether nothing was written to the segment for age. This
// process's own clock counts too, since the time of day may jump.
func (s *Store) settled(id segmentID, info FileInfo, age time.Duration) bool {
	s.tail.Lock()
	tail := s.tail.seg != nil && s.tail.seg.id == id
	s.tail.Unlock()
	if tail {
		return false
	}
	now := s.now()
	s.dirtyMu.Lock()
	defer s.dirtyMu.Unlock()
	for _, seg := range s.dirty {
		if seg.id == id {
			return false
		}
	}
	if at, ok := s.written[id]; ok && now.Sub(at) < age {
		return false
	}
	return now.Sub(info.Changed) >= age
}
