package dgmtest

import (
	"bytes"
	"context"
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm"
)

const (
	fileMode = syscall.S_IFREG | 0o644
	dirMode  = syscall.S_IFDIR | 0o755
	linkMode = syscall.S_IFLNK | 0o777
)

func (s *suite) make(dir gearsfs.Ino, name string, mode uint32) gearsfs.Attr {
	s.t.Helper()
	attr, err := s.m.Make(s.ctx, dir, name, dgm.Make{Mode: mode, Target: target(mode)})
	require.NoError(s.t, err)
	return attr
}

func target(mode uint32) string {
	if mode == linkMode {
		return "target"
	}
	return ""
}

func tree(t *testing.T, s *suite) {
	d := s.make(gearsfs.RootIno, "d", dirMode)
	f := s.make(d.Ino, "f", fileMode)
	require.Equal(t, uint32(fileMode), f.Mode)
	require.Equal(t, uint32(1), f.Nlink)
	_, err := s.m.Make(s.ctx, d.Ino, "f", dgm.Make{Mode: fileMode})
	require.ErrorIs(t, err, gearsfs.ErrExists)
	again, err := s.m.Make(s.ctx, d.Ino, "f", dgm.Make{Mode: fileMode, Open: true})
	require.NoError(t, err)
	require.Equal(t, f.Ino, again.Ino)

	l, err := s.m.Make(s.ctx, gearsfs.RootIno, "l", dgm.Make{Mode: linkMode, Target: "d/f"})
	require.NoError(t, err)
	text, err := s.m.Readlink(s.ctx, l.Ino)
	require.NoError(t, err)
	require.Equal(t, "d/f", text)
	attr, err := s.m.Resolve(s.ctx, "/l", true)
	require.NoError(t, err)
	require.Equal(t, f.Ino, attr.Ino)
	attr, err = s.m.Resolve(s.ctx, "/l", false)
	require.NoError(t, err)
	require.Equal(t, l.Ino, attr.Ino)

	attr, err = s.m.Link(s.ctx, f.Ino, gearsfs.RootIno, "hard")
	require.NoError(t, err)
	require.Equal(t, uint32(2), attr.Nlink)
	require.ErrorIs(t, s.m.Rmdir(s.ctx, gearsfs.RootIno, "d"), gearsfs.ErrNotEmpty)
	require.ErrorIs(t, s.m.Unlink(s.ctx, gearsfs.RootIno, "d"), gearsfs.ErrIsDir)
	require.ErrorIs(t, s.m.Rmdir(s.ctx, gearsfs.RootIno, "hard"), gearsfs.ErrNotDir)
	require.NoError(t, s.m.Unlink(s.ctx, d.Ino, "f"))
	require.NoError(t, s.m.Rmdir(s.ctx, gearsfs.RootIno, "d"))
	_, err = s.m.Lookup(s.ctx, gearsfs.RootIno, "d")
	require.ErrorIs(t, err, gearsfs.ErrNotFound)
	attr, err = s.m.GetAttr(s.ctx, f.Ino)
	require.NoError(t, err)
	require.Equal(t, uint32(1), attr.Nlink)

	mode := uint32(0o600)
	attr, err = s.m.SetAttr(s.ctx, f.Ino, dgm.SetAttr{Mode: &mode})
	require.NoError(t, err)
	require.Equal(t, uint32(syscall.S_IFREG|0o600), attr.Mode)
}

func rename(t *testing.T, s *suite) {
	a := s.make(gearsfs.RootIno, "a", dirMode)
	b := s.make(gearsfs.RootIno, "b", dirMode)
	f := s.make(a.Ino, "f", fileMode)
	g := s.make(b.Ino, "g", fileMode)
	require.NoError(t, s.m.Rename(s.ctx, dgm.Rename{Dir: a.Ino, Name: "f", NewDir: b.Ino, NewName: "g"}))
	attr, err := s.m.Lookup(s.ctx, b.Ino, "g")
	require.NoError(t, err)
	require.Equal(t, f.Ino, attr.Ino)
	_, err = s.m.GetAttr(s.ctx, g.Ino)
	require.ErrorIs(t, err, gearsfs.ErrStale)
	require.ErrorIs(t, s.m.Rename(s.ctx, dgm.Rename{Dir: gearsfs.RootIno, Name: "b", NewDir: b.Ino, NewName: "in"}), gearsfs.ErrInvalid)
	require.NoError(t, s.m.Rename(s.ctx, dgm.Rename{Dir: gearsfs.RootIno, Name: "b", NewDir: a.Ino, NewName: "b"}))
	parent, err := s.m.Parent(s.ctx, b.Ino)
	require.NoError(t, err)
	require.Equal(t, a.Ino, parent)
	const noReplace = 1
	s.make(gearsfs.RootIno, "x", fileMode)
	require.ErrorIs(t, s.m.Rename(s.ctx, dgm.Rename{
		Dir: gearsfs.RootIno, Name: "x", NewDir: b.Ino, NewName: "g", Flags: noReplace,
	}), gearsfs.ErrExists)
}

func bytesOfFile(t *testing.T, s *suite) {
	f := s.make(gearsfs.RootIno, "f", fileMode)
	want := make([]byte, 200_000)
	for i := range want {
		want[i] = byte(i * i)
	}
	for i := 0; i < len(want); i += 70_000 {
		_, err := s.m.Write(s.ctx, f.Ino, gearsfs.Pos(i), want[i:min(i+70_000, len(want))])
		require.NoError(t, err)
	}
	mode, mtime := uint32(0o600), time.Unix(7, 8)
	saved, err := s.m.Save(s.ctx, f.Ino, 0, want[:100_000], dgm.SetAttr{Mode: &mode, Mtime: &mtime})
	require.NoError(t, err)
	require.EqualValues(t, syscall.S_IFREG|0o600, saved.Mode)
	require.True(t, mtime.Equal(saved.Mtime))
	one := uint64(1)
	_, err = s.m.Save(s.ctx, f.Ino, 0, []byte("x"), dgm.SetAttr{Size: &one})
	require.ErrorIs(t, err, gearsfs.ErrInvalid)
	attr, err := s.m.Write(s.ctx, f.Ino, 100_000, []byte("changed"))
	require.NoError(t, err)
	copy(want[100_000:], "changed")
	require.Equal(t, uint64(len(want)), attr.Size)
	got, err := s.m.Read(s.ctx, f.Ino, 0, 1<<20, nil)
	require.NoError(t, err)
	require.True(t, bytes.Equal(want, got))

	size := uint64(50)
	_, err = s.m.SetAttr(s.ctx, f.Ino, dgm.SetAttr{Size: &size})
	require.NoError(t, err)
	size = 100
	attr, err = s.m.SetAttr(s.ctx, f.Ino, dgm.SetAttr{Size: &size})
	require.NoError(t, err)
	require.Equal(t, uint64(100), attr.Size)
	for _, room := range []int{0, 59, 60, 200} { // what is in the buffer before is not read
		got, err = s.m.Read(s.ctx, f.Ino, 40, 1<<20, bytes.Repeat([]byte{0xAA}, room))
		require.NoError(t, err)
		require.Equal(t, append(append([]byte{}, want[40:50]...), make([]byte, 50)...), got)
	}
	got, err = s.m.Read(s.ctx, f.Ino, 100, 10, nil)
	require.NoError(t, err)
	require.Empty(t, got)

	size = 1 << 40
	_, err = s.m.SetAttr(s.ctx, f.Ino, dgm.SetAttr{Size: &size})
	require.NoError(t, err)
	pos, err := s.m.Seek(s.ctx, f.Ino, 0, true)
	require.NoError(t, err)
	require.GreaterOrEqual(t, pos, gearsfs.Pos(50))
	_, err = s.m.Seek(s.ctx, f.Ino, pos, false)
	require.ErrorIs(t, err, gearsfs.ErrRange)
	require.NoError(t, s.m.Sync(s.ctx))
}

func appendIsPut(t *testing.T, s *suite) {
	f := s.make(gearsfs.RootIno, "queue", fileMode)
	attr, err := s.m.Append(s.ctx, f.Ino, []byte("one\n"))
	require.NoError(t, err)
	require.Equal(t, uint64(4), attr.Size)
	s.put(s.m, gearsfs.DataKey, "two\n")
	got, err := s.m.Read(s.ctx, f.Ino, 0, 100, nil)
	require.NoError(t, err)
	require.Equal(t, "one\ntwo\n", string(got))
	require.Equal(t, []string{"one\n"}, s.take(s.m, 1, gearsfs.DataKey))
	attr, err = s.m.GetAttr(s.ctx, f.Ino)
	require.NoError(t, err)
	require.True(t, attr.Taken)
	require.Equal(t, uint64(4), attr.Size)
	require.Equal(t, gearsfs.Pos(4), attr.Head)
	got, err = s.m.Read(s.ctx, f.Ino, 0, 100, nil) // a handle from before
	require.NoError(t, err)
	require.Equal(t, "\x00\x00\x00\x00two\n", string(got))
	_, err = s.m.Write(s.ctx, f.Ino, 0, []byte("x"))
	require.ErrorIs(t, err, gearsfs.ErrIO)
}

func openWithoutName(t *testing.T, s *suite) {
	f, err := s.m.Create(s.ctx, gearsfs.RootIno, "f", dgm.Make{Mode: fileMode})
	require.NoError(t, err)
	require.EqualValues(t, 1, f.Nlink)
	require.EqualValues(t, fileMode, f.Mode)
	again, err := s.m.Create(s.ctx, gearsfs.RootIno, "f", dgm.Make{Mode: fileMode})
	require.ErrorIs(t, err, gearsfs.ErrExists)
	require.Zero(t, again.Ino)
	_, err = s.m.Write(s.ctx, f.Ino, 0, []byte("content"))
	require.NoError(t, err)
	other := s.open(t)
	_, err = other.Open(s.ctx, f.Ino)
	require.NoError(t, err)
	require.NoError(t, other.Unlink(s.ctx, gearsfs.RootIno, "f"))
	require.NoError(t, s.m.Release(s.ctx, f.Ino))
	got, err := other.Read(s.ctx, f.Ino, 0, 100, nil)
	require.NoError(t, err)
	require.Equal(t, "content", string(got))
	attr, err := other.GetAttr(s.ctx, f.Ino)
	require.NoError(t, err)
	require.Zero(t, attr.Nlink)
	require.NoError(t, other.Close()) // releases it
	require.NoError(t, s.m.Sync(s.ctx))
	s.make(gearsfs.RootIno, "later", fileMode) // behind the session's end in the log
	_, err = s.m.GetAttr(s.ctx, f.Ino)
	require.ErrorIs(t, err, gearsfs.ErrStale)
	_, err = s.m.Open(s.ctx, f.Ino)
	require.ErrorIs(t, err, gearsfs.ErrStale)
}

// createAndLetGo: what was created stays without a name until it is let go as often as
// it is open, and not longer.
func createAndLetGo(t *testing.T, s *suite) {
	other := s.open(t)
	f, err := s.m.Create(s.ctx, gearsfs.RootIno, "f", dgm.Make{Mode: fileMode})
	require.NoError(t, err)
	_, err = s.m.Write(s.ctx, f.Ino, 0, []byte("content"))
	require.NoError(t, err)
	_, err = s.m.Open(s.ctx, f.Ino)
	require.NoError(t, err)
	require.NoError(t, other.Unlink(s.ctx, gearsfs.RootIno, "f"))
	require.NoError(t, s.m.LetGo(s.ctx, f.Ino))
	s.make(gearsfs.RootIno, "one", fileMode) // tells of it
	s.make(gearsfs.RootIno, "two", fileMode) // behind what that did
	attr, err := s.m.GetAttr(s.ctx, f.Ino)
	require.NoError(t, err, "it is open once more")
	require.Zero(t, attr.Nlink)
	got, err := s.m.Read(s.ctx, f.Ino, 0, 100, nil)
	require.NoError(t, err)
	require.Equal(t, "content", string(got))
	_, err = s.m.Open(s.ctx, f.Ino) // as of a handle that is opened by way of another
	require.NoError(t, err)
	require.NoError(t, s.m.LetGo(s.ctx, f.Ino))
	require.NoError(t, s.m.LetGo(s.ctx, f.Ino))
	s.make(gearsfs.RootIno, "three", fileMode)
	s.make(gearsfs.RootIno, "four", fileMode)
	_, err = s.m.GetAttr(s.ctx, f.Ino)
	require.ErrorIs(t, err, gearsfs.ErrStale)
	_, err = s.m.Open(s.ctx, f.Ino)
	require.ErrorIs(t, err, gearsfs.ErrStale)
}

func xattrs(t *testing.T, s *suite) {
	f := s.make(gearsfs.RootIno, "f", fileMode)
	require.NoError(t, s.m.SetXattr(s.ctx, f.Ino, "user.a", []byte("1"), 0))
	require.NoError(t, s.m.SetXattr(s.ctx, f.Ino, "user.b", nil, 0))
	const create, replace = 1, 2
	require.ErrorIs(t, s.m.SetXattr(s.ctx, f.Ino, "user.a", nil, create), gearsfs.ErrExists)
	require.ErrorIs(t, s.m.SetXattr(s.ctx, f.Ino, "user.c", nil, replace), gearsfs.ErrNoAttr)
	value, err := s.m.GetXattr(s.ctx, f.Ino, "user.a")
	require.NoError(t, err)
	require.Equal(t, "1", string(value))
	names, err := s.m.ListXattr(s.ctx, f.Ino)
	require.NoError(t, err)
	require.Equal(t, []string{"user.a", "user.b"}, names)
	require.NoError(t, s.m.RemoveXattr(s.ctx, f.Ino, "user.a"))
	_, err = s.m.GetXattr(s.ctx, f.Ino, "user.a")
	require.ErrorIs(t, err, gearsfs.ErrNoAttr)
	require.ErrorIs(t, s.m.RemoveXattr(s.ctx, f.Ino, "user.a"), gearsfs.ErrNoAttr)
}

func readDirPages(t *testing.T, s *suite) {
	d := s.make(gearsfs.RootIno, "d", dirMode)
	for i := range 250 {
		s.make(d.Ino, fmt.Sprintf("%03d", i), fileMode)
	}
	var names []string
	after := ""
	for {
		entries, err := s.m.ReadDir(s.ctx, d.Ino, after, 70)
		require.NoError(t, err)
		if len(entries) == 0 {
			break
		}
		for _, e := range entries {
			require.NotZero(t, e.Attr.Ino)
			names = append(names, e.Name)
			after = e.Name
		}
	}
	require.Len(t, names, 250)
	require.IsIncreasing(t, names)
}

func watch(t *testing.T, s *suite) {
	ctx, cancel := context.WithCancel(s.ctx)
	started, seen, ended := make(chan struct{}), make(chan gearsfs.Change, 100), make(chan error, 1)
	go func() {
		ended <- s.m.Watch(ctx, func() { close(started) }, func(cs []gearsfs.Change) {
			for _, c := range cs {
				seen <- c
			}
		})
	}()
	<-started
	_, err := s.m.Make(s.ctx, gearsfs.RootIno, "mine", dgm.Make{Mode: fileMode})
	require.NoError(t, err)
	other := s.open(t)
	attr, err := other.Make(s.ctx, gearsfs.RootIno, "theirs", dgm.Make{Mode: fileMode})
	require.NoError(t, err)
	_, err = other.Write(s.ctx, attr.Ino, 0, []byte("x"))
	require.NoError(t, err)
	var named, written bool
	for !named || !written {
		select {
		case c := <-seen:
			require.NotEqual(t, "mine", c.Name)
			named = named || c.Name == "theirs" && c.Ino == gearsfs.RootIno
			written = written || c.Ino == attr.Ino && c.Data
		case <-s.ctx.Done():
			t.Fatal("not told")
		}
	}
	cancel()
	require.ErrorIs(t, <-ended, context.Canceled)
}

func waits(t *testing.T, s *suite) {
	s.put(s.m, "cuont", "x")
	m := s.open(t)
	out := s.takeLater(s.ctx, m, takeOf("count"))
	ws, err := s.m.Waits(s.ctx)
	require.NoError(t, err)
	require.Len(t, ws, 1)
	require.Equal(t, "take", ws[0].Op)
	require.Equal(t, []gearsfs.Key{"count"}, ws[0].Keys)
	require.Equal(t, "/queue", ws[0].Path)
	require.Equal(t, m.Session(), ws[0].Session)
	require.Equal(t, []gearsfs.Key{"cuont"}, ws[0].Near)
	info, err := s.m.Stream(s.ctx, queue, "cuont")
	require.NoError(t, err)
	require.Zero(t, info.Waiting)
	s.put(s.m, "count", "x")
	s.receive(out)
}

func remotes(t *testing.T, s *suite) {
	require.NoError(t, s.m.SetRemote(s.ctx, "b", "127.0.0.1:4711"))
	require.NoError(t, s.m.SetRemote(s.ctx, "c", "unix:/run/c.sock,10.0.0.1:1"))
	all, err := s.m.Remotes(s.ctx)
	require.NoError(t, err)
	require.Equal(t, map[string]string{"b": "127.0.0.1:4711", "c": "unix:/run/c.sock,10.0.0.1:1"}, all)
	require.NoError(t, s.m.SetRemote(s.ctx, "b", ""))
	all, err = s.m.Remotes(s.ctx)
	require.NoError(t, err)
	require.Len(t, all, 1)
	require.ErrorIs(t, s.m.SetRemote(s.ctx, "a:b", "127.0.0.1:1"), gearsfs.ErrInvalid)
	require.ErrorIs(t, s.m.SetRemote(s.ctx, "d", "nonsense"), gearsfs.ErrInvalid)
}

func status(t *testing.T, s *suite) {
	s.put(s.m, "k", "x")
	st, err := s.m.Status(s.ctx)
	require.NoError(t, err)
	require.Equal(t, "main", st.Volume)
	require.NotEmpty(t, st.Leader)
	require.NotZero(t, st.Applied)
	require.GreaterOrEqual(t, st.Durable, gearsfs.Index(1))
	if st.Role == "leader" {
		require.NotZero(t, st.Sessions)
	} else {
		require.Equal(t, "voter", st.Role)
	}
	usage, err := s.m.StatFS(s.ctx, gearsfs.RootIno)
	require.NoError(t, err)
	require.GreaterOrEqual(t, usage.Inodes, uint64(2))
}

func nodes(t *testing.T, s *suite) {
	all, err := s.m.Nodes(s.ctx)
	require.NoError(t, err)
	st, err := s.m.Status(s.ctx)
	require.NoError(t, err)
	names := make(map[string]bool)
	leaders := 0
	for _, n := range all {
		require.True(t, n.Reachable, n.Trouble)
		require.False(t, names[n.Name], "two nodes are called %s", n.Name)
		names[n.Name] = true
		if n.Role == "leader" {
			leaders++
			require.Equal(t, st.Leader, n.Name)
			require.NoError(t, s.m.TransferLeader(s.ctx, n.Name), "it leads already")
			require.ErrorIs(t, s.m.RemoveNode(s.ctx, n.Name), gearsfs.ErrBusy)
		}
	}
	require.True(t, names[st.Name])
	require.Equal(t, 1, leaders)
	require.ErrorIs(t, s.m.RemoveNode(s.ctx, "nobody"), gearsfs.ErrNotFound)
	require.ErrorIs(t, s.m.TransferLeader(s.ctx, "nobody"), gearsfs.ErrNotFound)
	require.NoError(t, s.m.Verify(s.ctx))
}

func closeEndsWaits(t *testing.T, s *suite) {
	m := s.open(t)
	out := s.takeLater(s.ctx, m, takeOf("k"))
	require.NoError(t, m.Close())
	require.Error(t, s.outcome(out).err)
	s.untilWaiting(0)
	require.NoError(t, m.Close(), "Close is idempotent")
	_, err := m.Take(s.ctx, takeOf("k"))
	require.Error(t, err)
}
