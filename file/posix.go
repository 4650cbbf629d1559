package file

import (
	"slices"
	"strings"

	"github.com/gearsfs/gearsfs"
)

// The bits of a mode, as in inode(7), whatever system this runs on.
const (
	modeType   = 0o170000
	modeSocket = 0o140000
	modeLink   = 0o120000
	modeFile   = 0o100000
	modeBlock  = 0o060000
	modeDir    = 0o040000
	modeChar   = 0o020000
	modeFifo   = 0o010000

	modeSetUID    = 0o4000
	modeSetGID    = 0o2000
	modeSticky    = 0o1000
	modeGroupExec = 0o0010
	modePerm      = 0o7777
)

// What access asks for.
const (
	mayExec  = 1 // in a directory: search
	mayWrite = 2
	mayRead  = 4
)

// linksMax bounds an inode's names; programs keep link counts in an int.
const linksMax = 1<<31 - 1

// guard is what permissions depend on.
type guard struct {
	mode, uid, gid uint32
	access         acl
}

func (n *node) guard() guard { return guard{n.row.Mode, n.row.Uid, n.row.Gid, n.acls.access} }

// permits says whether a caller may do what want says, a sum of mayRead,
// mayWrite and mayExec: POSIX file access permissions, with uid 0 privileged.
// A caller whose kernel has checked may everything.
func (g guard) permits(caller gearsfs.Caller, want uint32) bool {
	if caller.Checked {
		return true
	}
	if caller.UID == 0 {
		return want&mayExec == 0 || isDir(g.mode) || g.mode&0o111 != 0
	}
	granted := g.mode
	switch {
	case caller.UID == g.uid:
		granted >>= 6
	case g.access != nil:
		return g.access.permits(caller, g.gid, want)
	case slices.Contains(caller.GIDs, g.gid):
		granted >>= 3
	}
	return granted&want == want
}

// access returns gearsfs.ErrAccess where the caller may not use n as want says.
func (m *Machine) access(c *context, n *node, want uint32) error {
	if !n.guard().permits(c.caller, want) {
		return gearsfs.ErrAccess
	}
	return nil
}

// privileged says whether the caller is above permissions, or its kernel has
// checked them.
func (c *context) privileged() bool { return c.caller.Checked || c.caller.UID == 0 }

// owns says whether the caller may do what only an owner may.
func (c *context) owns(n *node) bool { return c.privileged() || c.caller.UID == n.row.Uid }

// belongs says whether the caller is in a group, or above groups. A kernel
// that has checked knows the caller's groups, we don't.
func (c *context) belongs(gid uint32) bool {
	return c.privileged() || slices.Contains(c.caller.GIDs, gid)
}

// gid is the group of the files that the caller makes.
func (c *context) gid() uint32 {
	if len(c.caller.GIDs) == 0 {
		return gearsfs.Nobody.GIDs[0]
	}
	return c.caller.GIDs[0]
}

// mayRemove checks whether the caller may take n's name out of dir.
func (m *Machine) mayRemove(c *context, dir, n *node) error {
	if err := m.access(c, dir, mayWrite|mayExec); err != nil {
		return err
	}
	if dir.row.Mode&modeSticky != 0 && !c.owns(dir) && !c.owns(n) {
		return gearsfs.ErrPermission
	}
	return nil
}

// withoutPrivileges is a mode after someone unprivileged changed the bytes, or
// anyone the owner: set-user-id goes, and set-group-id where it is one and not
// a mark for mandatory locking.
func withoutPrivileges(mode uint32) uint32 {
	if mode&modeType == modeDir {
		return mode
	}
	mode &^= modeSetUID
	if mode&modeGroupExec != 0 {
		mode &^= modeSetGID
	}
	return mode
}

// wrote updates what a change of its bytes changes of an inode.
func (m *Machine) wrote(c *context, n *node) {
	if c.caller.UID != 0 {
		n.row.Mode = withoutPrivileges(n.row.Mode)
	}
	n.row.Mtime, n.row.Ctime = c.now, c.now
	m.dirtyNode(n)
}

func isDir(mode uint32) bool  { return mode&modeType == modeDir }
func isFile(mode uint32) bool { return mode&modeType == modeFile }

// checkXattr checks an attribute's name, and whether an inode may have and the caller
// use it so: the rules of xattr(7).
func checkXattr(caller gearsfs.Caller, g guard, name string, want uint32) error {
	space, rest, dotted := strings.Cut(name, ".")
	switch {
	case len(name) > gearsfs.XattrNameMax:
		return gearsfs.ErrRange.Because("an attribute's name has at most 255 bytes")
	case name == "" || strings.ContainsRune(name, 0):
		return gearsfs.ErrInvalid
	case !dotted || rest == "":
		return gearsfs.ErrUnsupported
	}
	privileged := caller.Checked || caller.UID == 0
	switch space {
	case "user":
		if !isDir(g.mode) && !isFile(g.mode) {
			if want == mayRead {
				return gearsfs.ErrNoAttr
			}
			return gearsfs.ErrPermission
		}
		if want == mayWrite && isDir(g.mode) && g.mode&modeSticky != 0 && !privileged && caller.UID != g.uid {
			return gearsfs.ErrPermission
		}
		if !g.permits(caller, want) {
			return gearsfs.ErrAccess
		}
		return nil
	case "trusted":
		if privileged {
			return nil
		}
		if want == mayRead {
			return gearsfs.ErrNoAttr
		}
		return gearsfs.ErrPermission
	case "system":
		switch {
		case !isACL(name) || g.mode&modeType == modeLink:
		case want == mayRead || privileged || caller.UID == g.uid:
			return nil
		default:
			return gearsfs.ErrPermission
		}
	case "security":
		if want == mayRead || privileged {
			return nil
		}
		return gearsfs.ErrPermission
	}
	return gearsfs.ErrUnsupported
}
