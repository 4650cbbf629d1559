package mount_test

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"
	"sync"
	"testing"

	"github.com/hanwen/go-fuse/v2/posixtest"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/gearsfs/gearsfs"
)

func TestPosix(t *testing.T) {
	for name, fn := range posixtest.All {
		if name == "FcntlFlockLocksFile" {
			continue // wants a process's lock to exclude itself, against fcntl(2); no disk does
		}
		t.Run(name, func(t *testing.T) {
			fn(t, newFixture(t).dir)
		})
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

func TestUnlinkedFileStaysWhileOpen(t *testing.T) {
	f := newFixture(t)
	file, err := os.Create(f.path("f"))
	require.NoError(t, err)
	defer file.Close()
	_, err = file.WriteString("still here")
	require.NoError(t, err)
	require.NoError(t, os.Remove(f.path("f")))
	buf := make([]byte, 20)
	n, err := file.ReadAt(buf, 0)
	require.Equal(t, io.EOF, err)
	require.Equal(t, "still here", string(buf[:n]))
	again, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", file.Fd()))
	require.NoError(t, err, "a file without a name opens through /proc")
	require.NoError(t, again.Close())
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

func TestRenameFlags(t *testing.T) {
	f := newFixture(t)
	require.NoError(t, os.WriteFile(f.path("a"), []byte("a"), 0o644))
	require.NoError(t, os.WriteFile(f.path("b"), []byte("b"), 0o644))
	at := unix.AT_FDCWD
	require.ErrorIs(t, unix.Renameat2(at, f.path("a"), at, f.path("b"), unix.RENAME_NOREPLACE), unix.EEXIST)
	require.NoError(t, unix.Renameat2(at, f.path("a"), at, f.path("b"), unix.RENAME_EXCHANGE))
	data, err := os.ReadFile(f.path("a"))
	require.NoError(t, err)
	require.Equal(t, "b", string(data))
	require.ErrorIs(t, unix.Renameat2(at, f.path("a"), at, f.path("c"), unix.RENAME_WHITEOUT), unix.EINVAL)
}

// TestReadDirWhileChanging removes each name as it is read, and adds others.
func TestReadDirWhileChanging(t *testing.T) {
	f := newFixture(t)
	const n = 2000
	for i := range n {
		require.NoError(t, os.WriteFile(f.path(fmt.Sprintf("f%05d", i)), nil, 0o644))
	}
	d, err := os.Open(f.dir)
	require.NoError(t, err)
	defer d.Close()
	seen := map[string]bool{}
	last := ""
	for {
		names, err := d.Readdirnames(50)
		for _, name := range names {
			require.False(t, seen[name], "%s came twice", name)
			require.Greater(t, name, last, "sorted")
			seen[name], last = true, name
			require.NoError(t, os.Remove(f.path(name)))
			require.NoError(t, os.WriteFile(f.path("a"+name), nil, 0o644))
		}
		if err == io.EOF {
			break
		}
		require.NoError(t, err)
	}
	for i := range n {
		require.True(t, seen[fmt.Sprintf("f%05d", i)], "f%05d was missed", i)
	}
	_, err = d.Seek(0, io.SeekStart)
	require.NoError(t, err)
	names, err := d.Readdirnames(-1)
	require.NoError(t, err)
	require.Len(t, names, n, "rewinding reads anew")
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
	f, err := os.OpenFile(args[0], os.O_RDWR, 0)
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
	f := newFixture(t)
	require.NoError(t, os.WriteFile(f.path("f"), bytes.Repeat([]byte("a"), 64<<10), 0o644))
	out, err := child("mmap", f.path("f")).CombinedOutput()
	require.NoError(t, err, string(out))
	data, err := os.ReadFile(f.path("f"))
	require.NoError(t, err)
	require.Equal(t, "mappeda", string(data[40000:40007]))
	require.Equal(t, "not syncedaa", string(data[50000:50012]))
	require.Len(t, data, 64<<10)
}

func TestSQLite(t *testing.T) {
	for _, mode := range []string{"delete", "wal"} {
		t.Run(mode, func(t *testing.T) {
			f := newFixture(t)
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

func TestTmpfile(t *testing.T) {
	f := newFixture(t)
	fd, err := unix.Open(f.dir, unix.O_TMPFILE|unix.O_RDWR, 0o600)
	require.NoError(t, err)
	defer unix.Close(fd)
	_, err = unix.Write(fd, []byte("x"))
	require.NoError(t, err)
	entries, err := os.ReadDir(f.dir)
	require.NoError(t, err)
	require.Empty(t, entries)
}

// TestWriteDropsPrivileges is what the kernel leaves to the file system: a
// write by someone unprivileged takes the set-user-id bit.
func TestWriteDropsPrivileges(t *testing.T) {
	f := newFixture(t)
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

func TestSparse(t *testing.T) {
	f := newFixture(t)
	file, err := os.Create(f.path("f"))
	require.NoError(t, err)
	defer file.Close()
	const far = 3 << 40
	_, err = file.WriteAt([]byte("end"), far)
	require.NoError(t, err)
	off, err := unix.Seek(int(file.Fd()), 0, unix.SEEK_DATA)
	require.NoError(t, err)
	require.Greater(t, off, int64(1<<40))
	buf := make([]byte, 3)
	_, err = file.ReadAt(buf, far)
	require.NoError(t, err)
	require.Equal(t, "end", string(buf))
	_, err = file.ReadAt(buf, 1<<40)
	require.NoError(t, err)
	require.Equal(t, "\x00\x00\x00", string(buf))
}
