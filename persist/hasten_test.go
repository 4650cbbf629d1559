package persist

import (
	"errors"
	"path/filepath"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// dirtyPages is how many pages of a segment the kernel has not begun to write;
// ok is false where it does not say, or its file system has no disk.
func dirtyPages(t *testing.T, seg *segment) (n uint64, ok bool) {
	t.Helper()
	var fs unix.Statfs_t
	require.NoError(t, unix.Fstatfs(int(seg.f.Fd()), &fs))
	var cache unix.Cachestat_t
	err := unix.Cachestat(uint(seg.f.Fd()), &unix.CachestatRange{Len: uint64(seg.size)}, &cache, 0)
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) || fs.Type == unix.TMPFS_MAGIC {
		return 0, false
	}
	require.NoError(t, err)
	return cache.Dirty, true
}

// Hasten has the kernel write what was appended, and Sync still does its part.
func TestHasten(t *testing.T) {
	d, err := Open(filepath.Join(t.TempDir(), "data"), Options{Create: true})
	require.NoError(t, err)
	log := d.Log
	log.Hasten() // nothing
	clean := false
	for range 10 { // the kernel passes over a page that it writes already
		require.NoError(t, log.Append([]LogEntry{{Index: log.Last() + 1, Term: 1, Data: []byte("entry")}}, nil))
		tail := log.segs[len(log.segs)-1]
		require.NotEqual(t, uintptr(vfs.InvalidFd), tail.f.Fd())
		log.Hasten()
		dirty, ok := dirtyPages(t, tail)
		clean = clean || !ok || dirty == 0
		assert.Less(t, tail.synced, tail.used, "that is for Sync to say")
		require.NoError(t, log.Sync())
		assert.Equal(t, tail.used, tail.synced)
		assert.Zero(t, tail.pins)
	}
	assert.True(t, clean, "the kernel did not begin to write")
	require.NoError(t, d.Close())
	log.Hasten() // closed
}
