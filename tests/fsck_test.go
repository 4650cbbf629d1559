package tests

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// segmentFiles are the files of the block store of a daemon, by their size.
func segmentFiles(t testing.TB, data string) (paths []string) {
	t.Helper()
	require.NoError(t, filepath.WalkDir(filepath.Join(data, "blocks"), func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			paths = append(paths, path)
		}
		return err
	}))
	return paths
}

// flip changes a byte of a file.
func flip(t testing.TB, path string, at int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	require.NoError(t, err)
	defer f.Close()
	b := make([]byte, 1)
	_, err = f.ReadAt(b, at)
	require.NoError(t, err)
	b[0] ^= 0x55
	_, err = f.WriteAt(b, at)
	require.NoError(t, err)
}

// payload is n bytes that differ from page to page.
func payload(seed byte, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = seed + byte(i>>12) + byte(i)
	}
	return b
}

// writeSynced writes a file through the mount and has it on the disk.
func writeSynced(t testing.TB, path string, data []byte) {
	t.Helper()
	f, err := os.Create(path)
	require.NoError(t, err)
	_, err = f.Write(data)
	require.NoError(t, err)
	require.NoError(t, f.Sync())
	require.NoError(t, f.Close())
}

// fsckFault is a line of `gearsfs fsck -o json`.
type fsckFault struct {
	What, Path, Key, Segment string
	Offset, Bytes            uint64
	Mended                   bool
}

func faultsIn(t testing.TB, r result) (list []fsckFault) {
	t.Helper()
	lines := strings.Split(strings.TrimSpace(r.stdout), "\n")
	for _, line := range lines[:len(lines)-1] {
		var f fsckFault
		require.NoError(t, json.Unmarshal([]byte(line), &f), line)
		list = append(list, f)
	}
	return list
}

// requirePages checks which pages of a file can be read: those of bad are EIO.
func requirePages(t testing.TB, path string, want []byte, bad func(page int) bool) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_DIRECT, 0)
	require.NoError(t, err)
	defer f.Close()
	got := make([]byte, 4096)
	for at := 0; at < len(want); at += len(got) {
		n, err := f.ReadAt(got, int64(at))
		if bad(at / len(got)) {
			require.ErrorIs(t, err, syscall.EIO, "at %d", at)
			continue
		}
		require.True(t, err == nil || errors.Is(err, io.EOF), "at %d: %v", at, err)
		require.True(t, bytes.Equal(want[at:at+n], got[:n]), "at %d", at)
	}
}

// A byte that the disk has changed, and a file of the block store that is gone,
// are named by fsck, with the node running and without; what is not touched by
// them can be read, and the rest is EIO.
func TestFsckNamesDamage(t *testing.T) {
	t.Parallel()
	d := startMounted(t)
	damaged, gone, sound := payload(1, 1<<20), payload(2, 1<<20), payload(3, 1<<20)
	writeSynced(t, filepath.Join(d.mount, "damaged"), damaged)
	first := segmentFiles(t, d.data)
	require.Len(t, first, 1)
	d.stop()
	d.start() // begins another segment
	writeSynced(t, filepath.Join(d.mount, "gone"), gone)
	d.stop()
	both := segmentFiles(t, d.data)
	require.Len(t, both, 2)
	lost := both[0]
	if lost == first[0] {
		lost = both[1]
	}
	require.NoError(t, os.Remove(lost))
	flip(t, first[0], 20*4096+5)

	offline := d.gearsfs("fsck", "--data", d.data, "-o", "json")
	require.Equal(t, 1, offline.status, offline.stderr)
	d.start()
	writeSynced(t, filepath.Join(d.mount, "sound"), sound)
	online := d.gearsfs("fsck", "-o", "json")
	require.Equal(t, 1, online.status, online.stderr)
	for _, list := range [][]fsckFault{faultsIn(t, offline), faultsIn(t, online)} {
		require.NotEmpty(t, list)
		missing := uint64(0)
		for _, f := range list {
			if f.What == "missing" {
				require.Equal(t, "/gone", f.Path)
				require.Equal(t, lost, f.Segment)
				missing += f.Bytes
				continue
			}
			require.Equal(t, fsckFault{What: "damaged", Path: "/damaged", Key: "data", Segment: first[0], Offset: 20 * 4096, Bytes: 4096}, f)
		}
		require.EqualValues(t, len(gone), missing)
	}
	d.gearsfs("fsck", "--data", d.data).requireError(t, 1, "in use", "--node")
	text := d.gearsfs("fsck")
	require.Contains(t, text.stdout, "damaged: /damaged data: 4096 bytes at 81920, in "+first[0]+" at 81920: ")

	requirePages(t, filepath.Join(d.mount, "damaged"), damaged, func(page int) bool { return page == 20 })
	requirePages(t, filepath.Join(d.mount, "gone"), gone, func(int) bool { return true })
	requirePages(t, filepath.Join(d.mount, "sound"), sound, func(int) bool { return false })

	require.NoError(t, os.Remove(filepath.Join(d.mount, "damaged")))
	require.NoError(t, os.Remove(filepath.Join(d.mount, "gone")))
	healthy := d.gearsfs("fsck")
	require.Zero(t, healthy.status, healthy.stdout+healthy.stderr)
	require.True(t, strings.HasPrefix(healthy.stdout, "0 faults;"), healthy.stdout)
}

// A node of three gets from the others what its disk has damaged or lost.
func TestFsckRepairs(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3)
	d := c.nodes[1]
	d.withMount()
	d.stop()
	d.start()
	want := payload(1, 1<<20)
	writeSynced(t, filepath.Join(d.mount, "f"), want)
	list := segmentFiles(t, d.data)
	require.Len(t, list, 1)
	flip(t, list[0], 5*4096)
	found := d.gearsfs("fsck", "-o", "json")
	require.Equal(t, 1, found.status, found.stderr)
	require.Equal(t, []fsckFault{{What: "damaged", Path: "/f", Key: "data", Segment: list[0], Offset: 5 * 4096, Bytes: 4096}}, faultsIn(t, found))
	mended := d.gearsfs("fsck", "--repair", "-o", "json")
	require.Zero(t, mended.status, mended.stdout+mended.stderr)
	require.Equal(t, []fsckFault{{What: "damaged", Path: "/f", Key: "data", Segment: list[0], Offset: 5 * 4096, Bytes: 4096, Mended: true}}, faultsIn(t, mended))
	again := d.gearsfs("fsck")
	require.Zero(t, again.status, again.stdout+again.stderr)
	requirePages(t, filepath.Join(d.mount, "f"), want, func(int) bool { return false })

	d.stop()
	alone := d.gearsfs("fsck", "--data", d.data, "--repair")
	require.Zero(t, alone.status, alone.stdout+alone.stderr)
	require.Contains(t, alone.stdout, "uploads of the other nodes are not known")
	d.start()
	c.verify()
}
