package file

import (
	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/persist"
	"github.com/gearsfs/gearsfs/wire"
)

// directory returns a directory that names can be looked up in. Errors:
// gearsfs.ErrNotFound (also for one that was removed and is only open),
// ErrNotDir, ErrAccess.
func (m *Machine) directory(c *context, ino uint64) (*node, error) {
	n, err := m.node(gearsfs.Ino(ino))
	switch {
	case err != nil:
		return nil, err
	case n == nil || n.row.Nlink == 0:
		return nil, gearsfs.ErrNotFound
	case !isDir(n.row.Mode):
		return nil, gearsfs.ErrNotDir
	}
	return n, m.access(c, n, mayExec)
}

// lookup returns what name in dir leads to; ino 0 is nothing.
func (m *Machine) lookup(dir *node, name string) (dentry, error) {
	key := dentryKey{dir.ino, name}
	if d, ok := m.dentries.get(key); ok || m.dentries.all(dir.ino, dir.row.Entries) {
		return d, nil
	}
	m.scratch.key = persist.AppendDirentKey(m.scratch.key[:0], dir.ino, name)
	value, ok, err := m.get(m.scratch.key)
	if err != nil {
		return dentry{}, err
	}
	var d dentry
	if ok {
		if d, err = parseDirent(value); err != nil {
			return dentry{}, err
		}
	}
	m.dentries.put(key, d)
	return d, nil
}

func parseDirent(value []byte) (dentry, error) {
	var row wire.DirentRow
	if err := row.UnmarshalVT(value); err != nil {
		return dentry{}, damaged("dirent", err)
	}
	return dentry{ino: gearsfs.Ino(row.Ino), mode: row.Type}, nil
}

// named is a name in a directory and what it leads to; n nil is nothing.
type named struct {
	dir  *node
	name string
	n    *node
}

// find looks a name up for a command. A name that leads nowhere is no error.
func (m *Machine) find(c *context, dirIno uint64, name string) (named, error) {
	dir, err := m.directory(c, dirIno)
	if err != nil {
		return named{}, err
	}
	if err := gearsfs.CheckName(name); err != nil {
		return named{}, err
	}
	d, err := m.lookup(dir, name)
	if err != nil || d.ino == 0 {
		return named{dir: dir, name: name}, err
	}
	n, err := m.node(d.ino)
	if err == nil && n == nil {
		err = gearsfs.ErrDamaged.Because("name %q in inode %d leads to inode %d, which does not exist", name, dir.ino, d.ino)
	}
	return named{dir: dir, name: name, n: n}, err
}

// findTarget returns the inode that a command is about: nil where the name
// leads nowhere in an existing directory. Errors: gearsfs.ErrStale (no such
// inode), ErrNotFound (no such directory), ErrNotDir, ErrAccess (directory may
// not be searched), ErrNameTooLong, ErrInvalid.
func (m *Machine) findTarget(c *context, t *wire.Target) (*node, error) {
	if t.GetIno() == 0 {
		at, err := m.find(c, t.GetDir(), t.GetName())
		return at.n, err
	}
	n, err := m.reach(gearsfs.Ino(t.Ino))
	if err == nil && n == nil {
		err = gearsfs.ErrStale
	}
	return n, err
}

// mayMakeFile checks whether makeFile will succeed, where findTarget returned
// nil: a command calls it among its checks, before it changes anything.
func (m *Machine) mayMakeFile(c *context, t *wire.Target) error {
	dir, err := m.directory(c, t.GetDir())
	if err != nil {
		return err
	}
	if err := m.access(c, dir, mayWrite|mayExec); err != nil {
		return err
	}
	return m.room(dir.row.Quota, 0, 1)
}

// makeFile makes the regular file t.Dir/t.Name, which must not exist and for
// which mayMakeFile must have returned nil.
func (m *Machine) makeFile(c *context, t *wire.Target, mode uint32) (*node, error) {
	dir, err := m.directory(c, t.GetDir())
	if err != nil {
		return nil, err
	}
	row := wire.InodeRow{Mode: modeFile | mode&modePerm, Uid: c.caller.UID, Gid: c.gid()}
	return m.make(c, dir, t.Name, &row, 0), nil
}

func (m *Machine) applyMake(c *context, op *wire.Make) *wire.Answer {
	at, err := m.find(c, op.Dir, op.Name)
	if err != nil {
		return m.refuse(err)
	}
	if at.n != nil {
		if op.Open && isFile(at.n.row.Mode) {
			return m.answerAttr(at.n)
		}
		if op.Open && isDir(at.n.row.Mode) {
			return m.refuse(gearsfs.ErrIsDir)
		}
		return m.refuse(gearsfs.ErrExists)
	}
	row, err := m.checkMake(c, at.dir, op)
	if err != nil {
		return m.refuse(err)
	}
	return m.answerAttr(m.make(c, at.dir, op.Name, row, op.Umask))
}

// checkMake checks whether the caller may make what op says in dir, and returns
// the row that it will have, without times, links and inherited group.
func (m *Machine) checkMake(c *context, dir *node, op *wire.Make) (*wire.InodeRow, error) {
	if err := m.access(c, dir, mayWrite|mayExec); err != nil {
		return nil, err
	}
	row := &wire.InodeRow{Mode: op.Mode & (modeType | modePerm), Uid: c.caller.UID, Gid: c.gid()}
	switch row.Mode & modeType {
	case 0:
		row.Mode |= modeFile
	case modeFile, modeFifo, modeSocket:
	case modeDir:
		if dir.row.Nlink >= linksMax {
			return nil, gearsfs.ErrLinks
		}
	case modeChar, modeBlock:
		if !c.privileged() {
			return nil, gearsfs.ErrPermission
		}
		row.Rdev = op.Rdev
	case modeLink:
		switch {
		case op.Target == "":
			return nil, gearsfs.ErrNotFound
		case len(op.Target) > gearsfs.SymlinkBytesMax:
			return nil, gearsfs.ErrNameTooLong
		}
		row.Mode, row.Target = modeLink|0o777, op.Target
	default:
		return nil, gearsfs.ErrInvalid
	}
	foreign := op.Uid != nil && *op.Uid != row.Uid || op.Gid != nil && !c.belongs(*op.Gid)
	if foreign && !c.privileged() {
		return nil, gearsfs.ErrPermission
	}
	if op.Uid != nil {
		row.Uid = *op.Uid
	}
	if op.Gid != nil {
		row.Gid = *op.Gid
	}
	return row, m.room(dir.row.Quota, 0, 1)
}

// make makes an inode and names it.
func (m *Machine) make(c *context, dir *node, name string, row *wire.InodeRow, umask uint32) *node {
	n := m.newNode(c, dir, row)
	m.inherit(dir, n, umask)
	m.attach(c, dir, name, n)
	return n
}

// newNode makes an inode without a name. A directory that is made in one with
// the set-group-id bit gets its group and the bit, anything else the group.
func (m *Machine) newNode(c *context, dir *node, row *wire.InodeRow) *node {
	n := &node{ino: gearsfs.Ino(m.volume.NextIno)}
	m.volume.NextIno++
	m.volume.Inodes++
	n.row = wire.InodeRow{
		Mode: row.Mode, Uid: row.Uid, Gid: row.Gid, Rdev: row.Rdev, Target: row.Target,
		Atime: c.now, Mtime: c.now, Ctime: c.now, Quota: dir.row.Quota,
	}
	m.charge(n.row.Quota, 0, 1)
	if isDir(row.Mode) {
		n.row.Nlink = 2 // its "." and the name that it will get
	}
	if dir.row.Mode&modeSetGID != 0 {
		n.row.Gid = dir.row.Gid
		if isDir(row.Mode) {
			n.row.Mode |= modeSetGID
		}
	}
	if isFile(row.Mode) && row.Mode&(modeSetGID|modeGroupExec) == modeSetGID|modeGroupExec && !c.belongs(n.row.Gid) {
		n.row.Mode &^= modeSetGID
	}
	n.stat.known = true
	m.nodes.put(n.ino, n)
	m.dirtyNode(n)
	return n
}

func (m *Machine) applyLink(c *context, op *wire.Link) *wire.Answer {
	n, err := m.reach(gearsfs.Ino(op.Ino))
	if err == nil && n == nil {
		err = gearsfs.ErrNotFound
	}
	if err != nil {
		return m.refuse(err)
	}
	at, err := m.find(c, op.Dir, op.Name)
	switch {
	case err != nil:
	case at.n != nil:
		err = gearsfs.ErrExists
	case isDir(n.row.Mode):
		err = gearsfs.ErrPermission
	case n.row.Nlink >= linksMax:
		err = gearsfs.ErrLinks
	default:
		err = m.access(c, at.dir, mayWrite|mayExec)
	}
	if err == nil {
		err = m.mayLink(n, at.dir)
	}
	if err != nil {
		return m.refuse(err)
	}
	m.recharge(n, at.dir.row.Quota)
	if n.row.Orphan { // as linkat(2) does for a file made with O_TMPFILE
		m.clearOrphan(n)
	}
	m.attach(c, at.dir, op.Name, n)
	return m.answerAttr(n)
}

func (m *Machine) applyUnlink(c *context, op *wire.Unlink) *wire.Answer {
	at, err := m.find(c, op.Dir, op.Name)
	if err == nil {
		err = m.checkUnlink(c, at, op)
	}
	if err != nil {
		return m.refuse(err)
	}
	m.detach(c, at)
	if err := m.unlinked(c, at.n, sessionIDs(op.Holders)); err != nil {
		return m.refuse(err)
	}
	return &wire.Answer{Ino: uint64(at.n.ino)}
}

func (m *Machine) checkUnlink(c *context, at named, op *wire.Unlink) error {
	if at.n == nil {
		return gearsfs.ErrNotFound
	}
	if err := m.mayRemove(c, at.dir, at.n); err != nil {
		return err
	}
	switch {
	case op.IsDir && !isDir(at.n.row.Mode):
		return gearsfs.ErrNotDir
	case !op.IsDir && isDir(at.n.row.Mode):
		return gearsfs.ErrIsDir
	case at.n.row.Entries > 0:
		return gearsfs.ErrNotEmpty
	}
	return checkHeld(at.n, op.OpenIno)
}

// checkHeld refuses a command that would remove a name of another inode than
// that whose holders it lists: they could lose what they have open. The caller
// looks the name up again.
func checkHeld(n *node, openIno uint64) error {
	if gearsfs.Ino(openIno) != n.ino {
		return gearsfs.ErrStale.Because("the name leads elsewhere now")
	}
	return nil
}

// attach gives n the name in dir, which must be free.
func (m *Machine) attach(c *context, dir *node, name string, n *node) {
	m.setDirent(c, dir, name, n)
	dir.row.Entries++
	dir.row.Mtime, dir.row.Ctime = c.now, c.now
	m.dirtyNode(dir)
	if isDir(n.row.Mode) {
		n.row.Parent = uint64(dir.ino)
		dir.row.Nlink++
	} else {
		n.row.Nlink++
	}
	n.row.Ctime = c.now
	m.dirtyNode(n)
	m.change(c, n.ino, false)
	m.change(c, dir.ino, false)
}

// setDirent makes a name lead to n, whatever it led to before.
func (m *Machine) setDirent(c *context, dir *node, name string, n *node) {
	d := dentry{ino: n.ino, mode: n.row.Mode & modeType}
	m.scratch.key = persist.AppendDirentKey(m.scratch.key[:0], dir.ino, name)
	m.set(m.scratch.key, &wire.DirentRow{Ino: uint64(d.ino), Type: d.mode})
	m.dentries.put(dentryKey{dir.ino, name}, d)
	m.changeName(c, dir.ino, name)
}

// detach takes a name away; unlinked decides what becomes of the inode.
func (m *Machine) detach(c *context, at named) {
	m.scratch.key = persist.AppendDirentKey(m.scratch.key[:0], at.dir.ino, at.name)
	m.store.Delete(m.scratch.key)
	m.dentries.put(dentryKey{at.dir.ino, at.name}, dentry{})
	m.changeName(c, at.dir.ino, at.name)
	at.dir.row.Entries--
	at.dir.row.Mtime, at.dir.row.Ctime = c.now, c.now
	if isDir(at.n.row.Mode) {
		at.dir.row.Nlink--
	}
	m.dirtyNode(at.dir)
	m.change(c, at.dir.ino, false)
}

// unlinked counts one name less. The last one's inode goes, unless sessions
// have it open.
func (m *Machine) unlinked(c *context, n *node, holders []gearsfs.SessionID) error {
	n.row.Ctime = c.now
	if isDir(n.row.Mode) {
		n.row.Nlink = 0
		m.dropQuota(n)
	} else {
		n.row.Nlink--
	}
	m.dirtyNode(n)
	m.change(c, n.ino, false)
	if n.row.Nlink > 0 {
		return nil
	}
	m.touch(n.ino, "").Gone = true
	if len(holders) > 0 {
		m.setOrphan(n, holders)
		return nil
	}
	return m.deleteNode(n)
}

// answerAttr is the answer of a command that yields n's attributes.
func (m *Machine) answerAttr(n *node) *wire.Answer {
	attr, err := m.attr(n)
	if err != nil {
		return m.refuse(err)
	}
	return &wire.Answer{Ino: uint64(n.ino), Attr: attr}
}
