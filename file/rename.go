package file

import (
	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/wire"
)

// The flags of renameat2(2).
const (
	renameNoReplace = 1
	renameExchange  = 2
)

func (m *Machine) applyRename(c *context, op *wire.Rename) *wire.Answer {
	from, err := m.find(c, op.Dir, op.Name)
	if err != nil {
		return m.refuse(err)
	}
	to, err := m.find(c, op.NewDir, op.NewName)
	if err != nil {
		return m.refuse(err)
	}
	if err = m.checkRename(c, from, to, op); err == nil && from.n != to.n {
		err = m.mayCross(from.n, from.dir, to.dir, op.Flags)
	}
	if err != nil {
		return m.refuse(err)
	}
	switch {
	case from.n == to.n: // two names of one file: POSIX wants nothing done
	case op.Flags&renameExchange != 0:
		m.exchange(c, from, to)
	default:
		if err := m.move(c, from, to, sessionIDs(op.Holders)); err != nil {
			return m.refuse(err)
		}
	}
	return &wire.Answer{Ino: uint64(from.n.ino)}
}

func (m *Machine) checkRename(c *context, from, to named, op *wire.Rename) error {
	switch op.Flags {
	case 0, renameNoReplace, renameExchange:
	default:
		return gearsfs.ErrInvalid
	}
	if from.n == nil || op.Flags == renameExchange && to.n == nil {
		return gearsfs.ErrNotFound
	}
	if to.n != nil && op.Flags == renameNoReplace {
		return gearsfs.ErrExists
	}
	if err := m.checkMove(c, from, to); err != nil {
		return err
	}
	if to.n == nil || to.n == from.n {
		return nil
	}
	if op.Flags == renameExchange {
		return m.checkMove(c, to, from)
	}
	if err := m.mayRemove(c, to.dir, to.n); err != nil {
		return err
	}
	switch fromDir, toDir := isDir(from.n.row.Mode), isDir(to.n.row.Mode); {
	case fromDir && !toDir:
		return gearsfs.ErrNotDir
	case !fromDir && toDir:
		return gearsfs.ErrIsDir
	case to.n.row.Entries > 0:
		return gearsfs.ErrNotEmpty
	}
	return checkHeld(to.n, op.OpenIno)
}

// checkMove checks whether from's inode may get to's name.
func (m *Machine) checkMove(c *context, from, to named) error {
	if err := m.mayRemove(c, from.dir, from.n); err != nil {
		return err
	}
	if err := m.access(c, to.dir, mayWrite|mayExec); err != nil {
		return err
	}
	if !isDir(from.n.row.Mode) {
		return nil
	}
	if inside, err := m.isInside(to.dir, from.n); err != nil || inside {
		if inside {
			return gearsfs.ErrInvalid.Because("a directory can't be moved into itself")
		}
		return err
	}
	if from.dir == to.dir {
		return nil
	}
	if to.dir.row.Nlink >= linksMax && (to.n == nil || !isDir(to.n.row.Mode)) {
		return gearsfs.ErrLinks
	}
	return m.access(c, from.n, mayWrite) // its ".." changes
}

// isInside says whether dir is top or somewhere below it.
func (m *Machine) isInside(dir, top *node) (bool, error) {
	for dir != top {
		if dir.ino == gearsfs.RootIno {
			return false, nil
		}
		up, err := m.node(gearsfs.Ino(dir.row.Parent))
		if err != nil {
			return false, err
		}
		if up == nil {
			return false, gearsfs.ErrDamaged.Because("the parent of inode %d does not exist", dir.ino)
		}
		dir = up
	}
	return true, nil
}

// move gives from's inode to's name, taking it from what has it.
func (m *Machine) move(c *context, from, to named, holders []gearsfs.SessionID) error {
	m.detach(c, from)
	if to.n != nil {
		m.detach(c, to)
		if err := m.unlinked(c, to.n, holders); err != nil {
			return err
		}
	}
	if !isDir(from.n.row.Mode) {
		from.n.row.Nlink-- // attach counts the new name
	}
	m.attach(c, to.dir, to.name, from.n)
	m.cross(from.n, from.dir, to.dir)
	return nil
}

// exchange swaps what two names lead to.
func (m *Machine) exchange(c *context, a, b named) {
	for _, at := range []struct{ to, old named }{{a, b}, {b, a}} {
		dir, n := at.to.dir, at.old.n
		m.setDirent(c, dir, at.to.name, n)
		if isDir(n.row.Mode) {
			n.row.Parent = uint64(dir.ino)
			dir.row.Nlink++
			at.old.dir.row.Nlink--
		}
		n.row.Ctime = c.now
		dir.row.Mtime, dir.row.Ctime = c.now, c.now
		m.dirtyNode(n)
		m.dirtyNode(dir)
		m.change(c, n.ino, false)
		m.change(c, dir.ino, false)
	}
}
