package mount_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm"
	"github.com/gearsfs/gearsfs/mount"
)

// sent is a Manager that tells which changes of files a mount sends, and lets them
// wait or fail.
type sent struct {
	dgm.Manager
	begun chan string // of each as it comes; nil where nobody reads

	mu   sync.Mutex
	all  []string
	fail error
	gate chan struct{} // closed when they may go on; nil for at once
}

func (s *sent) come(what string) error {
	s.mu.Lock()
	s.all = append(s.all, what)
	fail, gate := s.fail, s.gate
	s.mu.Unlock()
	if s.begun != nil {
		s.begun <- what
	}
	if gate != nil {
		<-gate
	}
	return fail
}

// took returns what has come since it was called last.
func (s *sent) took() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := s.all
	s.all = nil
	return all
}

func (s *sent) failWith(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail = err
}

func (s *sent) Write(ctx context.Context, ino gearsfs.Ino, pos gearsfs.Pos, data []byte) (gearsfs.Attr, error) {
	if err := s.come(fmt.Sprintf("write %d", len(data))); err != nil {
		return gearsfs.Attr{}, err
	}
	return s.Manager.Write(ctx, ino, pos, data)
}

func (s *sent) SetAttr(ctx context.Context, ino gearsfs.Ino, set dgm.SetAttr) (gearsfs.Attr, error) {
	if err := s.come("set"); err != nil {
		return gearsfs.Attr{}, err
	}
	return s.Manager.SetAttr(ctx, ino, set)
}

func (s *sent) Save(ctx context.Context, ino gearsfs.Ino, pos gearsfs.Pos, data []byte, set dgm.SetAttr) (gearsfs.Attr, error) {
	if err := s.come(fmt.Sprintf("save %d", len(data))); err != nil {
		return gearsfs.Attr{}, err
	}
	return s.Manager.Save(ctx, ino, pos, data, set)
}

// newHeld mounts a volume on a mount that holds what is written.
func newHeld(t *testing.T, change func(*mount.Options)) (fixture, *sent) {
	t.Helper()
	needRoot(t)
	vol := openVolume(t)
	dir := t.TempDir()
	s := &sent{Manager: session(t, vol)}
	mt := mountWith(t, s, dir, "", func(o *mount.Options) { holding(o); change(o) })
	return fixture{vol, dir, session(t, vol), mt}, s
}

func asItIs(*mount.Options) {}

// content is what the volume has of a file.
func (f fixture) content(t *testing.T, path string) string {
	t.Helper()
	attr, err := f.other.Resolve(t.Context(), path, true)
	require.NoError(t, err)
	data, err := f.other.Read(t.Context(), attr.Ino, 0, 1<<20, nil)
	require.NoError(t, err)
	return string(data)
}

func (f fixture) create(t *testing.T, name string) *os.File {
	t.Helper()
	file, err := os.OpenFile(f.path(name), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	require.NoError(t, err)
	t.Cleanup(func() { file.Close() }) // most tests have
	return file
}

// TestHeldIsOneCommand: what tar does with a file.
func TestHeldIsOneCommand(t *testing.T) {
	f, s := newHeld(t, asItIs)
	file := f.create(t, "f")
	for range 3 {
		_, err := file.WriteString("some bytes ")
		require.NoError(t, err)
	}
	mtime := time.Unix(1000, 0)
	tv := unix.NsecToTimeval(mtime.UnixNano())
	require.NoError(t, unix.Futimes(int(file.Fd()), []unix.Timeval{tv, tv}))
	require.NoError(t, file.Chmod(0o777|os.ModeSetuid))
	require.NoError(t, file.Chown(5, 6))
	require.NoError(t, file.Chmod(0o640))
	require.Empty(t, s.took())
	require.Empty(t, f.content(t, "/f"))
	require.NoError(t, file.Close())
	require.Equal(t, []string{"save 33"}, s.took())
	require.Equal(t, "some bytes some bytes some bytes ", f.content(t, "/f"))
	attr, err := f.other.Resolve(t.Context(), "/f", true)
	require.NoError(t, err)
	require.EqualValues(t, []uint32{unix.S_IFREG | 0o640, 5, 6}, []uint32{attr.Mode, attr.UID, attr.GID})
	require.True(t, mtime.Equal(attr.Mtime), "%v", attr.Mtime)
	st := lstat(t, f.path("f"))
	require.EqualValues(t, []uint32{unix.S_IFREG | 0o640, 5, 6}, []uint32{st.Mode, st.Uid, st.Gid})
}

// TestHeldInOrder: a change of the owner takes privileges, also those that are
// held, and a write behind attributes comes behind them.
func TestHeldInOrder(t *testing.T) {
	f, s := newHeld(t, asItIs)
	file := f.create(t, "f")
	require.NoError(t, file.Chmod(0o755|os.ModeSetuid))
	require.NoError(t, file.Chown(5, 6))
	mtime := time.Unix(1000, 0)
	tv := unix.NsecToTimeval(mtime.UnixNano())
	require.NoError(t, unix.Futimes(int(file.Fd()), []unix.Timeval{tv, tv}))
	_, err := file.WriteString("behind")
	require.NoError(t, err)
	require.NoError(t, file.Close())
	require.Equal(t, []string{"set", "write 6"}, s.took())
	attr, err := f.other.Resolve(t.Context(), "/f", true)
	require.NoError(t, err)
	require.EqualValues(t, unix.S_IFREG|0o755, attr.Mode)
	require.False(t, mtime.Equal(attr.Mtime))
}

// asker asks about a file of which something is held.
type asker struct {
	fixture
	file *os.File
	t    *testing.T
}

func (p asker) lock(kind int16) error {
	return unix.FcntlFlock(p.file.Fd(), unix.F_SETLK, &unix.Flock_t{Type: kind})
}

// asks are the requests before which what is held of a file is sent.
var asks = map[string]func(p asker) error{
	"fstat":       func(p asker) error { _, err := p.file.Stat(); return err },
	"stat":        func(p asker) error { _, err := os.Stat(p.path("f")); return err },
	"stat a link": func(p asker) error { _, err := os.Stat(p.path("link")); return err },
	"open": func(p asker) error {
		g, err := os.Open(p.path("f"))
		return errors.Join(err, g.Close())
	},
	"list": func(p asker) error {
		entries, err := os.ReadDir(p.path("."))
		for _, e := range entries {
			_, infoErr := e.Info()
			err = errors.Join(err, infoErr)
		}
		return err
	},
	"read": func(p asker) error { _, err := p.file.ReadAt(make([]byte, 1), 0); return err },
	"rename": func(p asker) error {
		if err := os.Rename(p.path("f"), p.path("g")); err != nil {
			return err
		}
		return p.other.Rename(p.t.Context(), dgm.Rename{Dir: gearsfs.RootIno, Name: "g", NewDir: gearsfs.RootIno, NewName: "f"})
	},
	"link":   func(p asker) error { return os.Link(p.path("f"), p.path("another")) },
	"unlink": func(p asker) error { return os.Remove(p.path("link")) },
	"replace": func(p asker) error {
		return errors.Join(os.WriteFile(p.path("new"), nil, 0o600), os.Rename(p.path("new"), p.path("link")))
	},
	"truncate":  func(p asker) error { return os.Truncate(p.path("f"), 100) },
	"ftruncate": func(p asker) error { return p.file.Truncate(100) },
	"allocate":  func(p asker) error { return unix.Fallocate(int(p.file.Fd()), 0, 0, 100) },
	"copy from": func(p asker) error {
		g, err := os.Create(p.path("copy"))
		if err == nil {
			_, err = unix.CopyFileRange(int(p.file.Fd()), new(int64), int(g.Fd()), nil, 4, 0)
		}
		return errors.Join(err, g.Close())
	},
	"seek hole": func(p asker) error { _, err := p.file.Seek(0, unix.SEEK_HOLE); return err },
	"getxattr": func(p asker) error {
		if _, err := unix.Getxattr(p.path("f"), "user.x", nil); !errors.Is(err, unix.ENODATA) {
			return fmt.Errorf("%w, not ENODATA", err)
		}
		return nil
	},
	"listxattr":  func(p asker) error { _, err := unix.Listxattr(p.path("f"), nil); return err },
	"setxattr":   func(p asker) error { return unix.Setxattr(p.path("f"), "user.x", []byte("y"), 0) },
	"flock":      func(p asker) error { return unix.Flock(int(p.file.Fd()), unix.LOCK_SH) },
	"fcntl lock": func(p asker) error { return p.lock(unix.F_WRLCK) },
	"unlock":     func(p asker) error { return p.lock(unix.F_UNLCK) },
	"fsync":      func(p asker) error { return p.file.Sync() },
	"close":      func(p asker) error { return p.file.Close() },
	"a stream": func(p asker) error {
		_, err := os.ReadFile(p.control("f", "data", "info"))
		return err
	},
	"append": func(p asker) error {
		g, err := os.OpenFile(p.path("f"), os.O_WRONLY|os.O_APPEND, 0)
		if err == nil {
			_, err = g.WriteString("!")
		}
		return errors.Join(err, g.Close())
	},
}

// TestHeldSendsFirst: who asks about the file finds what was written.
func TestHeldSendsFirst(t *testing.T) {
	for name, ask := range asks {
		t.Run(name, func(t *testing.T) {
			f, s := newHeld(t, asItIs)
			file := f.create(t, "f")
			require.NoError(t, os.Link(f.path("f"), f.path("link")))
			_, err := file.WriteString("held")
			require.NoError(t, err)
			require.Empty(t, s.took())
			require.Empty(t, f.content(t, "/f"))
			require.NoError(t, ask(asker{f, file, t}))
			require.Contains(t, f.content(t, "/f"), "held")
			require.Contains(t, s.took(), "write 4")
		})
	}
}

// TestHeldIsLookedUp: a name that the kernel does not know leads to the file as
// it was written.
func TestHeldIsLookedUp(t *testing.T) {
	f, s := newHeld(t, asItIs)
	file := f.create(t, "f")
	attr, err := f.other.Resolve(t.Context(), "/f", true)
	require.NoError(t, err)
	_, err = f.other.Link(t.Context(), attr.Ino, gearsfs.RootIno, "another")
	require.NoError(t, err)
	_, err = file.WriteString("held")
	require.NoError(t, err)
	require.Empty(t, s.took())
	require.EqualValues(t, 4, lstat(t, f.path("another")).Size)
	require.Equal(t, "held", f.content(t, "/f"))
}

// TestSyncedIsNotHeld: a descriptor may ask for each write to be on disk.
func TestSyncedIsNotHeld(t *testing.T) {
	f, s := newHeld(t, asItIs)
	file, err := os.OpenFile(f.path("f"), os.O_WRONLY|os.O_CREATE|os.O_SYNC, 0o600)
	require.NoError(t, err)
	defer file.Close()
	_, err = file.WriteString("now")
	require.NoError(t, err)
	require.Equal(t, []string{"write 3"}, s.took())
}

// TestHeldForAMoment: nobody need ask.
func TestHeldForAMoment(t *testing.T) {
	f, s := newHeld(t, func(o *mount.Options) { o.HeldFor = 0 })
	file := f.create(t, "f")
	for i := range 3 {
		_, err := file.WriteString("x")
		require.NoError(t, err)
		require.NoError(t, file.Chmod(0o640))
		eventually(t, "it is sent", func() bool { return len(f.content(t, "/f")) == i+1 })
	}
	require.Equal(t, []string{"save 1", "save 1", "save 1"}, s.took())
}

// TestHeldFails: each handle is told once of what became of what was written, and
// the writes behind it at once.
func TestHeldFails(t *testing.T) {
	f, s := newHeld(t, asItIs)
	file := f.create(t, "f")
	second, err := os.OpenFile(f.path("f"), os.O_RDWR, 0)
	require.NoError(t, err)
	reader, err := os.Open(f.path("f"))
	require.NoError(t, err)
	defer reader.Close()
	_, err = file.WriteAt([]byte("x"), 0) // at once, behind an open
	require.NoError(t, err)
	s.failWith(gearsfs.ErrNoSpace)
	_, err = file.WriteString("held")
	require.NoError(t, err)
	_, err = file.Stat()
	require.NoError(t, err)
	require.ErrorIs(t, file.Sync(), unix.ENOSPC)
	require.NoError(t, file.Sync())
	_, err = file.WriteString("held")
	require.ErrorIs(t, err, unix.ENOSPC)
	require.ErrorIs(t, second.Close(), unix.ENOSPC)
	require.ErrorIs(t, reader.Sync(), unix.ENOSPC)
	eventually(t, "the pages go that the file does not have", func() bool {
		n, err := file.ReadAt(make([]byte, 4), 0)
		return n == 1 && err != nil
	})
	s.failWith(nil)
	s.took()
	for range 2 {
		_, err = file.WriteAt([]byte("more"), 0)
		require.NoError(t, err)
	}
	require.Equal(t, []string{"write 4"}, s.took(), "one by one until one went well")
	require.NoError(t, file.Close())
	require.Equal(t, "more", f.content(t, "/f"))
}

// only is a Manager of the only node: to sync it waits for nobody, and so does not look
// whether who asked does.
type only struct{ *sent }

func (only) Sync(context.Context) error { return nil }

// TestHeldAndInterrupted: an fsync that is interrupted before what was held is answered
// has not succeeded.
func TestHeldAndInterrupted(t *testing.T) {
	needRoot(t)
	vol := openVolume(t)
	s := &sent{Manager: session(t, vol), begun: make(chan string, 8), gate: make(chan struct{})}
	f := fixture{vol: vol, dir: t.TempDir(), other: session(t, vol)}
	mountWith(t, only{s}, f.dir, "", holding)
	file := f.create(t, "f")
	_, err := file.WriteString("held")
	require.NoError(t, err)
	thread, synced := make(chan int, 1), make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		thread <- unix.Gettid()
		synced <- unix.Fsync(int(file.Fd()))
	}()
	require.Equal(t, "write 4", <-s.begun) // the fsync has it sent
	require.NoError(t, unix.Tgkill(os.Getpid(), <-thread, unix.SIGURG))
	err = <-synced
	close(s.gate)
	require.ErrorIs(t, err, unix.EINTR)
	require.NoError(t, file.Sync())
	require.Equal(t, "held", f.content(t, "/f"))
}

// TestHeldOfSealed: what can be known before is said by the write.
func TestHeldOfSealed(t *testing.T) {
	f, _ := newHeld(t, asItIs)
	require.NoError(t, os.WriteFile(f.path("f"), []byte("x"), 0o600))
	seal := true
	require.NoError(t, f.other.Configure(t.Context(), gearsfs.At("/f"), gearsfs.DataKey, dgm.StreamChange{Seal: &seal}))
	file, err := os.OpenFile(f.path("f"), os.O_RDWR, 0)
	require.NoError(t, err)
	defer file.Close()
	_, err = file.WriteString("y")
	require.Error(t, err)
	require.NoError(t, file.Close())
}

// TestHeldWindow: a large file goes several pieces at a time, and no more.
func TestHeldWindow(t *testing.T) {
	f, s := newHeld(t, asItIs)
	s.begun, s.gate = make(chan string, 100), make(chan struct{})
	file := f.create(t, "f")
	want := make([]byte, 12<<20)
	for i := range want {
		want[i] = byte(i*i>>8 ^ i>>20)
	}
	var wrote atomic.Int64
	done := make(chan error, 1)
	go func() {
		for piece := range slices.Chunk(want, 64<<10) {
			if _, err := file.Write(piece); err != nil {
				done <- err
				return
			}
			wrote.Add(1)
		}
		done <- file.Close()
	}()
	for range 8 {
		require.Equal(t, fmt.Sprintf("write %d", 1<<20), <-s.begun)
	}
	eventually(t, "the writer waits", func() bool {
		stacks := make([]byte, 1<<20)
		stacks = stacks[:runtime.Stack(stacks, true)]
		return slices.ContainsFunc(strings.Split(string(stacks), "\n\n"), func(stack string) bool {
			return strings.Contains(stack, "mount.await(") && strings.Contains(stack, "holdWrite(")
		})
	})
	require.Less(t, wrote.Load(), int64(10*16))
	require.Empty(t, s.begun)
	close(s.gate)
	require.NoError(t, <-done)
	require.Len(t, s.took(), 12)
	attr, err := f.other.Resolve(t.Context(), "/f", true)
	require.NoError(t, err)
	for pos := 0; pos < len(want); pos += 1 << 20 { // not through the kernel, which has its own
		got, err := f.other.Read(t.Context(), attr.Ino, gearsfs.Pos(pos), 1<<20, nil)
		require.NoError(t, err)
		require.True(t, bytes.Equal(want[pos:pos+1<<20], got), "from byte %d on", pos)
	}
}

// TestHeldIsBounded: of many files together, only so much.
func TestHeldIsBounded(t *testing.T) {
	f, s := newHeld(t, asItIs)
	const files, size = 40, 1<<20 - 4096
	for i := range files {
		_, err := f.create(t, fmt.Sprint(i)).Write(make([]byte, size))
		require.NoError(t, err)
	}
	require.GreaterOrEqual(t, len(s.took()), files-(32<<20)/size, "the others are held")
}

// TestHeldOnlyByMany: how many nodes there are may change.
func TestHeldOnlyByMany(t *testing.T) {
	var several atomic.Bool
	f, s := newHeld(t, func(o *mount.Options) { o.Several = several.Load })
	file := f.create(t, "f")
	write := func() {
		_, err := file.WriteString("x")
		require.NoError(t, err)
	}
	write()
	require.Equal(t, []string{"write 1"}, s.took())
	several.Store(true)
	write()
	require.Empty(t, s.took())
	several.Store(false)
	write()
	require.Equal(t, []string{"write 1", "write 1"}, s.took())
	require.Equal(t, "xxx", f.content(t, "/f"))
}

// TestHeldAndUnmounted: the end of the mount sends what is held.
func TestHeldAndUnmounted(t *testing.T) {
	f, _ := newHeld(t, asItIs)
	_, err := f.create(t, "f").WriteString("held")
	require.NoError(t, err)
	require.NoError(t, f.mount.Unmount(t.Context()))
	require.Equal(t, "held", f.content(t, "/f"))
}

// TestHeldModel: random changes of a file through two handles are what they would
// be at once.
func TestHeldModel(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	f, _ := newHeld(t, func(o *mount.Options) { o.HeldFor = time.Millisecond })
	first := f.create(t, "f")
	second, err := os.OpenFile(f.path("f"), os.O_RDWR, 0)
	require.NoError(t, err)
	defer second.Close()
	var want []byte
	mode := uint32(0o600)
	for step := range 3000 {
		file := []*os.File{first, second}[rng.IntN(2)]
		off, n := rng.IntN(40_000), 1+rng.IntN([]int{10, 5000, 300_000}[rng.IntN(3)])
		switch rng.IntN(12) {
		case 0:
			mode = rng.Uint32N(0o1000)
			require.NoError(t, unix.Fchmod(int(file.Fd()), mode))
		case 1:
			size := rng.IntN(len(want) + 10)
			require.NoError(t, file.Truncate(int64(size)))
			want = append(want, make([]byte, max(0, size-len(want)))...)[:size]
		case 2:
			got := make([]byte, n)
			n, _ := file.ReadAt(got, int64(off)) // it ends early where the file does
			require.Equal(t, max(0, min(len(want)-off, len(got))), n, "step %d", step)
			require.True(t, n == 0 || bytes.Equal(want[off:off+n], got[:n]), "step %d: bytes from %d on", step, off)
		case 3:
			info, err := file.Stat()
			require.NoError(t, err)
			require.Equal(t, []int64{int64(len(want)), int64(mode)}, []int64{info.Size(), int64(info.Mode().Perm())}, "step %d", step)
		case 4:
			require.NoError(t, file.Sync())
			attr, err := f.other.Resolve(t.Context(), "/f", true)
			require.NoError(t, err)
			require.EqualValues(t, []int{len(want), int(mode)}, []int{int(attr.Size), int(attr.Mode & 0o7777)}, "step %d", step)
		default:
			if rng.IntN(2) == 0 {
				off = len(want)
			}
			data := bytes.Repeat([]byte{byte(step)}, n)
			_, err := file.WriteAt(data, int64(off))
			require.NoError(t, err)
			want = append(want, make([]byte, max(0, off+n-len(want)))...)
			copy(want[off:], data)
		}
		if len(want) > 1<<20 {
			require.NoError(t, file.Truncate(0))
			want = nil
		}
	}
	require.NoError(t, first.Close())
	require.True(t, bytes.Equal(want, []byte(f.content(t, "/f"))))
}
