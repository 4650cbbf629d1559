package block_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/block"
	"github.com/gearsfs/gearsfs/block/blocktest"
	"github.com/gearsfs/gearsfs/tests/bubble"
	"github.com/stretchr/testify/require"
)

// these is a Live of some extents.
func these(extents ...gearsfs.Extent) block.Live {
	return func(yield func(gearsfs.Extent) error) error {
		for _, e := range extents {
			if err := yield(e); err != nil {
				return err
			}
		}
		return nil
	}
}

func segmentPath(e gearsfs.Extent) string {
	return filepath.Join("blocks", fmt.Sprintf("%016x", uint64(e.Origin)), fmt.Sprintf("%016x", e.Segment))
}

func TestCheck(t *testing.T) {
	disk := blocktest.NewMemory(nil)
	now := time.Now()
	s := open(t, disk, "blocks", block.Options{SegmentBytes: 64 * pageBytes, Now: func() time.Time { return now }})
	d := newDriver(nil, "", randomRun(t))
	data := filled(10*pageBytes + 100)
	var live []gearsfs.Extent
	for range 20 {
		live = append(live, appendOne(t, s, data))
	}
	live = append(live, gearsfs.InlineExtent([]byte("x")))
	require.NoError(t, s.Sync())
	check := func(opts block.CheckOptions) block.Report {
		r, err := s.Check(t.Context(), these(live...), opts)
		require.NoError(t, err)
		return r
	}
	r := check(block.CheckOptions{})
	require.True(t, r.Healthy())
	require.Equal(t, uint64(20), r.Extents)
	require.Equal(t, uint64(20*len(data)), r.Bytes)
	require.Equal(t, int64(20*11*pageBytes), r.Allocated)
	require.Equal(t, 4, r.Segments)
	require.Zero(t, r.Unreferenced+r.Recent)

	// One bit, then what a power cut may leave, then a file that is gone.
	f, err := disk.Open(segmentPath(live[1]))
	require.NoError(t, err)
	_, err = f.WriteAt([]byte{0}, int64(live[1].At)+5*pageBytes+7)
	require.NoError(t, err)
	require.NoError(t, f.Punch(int64(live[2].At)+9*pageBytes, 2*pageBytes))
	require.NoError(t, f.Close())
	missing := d.made(data)
	live = append(live, missing)
	// Some that are named more often, and in pieces.
	live = append(live, live[1], live[1].Cut(5*pageBytes, 10), live[3].Cut(7, pageBytes))
	// And nobody refers to this one any more.
	live = slices.Delete(live, 12, 13)

	r = check(block.CheckOptions{})
	require.False(t, r.Healthy())
	require.Equal(t, uint64(1), r.Damaged.Count)
	require.Equal(t, uint64(pageBytes), r.Damaged.Bytes)
	require.Equal(t, live[1].At+5*pageBytes, r.Damaged.First[0].At)
	require.Equal(t, live[1].Segment, r.Damaged.First[0].Segment)
	require.Equal(t, self, r.Damaged.First[0].Origin)
	require.Equal(t, segmentPath(live[1]), r.Damaged.First[0].File)
	require.Contains(t, r.Damaged.First[0].Reason, segmentPath(live[1]))
	require.Equal(t, uint64(2), r.Absent.Count)
	require.Equal(t, uint64(pageBytes+100+len(data)), r.Absent.Bytes)
	require.Equal(t, int64(11*pageBytes), r.Recent)
	require.Zero(t, r.Unreferenced)

	now = now.Add(block.SettledAge + time.Second)
	var told []block.Progress
	r = check(block.CheckOptions{FaultsMax: 1, Progress: func(p block.Progress) { told = append(told, p) }})
	require.Equal(t, int64(11*pageBytes), r.Unreferenced)
	require.Len(t, r.Absent.First, 1)
	require.Equal(t, uint64(2), r.Absent.Count)
	require.Equal(t, block.Progress{Extents: r.Extents, Bytes: r.Bytes, Segments: r.Segments}, told[len(told)-1])

	r = check(block.CheckOptions{StillLive: func(e gearsfs.Extent) bool { return e.Origin != missing.Origin }})
	require.Equal(t, uint64(pageBytes+100), r.Absent.Bytes, "it was freed since")

	bad := live[0]
	bad.Sums = bad.Sums[1:]
	r, err = s.Check(t.Context(), these(bad), block.CheckOptions{})
	require.NoError(t, err)
	require.Equal(t, uint64(1), r.Damaged.Count)
	require.Contains(t, r.Damaged.First[0].Reason, "checksums")
}

// TestCheckOfABadSector: the pages that the disk can't read are named, not
// their neighbours.
func TestCheckOfABadSector(t *testing.T) {
	const bad = 13
	disk := &badSector{FS: blocktest.NewMemory(nil), at: bad*pageBytes + 700}
	s := open(t, disk, "blocks", block.Options{})
	e := appendOne(t, s, filled(100*pageBytes))
	r, err := s.Check(t.Context(), these(e), block.CheckOptions{})
	require.NoError(t, err)
	require.Equal(t, uint64(1), r.Damaged.Count)
	require.Equal(t, uint64(pageBytes), r.Damaged.Bytes)
	require.Equal(t, uint64(bad*pageBytes), r.Damaged.First[0].At)
	require.Zero(t, r.Absent.Count)
}

// badSector has files of which one byte can't be read.
type badSector struct {
	block.FS
	at int64
}

func (b *badSector) Create(path string) (block.File, error) {
	f, err := b.FS.Create(path)
	return &badFile{f, b.at}, err
}

type badFile struct {
	block.File
	at int64
}

func (f *badFile) ReadAt(b []byte, off int64) (int, error) {
	if off <= f.at && f.at < off+int64(len(b)) {
		return 0, syscall.EIO
	}
	return f.File.ReadAt(b, off)
}

func TestSweep(t *testing.T) {
	for name, disk := range map[string]func(now func() time.Time) *blocktest.Memory{
		"holes":         blocktest.NewMemory,
		"without holes": func(now func() time.Time) *blocktest.Memory { return blocktest.NewMemory(now).Simple(true) },
		"without punch": func(now func() time.Time) *blocktest.Memory { return blocktest.NewMemory(now).Simple(false) },
	} {
		t.Run(name, func(t *testing.T) {
			now := time.Unix(1e9, 0)
			clock := func() time.Time { return now }
			opts := block.Options{Self: self, FS: disk(clock), Now: clock, SegmentBytes: 4 * pageBytes}
			s, err := block.Open("blocks", opts)
			require.NoError(t, err)
			data := filled(pageBytes)
			var all, live []gearsfs.Extent
			for i := range 13 { // four to a segment: the second segment is not referred to at all
				e := appendOne(t, s, data)
				all = append(all, e)
				if i/4 != 1 && i%4 != 2 {
					live = append(live, e)
				}
			}
			require.NoError(t, s.Close())
			s = open(t, opts.FS, "blocks", opts)
			sweep := func(l block.Live) block.SweepReport {
				r, err := s.Sweep(t.Context(), l, block.SweepOptions{})
				require.NoError(t, err)
				return r
			}
			require.Equal(t, block.SweepReport{Busy: 4}, sweep(these(live...)), "all is too new")

			now = now.Add(block.SettledAge)
			lost := errors.New("the state can't be read")
			_, err = s.Sweep(t.Context(), func(yield func(gearsfs.Extent) error) error {
				return errors.Join(yield(live[0]), lost)
			}, block.SweepOptions{})
			require.ErrorIs(t, err, lost)
			for _, e := range all {
				require.True(t, s.Has(e), "a list that is not whole frees nothing")
			}

			r := sweep(these(live...))
			require.Equal(t, int64((4+2)*pageBytes), r.Freed)
			require.Equal(t, 1, r.Removed)
			require.Equal(t, 4, r.Segments)
			require.Zero(t, r.Busy)
			for _, e := range live {
				require.True(t, s.Has(e))
			}
			_, err = readAll(s, all[5])
			require.ErrorIs(t, err, block.ErrAbsent)
			if name == "holes" {
				u, err := s.Usage()
				require.NoError(t, err)
				require.Equal(t, block.Usage{Segments: 3, Bytes: int64(len(live)) * pageBytes}, u)
				now = now.Add(block.SettledAge)
				require.Equal(t, block.SweepReport{Segments: 3}, sweep(these(live...)), "there is nothing left to do")
			}
		})
	}
}

// TestSweepLeavesUploads: what is stored but not yet referred to stays, also
// where it comes while the sweep asks what is referred to, and where the time
// of day jumps.
func TestSweepLeavesUploads(t *testing.T) {
	now := time.Unix(1e9, 0)
	clock := func() time.Time { return now }
	disk := blocktest.NewMemory(func() time.Time { return time.Unix(1, 0) }) // says that all files are old
	s := open(t, disk, "blocks", block.Options{Now: clock, SegmentBytes: 4 * pageBytes})
	data := filled(pageBytes)
	var foreign []gearsfs.Extent
	d := newDriver(nil, "", randomRun(t))
	for range 40 {
		e := d.made(data)
		require.NoError(t, s.Store(e, data))
		foreign = append(foreign, e)
	}
	sweep := func(live block.Live) block.SweepReport {
		r, err := s.Sweep(t.Context(), live, block.SweepOptions{})
		require.NoError(t, err)
		return r
	}
	sweep(these())
	require.NoError(t, s.Sync())
	sweep(these())
	for _, e := range foreign {
		require.True(t, s.Has(e))
	}

	now = now.Add(block.SettledAge)
	again := foreign[len(foreign)-1]
	r := sweep(func(func(gearsfs.Extent) error) error {
		return s.Store(again, data) // of use again, or late
	})
	require.NotZero(t, r.Freed)
	require.Equal(t, 1, r.Busy)
	require.True(t, s.Has(again))
	own := appendOne(t, s, data)
	require.NoError(t, s.Sync())
	now = now.Add(2 * block.SettledAge)
	sweep(these())
	require.True(t, s.Has(own), "it is in the segment that is being filled")
}

func TestCheckAndSweepEnd(t *testing.T) {
	s, err := block.Open("blocks", block.Options{Self: self, FS: blocktest.NewMemory(nil)})
	require.NoError(t, err)
	e := appendOne(t, s, filled(10))
	ctx, cancel := context.WithCancel(t.Context())
	live := func(yield func(gearsfs.Extent) error) error {
		cancel()
		return yield(e)
	}
	_, err = s.Check(ctx, live, block.CheckOptions{})
	require.ErrorIs(t, err, context.Canceled)
	_, err = s.Sweep(ctx, live, block.SweepOptions{Age: -1})
	require.ErrorIs(t, err, context.Canceled)
	closing := func(yield func(gearsfs.Extent) error) error {
		require.NoError(t, s.Close())
		return yield(e)
	}
	_, err = s.Check(t.Context(), closing, block.CheckOptions{})
	require.ErrorIs(t, err, gearsfs.ErrClosed)
	_, err = s.Sweep(t.Context(), closing, block.SweepOptions{})
	require.ErrorIs(t, err, gearsfs.ErrClosed)
}

// TestRates: checking, sweeping and freeing take the time that their rates say,
// and end when the store is closed.
func TestRates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const rate = 1 << 20
		opts := block.Options{Self: self, FS: blocktest.NewMemory(nil), FreeRate: rate}
		s, err := block.Open("blocks", opts)
		require.NoError(t, err)
		var extents []gearsfs.Extent
		for range 10 {
			extents = append(extents, appendOne(t, s, filled(rate)))
		}
		took := func(want time.Duration, do func()) {
			t.Helper()
			begin := time.Now()
			do()
			require.InDelta(t, want.Seconds(), time.Since(begin).Seconds(), 1.2)
			bubble.Pass(time.Minute)
		}
		took(10*time.Second, func() {
			r, err := s.Check(t.Context(), these(extents...), block.CheckOptions{Rate: rate})
			require.NoError(t, err)
			require.True(t, r.Healthy())
		})
		took(5*time.Second, func() {
			for _, e := range extents[:5] {
				require.NoError(t, s.Free([]gearsfs.Extent{e}))
			}
		})
		require.NoError(t, s.Close())
		s, err = block.Open("blocks", opts)
		require.NoError(t, err)
		took(0, func() { // all at once, but the next one waits for it
			_, err := s.Sweep(t.Context(), these(extents[5:9]...), block.SweepOptions{Age: -1, Rate: rate})
			require.NoError(t, err)
		})
		require.False(t, s.Has(extents[9]))
		require.NoError(t, s.Free(extents[5:6]))
		freed := make(chan error)
		go func() {
			var err error
			for _, e := range extents[6:9] {
				err = errors.Join(err, s.Free([]gearsfs.Extent{e}))
			}
			freed <- err
		}()
		synctest.Wait()
		begin := time.Now()
		require.NoError(t, s.Close())
		require.ErrorIs(t, <-freed, gearsfs.ErrClosed)
		require.Zero(t, time.Since(begin))
	})
}
