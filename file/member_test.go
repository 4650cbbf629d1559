package file

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/persist"
	"github.com/gearsfs/gearsfs/wire"
)

func nodeID(n byte) []byte {
	id := make([]byte, 16)
	id[0] = n
	return id
}

func member(id uint64, name, addrs string) *wire.Member {
	return &wire.Member{Id: id, Name: name, NodeId: nodeID(byte(id)), Addrs: addrs}
}

var checked = gearsfs.Caller{Checked: true}

// conf applies an entry of raft's.
func (r *rig) conf(conf string, change *wire.MemberChange) {
	r.t.Helper()
	r.index++
	context, err := change.MarshalVT()
	require.NoError(r.t, err)
	require.NoError(r.t, r.m.ApplyConf(r.index, 1, []byte(conf), context))
}

func (r *rig) members() []gearsfs.Member {
	r.t.Helper()
	members, err := r.m.Members()
	require.NoError(r.t, err)
	return members
}

func TestSetMember(t *testing.T) {
	r := newRig(t)
	set := func(m *wire.Member) error {
		_, err := r.try(checked, &wire.SetMember{Member: m})
		return err
	}
	require.Empty(t, r.members())
	require.NoError(t, set(member(1, "a", "unix:/a")))
	require.Equal(t, 1, r.seen.members)
	require.NoError(t, set(member(1, "a", "unix:/a,h:1")), "the same name is not another's")
	require.NoError(t, set(&wire.Member{Id: 7, Name: "b"}))
	require.NoError(t, set(member(7, "b", "h:2")), "a node's id may come later")

	for name, test := range map[string]struct {
		member *wire.Member
		want   error
	}{
		"name of another": {member(8, "a", ""), gearsfs.ErrExists},
		"other data":      {&wire.Member{Id: 7, Name: "b", NodeId: nodeID(9)}, gearsfs.ErrForeign},
		"none":            {nil, gearsfs.ErrInvalid},
		"no id":           {member(0, "x", ""), gearsfs.ErrInvalid},
		"no name":         {member(8, "", ""), gearsfs.ErrInvalid},
		"two lines":       {member(8, "x\ny", ""), gearsfs.ErrInvalid},
		"no text":         {member(8, "\xff", ""), gearsfs.ErrInvalid},
		"short node id":   {&wire.Member{Id: 8, Name: "x", NodeId: []byte{1}}, gearsfs.ErrInvalid},
		"long name":       {member(8, strings.Repeat("x", 256), ""), gearsfs.ErrNameTooLong},
		"long addresses":  {member(8, "x", strings.Repeat("x", 5000)), gearsfs.ErrTooBig},
	} {
		before := r.seen.members
		require.ErrorIs(t, set(test.member), test.want, name)
		require.Equal(t, before, r.seen.members, name)
	}
	_, err := r.try(gearsfs.Root, &wire.SetMember{Member: member(8, "x", "")})
	require.ErrorIs(t, err, gearsfs.ErrPermission)

	want := []gearsfs.Member{
		{ID: 1, Name: "a", NodeID: [16]byte{1}, Addrs: "unix:/a,h:1"},
		{ID: 7, Name: "b", NodeID: [16]byte{7}, Addrs: "h:2"},
	}
	require.Equal(t, want, r.members())
	r.reopen()
	require.Equal(t, want, r.members())
	r.check()
}

func TestApplyConfChangesMembers(t *testing.T) {
	r := newRig(t)
	_, err := r.try(checked, &wire.SetMember{Member: member(1, "a", "")})
	require.NoError(t, err)
	r.seen.members = 0

	r.conf("one", nil)
	require.Equal(t, 1, r.seen.members, "votes may have changed")
	r.conf("two", &wire.MemberChange{Add: member(5, "b", "h:5")})
	row, ok := r.m.MemberRow(5)
	require.True(t, ok)
	require.Equal(t, r.index, row.Added)
	require.Equal(t, "two", string(r.m.ConfState()))
	require.NoError(t, r.m.ApplyConf(r.index, 1, []byte("again"), nil))
	require.Equal(t, "two", string(r.m.ConfState()), "an entry that was applied before is skipped")
	require.Equal(t, 2, r.seen.members)

	r.conf("two", &wire.MemberChange{Add: member(5, "b", "h:55")}) // again
	require.Equal(t, "h:55", r.members()[1].Addrs)
	r.conf("three", &wire.MemberChange{Add: member(6, "b", "")})
	require.Equal(t, "b-6", r.members()[2].Name, "the group has changed: it gets a name of its own")

	r.check()
	r.conf("four", &wire.MemberChange{Remove: 5})
	require.Len(t, r.members(), 2)
	row, ok = r.m.MemberRow(5)
	require.True(t, ok)
	require.True(t, row.Removed)
	_, err = r.try(checked, &wire.SetMember{Member: member(5, "b", "")})
	require.ErrorIs(t, err, gearsfs.ErrNotMember)
	_, err = r.try(checked, &wire.SetMember{Member: member(6, "b", "")})
	require.NoError(t, err, "who was removed needs no name")
	r.conf("five", &wire.MemberChange{Add: member(5, "c", "")})
	require.Len(t, r.members(), 2, "an id is never used again")
	r.conf("six", &wire.MemberChange{Remove: 9})
	row, ok = r.m.MemberRow(9)
	require.True(t, ok)
	require.True(t, row.Removed)
	_, ok = r.m.MemberRow(10)
	require.False(t, ok)

	r.reopen()
	require.Equal(t, "six", string(r.m.ConfState()))
	require.Len(t, r.members(), 2)

	err = r.m.ApplyConf(r.index+1, 1, nil, []byte{0xff})
	require.ErrorIs(t, err, gearsfs.ErrDamaged)
	_, err = r.m.Apply(r.index+1, 1, &wire.Entry{})
	require.ErrorIs(t, err, gearsfs.ErrDamaged)
}

// TestVerify: the observer gets the state as of the entry that asks, whatever
// is applied next, and the hash of equal tables is equal.
func TestVerify(t *testing.T) {
	r, q := newRig(t), newRig(t)
	hash := func(state Reader) string {
		sum, err := HashState(t.Context(), state, nil)
		require.NoError(t, err)
		return string(sum)
	}
	hashes := map[*rig]string{}
	for _, r := range []*rig{r, q} {
		r.seen.verify = func(index uint64, state View) {
			info, err := ReadVolume(state)
			require.NoError(t, err)
			require.Equal(t, r.index, index)
			require.Equal(t, VolumeInfo{ID: make([]byte, 16), Name: "main", Index: index, Term: 1, LogTime: r.now, Conf: []byte("c")}, info)
			hashes[r] = hash(state)
		}
		r.conf("c", nil)
		r.mkdir(1, "d", 0o755)
		r.entry(as(checked, &wire.Verify{}), as(gearsfs.Root, &wire.Make{Dir: 1, Name: "f", Mode: modeFile}), as(checked, &wire.Verify{}))
		require.Equal(t, hashes[r], hash(r.data.State))
	}
	require.Len(t, hashes[r], 32)
	require.Equal(t, hashes[r], hashes[q])
	q.do(&wire.SetXattr{Ino: 1, Name: "user.x", Value: []byte("y")})
	require.NotEqual(t, hashes[q], hash(q.data.State))
}

func TestHashStateIsPaced(t *testing.T) {
	r := newRig(t)
	f := r.create(1, "f", 0o644)
	for range 20 {
		r.do(&wire.Put{Target: &wire.Target{Ino: uint64(f)}, Key: "k", Records: []*wire.NewRecord{{Data: make([]byte, 100<<10)}}})
	}
	var bytes, calls int
	_, err := HashState(t.Context(), r.data.State, func(n int) error {
		bytes, calls = bytes+n, calls+1
		return nil
	})
	require.NoError(t, err)
	require.Greater(t, bytes, 2000<<10)
	require.Greater(t, calls, 5)
	_, err = HashState(t.Context(), r.data.State, func(int) error { return gearsfs.ErrClosed })
	require.ErrorIs(t, err, gearsfs.ErrClosed)
}

func TestReadVolumeOfOtherTables(t *testing.T) {
	r := newRig(t)
	r.data.State.Set(persist.VolumeKey(), []byte{8, 99}) // format 99
	_, err := ReadVolume(r.data.State)
	require.ErrorIs(t, err, gearsfs.ErrFormat)
	r.data.State.Set(persist.VolumeKey(), []byte{0xff})
	_, err = ReadVolume(r.data.State)
	require.ErrorIs(t, err, gearsfs.ErrDamaged)
	r.data.State.Delete(persist.VolumeKey())
	_, err = ReadVolume(r.data.State)
	require.ErrorIs(t, err, gearsfs.ErrDamaged)
}

func TestCheckFindsTwoMembersOfOneName(t *testing.T) {
	r := newRig(t)
	for id, removed := range map[gearsfs.MemberID]bool{1: false, 2: true, 3: false} {
		row, err := (&wire.MemberRow{Name: "a", Removed: removed}).MarshalVT()
		require.NoError(t, err)
		r.data.State.Set(persist.MemberKey(id), row)
	}
	require.NoError(t, r.data.State.Commit())
	found := r.m.Check()
	require.Len(t, found, 1)
	require.ErrorContains(t, found[0], "members 1 and 3")
}
