package mount

import (
	"sync"

	"github.com/gearsfs/gearsfs"
)

// inodes knows, of the files of which the kernel may hold pages, what those
// pages show. Its invariants:
//
//  1. While a file is open through the kernel's cache, no page of it is older
//     than version; newer ones may be among them.
//  2. All handles through the cache count offsets from the same base, and the
//     file's size is told as counted from there while one is open. A handle
//     past the cache that is mapped is one of them from its first page on.
//  3. A file that nobody has open is only remembered so that its next OPEN may
//     keep the pages; forgetting it costs reading them again.
//  4. A file is known to have no capabilities as of a moment at which the volume
//     said so. Whatever may have given it some since ends that: a change of
//     attributes by others of which the watch tells, one by this mount, and an OPEN
//     that finds another change time than this mount has seen last, because what it
//     shows may be ahead of what the watch has told.
type inodes struct {
	mu     sync.Mutex
	table  map[gearsfs.Ino]*inode
	doubts uint64 // changes that may have given some file capabilities
}

type inode struct {
	opens   int         // handles
	cached  int         // those of them that read and write through the kernel's cache, or are mapped
	base    gearsfs.Pos // of the cached handles
	version uint64      // of the data stream that the pages show
	ahead   []uint64    // versions that this mount's own writes made, above version+1
	noCaps  bool        // the file is known to have no file capabilities
	doubted bool        // it was; the volume is to be asked again
	changed int64       // its change time when this mount saw it last
}

const (
	inodesIdleMax = 1 << 16 // files remembered that are not open
	aheadMax      = 128     // writes of one file that may be on their way at once
)

// open counts a handle on the file that attr shows. It reports whether the
// handle must bypass the kernel's cache and, where not, whether the kernel may
// keep the pages that it has.
func (t *inodes) open(attr *gearsfs.Attr, appending bool) (direct, keep bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.table[attr.Ino]
	if e == nil {
		t.evictLocked()
		e = &inode{base: attr.Head}
		t.table[attr.Ino] = e
	} else {
		keep = e.version == attr.Version && e.base == attr.Head
		if e.changed != attr.Ctime.UnixNano() {
			e.doubtLocked()
		}
	}
	e.changed = attr.Ctime.UnixNano()
	e.opens++
	if appending || attr.Taken || e.cached > 0 && e.base != attr.Head {
		return true, false
	}
	e.cached++
	e.base = attr.Head
	e.seenLocked(attr.Version)
	return false, keep
}

// restore counts a handle that a process before has opened. Which version the
// kernel's pages show is not known.
func (t *inodes) restore(ino gearsfs.Ino, base gearsfs.Pos, direct bool) {
	e := t.table[ino]
	if e == nil {
		e = new(inode)
		t.table[ino] = e
	}
	e.opens++
	if !direct {
		e.cached++
		e.base = base
	}
}

// close is the end of a handle.
func (t *inodes) close(ino gearsfs.Ino, direct bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.table[ino]
	e.opens--
	if !direct {
		e.cached--
	}
}

// mapped counts a handle past the cache among those through it, because the
// kernel maps pages of it. It reports whether it can be: the pages of a file
// are the same for all.
func (t *inodes) mapped(ino gearsfs.Ino, base gearsfs.Pos) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.table[ino]
	if e.cached > 0 && e.base != base {
		return false
	}
	e.cached++
	e.base = base
	return true
}

// observe takes note of attributes that are about to be told to the kernel and
// counts the size as the open handles do. It reports whether the kernel's
// pages are older than what the attributes describe.
func (t *inodes) observe(attr *gearsfs.Attr) (stale bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.table[attr.Ino]
	if e == nil || e.cached == 0 {
		return false
	}
	attr.Size += uint64(attr.Head - e.base)
	stale = attr.Version > e.version
	e.seenLocked(attr.Version)
	return stale
}

// wrote takes note of a change of the data stream that this mount's kernel made
// and so knows of; attr is what the change was answered with.
func (t *inodes) wrote(attr *gearsfs.Attr) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.table[attr.Ino]
	if e == nil {
		return
	}
	e.seenChangeLocked(attr)
	if attr.Version <= e.version {
		return
	}
	// A version that does not follow is another's change in between, or one
	// of this mount's own writes was answered before an older one.
	if len(e.ahead) < aheadMax {
		e.ahead = append(e.ahead, attr.Version)
	}
	for advanced := true; advanced; {
		advanced = false
		for i, v := range e.ahead {
			if v == e.version+1 {
				e.version = v
				e.ahead[i] = e.ahead[len(e.ahead)-1]
				e.ahead = e.ahead[:len(e.ahead)-1]
				advanced = true
				break
			}
		}
	}
}

// seenLocked sets the version that the kernel's pages are at least of.
func (e *inode) seenLocked(version uint64) {
	if version <= e.version {
		return
	}
	e.version = version
	e.ahead = e.ahead[:0]
}

// set takes note of attributes that this mount has set.
func (t *inodes) set(attr *gearsfs.Attr) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if e := t.table[attr.Ino]; e != nil {
		e.seenChangeLocked(attr)
	}
}

// seenChangeLocked notes a change time. Answers may come in another order than the
// changes were made in.
func (e *inode) seenChangeLocked(attr *gearsfs.Attr) {
	e.changed = max(e.changed, attr.Ctime.UnixNano())
}

// mayHaveCaps reports whether the file may have file capabilities, which a
// write must remove.
func (t *inodes) mayHaveCaps(ino gearsfs.Ino) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.table[ino]
	return e == nil || !e.noCaps
}

// asOf is called before the volume is asked whether a file has capabilities.
func (t *inodes) asOf() (doubts uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.doubts
}

// hasNoCaps says that the volume said so, when it was asked after asOf.
func (t *inodes) hasNoCaps(ino gearsfs.Ino, asOf uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if e := t.table[ino]; e != nil && t.doubts == asOf {
		e.noCaps, e.doubted = true, false
	}
}

func (e *inode) doubtLocked() { e.noCaps, e.doubted = false, e.doubted || e.noCaps }

// inDoubt reports whether the file was known to have no capabilities before
// something came that may have given it some.
func (t *inodes) inDoubt(ino gearsfs.Ino) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.table[ino]
	return e != nil && e.doubted
}

// doubt is for a change that may have given a file capabilities.
func (t *inodes) doubt(ino gearsfs.Ino) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.doubts++
	if e := t.table[ino]; e != nil {
		e.doubtLocked()
	}
}

// doubtAll is for when nobody has told of such changes.
func (t *inodes) doubtAll() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.doubts++
	for _, e := range t.table {
		e.doubtLocked()
	}
}

// forget drops what is known of a file that the kernel has dropped.
func (t *inodes) forget(ino gearsfs.Ino) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if e := t.table[ino]; e != nil && e.opens == 0 {
		delete(t.table, ino)
	}
}

// all returns the files of which the kernel may hold pages.
func (t *inodes) all() []gearsfs.Ino {
	t.mu.Lock()
	defer t.mu.Unlock()
	list := make([]gearsfs.Ino, 0, len(t.table))
	for ino := range t.table {
		list = append(list, ino)
	}
	return list
}

// evictLocked makes room for one more file where too many are remembered.
func (t *inodes) evictLocked() {
	if len(t.table) < inodesIdleMax {
		return
	}
	for ino, e := range t.table { // in no order: any idle one will do
		if e.opens == 0 {
			delete(t.table, ino)
			return
		}
	}
}

// baseOf returns where offsets of the file count from while it is open through
// the kernel's cache, nil for where its data stream begins now.
func (t *inodes) baseOf(ino gearsfs.Ino) *gearsfs.Pos {
	t.mu.Lock()
	defer t.mu.Unlock()
	if e := t.table[ino]; e != nil && e.cached > 0 {
		base := e.base
		return &base
	}
	return nil
}

// shift counts the size as the open handles do.
func (t *inodes) shift(attr *gearsfs.Attr) {
	if base := t.baseOf(attr.Ino); base != nil {
		attr.Size += uint64(attr.Head - *base)
	}
}
