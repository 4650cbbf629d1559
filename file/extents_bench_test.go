package file

import (
	"math/rand/v2"
	"testing"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/wire"
)

// segmentWriter makes extents as a block store does that never reads them.
type segmentWriter struct{ segment, at uint64 }

func (s *segmentWriter) extent(n uint64) []*wire.Extent {
	pages := (n + gearsfs.PageBytes - 1) / gearsfs.PageBytes
	if s.segment == 0 || s.at+pages*gearsfs.PageBytes > gearsfs.SegmentBytesMax {
		s.segment, s.at = s.segment+1, 0
	}
	e := &wire.Extent{Origin: 1, Segment: s.segment, At: s.at, Size: n, Length: n, Sums: make([]byte, 4*pages)}
	s.at += pages * gearsfs.PageBytes
	return []*wire.Extent{e}
}

// stored makes a file of n bytes in the block store, written from front to back.
func (r *rig) stored(b *testing.B, s *segmentWriter, name string, n, step uint64) uint64 {
	f := uint64(r.create(1, name, 0o644))
	for pos := uint64(0); pos < n; pos += step {
		r.apply(b, as(root, &wire.Write{Ino: f, Pos: pos, Extents: s.extent(step)}))
	}
	return f
}

// BenchmarkExtents: a write is one entry, of an extent.
func BenchmarkExtents(b *testing.B) {
	const fileBytes = 1 << 30
	b.Run("overwrite random 4 KiB of 1 GiB", func(b *testing.B) {
		r := newBenchRig(b)
		var s segmentWriter
		f := r.stored(b, &s, "f", fileBytes, 1<<20)
		rng := rand.New(rand.NewPCG(1, 2))
		b.SetBytes(4 * k)
		b.ReportAllocs()
		for b.Loop() {
			pos := rng.Uint64N(fileBytes/(4*k)) * 4 * k
			r.apply(b, as(root, &wire.Write{Ino: f, Pos: pos, Extents: s.extent(4 * k)}))
		}
	})
	b.Run("overwrite random 4 KiB of 8 MiB", func(b *testing.B) { // all rows have many extents
		r := newBenchRig(b)
		var s segmentWriter
		f := r.stored(b, &s, "f", 8<<20, 1<<20)
		rng := rand.New(rand.NewPCG(1, 2))
		b.SetBytes(4 * k)
		b.ReportAllocs()
		for b.Loop() {
			pos := rng.Uint64N(8<<20/(4*k)) * 4 * k
			r.apply(b, as(root, &wire.Write{Ino: f, Pos: pos, Extents: s.extent(4 * k)}))
		}
	})
	b.Run("write sequential 128 KiB", func(b *testing.B) {
		r := newBenchRig(b)
		var s segmentWriter
		f := uint64(r.create(1, "f", 0o644))
		pos := uint64(0)
		b.SetBytes(128 * k)
		b.ReportAllocs()
		for b.Loop() {
			r.apply(b, as(root, &wire.Write{Ino: f, Pos: pos, Extents: s.extent(128 * k)}))
			pos += 128 * k
		}
	})
	b.Run("delete 1 GiB", func(b *testing.B) {
		r := newBenchRig(b)
		var s segmentWriter
		b.ReportAllocs()
		for b.Loop() {
			b.StopTimer()
			f := r.stored(b, &s, "f", fileBytes, 1<<20)
			b.StartTimer()
			r.apply(b, as(root, &wire.Unlink{Dir: 1, Name: "f", OpenIno: f}))
		}
	})
}
