package block

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/gearsfs/gearsfs"
)

// segmentID names a segment.
type segmentID struct {
	origin gearsfs.MemberID
	number uint64
}

func idOf(e gearsfs.Extent) segmentID { return segmentID{e.Origin, e.Segment} }

// hexName is a number as the names of files and directories have it.
func hexName(n uint64) string { return fmt.Sprintf("%016x", n) }

func parseHexName(name string) (uint64, bool) {
	n, err := strconv.ParseUint(name, 16, 64)
	return n, err == nil && n != 0 && hexName(n) == name
}

// A segment is an open file of the table. Who gets one from the table releases
// it again; its file is closed when nobody has it and it left the table.
type segment struct {
	id   segmentID
	path string
	refs atomic.Int64 // one of the table, one of each that uses it
	used atomic.Bool  // since it was last spared from being closed

	ready chan struct{} // closed when file and err are set
	file  File
	err   error

	// life is held shared over every write, and whole while it is found out
	// whether the file is empty and goes: so no write ends in a file without a
	// name. It comes before table.mu.
	life    sync.RWMutex
	removed bool // guarded by life

	dirty bool // guarded by Store.dirtyMu
}

// openHow says what table.get does about a missing file.
type openHow int

const (
	openOnly   openHow = iota // fs.ErrNotExist
	openOrMake                // it is made
	makeNew                   // it must be missing, and is made
)

// A table has the segments that are open.
type table struct {
	fs      FS
	dir     string
	openMax int
	fatal   func(error) error // takes a sync that failed, after which nothing can be trusted

	// making is held over the making of files and directories, so that whoever
	// finds one that was made finds one whose name survives a power cut.
	making sync.Mutex

	mu       sync.RWMutex // guards what follows; never held over I/O
	open     map[segmentID]*segment
	newest   map[gearsfs.MemberID]uint64 // the highest number of each origin that was ever seen here
	passed   []segmentID                 // were the newest of their origin, and nobody looked since whether they are empty
	closeErr error                       // the first error of closing a file
}

func (t *table) dirOf(origin gearsfs.MemberID) string {
	return filepath.Join(t.dir, hexName(uint64(origin)))
}

func (t *table) pathOf(id segmentID) string {
	return filepath.Join(t.dirOf(id.origin), hexName(id.number))
}

// get returns the segment, to be released. It opens the file where it is not
// open; others that ask meanwhile wait for it.
func (t *table) get(id segmentID, how openHow) (*segment, error) {
	for {
		seg, mine := t.enter(id)
		if mine {
			t.load(seg, how)
		}
		<-seg.ready
		if seg.err == nil && (mine || how != makeNew) {
			return seg, nil
		}
		err := seg.err
		t.release(seg)
		switch {
		case err == nil:
			return nil, fs.ErrExist
		case mine:
			return nil, err
		case how == openOnly && errors.Is(err, fs.ErrNotExist):
			return nil, err
		}
	}
}

// enter returns the segment of the table, or a new one that is the caller's to
// load.
func (t *table) enter(id segmentID) (seg *segment, mine bool) {
	t.mu.RLock()
	seg = t.open[id]
	if seg != nil {
		seg.refs.Add(1)
	}
	t.mu.RUnlock()
	if seg != nil {
		if !seg.used.Load() {
			seg.used.Store(true)
		}
		return seg, false
	}

	t.mu.Lock()
	defer t.mu.Unlock()
	if seg = t.open[id]; seg != nil {
		seg.refs.Add(1)
		return seg, false
	}
	seg = &segment{id: id, path: t.pathOf(id), ready: make(chan struct{})}
	seg.refs.Store(2)
	t.open[id] = seg
	return seg, true
}

// load opens or makes the file of a segment that enter made.
func (t *table) load(seg *segment, how openHow) {
	if how != makeNew {
		seg.file, seg.err = t.fs.Open(seg.path)
	}
	if how == makeNew || how == openOrMake && errors.Is(seg.err, fs.ErrNotExist) {
		seg.file, seg.err = t.make(seg)
	}
	if seg.err != nil {
		t.drop(seg)
	}
	close(seg.ready)
	t.shrink()
}

// make makes the segment's file. When it returns the file's name survives a
// power cut.
func (t *table) make(seg *segment) (File, error) {
	t.making.Lock()
	defer t.making.Unlock()
	dir := t.dirOf(seg.id.origin)
	switch err := t.fs.MakeDir(dir); {
	case err == nil:
		if err := t.fs.SyncDir(t.dir); err != nil {
			return nil, t.fatal(err)
		}
	case !errors.Is(err, fs.ErrExist):
		return nil, err
	}
	t.know(seg.id) // also where it fails: a number is never used again
	f, err := t.fs.Create(seg.path)
	if err != nil {
		return nil, err
	}
	if err := t.fs.SyncDir(dir); err != nil {
		return nil, t.fatal(errors.Join(err, f.Close()))
	}
	return f, nil
}

func (t *table) know(id segmentID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	before := t.newest[id.origin]
	if id.number <= before {
		return
	}
	t.newest[id.origin] = id.number
	if before != 0 {
		t.passed = append(t.passed, segmentID{id.origin, before})
	}
}

// passedBy returns the segments that are no longer the newest of their origin
// since it was asked last.
func (t *table) passedBy() []segmentID {
	t.mu.Lock()
	defer t.mu.Unlock()
	passed := t.passed
	t.passed = nil
	return passed
}

func (t *table) newestOf(origin gearsfs.MemberID) uint64 {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.newest[origin]
}

// drop takes the segment out of the table.
func (t *table) drop(seg *segment) {
	t.mu.Lock()
	mine := t.open[seg.id] == seg
	if mine {
		delete(t.open, seg.id)
	}
	t.mu.Unlock()
	if mine {
		t.release(seg)
	}
}

// shrink closes files that nobody uses where too many are open. A map is
// walked from somewhere else each time, so with the bits of use it is a clock.
func (t *table) shrink() {
	var out []*segment
	t.mu.Lock()
	for range 2 { // the first round may take only the bits
		for id, seg := range t.open {
			if len(t.open) <= t.openMax {
				break
			}
			if seg.refs.Load() == 1 && !seg.used.Swap(false) {
				delete(t.open, id)
				out = append(out, seg)
			}
		}
	}
	t.mu.Unlock()
	for _, seg := range out {
		t.release(seg)
	}
}

func (t *table) release(seg *segment) {
	if seg.refs.Add(-1) > 0 || seg.file == nil {
		return
	}
	if err := seg.file.Close(); err != nil {
		t.mu.Lock()
		defer t.mu.Unlock()
		if t.closeErr == nil {
			t.closeErr = err
		}
	}
}

// close closes all files; nobody uses any.
func (t *table) close() error {
	t.mu.Lock()
	open := t.open
	t.open = map[segmentID]*segment{}
	t.mu.Unlock()
	for _, seg := range open {
		t.release(seg)
	}
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.closeErr
}

// list returns the segments that are there, in no order. What else lies in the
// directories is left alone.
func (t *table) list() ([]segmentID, error) {
	origins, err := t.fs.List(t.dir)
	if err != nil {
		return nil, err
	}
	var ids []segmentID
	for _, name := range origins {
		origin, ok := parseHexName(name)
		if !ok {
			continue
		}
		numbers, err := t.fs.List(filepath.Join(t.dir, name))
		if err != nil {
			return nil, err
		}
		for _, name := range numbers {
			if number, ok := parseHexName(name); ok {
				ids = append(ids, segmentID{gearsfs.MemberID(origin), number})
			}
		}
	}
	return ids, nil
}

// syncAll has the segments survive a power cut as they are.
func (t *table) syncAll(ids []segmentID) error {
	if len(ids) > syncedMax {
		return t.fs.SyncAll(t.dir)
	}
	dirs := map[string]bool{t.dir: true}
	for _, id := range ids {
		f, err := t.fs.Open(t.pathOf(id))
		if err != nil {
			return err
		}
		if err := errors.Join(f.Sync(), f.Close()); err != nil {
			return err
		}
		dirs[t.dirOf(id.origin)] = true
	}
	for dir := range dirs {
		if err := t.fs.SyncDir(dir); err != nil {
			return err
		}
	}
	return nil
}
