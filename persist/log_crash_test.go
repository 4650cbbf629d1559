package persist

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"github.com/stretchr/testify/require"
)

// TestLogCrashes does random operations on a log and cuts the power before
// each write, sync and rename: what was synced must be there exactly, and of
// the rest what was written up to some record. Now and then it goes on with
// what the crash left, so that the remains of several lives meet.
func TestLogCrashes(t *testing.T) {
	const pointsMin = 3000
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	deadline := time.Now().Add(time.Minute)
	points, lives := 0, 0
	for points < pointsMin {
		points, lives = points+crashRun(t, rng, 150), lives+1
		if time.Now().After(deadline) {
			t.Fatalf("only %d crash points in the time", points)
		}
	}
	t.Logf("%d crash points in %d runs", points, lives)
}

// crashRun is one log's life, crashes included. It returns how often the power
// was cut.
func crashRun(t *testing.T, rng *rand.Rand, steps int) (points int) {
	disk := vfs.NewCrashableMem()
	require.NoError(t, createLogDir(disk))
	d := &logDriver{model: newLogModel(logState{}), rng: rng, term: 1}
	var next *vfs.MemFS // what the disk is after the crash that ends this life
	var nextState logState

	crash := func() (*vfs.MemFS, logState) {
		percent := []int{0, 0, 30, 50, 70, 95, 100}[rng.IntN(7)]
		left := disk.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: rng})
		points++
		copied := left.CrashClone(vfs.CrashCloneCfg{}) // opening changes it
		l, err := openLogDir(copied)
		require.NoError(t, err, "%d %% of what was not synced is left:\n%s", percent, left)
		state, err := d.model.checkRecovered(l, percent == 100, rng)
		require.NoError(t, err, "%d %% of what was not synced is left:\n%s", percent, left)
		require.NoError(t, l.Close())
		return left, state
	}
	inject := errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind.ReadOrWrite() == errorfs.OpIsWrite && op.Kind != errorfs.OpFileClose && next == nil && rng.IntN(3) == 0 {
			if left, state := crash(); rng.IntN(40) == 0 {
				next, nextState = left, state
			}
		}
		return nil
	})
	var err error
	d.log, err = openLogDir(errorfs.Wrap(disk, inject))
	require.NoError(t, err)
	for range steps {
		require.NoError(t, d.step())
		if next == nil {
			require.NoError(t, d.model.checkRunning(d.log, rng))
			continue
		}
		// What this life did after the crash never happened.
		require.NoError(t, d.log.Close())
		d.model = newLogModel(nextState)
		disk, next = next, nil
		d.log, err = openLogDir(errorfs.Wrap(disk, inject))
		require.NoError(t, err)
		require.NoError(t, d.model.checkRunning(d.log, rng))
	}
	next = disk // no more crashes
	require.NoError(t, d.log.Close())
	again, err := openLogDir(disk)
	require.NoError(t, err)
	_, err = d.model.checkRecovered(again, true, rng)
	require.NoError(t, err)
	require.NoError(t, again.Close())
	return points
}
