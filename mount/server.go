package mount

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm"
)

// server answers the kernel's requests for one mount, or one of them (see
// call). go-fuse calls each method on a goroutine of its own, so all of them are
// safe for concurrent use and may wait.
type server struct {
	*shared
	call *call // whose handler this is; nil outside of requests

	// ctx is the call, or the life of the mount. Requests that do not wait run
	// under it, not under their cancel channel, because a process that gets a
	// signal must not see a change half done.
	ctx context.Context
}

// shared is what all requests of a mount have in common.
type shared struct {
	fuse.RawFileSystem // ENOSYS for what is not defined here
	m                  dgm.Manager
	o                  Options
	log                *slog.Logger
	keeper             *keeper // nil where nothing takes the mount over
	calls              calls

	life   context.Context // of the mount
	cancel context.CancelFunc

	writeMax   int  // bytes that one WRITE request carries at most
	xattrFlags bool // SETXATTR says more than setxattr(2)
	inodes     inodes
	control    nodes
	dirs       names
	removed    removed
	files      dentries
	retries    retries
	handles    handles
	believe    believe
	told       told
	locks      locks
	held       held
	flights    sync.WaitGroup // goroutines of held
	runways    chan *flight   // to those that are idle
	idle       atomic.Int32
}

var _ fuse.RawFileSystem = (*server)(nil)

func newServer(ctx context.Context, m dgm.Manager, o Options, log *slog.Logger) *server {
	s := &shared{
		RawFileSystem: fuse.NewDefaultRawFileSystem(),
		m:             m, o: o, log: log,
		writeMax: writeMax,
		inodes:   inodes{table: map[gearsfs.Ino]*inode{}},
		control:  newNodes(),
		dirs:     newNames(), files: newDentries(),
		removed: removed{table: map[gearsfs.Ino]gearsfs.Attr{}},
		retries: retries{table: map[uint32]retry{}},
		handles: handles{table: map[uint64]handle{}},
		believe: believe{names: newQueue(), pages: newQueue()},
		runways: make(chan *flight),
		told:    newTold(o.Several),
		locks:   newLocks(),
	}
	if o.Succession != nil {
		s.keeper = o.Succession.keeper
		s.keeper.log = log
	}
	s.held.init(&o)
	s.life, s.cancel = context.WithCancel(context.WithoutCancel(ctx))
	return &server{shared: s, ctx: s.life}
}

func (s *server) String() string { return subtype }

// OnUnmount gives back what open handles hold: after a forced unmount the
// kernel sends no RELEASE.
func (s *server) OnUnmount() {
	if err := s.settleAll(s.life); err != nil {
		s.log.Warn("the mount ends before what was written to files is sent", "err", err)
	}
	for _, h := range s.handles.drain() {
		h.release(s)
	}
}

// waiting returns a context for a request that waits: it ends when the request
// is interrupted or the mount does. stop must be called before the handler
// returns, because the cancel channel then belongs to another request.
func (s *server) waiting(cancel <-chan struct{}) (ctx context.Context, stop func()) {
	ctx, end := context.WithCancel(s.ctx)
	var watcher sync.WaitGroup
	watcher.Go(func() {
		select {
		case <-cancel:
			end()
		case <-ctx.Done():
		}
	})
	return ctx, func() { end(); watcher.Wait() }
}

// blockBytes is what programs are told to read and write at once.
const blockBytes = 64 << 10

func fillAttr(out *fuse.Attr, a *gearsfs.Attr) {
	*out = fuse.Attr{
		Ino: uint64(a.Ino), Size: a.Size, Blocks: a.Blocks,
		Atime: uint64(a.Atime.Unix()), Atimensec: uint32(a.Atime.Nanosecond()),
		Mtime: uint64(a.Mtime.Unix()), Mtimensec: uint32(a.Mtime.Nanosecond()),
		Ctime: uint64(a.Ctime.Unix()), Ctimensec: uint32(a.Ctime.Nanosecond()),
		Mode: a.Mode, Nlink: a.Nlink, Rdev: a.Rdev, Blksize: blockBytes,
		Owner: fuse.Owner{Uid: a.UID, Gid: a.GID},
	}
}

// tell fills attributes into an answer of LOOKUP, GETATTR or READDIRPLUS.
// Those may drop the kernel's pages; an answer to anything else must not.
func (s *server) tell(out *fuse.Attr, a gearsfs.Attr) {
	s.told.note(&a)
	if s.inodes.observe(&a) {
		s.believe.dropPages(a.Ino)
	}
	fillAttr(out, &a)
}

// entry fills in the answer of a request that looked up or made a name.
func (s *server) entry(out *fuse.EntryOut, a gearsfs.Attr, dir gearsfs.Ino, name string, at moment) {
	s.learn(&a, dir, name)
	out.NodeId = uint64(a.Ino)
	s.tell(&out.Attr, a)
	out.SetEntryTimeout(s.entryValid(at))
	out.SetAttrTimeout(s.attrValid(at))
}

func (s *server) attrValid(at moment) time.Duration {
	return limited(s.believe.valid(at), s.o.AttrTimeout)
}

func (s *server) entryValid(at moment) time.Duration {
	return limited(s.believe.valid(at), s.o.EntryTimeout)
}

func limited(d, limit time.Duration) time.Duration {
	switch {
	case limit > 0:
		return min(d, limit)
	case limit < 0:
		return 0 // the least other that there is would be a tick of the kernel's, some ms
	}
	return d
}

func (s *server) Forget(node, lookups uint64) {
	if isControl(node) {
		s.control.forget(node, lookups)
		return
	}
	s.inodes.forget(gearsfs.Ino(node))
	s.told.forget(gearsfs.Ino(node))
	s.removed.forget(gearsfs.Ino(node))
}

func (s *server) StatFs(_ <-chan struct{}, in *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	ino := gearsfs.Ino(in.NodeId)
	if isControl(in.NodeId) {
		ino = gearsfs.RootIno
	}
	u, err := s.m.StatFS(s.ctx, ino)
	if err != nil {
		return gone(err)
	}
	const block = 4096
	*out = fuse.StatfsOut{
		Bsize: block, Frsize: block, NameLen: gearsfs.NameBytesMax,
		Blocks: u.BytesTotal / block, Bfree: u.BytesFree / block, Bavail: u.BytesAvail / block,
		Files: u.Inodes + u.InodesFree, Ffree: u.InodesFree,
	}
	return fuse.OK
}

// handle is something open: what the Fh of a request names.
type handle interface {
	// read returns bytes that stay as they are until the reply is written. They
	// may be in buf, which has room for them and is the request's until then.
	read(s *server, cancel <-chan struct{}, in *fuse.ReadIn, buf []byte) ([]byte, fuse.Status)
	write(s *server, cancel <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status)
	// flush is called when a descriptor is closed, by any process that has it.
	flush(s *server, in *fuse.FlushIn) fuse.Status
	// release is called once, when the last descriptor is closed.
	release(s *server)
}

// handles numbers what is open.
type handles struct {
	mu    sync.RWMutex
	last  uint64
	table map[uint64]handle
}

func (t *handles) add(h handle) uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.last++
	t.table[t.last] = h
	return t.last
}

func (t *handles) get(fh uint64) handle {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.table[fh]
}

func (t *handles) remove(fh uint64) handle {
	t.mu.Lock()
	defer t.mu.Unlock()
	h := t.table[fh]
	delete(t.table, fh)
	return h
}

func (t *handles) each(visit func(handle)) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	for _, h := range t.table {
		visit(h)
	}
}

func (t *handles) drain() []handle {
	t.mu.Lock()
	defer t.mu.Unlock()
	list := make([]handle, 0, len(t.table))
	for fh, h := range t.table {
		list = append(list, h)
		delete(t.table, fh)
	}
	return list
}

// isFile reports whether attr shows a regular file.
func isFile(a *gearsfs.Attr) bool { return a.Mode&unix.S_IFMT == unix.S_IFREG }
