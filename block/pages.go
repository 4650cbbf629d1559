package block

import (
	"sync"

	"github.com/gearsfs/gearsfs"
)

const segmentPages = gearsfs.SegmentBytesMax / pageBytes

// pageSet is a set of pages of one segment, 2 KiB.
type pageSet [segmentPages / 64]uint64

func (p *pageSet) has(page uint64) bool { return p[page/64]&(1<<(page%64)) != 0 }
func (p *pageSet) add(page uint64)      { p[page/64] |= 1 << (page % 64) }
func (p *pageSet) remove(page uint64)   { p[page/64] &^= 1 << (page % 64) }

// hasAll reports whether the first n pages are in the set.
func (p *pageSet) hasAll(n uint64) bool {
	for page := range min(n, segmentPages) {
		if !p.has(page) {
			return false
		}
	}
	return n <= segmentPages
}

// run returns the first run of pages from from on, in front of end, that are
// in the set, or that are not; it is empty where there is none.
func (p *pageSet) run(from, end uint64, in bool) (first, stop uint64) {
	for first = from; first < end && p.has(first) != in; first++ {
	}
	for stop = first; stop < end && p.has(stop) == in; stop++ {
	}
	return first, stop
}

// freedPages remembers what was freed where the file system does not know
// holes, so that a segment can go when all of it is free. It forgets with the
// process; Sweep finds such segments by what refers to them.
type freedPages struct {
	mu   sync.Mutex // guards sets
	sets map[segmentID]*pageSet
}

func newFreedPages() *freedPages { return &freedPages{sets: map[segmentID]*pageSet{}} }

func (f *freedPages) mark(id segmentID, at, n uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	set := f.sets[id]
	if set == nil {
		set = new(pageSet)
		f.sets[id] = set
	}
	for page := at / pageBytes; page < (at+n)/pageBytes; page++ {
		set.add(page)
	}
}

func (f *freedPages) clear(id segmentID, at, n uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	set := f.sets[id]
	if set == nil {
		return
	}
	for page := at / pageBytes; page < (at+n)/pageBytes; page++ {
		set.remove(page)
	}
}

// has reports whether the pages from from on, in front of stop, were freed.
func (f *freedPages) has(id segmentID, from, stop uint64) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	set := f.sets[id]
	if set == nil {
		return false
	}
	_, end := set.run(from, stop, true)
	return set.has(from) && end == stop
}

// all reports whether all pages of the segment's first size bytes were freed.
func (f *freedPages) all(id segmentID, size int64) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	set := f.sets[id]
	return size == 0 || set != nil && set.hasAll((uint64(size)+pageBytes-1)/pageBytes)
}

func (f *freedPages) forget(id segmentID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.sets, id)
}
