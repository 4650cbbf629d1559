package file

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/wire"
)

// aclOf makes a list of the owner's, the group's and the others' entry, and more.
func aclOf(owner, group, other uint16, more ...aclEntry) acl {
	a := acl{{aclOwner, owner, aclNobody}}
	for _, tag := range []uint16{aclUser, aclGroup, aclGroups, aclMask} {
		if tag == aclGroup {
			a = append(a, aclEntry{aclGroup, group, aclNobody})
		}
		for _, e := range more {
			if e.tag == tag {
				a = append(a, e)
			}
		}
	}
	return append(a, aclEntry{aclOther, other, aclNobody})
}

func mask(perm uint16) aclEntry { return aclEntry{aclMask, perm, aclNobody} }

func (r *rig) setACL(ino gearsfs.Ino, name string, a acl) {
	r.t.Helper()
	r.do(&wire.SetXattr{Ino: uint64(ino), Name: name, Value: a.bytes()})
	r.check()
}

func (r *rig) acl(ino gearsfs.Ino, name string) acl {
	r.t.Helper()
	value, err := r.m.GetXattr(ino, name, gearsfs.Root)
	if err != nil {
		require.ErrorIs(r.t, err, gearsfs.ErrNoAttr)
		return nil
	}
	a, err := parseACL(value)
	require.NoError(r.t, err)
	return a
}

func TestParseACL(t *testing.T) {
	good := aclOf(7, 5, 0, aclEntry{aclUser, 6, 10}, aclEntry{aclGroups, 4, 20}, mask(7))
	a, err := parseACL(good.bytes())
	require.NoError(t, err)
	require.Equal(t, good, a)
	for name, bad := range map[string][]byte{
		"nothing":      {},
		"short":        good.bytes()[:10],
		"version":      append([]byte{3}, good.bytes()[1:]...),
		"no entries":   good.bytes()[:4],
		"no mask":      aclOf(7, 5, 0, aclEntry{aclUser, 6, 10}).bytes(),
		"no others":    good[:5].bytes(),
		"two owners":   append(acl{{aclOwner, 1, 0}}, good...).bytes(),
		"two masks":    aclOf(7, 5, 0, mask(1), mask(2)).bytes(),
		"permissions":  aclOf(8, 5, 0).bytes(),
		"unknown tag":  aclOf(7, 5, 0, aclEntry{0x40, 1, 1}).bytes()[:4],
		"out of order": acl{good[0], good[2], good[1], good[3], good[4], good[5]}.bytes(),
	} {
		_, err := parseACL(bad)
		require.ErrorIs(t, err, gearsfs.ErrInvalid, name)
	}
}

func FuzzParseACL(f *testing.F) {
	f.Add(aclOf(7, 5, 0, aclEntry{aclUser, 6, 10}, mask(7)).bytes())
	f.Fuzz(func(t *testing.T, value []byte) {
		a, err := parseACL(value)
		if err != nil {
			return
		}
		again, err := parseACL(a.bytes())
		require.NoError(t, err)
		require.Equal(t, a, again)
		require.Equal(t, uint32(0o640), a.withMode(0o640).mode())
		a.permits(gearsfs.Caller{UID: 10, GIDs: []uint32{20}}, 5, 4)
	})
}

func TestACLGrants(t *testing.T) {
	r := newRig(t)
	f := r.create(1, "f", 0o600)
	r.setACL(f, aclAccess, aclOf(6, 4, 0, aclEntry{aclUser, 6, 10}, aclEntry{aclUser, 0, 11},
		aclEntry{aclGroups, 2, 20}, aclEntry{aclGroups, 7, 21}, mask(6)))
	require.EqualValues(t, 0o660, r.attr(f).Mode&0o777, "the group's bits are the mask's")
	may := func(uid uint32, gids ...uint32) (can uint32) {
		caller := gearsfs.Caller{UID: uid, GIDs: gids}
		if _, err := r.m.Read(f, 0, 1, caller, nil); err == nil {
			can |= mayRead
		}
		if _, err := r.try(caller, putTo(f, "k", 1)); err == nil {
			can |= mayWrite
		}
		return can
	}
	for range 2 {
		require.EqualValues(t, 6, may(10, 99), "a user that is named")
		require.EqualValues(t, 0, may(11, 21), "one who is refused, whatever the group may")
		require.EqualValues(t, 4, may(12, 0), "the file's group")
		require.EqualValues(t, 2, may(12, 20), "a group that is named")
		require.EqualValues(t, 6, may(12, 20, 21))
		require.EqualValues(t, 0, may(12, 99), "others")
		require.EqualValues(t, 6, may(0))
		r.reopen()
	}
	r.do(&wire.SetAttr{Ino: uint64(f), Mode: ptrTo(uint32(0o604))})
	require.EqualValues(t, 0, may(10, 99), "the mask is what chmod says of the group")
	require.EqualValues(t, 4, may(12, 99))
	require.Equal(t, mask(0), *r.acl(f, aclAccess).find(aclMask))
	r.do(&wire.SetAttr{Ino: uint64(f), Mode: ptrTo(uint32(0o660))})
	require.EqualValues(t, 6, may(10, 99))

	r.setACL(f, aclAccess, aclOf(6, 0, 4))
	require.Nil(t, r.acl(f, aclAccess), "it says no more than the mode")
	require.EqualValues(t, 0o604, r.attr(f).Mode&0o777)
	r.do(&wire.SetXattr{Ino: uint64(f), Name: aclAccess, Remove: true})
	r.check()
}

func TestACLIsInherited(t *testing.T) {
	r := newRig(t)
	d := r.mkdir(1, "d", 0o777)
	a := aclOf(7, 5, 5, aclEntry{aclUser, 7, 10}, mask(7))
	r.setACL(d, aclDefault, a)
	require.Nil(t, r.acl(d, aclAccess))
	made := func(name string, mode uint32) gearsfs.Ino {
		return gearsfs.Ino(r.do(&wire.Make{Dir: uint64(d), Name: name, Mode: mode, Umask: 0o077}).Ino)
	}
	f, sub := made("f", modeFile|0o640), made("sub", modeDir|0o777)
	r.check()
	require.Equal(t, aclOf(6, 5, 0, aclEntry{aclUser, 7, 10}, mask(4)), r.acl(f, aclAccess), "the umask does not matter")
	require.EqualValues(t, 0o640, r.attr(f).Mode&0o777)
	require.Nil(t, r.acl(f, aclDefault))
	require.Equal(t, a, r.acl(sub, aclAccess))
	require.Equal(t, a, r.acl(sub, aclDefault))
	link := gearsfs.Ino(r.do(&wire.Make{Dir: uint64(d), Name: "l", Mode: modeLink, Target: "x"}).Ino)
	require.EqualValues(t, 0o777, r.attr(link).Mode&0o777)
	r.do(&wire.Put{Target: &wire.Target{Dir: uint64(d), Name: "q"}, Key: "k", Mode: 0o644})
	attr, err := r.m.Lookup(d, "q", gearsfs.Root)
	require.NoError(t, err)
	require.NotNil(t, r.acl(attr.Ino, aclAccess))

	r.do(&wire.SetXattr{Ino: uint64(d), Name: aclDefault, Remove: true})
	g := made("g", modeFile|0o666)
	require.EqualValues(t, 0o600, r.attr(g).Mode&0o777, "without a list the umask does")
	r.check()
}

func TestACLNeedsTheOwner(t *testing.T) {
	r := newRig(t)
	f := r.create(1, "f", 0o666)
	op := &wire.SetXattr{Ino: uint64(f), Name: aclAccess, Value: aclOf(7, 7, 7).bytes()}
	_, err := r.try(gearsfs.Caller{UID: 9, GIDs: []uint32{9}}, op)
	require.ErrorIs(t, err, gearsfs.ErrPermission)
	r.refused(gearsfs.ErrInvalid, &wire.SetXattr{Ino: uint64(f), Name: aclAccess, Value: []byte("x")})
	r.refused(gearsfs.ErrAccess, &wire.SetXattr{Ino: uint64(f), Name: aclDefault, Value: aclOf(7, 7, 7).bytes()})
	r.refused(gearsfs.ErrUnsupported, &wire.SetXattr{Ino: uint64(f), Name: "system.other", Value: []byte("x")})
	link := r.do(&wire.Make{Dir: 1, Name: "l", Mode: modeLink, Target: "x"})
	r.refused(gearsfs.ErrUnsupported, &wire.SetXattr{Ino: link.Ino, Name: aclAccess, Value: aclOf(7, 7, 7).bytes()})
}
