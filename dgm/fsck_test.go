package dgm_test

import (
	"context"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm"
)

// A check of a node alone says which bytes of which file are damaged or missing,
// where they should be, and what nothing refers to.
func TestFsck(t *testing.T) {
	dir := t.TempDir()
	vol := openVolume(t, dir)
	m := local(t, vol)
	made, err := m.Make(t.Context(), gearsfs.RootIno, "d", dgm.Make{Mode: 0o040755})
	require.NoError(t, err)
	attr, err := m.Make(t.Context(), made.Ino, "f", dgm.Make{Mode: 0o100644})
	require.NoError(t, err)
	write(t, m, attr.Ino, noise(1, 1<<20))
	report, err := vol.Fsck(t.Context(), false, 0, nil)
	require.NoError(t, err)
	require.Empty(t, report.Faults)
	require.EqualValues(t, 1<<20, report.Bytes)

	damage(t, dir)
	report, err = vol.Fsck(t.Context(), true, 0, nil)
	require.NoError(t, err)
	require.EqualValues(t, 1, report.Wrong())
	f := report.Faults[0]
	require.Contains(t, f.Reason, "checksum")
	f.Reason = ""
	require.Equal(t, gearsfs.Fault{
		What: gearsfs.FaultDamaged, Path: "/d/f", Ino: attr.Ino, Key: "data", Pos: 8192, Bytes: 4096,
		Segment: segments(t, dir)[0], At: 8192,
	}, f)
}

// Where a segment's file is gone, what was in it is missing, and nothing else.
func TestFsckMissing(t *testing.T) {
	dir := t.TempDir()
	var ino gearsfs.Ino
	want := noise(2, 300_000)
	t.Run("write", func(t *testing.T) {
		m := local(t, openVolume(t, dir))
		ino = makeFile(t, m, "f")
		write(t, m, ino, want)
		require.NoError(t, m.Sync(t.Context()))
	})
	lost := segments(t, dir)[0]
	require.NoError(t, os.Remove(lost))
	vol := openVolume(t, dir)
	m := local(t, vol)
	other := makeFile(t, m, "other")
	write(t, m, other, want)
	report, err := vol.Fsck(t.Context(), true, 0, nil)
	require.NoError(t, err)
	bytes := uint64(0)
	for _, f := range report.Faults {
		require.Equal(t, gearsfs.FaultMissing, f.What)
		require.Equal(t, "/f", f.Path)
		require.Equal(t, lost, f.Segment)
		require.EqualValues(t, bytes, f.Pos)
		bytes += f.Bytes
	}
	require.EqualValues(t, len(want), bytes)
	_, err = m.Read(t.Context(), ino, 0, 4096, nil)
	require.ErrorIs(t, err, gearsfs.ErrDamaged)
	requireFile(t, want, m, other)
}

// What is damaged is mended from another node, by a check that is told to.
func TestFsckOfNodes(t *testing.T) {
	c := newNodes(t, "a", "b", "c")
	n := c.leader() // who takes bytes is not sent them, so nothing comes over the damage
	m := local(t, n.vol)
	write(t, m, makeFile(t, m, "f"), noise(1, 1<<20))
	damage(t, n.dir)
	node, err := dgm.DialNode(t.Context(), n.addr(), dgm.RemoteOptions{})
	require.NoError(t, err)
	defer node.Close()
	report, err := node.Fsck(t.Context(), false, func(gearsfs.FsckReport) {})
	require.NoError(t, err)
	require.EqualValues(t, 1, report.Wrong())
	report, err = node.Fsck(t.Context(), true, nil)
	require.NoError(t, err)
	require.EqualValues(t, 1, report.Mended)
	require.Zero(t, report.Wrong())
	require.NotEmpty(t, report.Unswept, "uploads of before the start are not known yet")

	report, err = node.Fsck(t.Context(), false, nil)
	require.NoError(t, err)
	require.Zero(t, report.Found)
	require.Empty(t, n.status().Warnings)
}

// A check ends when nobody waits for it any more.
func TestFsckCancelled(t *testing.T) {
	vol := openVolume(t, t.TempDir())
	m := local(t, vol)
	write(t, m, makeFile(t, m, "f"), noise(1, 8<<20))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := vol.Fsck(ctx, false, 1, nil)
	require.ErrorIs(t, err, context.Canceled)
	_, err = vol.Fsck(t.Context(), false, 0, nil)
	require.NoError(t, err, "it is not under way any more")
}
