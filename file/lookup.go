package file

import (
	"errors"
	"slices"
	"strings"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/persist"
	"github.com/gearsfs/gearsfs/wire"
)

// inode is what a reader sees of an inode.
type inode struct {
	attr   gearsfs.Attr
	data   dataStat
	target string
	parent gearsfs.Ino
	xattrs uint64
	quota  uint64
	access acl

	entries uint64 // names in a directory
}

func (n *inode) guard() guard { return guard{n.attr.Mode, n.attr.UID, n.attr.GID, n.access} }

func inodeOf(n *node) inode {
	return inode{
		attr: attributes(n.ino, &n.row, &n.stat), data: n.stat, target: n.row.Target, parent: gearsfs.Ino(n.row.Parent),
		xattrs: n.row.Xattrs, quota: n.row.Quota, access: n.acls.access, entries: n.row.Entries,
	}
}

// cachedInode returns an inode from the cache. The caller holds m.mu.
func (m *Machine) cachedInode(ino gearsfs.Ino) (inode, bool) {
	n, ok := m.nodes.get(ino)
	if !ok || n.row.Doomed || isFile(n.row.Mode) && !n.stat.known {
		return inode{}, false
	}
	return inodeOf(n), true
}

// reading is the state after one entry, for one reader. What the caches don't
// hold it reads from a View, and leaves there for the next.
type reading struct {
	m       *Machine
	view    View
	applied uint64
	buf     []byte

	// For the caches: an inode each, and names or their absence.
	learned      []*node
	learnedNames []learnedName
}

// learnedName is a name and where it was found to lead.
type learnedName struct {
	key dentryKey
	to  dentry
}

// read begins a reading. It must be closed.
func (m *Machine) read() *reading {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.readLocked()
}

func (m *Machine) readLocked() *reading {
	return &reading{m: m, view: m.store.View(), applied: m.volume.AppliedIndex}
}

// close gives the View back and puts what was read into the caches, where
// nothing was applied meanwhile and the lock is free: it never waits.
func (r *reading) close() {
	r.view.Close() // a reader's snapshot has nothing to lose
	if len(r.learned) == 0 && len(r.learnedNames) == 0 || !r.m.mu.TryLock() {
		return
	}
	defer r.m.mu.Unlock()
	if r.m.volume.AppliedIndex != r.applied {
		return
	}
	for _, n := range r.learned {
		if cached, ok := r.m.nodes.get(n.ino); ok {
			cached.stat = n.stat
		} else {
			r.m.nodes.put(n.ino, n)
		}
	}
	r.m.nodes.shrink(r.m.forgetNode)
	for i := range r.learnedNames {
		r.m.dentries.put(r.learnedNames[i].key, r.learnedNames[i].to)
	}
	r.m.dentries.shrink()
}

// cached returns an inode from the cache, where that is still of this
// reading's state.
func (r *reading) cached(ino gearsfs.Ino) (inode, bool) {
	r.m.mu.RLock()
	defer r.m.mu.RUnlock()
	if r.m.volume.AppliedIndex != r.applied {
		return inode{}, false
	}
	return r.m.cachedInode(ino)
}

// inode returns an inode; gearsfs.ErrStale where there is none.
func (r *reading) inode(ino gearsfs.Ino) (inode, error) {
	if n, ok := r.cached(ino); ok {
		return n, nil
	}
	n, err := r.loadInode(ino)
	if err != nil {
		return inode{}, err
	}
	r.learned = append(r.learned, n)
	return inodeOf(n), nil
}

func (r *reading) loadInode(ino gearsfs.Ino) (*node, error) {
	var key [64]byte
	value, ok, err := r.view.Get(persist.AppendInodeKey(key[:0], ino), r.buf[:0])
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, gearsfs.ErrStale
	}
	r.buf = value
	n := &node{ino: ino, stat: dataStat{known: true}}
	if err := n.row.UnmarshalVT(value); err != nil {
		return nil, damaged("inode", err)
	}
	if err := n.loadACLs(r.view); err != nil {
		return nil, err
	}
	if n.row.Doomed {
		return nil, gearsfs.ErrStale
	}
	if !isFile(n.row.Mode) || n.row.Streams == 0 {
		return n, nil
	}
	if err := n.countStreams(r.view); err != nil {
		return nil, err
	}
	value, ok, err = r.view.Get(persist.AppendStreamKey(key[:0], ino, gearsfs.DataKey), r.buf[:0])
	if err != nil || !ok {
		return n, err
	}
	r.buf = value
	var row wire.StreamRow
	if err := row.UnmarshalVT(value); err != nil {
		return nil, damaged("stream", err)
	}
	state := stateOf(&row)
	n.stat = statOf(&state, row.Extents)
	return n, nil
}

// mayUse returns nil for a directory that the caller may use as want says. Errors:
// gearsfs.ErrStale, ErrNotDir, ErrAccess.
func (r *reading) mayUse(dir gearsfs.Ino, caller gearsfs.Caller, want uint32) error {
	n, err := r.inode(dir)
	if err != nil {
		return err
	}
	return n.checkDirectory(caller, want)
}

func (n *inode) checkDirectory(caller gearsfs.Caller, want uint32) error {
	if !isDir(n.attr.Mode) {
		return gearsfs.ErrNotDir
	}
	if !n.guard().permits(caller, want) {
		return gearsfs.ErrAccess
	}
	return nil
}

// GetAttr returns an inode's attributes; gearsfs.ErrStale where there is none.
func (m *Machine) GetAttr(ino gearsfs.Ino) (gearsfs.Attr, error) {
	n, err := m.inode(ino)
	return n.attr, err
}

func (m *Machine) inode(ino gearsfs.Ino) (inode, error) {
	m.mu.RLock()
	n, ok := m.cachedInode(ino)
	if ok {
		m.mu.RUnlock()
		return n, nil
	}
	r := m.readLocked()
	m.mu.RUnlock()
	defer r.close()
	return r.inode(ino)
}

// Lookup returns what name in dir leads to. Errors: gearsfs.ErrNotFound,
// ErrNotDir, ErrAccess, ErrNameTooLong, ErrInvalid (no name), ErrStale (no
// such directory).
func (m *Machine) Lookup(dir gearsfs.Ino, name string, caller gearsfs.Caller) (gearsfs.Attr, error) {
	n, err := m.lookupInode(dir, name, caller)
	return n.attr, err
}

func (m *Machine) lookupInode(dir gearsfs.Ino, name string, caller gearsfs.Caller) (inode, error) {
	if err := gearsfs.CheckName(name); err != nil {
		return inode{}, err
	}
	m.mu.RLock()
	n, err, ok := m.lookupCached(dir, name, caller)
	if ok {
		m.mu.RUnlock()
		return n, err
	}
	r := m.readLocked()
	m.mu.RUnlock()
	defer r.close()
	return r.lookup(dir, name, caller)
}

// lookupCached looks a name up in the caches; ok is false where they don't
// know. The caller holds m.mu.
func (m *Machine) lookupCached(dirIno gearsfs.Ino, name string, caller gearsfs.Caller) (n inode, err error, ok bool) {
	dir, ok := m.cachedInode(dirIno)
	if !ok {
		return n, nil, false
	}
	if err := dir.checkDirectory(caller, mayExec); err != nil {
		return n, err, true
	}
	d, ok := m.dentries.get(dentryKey{dirIno, name})
	if !ok && !m.dentries.all(dirIno, dir.entries) {
		return n, nil, false
	}
	if d.ino == 0 {
		return n, gearsfs.ErrNotFound, true
	}
	n, ok = m.cachedInode(d.ino)
	return n, nil, ok
}

func (r *reading) lookup(dir gearsfs.Ino, name string, caller gearsfs.Caller) (inode, error) {
	if err := r.mayUse(dir, caller, mayExec); err != nil {
		return inode{}, err
	}
	var key [320]byte
	value, ok, err := r.view.Get(persist.AppendDirentKey(key[:0], dir, name), r.buf[:0])
	if err != nil {
		return inode{}, err
	}
	var d dentry
	if ok {
		r.buf = value
		if d, err = parseDirent(value); err != nil {
			return inode{}, err
		}
	}
	r.learnedNames = append(r.learnedNames, learnedName{dentryKey{dir, name}, d})
	if !ok {
		return inode{}, gearsfs.ErrNotFound
	}
	return r.named(dir, name, d.ino)
}

// named returns the inode that a name leads to.
func (r *reading) named(dir gearsfs.Ino, name string, ino gearsfs.Ino) (inode, error) {
	n, err := r.inode(ino)
	if errors.Is(err, gearsfs.ErrStale) {
		err = gearsfs.ErrDamaged.Because("name %q in inode %d leads to inode %d, which does not exist", name, dir, ino)
	}
	return n, err
}

// ReadDir returns up to count entries of a directory in the order of their
// names' bytes, beginning after the name `after`, and calls them complete with
// fewer. Errors as Lookup.
func (m *Machine) ReadDir(dir gearsfs.Ino, after string, count int, caller gearsfs.Caller) ([]gearsfs.Entry, error) {
	r := m.read()
	defer r.close()
	if err := r.mayUse(dir, caller, mayRead); err != nil {
		return nil, err
	}
	names, err := dirents(r.view, dir, after, count)
	if err != nil {
		return nil, err
	}
	entries := make([]gearsfs.Entry, len(names))
	for i := range names {
		name := names[i].key.name
		n, err := r.named(dir, name, names[i].to.ino)
		if err != nil {
			return nil, err
		}
		entries[i] = gearsfs.Entry{Name: name, Attr: n.attr}
	}
	// Who lists a directory mostly opens, changes or removes what it has found.
	r.learnedNames = names
	return entries, nil
}

// dirents returns up to count names of a directory and where they lead.
func dirents(r Reader, dir gearsfs.Ino, after string, count int) (names []learnedName, err error) {
	lo, hi := persist.FileRange(persist.TableDirent, dir)
	if after != "" {
		lo = append(persist.DirentKey(dir, after), 0) // right behind it
	}
	if count <= 0 {
		return nil, nil
	}
	err = scan(r, lo, hi, func(key, value []byte) error {
		_, name, err := persist.ParseDirentKey(key)
		if err != nil {
			return err
		}
		d, err := parseDirent(value)
		if err != nil {
			return err
		}
		names = append(names, learnedName{dentryKey{dir, name}, d})
		if len(names) == count {
			return errStop
		}
		return nil
	})
	return names, err
}

// Readlink returns where a symbolic link leads. Errors: gearsfs.ErrStale,
// ErrInvalid (not a link).
func (m *Machine) Readlink(ino gearsfs.Ino) (string, error) {
	n, err := m.inode(ino)
	if err == nil && n.attr.Mode&modeType != modeLink {
		err = gearsfs.ErrInvalid.Because("not a symbolic link")
	}
	return n.target, err
}

// Parent returns the directory that a directory is in, the root's is itself.
// Errors: gearsfs.ErrStale, ErrNotDir.
func (m *Machine) Parent(dir gearsfs.Ino) (gearsfs.Ino, error) {
	n, err := m.inode(dir)
	if err == nil && !isDir(n.attr.Mode) {
		err = gearsfs.ErrNotDir
	}
	return n.parent, err
}

// GetXattr returns the value of an extended attribute. Errors: gearsfs.ErrNoAttr,
// ErrStale, ErrAccess, and those of names as in setxattr(2).
func (m *Machine) GetXattr(ino gearsfs.Ino, name string, caller gearsfs.Caller) ([]byte, error) {
	n, err := m.inode(ino)
	if err == nil {
		err = checkXattr(caller, n.guard(), name, mayRead)
	}
	if err == nil && n.xattrs == 0 {
		err = gearsfs.ErrNoAttr
	}
	if err != nil {
		return nil, err
	}
	r := m.read()
	defer r.close()
	value, ok, err := r.view.Get(persist.XattrKey(ino, name), []byte{})
	if err == nil && !ok {
		err = gearsfs.ErrNoAttr
	}
	return value, err
}

// ListXattr returns the names of an inode's extended attributes that the
// caller may know, in the order of their bytes. Errors: gearsfs.ErrStale.
func (m *Machine) ListXattr(ino gearsfs.Ino, caller gearsfs.Caller) ([]string, error) {
	n, err := m.inode(ino)
	if err != nil || n.xattrs == 0 {
		return nil, err
	}
	r := m.read()
	defer r.close()
	names, err := xattrNames(r.view, ino)
	if caller.Checked || caller.UID == 0 {
		return names, err
	}
	return slices.DeleteFunc(names, func(name string) bool { return strings.HasPrefix(name, "trusted.") }), err
}
