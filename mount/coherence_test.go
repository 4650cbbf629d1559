package mount_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
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

// write replaces a file's content as another session.
func (f fixture) write(t *testing.T, path, content string) gearsfs.Attr {
	t.Helper()
	attr, err := f.other.Resolve(t.Context(), path, true)
	require.NoError(t, err)
	zero := uint64(0)
	_, err = f.other.SetAttr(t.Context(), attr.Ino, dgm.SetAttr{Size: &zero})
	require.NoError(t, err)
	attr, err = f.other.Write(t.Context(), attr.Ino, attr.Head, []byte(content))
	require.NoError(t, err)
	return attr
}

func TestOpenSeesWhatOthersWrote(t *testing.T) {
	f := newFixture(t)
	require.NoError(t, os.WriteFile(f.path("f"), []byte("0000"), 0o644))
	for i := 1; i < 200; i++ {
		want := fmt.Sprintf("%04d", i)
		f.write(t, "/f", want)
		data, err := os.ReadFile(f.path("f"))
		require.NoError(t, err)
		require.Equal(t, want, string(data), "an open shows what was written before it")
	}
}

// TestAppendElsewhereShowsNoZeros: the page that the end of a file is in was
// cached when the file was shorter.
func TestAppendElsewhereShowsNoZeros(t *testing.T) {
	f := newFixture(t)
	require.NoError(t, os.WriteFile(f.path("log"), nil, 0o644))
	attr, err := f.other.Resolve(t.Context(), "/log", true)
	require.NoError(t, err)
	file, err := os.Open(f.path("log"))
	require.NoError(t, err)
	defer file.Close()
	var want []byte
	for i := range 500 {
		line := fmt.Sprintf("line %d\n", i)
		want = append(want, line...)
		_, err := f.other.Append(t.Context(), attr.Ino, []byte(line))
		require.NoError(t, err)
		if i%3 == 0 {
			_, err := os.Stat(f.path("log"))
			require.NoError(t, err)
		}
		got := make([]byte, len(want)+100)
		n, err := file.ReadAt(got, 0)
		require.Equal(t, io.EOF, err)
		require.True(t, bytes.HasPrefix(want, got[:n]), "what is read was written")
	}
	eventually(t, "all is seen", func() bool {
		info, err := file.Stat()
		return err == nil && info.Size() == int64(len(want))
	})
	got := make([]byte, len(want))
	_, err = file.ReadAt(got, 0)
	require.NoError(t, err)
	require.Equal(t, string(want), string(got))
}

func TestNamesThatOthersChange(t *testing.T) {
	f := newFixture(t)
	make := func(name string) gearsfs.Attr {
		attr, err := f.other.Make(t.Context(), gearsfs.RootIno, name, dgm.Make{Mode: unix.S_IFREG | 0o644})
		require.NoError(t, err)
		return attr
	}
	exists := func(name string) bool {
		_, err := os.Lstat(f.path(name))
		return err == nil
	}
	for i := range 20 {
		a, b := fmt.Sprint("a", i), fmt.Sprint("b", i)
		require.False(t, exists(a))
		make(a)
		eventually(t, "a new name is seen though it was missing before", func() bool { return exists(a) })
		require.NoError(t, f.other.Rename(t.Context(), dgm.Rename{Dir: gearsfs.RootIno, Name: a, NewDir: gearsfs.RootIno, NewName: b}))
		eventually(t, "a rename is seen", func() bool { return exists(b) && !exists(a) })
		require.NoError(t, f.other.Unlink(t.Context(), gearsfs.RootIno, b))
		eventually(t, "a removal is seen", func() bool { return !exists(b) })
	}
	attr := make("f")
	info, err := os.Stat(f.path("f"))
	require.NoError(t, err)
	require.EqualValues(t, 0o644, info.Mode().Perm())
	mode := uint32(0o600)
	_, err = f.other.SetAttr(t.Context(), attr.Ino, dgm.SetAttr{Mode: &mode})
	require.NoError(t, err)
	eventually(t, "changed attributes are seen", func() bool {
		info, err := os.Stat(f.path("f"))
		return err == nil && info.Mode().Perm() == 0o600
	})
}

// TestOpenOfReplacedFile: the kernel still knows the name of the old file.
func TestOpenOfReplacedFile(t *testing.T) {
	f := newFixture(t)
	for i := range 100 {
		require.NoError(t, os.WriteFile(f.path("f"), []byte("old"), 0o644))
		attr, err := f.other.Make(t.Context(), gearsfs.RootIno, "g", dgm.Make{Mode: unix.S_IFREG | 0o644})
		require.NoError(t, err)
		want := fmt.Sprint("new ", i)
		_, err = f.other.Write(t.Context(), attr.Ino, 0, []byte(want))
		require.NoError(t, err)
		require.NoError(t, f.other.Rename(t.Context(), dgm.Rename{Dir: gearsfs.RootIno, Name: "g", NewDir: gearsfs.RootIno, NewName: "f"}))
		data, err := os.ReadFile(f.path("f"))
		require.NoError(t, err)
		require.Equal(t, want, string(data))
	}
}

func TestMappingSeesWhatOthersWrote(t *testing.T) {
	f := newFixture(t)
	require.NoError(t, os.WriteFile(f.path("f"), []byte("old!"), 0o644))
	cmd := child("readmap", f.path("f"))
	in, err := cmd.StdinPipe()
	require.NoError(t, err)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	lines := bufio.NewScanner(out)
	require.True(t, lines.Scan())
	require.Equal(t, "old!", lines.Text())
	f.write(t, "/f", "new!")
	_, err = os.Stat(f.path("f")) // answered behind the change, so the pages are gone
	require.NoError(t, err)
	eventually(t, "the kernel drops the page", func() bool { data, err := os.ReadFile(f.path("f")); return err == nil && string(data) == "new!" })
	_, err = in.Write([]byte("\n"))
	require.NoError(t, err)
	require.True(t, lines.Scan())
	require.Equal(t, "new!", lines.Text())
	require.NoError(t, cmd.Wait())
}

// TestTwoMounts changes files through one mount and looks through another.
// TestNothingBelieved: with timeouts of 0 the kernel asks each time, and so sees at
// once what others did, before it is told.
func TestNothingBelieved(t *testing.T) {
	zero, err := mount.ParseOptions("attr_timeout=0,entry_timeout=0")
	require.NoError(t, err)
	f := newFixtureWith(t, func(o *mount.Options) { o.AttrTimeout, o.EntryTimeout = zero.AttrTimeout, zero.EntryTimeout })
	for i := range 200 {
		name := fmt.Sprint(i)
		attr, err := f.other.Create(t.Context(), gearsfs.RootIno, name, dgm.Make{Mode: 0o644})
		require.NoError(t, err)
		info, err := os.Stat(f.path(name))
		require.NoError(t, err)
		require.Zero(t, info.Size())
		_, err = f.other.Append(t.Context(), attr.Ino, []byte("more"))
		require.NoError(t, err)
		info, err = os.Stat(f.path(name))
		require.NoError(t, err)
		require.EqualValues(t, 4, info.Size())
		require.NoError(t, f.other.Unlink(t.Context(), gearsfs.RootIno, name))
		_, err = os.Stat(f.path(name))
		require.ErrorIs(t, err, os.ErrNotExist)
	}
}

func TestTwoMounts(t *testing.T) {
	f := newFixture(t)
	second := t.TempDir()
	mountOn(t, session(t, f.vol), second, "")
	for i := range 50 {
		want := fmt.Sprint("content ", i)
		require.NoError(t, os.WriteFile(f.path("tmp"), []byte(want), 0o644))
		require.NoError(t, os.Rename(f.path("tmp"), f.path("f")))
		eventually(t, "write, rename", func() bool {
			data, err := os.ReadFile(second + "/f")
			return err == nil && string(data) == want
		})
		require.NoError(t, os.WriteFile(second+"/f", []byte("back"), 0o644))
		data, err := os.ReadFile(f.path("f"))
		require.NoError(t, err)
		require.Equal(t, "back", string(data))
	}
}

// TestOffsetsDoNotMove: what an open file's offset 0 is stays, whatever is
// taken from its front.
func TestOffsetsDoNotMove(t *testing.T) {
	f := newFixture(t)
	f.put(t, "/q", gearsfs.DataKey, "aaaa", "bbbb", "cccc")
	old, err := os.OpenFile(f.path("q"), os.O_RDWR, 0)
	require.NoError(t, err)
	defer old.Close()
	buf := make([]byte, 20)
	n, err := old.ReadAt(buf, 0)
	require.Equal(t, io.EOF, err)
	require.Equal(t, "aaaabbbbcccc", string(buf[:n]))

	require.Equal(t, "aaaa", f.mustShell(t, "cat .gears/streams/q/data/take"))
	young, err := os.OpenFile(f.path("q"), os.O_RDWR, 0)
	require.NoError(t, err)
	defer young.Close()
	n, err = young.ReadAt(buf, 0)
	require.Equal(t, io.EOF, err)
	require.Equal(t, "bbbbcccc", string(buf[:n]))
	eventually(t, "what was taken reads as zeros, the rest stands where it stood", func() bool {
		n, err = old.ReadAt(buf, 0)
		require.Equal(t, io.EOF, err)
		return string(buf[:n]) == "\x00\x00\x00\x00bbbbcccc"
	})
	_, err = old.WriteAt([]byte("x"), 1)
	require.ErrorIs(t, err, unix.EIO)
	_, err = old.WriteAt([]byte("B"), 4)
	require.NoError(t, err)
	n, err = young.ReadAt(buf, 0)
	require.Equal(t, io.EOF, err)
	require.Equal(t, "Bbbbcccc", string(buf[:n]))
	require.NoError(t, young.Truncate(4))
	n, err = young.ReadAt(buf, 0)
	require.Equal(t, io.EOF, err)
	require.Equal(t, "Bbbb", string(buf[:n]))
}

// counting is a Manager that counts what the kernel did not know itself.
type counting struct {
	dgm.Manager
	asked atomic.Int64
}

func (c *counting) Lookup(ctx context.Context, dir gearsfs.Ino, name string) (gearsfs.Attr, error) {
	c.asked.Add(1)
	return c.Manager.Lookup(ctx, dir, name)
}

func (c *counting) GetAttr(ctx context.Context, ino gearsfs.Ino) (gearsfs.Attr, error) {
	c.asked.Add(1)
	return c.Manager.GetAttr(ctx, ino)
}

func (c *counting) Read(ctx context.Context, ino gearsfs.Ino, pos gearsfs.Pos, n int, buf []byte) ([]byte, error) {
	c.asked.Add(1)
	return c.Manager.Read(ctx, ino, pos, n, buf)
}

// TestCachesStayWarm: what others change of one file does not cost the kernel what
// it knows of another.
func TestCachesStayWarm(t *testing.T) {
	needRoot(t)
	vol := openVolume(t)
	f := fixture{vol: vol, dir: t.TempDir(), other: session(t, vol)}
	counts := &counting{Manager: session(t, vol)}
	mountOn(t, counts, f.dir, "")
	require.NoError(t, os.MkdirAll(f.path("d/e"), 0o755))
	require.NoError(t, os.WriteFile(f.path("d/e/warm"), bytes.Repeat([]byte("w"), 300_000), 0o644))
	require.NoError(t, os.Mkdir(f.path("busy"), 0o755))
	require.NoError(t, os.WriteFile(f.path("busy/f"), []byte("b"), 0o644))
	busy, err := f.other.Resolve(t.Context(), "/busy", true)
	require.NoError(t, err)
	file, err := os.Open(f.path("d/e/warm"))
	require.NoError(t, err)
	defer file.Close()
	use := func() {
		info, err := os.Stat(f.path("d/e/warm"))
		require.NoError(t, err)
		require.EqualValues(t, 300_000, info.Size())
		buf := make([]byte, 300_000)
		_, err = file.ReadAt(buf, 0)
		require.NoError(t, err)
		require.Equal(t, byte('w'), buf[299_999])
	}
	// An answer that a change crosses is not to be kept: a few rounds until all is.
	require.Eventually(t, func() bool {
		before := counts.asked.Load()
		use()
		return counts.asked.Load() == before
	}, 10*time.Second, time.Millisecond, "the kernel keeps what it was told")
	warm := counts.asked.Load()
	for i := range 200 {
		f.write(t, "/busy/f", fmt.Sprint("text ", i))
		_, err := f.other.Make(t.Context(), busy.Ino, fmt.Sprint("new", i), dgm.Make{Mode: unix.S_IFREG | 0o644})
		require.NoError(t, err)
		use()
	}
	require.Equal(t, warm, counts.asked.Load(), "nobody has changed what was used")

	// And its next open keeps the pages, where nobody has written.
	require.NoError(t, file.Close())
	file, err = os.Open(f.path("d/e/warm"))
	require.NoError(t, err)
	defer file.Close()
	_, err = file.Stat()
	require.NoError(t, err)
	reads := counts.asked.Load()
	buf := make([]byte, 300_000)
	_, err = file.ReadAt(buf, 0)
	require.NoError(t, err)
	require.Equal(t, reads, counts.asked.Load())
	f.write(t, "/d/e/warm", "cold")
	requireContent(t, "cold", f.path("d/e/warm"))
}

// deaf is a Manager that tells of no change.
type deaf struct{ dgm.Manager }

func (d deaf) Watch(ctx context.Context, ready func(), _ func([]gearsfs.Change)) error {
	return d.Manager.Watch(ctx, ready, func([]gearsfs.Change) {})
}

// TestOpenByNameThatOthersRenamed: the kernel believes in two names of a file, of
// which another session's rename has taken one. An OPEN does not say by which of
// them it came.
func TestOpenByNameThatOthersRenamed(t *testing.T) {
	needRoot(t)
	vol := openVolume(t)
	f := fixture{vol: vol, dir: t.TempDir(), other: session(t, vol)}
	mountOn(t, deaf{session(t, vol)}, f.dir, "")
	rename := func(from, to string) {
		require.NoError(t, f.other.Rename(t.Context(), dgm.Rename{Dir: gearsfs.RootIno, Name: from, NewDir: gearsfs.RootIno, NewName: to}))
	}
	for i := range 20 {
		old, now := fmt.Sprint("old", i), fmt.Sprint("now", i)
		require.NoError(t, os.WriteFile(f.path(old), []byte("x"), 0o644))
		rename(old, now)
		requireContent(t, "x", f.path(now))
		_, err := os.Open(f.path(old))
		require.ErrorIs(t, err, unix.ENOENT)
		file, err := os.OpenFile(f.path(old), os.O_RDWR|os.O_CREATE, 0o644)
		require.NoError(t, err)
		info, err := file.Stat()
		require.NoError(t, err)
		require.Zero(t, info.Size(), "a new file, not the one that was renamed")
		require.NoError(t, file.Close())
		requireContent(t, "x", f.path(now))
	}
}

// behind is a Manager whose Lookup answers as of before the last changes, as a
// replica that lags does, and that tells of no change.
type behind struct {
	dgm.Manager
	mu   sync.Mutex
	seen map[string]gearsfs.Attr
}

func (b *behind) Lookup(ctx context.Context, dir gearsfs.Ino, name string) (gearsfs.Attr, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if attr, ok := b.seen[name]; ok {
		return attr, nil
	}
	attr, err := b.Manager.Lookup(ctx, dir, name)
	if err == nil {
		b.seen[name] = attr
	}
	return attr, err
}

func (b *behind) Watch(ctx context.Context, ready func(), _ func([]gearsfs.Change)) error {
	return b.Manager.Watch(ctx, ready, func([]gearsfs.Change) {})
}

// TestOpenAfterLookupThatLagged: the size of the LOOKUP before must not cut off
// what an OPEN promises to show.
func TestOpenAfterLookupThatLagged(t *testing.T) {
	needRoot(t)
	vol := openVolume(t)
	f := fixture{vol: vol, dir: t.TempDir(), other: session(t, vol)}
	_, err := f.other.Make(t.Context(), gearsfs.RootIno, "f", dgm.Make{Mode: unix.S_IFREG | 0o644})
	require.NoError(t, err)
	f.write(t, "/f", "a")
	lags := &behind{Manager: session(t, vol), seen: map[string]gearsfs.Attr{}}
	_, err = lags.Lookup(t.Context(), gearsfs.RootIno, "f")
	require.NoError(t, err)
	mountOn(t, lags, f.dir, "")
	for _, want := range []string{"more", "much more"} {
		f.write(t, "/f", want)
		data, err := os.ReadFile(f.path("f"))
		require.NoError(t, err)
		require.Equal(t, want, string(data))
	}
}

// late is a Manager like behind, but tells of what has changed while the kernel asks
// for the attributes of the file f for the first time.
type late struct {
	behind
	f, g    gearsfs.Ino
	path    string // of g
	tells   chan func([]gearsfs.Change)
	tell    func([]gearsfs.Change) // of those
	asked   atomic.Bool            // for the attributes of f
	dropped atomic.Bool            // the kernel has asked for those of g
}

func (l *late) Watch(ctx context.Context, ready func(), tell func([]gearsfs.Change)) error {
	l.tells <- tell
	return l.Manager.Watch(ctx, ready, func([]gearsfs.Change) {})
}

// GetAttr answers when the kernel has been told of f, if it is, because it was told
// of g behind it.
func (l *late) GetAttr(ctx context.Context, ino gearsfs.Ino) (gearsfs.Attr, error) {
	attr, err := l.Manager.GetAttr(ctx, ino)
	switch {
	case ino == l.g:
		l.dropped.Store(true)
	case ino == l.f && l.asked.CompareAndSwap(false, true):
		l.dropped.Store(false)
		l.tell([]gearsfs.Change{{Ino: l.f, Data: true}, {Ino: l.g}})
		for err == nil && !l.dropped.Load() {
			var st unix.Stat_t
			err = unix.Stat(l.path, &st)
		}
	}
	return attr, err
}

// TestOpenBeforeItsNotice: what an OPEN has shown is read behind it, also where the
// watch tells of it just then.
func TestOpenBeforeItsNotice(t *testing.T) {
	needRoot(t)
	vol := openVolume(t)
	f := fixture{vol: vol, dir: t.TempDir(), other: session(t, vol)}
	l := &late{behind: behind{Manager: session(t, vol), seen: map[string]gearsfs.Attr{}}, path: f.path("g"),
		tells: make(chan func([]gearsfs.Change), 1)}
	for name, ino := range map[string]*gearsfs.Ino{"f": &l.f, "g": &l.g} {
		_, err := f.other.Make(t.Context(), gearsfs.RootIno, name, dgm.Make{Mode: unix.S_IFREG | 0o644})
		require.NoError(t, err)
		attr, err := l.Lookup(t.Context(), gearsfs.RootIno, name)
		require.NoError(t, err)
		*ino = attr.Ino
	}
	mountOn(t, l, f.dir, "")
	l.tell = <-l.tells
	f.write(t, "/f", "more")
	var st unix.Stat_t
	require.NoError(t, unix.Stat(l.path, &st))
	fd, err := unix.Open(f.path("f"), unix.O_RDONLY, 0)
	require.NoError(t, err)
	defer unix.Close(fd)
	buf := make([]byte, 10)
	n, err := unix.Read(fd, buf)
	require.NoError(t, err)
	require.Equal(t, "more", string(buf[:n]))
	require.True(t, l.asked.Load())
	f.write(t, "/f", "other")
	l.tell([]gearsfs.Change{{Ino: l.f, Data: true}}) // this is not of what was shown
	require.Eventually(t, func() bool {
		n, err = unix.Pread(fd, buf, 0)
		return err == nil && string(buf[:n]) == "other"
	}, 10*time.Second, time.Millisecond)
}

// listing is a Manager like behind that lists the directory d when it may.
type listing struct {
	behind
	d     gearsfs.Ino
	asked chan struct{}
	may   chan struct{}
	stats atomic.Int64 // of anything
	tells chan func([]gearsfs.Change)
}

func (l *listing) ReadDir(ctx context.Context, dir gearsfs.Ino, after string, max int) ([]gearsfs.Entry, error) {
	if dir == l.d {
		l.asked <- struct{}{}
		<-l.may
	}
	return l.Manager.ReadDir(ctx, dir, after, max)
}

func (l *listing) GetAttr(ctx context.Context, ino gearsfs.Ino) (gearsfs.Attr, error) {
	l.stats.Add(1)
	return l.Manager.GetAttr(ctx, ino)
}

func (l *listing) Watch(ctx context.Context, ready func(), tell func([]gearsfs.Change)) error {
	l.tells <- tell
	return l.Manager.Watch(ctx, ready, func([]gearsfs.Change) {})
}

// TestNoticesBesideOneThatWaits: the kernel waits with the notice of a name until the
// listing of its directory is answered. That may need a notice of its own.
func TestNoticesBesideOneThatWaits(t *testing.T) {
	needRoot(t)
	vol := openVolume(t)
	l := &listing{behind: behind{Manager: session(t, vol), seen: map[string]gearsfs.Attr{}},
		asked: make(chan struct{}, 9), may: make(chan struct{}), tells: make(chan func([]gearsfs.Change), 1)}
	dir, err := l.Make(t.Context(), gearsfs.RootIno, "d", dgm.Make{Mode: unix.S_IFDIR | 0o755})
	require.NoError(t, err)
	file, err := l.Make(t.Context(), gearsfs.RootIno, "f", dgm.Make{Mode: unix.S_IFREG | 0o644})
	require.NoError(t, err)
	l.d = dir.Ino
	f := fixture{vol: vol, dir: t.TempDir()}
	mountOn(t, l, f.dir, "")
	tell := <-l.tells
	listed := make(chan error, 1)
	go func() {
		_, err := os.ReadDir(f.path("d"))
		listed <- err
	}()
	<-l.asked
	var once sync.Once
	release := func() { once.Do(func() { close(l.may) }) }
	defer release()
	var st unix.Stat_t
	require.NoError(t, unix.Stat(f.path("f"), &st))
	tell([]gearsfs.Change{{Ino: dir.Ino, Name: "x"}}) // sooner or later it waits
	for range 200 {
		before := l.stats.Load()
		tell([]gearsfs.Change{{Ino: file.Ino}})
		require.Eventually(t, func() bool {
			return unix.Stat(f.path("f"), &st) == nil && l.stats.Load() > before
		}, 10*time.Second, time.Millisecond, "the kernel was not told of the file")
	}
	release()
	require.NoError(t, <-listed)
}

// A write through one mount takes the capabilities that another has given the file,
// though the file was known to have none.
func TestWriteDropsWhatOthersGave(t *testing.T) {
	for way, change := range ways {
		t.Run(way, func(t *testing.T) {
			f := newFixtureWith(t, change)
			write := func(text string) {
				file, err := os.OpenFile(f.path("f"), os.O_WRONLY|os.O_CREATE, 0o755)
				require.NoError(t, err)
				_, err = file.WriteString(text)
				require.NoError(t, errors.Join(err, file.Close()))
			}
			write("one")
			attr, err := f.other.Lookup(t.Context(), gearsfs.RootIno, "f")
			require.NoError(t, err)
			for _, text := range []string{"two", "three"} {
				require.NoError(t, f.other.SetXattr(t.Context(), attr.Ino, "security.capability", []byte("some"), 0))
				write(text)
				_, err = f.other.GetXattr(t.Context(), attr.Ino, "security.capability")
				require.ErrorIs(t, err, gearsfs.ErrNoAttr)
			}
		})
	}
}
