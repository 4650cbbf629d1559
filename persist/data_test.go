package persist

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"github.com/gearsfs/gearsfs"
	"github.com/stretchr/testify/require"
)

// smallData is how the tests open a directory: small enough for many.
func smallData(fsys FS) Options {
	return Options{FS: fsys, Create: true, Name: "node-a", SegmentBytes: 24 << 10, LogCacheBytes: 2000,
		CacheBytes: 1 << 20, MemTableBytes: 256 << 10}
}

// tree is all that is in a directory: names, sizes and checksums.
func tree(t *testing.T, fsys FS, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	var walk func(path string)
	walk = func(path string) {
		names, err := fsys.List(path)
		require.NoError(t, err)
		for _, name := range names {
			child := fsys.PathJoin(path, name)
			info, err := fsys.Stat(child)
			require.NoError(t, err)
			if info.IsDir() {
				out[child] = "directory"
				walk(child)
				continue
			}
			b := readAll(t, fsys, child)
			out[child] = fmt.Sprintf("%d bytes, %08x", len(b), crc32.Checksum(b, castagnoli))
		}
	}
	if _, err := fsys.Stat(dir); err == nil {
		walk(dir)
	}
	return out
}

func readAll(t *testing.T, fsys FS, path string) []byte {
	t.Helper()
	f, err := fsys.Open(path)
	require.NoError(t, err)
	b, err := io.ReadAll(f)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	return b
}

func writeAll(t *testing.T, fsys FS, path string, b []byte) {
	t.Helper()
	f, err := fsys.Create(path, vfs.WriteCategoryUnspecified)
	require.NoError(t, err)
	_, err = f.Write(bytes.Clone(b))
	require.NoError(t, err)
	require.NoError(t, f.Close())
}

// fill makes a directory whose log has several segments and whose state has
// rows in files.
func fill(t *testing.T, fsys FS, dir string) {
	t.Helper()
	d, err := Open(dir, smallData(fsys))
	require.NoError(t, err)
	for i := range uint64(60) {
		e := LogEntry{Index: i + 1, Term: 1 + i/20, Type: 1, Data: bytes.Repeat([]byte{byte(i)}, 1000)}
		require.NoError(t, d.Log.Append([]LogEntry{e}, fmt.Append(nil, "hard ", i)))
		d.State.Set(InodeKey(gearsfs.Ino(i)), bytes.Repeat([]byte{byte(i)}, 100))
		d.State.Set(RecordKey(1, "data", placeAt(i)), bytes.Repeat([]byte{byte(i)}, 5000))
		require.NoError(t, d.State.Commit())
	}
	require.NoError(t, d.Log.Sync())
	require.NoError(t, d.Close())
}

func TestOpenCreatesAndFindsAgain(t *testing.T) {
	for name, fsys := range map[string]FS{"os": vfs.Default, "memory": vfs.NewMem()} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "a", "b", "data")
			opts := smallData(fsys)
			d, err := Open(dir, opts)
			require.NoError(t, err)
			id := d.Identity()
			require.Equal(t, "node-a", id.Name)
			require.NotZero(t, id.Node)
			require.Zero(t, id.Volume)
			require.Zero(t, d.Log.Last())
			require.Nil(t, d.Log.HardState())
			require.ErrorIs(t, d.SetName("a\n"), gearsfs.ErrInvalid)
			require.NoError(t, d.SetName("node-b"))
			require.NoError(t, d.SetVolume(ID{7}))
			require.NoError(t, d.SetVolume(ID{7}))
			require.ErrorIs(t, d.SetName("node-c"), gearsfs.ErrForeign)
			require.ErrorIs(t, d.SetVolume(ID{8}), gearsfs.ErrForeign)
			require.ErrorIs(t, d.SetMember(ID{8}, 9), gearsfs.ErrForeign)
			require.ErrorIs(t, d.SetMember(ID{7}, 0), gearsfs.ErrInvalid)
			require.NoError(t, d.SetMember(ID{7}, 1<<63+9))
			require.NoError(t, d.SetMember(ID{7}, 1<<63+9))
			require.ErrorIs(t, d.SetMember(ID{7}, 10), gearsfs.ErrForeign)
			require.NoError(t, d.SetVolume(ID{7}))
			require.NoError(t, d.Close())
			require.NoError(t, d.Close())

			opts.Create, opts.Name = false, ""
			d, err = Open(dir, opts)
			require.NoError(t, err)
			id.Name, id.Volume, id.Member = "node-b", ID{7}, 1<<63+9
			require.Equal(t, id, d.Identity())
			free, total, err := d.Free()
			if fsys == vfs.Default {
				require.NoError(t, err)
				require.NotZero(t, free)
				require.GreaterOrEqual(t, total, free)
			} else {
				require.ErrorIs(t, err, gearsfs.ErrUnsupported)
			}
			require.NoError(t, d.Close())
		})
	}
}

func TestOpenRefusesWithoutChange(t *testing.T) {
	format := func(version string) []byte { return formatText(formatTitle, textLine{"version", version}) }
	for name, test := range map[string]struct {
		files map[string]string
		keep  bool // beside a filled directory
		opts  func(*Options)
		want  error
		says  string
	}{
		"missing":            {opts: func(o *Options) { o.Create = false }, want: gearsfs.ErrNotFound},
		"only a lock":        {files: map[string]string{"LOCK": ""}, opts: func(o *Options) { o.Create = false }, want: gearsfs.ErrNotFound},
		"cut-off creation":   {files: map[string]string{"gearsfs.creating": "", "log/x": ""}, opts: func(o *Options) { o.Create = false }, want: gearsfs.ErrNotFound},
		"foreign file":       {files: map[string]string{"photo.jpg": "x"}, want: gearsfs.ErrForeign, says: "photo.jpg"},
		"foreign names":      {files: map[string]string{"log/a": "x", "state/b": "y"}, want: gearsfs.ErrForeign},
		"foreign FORMAT":     {files: map[string]string{"FORMAT": "pebble 4\n"}, want: gearsfs.ErrForeign},
		"empty FORMAT":       {files: map[string]string{"FORMAT": ""}, want: gearsfs.ErrForeign},
		"newer version":      {keep: true, files: map[string]string{"FORMAT": string(format("3"))}, want: gearsfs.ErrFormat, says: "version 3, this program's is 2"},
		"damaged FORMAT":     {keep: true, files: map[string]string{"FORMAT": "gearsfs data\nversion 1\ncrc32c 00000000\n"}, want: gearsfs.ErrDamaged, says: "FORMAT"},
		"damaged identity":   {keep: true, files: map[string]string{"identity": "gearsfs identity\nname \"b\"\n"}, want: gearsfs.ErrDamaged, says: "identity"},
		"damaged manifest":   {keep: true, files: map[string]string{"state/MANIFEST-000005": "nonsense, and a lot of it, at least a header's worth"}, want: gearsfs.ErrDamaged, says: "state"},
		"bad name":           {opts: func(o *Options) { o.Name = "a\nb" }, want: gearsfs.ErrInvalid},
		"log is no segment":  {keep: true, files: map[string]string{"log/00000001.seg": "x"}, want: gearsfs.ErrDamaged, says: "00000001.seg"},
		"log goes elsewhere": {keep: true, files: map[string]string{"log/00000009.seg": strings.Repeat("x", 100)}, want: gearsfs.ErrDamaged, says: "00000009.seg"},
	} {
		t.Run(name, func(t *testing.T) {
			fsys := vfs.NewMem()
			if test.keep {
				fill(t, fsys, "data")
			}
			for path, content := range test.files {
				path = "data/" + path
				require.NoError(t, fsys.MkdirAll(fsys.PathDir(path), 0o700))
				writeAll(t, fsys, path, []byte(content))
			}
			before := tree(t, fsys, "")
			opts := smallData(fsys)
			if test.opts != nil {
				test.opts(&opts)
			}
			for range 2 { // the second time shows that no lock was kept
				_, err := Open("data", opts)
				require.ErrorIs(t, err, test.want)
				require.ErrorContains(t, err, test.says)
				require.Equal(t, before, tree(t, fsys, ""))
			}
		})
	}
}

// TestOpenRefusesWhatIsMissing removes each file and directory in turn.
func TestOpenRefusesWhatIsMissing(t *testing.T) {
	whole := vfs.NewMem()
	fill(t, whole, "data")
	for path := range tree(t, whole, "data") {
		name := strings.TrimPrefix(path, "data/")
		switch {
		case name == lockName, name == "state/LOCK", name == "state/MANIFEST-000001",
			strings.HasPrefix(name, "state/OPTIONS"), strings.HasSuffix(name, ".log"), strings.HasPrefix(name, "log/"+sparePrefix):
			continue // it is not needed, or made again
		case name == "log/"+lastName(t, whole):
			continue // after the seal of the one before it looks as a crash leaves it
		}
		t.Run(name, func(t *testing.T) {
			fsys := vfs.NewMem()
			_, err := vfs.Clone(whole, fsys, "data", "data")
			require.NoError(t, err)
			require.NoError(t, fsys.RemoveAll(path))
			before := tree(t, fsys, "")
			_, err = Open("data", smallData(fsys))
			want := error(gearsfs.ErrDamaged)
			if name == formatName {
				want = gearsfs.ErrForeign
			}
			require.ErrorIs(t, err, want)
			require.Equal(t, before, tree(t, fsys, ""))
		})
	}
}

func lastName(t *testing.T, fsys FS) (last string) {
	names, err := fsys.List("data/log")
	require.NoError(t, err)
	for _, name := range names {
		if _, ok := parseSegmentName(name); ok {
			last = max(last, name)
		}
	}
	return last
}

// TestOpenFindsDamageInTheLog turns single bits of what a cleanly closed log
// holds: it is told, with file and offset, and nothing changes.
func TestOpenFindsDamageInTheLog(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	fsys := vfs.NewMem()
	fill(t, fsys, "data")
	clean := tree(t, fsys, "data/log")
	l, r, err := readLog(fsys, "data/log", smallData(fsys).withDefaults())
	require.NoError(t, err)
	used := map[string]int64{}
	for _, seg := range l.segs {
		used[seg.path] = seg.used
	}
	tail := l.segs[len(l.segs)-1]
	used[tail.path] -= recordHeaderBytes // a bad mark looks as a crash leaves it
	require.NoError(t, r.abandon())
	require.Greater(t, len(used), 2)

	for path := range clean {
		content := string(readAll(t, fsys, path))
		for range 150 {
			if used[path] == 0 {
				continue // a spare
			}
			bad := []byte(content)
			off := rng.Int64N(used[path])
			if bad[off] ^= 1 << rng.IntN(8); isPadding(t, []byte(content), off) {
				continue
			}
			writeAll(t, fsys, path, bad)
			_, _, err := readLog(fsys, "data/log", smallData(fsys).withDefaults())
			require.ErrorIs(t, err, gearsfs.ErrDamaged, "%s at %d", path, off)
			require.ErrorContains(t, err, path)
			require.Equal(t, string(bad), string(readAll(t, fsys, path)))
		}
		writeAll(t, fsys, path, []byte(content))
	}
	_, err = Open("data", smallData(fsys))
	require.NoError(t, err)
}

// isPadding reports whether a segment's byte at off is between two records.
func isPadding(t *testing.T, segment []byte, off int64) bool {
	for at := int64(0); ; {
		r, ok := parseRecord(segment[at:], at)
		require.True(t, ok)
		if off < at+recordHeaderBytes+int64(len(r.payload)) {
			return false
		}
		if at += recordBytes(len(r.payload)); off < at {
			return true
		}
	}
}

func TestOpenInUse(t *testing.T) {
	t.Run("memory", func(t *testing.T) {
		fsys := vfs.NewMem()
		d, err := Open("data", smallData(fsys))
		require.NoError(t, err)
		_, err = Open("data", smallData(fsys))
		require.ErrorIs(t, err, gearsfs.ErrInUse)
		require.NoError(t, d.Close())
		d, err = Open("data", smallData(fsys))
		require.NoError(t, err)
		require.NoError(t, d.Close())
	})
	t.Run("by another name", func(t *testing.T) {
		dir := t.TempDir()
		require.NoError(t, os.Symlink(filepath.Join(dir, "data"), filepath.Join(dir, "link")))
		d, err := Open(filepath.Join(dir, "data"), smallData(nil))
		require.NoError(t, err)
		_, err = Open(filepath.Join(dir, "link"), smallData(nil))
		require.ErrorIs(t, err, gearsfs.ErrInUse)
		require.NoError(t, d.Log.Append([]LogEntry{{Index: 1}}, nil))
		require.NoError(t, d.Close())
	})
	t.Run("another process", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "data")
		cmd := exec.Command(os.Args[0], "-test.run=^TestHoldDataDirectory$")
		cmd.Env = append(os.Environ(), "GEARSFS_HOLD="+dir)
		_, err := cmd.StdinPipe() // stays open until Wait
		require.NoError(t, err)
		out, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		ready := make([]byte, len(holding))
		_, err = io.ReadFull(out, ready)
		require.NoError(t, err)
		require.Equal(t, holding, string(ready))
		_, err = Open(dir, smallData(nil))
		require.ErrorIs(t, err, gearsfs.ErrInUse)

		require.NoError(t, cmd.Process.Kill())
		require.Error(t, cmd.Wait())
		d, err := Open(dir, smallData(nil))
		require.NoError(t, err)
		require.EqualValues(t, 1, d.Log.Last()) // appended, not synced, and killed
		require.NoError(t, d.Close())
	})
}

const holding = "holding"

// TestHoldDataDirectory is the other process of TestOpenInUse.
func TestHoldDataDirectory(t *testing.T) {
	dir := os.Getenv("GEARSFS_HOLD")
	if dir == "" {
		return // only there to be started by TestOpenInUse
	}
	d, err := Open(dir, smallData(nil))
	require.NoError(t, err)
	require.NoError(t, d.Log.Append([]LogEntry{{Index: 1, Term: 1, Data: []byte("x")}}, nil))
	fmt.Print(holding)
	_, err = io.ReadAll(os.Stdin) // until killed
	require.NoError(t, err)
}

// TestCreationCrashes cuts the power before each write of the first creation,
// with all, none and some of what was not synced left: the next Open completes
// it or begins again.
func TestCreationCrashes(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	disk := vfs.NewCrashableMem()
	var lock sync.Mutex // for Pebble's goroutines
	points := 0
	inject := errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind.ReadOrWrite() != errorfs.OpIsWrite {
			return nil
		}
		for _, percent := range []int{0, 50, 50, 100} {
			lock.Lock()
			points++
			left := disk.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: rng})
			lock.Unlock()
			// This may be a goroutine of Pebble's, so no require.
			d, err := Open("some/where/data", smallData(left))
			if err == nil {
				err = errors.Join(d.Log.Append([]LogEntry{{Index: 1, Term: 1}}, nil), d.Close())
			}
			if err != nil {
				t.Errorf("%d %% of what was not synced is left before %v: %v", percent, op, err)
			}
		}
		return nil
	})
	opts := smallData(errorfs.Wrap(disk, inject))
	d, err := Open("some/where/data", opts)
	require.NoError(t, err)
	created := points
	require.NoError(t, d.Close())
	require.Greater(t, created, 100)
	t.Logf("%d crash points", points)
}

// TestDataFailsEachIO fails each operation of a short life in turn.
func TestDataFailsEachIO(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	for i := 0; ; i++ {
		disk := vfs.NewCrashableMem()
		at := failOperation(i)
		counter := errorfs.Counter{Injector: errorfs.InjectorFunc(func(op errorfs.Op) error {
			if op.Kind == errorfs.OpFileSync && op.Path == "data/state" {
				return nil // Pebble panics when it can't sync its directory
			}
			return at.MaybeError(op)
		})}
		acknowledged, err := shortLife(errorfs.Wrap(disk, &counter))
		if counter.Load() == 0 {
			require.NoError(t, err)
			require.Greater(t, i, 150)
			return
		}
		// As the next process finds it: after a fatal error Pebble has kept its lock.
		left := disk.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 100, RNG: rng})
		d, err := Open("data", smallData(left))
		require.NoError(t, err, "after operation %d failed", i)
		require.GreaterOrEqual(t, d.Log.Last(), acknowledged, "after operation %d failed", i)
		value, ok, err := d.State.Get(VolumeKey(), nil)
		require.NoError(t, err)
		if ok { // the state is that after some commit, all of it
			row, ok, err := d.State.Get(InodeKey(gearsfs.Ino(value[0])), nil)
			require.NoError(t, err)
			require.True(t, ok)
			require.Len(t, row, 1000)
		}
		require.NoError(t, d.Close())
	}
}

// shortLife makes a directory and uses it, up to the first error. It returns
// how many entries were synced.
func shortLife(fsys FS) (acknowledged uint64, err error) {
	d, err := Open("data", smallData(fsys))
	if err != nil {
		return 0, err
	}
	for i := uint64(1); i < 20 && err == nil; i++ {
		err = d.Log.Append([]LogEntry{{Index: i, Term: 1, Data: make([]byte, 3000)}}, nil)
		if err == nil {
			err = d.Log.Sync()
		}
		if err == nil {
			acknowledged = i
			// Small: Pebble 2.1.7 panics when it can't finish a file of separated values.
			d.State.Set(InodeKey(gearsfs.Ino(i)), make([]byte, 1000))
			d.State.Set(VolumeKey(), []byte{byte(i)})
			err = d.State.Commit()
		}
		if err == nil && i%8 == 0 {
			err = <-d.State.Flush()
		}
	}
	if closed := d.Close(); err == nil {
		err = closed
	}
	return acknowledged, err
}
