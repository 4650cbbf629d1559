package blocktest

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"testing"

	"github.com/gearsfs/gearsfs/block"
	"github.com/stretchr/testify/require"
)

// TestFS is what every block.FS passes; dir is an empty directory of it.
func TestFS(t *testing.T, fsys block.FS, dir string) {
	sub := filepath.Join(dir, "sub")
	require.NoError(t, fsys.MakeDir(sub))
	require.ErrorIs(t, fsys.MakeDir(sub), fs.ErrExist)
	require.ErrorIs(t, fsys.MakeDir(filepath.Join(dir, "a", "b")), fs.ErrNotExist)
	path := filepath.Join(sub, "file")
	_, err := fsys.Open(path)
	require.ErrorIs(t, err, fs.ErrNotExist)
	_, err = fsys.Stat(path)
	require.ErrorIs(t, err, fs.ErrNotExist)
	require.ErrorIs(t, fsys.Remove(path), fs.ErrNotExist)
	_, err = fsys.List(filepath.Join(dir, "none"))
	require.ErrorIs(t, err, fs.ErrNotExist)

	f, err := fsys.Create(path)
	require.NoError(t, err)
	_, err = fsys.Create(path)
	require.ErrorIs(t, err, fs.ErrExist)
	require.NoError(t, fsys.SyncDir(sub))
	require.NoError(t, fsys.SyncAll(dir))
	names, err := fsys.List(sub)
	require.NoError(t, err)
	require.Equal(t, []string{"file"}, names)

	testFile(t, fsys, f, path)

	again, err := fsys.Open(path)
	require.NoError(t, err)
	require.NoError(t, fsys.Remove(path))
	b := make([]byte, 3)
	_, err = again.ReadAt(b, 0)
	require.NoError(t, err, "a file without a name is still there for who has it open")
	require.NoError(t, again.Close())
	require.NoError(t, f.Close())
	require.Error(t, f.Close())
	_, err = f.ReadAt(b, 0)
	require.ErrorIs(t, err, fs.ErrClosed)
	names, err = fsys.List(sub)
	require.NoError(t, err)
	require.Empty(t, names)
}

func testFile(t *testing.T, fsys block.FS, f block.File, path string) {
	const big = 1 << 20
	_, _, err := f.Data(0)
	require.ErrorIs(t, err, io.EOF)
	content := bytes.Repeat([]byte("gear"), 3*pageBytes/4)
	for _, off := range []int64{0, big} {
		n, err := f.WriteAt(content, off)
		require.NoError(t, err)
		require.Equal(t, len(content), n)
	}
	for range 2 { // also before anything is on disk
		sparse := data(t, f)
		if len(sparse) > 1 {
			require.Equal(t, [][2]int64{{0, 3 * pageBytes}, {big, big + 3*pageBytes}}, sparse)
		}
		require.NoError(t, f.Sync())
	}
	info, err := fsys.Stat(path)
	require.NoError(t, err)
	require.Equal(t, int64(big+len(content)), info.Size)
	require.GreaterOrEqual(t, info.Allocated, int64(2*len(content)))
	require.False(t, info.Changed.IsZero())

	got := make([]byte, 2*len(content))
	n, err := f.ReadAt(got, big+1)
	require.ErrorIs(t, err, io.EOF)
	require.Equal(t, content[1:], got[:n])

	err = f.Punch(big, 2*pageBytes)
	if errors.Is(err, errors.ErrUnsupported) {
		return
	}
	require.NoError(t, err)
	n, err = f.ReadAt(got[:len(content)], big)
	require.NoError(t, err)
	require.Equal(t, slices.Concat(make([]byte, 2*pageBytes), content[2*pageBytes:]), got[:n])
	if sparse := data(t, f); len(sparse) > 1 {
		require.Equal(t, [][2]int64{{0, 3 * pageBytes}, {big + 2*pageBytes, big + 3*pageBytes}}, sparse)
		less, err := fsys.Stat(path)
		require.NoError(t, err)
		require.Less(t, less.Allocated, info.Allocated)
		require.Equal(t, info.Size, less.Size)
	}
	require.NoError(t, f.Punch(big+2*pageBytes, 8*pageBytes), "also behind the end")
	info, err = fsys.Stat(path)
	require.NoError(t, err)
	require.Equal(t, int64(big+len(content)), info.Size)
}

// data returns the ranges of a file that are no holes.
func data(t *testing.T, f block.File) (ranges [][2]int64) {
	for off := int64(0); ; {
		start, end, err := f.Data(off)
		if errors.Is(err, io.EOF) {
			return ranges
		}
		require.NoError(t, err)
		require.Less(t, start, end)
		ranges = append(ranges, [2]int64{start, end})
		off = end
	}
}
