package file

import (
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs/wire"
)

// TestQueueReplay crashes a machine whose state was flushed at random points
// and replays the entries behind what is left: all answers are the same again.
func TestQueueReplay(t *testing.T) {
	p := newQueuePlayer(t)
	for range 400 {
		p.m.idsMax, p.twin.m.idsMax = modelIDsMax, modelIDsMax
		p.step()
	}
	fs := vfs.NewCrashableMem()
	r := &rig{t: t, fs: fs}
	r.open(true)
	require.NoError(t, r.data.State.Commit())
	init := &wire.Command{Op: &wire.Command_Init{Init: &wire.Init{Id: make([]byte, 16), Name: "main"}}}
	_, err := r.m.Apply(1, 1, &wire.Entry{Time: rigStart + 1e6, Commands: []*wire.Command{init}})
	require.NoError(t, err)
	for crashes := 0; crashes < 30; {
		r.m.idsMax = modelIDsMax
		applied, _ := r.m.Applied()
		upTo := min(applied+uint64(1+p.rng.IntN(60)), uint64(len(p.entries)+1))
		for index := applied + 1; index <= upTo; index++ {
			answers, err := r.m.Apply(index, 1, p.entries[index-2])
			require.NoError(t, err)
			require.Equal(t, p.answers[index-2][0].String(), answers[0].String(), "entry %d", index)
			if p.rng.IntN(15) == 0 {
				require.NoError(t, <-r.data.State.Flush())
			}
		}
		if upTo == uint64(len(p.entries)+1) {
			break
		}
		crashes++
		require.NoError(t, <-r.data.State.Flush())
		for index := upTo + 1; index <= min(upTo+20, uint64(len(p.entries)+1)); index++ { // lost
			_, err := r.m.Apply(index, 1, p.entries[index-2])
			require.NoError(t, err)
		}
		crashed := r.fs.(*vfs.MemFS).CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: p.rng.IntN(101), RNG: p.rng})
		require.NoError(t, r.data.Close())
		r.fs = crashed
		r.open(false)
		left, _ := r.m.Applied()
		require.GreaterOrEqual(t, left, upTo)
		r.check()
	}
	r.check()
	require.Equal(t, string(p.dump()), string(r.dump()))
	require.NoError(t, r.data.Close())
}
