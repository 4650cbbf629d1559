package persist

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/gearsfs/gearsfs"
)

// Incoming is another node's snapshot while it is fetched, file by file and
// each from its beginning:
//
//	Receive -> Have, Write ... -> Verify -> Data.Install
//
// What was written stays when the process or the machine dies, as far as the
// disk had it: the next Receive of the same snapshot goes on there, and Verify
// finds what is not as it was sent. All methods are safe for concurrent use.
type Incoming struct {
	data  *Data
	dir   string
	files []SnapshotFile // by name

	mu       sync.Mutex // guards what follows; held over I/O, one piece at a time
	have     map[string]uint64
	unsynced uint64 // bytes of the file that is written
	verified bool
}

// incomingSyncBytes is how much of a file may be in memory only: so much is
// fetched again after a power cut.
const incomingSyncBytes = 16 << 20

// fileNameMax bounds the name of a snapshot's file.
const fileNameMax = 255

// Receive begins to receive a snapshot, or goes on where an earlier try of the
// same id ended; what is there of others is removed. Errors:
// gearsfs.ErrInvalid, ids, names or sizes that no snapshot has;
// gearsfs.ErrNoSpace.
func (d *Data) Receive(id string, files []SnapshotFile) (*Incoming, error) {
	in := &Incoming{data: d, files: slices.Clone(files), have: make(map[string]uint64, len(files))}
	slices.SortFunc(in.files, func(a, b SnapshotFile) int { return strings.Compare(a.Name, b.Name) })
	var parsed ID
	if err := parseID(id, &parsed); err != nil || parsed.String() != id {
		return nil, gearsfs.ErrInvalid.Because("%q is not a snapshot's id", id)
	}
	if err := in.checkFiles(); err != nil {
		return nil, err
	}
	in.dir = d.fs.PathJoin(d.path(incomingName), id)
	err := in.makeDir(id)
	if err == nil {
		err = in.look()
	}
	if err == nil {
		err = in.checkSpace()
	}
	if err != nil {
		return nil, fmt.Errorf("receive a snapshot: %w", err)
	}
	return in, nil
}

// checkFiles finds names that are no plain file's, and sizes that can't be.
func (in *Incoming) checkFiles() error {
	var total uint64
	last := ""
	for _, f := range in.files {
		plain := func(r rune) bool {
			return r == '.' || r == '-' || r == '_' || '0' <= r && r <= '9' || 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z'
		}
		if f.Name == "" || len(f.Name) > fileNameMax || f.Name[0] == '.' || f.Name == last ||
			strings.ContainsFunc(f.Name, func(r rune) bool { return !plain(r) }) {
			return gearsfs.ErrInvalid.Because("%.260q is not a file of a snapshot", f.Name)
		}
		last = f.Name
		if f.Bytes > snapshotBytesMax-total {
			return gearsfs.ErrInvalid.Because("a snapshot of more than %d bytes", uint64(snapshotBytesMax))
		}
		total += f.Bytes
	}
	return nil
}

const snapshotBytesMax = 1 << 50

// makeDir makes the directory of this snapshot, and removes those of others.
func (in *Incoming) makeDir(id string) error {
	d := in.data
	parent := d.path(incomingName)
	if err := d.fs.MkdirAll(in.dir, 0o700); err != nil {
		return noSpace(err)
	}
	names, err := d.fs.List(parent)
	for _, name := range names {
		if err == nil && name != id {
			err = d.fs.RemoveAll(d.fs.PathJoin(parent, name))
		}
	}
	for _, dir := range []string{d.dir, parent} {
		if err == nil {
			err = syncDir(d.fs, dir)
		}
	}
	return err
}

// look finds out how much is there, removes what is not of this snapshot, and
// makes the files that are empty.
func (in *Incoming) look() error {
	fsys := in.data.fs
	names, err := fsys.List(in.dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		path := fsys.PathJoin(in.dir, name)
		f, known := in.file(name)
		info, err := fsys.Stat(path)
		if err != nil {
			return err
		}
		if known && !info.IsDir() && uint64(info.Size()) <= f.Bytes {
			in.have[name] = uint64(info.Size())
			continue
		}
		if err := fsys.RemoveAll(path); err != nil {
			return err
		}
	}
	for _, f := range in.files {
		if f.Bytes == 0 {
			if err := in.writeAt(f, 0, nil); err != nil {
				return err
			}
		}
	}
	return nil
}

// checkSpace says whether the disk has room for what is missing.
func (in *Incoming) checkSpace() error {
	var need uint64
	for _, f := range in.files {
		need += f.Bytes - in.have[f.Name]
	}
	free, _, err := in.data.Free()
	if errors.Is(err, gearsfs.ErrUnsupported) {
		return nil
	}
	if err == nil && free < need {
		err = gearsfs.ErrNoSpace.Because("the snapshot needs %d bytes, the disk has %d", need, free)
	}
	return err
}

func (in *Incoming) file(name string) (SnapshotFile, bool) {
	i, found := slices.BinarySearchFunc(in.files, name, compareFile)
	if !found {
		return SnapshotFile{}, false
	}
	return in.files[i], true
}

// Have is how many bytes of a file are there, from its beginning.
func (in *Incoming) Have(file string) uint64 {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.have[file]
}

// Write adds a piece to a file at the end of what is there; a piece, or a part
// of one, that is there already is left out. b is not kept. Errors:
// gearsfs.ErrInvalid, a piece that does not belong there; gearsfs.ErrNoSpace,
// after which the same may be tried again.
func (in *Incoming) Write(file string, off uint64, b []byte) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	f, known := in.file(file)
	have := in.have[file]
	switch {
	case !known:
		return gearsfs.ErrInvalid.Because("the snapshot has no file %.260q", file)
	case off > have, uint64(len(b)) > f.Bytes-off:
		return gearsfs.ErrInvalid.Because("%d bytes at %d of %s, of which %d of %d are there", len(b), off, file, have, f.Bytes)
	case off+uint64(len(b)) <= have:
		return nil
	}
	if err := in.writeAt(f, have, b[have-off:]); err != nil {
		return fmt.Errorf("write to a snapshot: %w", err)
	}
	return nil
}

// writeAt writes to a file at the end of what is there, making it where that
// is nothing.
func (in *Incoming) writeAt(f SnapshotFile, off uint64, b []byte) error {
	fsys := in.data.fs
	path := fsys.PathJoin(in.dir, f.Name)
	var file vfs.File
	var err error
	if off == 0 {
		file, err = fsys.Create(path, vfs.WriteCategoryUnspecified)
	} else {
		file, err = fsys.OpenReadWrite(path, vfs.WriteCategoryUnspecified)
	}
	if err != nil {
		return noSpace(err)
	}
	if len(b) > 0 {
		_, err = file.WriteAt(b, int64(off))
	}
	in.unsynced += uint64(len(b))
	end := off + uint64(len(b))
	if err == nil && (end == f.Bytes || in.unsynced >= incomingSyncBytes) {
		err = file.Sync()
		in.unsynced = 0
	}
	if err = errors.Join(err, file.Close()); err != nil {
		return noSpace(err)
	}
	in.have[f.Name] = end
	if off == 0 {
		return syncDir(fsys, in.dir)
	}
	return nil
}

// Verify says whether the snapshot is whole, and makes it durable. It reads all
// of it. gearsfs.ErrDamaged, with a file's name: that one is not whole; where
// it is not what was sent either, it is deleted, so that Have is 0. Where no
// file is damaged and yet they are no state, all are deleted.
func (in *Incoming) Verify() error {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.verified = false
	err := in.verifyLocked()
	if err != nil {
		return fmt.Errorf("verify a snapshot: %w", err)
	}
	in.verified = true
	return nil
}

func (in *Incoming) verifyLocked() error {
	fsys := in.data.fs
	for _, f := range in.files {
		if have := in.have[f.Name]; have < f.Bytes {
			return gearsfs.ErrDamaged.Because("%s is not whole: %d of %d bytes", f.Name, have, f.Bytes)
		}
	}
	for _, f := range in.files {
		path := fsys.PathJoin(in.dir, f.Name)
		size, sum, err := sumFile(fsys, path)
		if err != nil && !isNotExist(err) {
			return err
		}
		if err == nil && size == f.Bytes && sum == f.Sum {
			if err := syncFileAt(fsys, path); err != nil {
				return err
			}
			continue
		}
		delete(in.have, f.Name)
		err = errors.Join(gearsfs.ErrDamaged.Because("%s is not what was sent", f.Name), fsys.RemoveAll(path))
		if f.Bytes == 0 { // nobody is going to write it
			err = errors.Join(err, in.writeAt(f, 0, nil))
		}
		return err
	}
	if err := syncDir(fsys, in.dir); err != nil {
		return err
	}
	cache := pebble.NewCache(readCacheBytes)
	defer cache.Unref()
	err := checkState(fsys, in.dir, cache, in.data.opts)
	if err == nil {
		return nil
	}
	if err = stateError(in.dir, err); errors.Is(err, gearsfs.ErrDamaged) {
		clear(in.have)
		err = errors.Join(err, fsys.RemoveAll(in.dir), fsys.MkdirAll(in.dir, 0o700))
	}
	return err
}

// syncFileAt makes what is in a file durable, whoever wrote it.
func syncFileAt(fsys FS, path string) error {
	f, err := fsys.OpenReadWrite(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// Reader shows the snapshot's rows, once it is verified; only one at a time. It
// must be closed before Install.
func (in *Incoming) Reader() (View, error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if !in.verified {
		return nil, gearsfs.ErrInvalid.Because("the snapshot is not verified")
	}
	return readTables(in.data.fs, in.dir, in.data.opts)
}

// Discard removes what was received.
func (in *Incoming) Discard() error {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.verified = false
	clear(in.have)
	if err := in.data.fs.RemoveAll(in.dir); err != nil {
		return fmt.Errorf("remove a snapshot: %w", err)
	}
	return nil
}
