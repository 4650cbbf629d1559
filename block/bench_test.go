package block_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"sync/atomic"
	"testing"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/block"
)

func benchStore(b *testing.B) *block.Store {
	b.Helper()
	s, err := block.Open(b.TempDir()+"/blocks", block.Options{Self: self})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := s.Close(); err != nil {
			b.Error(err)
		}
	})
	return s
}

// keep frees what is older than the last 256 MiB, so that a benchmark can run
// for long.
type keep struct {
	extents []gearsfs.Extent
	bytes   uint64
}

func (k *keep) add(b *testing.B, s *block.Store, e []gearsfs.Extent) {
	k.extents = append(k.extents, e...)
	if k.bytes += e[0].Size; k.bytes < 256<<20 {
		return
	}
	b.StopTimer()
	if err := s.Free(k.extents); err != nil {
		b.Fatal(err)
	}
	k.extents, k.bytes = k.extents[:0], 0
	b.StartTimer()
}

func name(size int) string {
	if size >= 1<<20 {
		return fmt.Sprintf("%dMiB", size>>20)
	}
	return fmt.Sprintf("%dKiB", size>>10)
}

// BenchmarkAppend beside a plain pwrite of as much to a growing file.
func BenchmarkAppend(b *testing.B) {
	for _, size := range []int{4 << 10, 128 << 10, 1 << 20} {
		data := filled(size)
		b.Run(name(size), func(b *testing.B) {
			s := benchStore(b)
			var k keep
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				e, err := s.Append(data)
				if err != nil {
					b.Fatal(err)
				}
				k.add(b, s, e)
			}
		})
		b.Run(name(size)+"-pwrite", func(b *testing.B) {
			f, err := os.Create(b.TempDir() + "/raw")
			if err != nil {
				b.Fatal(err)
			}
			defer f.Close()
			b.SetBytes(int64(size))
			for at := int64(0); b.Loop(); at += int64(size) {
				if at >= 256<<20 {
					b.StopTimer()
					if err := f.Truncate(0); err != nil {
						b.Fatal(err)
					}
					b.StartTimer()
					at = 0
				}
				if _, err := f.WriteAt(data, at); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkAppendSync has each append survive before the next.
func BenchmarkAppendSync(b *testing.B) {
	for _, size := range []int{4 << 10, 128 << 10} {
		b.Run(name(size), func(b *testing.B) {
			s := benchStore(b)
			data := filled(size)
			var k keep
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				e, err := s.Append(data)
				if err != nil {
					b.Fatal(err)
				}
				if err := s.Sync(); err != nil {
					b.Fatal(err)
				}
				k.add(b, s, e)
			}
		})
	}
}

// BenchmarkRead reads at random places of 256 MiB of blocks of 128 KiB, out of
// the kernel's cache.
func BenchmarkRead(b *testing.B) {
	const blockBytes, blocks = 128 << 10, 2048
	s := benchStore(b)
	var extents []gearsfs.Extent
	for range blocks {
		e, err := s.Append(filled(blockBytes))
		if err != nil {
			b.Fatal(err)
		}
		extents = append(extents, e...)
	}
	for _, w := range []struct {
		name  string
		n     uint64
		align uint64
	}{
		{"4KiB-random", 4 << 10, 4 << 10},
		{"4KiB-random-unaligned", 4 << 10, 1},
		{"128KiB", blockBytes, blockBytes},
		{"120KiB-unaligned", 120 << 10, 1},
	} {
		b.Run(w.name, func(b *testing.B) {
			dst := make([]byte, w.n)
			rng := rand.New(rand.NewPCG(1, 1))
			b.SetBytes(int64(w.n))
			b.ReportAllocs()
			for b.Loop() {
				off := rng.Uint64N(blockBytes-w.n+1) / w.align * w.align
				if err := s.Read(extents[rng.IntN(blocks)], off, w.n, dst); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	b.Run("4KiB-random-parallel", func(b *testing.B) {
		var seed atomic.Uint64
		b.SetBytes(4 << 10)
		b.RunParallel(func(pb *testing.PB) {
			rng := rand.New(rand.NewPCG(seed.Add(1), 1))
			dst := make([]byte, 4<<10)
			for pb.Next() {
				if err := s.Read(extents[rng.IntN(blocks)], rng.Uint64N(32)*4096, 4<<10, dst); err != nil {
					b.Error(err)
					return
				}
			}
		})
	})
}
