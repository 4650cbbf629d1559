package file

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/persist"
	"github.com/gearsfs/gearsfs/wire"
)

// The member table says who the nodes of the volume's group are. The group
// itself, and who has a vote, is the conf state, which is raft's. A member that
// was removed keeps its row, since its id is never used again.

// Bounds of what a member says of itself.
const (
	memberNameMax  = gearsfs.NameBytesMax
	memberAddrsMax = 4 << 10
)

// applySetMember notes a member's name and addresses. The first member, whom
// nobody added, gets its row in this way.
func (m *Machine) applySetMember(c *context, op *wire.SetMember) *wire.Answer {
	member := op.Member
	err := checkMember(member)
	if err == nil && !c.caller.Checked {
		err = gearsfs.ErrPermission.Because("only the nodes name the members")
	}
	var row *wire.MemberRow
	if err == nil {
		row, err = memberRow(m.store, gearsfs.MemberID(member.Id))
	}
	if err == nil && row == nil {
		row = &wire.MemberRow{Added: c.index}
	}
	switch {
	case err != nil:
		return m.refuse(err)
	case row.Removed:
		return m.refuse(gearsfs.ErrNotMember.Because("member %x was removed", member.Id))
	case len(row.NodeId) > 0 && len(member.NodeId) > 0 && string(row.NodeId) != string(member.NodeId):
		return m.refuse(gearsfs.ErrForeign.Because("member %x is a node with other data", member.Id))
	}
	other, err := m.memberNamed(member.Name)
	if err == nil && other != 0 && other != gearsfs.MemberID(member.Id) {
		err = gearsfs.ErrExists.Because("another member, %x, has the name %q", uint64(other), member.Name)
	}
	if err != nil {
		return m.refuse(err)
	}
	row.Name, row.Addrs = member.Name, member.Addrs
	if len(row.NodeId) == 0 {
		row.NodeId = member.NodeId
	}
	m.setMember(gearsfs.MemberID(member.Id), row)
	return &wire.Answer{}
}

func checkMember(member *wire.Member) error {
	switch {
	case member == nil || member.Id == 0:
		return gearsfs.ErrInvalid.Because("no member is named")
	case member.Name == "" || !utf8.ValidString(member.Name) || strings.ContainsFunc(member.Name, unicode.IsControl):
		return gearsfs.ErrInvalid.Because("%q is not a name for a node", member.Name)
	case len(member.Name) > memberNameMax:
		return gearsfs.ErrNameTooLong
	case len(member.NodeId) != 0 && len(member.NodeId) != len(persist.ID{}):
		return gearsfs.ErrInvalid.Because("a node's id has %d bytes, not %d", len(persist.ID{}), len(member.NodeId))
	case !utf8.ValidString(member.Addrs):
		return gearsfs.ErrInvalid.Because("%q are not addresses", member.Addrs)
	case len(member.Addrs) > memberAddrsMax:
		return gearsfs.ErrTooBig.Because("a member's addresses have at most %d bytes", memberAddrsMax)
	}
	return nil
}

// changeMembers does what a change of the group says about its members. The
// group has changed already, so nothing is refused: what the leader should not
// have proposed is made harmless.
func (m *Machine) changeMembers(index uint64, change *wire.MemberChange) error {
	if add := change.Add; add != nil {
		if err := m.addMember(index, add); err != nil {
			return err
		}
	}
	if change.Remove == 0 {
		return nil
	}
	row, err := memberRow(m.store, gearsfs.MemberID(change.Remove))
	if err != nil {
		return err
	}
	if row == nil {
		row = new(wire.MemberRow) // its id is not to be used again either
	}
	row.Removed = true
	m.setMember(gearsfs.MemberID(change.Remove), row)
	return nil
}

func (m *Machine) addMember(index uint64, add *wire.Member) error {
	row, err := memberRow(m.store, gearsfs.MemberID(add.Id))
	if err != nil || row != nil && row.Removed {
		return err
	}
	if row == nil {
		row = &wire.MemberRow{Added: index}
	}
	row.Name, row.NodeId, row.Addrs = add.Name, add.NodeId, add.Addrs
	for {
		other, err := m.memberNamed(row.Name)
		if err != nil {
			return err
		}
		if other == 0 || other == gearsfs.MemberID(add.Id) {
			break
		}
		row.Name = fmt.Sprintf("%s-%x", row.Name, add.Id)
	}
	m.setMember(gearsfs.MemberID(add.Id), row)
	return nil
}

func (m *Machine) setMember(id gearsfs.MemberID, row *wire.MemberRow) {
	m.set(persist.MemberKey(id), row)
	m.members = true
}

// memberNamed returns the member that has a name and is not removed, 0 where
// there is none.
func (m *Machine) memberNamed(name string) (found gearsfs.MemberID, err error) {
	err = scanMembers(m.store, func(id gearsfs.MemberID, row *wire.MemberRow) {
		if row.Name == name && !row.Removed {
			found = id
		}
	})
	return found, err
}

// Members returns the members of the volume's group, without those that were
// removed, by id.
func (m *Machine) Members() ([]gearsfs.Member, error) {
	r := m.read()
	defer r.close()
	var members []gearsfs.Member
	err := scanMembers(r.view, func(id gearsfs.MemberID, row *wire.MemberRow) {
		if !row.Removed {
			member := gearsfs.Member{ID: id, Name: row.Name, Addrs: row.Addrs}
			copy(member.NodeID[:], row.NodeId)
			members = append(members, member)
		}
	})
	return members, err
}

// MemberRow returns what is known of a member, also of one that was removed; ok
// is false where there never was one of that id, or it can't be read.
func (m *Machine) MemberRow(id gearsfs.MemberID) (row *wire.MemberRow, ok bool) {
	r := m.read()
	defer r.close()
	row, err := memberRow(r.view, id)
	return row, err == nil && row != nil
}

// memberRow reads a member's row; nil where there is none.
func memberRow(r Reader, id gearsfs.MemberID) (*wire.MemberRow, error) {
	value, ok, err := r.Get(persist.MemberKey(id), nil)
	if err != nil || !ok {
		return nil, err
	}
	row := new(wire.MemberRow)
	if err := row.UnmarshalVT(value); err != nil {
		return nil, damaged("member", err)
	}
	return row, nil
}

// scanMembers calls visit with every member's row, in order.
func scanMembers(r Reader, visit func(id gearsfs.MemberID, row *wire.MemberRow)) error {
	lo, hi := persist.TableRange(persist.TableMember)
	return scan(r, lo, hi, func(key, value []byte) error {
		id, err := persist.ParseMemberKey(key)
		if err != nil {
			return err
		}
		var row wire.MemberRow
		if err := row.UnmarshalVT(value); err != nil {
			return damaged("member", err)
		}
		visit(id, &row)
		return nil
	})
}
