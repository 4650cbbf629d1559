package tests

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// Two mounts of a volume, of one node and of two followers among three: what is
// closed, renamed or removed through one is what the next open and listing
// through the other shows. What the other's kernel keeps is pushed out of it.
func TestMountsAreCoherent(t *testing.T) {
	t.Parallel()
	for name, mounts := range map[string]func(t *testing.T) (here, there string){
		"one node": func(t *testing.T) (string, string) {
			d := startMounted(t)
			return d.mount, d.mountAgain(t)
		},
		"three nodes": func(t *testing.T) (string, string) {
			c := startMountedCluster(t, 3)
			leader := c.leader()
			return c.nodes[(leader+1)%3].mount, c.nodes[(leader+2)%3].mount
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var p pair
			p.here, p.there = mounts(t)
			for _, part := range []struct {
				name string
				test func(*testing.T, pair)
			}{
				{"new file", testNewFileElsewhere},
				{"append", testAppendElsewhere},
				{"rename", testRenameElsewhere},
				{"removal", testRemovalElsewhere},
				{"listing", testListElsewhere},
				{"attributes", testAttributesElsewhere},
				{"mapping", testMappingElsewhere},
			} {
				t.Run(part.name, func(t *testing.T) { part.test(t, p) })
			}
		})
	}
}

// pair is a directory through two mounts.
type pair struct{ here, there string }

func (p pair) write(t *testing.T, name, text string) {
	t.Helper()
	require.NoError(t, os.WriteFile(filepath.Join(p.here, name), []byte(text), 0o644))
}

func (p pair) path(name string) string { return filepath.Join(p.there, name) }

// pushed waits until the other mount's kernel has been told: what it keeps it
// may show until then, and it says nothing of when that is.
func pushed(t *testing.T, what string, seen func() bool) {
	t.Helper()
	require.Eventually(t, seen, runWithin, time.Millisecond, what)
}

const coherenceRounds = 50

func requireText(t *testing.T, want, path string) {
	t.Helper()
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, want, string(text))
}

func testNewFileElsewhere(t *testing.T, p pair) {
	for i := range coherenceRounds {
		name, text := fmt.Sprint("new", i), fmt.Sprint("text ", i)
		_, err := os.Open(p.path(name))
		require.ErrorIs(t, err, os.ErrNotExist)
		p.write(t, name, text)
		requireText(t, text, p.path(name))
	}
}

func testAppendElsewhere(t *testing.T, p pair) {
	want := ""
	p.write(t, "log", want)
	watched, err := os.Open(p.path("log"))
	require.NoError(t, err)
	defer watched.Close()
	for i := range coherenceRounds {
		log, err := os.OpenFile(filepath.Join(p.here, "log"), os.O_WRONLY|os.O_APPEND, 0)
		require.NoError(t, err)
		line := fmt.Sprintln("line", i)
		_, err = log.WriteString(line)
		require.NoError(t, err)
		require.NoError(t, log.Close())
		want += line
		requireText(t, want, p.path("log"))
		pushed(t, "stat of the path", func() bool {
			info, err := os.Stat(p.path("log"))
			return err == nil && info.Size() == int64(len(want))
		})
		info, err := watched.Stat()
		require.NoError(t, err)
		require.EqualValues(t, len(want), info.Size(), "and of what is open")
	}
	text := make([]byte, len(want))
	_, err = watched.ReadAt(text, 0)
	require.NoError(t, err)
	require.Equal(t, want, string(text), "through a file that was open all the time")
}

func testRenameElsewhere(t *testing.T, p pair) {
	p.write(t, "f", "first")
	requireText(t, "first", p.path("f"))
	for i := range coherenceRounds {
		text := fmt.Sprint("whole at once, ", i)
		p.write(t, "f.tmp", text)
		require.NoError(t, os.Rename(filepath.Join(p.here, "f.tmp"), filepath.Join(p.here, "f")))
		requireText(t, text, p.path("f"))
		_, err := os.Open(p.path("f.tmp"))
		require.ErrorIs(t, err, os.ErrNotExist)
	}
	// Names that were looked up, and are of others by now.
	for i := range coherenceRounds {
		a, b := fmt.Sprint("a", i), fmt.Sprint("b", i)
		p.write(t, a, a)
		p.write(t, b, b)
		requireText(t, a, p.path(a))
		requireText(t, b, p.path(b))
		require.NoError(t, unix.Renameat2(unix.AT_FDCWD, filepath.Join(p.here, a), unix.AT_FDCWD, filepath.Join(p.here, b), unix.RENAME_EXCHANGE))
		requireText(t, b, p.path(a))
		requireText(t, a, p.path(b))
	}
}

func testRemovalElsewhere(t *testing.T, p pair) {
	for i := range coherenceRounds {
		name := fmt.Sprint("gone", i)
		p.write(t, name, "x")
		requireText(t, "x", p.path(name))
		require.NoError(t, os.Remove(filepath.Join(p.here, name)))
		_, err := os.Open(p.path(name))
		require.ErrorIs(t, err, os.ErrNotExist)
	}
	require.NoError(t, os.MkdirAll(filepath.Join(p.here, "d/e"), 0o755))
	_, err := os.Stat(p.path("d/e"))
	require.NoError(t, err)
	require.NoError(t, os.RemoveAll(filepath.Join(p.here, "d")))
	pushed(t, "a directory goes", func() bool { _, err := os.Stat(p.path("d/e")); return os.IsNotExist(err) })
}

func testListElsewhere(t *testing.T, p pair) {
	require.NoError(t, os.Mkdir(filepath.Join(p.here, "list"), 0o755))
	var want []string
	for i := range coherenceRounds {
		name := fmt.Sprintf("%03d", i)
		p.write(t, "list/"+name, "")
		want = append(want, name)
		if i%5 == 4 {
			require.NoError(t, os.Remove(filepath.Join(p.here, "list", want[0])))
			want = want[1:]
		}
		entries, err := os.ReadDir(p.path("list"))
		require.NoError(t, err)
		var names []string
		for _, e := range entries {
			names = append(names, e.Name())
		}
		require.True(t, slices.Equal(want, names), "%v, must be %v", names, want)
	}
}

func testAttributesElsewhere(t *testing.T, p pair) {
	p.write(t, "f", "x")
	at := filepath.Join(p.here, "f")
	for i := range coherenceRounds {
		mode, when := os.FileMode(0o600+i%64), time.Unix(int64(1000+i), 123456789)
		require.NoError(t, os.Chmod(at, mode))
		require.NoError(t, os.Chtimes(at, when, when))
		pushed(t, "mode and time", func() bool {
			info, err := os.Stat(p.path("f"))
			return err == nil && info.Mode() == mode && info.ModTime().Equal(when)
		})
	}
}

// A mapping is refreshed with nothing asked of its mount.
func testMappingElsewhere(t *testing.T, p pair) {
	p.write(t, "mapped", "round 000")
	file, err := os.Open(p.path("mapped"))
	require.NoError(t, err)
	defer file.Close()
	info, err := file.Stat() // as who maps a file does, to know its size
	require.NoError(t, err)
	require.EqualValues(t, 9, info.Size())
	m, err := unix.Mmap(int(file.Fd()), 0, 9, unix.PROT_READ, unix.MAP_SHARED)
	require.NoError(t, err)
	defer func() { require.NoError(t, unix.Munmap(m)) }()
	writer, err := os.OpenFile(filepath.Join(p.here, "mapped"), os.O_WRONLY, 0)
	require.NoError(t, err)
	defer writer.Close()
	for i := range coherenceRounds {
		want := fmt.Sprintf("round %03d", i)
		_, err := writer.WriteAt([]byte(want), 0)
		require.NoError(t, err)
		pushed(t, "the page", func() bool { return string(m) == want })
	}
}
