package payload

import (
	"io"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/gearsfs/gearsfs/block"
	"github.com/gearsfs/gearsfs/block/blocktest"
	"github.com/gearsfs/gearsfs/persist"
	"github.com/gearsfs/gearsfs/tests/bubble"
)

// TestFreeOnAFullDisk: pages that can't be given back because the disk is full are
// given back when that goes.
func TestFreeOnAFullDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var full atomic.Bool
		memory := blocktest.NewMemory(nil)
		store, err := block.Open("/blocks", block.Options{Self: 1, FS: blocktest.Faulty(memory, func(op blocktest.Op) error {
			if full.Load() && op.Kind == blocktest.OpPunch {
				return unix.ENOSPC
			}
			return nil
		})})
		require.NoError(t, err)
		data, err := persist.Open("/data", persist.Options{FS: vfs.NewMem(), Create: true, Name: "n"})
		require.NoError(t, err)
		node := new(idle)
		k := &Keeper{store: store, cfg: Config{
			Self: 1, Node: node, Members: new(slow), Data: data, Busy: t.Context(), Root: t.Context(),
			Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
		}}
		k.pending.init()
		extents, err := store.Append(make([]byte, 3<<12))
		require.NoError(t, err)
		used := func() int64 {
			usage, err := store.Usage()
			require.NoError(t, err)
			return usage.Bytes
		}
		full.Store(true)
		k.drop(extents)
		bubble.Pass(10 * freeAfter)
		require.NotZero(t, used())
		full.Store(false)
		bubble.Pass(2*freeAfter + time.Second)
		require.Zero(t, used())
		node.owned.Wait()
		require.NoError(t, k.Close())
		require.NoError(t, data.Close())
	})
}
