package mount_test

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/gearsfs/gearsfs/mount"
)

// diskDirEnv names a directory of a local disk: with it TestDisk runs there
// instead of on a mount, which shows that its tests ask for nothing else than
// what a disk does.
const diskDirEnv = "GEARSFS_TEST_DISK"

// place is a directory of a volume, through two mounts of it.
type place struct{ here, there string }

func (p place) path(name string) string  { return filepath.Join(p.here, name) }
func (p place) other(name string) string { return filepath.Join(p.there, name) }

func (p place) write(t *testing.T, name, content string) {
	t.Helper()
	require.NoError(t, os.WriteFile(p.path(name), []byte(content), 0o644))
}

// requireContent checks what a new open of a file shows.
func requireContent(t *testing.T, want, path string) {
	t.Helper()
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, want, string(data))
}

func lstat(t *testing.T, path string) *syscall.Stat_t {
	t.Helper()
	var st syscall.Stat_t
	require.NoError(t, syscall.Lstat(path, &st))
	return &st
}

// TestDisk is what users of a local disk take for granted.
func TestDisk(t *testing.T) {
	newPlace := func(t *testing.T, _ func(*mount.Options)) place {
		dir := t.TempDir()
		return place{dir, dir}
	}
	if at := os.Getenv(diskDirEnv); at != "" {
		t.Setenv("TMPDIR", at)
	} else {
		newPlace = func(t *testing.T, change func(*mount.Options)) place {
			f := newFixtureWith(t, change)
			second := t.TempDir()
			mountWith(t, session(t, f.vol), second, "", change)
			return place{f.dir, second}
		}
	}
	for name, test := range map[string]func(*testing.T, place){
		"hard links":             testHardLinks,
		"unlinked, open":         testUnlinkedOpen,
		"removed directory open": testRemovedDirOpen,
		"O_TMPFILE":              testTmpfileLink,
		"rename flags":           testRenameFlags,
		"append":                 testAppend,
		"append from two mounts": testAppendTwice,
		"O_DIRECT":               testDirect,
		"fallocate":              testFallocate,
		"punched holes":          testPunch,
		"punched pages":          testPunchPages,
		"seek data and holes":    testSeekData,
		"copy_file_range":        testCopyRange,
		"times":                  testTimes,
		"sticky directory":       testSticky,
		"setgid directory":       testSetgid,
		"setgid and lists":       testSetgidACL,
		"long names":             testLongNames,
		"long paths":             testLongPaths,
		"sparse":                 testVerySparse,
	} {
		for way, change := range ways {
			t.Run(name+"/"+way, func(t *testing.T) { test(t, newPlace(t, change)) })
		}
	}
}

func testHardLinks(t *testing.T, p place) {
	p.write(t, "a", "one")
	require.NoError(t, os.Link(p.path("a"), p.path("b")))
	require.NoError(t, os.Link(p.other("b"), p.other("c")))
	was := lstat(t, p.path("b"))
	eventually(t, "three links", func() bool { return lstat(t, p.path("a")).Nlink == 3 })
	for _, name := range []string{"a", "b", "c"} {
		require.Equal(t, was.Ino, lstat(t, p.path(name)).Ino)
		require.Equal(t, was.Ino, lstat(t, p.other(name)).Ino)
	}
	p.write(t, "b", "two!")
	requireContent(t, "two!", p.path("a"))
	requireContent(t, "two!", p.other("c"))

	// Two names of one file: rename(2) says to do nothing.
	require.NoError(t, os.Rename(p.path("a"), p.path("b")))
	require.FileExists(t, p.path("a"))

	before := lstat(t, p.path("b"))
	require.NoError(t, os.Remove(p.path("a")))
	after := lstat(t, p.path("b"))
	require.EqualValues(t, 2, after.Nlink)
	require.Greater(t, after.Ctim.Nano(), before.Ctim.Nano(), "losing a name changes the inode")
	require.NoError(t, os.Remove(p.path("b")))
	require.EqualValues(t, 1, lstat(t, p.path("c")).Nlink)
	requireContent(t, "two!", p.path("c"))

	require.NoError(t, os.Mkdir(p.path("d"), 0o755))
	require.ErrorIs(t, os.Link(p.path("d"), p.path("e")), unix.EPERM)
	require.ErrorIs(t, os.Link(p.path("c"), p.path("d")), unix.EEXIST)
	require.ErrorIs(t, os.Link(p.path("none"), p.path("e")), unix.ENOENT)
	require.NoError(t, os.Symlink("c", p.path("s")))
	require.NoError(t, os.Link(p.path("s"), p.path("s2")), "a symbolic link has names too")
	require.EqualValues(t, 2, lstat(t, p.path("s2")).Nlink)
}

func testUnlinkedOpen(t *testing.T, p place) {
	for name, path := range map[string]string{"here": p.path("f"), "there": p.other("f")} {
		p.write(t, "f", "still here")
		file, err := os.OpenFile(p.path("f"), os.O_RDWR, 0)
		require.NoError(t, err)
		eventually(t, "the name is seen", func() bool { _, err := os.Lstat(path); return err == nil })
		require.NoError(t, os.Remove(path), name)
		_, err = os.Open(path)
		require.ErrorIs(t, err, unix.ENOENT)
		_, err = os.Open(p.path("f"))
		require.ErrorIs(t, err, unix.ENOENT, "an open asks")

		p.write(t, "f", "another")
		buf := make([]byte, 64)
		n, err := file.ReadAt(buf, 0)
		require.Equal(t, io.EOF, err)
		require.Equal(t, "still here", string(buf[:n]))
		_, err = file.WriteAt([]byte("STILL"), 0)
		require.NoError(t, err)
		require.NoError(t, file.Truncate(7))
		require.NoError(t, file.Chmod(0o600))
		require.NoError(t, file.Sync())
		n, err = file.ReadAt(buf, 0)
		require.Equal(t, io.EOF, err)
		require.Equal(t, "STILL h", string(buf[:n]))
		var st unix.Stat_t
		require.NoError(t, unix.Fstat(int(file.Fd()), &st))
		require.Zero(t, st.Nlink)
		require.EqualValues(t, 7, st.Size)
		require.EqualValues(t, 0o600, st.Mode&0o777)
		again, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", file.Fd()))
		require.NoError(t, err)
		require.NoError(t, again.Close())
		require.ErrorIs(t, unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", file.Fd()),
			unix.AT_FDCWD, p.path("g"), unix.AT_SYMLINK_FOLLOW), unix.ENOENT, "what has lost its last name gets no other")
		require.NoError(t, file.Close())
		requireContent(t, "another", p.path("f"))
		requireContent(t, "another", p.other("f"))
	}
}

func testRemovedDirOpen(t *testing.T, p place) {
	require.NoError(t, os.Mkdir(p.path("d"), 0o755))
	fd, err := unix.Open(p.path("d"), unix.O_RDONLY|unix.O_DIRECTORY, 0)
	require.NoError(t, err)
	defer unix.Close(fd)
	worksThere := exec.Command("sh", "-c", "rmdir ../d && stat -c %h,%F .")
	worksThere.Dir = p.path("d")
	out, err := worksThere.CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Equal(t, "0,directory\n", string(out))
	var st unix.Stat_t
	require.NoError(t, unix.Fstat(fd, &st))
	require.Zero(t, st.Nlink)
	require.NoFileExists(t, p.path("d"))
	_, err = unix.Openat(fd, "f", unix.O_CREAT|unix.O_WRONLY, 0o644)
	require.ErrorIs(t, err, unix.ENOENT)
	n, err := unix.Getdents(fd, make([]byte, 1024))
	if err != nil {
		require.ErrorIs(t, err, unix.ENOENT)
	}
	require.LessOrEqual(t, n, 48, "no more than itself and its parent")
}

func testTmpfileLink(t *testing.T, p place) {
	fd, err := unix.Open(p.here, unix.O_TMPFILE|unix.O_RDWR, 0o640)
	require.NoError(t, err)
	defer unix.Close(fd)
	_, err = unix.Write(fd, []byte("whole at once"))
	require.NoError(t, err)
	var st unix.Stat_t
	require.NoError(t, unix.Fstat(fd, &st))
	require.Zero(t, st.Nlink)
	entries, err := os.ReadDir(p.here)
	require.NoError(t, err)
	require.Empty(t, entries)
	require.NoError(t, unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), unix.AT_FDCWD, p.path("f"), unix.AT_SYMLINK_FOLLOW))
	requireContent(t, "whole at once", p.path("f"))
	requireContent(t, "whole at once", p.other("f"))
	require.NoError(t, unix.Fstat(fd, &st))
	require.EqualValues(t, 1, st.Nlink)

	never, err := unix.Open(p.here, unix.O_TMPFILE|unix.O_RDWR|unix.O_EXCL, 0o640)
	require.NoError(t, err)
	defer unix.Close(never)
	require.ErrorIs(t, unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", never), unix.AT_FDCWD, p.path("g"), unix.AT_SYMLINK_FOLLOW), unix.ENOENT)
}

func testRenameFlags(t *testing.T, p place) {
	const at = unix.AT_FDCWD
	p.write(t, "a", "a")
	p.write(t, "b", "b")
	require.NoError(t, os.MkdirAll(p.path("d/e"), 0o755))
	noReplace := func(from, to string) error {
		return unix.Renameat2(at, p.path(from), at, p.path(to), unix.RENAME_NOREPLACE)
	}
	require.ErrorIs(t, noReplace("a", "b"), unix.EEXIST)
	require.ErrorIs(t, noReplace("a", "d"), unix.EEXIST)
	require.NoError(t, noReplace("a", "d/a"))
	exchange := func(from, to string) error {
		return unix.Renameat2(at, p.path(from), at, p.path(to), unix.RENAME_EXCHANGE)
	}
	require.NoError(t, exchange("b", "d/a"))
	requireContent(t, "a", p.path("b"))
	requireContent(t, "b", p.other("d/a"))
	require.ErrorIs(t, exchange("b", "none"), unix.ENOENT)
	require.ErrorIs(t, exchange("d", "d/e"), unix.EINVAL, "a directory into itself")
	require.NoError(t, exchange("b", "d"), "a file and a directory")
	requireContent(t, "a", p.path("d"))
	requireContent(t, "b", p.path("b/a"))
	require.EqualValues(t, 3, lstat(t, p.path("b")).Nlink)
	require.ErrorIs(t, unix.Renameat2(at, p.path("b"), at, p.path("d"), unix.RENAME_EXCHANGE|unix.RENAME_NOREPLACE), unix.EINVAL)
}

func testAppend(t *testing.T, p place) {
	file, err := os.OpenFile(p.path("f"), os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o644)
	require.NoError(t, err)
	defer file.Close()
	for _, word := range []string{"one ", "two ", "three"} {
		_, err := file.WriteString(word)
		require.NoError(t, err)
	}
	_, err = unix.Pwrite(int(file.Fd()), []byte("!"), 0)
	require.NoError(t, err)
	off, err := file.Seek(0, io.SeekCurrent)
	require.NoError(t, err)
	require.EqualValues(t, 13, off)
	buf := make([]byte, 3)
	_, err = file.ReadAt(buf, 4)
	require.NoError(t, err)
	require.Equal(t, "two", string(buf))
	requireContent(t, "one two three!", p.path("f"))

	// A descriptor may begin to append, and stop it.
	plain, err := os.OpenFile(p.path("f"), os.O_RDWR, 0)
	require.NoError(t, err)
	defer plain.Close()
	_, err = unix.FcntlInt(plain.Fd(), unix.F_SETFL, unix.O_APPEND)
	require.NoError(t, err)
	_, err = plain.WriteString("?")
	require.NoError(t, err)
	_, err = unix.FcntlInt(plain.Fd(), unix.F_SETFL, 0)
	require.NoError(t, err)
	_, err = plain.WriteAt([]byte("ONE"), 0)
	require.NoError(t, err)
	require.NoError(t, plain.Sync())
	requireContent(t, "ONE two three!?", p.other("f"))
	require.NoError(t, file.Truncate(3))
	_, err = file.WriteString(" more")
	require.NoError(t, err)
	requireContent(t, "ONE more", p.path("f"))
}

func testAppendTwice(t *testing.T, p place) {
	p.write(t, "log", "")
	const each = 200
	var writers sync.WaitGroup
	for i, path := range []string{p.path("log"), p.other("log"), p.path("log"), p.other("log")} {
		file, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
		require.NoError(t, err)
		defer file.Close()
		writers.Go(func() {
			for n := range each {
				if _, err := fmt.Fprintf(file, "%d %03d %s\n", i, n, strings.Repeat("x", 90)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	writers.Wait()
	data, err := os.ReadFile(p.path("log"))
	require.NoError(t, err)
	lines := strings.Split(strings.TrimSuffix(string(data), "\n"), "\n")
	require.Len(t, lines, 4*each)
	next := [4]int{}
	for _, line := range lines {
		var w, n int
		_, err := fmt.Sscanf(line, "%d %d", &w, &n)
		require.NoError(t, err, line)
		require.Equal(t, next[w], n)
		require.Len(t, line, 96)
		next[w]++
	}
}

func testTimes(t *testing.T, p place) {
	p.write(t, "f", "x")
	for _, at := range []time.Time{
		time.Unix(1234567890, 123456789), time.Unix(0, 0), time.Unix(0, 1), time.Unix(-1, 999999999), time.Unix(5e9, 7),
	} {
		ts := []unix.Timespec{{Sec: at.Unix(), Nsec: int64(at.Nanosecond())}, {Sec: at.Unix() + 1, Nsec: int64(at.Nanosecond())}}
		require.NoError(t, unix.UtimesNanoAt(unix.AT_FDCWD, p.path("f"), ts, 0))
		st := lstat(t, p.path("f"))
		require.Equal(t, ts[0], unix.Timespec(st.Atim))
		require.Equal(t, ts[1], unix.Timespec(st.Mtim))
		eventually(t, "the other mount shows them", func() bool { return unix.Timespec(lstat(t, p.other("f")).Mtim) == ts[1] })
	}
	was := lstat(t, p.path("f"))
	require.NoError(t, unix.UtimesNanoAt(unix.AT_FDCWD, p.path("f"), []unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Nsec: unix.UTIME_NOW}}, 0))
	now := lstat(t, p.path("f"))
	require.Equal(t, was.Atim, now.Atim)
	require.InDelta(t, time.Now().Unix(), now.Mtim.Sec, 3600)
	p.write(t, "f", "y")
	require.Greater(t, lstat(t, p.path("f")).Mtim.Nano(), now.Mtim.Nano(), "a write is later than a touch before it")
	require.NoError(t, os.Chmod(p.path("f"), 0o600))
	later := lstat(t, p.path("f"))
	require.NoError(t, os.Chmod(p.path("f"), 0o640))
	require.Greater(t, lstat(t, p.path("f")).Ctim.Nano(), later.Ctim.Nano())
	require.Equal(t, later.Mtim, lstat(t, p.path("f")).Mtim)
	require.NoError(t, os.Symlink("nowhere", p.path("s")))
	ts := []unix.Timespec{{Sec: 1, Nsec: 2}, {Sec: 3, Nsec: 4}}
	require.NoError(t, unix.UtimesNanoAt(unix.AT_FDCWD, p.path("s"), ts, unix.AT_SYMLINK_NOFOLLOW))
	require.Equal(t, ts[1], unix.Timespec(lstat(t, p.path("s")).Mtim))
	dir := lstat(t, p.here)
	p.write(t, "g", "")
	require.Greater(t, lstat(t, p.here).Mtim.Nano(), dir.Mtim.Nano(), "a new name changes its directory")
}

func testSticky(t *testing.T, p place) {
	require.NoError(t, os.Mkdir(p.path("d"), 0o755))
	require.NoError(t, os.Chmod(p.path("d"), 0o777|os.ModeSticky))
	p.write(t, "d/roots", "")
	// What is above may not be for everybody.
	fd, err := unix.Open(p.path("d"), unix.O_PATH|unix.O_DIRECTORY, 0)
	require.NoError(t, err)
	defer unix.Close(fd)
	asNobody(t, func() {
		require.ErrorIs(t, unix.Unlinkat(fd, "roots", 0), unix.EPERM)
		require.ErrorIs(t, unix.Renameat(fd, "roots", fd, "mine"), unix.EPERM)
		own, err := unix.Openat(fd, "own", unix.O_CREAT|unix.O_WRONLY, 0o644)
		require.NoError(t, err)
		require.NoError(t, unix.Close(own))
		require.ErrorIs(t, unix.Renameat(fd, "own", fd, "roots"), unix.EPERM)
		require.NoError(t, unix.Unlinkat(fd, "own", 0))
	})
}

func testSetgid(t *testing.T, p place) {
	require.NoError(t, os.Mkdir(p.path("d"), 0o755))
	require.NoError(t, os.Chown(p.path("d"), 0, 1234))
	require.NoError(t, os.Chmod(p.path("d"), 0o775|os.ModeSetgid))
	p.write(t, "d/f", "")
	require.EqualValues(t, 1234, lstat(t, p.path("d/f")).Gid)
	require.Zero(t, lstat(t, p.path("d/f")).Mode&unix.S_ISGID)
	require.NoError(t, os.Mkdir(p.path("d/sub"), 0o755))
	require.EqualValues(t, 1234, lstat(t, p.path("d/sub")).Gid)
	require.NotZero(t, lstat(t, p.path("d/sub")).Mode&unix.S_ISGID, "a directory hands it on")
	require.NoError(t, os.Symlink("x", p.path("d/s")))
	require.EqualValues(t, 1234, lstat(t, p.path("d/s")).Gid)
	fd, err := unix.Open(p.path("d"), unix.O_TMPFILE|unix.O_RDWR, 0o644)
	require.NoError(t, err)
	defer unix.Close(fd)
	var st unix.Stat_t
	require.NoError(t, unix.Fstat(fd, &st))
	require.EqualValues(t, 1234, st.Gid)
}

func testLongNames(t *testing.T, p place) {
	long := strings.Repeat("n", 255)
	p.write(t, long, "x")
	requireContent(t, "x", p.other(long))
	require.ErrorIs(t, os.WriteFile(p.path(long+"n"), nil, 0o644), unix.ENAMETOOLONG)
	require.ErrorIs(t, os.Mkdir(p.path(long+"n"), 0o755), unix.ENAMETOOLONG)
	require.ErrorIs(t, os.Rename(p.path(long), p.path(long+"n")), unix.ENAMETOOLONG)
	require.ErrorIs(t, os.Link(p.path(long), p.path(long+"n")), unix.ENAMETOOLONG)
	_, err := os.Lstat(p.path(long + "n"))
	require.ErrorIs(t, err, unix.ENAMETOOLONG)
	odd := "new\nline \xff\xfe " + strings.Repeat("ü", 100)
	p.write(t, odd, "y")
	names := []string{}
	entries, err := os.ReadDir(p.here)
	require.NoError(t, err)
	for _, e := range entries {
		names = append(names, e.Name())
	}
	require.Equal(t, []string{odd, long}, names)
}

func testLongPaths(t *testing.T, p place) {
	target := strings.Repeat("t", 4095)
	require.NoError(t, os.Symlink(target, p.path("s")))
	got, err := os.Readlink(p.path("s"))
	require.NoError(t, err)
	require.Equal(t, target, got)
	require.ErrorIs(t, os.Symlink(target+"t", p.path("s2")), unix.ENAMETOOLONG)
	_, err = os.Lstat(p.here + strings.Repeat("/.", 2100) + "/s")
	require.ErrorIs(t, err, unix.ENAMETOOLONG, "a path has at most 4,095 bytes")

	// A tree may be deeper than any path is long.
	name := strings.Repeat("d", 200)
	fd, err := unix.Open(p.here, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	require.NoError(t, err)
	for range 40 {
		require.NoError(t, unix.Mkdirat(fd, name, 0o755))
		below, err := unix.Openat(fd, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		require.NoError(t, err)
		require.NoError(t, unix.Close(fd))
		fd = below
	}
	file, err := unix.Openat(fd, "f", unix.O_CREAT|unix.O_WRONLY, 0o644)
	require.NoError(t, err)
	require.NoError(t, unix.Close(file))
	require.NoError(t, unix.Close(fd))
	require.NoError(t, os.RemoveAll(p.path(name)))
}
