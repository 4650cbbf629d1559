package dgm_test

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

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

	vol.Scrub(t.Context())
	status, err := m.Status(t.Context())
	require.NoError(t, err)
	require.Contains(t, strings.Join(status.Warnings, "\n"), "1 pieces of large payloads are damaged or missing")
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

// What is damaged is mended from another node, by a check that is told to, and by
// the one that each node does by itself.
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

	damage(t, n.dir)
	n.vol.Scrub(t.Context())
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

// uploadSegment fills more than a segment with an upload that no command comes for.
func uploadSegment(t *testing.T, vol *dgm.Volume) (answered func(error)) {
	t.Helper()
	var all []func(error)
	for i := range 5 {
		f, err := vol.Upload(t.Context(), noise(byte(i), gearsfs.RecordBytesMax))
		require.NoError(t, err)
		all = append(all, f)
	}
	return func(err error) {
		for _, f := range all {
			f(err)
		}
	}
}

// The pages of an upload are not swept while its command may still come, nor some
// time after its answer was lost; then they are, and what files have is not.
func TestSweep(t *testing.T) {
	vol := openVolume(t, t.TempDir())
	vol.SweepAll()
	m := local(t, vol)
	want := noise(7, 1<<20)
	ino := makeFile(t, m, "f")
	write(t, m, ino, want)
	answered := uploadSegment(t, vol)
	require.NoError(t, m.Sync(t.Context()))
	vol.Pass(48 * time.Hour)
	sweep := func() uint64 {
		freed, why := vol.Sweep(t.Context())
		require.Empty(t, why)
		return freed
	}
	require.Zero(t, sweep(), "its command waits for room")
	answered(gearsfs.ErrMaybe)
	require.Zero(t, sweep(), "its command may have happened, or may yet")
	vol.Pass(time.Hour)
	require.Greater(t, sweep(), uint64(32<<20))
	requireFile(t, want, m, ino)
	require.Zero(t, sweep())
}

// What an earlier life of a node that is alone has left is swept.
func TestSweepAfterRestart(t *testing.T) {
	dir := t.TempDir()
	want := noise(7, 1<<20)
	var ino gearsfs.Ino
	t.Run("crash", func(t *testing.T) {
		vol := openVolume(t, dir)
		m := local(t, vol)
		ino = makeFile(t, m, "f")
		write(t, m, ino, want)
		_, err := vol.Upload(t.Context(), noise(1, 1<<20))
		require.NoError(t, err)
	})
	vol := openVolume(t, dir)
	freed, why := vol.Sweep(t.Context())
	require.Empty(t, why)
	require.Zero(t, freed, "the segment was written to a moment ago")
	vol.SweepAll()
	freed, why = vol.Sweep(t.Context())
	require.Empty(t, why)
	require.EqualValues(t, 1<<20, freed)
	m := local(t, vol)
	requireFile(t, want, m, ino)
	report, err := vol.Fsck(t.Context(), false, 0, nil)
	require.NoError(t, err)
	require.Zero(t, report.Found)
	require.Zero(t, report.Unreferenced)
}

// A node asks whose segment it is before it sweeps its copy of it.
func TestSweepOfNodes(t *testing.T) {
	c := newNodes(t, "a", "b", "c")
	origin, other := c.follower(), c.leader()
	for _, n := range c.all {
		n.vol.SweepAll()
	}
	answered, err := origin.vol.Upload(t.Context(), noise(1, 1<<20))
	require.NoError(t, err)
	require.Eventually(t, func() bool { return other.vol.BlockBytes() == 1<<20 }, 20*time.Second, 10*time.Millisecond)
	_, why := other.vol.Sweep(t.Context())
	require.Contains(t, why, "before the node was started")
	other.vol.Pass(time.Hour)
	sweep := func() uint64 {
		freed, why := other.vol.Sweep(t.Context())
		require.Empty(t, why)
		return freed
	}
	require.Zero(t, sweep(), "the origin does not know yet")
	origin.vol.Pass(time.Hour)
	require.Zero(t, sweep(), "its command waits")
	answered(gearsfs.ErrMaybe)
	require.Zero(t, sweep(), "it may still come")
	origin.vol.Pass(time.Hour)
	require.Eventually(t, func() bool { // once what came last is on its disk
		other.vol.Sweep(t.Context())
		return other.vol.BlockBytes() == 0
	}, 20*time.Second, 10*time.Millisecond)
}
