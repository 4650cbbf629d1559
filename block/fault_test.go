package block_test

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/block/blocktest"
	"github.com/stretchr/testify/require"
)

var errInjected = errors.New("injected")

// failing fails the i-th operation of a file system.
type failing struct {
	left atomic.Int64
	op   atomic.Pointer[blocktest.Op]
}

func failAt(i int) *failing {
	f := &failing{}
	f.left.Store(int64(i) + 1)
	return f
}

func (f *failing) before(op blocktest.Op) error {
	if f.left.Add(-1) == 0 {
		f.op.Store(&op)
		return fmt.Errorf("%v: %w", op, errInjected)
	}
	return nil
}

// TestFailsEachIO runs one random script as often as it does I/O, and fails
// another operation of it each time: an error must come out, and what was
// acknowledged must be there, also when the store is opened again and after a
// power cut.
func TestFailsEachIO(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	const steps = 60
	failed := 0
	for i := 0; ; i++ {
		rng := rand.New(rand.NewPCG(seed, 1))
		disk := blocktest.NewMemory(nil)
		fault := failAt(i)
		d := newDriver(blocktest.Faulty(disk, fault.before), "blocks", rng)
		first := d.open()
		for n := 0; n < steps && first == nil; n++ {
			if first = d.step(); first == nil {
				first = d.check(5)
			}
			if first != nil {
				require.NotNil(t, fault.op.Load(), "%v", first)
			}
		}
		if d.store != nil {
			if fault.op.Load() != nil {
				require.NoError(t, d.check(len(d.live)), "after %v failed", fault.op.Load())
			}
			first = errors.Join(first, d.store.Close())
		}
		if fault.op.Load() == nil {
			require.NoError(t, first)
			break
		}
		failed++
		require.Error(t, first, "%v failed and nobody heard of it", fault.op.Load())

		cut := *d
		cut.opts.FS, d.opts.FS = disk.Crash(rng), disk
		cut.live, cut.owned = slices.Clone(d.live), maps.Clone(d.owned)
		cut.cut()
		for _, again := range []*driver{d, &cut} {
			require.NoError(t, again.open(), "after %v failed", fault.op.Load())
			require.NoError(t, again.check(len(again.live)), "after %v failed", fault.op.Load())
			require.NoError(t, again.append())
			require.NoError(t, again.store.Close())
		}
	}
	require.Greater(t, failed, 150)
}

// TestFullDisk has the disk full at each page of an append.
func TestFullDisk(t *testing.T) {
	rng := randomRun(t)
	disk := blocktest.NewMemory(nil)
	d := newDriver(disk, "blocks", rng)
	require.NoError(t, d.open())
	require.NoError(t, d.append())
	const pages = 12
	data := make([]byte, pages*gearsfs.PageBytes)
	foreign := d.made(data)
	require.NoError(t, d.store.Sync())
	d.synced()
	before, err := d.store.Usage()
	require.NoError(t, err)
	for room := range pages {
		for range 20 { // does not use up segments
			disk.SetRoom(room * gearsfs.PageBytes)
			_, err := d.store.Append(data)
			require.ErrorIs(t, err, gearsfs.ErrNoSpace)
		}
		require.NoError(t, d.check(1))
		u, err := d.store.Usage()
		require.NoError(t, err)
		require.Equal(t, before.Bytes, u.Bytes, "what was written of it is gone again")
		require.LessOrEqual(t, u.Segments, before.Segments+2, "the next one, and the other member's")
		require.NoError(t, d.store.Sync())

		disk.SetRoom(room * gearsfs.PageBytes)
		require.ErrorIs(t, d.store.Store(foreign, data), gearsfs.ErrNoSpace)
		require.False(t, d.store.Has(foreign))
		require.NoError(t, d.store.Free([]gearsfs.Extent{foreign}))
	}
	disk.SetRoom(0)
	require.NoError(t, d.store.Close())
	require.NoError(t, d.open(), "a node starts on a full disk, and takes make room")
	require.NoError(t, d.check(1))
	_, err = d.store.Append(data)
	require.ErrorIs(t, err, gearsfs.ErrNoSpace)
	require.NoError(t, d.store.Free([]gearsfs.Extent{d.live[0].e}))
	d.live = nil
	disk.SetRoom(100 * gearsfs.PageBytes)
	require.NoError(t, d.append())
	require.NoError(t, d.check(1))
	require.NoError(t, d.store.Close())
}

// TestBrokenBySync: after a sync failed nothing is taken any more, since the
// kernel may have dropped what it could not write; what is there can be read.
func TestBrokenBySync(t *testing.T) {
	for _, kind := range []blocktest.OpKind{blocktest.OpSync, blocktest.OpSyncDir} {
		t.Run(kind.String(), func(t *testing.T) {
			var fail atomic.Bool
			fsys := blocktest.Faulty(blocktest.NewMemory(nil), func(op blocktest.Op) error {
				if op.Kind == kind && fail.CompareAndSwap(true, false) { // once only
					return errInjected
				}
				return nil
			})
			d := newDriver(fsys, "blocks", randomRun(t))
			require.NoError(t, d.open())
			require.NoError(t, d.append())
			data := make([]byte, 2*gearsfs.PageBytes)
			e := d.made(data)
			fail.Store(true)
			if kind == blocktest.OpSync {
				require.ErrorIs(t, d.store.Sync(), errInjected)
			} else {
				require.ErrorIs(t, d.store.Store(e, data), errInjected)
			}
			require.False(t, fail.Load())
			require.ErrorIs(t, d.store.Sync(), errInjected)
			_, err := d.store.Append(data)
			require.ErrorIs(t, err, errInjected)
			require.ErrorIs(t, d.store.Store(e, data), errInjected)
			require.NoError(t, d.check(1))
			require.ErrorIs(t, d.store.Close(), errInjected)
			require.NoError(t, d.store.Close())
			require.ErrorIs(t, d.store.Sync(), gearsfs.ErrClosed)
			_, err = d.store.Append(data)
			require.ErrorIs(t, err, gearsfs.ErrClosed)
			require.ErrorIs(t, d.store.Read(d.live[0].e, 0, 1, data), gearsfs.ErrClosed)
			require.ErrorIs(t, d.store.Free(nil), gearsfs.ErrClosed)
		})
	}
}

// TestDiskCannotRead: what the disk can't read is damaged, and writing it again
// may heal it.
func TestDiskCannotRead(t *testing.T) {
	fsys := blocktest.Faulty(blocktest.NewMemory(nil), func(op blocktest.Op) error {
		if op.Kind == blocktest.OpRead {
			return syscall.EIO
		}
		return nil
	})
	d := newDriver(fsys, "blocks", randomRun(t))
	require.NoError(t, d.open())
	require.NoError(t, d.append())
	e := d.live[0].e
	require.ErrorIs(t, d.store.Read(e, 0, 1, make([]byte, 1)), gearsfs.ErrDamaged)
	_, err := d.store.ReadStored(e)
	require.ErrorIs(t, err, gearsfs.ErrDamaged)
	require.True(t, d.store.Has(e))
	require.NoError(t, d.store.Close())
	require.False(t, d.store.Has(e), "it is closed")
}
