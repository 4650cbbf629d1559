package blocktest

import (
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gearsfs/gearsfs/block"
	"golang.org/x/sys/unix"
)

const (
	pageBytes   = 4096
	sectorBytes = 512
)

type page [pageBytes]byte

// Memory is a file system in memory. It knows what of it would survive a power
// cut, see Crash, and how much room it has.
type Memory struct {
	now func() time.Time

	mu      sync.Mutex // guards all of it, the files too
	root    *node
	room    int // pages that may still be allocated
	solid   bool
	noPunch bool
}

// node is a file or a directory.
type node struct {
	names   map[string]*node // of a directory
	durable map[string]*node // names that survive

	pages   map[int64]*page // of a file; never changed in place
	old     map[int64]*page // what survives instead, of pages that changed since the last sync; nil is a hole
	size    int64
	oldSize int64
	changed time.Time
}

func newDir() *node { return &node{names: map[string]*node{}, durable: map[string]*node{}} }

// NewMemory returns an empty file system whose time is now's; nil is time.Now.
func NewMemory(now func() time.Time) *Memory {
	if now == nil {
		now = time.Now
	}
	return &Memory{now: now, root: newDir(), room: math.MaxInt / 2}
}

var _ block.FS = (*Memory)(nil)

// SetRoom says how many bytes may be allocated from now on.
func (m *Memory) SetRoom(bytes int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.room = bytes / pageBytes
}

// Simple has the file system be one that does not know which bytes of a file
// are holes, and makes none where punch is false.
func (m *Memory) Simple(punch bool) *Memory {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.solid, m.noPunch = true, !punch
	return m
}

// Crash returns what may be on the disk when the power is cut now: what was
// synced, and of what was not synced each page, name and length, and each
// sector of a page, or not, as rng says.
func (m *Memory) Crash(rng *rand.Rand) *Memory {
	m.mu.Lock()
	defer m.mu.Unlock()
	after := &Memory{now: m.now, room: math.MaxInt / 2, solid: m.solid, noPunch: m.noPunch}
	// Of what was not synced, all, nothing or some is there.
	percent := []int{0, 30, 50, 70, 100}[rng.IntN(5)]
	after.root = m.root.crashed(func() bool { return rng.IntN(100) < percent }, rng, map[*node]*node{})
	return after
}

// crashed returns what is left of n; done has what it made of others, since a
// file may have had two names.
func (n *node) crashed(keep func() bool, rng *rand.Rand, done map[*node]*node) *node {
	if c := done[n]; c != nil {
		return c
	}
	if n.names == nil {
		c := n.crashedFile(keep, rng)
		done[n] = c
		return c
	}
	c := newDir()
	done[n] = c
	all := maps.Clone(n.durable)
	maps.Copy(all, n.names)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		child := n.durable[name]
		if now := n.names[name]; now != child && keep() {
			child = now
		}
		if child != nil {
			c.names[name] = child.crashed(keep, rng, done)
			c.durable[name] = c.names[name]
		}
	}
	return c
}

func (n *node) crashedFile(keep func() bool, rng *rand.Rand) *node {
	c := &node{pages: maps.Clone(n.pages), old: map[int64]*page{}, size: n.oldSize, changed: n.changed}
	if keep() {
		c.size = n.size
	}
	for _, i := range slices.Sorted(maps.Keys(n.old)) {
		before, after := n.old[i], n.pages[i]
		left := before
		if keep() {
			left = after
		}
		if before != nil && after != nil || rng.IntN(4) == 0 { // sectors of both
			left = tear(before, after, keep)
		}
		if left == nil {
			delete(c.pages, i)
		} else {
			c.pages[i] = left
		}
	}
	maps.DeleteFunc(c.pages, func(i int64, _ *page) bool { return i*pageBytes >= c.size })
	if end := c.size % pageBytes; end != 0 && c.pages[c.size/pageBytes] != nil {
		last := *c.pages[c.size/pageBytes]
		clear(last[end:])
		c.pages[c.size/pageBytes] = &last
	}
	c.oldSize = c.size
	return c
}

func tear(before, after *page, keep func() bool) *page {
	torn := page{}
	if before != nil {
		torn = *before
	}
	if after != nil {
		for at := 0; at < pageBytes; at += sectorBytes {
			if keep() {
				copy(torn[at:at+sectorBytes], after[at:])
			}
		}
	}
	return &torn
}

// find returns the node of a path, and nil where there is none.
func (m *Memory) find(path string) *node {
	n := m.root
	for name := range strings.SplitSeq(filepath.Clean(path), "/") {
		if name != "" && name != "." && n != nil {
			n = n.names[name]
		}
	}
	return n
}

func fail(op, path string, err error) error { return &fs.PathError{Op: op, Path: path, Err: err} }

func (m *Memory) add(op, path string, n *node) error {
	dir := m.find(filepath.Dir(path))
	if dir == nil || dir.names == nil {
		return fail(op, path, unix.ENOENT)
	}
	if dir.names[filepath.Base(path)] != nil {
		return fail(op, path, unix.EEXIST)
	}
	if m.room <= 0 {
		return fail(op, path, unix.ENOSPC)
	}
	n.changed = m.now()
	dir.names[filepath.Base(path)] = n
	return nil
}

// MakeDir implements block.FS, as do the methods that follow.
func (m *Memory) MakeDir(dir string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.add("mkdir", dir, newDir())
}

func (m *Memory) Create(path string) (block.File, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := &node{pages: map[int64]*page{}, old: map[int64]*page{}}
	if err := m.add("create", path, n); err != nil {
		return nil, err
	}
	return &file{fs: m, node: n, path: path}, nil
}

func (m *Memory) Open(path string) (block.File, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.find(path)
	switch {
	case n == nil:
		return nil, fail("open", path, unix.ENOENT)
	case n.names != nil:
		return nil, fail("open", path, unix.EISDIR)
	}
	return &file{fs: m, node: n, path: path}, nil
}

func (m *Memory) Remove(path string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	n, dir := m.find(path), m.find(filepath.Dir(path))
	if n == nil {
		return fail("remove", path, unix.ENOENT)
	}
	delete(dir.names, filepath.Base(path))
	return nil
}

func (m *Memory) List(dir string) ([]string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.find(dir)
	switch {
	case n == nil:
		return nil, fail("list", dir, unix.ENOENT)
	case n.names == nil:
		return nil, fail("list", dir, unix.ENOTDIR)
	}
	return slices.Sorted(maps.Keys(n.names)), nil
}

func (m *Memory) Stat(path string) (block.FileInfo, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.find(path)
	if n == nil {
		return block.FileInfo{}, fail("stat", path, unix.ENOENT)
	}
	return block.FileInfo{Size: n.size, Allocated: int64(len(n.pages)) * pageBytes, Changed: n.changed}, nil
}

func (m *Memory) SyncDir(dir string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.find(dir)
	if n == nil {
		return fail("sync", dir, unix.ENOENT)
	}
	n.durable = maps.Clone(n.names)
	return nil
}

func (m *Memory) SyncAll(dir string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.find(dir)
	if n == nil {
		return fail("sync", dir, unix.ENOENT)
	}
	n.syncAll()
	return nil
}

func (n *node) syncAll() {
	if n.names == nil {
		n.sync()
		return
	}
	n.durable = maps.Clone(n.names)
	for _, child := range n.names {
		child.syncAll()
	}
}

func (n *node) sync() {
	clear(n.old)
	n.oldSize = n.size
}

// String lists the files.
func (m *Memory) String() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var b strings.Builder
	m.root.describe(&b, "")
	return b.String()
}

func (n *node) describe(b *strings.Builder, path string) {
	if n.names == nil {
		fmt.Fprintf(b, "%s: %d bytes, pages %v, not synced %v\n",
			path, n.size, slices.Sorted(maps.Keys(n.pages)), slices.Sorted(maps.Keys(n.old)))
		return
	}
	for _, name := range slices.Sorted(maps.Keys(n.names)) {
		n.names[name].describe(b, path+"/"+name)
	}
}

type file struct {
	fs     *Memory
	node   *node
	path   string
	closed bool // guarded by fs.mu
}

func (f *file) Close() error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if f.closed {
		return fail("close", f.path, fs.ErrClosed)
	}
	f.closed = true
	return nil
}

func (f *file) ReadAt(b []byte, off int64) (int, error) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	n := f.node
	if f.closed {
		return 0, fail("read", f.path, fs.ErrClosed)
	}
	got := int(max(min(int64(len(b)), n.size-off), 0))
	for done := 0; done < got; {
		at := (off + int64(done)) % pageBytes
		piece := b[done:min(got, done+int(pageBytes-at))]
		if p := n.pages[(off+int64(done))/pageBytes]; p != nil {
			copy(piece, p[at:])
		} else {
			clear(piece)
		}
		done += len(piece)
	}
	if got < len(b) {
		return got, io.EOF
	}
	return got, nil
}

func (f *file) WriteAt(b []byte, off int64) (int, error) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	n := f.node
	if f.closed {
		return 0, fail("write", f.path, fs.ErrClosed)
	}
	for done := 0; done < len(b); {
		at := (off + int64(done)) % pageBytes
		i := (off + int64(done)) / pageBytes
		p := page{}
		if n.pages[i] != nil {
			p = *n.pages[i]
		} else if f.fs.room <= 0 {
			return done, fail("write", f.path, unix.ENOSPC)
		} else {
			f.fs.room--
		}
		f.change(i)
		done += copy(p[at:], b[done:])
		n.pages[i] = &p
		n.size = max(n.size, off+int64(done))
	}
	return len(b), nil
}

// change keeps what survives of page i before it is changed.
func (f *file) change(i int64) {
	n := f.node
	if _, ok := n.old[i]; !ok {
		n.old[i] = n.pages[i]
	}
	n.changed = f.fs.now()
}

func (f *file) Sync() error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if f.closed {
		return fail("sync", f.path, fs.ErrClosed)
	}
	f.node.sync()
	return nil
}

func (f *file) Punch(off, n int64) error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	switch {
	case f.closed:
		return fail("punch", f.path, fs.ErrClosed)
	case f.fs.noPunch:
		return fail("punch", f.path, unix.EOPNOTSUPP)
	case off%pageBytes != 0 || n%pageBytes != 0:
		return fail("punch", f.path, unix.EINVAL)
	}
	for i := off / pageBytes; i < (off+n)/pageBytes; i++ {
		if f.node.pages[i] != nil {
			f.change(i)
			delete(f.node.pages, i)
			f.fs.room++
		}
	}
	f.node.changed = f.fs.now()
	return nil
}

func (f *file) Data(off int64) (start, end int64, err error) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	n := f.node
	if f.closed {
		return 0, 0, fail("seek", f.path, fs.ErrClosed)
	}
	data := func(at int64) bool { return f.fs.solid || n.pages[at/pageBytes] != nil }
	for start = off; start < n.size && !data(start); start = (start/pageBytes + 1) * pageBytes {
	}
	if start >= n.size {
		return 0, 0, io.EOF
	}
	for end = start; end < n.size && data(end); end = (end/pageBytes + 1) * pageBytes {
	}
	return start, min(end, n.size), nil
}
