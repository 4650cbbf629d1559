package block_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/block"
	"github.com/gearsfs/gearsfs/block/blocktest"
	"github.com/stretchr/testify/require"
)

const self gearsfs.MemberID = 0xa1

// held is one block that the model knows.
type held struct {
	e      gearsfs.Extent
	data   []byte // e's stored bytes
	synced bool
	lost   bool // not synced when the power was cut: it may be absent or damaged
}

// driver does random operations on a store and knows what must come of them.
type driver struct {
	store *block.Store
	opts  block.Options
	rng   *rand.Rand
	dir   string

	live   []held
	freed  []gearsfs.Extent            // may come back with a power cut
	owned  map[string]bool             // every page that Append ever gave out
	stored map[gearsfs.MemberID]uint64 // the next free page of other members

	keepsFreed bool // the file system can't punch
	exact      bool // what is allocated is what is in use
}

func newDriver(fsys block.FS, dir string, rng *rand.Rand) *driver {
	return &driver{
		opts: block.Options{
			Self: self, FS: fsys, OpenFilesMax: 2, SegmentBytes: 40 * gearsfs.PageBytes,
			Now: func() time.Time { return time.UnixMilli(1000 - rng.Int64N(1000)) }, // any clock will do
		},
		rng: rng, dir: dir,
		owned: map[string]bool{}, stored: map[gearsfs.MemberID]uint64{},
	}
}

func (d *driver) open() (err error) {
	d.store, err = block.Open(d.dir, d.opts)
	return err
}

// payload has no zero in it, so that it is never taken for a hole.
func (d *driver) payload() []byte {
	n := 1 + d.rng.IntN(3*gearsfs.PageBytes)
	switch d.rng.IntN(6) {
	case 0:
		n = gearsfs.PageBytes * (1 + d.rng.IntN(3))
	case 1:
		n = 1 + d.rng.IntN(50*gearsfs.PageBytes)
	}
	b := make([]byte, n)
	start := d.rng.Uint32()
	for i := range b {
		b[i] = byte((start+uint32(i)*2654435761)>>24) | 1
	}
	return b
}

// made returns an extent of another member as that one would have it.
func (d *driver) made(data []byte) gearsfs.Extent {
	origin := gearsfs.MemberID(1 + d.rng.IntN(3))
	const perSegment = 64
	page, size := d.stored[origin], uint64(len(data))
	e := gearsfs.Extent{Origin: origin, Size: size, Length: size}
	if page%perSegment+e.Pages() > perSegment {
		page = (page/perSegment + 1) * perSegment
	}
	e.Segment, e.At = 1+page/perSegment, page%perSegment*gearsfs.PageBytes
	d.stored[origin] = page + e.Pages()
	for ; len(data) > 0; data = data[min(len(data), gearsfs.PageBytes):] {
		sum := crc32.Checksum(data[:min(len(data), gearsfs.PageBytes)], crc32.MakeTable(crc32.Castagnoli))
		e.Sums = binary.LittleEndian.AppendUint32(e.Sums, sum)
	}
	return e
}

// step does one operation; an error is the store's.
func (d *driver) step() error {
	switch n := d.rng.IntN(100); {
	case n < 30:
		return d.append()
	case n < 50:
		data := d.payload()
		e := d.made(data)
		if err := d.store.Store(e, data); err != nil {
			return err
		}
		d.live = append(d.live, held{e: e, data: data})
	case n < 75 && len(d.live) > 0:
		return d.free()
	case n < 85:
		if err := d.store.Sync(); err != nil {
			return err
		}
		d.synced()
	case n < 92 && len(d.live) > 0: // what was lost or not comes again
		h := &d.live[d.rng.IntN(len(d.live))]
		if err := d.store.Store(h.e, h.data); err != nil {
			return err
		}
		h.lost = false
	case n < 94:
		return d.store.Free(d.freed)
	case n < 95:
		_, err := d.store.Sweep(context.Background(), d.alive, block.SweepOptions{Age: -1})
		return err
	case n < 96:
		report, err := d.store.Check(context.Background(), d.alive, block.CheckOptions{})
		if err != nil {
			return err
		}
		return d.checkReport(report)
	case n < 97:
		closing := d.store
		d.store = nil
		if err := closing.Close(); err != nil {
			return err
		}
		d.synced()
		return d.open()
	}
	return nil
}

// alive is what refers to blocks.
func (d *driver) alive(yield func(gearsfs.Extent) error) error {
	for _, i := range d.rng.Perm(len(d.live)) {
		if err := yield(d.live[i].e); err != nil {
			return err
		}
	}
	return nil
}

// checkReport compares what Check says with what the model knows.
func (d *driver) checkReport(r block.Report) error {
	var pages, sizes, lost uint64
	for _, h := range d.live {
		pages += h.e.Pages() * gearsfs.PageBytes
		sizes += h.e.Size
		if h.lost {
			lost += h.e.Size
		}
	}
	switch bad := r.Damaged.Bytes + r.Absent.Bytes; {
	case r.Extents != uint64(len(d.live)):
		return fmt.Errorf("%d extents of %d were checked", r.Extents, len(d.live))
	case bad > lost || r.Bytes > sizes || r.Bytes < sizes-lost:
		return fmt.Errorf("of %d bytes, %d of them lost, %d were checked: %+v", sizes, lost, r.Bytes, r)
	case lost == 0 && d.exact && uint64(r.Allocated-r.Unreferenced-r.Recent) > pages:
		return fmt.Errorf("%d bytes are referred to: %+v", pages, r)
	}
	return nil
}

func (d *driver) append() error {
	data := d.payload()
	extents, err := d.store.Append(data)
	if err != nil {
		return err
	}
	if len(extents) != 1 || extents[0].Check() != nil || extents[0].Origin != self || extents[0].Length != uint64(len(data)) {
		panic(fmt.Sprintf("%d bytes became %v", len(data), extents))
	}
	e := extents[0]
	for i := range e.Pages() {
		page := fmt.Sprint(e.Segment, e.At/gearsfs.PageBytes+i)
		if d.owned[page] {
			panic("page given out twice: " + page)
		}
		d.owned[page] = true
	}
	d.live = append(d.live, held{e: e, data: data})
	return nil
}

func (d *driver) synced() {
	for i := range d.live {
		d.live[i].synced = !d.live[i].lost
	}
}

func (d *driver) free() error {
	var extents []gearsfs.Extent
	for range 1 + d.rng.IntN(min(len(d.live), 8)) {
		i := d.rng.IntN(len(d.live))
		extents = append(extents, d.live[i].e)
		d.live = append(d.live[:i], d.live[i+1:]...)
	}
	d.freed = append(d.freed, extents...)
	if err := d.store.Free(extents); err != nil {
		return err
	}
	for _, e := range extents {
		if d.keepsFreed {
			break
		}
		if err := d.store.Read(e, 0, e.Length, make([]byte, e.Length)); !errors.Is(err, block.ErrAbsent) {
			return fmt.Errorf("what was freed reads with %w", err)
		}
	}
	return nil
}

// check reads some of what is live.
func (d *driver) check(most int) error {
	for _, i := range d.rng.Perm(len(d.live))[:min(len(d.live), most)] {
		if err := d.checkOne(&d.live[i]); err != nil {
			return err
		}
	}
	return nil
}

func (d *driver) checkOne(h *held) error {
	off := d.rng.Uint64N(h.e.Length)
	n := 1 + d.rng.Uint64N(h.e.Length-off)
	e, want := h.e, h.data[off:off+n]
	if d.rng.IntN(2) == 0 { // of the cut, or out of the whole
		e, off = e.Cut(off, n), 0
	}
	got := make([]byte, n+1)
	err := d.store.Read(e, off, n, got)
	if h.lost && (errors.Is(err, block.ErrAbsent) || errors.Is(err, gearsfs.ErrDamaged)) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("synced %v: %w", h.synced, err)
	}
	if !bytes.Equal(got[:n], want) || got[n] != 0 {
		return fmt.Errorf("wrong bytes, %d from %d on of %d", n, off, h.e.Length)
	}
	if h.lost {
		return nil
	}
	stored, err := d.store.ReadStored(h.e)
	if err != nil {
		return err
	}
	if !bytes.Equal(stored, h.data) {
		return errors.New("wrong stored bytes")
	}
	if !d.store.Has(h.e) {
		return errors.New("what is there is said to be missing")
	}
	return nil
}

// cut has the model be as after a power cut.
func (d *driver) cut() {
	for i := range d.live {
		d.live[i].lost = d.live[i].lost || !d.live[i].synced
	}
}

func randomRun(t *testing.T) *rand.Rand {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

func TestModel(t *testing.T) {
	for name, where := range map[string]func(t *testing.T) (block.FS, string){
		"memory":        func(*testing.T) (block.FS, string) { return blocktest.NewMemory(nil), "blocks" },
		"without holes": func(*testing.T) (block.FS, string) { return blocktest.NewMemory(nil).Simple(true), "blocks" },
		"without punch": func(*testing.T) (block.FS, string) { return blocktest.NewMemory(nil).Simple(false), "blocks" },
		"disk":          func(t *testing.T) (block.FS, string) { return block.OS, t.TempDir() + "/blocks" },
	} {
		t.Run(name, func(t *testing.T) {
			fsys, dir := where(t)
			d := newDriver(fsys, dir, randomRun(t))
			d.keepsFreed = name == "without punch"
			d.exact = name == "memory" // disks need some room for themselves
			require.NoError(t, d.open())
			for range 1500 {
				require.NoError(t, d.step())
				require.NoError(t, d.check(5))
				if n := len(d.freed); n > 0 && !d.keepsFreed {
					require.False(t, d.store.Has(d.freed[d.rng.IntN(n)]))
				}
			}
			require.NoError(t, d.check(len(d.live)))
			require.NoError(t, d.store.Sync())
			_, err := d.store.Sweep(context.Background(), d.alive, block.SweepOptions{Age: -1})
			require.NoError(t, err)
			require.NoError(t, d.check(len(d.live)))
			for len(d.live) > 0 {
				require.NoError(t, d.free())
			}
			require.NoError(t, d.store.Free(d.freed))
			u, err := d.store.Usage()
			require.NoError(t, err)
			require.LessOrEqual(t, u.Segments, 4, "the newest of each origin stays")
			if !d.keepsFreed {
				require.LessOrEqual(t, u.Bytes, int64(u.Segments*gearsfs.PageBytes), "but for what the disk needs for itself")
			}
			if d.exact {
				require.Zero(t, u.Bytes)
			}
			require.NoError(t, d.store.Close())
		})
	}
}
