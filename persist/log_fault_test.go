package persist

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"github.com/gearsfs/gearsfs"
	"github.com/stretchr/testify/require"
)

// TestLogFailsEachIO runs one random script as often as it does I/O, and fails
// another operation of it each time: an error must come out, and what was
// acknowledged must be there when the log is opened again, also after a power
// cut.
func TestLogFailsEachIO(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	const steps = 200
	failed := 0
	for i := 0; ; i++ {
		rng := rand.New(rand.NewPCG(seed, 1))
		disk := vfs.NewCrashableMem()
		require.NoError(t, createLogDir(disk))
		counter := errorfs.Counter{Injector: failOperation(i)}
		log, err := openLogDir(errorfs.Wrap(disk, &counter))
		if err != nil {
			require.ErrorIs(t, err, errorfs.ErrInjected)
			log, err = openLogDir(disk)
			require.NoError(t, err, "after operation %d failed on opening", i)
			require.NoError(t, log.Close())
			continue
		}
		d := &logDriver{log: log, model: newLogModel(logState{}), rng: rng, term: 1}
		var first error
		for range steps {
			if err := d.step(); err != nil {
				require.True(t, errors.Is(err, errorfs.ErrInjected), "operation %d: %v", i, err)
				first = errors.Join(first, err)
				continue
			}
			heard := counter.Load()
			err := d.model.checkRunning(log, rng)
			if err != nil && counter.Load() > heard { // it failed a read, which changes nothing
				require.ErrorIs(t, err, errorfs.ErrInjected)
				first, err = err, d.model.checkRunning(log, rng)
			}
			require.NoError(t, err, "after operation %d failed", i)
		}
		first = errors.Join(first, log.Close())
		if counter.Load() == 0 {
			require.NoError(t, first)
			break
		}
		failed++
		require.ErrorIs(t, first, errorfs.ErrInjected, "operation %d failed and nobody heard of it", i)

		cut := disk.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 50, RNG: rng})
		for j, fsys := range []*vfs.MemFS{disk, cut} {
			again, err := openLogDir(fsys)
			require.NoError(t, err, "after operation %d failed", i)
			_, err = d.model.checkRecovered(again, j == 0, rng)
			require.NoError(t, err, "after operation %d failed (%d)", i, j)
			require.NoError(t, again.Close())
		}
	}
	require.Greater(t, failed, 150)
}

// failOperation fails the i-th operation. How full the disk is doesn't count:
// not every file system tells, and the log can do without.
func failOperation(i int) errorfs.Injector {
	at := errorfs.OnIndex(int32(i))
	return errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind == errorfs.OpGetDiskUsage {
			return nil
		}
		return at.MaybeError(op)
	})
}

// fullDisk is a disk that has room for new bytes or has not.
type fullDisk struct {
	full    atomic.Bool
	inPlace bool // also writes to what is allocated fail, as on a disk that copies on write
}

func (f *fullDisk) MaybeError(op errorfs.Op) error {
	switch op.Kind {
	case errorfs.OpFileWrite, errorfs.OpCreate:
	case errorfs.OpFileWriteAt:
		if !f.inPlace {
			return nil
		}
	default:
		return nil
	}
	if f.full.Load() {
		return fmt.Errorf("write %s: %w", op.Path, syscall.ENOSPC)
	}
	return nil
}

func (f *fullDisk) set(full bool) { f.full.Store(full) }

func (f *fullDisk) String() string { return "full disk" }

func TestLogOnAFullDisk(t *testing.T) {
	for _, inPlace := range []bool{false, true} {
		t.Run(fmt.Sprintf("in place %v", inPlace), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(1, 1))
			disk := vfs.NewCrashableMem()
			require.NoError(t, createLogDir(disk))
			full := &fullDisk{inPlace: inPlace}
			log, err := openLogDir(errorfs.Wrap(disk, full))
			require.NoError(t, err)
			model := newLogModel(logState{})
			add := func() error {
				e := []LogEntry{{Index: log.Last() + 1, Term: 7, Data: make([]byte, 3000)}}
				done := model.append(e, nil)
				if err := log.Append(e, nil); err != nil {
					return err
				}
				done()
				return nil
			}
			for range 3 {
				full.set(true)
				for err = add(); err == nil; err = add() {
				}
				require.ErrorIs(t, err, gearsfs.ErrNoSpace)
				require.NoError(t, model.checkRunning(log, rng))
				require.NoError(t, log.Sync())
				model.synced()
				require.ErrorIs(t, add(), gearsfs.ErrNoSpace)

				full.set(false)
				for range 20 {
					require.NoError(t, add())
				}
				require.NoError(t, model.checkRunning(log, rng))
			}
			require.NoError(t, log.Close())
			again, err := openLogDir(disk)
			require.NoError(t, err)
			_, err = model.checkRecovered(again, true, rng)
			require.NoError(t, err)
			require.NoError(t, again.Close())
		})
	}
}

// TestLogBrokenBySync: after a failed sync nothing is taken any more, since the
// kernel may have dropped what it could not write.
func TestLogBrokenBySync(t *testing.T) {
	disk := vfs.NewMem()
	require.NoError(t, createLogDir(disk))
	fail := false
	log, err := openLogDir(errorfs.Wrap(disk, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if fail && op.Kind == errorfs.OpFileSyncData {
			fail = false // once only
			return errorfs.ErrInjected
		}
		return nil
	})))
	require.NoError(t, err)
	require.NoError(t, log.Append([]LogEntry{{Index: 1, Term: 1}}, nil))
	fail = true
	require.ErrorIs(t, log.Sync(), errorfs.ErrInjected)
	require.ErrorIs(t, log.Sync(), errorfs.ErrInjected)
	require.ErrorIs(t, log.Append([]LogEntry{{Index: 2, Term: 1}}, nil), errorfs.ErrInjected)
	require.ErrorIs(t, log.TruncateFront(1), errorfs.ErrInjected)
	require.ErrorIs(t, log.Reset(5, 5), errorfs.ErrInjected)
	require.ErrorIs(t, log.Close(), errorfs.ErrInjected)
	require.NoError(t, log.Close())
	require.ErrorIs(t, log.Append([]LogEntry{{Index: 2, Term: 1}}, nil), gearsfs.ErrClosed)
}
