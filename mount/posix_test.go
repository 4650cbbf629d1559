package mount_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/hanwen/go-fuse/v2/posixtest"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm"
)

func TestPosix(t *testing.T) {
	for name, fn := range posixtest.All {
		if name == "FcntlFlockLocksFile" {
			continue // wants a process's lock to exclude itself, against fcntl(2); no disk does
		}
		for way, change := range ways {
			t.Run(name+"/"+way, func(t *testing.T) {
				fn(t, newFixtureWith(t, change).dir)
			})
		}
	}
}

func init() {
	children["append"] = appendLines
	children["mmap"] = writeThroughMap
	children["readmap"] = readThroughMap
}

// appendLines appends lines that name their writer, each with one write.
func appendLines(args []string) error {
	n, err := strconv.Atoi(args[2])
	if err != nil {
		return err
	}
	f, err := os.OpenFile(args[0], os.O_APPEND|os.O_WRONLY|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	for i := range n {
		line := fmt.Sprintf("%s %04d %s\n", args[1], i, bytes.Repeat([]byte("x"), 90))
		if _, err := io.WriteString(f, line); err != nil {
			return err
		}
	}
	return f.Close()
}

func TestAppendIsOneRecord(t *testing.T) {
	f := newFixture(t)
	const writers, each = 8, 125
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			if out, err := child("append", f.path("log"), strconv.Itoa(w), strconv.Itoa(each)).Output(); err != nil {
				t.Errorf("writer %d: %v %s", w, err, out)
			}
		})
	}
	wg.Wait()
	records := f.records(t, "/log", gearsfs.DataKey)
	require.Len(t, records, writers*each)
	next := [writers]int{}
	for _, r := range records {
		var w, i int
		_, err := fmt.Sscanf(r, "%d %d", &w, &i)
		require.NoError(t, err)
		require.Equal(t, next[w], i, "writer %d's lines are in order and whole: %q", w, r)
		require.Len(t, r, 98)
		next[w]++
	}
	data, err := os.ReadFile(f.path("log"))
	require.NoError(t, err)
	require.Len(t, data, writers*each*98)
}

func TestRenameOverOpenFile(t *testing.T) {
	f := newFixture(t)
	require.NoError(t, os.WriteFile(f.path("f"), []byte("old"), 0o644))
	old, err := os.Open(f.path("f"))
	require.NoError(t, err)
	defer old.Close()
	require.NoError(t, os.WriteFile(f.path("g"), []byte("new"), 0o644))
	require.NoError(t, os.Rename(f.path("g"), f.path("f")))
	data, err := io.ReadAll(old)
	require.NoError(t, err)
	require.Equal(t, "old", string(data))
	data, err = os.ReadFile(f.path("f"))
	require.NoError(t, err)
	require.Equal(t, "new", string(data))
}

// TestReadDirWhileChanging reads a large directory through two mounts at once,
// while names are removed and added behind, at and before the place of reading,
// here and elsewhere. What is there all the time comes once, in order.
func TestReadDirWhileChanging(t *testing.T) {
	f := newFixture(t)
	second := t.TempDir()
	mountOn(t, session(t, f.vol), second, "")
	const n = 100_000
	name := func(i int) string { return fmt.Sprintf("f%06d", i) }
	var makers sync.WaitGroup
	for w := range 64 {
		makers.Go(func() {
			for i := w; i < n; i += 64 {
				if _, err := f.other.Make(t.Context(), gearsfs.RootIno, name(i), dgm.Make{Mode: unix.S_IFREG | 0o644}); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	makers.Wait()
	var readers sync.WaitGroup
	for m, dir := range []string{f.dir, second} {
		readers.Go(func() { readWhileChanging(t, dir, m, n, name) })
	}
	readers.Wait()
	entries, err := os.ReadDir(second)
	require.NoError(t, err)
	require.True(t, slices.IsSortedFunc(entries, func(a, b os.DirEntry) int { return strings.Compare(a.Name(), b.Name()) }))
}

// readWhileChanging reads dir and removes, of all names, those whose number is m
// modulo 100 as soon as it has read them.
func readWhileChanging(t *testing.T, dir string, m, n int, name func(int) string) {
	d, err := os.Open(dir)
	if err != nil {
		t.Error(err)
		return
	}
	defer d.Close()
	last, next := "", 0
	for {
		names, err := d.Readdirnames(1000)
		for _, now := range names {
			if now <= last {
				t.Errorf("%s came after %s", now, last)
				return
			}
			last = now
			var i int
			if _, err := fmt.Sscanf(now, "f%06d", &i); err != nil || now != name(i) {
				continue // one that was added
			}
			for ; next < i; next++ {
				if next%100 > 1 {
					t.Errorf("%s was missed", name(next))
					return
				}
			}
			next = i + 1
			if i%100 != m {
				continue
			}
			if err := os.Remove(filepath.Join(dir, now)); err != nil {
				t.Error(err)
			}
			for _, more := range []string{"a" + now, now + "a", "g" + now} {
				if err := os.WriteFile(filepath.Join(dir, more), nil, 0o644); err != nil {
					t.Error(err)
				}
			}
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Error(err)
			return
		}
	}
	if next < n-100 {
		t.Errorf("the names from %s on were missed", name(next))
	}
}

// TestRewindDir: rewinding reads anew.
func TestRewindDir(t *testing.T) {
	f := newFixture(t)
	require.NoError(t, os.WriteFile(f.path("b"), nil, 0o644))
	d, err := os.Open(f.dir)
	require.NoError(t, err)
	defer d.Close()
	names, err := d.Readdirnames(-1)
	require.NoError(t, err)
	require.Equal(t, []string{"b"}, names)
	require.NoError(t, os.WriteFile(f.path("a"), nil, 0o644))
	_, err = d.Seek(0, io.SeekStart)
	require.NoError(t, err)
	names, err = d.Readdirnames(-1)
	require.NoError(t, err)
	require.Equal(t, []string{"a", "b"}, names)
}

// TestSeekDir goes back to each place of a directory and reads on from there.
func TestSeekDir(t *testing.T) {
	f := newFixture(t)
	for i := range 300 {
		require.NoError(t, os.WriteFile(f.path(fmt.Sprintf("%03d", i)), nil, 0o644))
	}
	fd, err := unix.Open(f.dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	require.NoError(t, err)
	defer unix.Close(fd)
	entries := readDents(t, fd)
	require.Len(t, entries, 302)
	for i := len(entries) - 2; i >= 0; i -= 7 {
		_, err := unix.Seek(fd, entries[i].off, io.SeekStart)
		require.NoError(t, err)
		rest := readDents(t, fd)
		require.Equal(t, entries[i+1:], rest, "behind %s", entries[i].name)
	}
	// A name removed behind the place and one added before it change nothing.
	require.NoError(t, os.Remove(f.path("200")))
	require.NoError(t, os.WriteFile(f.path("1001"), nil, 0o644))
	_, err = unix.Seek(fd, entries[52].off, io.SeekStart)
	require.NoError(t, err)
	rest := readDents(t, fd)
	require.Equal(t, append(entries[53:202:202], entries[203:]...), rest)
}

type dent struct {
	name string
	off  int64
}

// readDents reads a directory to its end, a few entries at a time.
func readDents(t *testing.T, fd int) []dent {
	t.Helper()
	var all []dent
	buf := make([]byte, 1024)
	for {
		n, err := unix.Getdents(fd, buf)
		require.NoError(t, err)
		if n == 0 {
			return all
		}
		for b := buf[:n]; len(b) > 0; {
			reclen := *(*uint16)(ptr(b, 16))
			name := b[19:reclen]
			all = append(all, dent{string(name[:bytes.IndexByte(name, 0)]), *(*int64)(ptr(b, 8))})
			b = b[reclen:]
		}
	}
}

// writeThroughMap changes a file through a shared mapping and syncs it.
func writeThroughMap(args []string) error {
	flags, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	f, err := os.OpenFile(args[0], os.O_RDWR|flags, 0)
	if err != nil {
		return err
	}
	m, err := unix.Mmap(int(f.Fd()), 0, 64<<10, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("mmap: %w", err)
	}
	if m[40000] != 'a' {
		return fmt.Errorf("read %q through the mapping", m[40000])
	}
	copy(m[40000:], "mapped")
	if err := unix.Msync(m, unix.MS_SYNC); err != nil {
		return err
	}
	copy(m[50000:], "not synced")
	return nil // the end of the process writes the rest
}

func readThroughMap(args []string) error {
	f, err := os.Open(args[0])
	if err != nil {
		return err
	}
	m, err := unix.Mmap(int(f.Fd()), 0, 4096, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("mmap: %w", err)
	}
	fmt.Println(string(m[:4]))
	var line [1]byte
	if _, err := os.Stdin.Read(line[:]); err != nil {
		return err
	}
	fmt.Println(string(m[:4]))
	return nil
}

func TestSharedMapping(t *testing.T) {
	for name, flags := range map[string]int{"plain": 0, "append": os.O_APPEND, "direct": unix.O_DIRECT} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			require.NoError(t, os.WriteFile(f.path("f"), bytes.Repeat([]byte("a"), 64<<10), 0o644))
			cached, err := os.Open(f.path("f"))
			require.NoError(t, err)
			defer cached.Close()
			_, err = io.ReadAll(cached)
			require.NoError(t, err)
			out, err := child("mmap", f.path("f"), strconv.Itoa(flags)).CombinedOutput()
			require.NoError(t, err, string(out))
			data := make([]byte, 64<<10+1)
			n, err := cached.ReadAt(data, 0)
			require.Equal(t, io.EOF, err)
			require.Equal(t, 64<<10, n)
			require.Equal(t, "mappeda", string(data[40000:40007]))
			require.Equal(t, "not syncedaa", string(data[50000:50012]))
		})
	}
}

// TestMappedQueue maps a queue that is taken from. Two handles that count from
// different beginnings can't both have the file's pages; the second is told so.
func TestMappedQueue(t *testing.T) {
	f := newFixture(t)
	f.put(t, "/q", gearsfs.DataKey, "aaaa", "bbbb", "cccc", "dddd")
	require.Equal(t, "aaaa", f.mustShell(t, "cat .gears/streams/q/data/take"))
	map4 := func() (in io.WriteCloser, lines *bufio.Scanner, wait func() error) {
		cmd := child("readmap", f.path("q"))
		in, err := cmd.StdinPipe()
		require.NoError(t, err)
		out, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		return in, bufio.NewScanner(out), cmd.Wait
	}
	in, lines, wait := map4()
	require.True(t, lines.Scan())
	require.Equal(t, "bbbb", lines.Text())
	require.Equal(t, "bbbb", f.mustShell(t, "cat .gears/streams/q/data/take"))
	_, lines2, wait2 := map4()
	require.False(t, lines2.Scan())
	require.ErrorContains(t, wait2(), "exit status", "a page that can't be had is SIGBUS")
	requireContent(t, "ccccdddd", f.path("q"))
	_, err := in.Write([]byte("\n"))
	require.NoError(t, err)
	require.True(t, lines.Scan())
	require.Contains(t, []string{"bbbb", "\x00\x00\x00\x00"}, lines.Text())
	require.NoError(t, wait())
	in, lines, wait = map4()
	require.True(t, lines.Scan())
	require.Equal(t, "cccc", lines.Text(), "nobody else has it mapped any more")
	require.NoError(t, in.Close())
	require.Error(t, wait(), "its input ended")
}

func TestSQLite(t *testing.T) {
	for _, mode := range []string{"delete", "wal"} {
		t.Run(mode, func(t *testing.T) {
			f := newFixtureWith(t, holding) // each lock sends what was written
			require.Contains(t, f.mustShell(t, `
sqlite3 db 'pragma journal_mode=`+mode+`; create table t(a integer primary key, b text)'
for w in 1 2 3; do
	for i in $(seq 20); do
		sqlite3 -cmd '.timeout 20000' db "insert into t(b) values('$w-$i'); update t set b = b || 'x' where a % 3 = 0"
	done &
done
wait
sqlite3 db 'select count(*) from t; pragma integrity_check'
`), "60\nok\n")
		})
	}
}

// TestWriteDropsPrivileges is what the kernel leaves to the file system: a
// write by someone unprivileged takes the set-user-id bit.
func TestWriteDropsPrivileges(t *testing.T) {
	for way, change := range ways {
		t.Run(way, func(t *testing.T) { writeDropsPrivileges(t, newFixtureWith(t, change)) })
	}
}

func writeDropsPrivileges(t *testing.T, f fixture) {
	require.NoError(t, os.WriteFile(f.path("f"), []byte("x"), 0o777))
	require.NoError(t, os.Chmod(f.path("f"), 0o777|os.ModeSetuid|os.ModeSetgid))
	cap := []byte{1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	require.NoError(t, unix.Setxattr(f.path("f"), "security.capability", cap, 0))
	file, err := os.OpenFile(f.path("f"), os.O_WRONLY, 0)
	require.NoError(t, err)
	defer file.Close()
	asNobody(t, func() {
		_, err = file.WriteString("y")
	})
	require.NoError(t, err)
	info, err := os.Stat(f.path("f"))
	require.NoError(t, err)
	require.Zero(t, info.Mode()&(os.ModeSetuid|os.ModeSetgid))
	_, err = unix.Getxattr(f.path("f"), "security.capability", cap)
	require.ErrorIs(t, err, unix.ENODATA)
}

// asNobody runs fn on a thread without privileges.
func asNobody(t *testing.T, fn func()) {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	const keep = ^uintptr(0)
	_, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, keep, 65534, keep)
	require.Zero(t, errno)
	defer func() {
		_, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, keep, 0, keep)
		require.Zero(t, errno)
	}()
	fn()
}

func TestStatFS(t *testing.T) {
	f := newFixture(t)
	var st unix.Statfs_t
	require.NoError(t, unix.Statfs(f.dir, &st))
	require.NotZero(t, st.Blocks)
	require.NotZero(t, st.Bavail)
	require.EqualValues(t, 255, st.Namelen)
}
