package file

import (
	"encoding/binary"
	"slices"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/persist"
)

// POSIX access control lists are extended attributes, in the form in which Linux
// reads and writes them (acl(5), and linux/posix_acl_xattr.h):
//
//	version(4) = 2 | tag(2) perm(2) id(4) | tag(2) perm(2) id(4) | ...    all little-endian
//
// A list for access and the permission bits of its inode's mode say the same in
// three entries: the owner's, the mask's (without one, the group's) and the
// others'. Whatever changes the one changes the other; a list that says no more
// than the mode is not kept. A directory's default list becomes that of what is
// made in it, and of directories the default list, too.
const (
	aclAccess  = "system.posix_acl_access"
	aclDefault = "system.posix_acl_default"

	aclVersion    = 2
	aclEntryBytes = 8
	aclNobody     = 0xffffffff // the id of entries that name nobody

	aclOwner  = 0x01
	aclUser   = 0x02
	aclGroup  = 0x04 // the inode's
	aclGroups = 0x08 // one that is named
	aclMask   = 0x10
	aclOther  = 0x20
)

func isACL(name string) bool { return name == aclAccess || name == aclDefault }

type aclEntry struct {
	tag, perm uint16
	id        uint32
}

type acl []aclEntry

// parseACL reads a list: gearsfs.ErrInvalid for one that is none.
func parseACL(value []byte) (acl, error) {
	bad := gearsfs.ErrInvalid.Because("not an access control list")
	if len(value) < 4 || (len(value)-4)%aclEntryBytes != 0 || binary.LittleEndian.Uint32(value) != aclVersion {
		return nil, bad
	}
	var a acl
	counts := map[uint16]int{}
	last := uint16(0)
	for rest := value[4:]; len(rest) > 0; rest = rest[aclEntryBytes:] {
		e := aclEntry{binary.LittleEndian.Uint16(rest), binary.LittleEndian.Uint16(rest[2:]), binary.LittleEndian.Uint32(rest[4:])}
		switch e.tag {
		case aclOwner, aclGroup, aclMask, aclOther:
			e.id = aclNobody
		case aclUser, aclGroups:
		default:
			return nil, bad
		}
		if e.perm > 7 || e.tag < last {
			return nil, bad
		}
		last = e.tag
		counts[e.tag]++
		a = append(a, e)
	}
	named := counts[aclUser]+counts[aclGroups] > 0
	if counts[aclOwner] != 1 || counts[aclGroup] != 1 || counts[aclOther] != 1 || counts[aclMask] > 1 || named && counts[aclMask] == 0 {
		return nil, bad
	}
	return a, nil
}

func (a acl) bytes() []byte {
	value := binary.LittleEndian.AppendUint32(make([]byte, 0, 4+aclEntryBytes*len(a)), aclVersion)
	for _, e := range a {
		value = binary.LittleEndian.AppendUint16(value, e.tag)
		value = binary.LittleEndian.AppendUint16(value, e.perm)
		value = binary.LittleEndian.AppendUint32(value, e.id)
	}
	return value
}

// find returns the entry that stands for one of the mode's three, by its tag.
func (a acl) find(tag uint16) *aclEntry {
	if tag == aclGroup && a.has(aclMask) {
		tag = aclMask
	}
	return &a[slices.IndexFunc(a, func(e aclEntry) bool { return e.tag == tag })]
}

func (a acl) has(tag uint16) bool {
	return slices.ContainsFunc(a, func(e aclEntry) bool { return e.tag == tag })
}

// mode is what a list says of a mode's permission bits.
func (a acl) mode() uint32 {
	return uint32(a.find(aclOwner).perm)<<6 | uint32(a.find(aclGroup).perm)<<3 | uint32(a.find(aclOther).perm)
}

// withMode is a list that says of the permission bits what a mode does.
func (a acl) withMode(mode uint32) acl {
	a = slices.Clone(a)
	a.find(aclOwner).perm = uint16(mode >> 6 & 7)
	a.find(aclGroup).perm = uint16(mode >> 3 & 7)
	a.find(aclOther).perm = uint16(mode & 7)
	return a
}

// plain says that the list says no more than a mode.
func (a acl) plain() bool { return len(a) == 3 }

// permits says whether a list lets a caller do what want says, who is neither
// privileged nor the owner: the access check algorithm of acl(5).
func (a acl) permits(caller gearsfs.Caller, gid uint32, want uint32) bool {
	mask := uint16(7)
	if a.has(aclMask) {
		mask = a.find(aclMask).perm
	}
	belongs := false
	for _, e := range a {
		switch {
		case e.tag == aclUser && e.id == caller.UID:
			return uint32(e.perm&mask)&want == want
		case e.tag == aclGroup && slices.Contains(caller.GIDs, gid), e.tag == aclGroups && slices.Contains(caller.GIDs, e.id):
			if uint32(e.perm&mask)&want == want {
				return true
			}
			belongs = true
		case e.tag == aclOther && !belongs:
			return uint32(e.perm)&want == want
		}
	}
	return false
}

// acls are those of an inode, nil where it has none.
type acls struct{ access, inherited acl }

// loadACLs reads an inode's lists.
func (n *node) loadACLs(r Reader) error {
	if n.row.Xattrs == 0 {
		return nil
	}
	for name, to := range map[string]*acl{aclAccess: &n.acls.access, aclDefault: &n.acls.inherited} {
		value, ok, err := r.Get(persist.XattrKey(n.ino, name), nil)
		if err == nil && ok {
			if *to, err = parseACL(value); err != nil {
				err = damaged("access control list", err)
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// setACL sets one of an inode's lists, which it may have, or with nil takes it away.
func (m *Machine) setACL(n *node, name string, a acl) {
	to := &n.acls.inherited
	if name == aclAccess {
		to = &n.acls.access
		if a != nil {
			n.row.Mode = n.row.Mode&^0o777 | a.mode()
		}
		if a.plain() {
			a = nil
		}
	}
	had := *to != nil
	*to = a
	m.dirtyNode(n)
	switch key := persist.XattrKey(n.ino, name); {
	case a != nil:
		m.store.Set(key, a.bytes())
		if !had {
			n.row.Xattrs++
		}
	case had:
		m.store.Delete(key)
		n.row.Xattrs--
	}
}

// changeACL is setXattr for the name of a list.
func (m *Machine) changeACL(c *context, n *node, name string, value []byte, remove bool) error {
	var a acl
	if !remove && len(value) > 0 {
		var err error
		if a, err = parseACL(value); err != nil {
			return err
		}
	}
	had := n.acls.access
	if name == aclDefault {
		had = n.acls.inherited
	}
	switch {
	case a != nil && name == aclDefault && !isDir(n.row.Mode):
		return gearsfs.ErrAccess
	case a == nil && had == nil:
		return nil // as on other file systems
	case a != nil && had == nil && !a.plain():
		if err := m.roomForXattr(n, name); err != nil {
			return err
		}
	}
	m.setACL(n, name, a)
	if name == aclAccess && !c.belongs(n.row.Gid) {
		n.row.Mode &^= modeSetGID
	}
	return nil
}

// inherit gives a new inode the lists that its directory says, or takes what the
// umask says off its mode.
func (m *Machine) inherit(dir, n *node, umask uint32) {
	if n.row.Mode&modeType == modeLink {
		return
	}
	if dir.acls.inherited == nil {
		n.row.Mode &^= umask & 0o777
		return
	}
	a := dir.acls.inherited
	m.setACL(n, aclAccess, a.withMode(a.mode()&n.row.Mode))
	if isDir(n.row.Mode) {
		m.setACL(n, aclDefault, a)
	}
}
