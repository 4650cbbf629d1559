package block_test

import (
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/gearsfs/gearsfs/block/blocktest"
	"github.com/stretchr/testify/require"
)

// TestCrashes does random operations on a store and cuts the power before its
// writes, syncs, punches and removals: what was synced must be there, and of
// the rest each page as it was or not, or damaged, which is noticed. Now and
// then it goes on with what the crash left.
func TestCrashes(t *testing.T) {
	const pointsMin = 3000
	rng := randomRun(t)
	points, lives := 0, 0
	for points < pointsMin {
		points, lives = points+crashRun(t, rng, 150), lives+1
	}
	t.Logf("%d crash points in %d runs", points, lives)
}

func crashRun(t *testing.T, rng *rand.Rand, steps int) (points int) {
	disk := blocktest.NewMemory(nil)
	d := newDriver(nil, "blocks", rng)
	var next *blocktest.Memory // what the disk is after the crash that ends this life
	var after driver           // what the model is then

	crash := func() (*blocktest.Memory, driver) {
		points++
		left := disk.Crash(rng)
		m := *d
		m.live, m.freed, m.owned = slices.Clone(d.live), slices.Clone(d.freed), maps.Clone(d.owned)
		m.cut()
		m.opts.FS = left.Crash(rng) // opening changes it
		require.NoError(t, m.open())
		require.NoError(t, m.check(len(m.live)), "after a crash that left\n%s", left)
		require.NoError(t, m.store.Close())
		return left, m
	}
	var one sync.Mutex // several files are synced at once
	inject := func(op blocktest.Op) error {
		one.Lock()
		defer one.Unlock()
		if op.Kind.Writes() && next == nil && rng.IntN(3) == 0 {
			if left, model := crash(); rng.IntN(40) == 0 {
				next, after = left, model
			}
		}
		return nil
	}
	open := func() {
		d.opts.FS = blocktest.Faulty(disk, inject)
		require.NoError(t, d.open())
	}
	open()
	for range steps {
		require.NoError(t, d.step())
		require.NoError(t, d.check(5))
		if next == nil {
			continue
		}
		// What this life did after the crash never happened, but for what it
		// gave out.
		require.NoError(t, d.store.Close())
		after.stored = d.stored
		*d, disk, next = after, next, nil
		open()
		require.NoError(t, d.check(len(d.live)))
	}
	next = disk // no more crashes
	require.NoError(t, d.store.Close())
	return points
}

// TestKilledThenCut: a process that is killed leaves what it wrote in the
// kernel; the one after it has that survive a power cut from its start on.
func TestKilledThenCut(t *testing.T) {
	for _, appends := range []int{40, 400} {
		rng := randomRun(t)
		disk := blocktest.NewMemory(nil)
		d := newDriver(disk, "blocks", rng)
		d.opts.SegmentBytes = 1 // one append to each
		require.NoError(t, d.open())
		for range appends {
			require.NoError(t, d.append())
		}
		killed := d.store
		require.NoError(t, d.open())
		d.synced()
		d.cut()
		d.opts.FS = disk.Crash(rng)
		require.NoError(t, d.open())
		require.NoError(t, d.check(len(d.live)))
		require.NoError(t, killed.Close())
	}
}
