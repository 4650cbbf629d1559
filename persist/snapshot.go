package persist

import (
	"crypto/rand"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
	"sync"

	"github.com/gearsfs/gearsfs"
)

// Snapshot is a copy of the state as of some entry, for another node to fetch
// in pieces: the files of a Pebble. It costs disk only as the state moves away
// from it, since files are shared. All methods are safe for concurrent use.
type Snapshot struct {
	ID    string         // random, so that a transfer that was cut off goes on with the same files
	Files []SnapshotFile // by name
	Bytes uint64         // of all files

	fs   FS
	dir  string
	opts Options

	mu     sync.RWMutex // held for reading while files are read
	closed bool
}

// SnapshotFile is a file of a snapshot.
type SnapshotFile struct {
	Name  string
	Bytes uint64
	Sum   uint32 // crc32c of all of it
}

// pieceBytesMax bounds what one ReadAt returns.
const pieceBytesMax = 4 << 20

// MakeSnapshot makes a snapshot of the state as it is now, or a little later.
// It waits for the disk: the state is flushed and all of it is read once. It
// may be called on any goroutine, also beside Install. gearsfs.ErrNoSpace.
func (d *Data) MakeSnapshot() (*Snapshot, error) {
	var id ID
	if _, err := rand.Read(id[:]); err != nil {
		return nil, err
	}
	s := &Snapshot{ID: id.String(), fs: d.fs, opts: d.opts}
	s.dir = d.fs.PathJoin(d.path(snapshotsName), s.ID)
	err := d.State.Checkpoint(s.dir)
	if err == nil {
		err = s.list()
	}
	if err != nil {
		return nil, fmt.Errorf("make a snapshot: %w", errors.Join(err, d.fs.RemoveAll(s.dir)))
	}
	return s, nil
}

// list reads what the snapshot consists of.
func (s *Snapshot) list() error {
	names, err := s.fs.List(s.dir)
	if err != nil {
		return err
	}
	slices.Sort(names)
	for _, name := range names {
		size, sum, err := sumFile(s.fs, s.fs.PathJoin(s.dir, name))
		if err != nil {
			return err
		}
		s.Files = append(s.Files, SnapshotFile{Name: name, Bytes: size, Sum: sum})
		s.Bytes += size
	}
	return nil
}

// sumFile returns a file's length and the crc32c of it.
func sumFile(fsys FS, path string) (size uint64, sum uint32, err error) {
	f, err := fsys.Open(path)
	if err != nil {
		return 0, 0, err
	}
	hash := crc32.New(castagnoli)
	n, err := io.CopyBuffer(struct{ io.Writer }{hash}, struct{ io.Reader }{f}, make([]byte, copyBytes))
	return uint64(n), hash.Sum32(), errors.Join(err, f.Close())
}

const copyBytes = 256 << 10 // read at once

// ReadAt returns up to n bytes of a file from off on, fewer at its end and at
// most 4 MiB. The bytes are the caller's. Errors: gearsfs.ErrNotFound, no file
// of that name; gearsfs.ErrRange, off is behind its end; gearsfs.ErrClosed.
func (s *Snapshot) ReadAt(file string, off uint64, n int) ([]byte, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	i, found := slices.BinarySearchFunc(s.Files, file, compareFile)
	switch {
	case s.closed:
		return nil, gearsfs.ErrClosed
	case !found:
		return nil, gearsfs.ErrNotFound.Because("the snapshot has no file %q", file)
	case off > s.Files[i].Bytes:
		return nil, gearsfs.ErrRange.Because("%s has %d bytes, not %d", file, s.Files[i].Bytes, off)
	}
	b := make([]byte, min(uint64(max(n, 0)), s.Files[i].Bytes-off, pieceBytesMax))
	if len(b) == 0 {
		return b, nil
	}
	f, err := s.fs.Open(s.fs.PathJoin(s.dir, file))
	if err != nil {
		return nil, fmt.Errorf("read a snapshot: %w", err)
	}
	if _, err = f.ReadAt(b, int64(off)); errors.Is(err, io.EOF) {
		err = gearsfs.ErrDamaged.Because("%s in a snapshot was cut off", file)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("read a snapshot: %w", err)
	}
	return b, nil
}

func compareFile(f SnapshotFile, name string) int {
	switch {
	case f.Name < name:
		return -1
	case f.Name > name:
		return 1
	}
	return 0
}

// Reader shows the snapshot's rows; only one at a time. It must be closed
// before the Snapshot is.
func (s *Snapshot) Reader() (View, error) { return readTables(s.fs, s.dir, s.opts) }

// Close removes the snapshot. It waits for reads that are underway, and is
// idempotent.
func (s *Snapshot) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	if err := s.fs.RemoveAll(s.dir); err != nil {
		return fmt.Errorf("remove a snapshot: %w", err)
	}
	return nil
}
