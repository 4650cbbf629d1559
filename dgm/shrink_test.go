package dgm_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm"
)

// large makes a file of some GiB out of a few MiB, which its copies share.
func large(t *testing.T, m dgm.Manager, name string, size uint64) (ino gearsfs.Ino, piece []byte) {
	t.Helper()
	piece = noise(3, 4<<20)
	from := makeFile(t, m, name+".piece")
	write(t, m, from, piece)
	ino = makeFile(t, m, name)
	for at := uint64(0); at < size; at += uint64(len(piece)) {
		n, _, err := m.CopyRange(t.Context(), dgm.CopyRange{From: from, To: ino, ToPos: gearsfs.Pos(at), Length: uint64(len(piece))})
		require.NoError(t, err)
		require.EqualValues(t, len(piece), n)
	}
	return ino, piece
}

// What is too large to be removed at once goes in steps: truncated, punched and
// removed files are what they should be when that is answered, other operations
// come between, and nothing stays behind.
func TestLargeRemovals(t *testing.T) {
	dir := t.TempDir()
	const size = 1 << 30
	var kept gearsfs.Ino
	t.Run("first", func(t *testing.T) {
		m := local(t, openVolume(t, dir))
		ino, piece := large(t, m, "f", size)
		keep := uint64(5_000_000)
		attr, err := m.SetAttr(t.Context(), ino, dgm.SetAttr{Size: &keep})
		require.NoError(t, err)
		require.Equal(t, keep, attr.Size)
		requireFile(t, append(append([]byte{}, piece...), piece[:keep-uint64(len(piece))]...), m, ino)

		kept, piece = large(t, m, "g", size)
		require.NoError(t, m.Allocate(t.Context(), kept, 4096, size-8192, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE))
		attr, err = m.GetAttr(t.Context(), kept)
		require.NoError(t, err)
		require.EqualValues(t, size, attr.Size)
		for at, want := range map[gearsfs.Pos][]byte{0: piece[:4096], 4096: make([]byte, 4096), size - 8192: make([]byte, 4096), size - 4096: piece[len(piece)-4096:]} {
			got, err := m.Read(t.Context(), kept, at, 4096, nil)
			require.NoError(t, err)
			require.Equal(t, want, got, "at %d", at)
		}
		large(t, m, "h", size)
		require.NoError(t, m.Unlink(t.Context(), gearsfs.RootIno, "h"))
		require.NoError(t, m.Unlink(t.Context(), gearsfs.RootIno, "h.piece"))
		_, err = m.Make(t.Context(), gearsfs.RootIno, "h", dgm.Make{Mode: 0o100644})
		require.NoError(t, err, "the name is free at once")
	})
	vol := openVolume(t, dir) // what was not gone yet goes now
	m := local(t, vol)
	for _, name := range []string{"f", "f.piece", "g", "g.piece", "h"} {
		require.NoError(t, m.Unlink(t.Context(), gearsfs.RootIno, name))
	}
	require.NoError(t, m.Sync(t.Context()))
	require.Eventually(t, func() bool { return blockBytes(t, dir) == 0 }, time.Minute, 10*time.Millisecond)
}
