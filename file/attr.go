package file

import (
	"time"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/persist"
	"github.com/gearsfs/gearsfs/stream"
	"github.com/gearsfs/gearsfs/wire"
)

// A directory shows a fixed size, that of one block of other file systems.
const dirBytes = 4096

// dataStat is what attributes show of a file's data stream.
type dataStat struct {
	known   bool
	head    uint64
	tail    uint64
	bytes   uint64 // of its records: a sparse file has fewer than its size
	version uint64

	// What reading needs besides.
	cursor gearsfs.Place
	outs   uint64 // records in front of cursor that live

	extents uint64 // rows with extents
}

func statOf(s *stream.State, extents uint64) dataStat {
	return dataStat{
		extents: extents, known: true, head: uint64(s.Head.Pos), tail: uint64(s.Tail), bytes: s.Bytes, version: s.Version,
		cursor: s.Cursor, outs: s.Leased + s.Returned,
	}
}

// attr returns what stat shows of n.
func (m *Machine) attr(n *node) (*wire.Attr, error) {
	m.countBytes()
	if isFile(n.row.Mode) {
		s, err := m.openData(n)
		if err != nil {
			return nil, err
		}
		if s != nil {
			n.stat = statOf(s.queue.State(), s.extents)
		}
	}
	return attrOf(n.ino, &n.row, &n.stat), nil
}

// openData returns n's data stream where it is needed to know n.stat.
func (m *Machine) openData(n *node) (*openStream, error) {
	if n.streams != nil {
		if s, ok := n.streams.Get(gearsfs.DataKey); ok {
			return s, nil
		}
	}
	if n.stat.known {
		return nil, nil
	}
	s, err := m.stream(n, gearsfs.DataKey)
	if err == nil && s == nil {
		n.stat = dataStat{known: true}
	}
	return s, err
}

func attrOf(ino gearsfs.Ino, row *wire.InodeRow, data *dataStat) *wire.Attr {
	a := &wire.Attr{
		Ino: uint64(ino), Mode: row.Mode, Nlink: row.Nlink, Uid: row.Uid, Gid: row.Gid, Rdev: row.Rdev,
		Taken: row.Taken, Atime: row.Atime, Mtime: row.Mtime, Ctime: row.Ctime,
	}
	a.Size, a.Blocks = sizeOf(row, data)
	if isFile(row.Mode) {
		a.Head, a.Version = data.head, data.version
	}
	return a
}

// sizeOf returns st_size and st_blocks: all streams count in blocks, as they do
// for quotas.
func sizeOf(row *wire.InodeRow, data *dataStat) (size, blocks uint64) {
	switch row.Mode & modeType {
	case modeFile:
		return data.tail - data.head, (row.Bytes + 511) / 512
	case modeDir:
		return dirBytes, 0
	}
	return uint64(len(row.Target)), 0
}

// attributes is attrOf for readers.
func attributes(ino gearsfs.Ino, row *wire.InodeRow, data *dataStat) gearsfs.Attr {
	a := gearsfs.Attr{
		Ino: ino, Mode: row.Mode, Nlink: row.Nlink, UID: row.Uid, GID: row.Gid, Rdev: row.Rdev, Taken: row.Taken,
		Atime: timeOf(row.Atime), Mtime: timeOf(row.Mtime), Ctime: timeOf(row.Ctime),
	}
	a.Size, a.Blocks = sizeOf(row, data)
	if isFile(row.Mode) {
		a.Head, a.Version = gearsfs.Pos(data.head), data.version
	}
	return a
}

// timeOf is the time that a row or command gives in nanoseconds since the
// epoch; one before it has its sign in the top bit.
func timeOf(ns uint64) time.Time { return time.Unix(0, int64(ns)) }

func (m *Machine) applySetAttr(c *context, op *wire.SetAttr) *wire.Answer {
	n, err := m.reach(gearsfs.Ino(op.Ino))
	if err == nil && n == nil {
		err = gearsfs.ErrStale
	}
	if err == nil {
		err = m.checkSetAttr(c, n, op)
	}
	if err == nil && op.Size != nil {
		err = m.truncate(c, n, *op.Size, op.Base)
	}
	if err != nil {
		return m.refuse(err)
	}
	m.setAttr(c, n, op)
	m.change(c, n.ino, op.Size != nil)
	return m.answerAttr(n)
}

// checkSetAttr checks whether the caller may: the rules of chmod(2), chown(2),
// truncate(2) and utimensat(2).
func (m *Machine) checkSetAttr(c *context, n *node, op *wire.SetAttr) error {
	if op.Size != nil {
		switch {
		case isDir(n.row.Mode):
			return gearsfs.ErrIsDir
		case !isFile(n.row.Mode):
			return gearsfs.ErrInvalid
		}
		if err := m.access(c, n, mayWrite); err != nil {
			return err
		}
	}
	if op.Mode != nil && !c.owns(n) {
		return gearsfs.ErrPermission
	}
	if op.Uid != nil && !c.privileged() && (*op.Uid != n.row.Uid || !c.owns(n)) {
		return gearsfs.ErrPermission
	}
	if op.Gid != nil && (!c.owns(n) || *op.Gid != n.row.Gid && !c.belongs(*op.Gid)) {
		return gearsfs.ErrPermission
	}
	if op.Ctime != nil && !c.caller.Checked {
		return gearsfs.ErrPermission
	}
	if op.Atime == nil && op.Mtime == nil || c.owns(n) {
		return nil
	}
	if op.GetAtime() != 0 || op.GetMtime() != 0 || op.Atime == nil || op.Mtime == nil {
		return gearsfs.ErrPermission
	}
	return m.access(c, n, mayWrite)
}

// EpochTime stands in wire.SetAttr for the Unix epoch, since 0 stands for log time.
// (As nanoseconds it would be in the year 1677.)
const EpochTime = 1 << 63

// setAttr sets everything but the size.
func (m *Machine) setAttr(c *context, n *node, op *wire.SetAttr) {
	row := &n.row
	row.Ctime = c.now
	if op.Uid != nil || op.Gid != nil {
		row.Mode = withoutPrivileges(row.Mode)
	}
	if op.Uid != nil {
		row.Uid = *op.Uid
	}
	if op.Gid != nil {
		row.Gid = *op.Gid
	}
	if op.Mode != nil {
		row.Mode = row.Mode&modeType | *op.Mode&modePerm
		if n.acls.access != nil {
			m.setACL(n, aclAccess, n.acls.access.withMode(row.Mode))
		}
		if !c.belongs(row.Gid) {
			row.Mode &^= modeSetGID
		}
	}
	set := func(field *uint64, t *uint64) {
		if t == nil {
			return
		}
		switch *t {
		case 0:
			*field = c.now
		case EpochTime:
			*field = 0
		default:
			*field = *t
		}
	}
	set(&row.Atime, op.Atime)
	set(&row.Mtime, op.Mtime)
	set(&row.Ctime, op.Ctime)
	m.dirtyNode(n)
}

// The flags of setxattr(2).
const (
	xattrCreate  = 1
	xattrReplace = 2
)

// xattrsBytesMax is what the names of an inode's attributes may have together
// in a list, each with a NUL behind it: the kernel's XATTR_LIST_MAX.
const xattrsBytesMax = 64 << 10

func (m *Machine) applySetXattr(c *context, op *wire.SetXattr) *wire.Answer {
	n, err := m.reach(gearsfs.Ino(op.Ino))
	if err == nil && n == nil {
		err = gearsfs.ErrStale
	}
	if err == nil {
		err = m.setXattr(c, n, op)
	}
	if err != nil {
		return m.refuse(err)
	}
	n.row.Ctime = c.now
	m.dirtyNode(n)
	m.change(c, n.ino, false)
	return &wire.Answer{Ino: op.Ino}
}

func (m *Machine) setXattr(c *context, n *node, op *wire.SetXattr) error {
	if err := checkXattr(c.caller, n.guard(), op.Name, mayWrite); err != nil {
		return err
	}
	if op.Flags&^(xattrCreate|xattrReplace) != 0 || op.Flags == xattrCreate|xattrReplace {
		return gearsfs.ErrInvalid
	}
	if isACL(op.Name) {
		return m.changeACL(c, n, op.Name, op.Value, op.Remove)
	}
	key := persist.XattrKey(n.ino, op.Name)
	_, exists, err := m.get(key)
	switch {
	case err != nil:
		return err
	case !exists && (op.Remove || op.Flags == xattrReplace):
		return gearsfs.ErrNoAttr
	case exists && op.Flags == xattrCreate:
		return gearsfs.ErrExists
	case op.Remove:
		m.store.Delete(key)
		n.row.Xattrs--
		return nil
	case len(op.Value) > gearsfs.XattrBytesMax:
		return gearsfs.ErrTooBig
	}
	if !exists {
		if err := m.roomForXattr(n, op.Name); err != nil {
			return err
		}
		n.row.Xattrs++
	}
	m.store.Set(key, op.Value)
	return nil
}

// roomForXattr returns gearsfs.ErrNoSpace where one more name would make the
// list of names longer than can be shown.
func (m *Machine) roomForXattr(n *node, name string) error {
	if (n.row.Xattrs+1)*(gearsfs.XattrNameMax+1) <= xattrsBytesMax {
		return nil
	}
	names, err := xattrNames(m.store, n.ino)
	if err != nil {
		return err
	}
	bytes := len(name) + 1
	for _, other := range names {
		bytes += len(other) + 1
	}
	if bytes > xattrsBytesMax {
		return gearsfs.ErrNoSpace.Because("too many extended attributes")
	}
	return nil
}

func xattrNames(r Reader, ino gearsfs.Ino) ([]string, error) {
	var names []string
	lo, hi := persist.FileRange(persist.TableXattr, ino)
	err := scan(r, lo, hi, func(key, _ []byte) error {
		_, name, err := persist.ParseXattrKey(key)
		names = append(names, name)
		return err
	})
	return names, err
}
