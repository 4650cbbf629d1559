package dgmtest

import (
	"context"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm"
)

// putLater starts a put and returns when it waits.
func (s *suite) putLater(ctx context.Context, m dgm.Manager, key gearsfs.Key, data string) <-chan error {
	s.t.Helper()
	before := s.waiting()
	out := make(chan error, 1)
	go func() {
		_, err := m.Put(ctx, dgm.Put{File: queue, Key: key, Records: []gearsfs.NewRecord{{Data: []byte(data)}}})
		out <- err
	}()
	s.untilWaiting(before + 1)
	return out
}

func repeatedKeys(t *testing.T, s *suite) {
	for range 2 { // for a missing file, then for one that is there
		out := s.takeLater(s.ctx, s.open(t), takeOf("k", "k", "l", "k"))
		s.put(s.m, "k", "a", "b")
		require.Equal(t, []string{"a"}, texts(s.receive(out)))
		require.Equal(t, []string{"b"}, s.take(s.m, 5, "k", "k"))
	}
	out := s.takeLater(s.ctx, s.open(t), takeOf("k", "k"))
	sealed := true
	require.NoError(t, s.m.Configure(s.ctx, queue, "k", dgm.StreamChange{Seal: &sealed}))
	require.ErrorIs(t, s.outcome(out).err, gearsfs.ErrEnd)
	require.Zero(t, s.waiting())
}

// cancelledPutLetsOthersBy: a put that waits for more room than there is goes,
// and the next one fits.
func cancelledPutLetsOthersBy(t *testing.T, s *suite) {
	s.put(s.m, "k", strings.Repeat("x", 60))
	s.limit("k", gearsfs.Limits{Bytes: 100})
	ctx, cancel := context.WithCancel(s.ctx)
	big := s.putLater(ctx, s.open(t), "k", strings.Repeat("y", 60))
	small := s.putLater(s.ctx, s.open(t), "k", "small")
	cancel()
	require.ErrorIs(t, <-big, context.Canceled)
	select {
	case err := <-small:
		require.NoError(t, err)
	case <-s.ctx.Done():
		t.Fatal("the small put still waits")
	}
	gone := s.putLater(s.ctx, s.m, "k", strings.Repeat("y", 60))
	m := s.open(t)
	closing := s.putLater(s.ctx, m, "k", strings.Repeat("y", 60))
	require.NoError(t, m.Close())
	require.ErrorIs(t, <-closing, gearsfs.ErrClosed)
	s.limit("k", gearsfs.Limits{Bytes: 1000})
	require.NoError(t, <-gone)
}

// notAFile: what a wait is for appears, but nothing can be taken from it.
func notAFile(t *testing.T, s *suite) {
	out := s.takeLater(s.ctx, s.open(t), takeOf("k"))
	peeked := make(chan error, 1)
	m := s.open(t)
	go func() {
		_, err := m.Peek(s.ctx, dgm.Peek{File: queue, Key: "k"})
		peeked <- err
	}()
	s.untilWaiting(2)
	dir := s.make(gearsfs.RootIno, "queue", dirMode)
	require.ErrorIs(t, s.outcome(out).err, gearsfs.ErrIsDir)
	require.ErrorIs(t, <-peeked, gearsfs.ErrIsDir)
	_, err := s.m.Take(s.ctx, takeOf("k"))
	require.ErrorIs(t, err, gearsfs.ErrIsDir)
	_, err = s.m.Take(s.ctx, dgm.Take{File: queue, Keys: []gearsfs.Key{"k"}, NoWait: true})
	require.ErrorIs(t, err, gearsfs.ErrIsDir)
	_, err = s.m.Take(s.ctx, dgm.Take{File: gearsfs.ByIno(4711), Keys: []gearsfs.Key{"k"}})
	require.ErrorIs(t, err, gearsfs.ErrStale)

	below := dgm.Take{File: gearsfs.At("/queue/none"), Keys: []gearsfs.Key{"k"}}
	out = s.takeLater(s.ctx, s.open(t), below)
	require.NoError(t, s.m.Rmdir(s.ctx, gearsfs.RootIno, "queue"))
	require.ErrorIs(t, s.outcome(out).err, gearsfs.ErrRemoved)
	_, err = s.m.Take(s.ctx, dgm.Take{File: gearsfs.ByIno(dir.Ino), Keys: []gearsfs.Key{"k"}})
	require.Error(t, err)
}

// linkAppears: where the name that a wait is for becomes a symbolic link, the
// wait is for what that leads to.
func linkAppears(t *testing.T, s *suite) {
	out := s.takeLater(s.ctx, s.open(t), takeOf("k"))
	_, err := s.m.Make(s.ctx, gearsfs.RootIno, "queue", dgm.Make{Mode: linkMode, Target: "far"})
	require.NoError(t, err)
	s.untilWaiting(1)
	_, err = s.m.Put(s.ctx, dgm.Put{File: gearsfs.At("/far"), Key: "k", Records: []gearsfs.NewRecord{{Data: []byte("x")}}})
	require.NoError(t, err)
	require.Equal(t, []string{"x"}, texts(s.receive(out)))
}

// renamedInto: a file comes to the name that a wait is for, with its records.
func renamedInto(t *testing.T, s *suite) {
	first := s.takeLater(s.ctx, s.open(t), takeOf("l", "k"))
	second := s.takeLater(s.ctx, s.open(t), takeOf("k"))
	_, err := s.m.Put(s.ctx, dgm.Put{File: gearsfs.At("/other"), Key: "k", Records: []gearsfs.NewRecord{{Data: []byte("1")}, {Data: []byte("2")}}})
	require.NoError(t, err)
	require.NoError(t, s.m.Rename(s.ctx, dgm.Rename{Dir: gearsfs.RootIno, Name: "other", NewDir: gearsfs.RootIno, NewName: "queue"}))
	require.Len(t, s.receive(first), 1)
	require.Len(t, s.receive(second), 1)
}

// anyBytes: POSIX allows every byte but NUL and the slash in names, and every
// byte in what a symbolic link says.
func anyBytes(t *testing.T, s *suite) {
	const name = "\xff\xfe\x80 \xc3\x28"
	dir := s.make(gearsfs.RootIno, name, dirMode)
	path := "/" + name + "/" + name
	_, err := s.m.Put(s.ctx, dgm.Put{File: gearsfs.At(path), Key: "k", Records: []gearsfs.NewRecord{{Data: []byte("x"), Type: name}}})
	require.NoError(t, err)
	attr, err := s.m.Resolve(s.ctx, path, true)
	require.NoError(t, err)
	found, err := s.m.Lookup(s.ctx, dir.Ino, name)
	require.NoError(t, err)
	require.Equal(t, attr.Ino, found.Ino)
	rs, err := s.m.Take(s.ctx, dgm.Take{File: gearsfs.At(path), Keys: []gearsfs.Key{"k"}, Lease: true})
	require.NoError(t, err)
	require.Equal(t, name, rs[0].Type)
	require.NoError(t, s.m.Settle(s.ctx, dgm.Settle{Receipts: receipts(rs)}))
	out := s.takeLater(s.ctx, s.open(t), dgm.Take{File: gearsfs.At(path), Keys: []gearsfs.Key{"k"}})
	waits, err := s.m.Waits(s.ctx)
	require.NoError(t, err)
	require.Equal(t, path, waits[0].Path)
	require.NoError(t, s.m.Unlink(s.ctx, dir.Ino, name))
	require.ErrorIs(t, s.outcome(out).err, gearsfs.ErrRemoved)
	link, err := s.m.Make(s.ctx, dir.Ino, "link", dgm.Make{Mode: linkMode, Target: name})
	require.NoError(t, err)
	to, err := s.m.Readlink(s.ctx, link.Ino)
	require.NoError(t, err)
	require.Equal(t, name, to)
	require.NoError(t, s.m.SetXattr(s.ctx, dir.Ino, "user."+name, []byte(name), 0))
	names, err := s.m.ListXattr(s.ctx, dir.Ino)
	require.NoError(t, err)
	require.Equal(t, []string{"user." + name}, names)
	entries, err := s.m.ReadDir(s.ctx, gearsfs.RootIno, "", 10)
	require.NoError(t, err)
	require.Equal(t, name, entries[0].Name)
}

// nearMisses: who waits for a key learns of another that looks like it, also
// where that has gone again, or is in another file than the missing one.
func nearMisses(t *testing.T, s *suite) {
	out := s.takeLater(s.ctx, s.open(t), takeOf("count"))
	s.put(s.m, "cuont", "x")
	waits, err := s.m.Waits(s.ctx)
	require.NoError(t, err)
	require.Equal(t, []gearsfs.Key{"cuont"}, waits[0].Near)
	near, err := s.m.Near(s.ctx, queue, []gearsfs.Key{"count", "other"})
	require.NoError(t, err)
	require.Equal(t, []gearsfs.Key{"cuont"}, near)
	near, err = s.m.Near(s.ctx, gearsfs.At("/missing"), []gearsfs.Key{"count"})
	require.NoError(t, err)
	require.Equal(t, []gearsfs.Key{"cuont"}, near)
	require.NoError(t, s.m.Configure(s.ctx, queue, "cuont", dgm.StreamChange{Drop: true}))
	near, err = s.m.Near(s.ctx, queue, []gearsfs.Key{"count"})
	require.NoError(t, err)
	require.Equal(t, []gearsfs.Key{"cuont"}, near)
	s.put(s.m, "count", "y")
	s.receive(out)
}

// followMissesNothing: each of many readers sees every record once, at its own
// pace, whether it is taken meanwhile or not yet there.
func followMissesNothing(t *testing.T, s *suite) {
	const readers, records = 4, 200
	s.put(s.m, "k", "0")
	var all sync.WaitGroup
	for range readers {
		m := s.open(t)
		all.Go(func() {
			var after gearsfs.Seq
			for after < records {
				rs, err := m.Peek(s.ctx, dgm.Peek{File: queue, Key: "k", Follow: true, After: after, Max: 3})
				if err != nil {
					t.Errorf("after %d: %v", after, err)
					return
				}
				for _, r := range rs {
					if r.Place.Seq != after+1 {
						t.Errorf("seq %d came after %d", r.Place.Seq, after)
						return
					}
					after = r.Place.Seq
				}
			}
		})
	}
	for i := 1; i < records; i++ {
		s.put(s.m, "k", strconv.Itoa(i))
	}
	all.Wait()
}
