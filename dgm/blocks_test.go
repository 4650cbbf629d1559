package dgm_test

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm"
)

// noise returns bytes that do not compress and are not zeros.
func noise(seed byte, n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{seed}).Read(b) //nolint:errcheck // always nil
	return b
}

// segments are the files of the block store in a data directory.
func segments(t *testing.T, dir string) (paths []string) {
	t.Helper()
	err := filepath.WalkDir(filepath.Join(dir, "blocks"), func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			paths = append(paths, path)
		}
		return err
	})
	require.NoError(t, err)
	return paths
}

// blockBytes is what the block store in a data directory has on disk.
func blockBytes(t *testing.T, dir string) (n uint64) {
	t.Helper()
	err := filepath.WalkDir(filepath.Join(dir, "blocks"), func(_ string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil // it is gone
		}
		if err == nil {
			n += uint64(info.Sys().(*syscall.Stat_t).Blocks) * 512
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	return n
}

// lacks counts what the rows of a volume refer to and its node does not have.
func lacks(t *testing.T, vol *dgm.Volume) (n int) {
	t.Helper()
	report, err := vol.Fsck(t.Context(), false, 0, nil)
	if err != nil {
		t.Error(err)
	}
	for _, f := range report.Faults {
		if f.What == gearsfs.FaultMissing {
			n++
		}
	}
	return n
}

func makeFile(t *testing.T, m dgm.Manager, name string) gearsfs.Ino {
	t.Helper()
	attr, err := m.Make(t.Context(), gearsfs.RootIno, name, dgm.Make{Mode: 0o100644})
	require.NoError(t, err)
	return attr.Ino
}

// write writes data from the beginning of a file on, in pieces as a mount does.
func write(t *testing.T, m dgm.Manager, ino gearsfs.Ino, data []byte) {
	t.Helper()
	for pos := 0; pos < len(data); pos += 1 << 20 {
		_, err := m.Write(t.Context(), ino, gearsfs.Pos(pos), data[pos:min(pos+1<<20, len(data))])
		require.NoError(t, err)
	}
}

func read(ctx context.Context, m dgm.Manager, ino gearsfs.Ino) ([]byte, error) {
	var all []byte
	for {
		data, err := m.Read(ctx, ino, gearsfs.Pos(len(all)), 1<<20, nil)
		if err != nil || len(data) == 0 {
			return all, err
		}
		all = append(all, data...)
	}
}

func requireFile(t *testing.T, want []byte, m dgm.Manager, ino gearsfs.Ino) {
	t.Helper()
	got, err := read(t.Context(), m, ino)
	require.NoError(t, err)
	require.True(t, bytes.Equal(want, got), "%d bytes, %d are wanted", len(got), len(want))
}

// Large payloads come back as they were, from the volume that took them and from
// one that was opened again, and leave nothing behind when they are gone.
func TestLargePayloads(t *testing.T) {
	dir := t.TempDir()
	sizes := []int{64 << 10, 64<<10 + 1, 100_000, 1 << 20, 3<<20 + 5, gearsfs.RecordBytesMax - 5}
	file := noise(9, 5<<20+77)
	var ino gearsfs.Ino
	t.Run("put", func(t *testing.T) {
		m := local(t, openVolume(t, dir))
		for i, n := range sizes {
			_, err := m.Put(t.Context(), dgm.Put{File: gearsfs.At("/q"), Key: "k", Records: []gearsfs.NewRecord{{Data: noise(byte(i), n)}, {Data: []byte("small")}}})
			require.NoError(t, err)
		}
		ino = makeFile(t, m, "f")
		write(t, m, ino, file)
		requireFile(t, file, m, ino)
	})
	require.NotEmpty(t, segments(t, dir))
	vol := openVolume(t, dir)
	m := local(t, vol)
	requireFile(t, file, m, ino)
	for i, n := range sizes {
		for _, want := range [][]byte{noise(byte(i), n), []byte("small")} {
			peeked, err := m.Peek(t.Context(), dgm.Peek{File: gearsfs.At("/q"), Key: "k"})
			require.NoError(t, err)
			require.True(t, bytes.Equal(want, peeked[0].Data))
			taken, err := m.Take(t.Context(), dgm.Take{File: gearsfs.At("/q"), Keys: []gearsfs.Key{"k"}})
			require.NoError(t, err)
			require.True(t, bytes.Equal(want, taken[0].Data))
		}
	}
	require.NoError(t, m.Unlink(t.Context(), gearsfs.RootIno, "f"))
	require.NoError(t, m.Unlink(t.Context(), gearsfs.RootIno, "q"))
	require.NoError(t, m.Sync(t.Context()))
	require.Eventually(t, func() bool { return blockBytes(t, dir) == 0 }, 20*time.Second, 10*time.Millisecond)
}

// A write over what is there, in pieces of any size at any place, is read back,
// and the volume does not grow with it for ever.
func TestOverwrites(t *testing.T) {
	dir := t.TempDir()
	vol := openVolume(t, dir)
	m := local(t, vol)
	want := noise(1, 4<<20)
	ino := makeFile(t, m, "f")
	write(t, m, ino, want)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	for i := range 1500 {
		n := []int{1, 100, 4096, 5000, 70_000, 300_000}[rng.IntN(6)]
		at := rng.IntN(len(want) - n)
		if rng.IntN(2) == 0 {
			at &^= 4095
		}
		data := noise(byte(i), n)
		copy(want[at:], data)
		_, err := m.Write(t.Context(), ino, gearsfs.Pos(at), data)
		require.NoError(t, err)
	}
	requireFile(t, want, m, ino)
	require.NoError(t, m.Sync(t.Context()))
	require.Eventually(t, func() bool { return blockBytes(t, dir) < 3*uint64(len(want)) }, 5*time.Second, 10*time.Millisecond, "%d", blockBytes(t, dir))
}

// What a client says is in the block store is not believed.
func TestExtentsOfClients(t *testing.T) {
	vol := openVolume(t, t.TempDir())
	m := local(t, vol)
	ino := makeFile(t, m, "secret")
	write(t, m, ino, noise(1, 1<<20))
	l := listenTCP(t)
	serve(t, vol, l)
	err := dial(t, l.Addr().String(), dgm.RemoteOptions{}).WriteExtents(t.Context(), ino)
	require.ErrorIs(t, err, gearsfs.ErrInvalid)
}

// damage changes a byte in the middle of a page of a data directory's segments.
func damage(t *testing.T, dir string) {
	t.Helper()
	path := segments(t, dir)[0]
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	require.NoError(t, err)
	defer f.Close()
	b := make([]byte, 1)
	_, err = f.ReadAt(b, 8192+100)
	require.NoError(t, err)
	b[0] ^= 1
	_, err = f.WriteAt(b, 8192+100)
	require.NoError(t, err)
}

// Where bytes are damaged and nobody else has them, reading these fails, and
// reading others does not.
func TestDamagedBlock(t *testing.T) {
	dir := t.TempDir()
	vol := openVolume(t, dir)
	m := local(t, vol)
	want := noise(1, 1<<20)
	ino := makeFile(t, m, "f")
	write(t, m, ino, want)
	damage(t, dir)
	_, err := m.Read(t.Context(), ino, 8192, 4096, nil)
	require.ErrorIs(t, err, gearsfs.ErrDamaged)
	require.ErrorContains(t, err, segments(t, dir)[0])
	for _, at := range []int{0, 4096, 12288, 1<<20 - 4096} {
		got, err := m.Read(t.Context(), ino, gearsfs.Pos(at), 4096, nil)
		require.NoError(t, err)
		require.True(t, bytes.Equal(want[at:at+4096], got))
	}
	status, err := m.Status(t.Context())
	require.NoError(t, err)
	require.Contains(t, strings.Join(status.Warnings, "\n"), "damaged")
}

// Each node has the bytes that any of them took; one that was away gets them
// when it is back, and damage is mended from another node.
func TestBlocksOfNodes(t *testing.T) {
	c := newNodes(t, "a", "b", "c")
	want := noise(1, 3<<20+1)
	m := local(t, c.leader().vol)
	far := local(t, c.follower().vol)
	near := makeFile(t, m, "near")
	write(t, m, near, want)
	distant := makeFile(t, far, "distant")
	write(t, far, distant, want)
	r := dial(t, c.addrs(), dgm.RemoteOptions{})
	_, err := r.Put(t.Context(), dgm.Put{File: gearsfs.At("/q"), Key: "k", Records: []gearsfs.NewRecord{{Data: want}}})
	require.NoError(t, err)
	away := c.follower()
	away.close()
	_, err = r.Put(t.Context(), dgm.Put{File: gearsfs.At("/q"), Key: "k", Records: []gearsfs.NewRecord{{Data: want[:1<<20]}}})
	require.NoError(t, err)
	_, err = m.Write(t.Context(), near, 0, want[:1<<20])
	require.NoError(t, err)
	require.NoError(t, away.start(""))
	for _, n := range c.all {
		require.NoError(t, n.vol.Whole(t.Context()), n.name)
		require.Eventually(t, func() bool { return lacks(t, n.vol) == 0 }, 20*time.Second, 10*time.Millisecond, n.name)
		l := local(t, n.vol)
		for _, ino := range []gearsfs.Ino{near, distant} {
			attr, err := l.Open(t.Context(), ino)
			require.NoError(t, err)
			require.EqualValues(t, len(want), attr.Size)
			requireFile(t, want, l, ino)
			require.NoError(t, l.Release(t.Context(), ino))
		}
	}
	damage(t, away.dir)
	for _, ino := range []gearsfs.Ino{near, distant} {
		requireFile(t, want, local(t, away.vol), ino)
	}
	require.Empty(t, away.status().Warnings)
	for _, n := range []int{len(want), 1 << 20} {
		taken, err := r.Take(t.Context(), dgm.Take{File: gearsfs.At("/q"), Keys: []gearsfs.Key{"k"}})
		require.NoError(t, err)
		require.True(t, bytes.Equal(want[:n], taken[0].Data))
	}
}

// A node says that it has all bytes only where it knows that its state is all that
// was committed: with what it has not applied yet it may lack others.
func TestWholeOfWhatIsCommitted(t *testing.T) {
	t.Parallel()
	c := newNodes(t, "a", "b", "c")
	makeFile(t, local(t, c.leader().vol), "f")
	last := c.follower()
	require.NoError(t, last.vol.AnswerWhole(t.Context()))
	for _, n := range c.all {
		if n != last {
			n.close()
		}
	}
	require.NoError(t, last.vol.Whole(t.Context()))
	require.ErrorIs(t, last.vol.AnswerWhole(t.Context()), gearsfs.ErrBusy)
}

// A node that joins has all bytes before it has a vote: the others may go then.
func TestBlocksOfJoiner(t *testing.T) {
	c := newNodes(t, "a")
	m := local(t, c.all[0].vol)
	want := noise(2, 8<<20)
	ino := makeFile(t, m, "f")
	write(t, m, ino, want)
	for _, name := range []string{"b", "c"} {
		n := c.add(name)
		require.NoError(t, n.start(c.all[0].addr()))
		require.NoError(t, n.vol.WaitVoter(t.Context(), nil))
		require.Zero(t, lacks(t, n.vol), name)
	}
	c.all[0].close()
	c.leader()
	for _, n := range c.all[1:] {
		requireFile(t, want, local(t, n.vol), ino)
	}
}

// Changes of a session are made in the order in which they were asked for, though the
// payloads of some, small and large, are stored first, several at once.
func TestPayloadsInOrder(t *testing.T) {
	c := newNodes(t, "a", "b", "c")
	r := dial(t, c.addrs(), dgm.RemoteOptions{Lasting: &dgm.Lasting{Note: func(gearsfs.SessionID, uint64) {}}})
	ino := makeFile(t, r, "f")
	want := noise(1, 2<<20)
	write(t, r, ino, want) // from now on pages of it go to the block store
	rng := rand.New(rand.NewPCG(3, 4))
	var asking sync.WaitGroup
	for range 300 {
		n := []int{100, 4096, 9000, 200_000}[rng.IntN(4)]
		pos := rng.IntN(len(want) - n)
		data := noise(byte(rng.Uint32()), n)
		copy(want[pos:], data)
		begun := make(chan struct{})
		ctx := dgm.WithOnce(t.Context(), &dgm.Once{Record: func(dgm.Numbered) { close(begun) }})
		asking.Go(func() {
			_, err := r.Write(ctx, ino, gearsfs.Pos(pos), data)
			assert.NoError(t, err)
		})
		<-begun
	}
	asking.Wait()
	requireFile(t, want, r, ino)
}
