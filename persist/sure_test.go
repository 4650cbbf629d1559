package persist

import (
	"math/rand/v2"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"github.com/stretchr/testify/require"
)

// TestMakeSure: what was synced last is not sure when the log is opened again,
// unless the log was made to say so; and saying so changes nothing else.
func TestMakeSure(t *testing.T) {
	crashed := func(disk *vfs.MemFS) *Log {
		again, err := openLogDir(disk.CrashClone(vfs.CrashCloneCfg{}))
		require.NoError(t, err)
		return again
	}
	disk := vfs.NewCrashableMem()
	l := newLogOn(t, disk)
	require.NoError(t, l.MakeSure(), "a log without a hard state")
	require.Empty(t, crashed(disk).HardState())
	require.NoError(t, l.Append([]LogEntry{entryOf(1), entryOf(2)}, []byte("hard")))
	require.NoError(t, l.Sync())
	require.Zero(t, crashed(disk).Sure())
	require.Equal(t, uint64(2), crashed(disk).Last())
	for last := uint64(3); last < 2000; last++ { // through several segments
		require.NoError(t, l.Append([]LogEntry{entryOf(last)}, nil))
		require.NoError(t, l.MakeSure())
		if last%100 != 0 {
			continue
		}
		again := crashed(disk)
		require.Equal(t, last, again.Sure())
		require.Equal(t, last, again.Last())
		require.Equal(t, "hard", string(again.HardState()))
		require.NoError(t, again.Close())
	}
	require.NoError(t, l.Close())
	require.Error(t, l.MakeSure())
}

// TestSureOfWhatIsReplaced cuts the power while the last entry found, which nobody
// had synced, is replaced, and again while that is begun anew: as long as it is
// there, it is not sure. A log that is opened syncs what it found, but knows nothing
// of what that refers to.
func TestSureOfWhatIsReplaced(t *testing.T) {
	points, rng := 0, rand.New(rand.NewPCG(1, 2))
	var replace func(disk *vfs.MemFS, last uint64, lives int)
	replace = func(disk *vfs.MemFS, last uint64, lives int) {
		running := false
		crash := errorfs.InjectorFunc(func(op errorfs.Op) error {
			if !running || op.Kind.ReadOrWrite() != errorfs.OpIsWrite || op.Kind == errorfs.OpFileClose {
				return nil
			}
			running = false
			defer func() { running = true }()
			for _, percent := range []int{0, 100} {
				points++
				replace(disk.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: rng}), last, lives-1)
			}
			return nil
		})
		l, err := openLogDir(errorfs.Wrap(disk, crash))
		require.NoError(t, err)
		require.Equal(t, last, l.Last())
		entries, err := l.Entries(last, last+1, 1<<20)
		require.NoError(t, err)
		if len(entries[0].Data) == 0 { // it was replaced
			require.NoError(t, l.Close())
			return
		}
		require.Less(t, l.Sure(), last)
		if lives > 0 {
			running = true
			require.NoError(t, l.Append([]LogEntry{{Index: last, Term: 1}}, []byte("hard")))
			require.NoError(t, l.Sync())
			running = false
		}
		require.NoError(t, l.Close())
	}
	for last := uint64(2); last < 120; last++ { // some in the last bytes of a segment
		disk := vfs.NewCrashableMem()
		l := newLogOn(t, disk)
		for i := range last {
			if i+1 == last {
				require.NoError(t, l.MakeSure())
			}
			require.NoError(t, l.Append([]LogEntry{entryOf(i + 1)}, nil))
		}
		replace(disk.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 100, RNG: rng}), last, 2)
		require.NoError(t, l.Close())
	}
	t.Logf("%d crash points", points)
}
