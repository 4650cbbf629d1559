package persist

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"sync"
	"syscall"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/gearsfs/gearsfs"
	"golang.org/x/sys/unix"
)

// Data is an open data directory. Only one process has it open, once.
type Data struct {
	Log   *Log
	State *State

	fs   FS
	dir  string
	opts Options
	lock io.Closer
	base base // changed by Install only

	before  beforeFlush
	version int // of the directory, as FORMAT says

	mu sync.Mutex // held while the identity is replaced
	id Identity

	once   sync.Once
	closed error
}

// The names in a data directory; the package comment says what each is.
const (
	lockName      = "LOCK"
	formatName    = "FORMAT"
	identityName  = "identity"
	baseName      = "base"
	logName       = "log"
	stateName     = "state"
	snapshotsName = "snapshots"
	incomingName  = "incoming"
	blocksName    = "blocks"
	creatingName  = "gearsfs.creating"
)

// Open opens the data directory dir. With Options.Create a directory that is
// missing or empty is made first; a crash meanwhile leaves what the next such
// Open begins again. What was in the log is on disk when Open returns.
//
// Errors, all of which have changed nothing: gearsfs.ErrNotFound, there is no
// data and Create is not set; gearsfs.ErrForeign, the directory holds something
// else; gearsfs.ErrFormat, data of a version that is not known; gearsfs.ErrInUse, open already,
// here or in another process; gearsfs.ErrDamaged, with the file's name.
func Open(dir string, opts Options) (*Data, error) {
	opts = opts.withDefaults()
	if err := checkNodeName(opts.Name); err != nil {
		return nil, err
	}
	d := &Data{fs: opts.FS, dir: dir}
	opts.before = &d.before
	d.opts = opts
	if vfs.Root(opts.FS) == vfs.Default {
		abs, err := filepath.Abs(dir)
		if err != nil {
			return nil, fmt.Errorf("open data: %w", err)
		}
		d.dir = abs
	}
	if err := d.open(opts); err != nil {
		return nil, fmt.Errorf("open data in %s: %w", dir, err)
	}
	return d, nil
}

func (d *Data) open(opts Options) (err error) {
	found, err := d.look()
	if err != nil {
		return err
	}
	if found != foundData && !opts.Create {
		return gearsfs.ErrNotFound.Because("there is no GearsFS data")
	}
	if found == foundNothing {
		if err := d.makeDir(); err != nil {
			return err
		}
	}
	if d.lock, err = lockFile(d.fs, d.path(lockName)); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.lock.Close())
		}
	}()
	// Who had the lock before may have changed what is here.
	if found, err = d.look(); err != nil {
		return err
	}
	if found != foundData {
		if err := d.create(opts); err != nil {
			return fmt.Errorf("create: %w", err)
		}
	}
	return d.load(opts)
}

func (d *Data) path(name string) string { return d.fs.PathJoin(d.dir, name) }

// found is what a directory looks like.
type found int

const (
	foundNothing  found = iota // no directory
	foundEmpty                 // nothing in it, or only a lock
	foundCreating              // a creation that was cut off
	foundData
)

// look tells what there is in the directory, without changing it.
func (d *Data) look() (found, error) {
	names, err := d.fs.List(d.dir)
	if isNotExist(err) {
		return foundNothing, nil
	}
	if err != nil {
		return 0, err
	}
	what, foreign := foundEmpty, ""
	for _, name := range names {
		switch name {
		case formatName:
			return foundData, d.checkFormat()
		case creatingName:
			what = foundCreating
		case lockName, "lost+found": // the latter in the root of a file system
		default:
			foreign = name
		}
	}
	if what == foundEmpty && foreign != "" {
		return 0, gearsfs.ErrForeign.Because("not GearsFS data: it holds %q and no %s", foreign, formatName)
	}
	return what, nil
}

// checkFormat reads FORMAT.
func (d *Data) checkFormat() error {
	path := d.path(formatName)
	b, err := readText(d.fs, path)
	if err != nil {
		return err
	}
	lines, ok, err := parseText(formatTitle, b)
	if !ok {
		return gearsfs.ErrForeign.Because("not GearsFS data: %s is not a file of GearsFS", path)
	}
	if err != nil {
		return gearsfs.ErrDamaged.Because("%s: %v", path, err)
	}
	if len(lines) == 0 || lines[0].name != "version" {
		return gearsfs.ErrDamaged.Because("%s names no version", path)
	}
	for version := formatOldest; version <= FormatVersion; version++ {
		if lines[0].value == fmt.Sprint(version) {
			d.version = version
			return nil
		}
	}
	return gearsfs.ErrFormat.Because("%s is of format version %s, this program's is %d", d.dir, lines[0].value, FormatVersion)
}

// writeFormat says that the directory is of this program's version.
func (d *Data) writeFormat() error {
	d.version = FormatVersion
	version := textLine{"version", fmt.Sprint(FormatVersion)}
	return writeFile(d.fs, d.dir, formatName, formatText(formatTitle, version))
}

// makeDir makes the directory, and those that it is in.
func (d *Data) makeDir() error {
	var made []string // the parents of what is missing
	for dir := d.dir; ; dir = d.fs.PathDir(dir) {
		there, err := exists(d.fs, dir)
		if err != nil {
			return err
		}
		if there || dir == d.fs.PathDir(dir) {
			break
		}
		made = append(made, d.fs.PathDir(dir))
	}
	if err := d.fs.MkdirAll(d.dir, 0o700); err != nil {
		return noSpace(err)
	}
	for _, dir := range made {
		if err := syncDir(d.fs, dir); err != nil {
			return err
		}
	}
	return nil
}

// create fills an empty directory. Until FORMAT is there, all but the lock
// belongs to a creation that did not end, and is made again.
func (d *Data) create(opts Options) error {
	f, err := d.fs.Create(d.path(creatingName), vfs.WriteCategoryUnspecified)
	if err != nil {
		return noSpace(err)
	}
	if err := errors.Join(f.Close(), syncDir(d.fs, d.dir)); err != nil {
		return err
	}
	for _, name := range []string{logName, stateName, identityName, identityName + tempSuffix, formatName + tempSuffix} {
		if err := d.fs.RemoveAll(d.path(name)); err != nil {
			return err
		}
	}
	for _, name := range []string{logName, stateName} {
		if err := d.fs.MkdirAll(d.path(name), 0o700); err != nil {
			return noSpace(err)
		}
	}
	if err := syncDir(d.fs, d.dir); err != nil {
		return err
	}
	if err := createLog(d.fs, d.path(logName), opts); err != nil {
		return err
	}
	state, err := openState(d.fs, d.path(stateName), true, opts)
	if err != nil {
		return err
	}
	if err := state.close(); err != nil {
		return err
	}
	id := Identity{Name: opts.Name}
	if _, err := rand.Read(id.Node[:]); err != nil {
		return err
	}
	if err := writeFile(d.fs, d.dir, identityName, id.format()); err != nil {
		return err
	}
	return d.writeFormat()
}

// load opens what is in the directory. It begins to write when all was read.
func (d *Data) load(opts Options) error {
	path := d.path(identityName)
	b, err := readText(d.fs, path)
	if isNotExist(err) {
		return gearsfs.ErrDamaged.Because("%s is missing", path)
	}
	if err != nil {
		return err
	}
	if d.id, err = parseIdentity(b); err != nil {
		return gearsfs.ErrDamaged.Because("%s: %v", path, err)
	}
	if d.base, err = d.readBase(); err != nil {
		return err
	}
	log, recovery, err := readLog(d.fs, d.path(logName), opts)
	if err != nil {
		return err
	}
	state, err := openState(d.fs, d.path(d.base.state), false, opts)
	if err != nil {
		return errors.Join(err, recovery.abandon())
	}
	if d.version != FormatVersion { // before anything is written that an older program would misread
		err = d.writeFormat()
	}
	if err == nil {
		err = recovery.repair()
	}
	if err == nil {
		err = d.finishInstall(log)
	}
	if err == nil {
		err = d.tidy()
	}
	if err != nil {
		return errors.Join(err, state.close(), recovery.abandon())
	}
	d.Log, d.State = log, state
	return nil
}

// tidy removes what a crash left behind, and makes the names in the directory
// durable, in case the process that gave them could not.
func (d *Data) tidy() error {
	for _, name := range []string{creatingName, identityName + tempSuffix, formatName + tempSuffix, baseName + tempSuffix} {
		there, err := exists(d.fs, d.path(name))
		if err == nil && there {
			err = d.fs.Remove(d.path(name))
		}
		if err != nil {
			return err
		}
	}
	// Who fetched a snapshot from the process before knows that it is gone.
	if err := d.fs.RemoveAll(d.path(snapshotsName)); err != nil {
		return err
	}
	if err := d.tidyStates(); err != nil {
		return err
	}
	return syncDir(d.fs, d.dir)
}

// Identity is who this node is.
func (d *Data) Identity() Identity {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.id
}

// SetVolume writes down which volume is kept here. It is durable when SetVolume
// returns. gearsfs.ErrForeign: it is another volume already.
func (d *Data) SetVolume(volume ID) error {
	return d.setIdentity(func(id *Identity) { id.Volume = volume })
}

// SetMember writes down which volume is kept here and which member of its group
// this node is. It is durable when SetMember returns. gearsfs.ErrForeign: it is
// another volume or member already.
func (d *Data) SetMember(volume ID, member gearsfs.MemberID) error {
	if volume == (ID{}) || member == 0 {
		return gearsfs.ErrInvalid.Because("no volume or member is named")
	}
	return d.setIdentity(func(id *Identity) { id.Volume, id.Member = volume, member })
}

// SetName gives another name to a node that keeps no volume yet, as where the
// volume that it was to join would not have it by the first. It is durable when
// SetName returns. gearsfs.ErrForeign: there is a volume, whose nodes know this
// one by its name; gearsfs.ErrInvalid: that is no name.
func (d *Data) SetName(name string) error {
	if err := checkNodeName(name); err != nil {
		return err
	}
	return d.setIdentity(func(id *Identity) { id.Name = name })
}

// setIdentity fills in what the identity does not say yet.
func (d *Data) setIdentity(set func(*Identity)) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	was, id := d.id, d.id
	set(&id)
	switch {
	case id == was:
		return nil
	case was.Volume != (ID{}) && was.Volume != id.Volume:
		return gearsfs.ErrForeign.Because("%s holds volume %s, not %s", d.dir, was.Volume, id.Volume)
	case id.Name != was.Name && (was.Volume != (ID{}) || d.Log.Last() != 0):
		return gearsfs.ErrForeign.Because("the node with the data in %s is named %s for good", d.dir, was.Name)
	case was.Member != 0 && was.Member != id.Member:
		return gearsfs.ErrForeign.Because("%s is of member %x, not %x", d.dir, uint64(was.Member), uint64(id.Member))
	}
	if err := writeFile(d.fs, d.dir, identityName, id.format()); err != nil {
		return fmt.Errorf("write the identity: %w", err)
	}
	d.id = id
	return nil
}

// Free says how many bytes the disk that the directory is on has left, and how
// many in all. gearsfs.ErrUnsupported: the file system doesn't tell.
func (d *Data) Free() (bytesFree, bytesTotal uint64, err error) {
	usage, err := d.fs.GetDiskUsage(d.dir)
	if errors.Is(err, vfs.ErrUnsupported) {
		return 0, 0, gearsfs.ErrUnsupported.Because("the file system does not tell how full it is")
	}
	if err != nil {
		return 0, 0, fmt.Errorf("look how full the disk is: %w", err)
	}
	return usage.AvailBytes, usage.TotalBytes, nil
}

// Blocks is the directory for the block store, which this package leaves to
// whoever keeps one there.
func (d *Data) Blocks() string { return d.path(blocksName) }

// BeforeFlush has sync called before rows of the state are brought to the disk,
// and with each sync of the log, which returns when both have: it is to make
// durable what rows and entries refer to. An entry may so come to the disk before
// what it refers to, as it may without any sync. It may wait for the disk, and must
// not use state or log; due says whether it is going to, and must not wait. Its
// error is fatal, as a failed write of the state (see Options.Fatal) or a failed
// sync of the log is: what they refer to may be lost. Nil takes it back.
func (d *Data) BeforeFlush(sync func() error, due func() bool) { d.before.set(sync, due) }

// Close flushes the state, syncs the log, closes both and gives up the lock. It
// must not run beside anything else that uses them, but for Sync and Flush. It
// is idempotent.
func (d *Data) Close() error {
	d.once.Do(func() {
		d.closed = errors.Join(d.State.close(), d.Log.Close(), d.lock.Close())
	})
	return d.closed
}

// lockFile takes the lock that a data directory is used under. A lock of
// flock(2) goes with its process and also keeps out other uses by this one.
func lockFile(fsys FS, path string) (io.Closer, error) {
	f, err := fsys.OpenReadWrite(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		return nil, noSpace(err)
	}
	fd := f.Fd()
	if fd == vfs.InvalidFd { // not a file of the system's
		if err := f.Close(); err != nil {
			return nil, err
		}
		lock, err := fsys.Lock(path)
		if errors.Is(err, syscall.EAGAIN) {
			return nil, gearsfs.ErrInUse
		}
		return lock, err
	}
	for {
		err = unix.Flock(int(fd), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, syscall.EINTR) {
			break
		}
	}
	if errors.Is(err, syscall.EWOULDBLOCK) {
		err = gearsfs.ErrInUse
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}
