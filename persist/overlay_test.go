package persist

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"github.com/stretchr/testify/require"
)

// history is what rows there were after each commit; row "commit" says which
// one it was.
type history struct {
	mu        sync.Mutex
	rng       *rand.Rand // for Pebble's goroutines too
	committed []map[string]string
	flushed   int
	disk      *vfs.MemFS
}

// check cuts the power: the state is as after one of the commits, and not of
// one before the last flush that was reported.
func (h *history) check() error {
	h.mu.Lock()
	flushed := h.flushed // before the crash
	percent := h.rng.IntN(3) * 50
	copied := h.disk.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: h.rng})
	h.mu.Unlock()
	s, err := openState(copied, "state", false, smallData(copied).withDefaults())
	if err != nil {
		return err
	}
	got := map[string]string{}
	it, err := s.Scan([]byte("0"), []byte("z"))
	if err == nil {
		for ok := it.First(); ok; ok = it.Next() {
			got[string(it.Key())] = string(it.Value())
		}
		err = it.Close()
	}
	n := 0
	if v, ok := got["commit"]; ok {
		n = int(binary.BigEndian.Uint64([]byte(v)))
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case err != nil:
	case n < flushed || n >= len(h.committed):
		err = fmt.Errorf("the state is that of commit %d, not of %d to %d", n, flushed, len(h.committed)-1)
	case !maps.Equal(got, h.committed[n]):
		err = fmt.Errorf("the rows are not those of commit %d", n)
	}
	return errors.Join(err, s.close())
}

// TestOverlayCrashes changes rows at random, as entries do: some all the time,
// some that are gone again soon, some large, with reads and flushes between. It
// cuts the power before each write of what is flushed, by a flush or by Pebble
// itself, and behind commits.
func TestOverlayCrashes(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	h := &history{rng: rand.New(rand.NewPCG(seed, 1)), disk: vfs.NewCrashableMem(), committed: []map[string]string{{}}}
	var armed atomic.Bool
	var points atomic.Int64
	s := newState(t, errorfs.Wrap(h.disk, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if armed.Load() && op.Kind.ReadOrWrite() == errorfs.OpIsWrite && points.Add(1)%20 == 0 {
			if err := h.check(); err != nil {
				t.Errorf("before %v: %v", op, err)
			}
		}
		return nil
	})))
	require.NoError(t, syncDir(h.disk, ""))
	armed.Store(true)
	rows, full := map[string]string{}, 0
	for n := 1; n <= 600; n++ {
		for range rng.IntN(20) {
			changeRow(s, rng, rows, n)
			if !s.batch.Empty() {
				full++
			}
			require.LessOrEqual(t, len(s.overlay.values), overlayBytesMax)
			switch rng.IntN(400) {
			case 0:
				requireRows(t, s, rows, "000", "zzz", rng)
			case 3, 4: // one table
				table := rng.IntN(3)
				requireRows(t, s, rows, fmt.Sprint(table), fmt.Sprint(table+1), rng)
			case 1:
				view := s.View()
				requireRows(t, view, h.committed[n-1], "000", "zzz", rng)
				require.NoError(t, view.Close())
			case 2: // of the commits before this one
				require.NoError(t, <-s.Flush())
				h.flush(n - 1)
			}
		}
		commit := binary.BigEndian.AppendUint64(nil, uint64(n))
		s.Set([]byte("commit"), commit)
		rows["commit"] = string(commit)
		h.mu.Lock()
		h.committed = append(h.committed, maps.Clone(rows))
		h.mu.Unlock()
		require.NoError(t, s.Commit())
		if n%50 == 0 {
			require.NoError(t, h.check())
		}
	}
	armed.Store(false)
	require.NoError(t, s.close())
	h.flush(600)
	require.NoError(t, h.check())
	t.Logf("%d writes, %d changes behind a full overlay", points.Load(), full)
	require.Greater(t, points.Load(), int64(100))
	require.Positive(t, full)
}

func (h *history) flush(n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.flushed = n
}

// changeRow changes a row of a state and of the map beside it.
func changeRow(s *State, rng *rand.Rand, rows map[string]string, n int) {
	k := fmt.Sprintf("%03d", rng.IntN(300))
	switch rng.IntN(40) {
	case 0:
		hi := fmt.Sprintf("%s5", k)
		s.DeleteRange([]byte(k), []byte(hi))
		maps.DeleteFunc(rows, func(r, _ string) bool { return k <= r && r < hi })
		return
	case 1, 2, 3, 4, 5, 6, 7, 8:
		s.Delete([]byte(k))
		delete(rows, k)
		return
	}
	v := fmt.Sprintf("%d%s", n, bytes.Repeat([]byte("v"), rng.IntN(100)*(1+rng.IntN(2)*30)))
	if _, there := rows[k]; there {
		s.Set([]byte(k), []byte(v))
	} else {
		s.Add([]byte(k), []byte(v))
	}
	rows[k] = v
}

// TestOverlayForgetsShortLives: rows that are added and deleted between two moves
// never reach Pebble, not even as deletions, and others do once.
func TestOverlayForgetsShortLives(t *testing.T) {
	s := newState(t, vfs.NewMem())
	for n := range 100 {
		lease := fmt.Appendf(nil, "lease %d", n)
		s.Add(lease, []byte("leased"))
		s.Set([]byte("session"), lease)
		require.NoError(t, s.Commit())
		s.Delete(lease)
		require.NoError(t, s.Commit())
	}
	b := s.tables.db.NewBatch()
	require.NoError(t, s.overlay.putCommitted(b))
	require.EqualValues(t, 1, b.Count())
	require.NoError(t, b.Close())
	require.NoError(t, s.close())
}

// TestOverlayStaysBehindScansOfOthers: rows move when their table is scanned, and
// not when others are.
func TestOverlayStaysBehindScansOfOthers(t *testing.T) {
	s := newState(t, vfs.NewMem())
	count := func(lo, hi string) (n int) {
		it, err := s.Scan([]byte(lo), []byte(hi))
		require.NoError(t, err)
		for ok := it.First(); ok; ok = it.Next() {
			n++
		}
		require.NoError(t, it.Close())
		return n
	}
	s.Set([]byte("c1"), []byte("committed"))
	require.NoError(t, s.Commit())
	s.Set([]byte("c2"), []byte("open"))
	require.Zero(t, count("a", "b9"))
	require.Zero(t, count("d", "e"))
	require.Len(t, s.overlay.rows, 2)
	require.True(t, s.batch.Empty())
	require.Equal(t, 1, count("c11", "d"), "its own changes too")
	require.Empty(t, s.overlay.rows)
	require.NoError(t, s.Commit())
	s.Set([]byte("e"), nil)
	require.Equal(t, 2, count("c", "d"))
	require.Len(t, s.overlay.rows, 1)
	require.Equal(t, 3, count("c", "z"))
	require.NoError(t, s.close())
}

// TestOverlayBesideReaders: views and flushes of other goroutines show the rows
// of one commit, never between, and never an earlier one than before.
func TestOverlayBesideReaders(t *testing.T) {
	s := newState(t, vfs.NewMem())
	var committed atomic.Uint64
	stop, failed := make(chan struct{}), make(chan error, 1)
	read := func() error {
		least := committed.Load()
		view := s.View()
		defer view.Close()
		var seen [3]uint64
		for i := range seen {
			value, ok, err := view.Get([]byte{'a' + byte(i)}, nil)
			if err != nil {
				return err
			}
			if ok {
				seen[i] = binary.BigEndian.Uint64(value)
			}
		}
		if seen[0] != seen[1] || seen[0] != seen[2] || seen[0] < least {
			return fmt.Errorf("rows %d, behind commit %d", seen, least)
		}
		return nil
	}
	go func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				failed <- nil
				return
			default:
			}
			err := read()
			if err == nil && i%10 == 0 {
				err = <-s.Flush()
			}
			if err != nil {
				failed <- err
				return
			}
		}
	}()
	for n := uint64(1); n <= 3000; n++ {
		value := binary.BigEndian.AppendUint64(nil, n)
		for i := range byte(3) {
			s.Set([]byte{'a' + i}, value)
			got, ok, err := s.Get([]byte{'a' + i}, nil)
			require.NoError(t, err)
			require.True(t, ok)
			require.Equal(t, value, got)
		}
		require.NoError(t, s.Commit())
		committed.Store(n)
	}
	close(stop)
	require.NoError(t, <-failed)
	require.NoError(t, s.close())
}

// TestOverlayMovesBeneathAnOpenBatch: what was added and has moved meanwhile, by a
// reader's doing, is deleted in Pebble too.
func TestOverlayMovesBeneathAnOpenBatch(t *testing.T) {
	s := newState(t, vfs.NewMem())
	k := []byte("k")
	s.Add(k, []byte("v"))
	require.NoError(t, s.Commit())
	s.Set([]byte("other"), nil)
	require.NoError(t, s.View().Close())
	s.Delete(k)
	require.NoError(t, s.Commit())
	view := s.View()
	_, ok, err := view.Get(k, nil)
	require.NoError(t, err)
	require.False(t, ok)
	require.NoError(t, view.Close())
	require.NoError(t, s.close())
}
