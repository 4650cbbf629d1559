package persist

import (
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
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
