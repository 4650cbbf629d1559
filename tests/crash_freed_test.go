package tests

import (
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/block/blocktest"
	"github.com/gearsfs/gearsfs/dgm"
	"github.com/gearsfs/gearsfs/tests/bubble"
)

// A payload may be gone from the block store before the log has anything behind
// the entry that brought it: what let go of it was in the same sync. That is not
// what a power cut took, and all that was acknowledged is there when the node
// starts again.
func TestCrashAfterFree(t *testing.T) {
	payload := []byte(strings.Repeat("it goes ", 4<<10))
	for name, pass := range map[string]func(ctx context.Context, t *testing.T, m dgm.Manager){
		"written and removed": func(ctx context.Context, t *testing.T, m dgm.Manager) {
			attr, err := m.Make(ctx, gearsfs.RootIno, "passing", dgm.Make{Mode: 0o100644})
			require.NoError(t, err)
			_, err = m.Write(ctx, attr.Ino, 0, payload)
			require.NoError(t, err)
			require.NoError(t, m.Unlink(ctx, gearsfs.RootIno, "passing"))
		},
		"refused": func(ctx context.Context, t *testing.T, m dgm.Manager) {
			_, err := m.Write(ctx, 12345, 0, payload)
			require.ErrorIs(t, err, gearsfs.ErrStale)
		},
	} {
		for seed := range uint64(8) {
			synctest.Test(t, func(t *testing.T) {
				crashAfterFree(t, rand.New(rand.NewPCG(seed, 0)), name, pass)
			})
		}
	}
}

func crashAfterFree(t *testing.T, rng *rand.Rand, name string, pass func(context.Context, *testing.T, dgm.Manager)) {
	t.Helper()
	ctx, queue := t.Context(), gearsfs.At("/queue")
	mem, blocks := vfs.NewCrashableMem(), blocktest.NewMemory(nil)
	require.NoError(t, blocks.MakeDir("/data"))
	require.NoError(t, blocks.SyncDir("/"))
	v, err := openCrashable(roomy{mem}, blocks)
	require.NoError(t, err)
	m, err := v.Local(dgm.Client{Caller: gearsfs.Root})
	require.NoError(t, err)
	pass(ctx, t, m)
	_, err = m.Put(ctx, dgm.Put{File: queue, Key: "data", Records: []gearsfs.NewRecord{{Data: []byte("kept")}}})
	require.NoError(t, err)
	bubble.Pass(5 * time.Second)

	require.Contains(t, blocks.String(), "pages []", "it is gone")
	clone := mem.CrashClone(vfs.CrashCloneCfg{
		UnsyncedDataPercent: 100 * rng.IntN(2), RNG: rand.New(rand.NewPCG(rng.Uint64(), 0)),
	})
	left := blocks.Crash(rng)
	require.NoError(t, m.Close())
	require.NoError(t, v.Close())

	v, err = openCrashable(roomy{clone}, left)
	require.NoError(t, err)
	m, err = v.Local(dgm.Client{Caller: gearsfs.Root})
	require.NoError(t, err)
	got, err := m.Take(ctx, dgm.Take{File: queue, Keys: []gearsfs.Key{"data"}, NoWait: true, Max: 1})
	require.NoError(t, errors.Join(err, m.Close(), v.Close()), name)
	require.Equal(t, "kept", string(got[0].Data))
}
