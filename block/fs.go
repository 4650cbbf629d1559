package block

import (
	"errors"
	"io"
	"io/fs"
	"math"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// FS is the file system that a store stands on. Paths are as filepath joins
// them. Implementations are safe for concurrent use, and their errors are the
// operating system's: a missing file is fs.ErrNotExist, one too many
// fs.ErrExist, a full disk unix.ENOSPC. A conformance suite is in blocktest.
type FS interface {
	// MakeDir makes one directory; one that exists is fs.ErrExist.
	MakeDir(dir string) error
	// Create makes an empty file that was not there.
	Create(path string) (File, error)
	// Open opens a file that is there.
	Open(path string) (File, error)
	// Remove takes a file's name away; files that are open stay readable.
	Remove(path string) error
	// List returns the names in a directory, in any order.
	List(dir string) ([]string, error)
	Stat(path string) (FileInfo, error)
	// SyncDir has the names in a directory survive a power cut.
	SyncDir(dir string) error
	// SyncAll has all survive that was changed in and below a directory,
	// also by processes that have ended.
	SyncAll(dir string) error
}

// File is one open file of an FS.
type File interface {
	io.ReaderAt // also io.EOF together with the bytes in front of the end
	io.WriterAt
	io.Closer
	// Sync is fdatasync(2): what was written survives a power cut.
	Sync() error
	// Punch gives back the disk space of n bytes from off on, which read as
	// zeros then; the file's length stays. errors.ErrUnsupported.
	Punch(off, n int64) error
	// Data returns the first range of bytes at or behind off that is no hole,
	// and io.EOF where none is left. A file system that does not know holes
	// says that all is data; also errors.ErrUnsupported.
	Data(off int64) (start, end int64, err error)
}

// FileInfo is what a store asks about a file.
type FileInfo struct {
	Size      int64
	Allocated int64     // bytes of disk space
	Changed   time.Time // when its bytes were last written or punched
}

// OS is the operating system's file system.
var OS FS = osFS{}

type osFS struct{}

func (osFS) MakeDir(dir string) error { return os.Mkdir(dir, 0o700) }

func (osFS) Create(path string) (File, error) {
	return openFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL)
}

func (osFS) Open(path string) (File, error) { return openFile(path, os.O_RDWR) }

func openFile(path string, flags int) (File, error) {
	f, err := os.OpenFile(path, flags, 0o600)
	if err != nil {
		return nil, err
	}
	return osFile{File: f, fd: int(f.Fd())}, nil
}

func (osFS) Remove(path string) error { return os.Remove(path) }

func (osFS) List(dir string) ([]string, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	names, err := d.Readdirnames(-1)
	return names, errors.Join(err, d.Close())
}

func (osFS) Stat(path string) (FileInfo, error) {
	var st unix.Stat_t
	if err := ignoringEINTR(func() error { return unix.Stat(path, &st) }); err != nil {
		return FileInfo{}, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	return FileInfo{Size: st.Size, Allocated: st.Blocks * 512, Changed: time.Unix(st.Mtim.Unix())}, nil
}

func (osFS) SyncDir(dir string) error {
	return onDir(dir, func(d *os.File) error { return d.Sync() })
}

// SyncAll is syncfs(2), so it also waits for what others wrote to the same
// file system.
func (osFS) SyncAll(dir string) error {
	return onDir(dir, func(d *os.File) error {
		err := ignoringEINTR(func() error { return unix.Syncfs(int(d.Fd())) })
		if err != nil {
			return &fs.PathError{Op: "syncfs", Path: dir, Err: err}
		}
		return nil
	})
}

func onDir(dir string, do func(d *os.File) error) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(do(d), d.Close())
}

type osFile struct {
	*os.File
	fd int
}

func (f osFile) Sync() error {
	return f.wrap("fdatasync", ignoringEINTR(func() error { return unix.Fdatasync(f.fd) }))
}

func (f osFile) Punch(off, n int64) error {
	const mode = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE
	return f.wrap("punch", ignoringEINTR(func() error { return unix.Fallocate(f.fd, mode, off, n) }))
}

func (f osFile) Data(off int64) (start, end int64, err error) {
	start, err = unix.Seek(f.fd, off, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) {
		return 0, 0, io.EOF
	}
	if err == nil {
		end, err = unix.Seek(f.fd, start, unix.SEEK_HOLE)
	}
	if errors.Is(err, unix.ENXIO) { // cut short in between
		end, err = math.MaxInt64, nil
	}
	if errors.Is(err, unix.EINVAL) {
		err = errors.ErrUnsupported
	}
	return start, end, f.wrap("seek", err)
}

func (f osFile) wrap(op string, err error) error {
	if err == nil {
		return nil
	}
	return &fs.PathError{Op: op, Path: f.Name(), Err: err}
}

func ignoringEINTR(do func() error) error {
	for {
		if err := do(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
