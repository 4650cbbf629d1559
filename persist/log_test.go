package persist

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/gearsfs/gearsfs"
	"github.com/stretchr/testify/require"
)

func newLogOn(t *testing.T, fsys FS) *Log {
	t.Helper()
	require.NoError(t, createLogDir(fsys))
	l, err := openLogDir(fsys)
	require.NoError(t, err)
	return l
}

// entryOf makes an entry whose data tell its index.
func entryOf(index uint64) LogEntry {
	data := binary.LittleEndian.AppendUint64(nil, index)
	return LogEntry{Index: index, Term: 1 + index/100, Data: bytes.Repeat(data, 1+int(index%40))}
}

// TestLogConcurrency appends, syncs, reads and truncates at once; now and then
// the power is cut, and what a Sync had covered must be there.
func TestLogConcurrency(t *testing.T) {
	const last = 5000
	disk := vfs.NewCrashableMem()
	l := newLogOn(t, disk)
	done := make(chan struct{})
	var wait sync.WaitGroup
	run := func(f func(rng *rand.Rand) error) {
		wait.Go(func() {
			rng := rand.New(rand.NewPCG(rand.Uint64(), 0))
			for {
				select {
				case <-done:
					return
				default:
				}
				if err := f(rng); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	syncs := 0
	run(func(rng *rand.Rand) error {
		covered := l.Last()
		if err := l.Sync(); err != nil {
			return err
		}
		if syncs++; syncs%50 != 0 {
			return nil
		}
		again, err := openLogDir(disk.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 50, RNG: rng}))
		if err != nil {
			return err
		}
		if again.Last() < covered {
			return fmt.Errorf("the log ends with %d, but %d was synced", again.Last(), covered)
		}
		return again.Close()
	})
	for range 2 {
		run(func(rng *rand.Rand) error {
			first, end := l.First(), l.Last()+1
			if first == end {
				return nil
			}
			lo := first + rng.Uint64N(end-first)
			entries, err := l.Entries(lo, end, uint64(rng.IntN(20000)))
			if lo < l.First() {
				return nil // it was cut off meanwhile
			}
			if err != nil {
				return err
			}
			for i, e := range entries {
				if want := entryOf(lo + uint64(i)); e.Index != want.Index || e.Term != want.Term || !bytes.Equal(e.Data, want.Data) {
					return fmt.Errorf("entry %d is not what was appended as %d", e.Index, want.Index)
				}
			}
			return nil
		})
	}
	run(func(rng *rand.Rand) error {
		first, end := l.First(), l.Last()+1
		if end-first < 500 {
			return nil
		}
		return l.TruncateFront(first + rng.Uint64N(400))
	})
	for i := uint64(1); i <= last; i++ {
		if err := l.Append([]LogEntry{entryOf(i)}, binary.LittleEndian.AppendUint64(nil, i)); err != nil {
			t.Error(err)
			break
		}
	}
	close(done)
	wait.Wait()
	require.NoError(t, l.Close())
	again, err := openLogDir(disk)
	require.NoError(t, err)
	require.EqualValues(t, last, again.Last())
	require.NoError(t, again.Close())
}

func TestLogRefuses(t *testing.T) {
	l := newLogOn(t, vfs.NewMem())
	add := func(indexes ...uint64) error {
		var entries []LogEntry
		for _, i := range indexes {
			entries = append(entries, entryOf(i))
		}
		return l.Append(entries, nil)
	}
	require.NoError(t, add(1, 2, 3, 4))
	require.ErrorIs(t, add(6), gearsfs.ErrInvalid)
	require.ErrorIs(t, add(5, 7), gearsfs.ErrInvalid)
	require.ErrorIs(t, add(0), gearsfs.ErrInvalid)
	require.NoError(t, l.Append(nil, nil))
	require.NoError(t, l.TruncateFront(2))
	require.NoError(t, l.TruncateFront(1))
	require.ErrorIs(t, add(2), gearsfs.ErrInvalid)
	require.ErrorIs(t, l.TruncateFront(5), gearsfs.ErrRange)
	for _, span := range [][2]uint64{{2, 3}, {4, 6}, {5, 6}, {1, 6}} {
		_, err := l.Entries(span[0], span[1], 100)
		require.ErrorIs(t, err, gearsfs.ErrRange, "%v", span)
	}
	none, err := l.Entries(3, 3, 100)
	require.NoError(t, err)
	require.Empty(t, none)
	_, err = l.Term(1)
	require.ErrorIs(t, err, gearsfs.ErrRange)
	_, err = l.Term(5)
	require.ErrorIs(t, err, gearsfs.ErrRange)
	term, err := l.Term(2)
	require.NoError(t, err)
	require.EqualValues(t, 1, term)
	require.NoError(t, l.Close())
	require.ErrorIs(t, add(5), gearsfs.ErrClosed)
	require.ErrorIs(t, l.Sync(), gearsfs.ErrClosed)
	require.ErrorIs(t, l.Reset(1, 1), gearsfs.ErrClosed)
	require.ErrorIs(t, l.TruncateFront(3), gearsfs.ErrClosed)
	_, err = l.Entries(3, 4, 100)
	require.ErrorIs(t, err, gearsfs.ErrClosed)
}

// TestLogRecycles: a log that is truncated as it grows stays bounded, and uses
// its files again.
func TestLogRecycles(t *testing.T) {
	disk := vfs.NewMem()
	l := newLogOn(t, disk)
	for i := uint64(1); i <= 3000; i++ {
		require.NoError(t, l.Append([]LogEntry{entryOf(i)}, nil))
		if i%100 == 0 {
			require.NoError(t, l.TruncateFront(i-10))
			require.Less(t, l.Bytes(), uint64(100<<10))
			names, err := disk.List(logDir)
			require.NoError(t, err)
			require.LessOrEqual(t, len(names), sparesMax+3)
		}
	}
	require.Greater(t, l.number, uint64(20))
	require.NoError(t, l.Close())
}

// TestLogReadsLargeEntries from disk, over the reader's buffer and over the
// size of a segment.
func TestLogReadsLargeEntries(t *testing.T) {
	l := newLogOn(t, vfs.NewMem())
	var want []LogEntry
	for i, size := range []int{10, segmentReadBytes - 10, 3 * segmentReadBytes, 0, 100, 1 << 20, 5} {
		e := LogEntry{Index: uint64(i + 1), Term: 3, Type: 2, Data: bytes.Repeat([]byte{byte(i + 1)}, size)}
		require.NoError(t, l.Append([]LogEntry{e}, nil))
		want = append(want, e)
	}
	require.NoError(t, l.Append([]LogEntry{{Index: 8, Data: make([]byte, 1999)}}, nil)) // drives out the others
	for lo := range want {
		got, err := l.Entries(uint64(lo+1), uint64(len(want)+1), 1<<30)
		require.NoError(t, err)
		require.NoError(t, sameEntries(got, want[lo:], 1<<30))
	}
	require.NoError(t, l.Close())
}

// TestLogBytesFrom: the figure is off by a point's distance and the heads of
// segments at most.
func TestLogBytesFrom(t *testing.T) {
	l := newLogOn(t, vfs.NewMem())
	require.Zero(t, l.BytesFrom(0))
	sizes := map[uint64]uint64{}
	for i := uint64(1); i <= 800; i++ {
		e := entryOf(i)
		sizes[i] = uint64(recordBytes(len(e.Data)))
		require.NoError(t, l.Append([]LogEntry{e}, nil))
	}
	compare := func() {
		var want uint64
		off := uint64(smallLog.SegmentBytes) // less than the distance of points
		for i := l.Last(); i >= l.First(); i-- {
			got := l.BytesFrom(i)
			require.GreaterOrEqual(t, got, want)
			require.LessOrEqual(t, got, want+off+want/10)
			want += sizes[i]
		}
		require.Equal(t, l.BytesFrom(l.First()-1), l.BytesFrom(0))
		require.Zero(t, l.BytesFrom(l.Last()))
		require.Zero(t, l.BytesFrom(l.Last()+1000))
	}
	compare()
	require.Greater(t, len(l.segs), 3)
	require.NoError(t, l.TruncateFront(500))
	compare()
	require.NoError(t, l.Reset(2000, 9))
	require.Zero(t, l.BytesFrom(0))
	require.NoError(t, l.Close())
}

// FuzzReplay reads logs of valid records with any fields: they are a log or
// damage, and never make the reader panic.
func FuzzReplay(f *testing.F) {
	f.Add([]byte{2, 0, 1, 1, 2, 0, 2, 1, 3, 0, 0, 5, 4, 0, 1, 1, 5, 1, 0, 0, 2, 0, 2, 2, 6, 0, 0, 0})
	f.Fuzz(func(t *testing.T, script []byte) {
		script = script[:min(len(script), 1000)]
		disk := vfs.NewMem()
		require.NoError(t, disk.MkdirAll(logDir, 0o700))
		segment := appendRecord(nil, 0, head{number: 1, first: 1, lastIndex: 2, lastTerm: 1}.record(1))
		generation := uint64(1)
		for len(script) >= 4 {
			r := record{kind: recordKind(script[0] % 9), index: uint64(script[2] % 16), term: uint64(script[3]), synced: uint32(script[3])}
			generation += uint64(script[1] % 2)
			r.generation = generation
			if r.kind == kindFront {
				r.payload = binary.LittleEndian.AppendUint64(nil, uint64(script[3]%3))
			}
			segment = appendRecord(segment, int64(len(segment)), r)
			script = script[4:]
		}
		writeAll(t, disk, logDir+"/"+segmentName(1), segment)
		l, err := openLogDir(disk)
		if err != nil {
			require.ErrorIs(t, err, gearsfs.ErrDamaged)
			return
		}
		for i := l.First(); i <= l.Last(); i++ {
			_, err := l.Entries(i, l.Last()+1, 100)
			require.NoError(t, err)
			_, err = l.Term(i - 1)
			require.NoError(t, err)
		}
		require.NoError(t, l.Append([]LogEntry{{Index: l.Last() + 1}}, nil))
		require.NoError(t, l.Close())
	})
}
