package mount

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/gearsfs/gearsfs"
)

// The tree below a directory's `.gears`. Its inodes exist here only; each
// mirrors a place of the volume:
//
//	.gears                       kindGears
//	├── status, waits, nodes     kindStatus, kindWaits, kindNodes
//	└── streams                  kindTree of the directory
//	    ├── DIR                  kindTree
//	    ├── LINK                 kindLink
//	    └── FILE                 kindStreams, also for a file that is missing
//	        └── KEY              kindKey, also for a key that is missing
//	            ├── put, take    not listed
//	            └── peek, all, info
type kind uint8

const (
	kindGears kind = iota + 1
	kindStatus
	kindWaits
	kindNodes
	kindTree
	kindLink
	kindStreams
	kindKey
	kindPut
	kindTake
	kindPeek
	kindAll
	kindInfo
)

// place is what an inode of the control tree stands for.
type place struct {
	kind kind
	ino  gearsfs.Ino // the directory, link or file; 0 for a file that is missing
	dir  gearsfs.Ino // of a missing file: where it would be
	name string      // of a missing file
	key  gearsfs.Key
}

// controlBit marks the node ids of the control tree; inode numbers lack it.
const controlBit = 1 << 63

func isControl(node uint64) bool { return node&controlBit != 0 }

// nodes numbers the inodes of the control tree that the kernel knows. The
// kernel may keep none of their names, so what nobody uses is forgotten.
type nodes struct {
	mu    sync.Mutex
	last  uint64
	byID  map[uint64]*node
	known map[place]*node
}

type node struct {
	place
	id      uint64
	lookups uint64 // answers that told the kernel the id, less those forgotten
}

func newNodes() nodes {
	return nodes{byID: map[uint64]*node{}, known: map[place]*node{}}
}

// look returns a place's node id and counts that the kernel is told.
func (t *nodes) look(p place) uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.known[p]
	if n == nil {
		t.last++
		n = &node{place: p, id: controlBit | t.last}
		t.byID[n.id], t.known[p] = n, n
	}
	n.lookups++
	return n.id
}

// restore knows again what a process before has told the kernel. It is not known
// how often, so it stays.
func (t *nodes) restore(id uint64, p place) {
	n := &node{place: p, id: id, lookups: 1 << 62}
	t.byID[id], t.known[p] = n, n
}

func (t *nodes) get(id uint64) (place, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := t.byID[id]; n != nil {
		return n.place, true
	}
	return place{}, false
}

func (t *nodes) forget(id, lookups uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.byID[id]
	if n == nil {
		return
	}
	if n.lookups -= min(lookups, n.lookups); n.lookups == 0 {
		delete(t.byID, id)
		delete(t.known, n.place)
	}
}

var gearsNames = map[string]kind{"nodes": kindNodes, "status": kindStatus, "streams": kindTree, "waits": kindWaits}

var keyNames = map[string]kind{"put": kindPut, "take": kindTake, "peek": kindPeek, "all": kindAll, "info": kindInfo}

// listedNames are those of gearsNames and keyNames that a listing shows.
var listedNames = map[kind][]string{
	kindGears: {"nodes", "status", "streams", "waits"},
	kindKey:   {"all", "info", "peek"},
}

// child returns the place that a name in another leads to.
func (s *server) child(p place, name string) (place, error) {
	var names map[string]kind
	switch p.kind {
	case kindGears:
		names = gearsNames
	case kindKey:
		names = keyNames
	case kindTree:
		return s.treeChild(p.ino, name)
	case kindStreams:
		p.kind, p.key = kindKey, gearsfs.Key(name)
		return p, p.key.Check()
	}
	k, ok := names[name]
	if !ok {
		return place{}, gearsfs.ErrNotFound
	}
	p.kind = k
	return p, nil
}

func (s *server) treeChild(dir gearsfs.Ino, name string) (place, error) {
	if name == reserved {
		return place{}, gearsfs.ErrNotFound
	}
	attr, err := s.m.Lookup(s.ctx, dir, name)
	if errors.Is(err, gearsfs.ErrNotFound) {
		return place{kind: kindStreams, dir: dir, name: name}, gearsfs.CheckName(name)
	}
	if err != nil {
		return place{}, err
	}
	s.learn(&attr, dir, name)
	k := treeKind(&attr)
	if k == 0 {
		return place{}, gearsfs.ErrNotFound
	}
	return place{kind: k, ino: attr.Ino}, nil
}

// treeKind is how an inode of the volume shows below streams, 0 for not at all.
func treeKind(attr *gearsfs.Attr) kind {
	switch attr.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return kindTree
	case unix.S_IFREG:
		return kindStreams
	case unix.S_IFLNK:
		return kindLink
	}
	return 0
}

func (s *server) lookupControl(in *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	p := place{kind: kindGears, ino: gearsfs.Ino(in.NodeId)}
	if isControl(in.NodeId) {
		parent, ok := s.control.get(in.NodeId)
		if !ok {
			return fuse.Status(syscall.ESTALE)
		}
		var err error
		if p, err = s.child(parent, name); err != nil {
			return status(err)
		}
	}
	attr, err := s.placeAttr(p)
	if err != nil {
		return status(err)
	}
	out.NodeId = s.control.look(p)
	attr.Ino = gearsfs.Ino(out.NodeId)
	fillAttr(&out.Attr, &attr)
	return fuse.OK
}

// placeAttr describes a place: it has the owner, times and permissions of what
// it mirrors, where read is peek, write is put, and both is take. A file that
// is missing has those of its directory.
func (s *server) placeAttr(p place) (gearsfs.Attr, error) {
	attr, err := s.mirrored(p)
	if err != nil {
		return attr, err
	}
	read, write := attr.Mode&0o444, attr.Mode&0o222
	dir, mode := false, uint32(0)
	switch p.kind {
	case kindGears, kindTree:
		dir, mode = true, attr.Mode&0o555
	case kindStreams, kindKey:
		either := read | write<<1
		dir, mode = true, either|either>>2
	case kindLink:
		return gearsfs.Attr{Mode: unix.S_IFLNK | 0o777, Nlink: 1, UID: attr.UID, GID: attr.GID, Size: attr.Size,
			Atime: attr.Atime, Mtime: attr.Mtime, Ctime: attr.Ctime}, nil
	case kindPut:
		mode = write
	case kindTake:
		mode = read & (write << 1)
	case kindPeek, kindAll, kindInfo:
		mode = read
	default:
		mode = 0o444
	}
	out := gearsfs.Attr{Mode: unix.S_IFREG | mode, Nlink: 1, UID: attr.UID, GID: attr.GID,
		Atime: attr.Atime, Mtime: attr.Mtime, Ctime: attr.Ctime}
	if dir {
		out.Mode, out.Nlink = unix.S_IFDIR|mode, 2
	}
	return out, nil
}

// mirrored returns the attributes of what a place mirrors.
func (s *server) mirrored(p place) (gearsfs.Attr, error) {
	if p.ino != 0 {
		return s.m.GetAttr(s.ctx, p.ino)
	}
	attr, err := s.m.Lookup(s.ctx, p.dir, p.name)
	if errors.Is(err, gearsfs.ErrNotFound) {
		return s.m.GetAttr(s.ctx, p.dir)
	}
	return attr, err
}

func (s *server) controlAttr(id uint64, out *fuse.Attr) fuse.Status {
	p, ok := s.control.get(id)
	if !ok {
		return fuse.Status(syscall.ESTALE)
	}
	attr, err := s.placeAttr(p)
	if err != nil {
		return gone(err)
	}
	attr.Ino = gearsfs.Ino(id)
	fillAttr(out, &attr)
	return fuse.OK
}

// setControlAttr allows only what opening with O_TRUNC does.
func (s *server) setControlAttr(in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	const changes = fuse.FATTR_MODE | fuse.FATTR_UID | fuse.FATTR_GID | fuse.FATTR_ATIME | fuse.FATTR_MTIME
	if size, ok := in.GetSize(); in.Valid&changes != 0 || ok && size != 0 {
		return fuse.EPERM
	}
	return s.controlAttr(in.NodeId, &out.Attr)
}

func (s *server) openControlDir(in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	p, ok := s.control.get(in.NodeId)
	if !ok {
		return fuse.Status(syscall.ESTALE)
	}
	out.Fh = s.handles.add(&directory{ino: gearsfs.Ino(in.NodeId), parent: gearsfs.Ino(in.NodeId), list: s.placeLister(p)})
	return fuse.OK
}

// placeLister lists a directory of the control tree.
func (s *server) placeLister(p place) lister {
	switch p.kind {
	case kindTree:
		return s.treeLister(p.ino)
	case kindStreams:
		return s.keyLister(p)
	}
	return fixedLister(listedNames[p.kind], p.kind)
}

// treeLister lists what of a directory shows below streams.
func (s *server) treeLister(dir gearsfs.Ino) lister {
	return func(ctx context.Context, after string, max int) ([]gearsfs.Entry, error) {
		var shown []gearsfs.Entry
		for len(shown) < max {
			page, err := s.m.ReadDir(ctx, dir, after, max-len(shown))
			if err != nil {
				return nil, err
			}
			if len(page) == 0 {
				break
			}
			after = page[len(page)-1].Name
			for _, e := range page {
				k := treeKind(&e.Attr)
				if k == 0 {
					continue
				}
				mode := uint32(unix.S_IFDIR)
				if k == kindLink {
					mode = unix.S_IFLNK
				}
				shown = append(shown, gearsfs.Entry{Name: e.Name, Attr: gearsfs.Attr{Mode: mode}})
			}
		}
		return shown, nil
	}
}

// keyLister lists a file's keys.
func (s *server) keyLister(p place) lister {
	return func(ctx context.Context, after string, max int) ([]gearsfs.Entry, error) {
		f, err := s.fileAt(p)
		if err != nil || f.Ino == 0 {
			return nil, err
		}
		streams, err := s.m.ListStreams(ctx, f, gearsfs.Key(after), max)
		entries := make([]gearsfs.Entry, len(streams))
		for i := range streams {
			entries[i] = gearsfs.Entry{Name: string(streams[i].Key), Attr: gearsfs.Attr{Mode: unix.S_IFDIR}}
		}
		return entries, err
	}
}

func fixedLister(names []string, of kind) lister {
	return func(_ context.Context, after string, max int) ([]gearsfs.Entry, error) {
		var entries []gearsfs.Entry
		for _, name := range names {
			if strings.Compare(name, after) <= 0 || len(entries) == max {
				continue
			}
			mode := uint32(unix.S_IFREG)
			if of == kindGears && gearsNames[name] == kindTree {
				mode = unix.S_IFDIR
			}
			entries = append(entries, gearsfs.Entry{Name: name, Attr: gearsfs.Attr{Mode: mode}})
		}
		return entries, nil
	}
}

// openControl opens a file of the control tree. All of them are read and
// written without the kernel's cache; those that wait are streams besides,
// because else a waiting read would hold up the descriptor's writes and seeks.
func (s *server) openControl(in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	p, ok := s.control.get(in.NodeId)
	if !ok {
		return fuse.Status(syscall.ESTALE)
	}
	access := uint32(unix.O_RDONLY)
	if p.kind == kindPut {
		access = unix.O_WRONLY
	}
	if in.Flags&unix.O_ACCMODE != access {
		return fuse.EACCES
	}
	out.OpenFlags = fuse.FOPEN_DIRECT_IO
	var h handle
	switch p.kind {
	case kindPut:
		// A sealed stream stays so more often than not: say it early.
		info, err := s.streamAt(p)
		if err != nil {
			return gone(err)
		}
		if info.Sealed {
			return status(gearsfs.ErrSealed)
		}
		h = newPutter(p, in, s.writeMax)
	case kindTake:
		h = newTaker(p, true)
	case kindPeek:
		h = newTaker(p, false)
	case kindAll:
		h = newReplay(p)
	default:
		h = &text{at: p, render: s.renderer(p)}
	}
	if slices.Contains([]kind{kindPut, kindTake, kindPeek, kindAll}, p.kind) {
		out.OpenFlags |= fuse.FOPEN_STREAM
	}
	out.Fh = s.handles.add(h)
	return fuse.OK
}

// fileAt returns the file of a place, by its path where it is missing.
func (s *server) fileAt(p place) (gearsfs.File, error) {
	if p.ino != 0 {
		return gearsfs.ByIno(p.ino), nil
	}
	attr, err := s.m.Lookup(s.ctx, p.dir, p.name)
	switch {
	case err == nil && !isFile(&attr):
		return gearsfs.File{}, gearsfs.ErrStale
	case err == nil:
		return gearsfs.ByIno(attr.Ino), nil
	case !errors.Is(err, gearsfs.ErrNotFound):
		return gearsfs.File{}, err
	}
	dir, err := s.pathOf(p.dir)
	return gearsfs.At(join(dir, p.name)), err
}

// streamAt describes a place's stream; one of a missing file is empty.
func (s *server) streamAt(p place) (gearsfs.StreamInfo, error) {
	f, err := s.fileAt(p)
	if err != nil {
		return gearsfs.StreamInfo{}, err
	}
	if f.Ino == 0 {
		return gearsfs.StreamInfo{Key: p.key}, nil
	}
	return s.m.Stream(s.ctx, f, p.key)
}

// touched tells the kernel of what was put or taken behind its back.
func (s *server) touched(ino gearsfs.Ino, key gearsfs.Key) {
	if key == gearsfs.DataKey {
		s.believe.changedHere(gearsfs.Change{Ino: ino, Data: true})
	}
}
