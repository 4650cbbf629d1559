package payload

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
)

// upload stores what a command will refer to, whose final answer the result tells.
func (n *node) upload(size int) (answered func(error)) {
	t := n.rig.t
	t.Helper()
	extents, err := n.keeper.put(t.Context(), noise(byte(size), size))
	require.NoError(t, err)
	require.NoError(t, n.keeper.store.Sync())
	return func(err error) { n.keeper.Unused(extents, err) }
}

// sweep says how much was freed.
func (n *node) sweep() uint64 {
	t := n.rig.t
	t.Helper()
	freed, why := n.keeper.upkeep.sweepNow(t.Context())
	require.Empty(t, why)
	return freed
}

// The pages of an upload are not swept while its command may still come, nor some
// time after its answer was lost; then they are, and what files have is not.
func TestSweep(t *testing.T) {
	n := newRig(t, 1).nodes[0]
	n.sweepAll()
	want := noise(7, 1<<20)
	ino := n.write("f", want)
	var all []func(error) // more than a segment
	for range 5 {
		all = append(all, n.upload(gearsfs.RecordBytesMax))
	}
	n.pass(48 * time.Hour)
	require.Zero(t, n.sweep(), "its command waits for room")
	for _, answered := range all {
		answered(gearsfs.ErrMaybe)
	}
	require.Zero(t, n.sweep(), "its command may have happened, or may yet")
	n.pass(time.Hour)
	require.Greater(t, n.sweep(), uint64(32<<20))
	n.requireFile(want, ino)
	require.Zero(t, n.sweep())
}

// What an earlier life of a node that is alone has left is swept.
func TestSweepAfterRestart(t *testing.T) {
	n := newRig(t, 1).nodes[0]
	want := noise(7, 1<<20)
	ino := n.write("f", want)
	n.upload(1 << 20)
	n.reopen()
	require.Zero(t, n.sweep(), "the segment was written to a moment ago")
	n.sweepAll()
	require.EqualValues(t, 1<<20, n.sweep())
	n.requireFile(want, ino)
	report, err := n.keeper.Fsck(t.Context(), false, 0, nil)
	require.NoError(t, err)
	require.Zero(t, report.Found)
	require.Zero(t, report.Unreferenced)
}

// A node asks whose segment it is before it sweeps its copy of it.
func TestSweepOfNodes(t *testing.T) {
	r := newRig(t, 3)
	origin, other := r.nodes[1], r.nodes[0]
	for _, n := range r.nodes {
		n.sweepAll()
	}
	answered := origin.upload(1 << 20)
	require.EqualValues(t, 1<<20, other.bytes())
	_, why := other.keeper.upkeep.sweepNow(t.Context())
	require.Contains(t, why, "before the node was started")
	other.pass(time.Hour)
	require.Zero(t, other.sweep(), "the origin does not know yet")
	origin.pass(time.Hour)
	require.Zero(t, other.sweep(), "its command waits")
	answered(gearsfs.ErrMaybe)
	require.Zero(t, other.sweep(), "it may still come")
	origin.pass(time.Hour)
	require.EqualValues(t, 1<<20, other.sweep())
	require.Zero(t, other.bytes())
}

// What is damaged is mended from another node, also when nobody asks for it; where
// nobody has it that is said.
func TestScrub(t *testing.T) {
	for name, nodes := range map[string]int{"alone": 1, "of nodes": 3} {
		t.Run(name, func(t *testing.T) {
			n := newRig(t, nodes).nodes[0]
			n.write("f", noise(1, 1<<20))
			n.damage()
			n.keeper.upkeep.scrubNow(t.Context())
			warnings := strings.Join(n.keeper.Warnings(), "\n")
			report, err := n.keeper.Fsck(context.WithoutCancel(t.Context()), false, 0, nil)
			require.NoError(t, err)
			if nodes == 1 {
				require.Contains(t, warnings, "1 pieces of large payloads are damaged or missing")
				require.EqualValues(t, 1, report.Wrong())
				return
			}
			require.Empty(t, warnings)
			require.Zero(t, report.Found)
		})
	}
}
