package block_test

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/block"
	"github.com/gearsfs/gearsfs/block/blocktest"
	"github.com/stretchr/testify/require"
)

const pageBytes = gearsfs.PageBytes

func TestFileSystems(t *testing.T) {
	memory := func(m *blocktest.Memory) func(*testing.T) (block.FS, string) {
		return func(*testing.T) (block.FS, string) { return m, "." }
	}
	for name, where := range map[string]func(*testing.T) (block.FS, string){
		"disk":          func(t *testing.T) (block.FS, string) { return block.OS, t.TempDir() },
		"tmpfs":         func(t *testing.T) (block.FS, string) { return block.OS, tmpfs(t) },
		"overlay":       func(t *testing.T) (block.FS, string) { return block.OS, overlay(t) },
		"memory":        memory(blocktest.NewMemory(nil)),
		"without holes": memory(blocktest.NewMemory(nil).Simple(true)),
		"without punch": memory(blocktest.NewMemory(nil).Simple(false)),
		"faulty": func(*testing.T) (block.FS, string) {
			return blocktest.Faulty(blocktest.NewMemory(nil), func(blocktest.Op) error { return nil }), "."
		},
	} {
		t.Run(name, func(t *testing.T) {
			fsys, dir := where(t)
			blocktest.TestFS(t, fsys, dir)
		})
	}
}

func tmpfs(t *testing.T) string {
	dir := t.TempDir()
	require.NoError(t, syscall.Mount("tmpfs", dir, "tmpfs", 0, ""))
	t.Cleanup(func() { require.NoError(t, syscall.Unmount(dir, 0)) })
	return dir
}

// overlay is one above a tmpfs; that alone where the kernel has no overlay.
func overlay(t *testing.T) string {
	base, merged := tmpfs(t), t.TempDir()
	for _, name := range []string{"lower", "upper", "work"} {
		require.NoError(t, os.Mkdir(filepath.Join(base, name), 0o700))
	}
	opts := fmt.Sprintf("lowerdir=%[1]s/lower,upperdir=%[1]s/upper,workdir=%[1]s/work", base)
	err := syscall.Mount("overlay", merged, "overlay", 0, opts)
	if errors.Is(err, syscall.ENODEV) {
		return base
	}
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, syscall.Unmount(merged, 0)) })
	return merged
}

func open(t *testing.T, fsys block.FS, dir string, opts block.Options) *block.Store {
	t.Helper()
	opts.FS = fsys
	if opts.Self == 0 {
		opts.Self = self
	}
	s, err := block.Open(dir, opts)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	return s
}

func filled(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i/pageBytes+i) | 1
	}
	return b
}

func appendOne(t *testing.T, s *block.Store, data []byte) gearsfs.Extent {
	t.Helper()
	extents, err := s.Append(data)
	require.NoError(t, err)
	require.Len(t, extents, 1)
	require.NoError(t, extents[0].Check())
	return extents[0]
}

func readAll(s *block.Store, e gearsfs.Extent) ([]byte, error) {
	b := make([]byte, e.Length)
	return b, s.Read(e, 0, e.Length, b)
}

// TestAppendOfMuch: the longest appends become extents that can be sent.
func TestAppendOfMuch(t *testing.T) {
	s := open(t, block.OS, t.TempDir()+"/blocks", block.Options{})
	data := filled(2*gearsfs.RecordBytesMax + 5000)
	segments := map[uint64]bool{}
	for range 3 {
		extents, err := s.Append(data)
		require.NoError(t, err)
		require.Len(t, extents, 3)
		var got []byte
		for _, e := range extents {
			require.NoError(t, e.Check())
			b, err := readAll(s, e)
			require.NoError(t, err)
			got = append(got, b...)
			segments[e.Segment] = true
		}
		require.True(t, bytes.Equal(data, got))
	}
	require.Len(t, segments, 2)
	_, err := s.Append(nil)
	require.ErrorIs(t, err, gearsfs.ErrInvalid)
}

// TestSegmentNumbers: no number is used twice, wherever the clock is and
// whatever was freed.
func TestSegmentNumbers(t *testing.T) {
	disk := blocktest.NewMemory(nil)
	now := int64(5000)
	last := uint64(0)
	for _, now = range []int64{5000, 4000, -7, 9000, 9000, 0} {
		s, err := block.Open("blocks", block.Options{
			Self: self, FS: disk, SegmentBytes: 2 * pageBytes, Now: func() time.Time { return time.UnixMilli(now) },
		})
		require.NoError(t, err)
		for range 5 {
			e := appendOne(t, s, filled(2*pageBytes))
			require.Greater(t, e.Segment, last)
			last = e.Segment
			require.NoError(t, s.Free([]gearsfs.Extent{e}))
		}
		u, err := s.Usage()
		require.NoError(t, err)
		require.Equal(t, block.Usage{Segments: 1}, u, "the newest stays, to know its number")
		require.NoError(t, s.Close())
	}
	require.Greater(t, last, uint64(9000))
}

func TestSetSelf(t *testing.T) {
	s, err := block.Open("blocks", block.Options{FS: blocktest.NewMemory(nil)})
	require.NoError(t, err)
	_, err = s.Append(filled(1))
	require.ErrorIs(t, err, gearsfs.ErrInvalid)
	s.SetSelf(7)
	first := appendOne(t, s, filled(1))
	require.Equal(t, gearsfs.MemberID(7), first.Origin)
	s.SetSelf(8)
	second := appendOne(t, s, filled(1))
	require.Equal(t, gearsfs.MemberID(8), second.Origin)
	require.Zero(t, second.At)
	require.NoError(t, s.Close())
}

// TestStoreOfOwn: a node's own blocks come back from others, but not to where
// its next ones go.
func TestStoreOfOwn(t *testing.T) {
	s := open(t, blocktest.NewMemory(nil), "blocks", block.Options{})
	data := filled(5000)
	e := appendOne(t, s, data)
	require.NoError(t, s.Free([]gearsfs.Extent{e}))
	require.False(t, s.Has(e))
	require.NoError(t, s.Store(e, data))
	got, err := readAll(s, e)
	require.NoError(t, err)
	require.Equal(t, data, got)

	ahead := e
	ahead.At += 2 * pageBytes
	require.ErrorIs(t, s.Store(ahead, data), gearsfs.ErrInvalid)
	later := e
	later.Segment += 1000
	require.NoError(t, s.Store(later, data))
	require.Greater(t, appendOne(t, s, data).Segment, later.Segment)
}

func TestStoreChecks(t *testing.T) {
	s := open(t, blocktest.NewMemory(nil), "blocks", block.Options{})
	d := newDriver(nil, "", randomRun(t))
	data := filled(2*pageBytes + 10)
	e := d.made(data)
	bad := slices.Clone(data)
	bad[pageBytes]++
	require.ErrorIs(t, s.Store(e, bad), gearsfs.ErrDamaged)
	require.ErrorIs(t, s.Store(e, data[1:]), gearsfs.ErrInvalid)
	require.ErrorIs(t, s.Store(gearsfs.InlineExtent(data), data), gearsfs.ErrInvalid)
	require.False(t, s.Has(e))
	_, err := readAll(s, e)
	require.ErrorIs(t, err, block.ErrAbsent)
	require.NoError(t, s.Store(e.Cut(pageBytes, pageBytes), data[pageBytes:2*pageBytes]))
	require.False(t, s.Has(e), "only a part of it is there")
	require.True(t, s.Has(e.Cut(pageBytes, pageBytes)))
	_, err = readAll(s, e)
	require.ErrorIs(t, err, block.ErrAbsent)
	require.ErrorIs(t, s.Read(e, 0, 2, make([]byte, 1)), gearsfs.ErrInvalid)
	require.ErrorIs(t, s.Read(e, e.Length, 1, make([]byte, 1)), gearsfs.ErrInvalid)
	require.ErrorIs(t, s.Read(e, 1, math.MaxUint64, make([]byte, 1)), gearsfs.ErrInvalid)
	in := gearsfs.InlineExtent([]byte("inline"))
	got := make([]byte, 3)
	require.NoError(t, s.Read(in, 2, 3, got))
	require.Equal(t, "lin", string(got))
	require.True(t, s.Has(in))
	require.ErrorIs(t, s.Free([]gearsfs.Extent{{Origin: 1, Segment: 1, At: 1, Size: 1}}), gearsfs.ErrInvalid)
	require.ErrorIs(t, s.Free([]gearsfs.Extent{{Origin: 1, Segment: 1, At: pageBytes, Size: math.MaxUint64}}), gearsfs.ErrInvalid)
}

// TestDamage turns over one bit, on the disk: only what touches its page is
// damaged.
func TestDamage(t *testing.T) {
	dir := t.TempDir() + "/blocks"
	s := open(t, block.OS, dir, block.Options{})
	e := appendOne(t, s, filled(20*pageBytes))
	path := filepath.Join(dir, fmt.Sprintf("%016x", e.Origin), fmt.Sprintf("%016x", e.Segment))
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	require.NoError(t, err)
	const at = 15*pageBytes + 77
	b := make([]byte, 1)
	_, err = f.ReadAt(b, at)
	require.NoError(t, err)
	_, err = f.WriteAt([]byte{b[0] ^ 4}, at)
	require.NoError(t, err)
	require.NoError(t, f.Close())

	rng := randomRun(t)
	for range 1000 {
		off := rng.Uint64N(e.Length)
		n := 1 + rng.Uint64N(e.Length-off)
		err := s.Read(e, off, n, make([]byte, n))
		if off < 16*pageBytes && off+n > 15*pageBytes {
			require.ErrorIs(t, err, gearsfs.ErrDamaged)
			require.ErrorContains(t, err, fmt.Sprintf("%s at byte %d", path, 15*pageBytes))
		} else {
			require.NoError(t, err)
		}
	}
}

// TestReadBehindTheEnd: what dst had is not taken for what was read.
func TestReadBehindTheEnd(t *testing.T) {
	s := open(t, blocktest.NewMemory(nil), "blocks", block.Options{})
	d := newDriver(nil, "", randomRun(t))
	data := filled(3 * pageBytes)
	e := d.made(data)
	require.NoError(t, s.Store(e.Cut(0, pageBytes), data[:pageBytes]))
	require.ErrorIs(t, s.Read(e, 0, e.Length, slices.Clone(data)), block.ErrAbsent)
	require.NoError(t, s.Read(e, 0, pageBytes, data))
}

// TestStoreOfFreed: where the file system makes no holes, what is stored again
// after it was freed is not free.
func TestStoreOfFreed(t *testing.T) {
	s := open(t, blocktest.NewMemory(nil).Simple(false), "blocks", block.Options{})
	d := newDriver(nil, "", randomRun(t))
	data := filled(32 * pageBytes)
	var e [3]gearsfs.Extent
	for i := range e {
		e[i] = d.made(data)
		e[i].Origin, e[i].Segment, e[i].At = 5, uint64(1+i/2), uint64(i%2*len(data))
		require.NoError(t, s.Store(e[i], data))
	}
	require.NoError(t, s.Free(e[:1]))
	require.NoError(t, s.Store(e[0], data))
	require.NoError(t, s.Free(e[1:2]))
	require.True(t, s.Has(e[0]))
	require.NoError(t, s.Free(e[:1]))
	u, err := s.Usage()
	require.NoError(t, err)
	require.Equal(t, 1, u.Segments)
}

// TestManySegments reads and writes far more segments than may be open.
func TestManySegments(t *testing.T) {
	var opened, most atomic.Int64
	disk := blocktest.Faulty(blocktest.NewMemory(nil), func(op blocktest.Op) error {
		switch op.Kind {
		case blocktest.OpOpen: // also where it finds that the file is to be made
			most.Store(max(most.Load(), opened.Add(1)))
		case blocktest.OpClose:
			opened.Add(-1)
		}
		return nil
	})
	s := open(t, disk, "blocks", block.Options{OpenFilesMax: 10})
	opened.Store(0)
	d := newDriver(nil, "", randomRun(t))
	data := filled(64 * pageBytes)
	var all []gearsfs.Extent
	for range 500 {
		e := d.made(data)
		require.NoError(t, s.Store(e, data))
		all = append(all, e)
	}
	for range 2 {
		for _, e := range all {
			require.NoError(t, s.Read(e, 5, 1, make([]byte, 1)))
		}
	}
	require.LessOrEqual(t, most.Load(), int64(10+64+1+1), "those that wait for a sync, and those that are used")
	require.NoError(t, s.Sync())
	require.NoError(t, s.Read(all[0], 5, 1, make([]byte, 1)))
	require.NoError(t, s.Close())
	require.Zero(t, opened.Load())
}

// TestForeignFiles: what is not the store's is left alone.
func TestForeignFiles(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.MkdirAll(dir+"/lost+found", 0o700))
	require.NoError(t, os.MkdirAll(dir+"/00000000000000a1", 0o700))
	require.NoError(t, os.WriteFile(dir+"/00000000000000a1/README", []byte("x"), 0o600))
	require.NoError(t, os.WriteFile(dir+"/probe", []byte("left by a crash"), 0o600))
	s := open(t, block.OS, dir, block.Options{})
	appendOne(t, s, filled(10))
	u, err := s.Usage()
	require.NoError(t, err)
	require.Equal(t, 1, u.Segments)
	_, err = os.Stat(dir + "/00000000000000a1/README")
	require.NoError(t, err)
	_, err = os.Stat(dir + "/probe")
	require.ErrorIs(t, err, os.ErrNotExist)
}

// TestConcurrent has many goroutines append, store, read, sync and free.
func TestConcurrent(t *testing.T) {
	for name, where := range map[string]func(t *testing.T) (block.FS, string){
		"memory": func(*testing.T) (block.FS, string) { return blocktest.NewMemory(nil), "blocks" },
		"disk":   func(t *testing.T) (block.FS, string) { return block.OS, t.TempDir() + "/blocks" },
	} {
		t.Run(name, func(t *testing.T) {
			fsys, dir := where(t)
			s := open(t, fsys, dir, block.Options{OpenFilesMax: 3, SegmentBytes: 20 * pageBytes})
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			var wg sync.WaitGroup
			errs := make(chan error, 16)
			for g := range 8 {
				wg.Go(func() {
					if err := concurrentRun(s, rand.New(rand.NewPCG(seed, uint64(g))), gearsfs.MemberID(10+g)); err != nil {
						errs <- fmt.Errorf("goroutine %d: %w", g, err)
					}
				})
			}
			wg.Wait()
			close(errs)
			for err := range errs {
				require.NoError(t, err)
			}
			require.NoError(t, s.Free(nil))
			u, err := s.Usage()
			require.NoError(t, err)
			require.LessOrEqual(t, u.Segments, 9)
			require.LessOrEqual(t, u.Bytes, int64(u.Segments*pageBytes), "but for what the disk needs for itself")
		})
	}
}

// concurrentRun is one goroutine's work: it stores blocks of a member of its
// own in a few segments that it empties again and again, and appends beside the
// others.
func concurrentRun(s *block.Store, rng *rand.Rand, origin gearsfs.MemberID) error {
	d := newDriver(nil, "", rng)
	d.store = s
	segment, page := uint64(1), uint64(0)
	for range 300 {
		data := d.payload()
		if rng.IntN(2) == 0 {
			extents, err := s.Append(data)
			if err != nil {
				return err
			}
			d.live = append(d.live, held{e: extents[0], data: data})
		} else {
			e := d.made(data)
			if page > 64 {
				segment, page = segment+1, 0
			}
			e.Origin, e.Segment, e.At = origin, segment, page*pageBytes
			page += e.Pages()
			if err := s.Store(e, data); err != nil {
				return err
			}
			d.live = append(d.live, held{e: e, data: data})
		}
		if err := d.check(2); err != nil {
			return err
		}
		if rng.IntN(10) == 0 {
			if err := s.Sync(); err != nil {
				return err
			}
		}
		for len(d.live) > rng.IntN(12) {
			if err := d.free(); err != nil {
				return err
			}
		}
	}
	for len(d.live) > 0 {
		if err := d.free(); err != nil {
			return err
		}
	}
	return nil
}

// TestSyncsShare: a sync that is under way does not count for who comes later,
// but all that come meanwhile share the next one.
func TestSyncsShare(t *testing.T) {
	var syncs atomic.Int64
	begun, goOn := make(chan struct{}, 1), make(chan struct{})
	fsys := blocktest.Faulty(blocktest.NewMemory(nil), func(op blocktest.Op) error {
		if op.Kind == blocktest.OpSync && syncs.Add(1) == 1 {
			begun <- struct{}{}
			<-goOn
		}
		return nil
	})
	s := open(t, fsys, "blocks", block.Options{})
	require.False(t, s.Dirty())
	appendOne(t, s, filled(1))
	require.True(t, s.Dirty())
	var wg sync.WaitGroup
	wg.Go(func() { require.NoError(t, s.Sync()) })
	<-begun
	require.True(t, s.Dirty(), "what it syncs is not on disk yet")
	appendOne(t, s, filled(1))
	for range 50 {
		wg.Go(func() { require.NoError(t, s.Sync()) })
	}
	close(goOn)
	wg.Wait()
	require.Equal(t, int64(2), syncs.Load())
	require.NoError(t, s.Sync())
	require.Equal(t, int64(2), syncs.Load(), "nothing was written since")
	require.False(t, s.Dirty())
}

// FuzzWire has the store meet extents as they come from the wire.
func FuzzWire(f *testing.F) {
	f.Add(uint64(1), uint64(1), uint64(0), uint64(5000), uint64(3), uint64(4500), []byte("12345678"), []byte("abc"), uint64(100), uint64(4000))
	f.Add(uint64(self), uint64(math.MaxUint64), uint64(64<<20-4096), uint64(4096), uint64(0), uint64(1), []byte("1234"), []byte(nil), uint64(0), uint64(1))
	s, err := block.Open("blocks", block.Options{Self: self, FS: blocktest.NewMemory(nil)})
	require.NoError(f, err)
	f.Fuzz(func(t *testing.T, origin, segment, at, size, offset, length uint64, sums, data []byte, off, n uint64) {
		e := gearsfs.Extent{
			Origin: gearsfs.MemberID(origin), Segment: segment, At: at, Size: size,
			Offset: offset, Length: length, Sums: sums, Data: data,
		}
		dst := make([]byte, min(n, 1<<16))
		if s.Read(e, off, n, dst) == nil {
			require.NoError(t, e.Check())
		}
		if s.Store(e, data) == nil {
			require.True(t, s.Has(e))
		}
		if _, err := s.ReadStored(e); err == nil {
			require.NoError(t, e.Check())
		}
		if err := s.Free([]gearsfs.Extent{e}); err != nil {
			require.ErrorIs(t, err, gearsfs.ErrInvalid)
		}
	})
}
