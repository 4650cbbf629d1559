package mount_test

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm"
)

// quota sets a quota on a directory of the mount's root and waits until it is counted.
func (f fixture) quota(t *testing.T, name string, bytes, inodes uint64) {
	t.Helper()
	dir, err := f.other.Lookup(t.Context(), gearsfs.RootIno, name)
	require.NoError(t, err)
	require.NoError(t, f.other.SetQuota(t.Context(), dir.Ino, dgm.SetQuota{Bytes: &bytes, Inodes: &inodes}))
	eventually(t, "the quota is counted", func() bool {
		q, err := f.other.Quota(t.Context(), dir.Ino)
		return err == nil && !q.Counting
	})
}

func TestQuotaOnTheMount(t *testing.T) {
	f := newFixture(t)
	f.mustShell(t, "mkdir d d/sub && echo hello > d/sub/f")
	f.quota(t, "d", 1<<20, 5)
	var st unix.Statfs_t
	require.NoError(t, unix.Statfs(f.path("d", "sub"), &st))
	require.EqualValues(t, 1<<20, st.Blocks*uint64(st.Bsize))
	require.EqualValues(t, []uint64{5, 2}, []uint64{st.Files, st.Ffree})
	require.Equal(t, st.Bfree, st.Bavail)

	require.NoError(t, os.WriteFile(f.path("d", "big"), make([]byte, 600<<10), 0o644))
	file, err := os.OpenFile(f.path("d", "sub", "f"), os.O_RDWR|os.O_APPEND, 0)
	require.NoError(t, err)
	defer file.Close()
	_, err = file.Write(make([]byte, 500<<10))
	require.ErrorIs(t, err, unix.EDQUOT)
	require.NoError(t, unix.Statfs(f.path("d"), &st))
	require.InDelta(t, 600<<10, (st.Blocks-st.Bfree)*uint64(st.Bsize), 2*float64(st.Bsize))
	require.NoError(t, os.WriteFile(f.path("d", "last"), nil, 0o644))
	require.ErrorIs(t, os.Mkdir(f.path("d", "more"), 0o755), unix.EDQUOT)
	require.ErrorIs(t, os.WriteFile(f.control("d/sub/f", "k", "put"), make([]byte, 500<<10), 0), unix.EDQUOT)

	require.NoError(t, file.Close()) // else it would count until then
	require.ErrorIs(t, os.Rename(f.path("d", "sub"), f.path("out")), unix.EXDEV)
	f.mustShell(t, "mv d/sub out && test \"$(cat out/f)\" = hello && mv d/big . && du -s --block-size=1 big")
	require.NoError(t, unix.Statfs(f.path("d"), &st))
	require.Equal(t, []uint64{st.Blocks, 3}, []uint64{st.Bfree, st.Ffree})
}

// TestStatFSCounts compares what statfs shows with what was made.
func TestStatFSCounts(t *testing.T) {
	f := newFixture(t)
	var before, after unix.Statfs_t
	require.NoError(t, unix.Statfs(f.dir, &before))
	f.mustShell(t, "mkdir d && touch d/{1..50}")
	require.NoError(t, unix.Statfs(f.path("d", "7"), &after))
	used := func(st *unix.Statfs_t) uint64 { return st.Files - st.Ffree }
	require.EqualValues(t, 51, used(&after)-used(&before))
	require.LessOrEqual(t, after.Bavail, after.Blocks)
	require.NotZero(t, after.Ffree)
}
