package replica

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs/persist"
)

// lateLog is a log that syncs nothing while mu is locked.
type lateLog struct {
	*persist.Log
	mu sync.Mutex
}

func (l *lateLog) Sync() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.Log.Sync()
}

func openSmall(t *testing.T, fs vfs.FS, segmentBytes int64) *persist.Data {
	t.Helper()
	data, err := persist.Open("data", persist.Options{
		FS: fs, Create: true, Name: "a", SegmentBytes: segmentBytes, MemTableBytes: 256 << 10, CacheBytes: 1 << 20,
		Fatal: func(err error) { t.Error(err) },
	})
	require.NoError(t, err)
	return data
}

// TestCrashOnDisk cuts the power under a log on a crashable file system, whose
// small segments are cut off and used again meanwhile.
func TestCrashOnDisk(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	resets, replayed := 0, 0
	fs, machine := vfs.NewCrashableMem(), new(memMachine)
	for life := range 80 {
		data := openSmall(t, fs, 4<<10<<(4*rnd.IntN(2)))
		log := &lateLog{Log: data.Log}
		f := openOn(t, log, machine, func(_ *Config, l *limits) { l.flushBytes = 3000 })
		late := rnd.IntN(2) == 0
		hold := make(chan struct{})
		if late { // the state's flush is done on disk, but the log is not cut yet
			log.mu.Lock()
			machine.mu.Lock()
			machine.hold = hold
			machine.mu.Unlock()
		}
		var c crowd
		c.start(t, f, fmt.Sprint(life), rnd.Uint64())
		for target := len(machine.records()) + rnd.IntN(300); len(machine.records()) < target; {
			runtime.Gosched()
		}

		acked := c.halt()
		machine.mu.Lock()
		cutFS := fs.CrashClone(vfs.CrashCloneCfg{
			UnsyncedDataPercent: rnd.IntN(101), RNG: rand.New(rand.NewPCG(rnd.Uint64(), 0)),
		})
		cut := &memMachine{state: machine.saved, saved: machine.saved}
		machine.mu.Unlock()
		close(hold)
		if late {
			log.mu.Unlock()
		}
		c.wg.Wait()
		require.NoError(t, f.Close())
		require.NoError(t, data.Close())
		all := machine.records()

		cut = cut.restart()
		data = openSmall(t, cutFS, 4<<10)
		last, applied := data.Log.Last(), cut.state.index
		if last < applied {
			resets++
		}
		replayed += int(max(last, applied) - applied)
		f = openOn(t, data.Log, cut, nil)
		checkPrefix(t, cut.records(), all, acked)
		require.NoError(t, f.put("after", true).err)
		fs, machine = cutFS, cut
		if rnd.IntN(2) == 0 { // go on from a log that was not closed
			cut.mu.Lock()
			fs = cutFS.CrashClone(vfs.CrashCloneCfg{})
			machine = &memMachine{state: cut.saved, saved: cut.saved}
			cut.mu.Unlock()
			machine = machine.restart()
		}
		require.NoError(t, f.Close())
		require.NoError(t, data.Close())
	}
	t.Logf("%d logs began anew, %d entries were replayed", resets, replayed)
	require.NotZero(t, resets)
	require.NotZero(t, replayed)
}
