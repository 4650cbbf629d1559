package tests

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// fsxSeed draws the same operations again.
var fsxSeed = os.Getenv("GEARSFS_FSX_SEED")

// Random operations on a few files, each done on a plain directory too: what is
// read must be the same. Through several mounts a file is open in one at a time,
// and what that one has closed or synced is what the others show.
func TestRandomOperations(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	if fsxSeed != "" {
		var err error
		seed, err = strconv.ParseUint(fsxSeed, 10, 64)
		require.NoError(t, err, "GEARSFS_FSX_SEED")
	}
	for name, mounts := range map[string]func(t *testing.T) []string{
		"one mount": func(t *testing.T) []string { return []string{startMounted(t).mount} },
		"two mounts": func(t *testing.T) []string {
			d := startMounted(t)
			return []string{d.mount, d.mountAgain(t)}
		},
		"three nodes": func(t *testing.T) []string {
			c := startMountedCluster(t, 3)
			return []string{c.nodes[0].mount, c.nodes[1].mount, c.nodes[2].mount}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			t.Logf("GEARSFS_FSX_SEED=%d draws the same operations", seed)
			x := &fsx{t: t, rng: rand.New(rand.NewPCG(seed, 0)), mounts: mounts(t), model: dir(t)}
			for i := range fsxFiles {
				x.files = append(x.files, &fsxFile{name: fmt.Sprint("f", i)})
			}
			x.run(size(1500, 100_000))
		})
	}
}

const (
	fsxFiles    = 3
	fsxBytesMax = 400_000 // of a file
)

type fsx struct {
	t      *testing.T
	rng    *rand.Rand
	mounts []string
	model  string
	files  []*fsxFile
	log    []string // the last operations
}

// fsxFile is a file that one mount has open, twice, and a plain directory. The
// first handle writes where it is told, the second appends.
type fsxFile struct {
	name        string
	mount       int
	real, model [2]*os.File
}

func (x *fsx) run(ops int) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if x.t.Failed() {
			for _, line := range x.log {
				x.t.Log(line)
			}
		}
		for _, f := range x.files {
			x.close(f)
		}
	}()
	for _, f := range x.files {
		x.open(f, os.O_CREATE)
	}
	all := []func(*fsxFile){
		x.write, x.write, x.write, x.append, x.append, x.read, x.read, x.truncate, x.punch, x.allocate,
		x.mapWrite, x.mapWrite, x.mapRead, x.copyRange, x.copyRange, x.reopen, x.look, x.look, x.stat, x.seek, x.rename,
	}
	for range ops {
		all[x.rng.IntN(len(all))](x.files[x.rng.IntN(len(x.files))])
	}
	for _, f := range x.files {
		x.look(f)
	}
}

// note keeps what is done, for when it goes wrong.
func (x *fsx) note(f *fsxFile, format string, args ...any) {
	if len(x.log) == 100 {
		x.log = x.log[1:]
	}
	x.log = append(x.log, fmt.Sprintf("%s in mount %d: ", f.name, f.mount)+fmt.Sprintf(format, args...))
}

func (x *fsx) ok(err error) {
	x.t.Helper()
	require.NoError(x.t, err)
}

func (x *fsx) path(f *fsxFile, mount int) string { return filepath.Join(x.mounts[mount], f.name) }

// open opens a file through a mount, past the cache now and then.
func (x *fsx) open(f *fsxFile, flags int) {
	f.mount = x.rng.IntN(len(x.mounts))
	if x.rng.IntN(4) == 0 {
		flags |= unix.O_DIRECT
	}
	x.note(f, "open %#x", flags)
	for i, more := range []int{0, os.O_APPEND} {
		var err error
		f.real[i], err = os.OpenFile(x.path(f, f.mount), os.O_RDWR|flags|more, 0o644)
		x.ok(err)
		f.model[i], err = os.OpenFile(filepath.Join(x.model, f.name), os.O_RDWR|flags&^unix.O_DIRECT|more, 0o644)
		x.ok(err)
	}
}

func (x *fsx) close(f *fsxFile) {
	for _, h := range append(f.real[:], f.model[:]...) {
		if h != nil {
			x.ok(h.Close())
		}
	}
	f.real, f.model = [2]*os.File{}, [2]*os.File{}
}

func (x *fsx) bytesOf(f *fsxFile) int64 {
	info, err := f.model[0].Stat()
	x.ok(err)
	return info.Size()
}

// span draws a piece of a file: of any length, or of whole pages.
func (x *fsx) span(limit int64) (off int64, n int) {
	off = x.rng.Int64N(limit)
	n = 1 + x.rng.IntN(10_000)
	switch x.rng.IntN(4) {
	case 0:
		n = 1 + x.rng.IntN(150_000)
	case 1:
		off, n = off&^4095, 4096*(1+x.rng.IntN(4))
	}
	return off, int(max(min(int64(n), limit-off), 1))
}

func (x *fsx) bytes(n int) []byte {
	data := make([]byte, n)
	tag, at := byte(1+x.rng.IntN(255)), x.rng.IntN(1000)
	for i := range data {
		data[i] = tag ^ byte((i+at)>>4)
	}
	return data
}

func (x *fsx) write(f *fsxFile) {
	off, n := x.span(fsxBytesMax)
	data := x.bytes(n)
	x.note(f, "write %d at %d", n, off)
	for _, h := range []*os.File{f.real[0], f.model[0]} {
		_, err := h.WriteAt(data, off)
		x.ok(err)
	}
}

func (x *fsx) append(f *fsxFile) {
	if x.bytesOf(f) > fsxBytesMax {
		x.truncate(f)
	}
	data := x.bytes(1 + x.rng.IntN(9000))
	x.note(f, "append %d", len(data))
	for _, h := range []*os.File{f.real[1], f.model[1]} {
		_, err := h.Write(data)
		x.ok(err)
	}
}

func (x *fsx) read(f *fsxFile) {
	off, n := x.span(fsxBytesMax + 10_000)
	h := x.rng.IntN(2)
	x.note(f, "read %d at %d, handle %d", n, off, h)
	got, want := make([]byte, n), make([]byte, n)
	gotN, gotErr := f.real[h].ReadAt(got, off)
	wantN, wantErr := f.model[h].ReadAt(want, off)
	require.Equal(x.t, wantErr, gotErr)
	x.same(want[:wantN], got[:gotN], off)
}

// same compares bytes from off on.
func (x *fsx) same(want, got []byte, off int64) {
	x.t.Helper()
	if bytes.Equal(want, got) {
		return
	}
	for i := range min(len(want), len(got)) {
		if want[i] != got[i] {
			require.Fail(x.t, "other bytes", "at %d is %d, must be %d; of %d bytes, must be %d, from %d on",
				off+int64(i), got[i], want[i], len(got), len(want), off)
		}
	}
	require.Fail(x.t, "other length", "%d, must be %d, from %d on", len(got), len(want), off)
}

func (x *fsx) truncate(f *fsxFile) {
	n := x.rng.Int64N(fsxBytesMax)
	if x.rng.IntN(8) == 0 {
		n = 0
	}
	x.note(f, "truncate to %d", n)
	x.ok(f.real[0].Truncate(n))
	x.ok(f.model[0].Truncate(n))
}

func (x *fsx) fallocate(f *fsxFile, mode uint32) {
	off, n := x.span(fsxBytesMax)
	x.note(f, "fallocate %d at %d, mode %d", n, off, mode)
	x.ok(unix.Fallocate(int(f.real[0].Fd()), mode, off, int64(n)))
	x.ok(unix.Fallocate(int(f.model[0].Fd()), mode, off, int64(n)))
}

func (x *fsx) punch(f *fsxFile) {
	x.fallocate(f, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE)
}

func (x *fsx) allocate(f *fsxFile) {
	modes := []uint32{0, unix.FALLOC_FL_ZERO_RANGE, unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE}
	x.fallocate(f, modes[x.rng.IntN(len(modes))])
}

// mapped maps the file and calls use with what of the mapping is in the file.
func (x *fsx) mapped(f *fsxFile, handle int, use func(m []byte)) {
	n := x.bytesOf(f)
	if n == 0 {
		return
	}
	info, err := f.real[handle].Stat() // as who maps a file does
	x.ok(err)
	require.Equal(x.t, n, info.Size())
	m, err := unix.Mmap(int(f.real[handle].Fd()), 0, int(n), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	x.ok(err)
	use(m)
	x.ok(unix.Munmap(m))
}

func (x *fsx) mapWrite(f *fsxFile) {
	x.mapped(f, x.rng.IntN(2), func(m []byte) {
		off, n := x.span(int64(len(m)))
		data := x.bytes(n)
		sync := x.rng.IntN(2) == 0
		x.note(f, "write %d at %d through a mapping of %d, msync %v", n, off, len(m), sync)
		copy(m[off:], data)
		_, err := f.model[0].WriteAt(data, off)
		x.ok(err)
		if sync {
			x.ok(unix.Msync(m, unix.MS_SYNC))
		}
	})
}

func (x *fsx) mapRead(f *fsxFile) {
	x.mapped(f, x.rng.IntN(2), func(m []byte) {
		x.note(f, "read a mapping of %d", len(m))
		want, err := os.ReadFile(f.model[0].Name())
		x.ok(err)
		x.same(want, m, 0)
	})
}

func (x *fsx) copyRange(f *fsxFile) {
	from := x.files[x.rng.IntN(len(x.files))]
	if from.mount != f.mount {
		return // two file systems to the kernel
	}
	off, n := x.span(fsxBytesMax)
	at := x.rng.Int64N(fsxBytesMax)
	if from == f && at < off+int64(n) && off < at+int64(n) {
		return
	}
	x.note(f, "copy %d from %s at %d to %d", n, from.name, off, at)
	copied := func(from, to *os.File) (all int) {
		roff, woff := off, at
		for all < n {
			c, err := unix.CopyFileRange(int(from.Fd()), &roff, int(to.Fd()), &woff, n-all, 0)
			x.ok(err)
			if c == 0 {
				break
			}
			all += c
		}
		return all
	}
	require.Equal(x.t, copied(from.model[0], f.model[0]), copied(from.real[0], f.real[0]))
}

func (x *fsx) reopen(f *fsxFile) {
	x.close(f)
	x.open(f, 0)
}

// look reads a file as a new open of it shows it, through any mount.
func (x *fsx) look(f *fsxFile) {
	mount := x.rng.IntN(len(x.mounts))
	x.note(f, "sync, and look through mount %d", mount)
	x.ok(f.real[0].Sync())
	got, err := os.ReadFile(x.path(f, mount))
	x.ok(err)
	want, err := os.ReadFile(f.model[0].Name())
	x.ok(err)
	x.same(want, got, 0)
}

func (x *fsx) stat(f *fsxFile) {
	x.note(f, "stat")
	open, err := f.real[0].Stat()
	x.ok(err)
	require.Equal(x.t, x.bytesOf(f), open.Size())
	// A path may lead where it led before another mount renamed it, until the
	// kernel is told; an open never does.
	require.Eventually(x.t, func() bool {
		info, err := os.Stat(x.path(f, f.mount))
		return err == nil && os.SameFile(info, open) && info.Size() == open.Size()
	}, runWithin, time.Millisecond)
	at := x.rng.Int64N(2000)
	when := time.Unix(at, at)
	x.ok(os.Chtimes(x.path(f, f.mount), when, when))
	info, err := f.real[0].Stat()
	x.ok(err)
	require.Equal(x.t, when.UnixNano(), info.ModTime().UnixNano())
}

// seek checks that what a file says to be holes is zeros.
func (x *fsx) seek(f *fsxFile) {
	x.note(f, "seek its holes")
	want, err := os.ReadFile(f.model[0].Name())
	x.ok(err)
	x.ok(f.real[0].Sync())
	fd := int(f.real[0].Fd())
	for off := int64(0); off < int64(len(want)); {
		data, err := unix.Seek(fd, off, unix.SEEK_DATA)
		if err == unix.ENXIO {
			data = int64(len(want))
		} else {
			x.ok(err)
		}
		x.same(make([]byte, data-off), want[off:data], off)
		if data == int64(len(want)) {
			return
		}
		off, err = unix.Seek(fd, data, unix.SEEK_HOLE)
		x.ok(err)
		require.Greater(x.t, off, data)
	}
	_, err = f.real[0].Seek(0, io.SeekStart)
	x.ok(err)
}

// rename puts a file in the place of another, which stays as it is for those who
// have it open, and makes a new one of its name.
func (x *fsx) rename(f *fsxFile) {
	to := x.files[x.rng.IntN(len(x.files))]
	if to == f {
		return
	}
	mount := x.rng.IntN(len(x.mounts))
	x.note(f, "rename to %s through mount %d", to.name, mount)
	x.ok(f.real[0].Sync())
	x.ok(os.Rename(x.path(f, mount), x.path(to, mount)))
	x.ok(os.Rename(f.model[0].Name(), filepath.Join(x.model, to.name)))
	x.read(to)
	x.close(to)
	to.mount, to.real, to.model = f.mount, f.real, f.model
	for i := range to.model { // whose Name is looked at
		h, err := os.OpenFile(filepath.Join(x.model, to.name), os.O_RDWR|[]int{0, os.O_APPEND}[i], 0)
		x.ok(err)
		x.ok(to.model[i].Close())
		to.model[i] = h
	}
	f.real, f.model = [2]*os.File{}, [2]*os.File{}
	x.open(f, os.O_CREATE)
}
