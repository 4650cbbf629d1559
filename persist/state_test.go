package persist

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"github.com/gearsfs/gearsfs"
	"github.com/stretchr/testify/require"
)

func newState(t *testing.T, fsys FS) *State {
	t.Helper()
	require.NoError(t, fsys.MkdirAll("state", 0o700))
	s, err := openState(fsys, "state", true, smallData(fsys).withDefaults())
	require.NoError(t, err)
	return s
}

// reader is what State and View have in common.
type reader interface {
	Get(key, buf []byte) ([]byte, bool, error)
	Scan(lo, hi []byte) (Iterator, error)
}

// requireRows checks that a reader shows exactly these rows in [lo, hi), by
// every way of reading.
func requireRows(t *testing.T, r reader, rows map[string]string, lo, hi string, rng *rand.Rand) {
	t.Helper()
	var want []string
	for _, k := range slices.Sorted(maps.Keys(rows)) {
		if lo <= k && k < hi {
			want = append(want, k)
		}
	}
	it, err := r.Scan([]byte(lo), []byte(hi))
	require.NoError(t, err)
	var got, back []string
	for ok := it.First(); ok; ok = it.Next() {
		got = append(got, string(it.Key()))
		require.Equal(t, rows[string(it.Key())], string(it.Value()))
	}
	for ok := it.Last(); ok; ok = it.Prev() {
		back = append(back, string(it.Key()))
	}
	slices.Reverse(back)
	require.Equal(t, want, got)
	require.Equal(t, want, back)
	for range 5 {
		k := fmt.Sprintf("%03d", rng.IntN(200))
		i, found := slices.BinarySearch(want, k)
		require.Equal(t, i < len(want), it.SeekGE([]byte(k)))
		if i < len(want) {
			require.Equal(t, want[i], string(it.Key()))
		}
		require.Equal(t, i > 0, it.SeekLT([]byte(k)))
		if i > 0 {
			require.Equal(t, want[i-1], string(it.Key()))
		}
		value, ok, err := r.Get([]byte(k), []byte("before "))
		require.NoError(t, err)
		if _, there := rows[k]; !there {
			require.False(t, ok)
			require.False(t, found)
			continue
		}
		require.True(t, ok)
		require.Equal(t, "before "+rows[k], string(value))
	}
	require.NoError(t, it.Close())
}

// TestStateAgainstMap does random operations on a state and on a map, with
// views of earlier moments, flushes, checkpoints and reopening between.
func TestStateAgainstMap(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	disk := vfs.NewMem()
	s := newState(t, disk)
	open, committed := map[string]string{}, map[string]string{}
	type moment struct {
		view View
		rows map[string]string
	}
	var views []moment
	key := func() string { return fmt.Sprintf("%03d", rng.IntN(200)) }
	for i := range 3000 {
		switch n := rng.IntN(100); {
		case n < 50:
			k, v := key(), fmt.Sprintf("%d%s", i, bytes.Repeat([]byte("v"), rng.IntN(3000)*rng.IntN(2)))
			kb, vb := []byte(k), []byte(v)
			if _, there := open[k]; there || n%2 == 0 {
				s.Set(kb, vb)
			} else {
				s.Add(kb, vb)
			}
			clear(kb) // neither is kept
			clear(vb)
			open[k] = v
		case n < 60:
			k := key()
			s.Delete([]byte(k))
			delete(open, k)
		case n < 63:
			lo, hi := key(), key()
			if lo > hi {
				lo, hi = hi, lo
			}
			s.DeleteRange([]byte(lo), []byte(hi))
			maps.DeleteFunc(open, func(k, _ string) bool { return lo <= k && k < hi })
		case n < 75:
			requireRows(t, s, open, key(), key(), rng)
		case n < 85:
			require.NoError(t, s.Commit())
			committed = maps.Clone(open)
		case n < 88:
			views = append(views, moment{s.View(), maps.Clone(committed)})
		case n < 94 && len(views) > 0:
			v := rng.IntN(len(views))
			requireRows(t, views[v].view, views[v].rows, "000", "999", rng)
			require.NoError(t, views[v].view.Close())
			views = slices.Delete(views, v, v+1)
		case n < 96:
			require.NoError(t, <-s.Flush())
		case n == 96:
			dir := fmt.Sprintf("checkpoint-%d", i)
			require.NoError(t, s.Checkpoint(dir))
			copied, err := openState(disk, dir, false, smallData(disk).withDefaults())
			require.NoError(t, err)
			requireRows(t, copied, committed, "000", "999", rng)
			require.NoError(t, copied.close())
		case n == 97 && len(views) == 0:
			require.NoError(t, s.close())
			var err error
			s, err = openState(disk, "state", false, smallData(disk).withDefaults())
			require.NoError(t, err)
			open = maps.Clone(committed)
		}
	}
	requireRows(t, s, open, "000", "999", rng)
	require.NotZero(t, s.Bytes())
	for _, v := range views {
		require.NoError(t, v.view.Close())
	}
	require.NoError(t, s.close())
	require.NoError(t, s.close())
}

// TestStateCrashes cuts the power before each write of the state: it is then as
// after some commit, and not older than the last flush that was reported.
func TestStateCrashes(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	disk := vfs.NewCrashableMem()
	var lock sync.Mutex // rng's, for Pebble's goroutines
	var flushed, committed, points atomic.Int64
	check := func(percent int) error {
		flushed := int(flushed.Load()) // before the crash
		lock.Lock()
		copied := disk.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: rng})
		lock.Unlock()
		s, err := openState(copied, "state", false, smallData(copied).withDefaults())
		if err != nil {
			return err
		}
		value, ok, err := s.Get(VolumeKey(), nil)
		n := 0
		if ok {
			n = int(value[0])
		}
		if last := int(committed.Load()); err == nil && (n < flushed || n > last) {
			err = fmt.Errorf("the state is that of commit %d, not of %d to %d", n, flushed, last)
		}
		// Commit n wrote n in each of the rows up to its own.
		for i := 1; i <= n && err == nil; i++ {
			value, ok, err = s.Get(InodeKey(gearsfs.Ino(i)), value[:0])
			if err == nil && (!ok || int(value[0]) != n) {
				err = fmt.Errorf("row %d is not that of commit %d", i, n)
			}
		}
		return errors.Join(err, s.close())
	}
	var armed atomic.Bool
	s := newState(t, errorfs.Wrap(disk, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if armed.Load() && op.Kind.ReadOrWrite() == errorfs.OpIsWrite {
			if err := check([]int{0, 50, 100}[points.Add(1)%3]); err != nil {
				t.Errorf("before %v: %v", op, err)
			}
		}
		return nil
	})))
	require.NoError(t, syncDir(disk, ""))
	for n := 1; n <= 40; n++ {
		for i := 1; i <= n; i++ {
			s.Set(InodeKey(gearsfs.Ino(i)), bytes.Repeat([]byte{byte(n)}, 1+i%2*3000))
		}
		s.Set(VolumeKey(), []byte{byte(n)})
		require.NoError(t, s.Commit())
		committed.Store(int64(n))
		if n%5 == 0 {
			armed.Store(true)
			require.NoError(t, <-s.Flush())
			armed.Store(false)
			flushed.Store(int64(n))
			require.NoError(t, check(0))
		}
	}
	require.NoError(t, s.close())
	flushed.Store(committed.Load())
	require.NoError(t, check(0))
	t.Logf("%d crash points", points.Load())
	require.Greater(t, points.Load(), int64(40))
}

// TestStateFatal: what Pebble can't go on after reaches the injected function,
// Commit and close.
func TestStateFatal(t *testing.T) {
	disk := vfs.NewMem()
	fail := false
	told := make(chan error, 2)
	opts := smallData(errorfs.Wrap(disk, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if fail && op.Kind == errorfs.OpFileSync && bytes.Contains([]byte(op.Path), []byte("MANIFEST")) {
			return errorfs.ErrInjected
		}
		return nil
	}))).withDefaults()
	opts.Fatal = func(err error) { told <- err }
	require.NoError(t, disk.MkdirAll("state", 0o700))
	s, err := openState(opts.FS, "state", true, opts)
	require.NoError(t, err)
	s.Set([]byte("k"), []byte("v"))
	require.NoError(t, s.Commit())
	fail = true
	require.Error(t, <-s.Flush())
	require.ErrorContains(t, <-told, "injected")
	s.Set([]byte("k"), []byte("w"))
	require.ErrorContains(t, s.Commit(), "injected")
	require.ErrorContains(t, s.close(), "injected")
	require.Empty(t, told)
}

// TestStateFlushFails: a flush that fails says so, and a later one succeeds.
func TestStateFlushFails(t *testing.T) {
	disk := vfs.NewMem()
	fail := &fullDisk{}
	s := newState(t, errorfs.Wrap(disk, fail))
	s.Set([]byte("k"), []byte("v"))
	require.NoError(t, s.Commit())
	fail.set(true)
	require.ErrorContains(t, <-s.Flush(), "no space")
	fail.set(false)
	for err := <-s.Flush(); err != nil; err = <-s.Flush() {
		require.ErrorContains(t, err, "no space") // of a try that began before
	}
	require.NoError(t, s.close())
}

// TestStateDamaged: bytes that are not what was written are named as damage.
func TestStateDamaged(t *testing.T) {
	disk := vfs.NewMem()
	s := newState(t, disk)
	for i := range uint64(100) {
		s.Set(InodeKey(gearsfs.Ino(i)), bytes.Repeat([]byte{byte(i)}, 500))
	}
	require.NoError(t, s.Commit())
	require.NoError(t, s.close())
	names, err := disk.List("state")
	require.NoError(t, err)
	for _, name := range names {
		if path := "state/" + name; bytes.HasSuffix([]byte(name), []byte(".sst")) {
			b := readAll(t, disk, path)
			b[100] ^= 1
			writeAll(t, disk, path, b)
		}
	}
	s, err = openState(disk, "state", false, smallData(disk).withDefaults())
	require.NoError(t, err)
	_, _, err = s.Get(InodeKey(1), nil)
	require.ErrorIs(t, err, gearsfs.ErrDamaged)
	it, err := s.Scan(TableRange(TableInode))
	require.NoError(t, err)
	require.False(t, it.First())
	require.ErrorIs(t, it.Close(), gearsfs.ErrDamaged)
	require.NoError(t, s.close())
}

// TestStateGetDoesNotAllocate where nothing is in the open batch.
func TestStateGetDoesNotAllocate(t *testing.T) {
	s := newState(t, vfs.NewMem())
	s.Set(VolumeKey(), []byte("row"))
	require.NoError(t, s.Commit())
	key, buf := VolumeKey(), make([]byte, 0, 64)
	allocs := testing.AllocsPerRun(1000, func() {
		value, ok, err := s.Get(key, buf[:0])
		if !ok || err != nil || string(value) != "row" {
			t.Fatal(ok, err)
		}
	})
	require.LessOrEqual(t, allocs, 1.0)
	require.NoError(t, s.close())
}
