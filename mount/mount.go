package mount

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm"
)

// writeMax is how much one READ or WRITE request carries at most, and so the
// largest write that appends one record. (With 128 KiB, dd of 192 MiB with fsync
// and a cold read of it were a tenth faster, medians of three; 4 KiB writes the
// same.)
const writeMax = 1 << 20

// backgroundMax is how many read-ahead and write-back requests may be on their
// way at once; what a process waits for itself is not counted.
const backgroundMax = 64

// Mount is a volume that is mounted.
type Mount struct {
	dir    string
	device string // as in the mount table
	done   chan struct{}

	mu      sync.Mutex // held by Unmount
	server  *server
	stopped bool
}

// New mounts the volume of m on the directory dir and returns once it serves
// there. m's session should be that of a caller whose permissions are checked
// already: the kernel checks them. ctx ends the mounting, not the mount. m must
// not be closed before the mount is done.
//
// It fails, and leaves dir as it was, where dir is missing, is no directory,
// is not empty or is mounted on already; a dead mount is detached first.
//
// With a Succession that has a connection it goes on with the mount that is
// there instead, and dir does not matter; then nothing that a program has asked
// of the mount is lost.
func New(ctx context.Context, m dgm.Manager, dir string, o Options) (*Mount, error) {
	abs, err := "", error(nil)
	if o.Succession.takesOver() {
		abs = o.Succession.legacy.birth.dir
	} else if abs, err = prepare(dir, o.NonEmpty); err != nil {
		return nil, err
	}
	if o.Succession.takesOver() {
		o.Volume = o.Succession.legacy.birth.volume // nobody waits for the node here
	} else if err := askFirst(ctx, m, dir, &o); err != nil {
		return nil, err
	}
	log := slog.Default().With("mount", abs)
	warnOfTimeout(log)
	mt := &Mount{dir: abs, done: make(chan struct{}), server: newServer(ctx, m, o, log)}
	if err := mt.start(o); err != nil {
		return nil, err
	}
	return mt, nil
}

// askFirst makes sure that nobody finds a mount whose node can't be asked.
func askFirst(ctx context.Context, m dgm.Manager, dir string, o *Options) error {
	root, err := m.GetAttr(ctx, gearsfs.RootIno)
	if err != nil {
		return fmt.Errorf("mount on %s: read the volume's root: %w", dir, err)
	}
	if root.Mode&unix.S_IFMT != unix.S_IFDIR {
		return fmt.Errorf("mount on %s: the volume's root is no directory", dir)
	}
	if o.Volume == "" {
		st, err := m.Status(ctx)
		if err != nil {
			return fmt.Errorf("mount on %s: read the node's status: %w", dir, err)
		}
		o.Volume = st.Volume
	}
	return nil
}

// start mounts, or takes over, and serves.
func (mt *Mount) start(o Options) error {
	s := mt.server
	b := birth{dir: mt.dir, writeMax: writeMax, names: randomName(), volume: o.Volume}
	var conn *os.File
	var err error
	if o.Succession.takesOver() {
		b = o.Succession.legacy.birth
		conn, err = duplicate(o.Succession.conn)
	} else {
		conn, err = attach(mt.dir, o, writeMax)
	}
	if err != nil {
		return err
	}
	s.believe.conn, s.believe.send = conn, o.Notify
	s.writeMax = b.writeMax
	fuseServer, flags, err := connect(entrance{s}, conn, &b, s.fuseOptions())
	if err != nil {
		conn.Close()
		err = fmt.Errorf("mount on %s: %w", mt.dir, err)
		if !o.Succession.takesOver() {
			err = errors.Join(err, detach(mt.dir))
		}
		return err
	}
	s.xattrFlags = flags&fuse.CAP_SETXATTR_EXT != 0
	kernel := newReaders(int(conn.Fd()), fuseServer, b.writeMax, s.asksHere, s.log)
	if o.Succession.takesOver() {
		return mt.resume(kernel, o.Succession.legacy)
	}
	if on, err := mountedOn(mt.dir); err == nil && on != nil {
		b.device = on.device
		if err := readAhead(on.device); err != nil {
			s.log.Debug("the kernel reads ahead as by default", "err", err)
		}
	}
	mt.device = b.device
	if o.Succession != nil {
		s.keeper.names = b.names
		o.Succession.legacy.birth = b
		s.keeper.add(b.entry())
	}
	if o.Attached != nil {
		err = o.Attached(conn)
	}
	go mt.serve(kernel)
	if err == nil {
		err = probe(mt.dir)
	}
	if err != nil {
		ctx, cancel := context.WithTimeout(context.Background(), unmountGrace)
		defer cancel()
		return errors.Join(fmt.Errorf("mount on %s: it does not answer: %w", mt.dir, err), mt.Unmount(ctx))
	}
	return nil
}

// resume goes on with what the process before has left.
func (mt *Mount) resume(kernel *readers, l *legacy) error {
	mt.device = l.birth.device
	mt.server.restore(l)
	err := mt.server.believe.notifyHere(noticeResend, nil)
	go mt.serve(kernel)
	if errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOTCONN) {
		return nil // it was unmounted meanwhile, which serve finds out
	}
	if err != nil {
		return fmt.Errorf("take over the mount on %s: %w", mt.dir, err)
	}
	mt.server.changedAll()
	return nil
}

func duplicate(f *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("the connection of the mount: %w", err)
	}
	return os.NewFile(uintptr(fd), "/dev/fuse"), nil
}

// serve owns the mount's goroutines; it ends when the kernel has let go of the
// connection.
func (mt *Mount) serve(kernel *readers) {
	s := mt.server
	s.believe.epochs = s.believe.notifyEpoch()
	var workers sync.WaitGroup
	workers.Go(func() { s.believe.names.run(s.life, s.notifyName, s.changedAll) })
	workers.Go(func() { s.believe.pages.run(s.life, s.notifyInode, s.changedAll) })
	workers.Go(func() { s.watch(s.life) })
	workers.Go(func() { s.calls.watch(s.life) })
	workers.Go(func() { s.sendHeld(s.life) })
	kernel.serve()
	s.OnUnmount()
	s.cancel()
	workers.Wait()
	s.believe.conn.Close() // nothing is written that could be lost
	close(mt.done)
}

// asksHere says that handlers ask a node in this process. That may wait for other
// nodes, but mostly for less than a reader is given; over a connection it takes as
// long as it takes.
func (s *server) asksHere() bool { return s.o.Several != nil }

func (s *server) fuseOptions() *fuse.MountOptions {
	level := slog.LevelDebug
	if s.o.Debug {
		level = slog.LevelInfo
	}
	return &fuse.MountOptions{
		MaxWrite:      s.writeMax,
		MaxBackground: backgroundMax,
		// Pages go when a version says so, not when a time does: a file that
		// only this mount writes keeps its pages.
		ExplicitDataCacheControl: true,
		EnableSymlinkCaching:     true,
		EnableLocks:              true,
		EnableAcl:                true,
		ExtraCapabilities: fuse.CAP_HANDLE_KILLPRIV_V2 | fuse.CAP_READDIRPLUS_AUTO | fuse.CAP_DONT_MASK | fuse.CAP_HAS_RESEND | fuse.CAP_SETXATTR_EXT |
			fuse.CAP_DIRECT_IO_ALLOW_MMAP, // appending handles are past the cache, and mapped all the same
		Debug:  s.o.Debug,
		Logger: slog.NewLogLogger(s.log.Handler(), level),
		PanicHandler: func(reason any) fuse.Status {
			s.log.Error("a request's handler panicked", "reason", reason, "stack", string(debug.Stack()))
			return fuse.EIO
		},
	}
}

// probe opens a file of the new mount and polls it. That shows that it serves,
// and makes the kernel learn at once that this file system has no poll: a Go
// program polls each file that it opens, which in the process that serves the
// mount could leave nobody to answer.
func probe(dir string) error {
	fd, err := unix.Open(filepath.Join(dir, reserved, "status"), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	_, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
	return err
}

// warnOfTimeout tells where the kernel would abort a mount whose reader waits.
func warnOfTimeout(log *slog.Logger) {
	const file = "/proc/sys/fs/fuse/max_request_timeout"
	text, err := os.ReadFile(file)
	if err != nil {
		return // a kernel that has no such limit
	}
	if seconds := strings.TrimSpace(string(text)); seconds != "0" {
		log.Warn("the kernel aborts FUSE mounts whose requests wait: a waiting take will end this mount; write 0 to the file",
			"file", file, "seconds", seconds)
	}
}

// Dir is the mount point, absolute and without symbolic links.
func (mt *Mount) Dir() string { return mt.dir }

// Done is closed when the mount is gone, by Unmount or by someone else.
func (mt *Mount) Done() <-chan struct{} { return mt.done }

// Wait returns when the mount is gone.
func (mt *Mount) Wait() { <-mt.done }

// unmountGrace is how long an unmounted file system may still be in use before
// its connection is cut.
const unmountGrace = 2 * time.Second

// Unmount takes the mount out of the tree and returns when the last request is
// answered. Where it is in use, what waits is interrupted and the files that
// are open answer ENOTCONN from then on. It is idempotent; an error, ErrInUse
// and ctx's too, means that requests may still come.
func (mt *Mount) Unmount(ctx context.Context) error {
	mt.mu.Lock()
	defer mt.mu.Unlock()
	select {
	case <-mt.done:
		return nil
	default:
	}
	if !mt.stopped {
		if err := mt.leave(); err != nil {
			return fmt.Errorf("unmount %s: %w", mt.dir, err)
		}
		mt.stopped = true
	}
	grace := time.NewTimer(unmountGrace)
	defer grace.Stop()
	select {
	case <-mt.done:
		return nil
	case <-ctx.Done():
	case <-grace.C:
	}
	if !mt.abort() {
		return fmt.Errorf("unmount %s: %w", mt.dir, ErrInUse)
	}
	select {
	case <-mt.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("unmount %s: still in use: %w", mt.dir, ctx.Err())
	}
}

// ErrInUse says that a mount is out of the tree while programs still have its
// files open, and that only the end of the process will cut them off.
var ErrInUse = errors.New("files of it are still open; the end of the process cuts them off")

// leave takes the mount out of the tree.
func (mt *Mount) leave() error {
	on, err := mountedOn(mt.dir)
	if err != nil {
		return err
	}
	if on == nil || on.device != mt.device {
		return nil // someone else did, or has mounted over it
	}
	if err = unmount(mt.dir, 0); err == nil {
		return nil
	}
	// In use: cut the connection, so that no process hangs on a file system
	// that nobody serves any more.
	return unmount(mt.dir, unix.MNT_FORCE|unix.MNT_DETACH)
}

// abort cuts the connection where something still uses the unmounted file
// system, as a program that has a file open, or a mount namespace that has its
// own copy of the mount. It reports false where it can't: the control file
// system is often not mounted.
func (mt *Mount) abort() bool {
	_, minor, ok := strings.Cut(mt.device, ":")
	if !ok {
		return false
	}
	err := os.WriteFile("/sys/fs/fuse/connections/"+minor+"/abort", []byte("1"), 0)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		mt.server.log.Warn("the FUSE connection could not be aborted", "err", err)
	}
	return err == nil
}
