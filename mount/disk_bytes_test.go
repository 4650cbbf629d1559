package mount_test

import (
	"bytes"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func testDirect(t *testing.T, p place) {
	page := unix.Getpagesize()
	buf, err := unix.Mmap(-1, 0, 2*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	require.NoError(t, err)
	defer func() { require.NoError(t, unix.Munmap(buf)) }()
	cached, err := os.OpenFile(p.path("f"), os.O_RDWR|os.O_CREATE, 0o644)
	require.NoError(t, err)
	defer cached.Close()
	direct, err := unix.Open(p.path("f"), unix.O_RDWR|unix.O_DIRECT, 0)
	require.NoError(t, err)
	defer unix.Close(direct)
	for i := range 20 {
		written := bytes.Repeat([]byte{byte('a' + i)}, 2*page)
		_, err = cached.WriteAt(written, 0)
		require.NoError(t, err)
		n, err := unix.Pread(direct, buf, 0)
		require.NoError(t, err)
		require.Equal(t, 2*page, n)
		require.True(t, bytes.Equal(written, buf), "a direct read shows what was written through the cache")
		for j := range buf {
			buf[j] = byte('A' + i)
		}
		_, err = unix.Pwrite(direct, buf[:page], int64(page))
		require.NoError(t, err)
		got := make([]byte, 2*page)
		_, err = cached.ReadAt(got, 0)
		require.NoError(t, err)
		require.True(t, bytes.Equal(written[:page], got[:page]) && bytes.Equal(buf[:page], got[page:]),
			"the cache shows what was written past it")
	}
	n, err := unix.Pread(direct, buf, int64(2*page))
	require.NoError(t, err)
	require.Zero(t, n)
}

func testFallocate(t *testing.T, p place) {
	file, err := os.Create(p.path("f"))
	require.NoError(t, err)
	defer file.Close()
	fd := int(file.Fd())
	size := func() int64 {
		var st unix.Stat_t
		require.NoError(t, unix.Fstat(fd, &st))
		return st.Size
	}
	require.NoError(t, unix.Fallocate(fd, 0, 0, 10000))
	require.EqualValues(t, 10000, size())
	requireContent(t, strings.Repeat("\x00", 10000), p.path("f"))
	_, err = file.WriteAt([]byte("data"), 5000)
	require.NoError(t, err)
	require.NoError(t, unix.Fallocate(fd, 0, 0, 6000), "what is there stays")
	require.EqualValues(t, 10000, size())
	require.NoError(t, unix.Fallocate(fd, unix.FALLOC_FL_KEEP_SIZE, 8000, 50000))
	require.EqualValues(t, 10000, size())
	buf := make([]byte, 4)
	_, err = file.ReadAt(buf, 5000)
	require.NoError(t, err)
	require.Equal(t, "data", string(buf))
	require.NoError(t, unix.Fallocate(fd, unix.FALLOC_FL_ZERO_RANGE, 5001, 20000))
	require.EqualValues(t, 25001, size())
	_, err = file.ReadAt(buf, 5000)
	require.NoError(t, err)
	require.Equal(t, "d\x00\x00\x00", string(buf))
	require.ErrorIs(t, unix.Fallocate(fd, 0, 0, 0), unix.EINVAL)
	require.ErrorIs(t, unix.Fallocate(fd, 0, -1, 5), unix.EINVAL)
	require.ErrorIs(t, unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE, 0, 5), unix.EOPNOTSUPP, "a hole keeps the size")
	readOnly, err := os.Open(p.path("f"))
	require.NoError(t, err)
	defer readOnly.Close()
	require.ErrorIs(t, unix.Fallocate(int(readOnly.Fd()), 0, 0, 5), unix.EBADF)
	eventually(t, "the other mount shows the size", func() bool { return lstat(t, p.other("f")).Size == 25001 })
}

func testPunch(t *testing.T, p place) {
	const mode = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE
	want := make([]byte, 400_000)
	for i := range want {
		want[i] = byte(i%251 + 1)
	}
	p.write(t, "f", string(want))
	file, err := os.OpenFile(p.path("f"), os.O_RDWR, 0)
	require.NoError(t, err)
	defer file.Close()
	elsewhere, err := os.Open(p.other("f"))
	require.NoError(t, err)
	defer elsewhere.Close()
	full := lstat(t, p.path("f")).Blocks
	_, err = io.ReadAll(file) // the pages are in the cache
	require.NoError(t, err)
	for _, hole := range [][2]int64{{0, 1}, {4096, 4096}, {50_000, 33_333}, {100_000, 200_000}, {390_000, 50_000}, {500_000, 7}} {
		require.NoError(t, unix.Fallocate(int(file.Fd()), mode, hole[0], hole[1]))
		clear(want[min(hole[0], 400_000):min(hole[0]+hole[1], 400_000)])
		got := make([]byte, len(want)+1)
		n, err := file.ReadAt(got, 0)
		require.Equal(t, io.EOF, err)
		require.True(t, bytes.Equal(want, got[:n]), "behind the hole of %d at %d", hole[1], hole[0])
	}
	requireContent(t, string(want), p.other("f"))
	require.Less(t, lstat(t, p.path("f")).Blocks, full/2, "holes take no room")
	eventually(t, "what was open elsewhere shows the holes", func() bool {
		got := make([]byte, len(want))
		_, err := elsewhere.ReadAt(got, 0)
		require.NoError(t, err)
		return bytes.Equal(want, got)
	})
}

// testPunchPages punches every other page of a file.
func testPunchPages(t *testing.T, p place) {
	const size, page = 1 << 20, 4096
	p.write(t, "f", strings.Repeat("x", size))
	file, err := os.OpenFile(p.path("f"), os.O_RDWR, 0)
	require.NoError(t, err)
	defer file.Close()
	for off := int64(0); off < size; off += 2 * page {
		require.NoError(t, unix.Fallocate(int(file.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, page))
	}
	require.EqualValues(t, size/2/512, lstat(t, p.path("f")).Blocks)
	requireContent(t, strings.Repeat(strings.Repeat("\x00", page)+strings.Repeat("x", page), size/page/2), p.other("f"))
}

func testSeekData(t *testing.T, p place) {
	file, err := os.Create(p.path("f"))
	require.NoError(t, err)
	defer file.Close()
	const mib = 1 << 20
	_, err = file.WriteAt([]byte("x"), 2*mib)
	require.NoError(t, err)
	_, err = file.WriteAt([]byte("y"), 8*mib)
	require.NoError(t, err)
	require.NoError(t, file.Truncate(10*mib))
	seek := func(off int64, whence int) int64 {
		t.Helper()
		at, err := unix.Seek(int(file.Fd()), off, whence)
		require.NoError(t, err)
		return at
	}
	within := func(low, high, at int64) {
		t.Helper()
		require.True(t, low <= at && at <= high, "%d is not between %d and %d", at, low, high)
	}
	within(2*mib-64<<10, 2*mib, seek(0, unix.SEEK_DATA))
	require.EqualValues(t, 2*mib, seek(2*mib, unix.SEEK_DATA))
	within(2*mib+1, 2*mib+64<<10, seek(2*mib, unix.SEEK_HOLE))
	require.EqualValues(t, 0, seek(0, unix.SEEK_HOLE))
	within(8*mib-64<<10, 8*mib, seek(4*mib, unix.SEEK_DATA))
	require.EqualValues(t, 9*mib, seek(9*mib, unix.SEEK_HOLE))
	_, err = unix.Seek(int(file.Fd()), 9*mib, unix.SEEK_DATA)
	require.ErrorIs(t, err, unix.ENXIO, "no data to the end")
	_, err = unix.Seek(int(file.Fd()), 10*mib, unix.SEEK_HOLE)
	require.ErrorIs(t, err, unix.ENXIO)
	p.write(t, "g", "no hole")
	file, err = os.Open(p.path("g"))
	require.NoError(t, err)
	defer file.Close()
	require.EqualValues(t, 7, seek(0, unix.SEEK_HOLE), "the end is a hole")
	require.EqualValues(t, 3, seek(3, unix.SEEK_DATA))
}

func testCopyRange(t *testing.T, p place) {
	content := make([]byte, 3<<20+77)
	for i := range content {
		content[i] = byte(i * i >> 3)
	}
	p.write(t, "from", string(content))
	from, err := os.OpenFile(p.path("from"), os.O_RDWR, 0)
	require.NoError(t, err)
	defer from.Close()
	to, err := os.Create(p.path("to"))
	require.NoError(t, err)
	defer to.Close()
	copyRange := func(to *os.File, at, off int64, n int) (copied int, err error) {
		for copied < n {
			c, err := unix.CopyFileRange(int(from.Fd()), &off, int(to.Fd()), &at, n-copied, 0)
			if err != nil || c == 0 {
				return copied, err
			}
			copied += c
		}
		return copied, nil
	}
	n, err := copyRange(to, 0, 0, 10<<20)
	require.NoError(t, err)
	require.Equal(t, len(content), n, "to the end and no further")
	requireContent(t, string(content), p.path("to"))
	requireContent(t, string(content), p.other("to"))
	n, err = copyRange(to, 4<<20, 12345, 99999)
	require.NoError(t, err)
	require.Equal(t, 99999, n)
	want := append(append(bytes.Clone(content), make([]byte, 4<<20-len(content))...), content[12345:12345+99999]...)
	requireContent(t, string(want), p.path("to"))
	n, err = copyRange(from, 1<<20, 5, 1000)
	require.NoError(t, err)
	require.Equal(t, 1000, n, "within one file")
	copy(content[1<<20:], content[5:1005])
	requireContent(t, string(content), p.other("from"))
	_, err = copyRange(from, 500, 0, 1000)
	require.ErrorIs(t, err, unix.EINVAL, "ranges that overlap")
}

func testVerySparse(t *testing.T, p place) {
	file, err := os.Create(p.path("f"))
	require.NoError(t, err)
	defer file.Close()
	const tib = 1 << 40
	require.NoError(t, file.Truncate(2*tib))
	_, err = file.WriteAt([]byte("middle"), tib+5)
	require.NoError(t, err)
	_, err = file.WriteAt([]byte("end"), 3*tib)
	require.NoError(t, err)
	st := lstat(t, p.path("f"))
	require.EqualValues(t, 3*tib+3, st.Size)
	require.Less(t, st.Blocks, int64(1000))
	buf := make([]byte, 8)
	other, err := os.Open(p.other("f"))
	require.NoError(t, err)
	defer other.Close()
	_, err = other.ReadAt(buf, tib+4)
	require.NoError(t, err)
	require.Equal(t, "\x00middle\x00", string(buf))
	off, err := unix.Seek(int(file.Fd()), 0, unix.SEEK_DATA)
	require.NoError(t, err)
	require.True(t, tib-64<<10 <= off && off <= tib+5, off)
	require.NoError(t, unix.Fallocate(int(file.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 4096, 3*tib-4096))
	off, err = unix.Seek(int(file.Fd()), 0, unix.SEEK_DATA)
	require.NoError(t, err)
	require.EqualValues(t, 3*tib, off)
	require.NoError(t, file.Truncate(5))
	require.EqualValues(t, 5, lstat(t, p.path("f")).Size)
}
