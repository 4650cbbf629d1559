package file

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/persist"
	"github.com/gearsfs/gearsfs/wire"
)

// newBenchRig is newRig on disk, with memtables as large as a node's.
func newBenchRig(b *testing.B) *rig {
	r := &rig{t: b, fs: vfs.Default, now: rigStart}
	var err error
	r.data, err = persist.Open(b.TempDir()+"/data", persist.Options{FS: r.fs, Create: true, Name: "n"})
	require.NoError(b, err)
	b.Cleanup(func() { require.NoError(b, r.data.Close()) })
	r.m, err = New(r.data.State, &r.seen)
	require.NoError(b, err)
	r.entry(&wire.Command{Op: &wire.Command_Init{Init: &wire.Init{Id: make([]byte, 16), Name: "main"}}})
	return r
}

// apply applies commands as one entry without the checks of rig.entry.
func (r *rig) apply(b *testing.B, commands ...*wire.Command) []*wire.Answer {
	r.index++
	r.now += 1e6
	answers, err := r.m.Apply(r.index, 1, &wire.Entry{Time: r.now, Commands: commands})
	if err != nil {
		b.Fatal(err)
	}
	for _, a := range answers {
		if a.Code != 0 {
			b.Fatal(a.Reason)
		}
	}
	return answers
}

// BenchmarkCreate makes files in one directory, one per entry and 32.
func BenchmarkCreate(b *testing.B) {
	for _, batch := range []int{1, 32} {
		b.Run(fmt.Sprintf("batch=%d", batch), func(b *testing.B) {
			r := newBenchRig(b)
			dir := r.mkdir(1, "d", 0o755)
			b.ReportAllocs()
			n := 0
			for b.Loop() {
				cmds := make([]*wire.Command, batch)
				for i := range cmds {
					n++
					cmds[i] = as(root, &wire.Make{Dir: uint64(dir), Name: fmt.Sprintf("file-%08d", n), Mode: modeFile | 0o644})
				}
				r.apply(b, cmds...)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n), "ns/file")
		})
	}
}

// BenchmarkWriteSequential writes one file from front to back.
func BenchmarkWriteSequential(b *testing.B) {
	for _, size := range []int{4 * k, 128 * k, 1024 * k} {
		b.Run(fmt.Sprintf("%dK", size/k), func(b *testing.B) {
			r := newBenchRig(b)
			f := r.create(1, "f", 0o644)
			data := make([]byte, size)
			rand.NewChaCha8([32]byte{}).Read(data)
			b.SetBytes(int64(size))
			b.ReportAllocs()
			pos := uint64(0)
			for b.Loop() {
				r.apply(b, as(root, &wire.Write{Ino: uint64(f), Pos: pos, Data: data}))
				if pos += uint64(size); pos >= 1<<30 { // the disk is not the subject
					pos = 0
				}
			}
		})
	}
}

// BenchmarkOverwriteRandom replaces 4 KiB pieces of a file of 64 MiB.
func BenchmarkOverwriteRandom(b *testing.B) {
	r := newBenchRig(b)
	f := r.create(1, "f", 0o644)
	data := make([]byte, 1<<20)
	for pos := range uint64(64) {
		r.apply(b, as(root, &wire.Write{Ino: uint64(f), Pos: pos << 20, Data: data}))
	}
	rng := rand.New(rand.NewPCG(1, 1))
	b.SetBytes(4 * k)
	b.ReportAllocs()
	for b.Loop() {
		r.apply(b, as(root, &wire.Write{Ino: uint64(f), Pos: rng.Uint64N(16<<10) * 4 * k, Data: data[:4*k]}))
	}
}

// BenchmarkRead reads 128 KiB pieces of a file of 64 MiB in order.
func BenchmarkRead(b *testing.B) {
	r := newBenchRig(b)
	f := r.create(1, "f", 0o644)
	data := make([]byte, 1<<20)
	for pos := range uint64(64) {
		r.apply(b, as(root, &wire.Write{Ino: uint64(f), Pos: pos << 20, Data: data}))
	}
	b.SetBytes(128 * k)
	b.ReportAllocs()
	pos, buf := gearsfs.Pos(0), make([]byte, 128*k)
	for b.Loop() {
		c, err := r.m.Read(f, pos, 128*k, root, buf)
		if err != nil || len(c.Parts) > 0 {
			b.Fatal(err)
		}
		pos = (pos + 128*k) % (64 << 20)
	}
}

// BenchmarkLookup looks up names of a directory of 100,000: of few files over
// and over, and of all of them, which the caches can't hold.
func BenchmarkLookup(b *testing.B) {
	const files = 100_000
	r := newBenchRig(b)
	dir := r.mkdir(1, "d", 0o755)
	for n := 0; n < files; n += 500 {
		cmds := make([]*wire.Command, 500)
		for i := range cmds {
			cmds[i] = as(root, &wire.Make{Dir: uint64(dir), Name: fmt.Sprint(n + i), Mode: modeFile | 0o644})
		}
		r.apply(b, cmds...)
	}
	for _, c := range []struct {
		name string
		of   uint64
	}{{"few", 1000}, {"all", files}} {
		b.Run(c.name, func(b *testing.B) {
			rng := rand.New(rand.NewPCG(1, 1))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := r.m.Lookup(dir, fmt.Sprint(rng.Uint64N(c.of)), alice); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	b.Run("readdir", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			after, n := "", 0
			for {
				entries, err := r.m.ReadDir(dir, after, 512, alice)
				if err != nil {
					b.Fatal(err)
				}
				if n += len(entries); len(entries) == 0 {
					break
				}
				after = entries[len(entries)-1].Name
			}
			if n != files {
				b.Fatalf("%d entries", n)
			}
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/files, "ns/entry")
	})
}
