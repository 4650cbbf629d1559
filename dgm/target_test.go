package dgm_test

import (
	"encoding/binary"
	"math/rand/v2"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm"
)

// What a session remembers of its paths is what it would find anew, after each of
// a random row of changes, for somebody who may go everywhere and for somebody who
// may not.
func TestRememberedPaths(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	vol := openVolume(t, t.TempDir())
	m := local(t, vol)
	other, err := vol.Local(dgm.Client{Caller: gearsfs.Caller{UID: 1000, GIDs: []uint32{1000}}, Host: "here", PID: 2, Process: "test"})
	require.NoError(t, err)
	defer other.Close()
	ctx := t.Context()
	_, err = other.StatFS(ctx, gearsfs.RootIno) // says hello
	require.NoError(t, err)

	dir := func(name string) gearsfs.Ino {
		attr, err := m.Lookup(ctx, gearsfs.RootIno, name)
		if err != nil {
			attr, err = m.Make(ctx, gearsfs.RootIno, name, dgm.Make{Mode: syscall.S_IFDIR | 0o755})
			require.NoError(t, err)
		}
		return attr.Ino
	}
	put := func(path string) {
		_, err := m.Put(ctx, dgm.Put{File: gearsfs.At(path), Key: "k", Records: []gearsfs.NewRecord{{Data: []byte("x")}}})
		if err != nil {
			require.ErrorIs(t, err, gearsfs.ErrNotFound)
		}
	}
	names := []string{"a", "b", "c"}
	one := func() string { return names[r.IntN(len(names))] }
	exchange := func(from, to gearsfs.Ino, a, b string) {
		if err := m.Rename(ctx, dgm.Rename{Dir: from, Name: a, NewDir: to, NewName: b, Flags: 2}); err != nil {
			require.ErrorIs(t, err, gearsfs.ErrNotFound)
		}
	}
	changes := []func(){
		func() { put("/" + one() + "/q") },
		func() { exchange(gearsfs.RootIno, gearsfs.RootIno, one(), one()) },
		func() { exchange(dir(one()), dir(one()), "q", "q") },
		func() { m.Unlink(ctx, dir(one()), "q") },
		func() { m.Unlink(ctx, gearsfs.RootIno, "l") },
		func() {
			m.Make(ctx, gearsfs.RootIno, "l", dgm.Make{Mode: syscall.S_IFLNK | 0o777, Target: one()})
		},
		func() {
			mode := []uint32{0o755, 0o700}[r.IntN(2)]
			_, err := m.SetAttr(ctx, dir(one()), dgm.SetAttr{Mode: &mode})
			require.NoError(t, err)
		},
		func() {
			uid := []uint32{0, 1000}[r.IntN(2)]
			_, err := m.SetAttr(ctx, dir(one()), dgm.SetAttr{UID: &uid})
			require.NoError(t, err)
		},
		func() {
			require.NoError(t, m.SetXattr(ctx, dir(one()), "system.posix_acl_access", accessFor(1000, uint16(r.IntN(2))), 0))
		},
		func() { m.RemoveXattr(ctx, dir(one()), "system.posix_acl_access") },
	}
	for _, name := range names {
		dir(name)
	}
	remembered := 0
	for range 1500 {
		changes[r.IntN(len(changes))]()
		for _, path := range []string{"/a/q", "/b/q", "/l/q", "/a/../b/q"} {
			n, err := vol.Resolved(path)
			require.NoError(t, err)
			remembered += n
		}
	}
	require.NotZero(t, remembered)
}

// accessFor is an access list by which a user may search or not.
func accessFor(uid uint32, search uint16) []byte {
	const nobody = 1<<32 - 1
	list := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range []struct {
		tag, perm uint16
		id        uint32
	}{{1, 7, nobody}, {2, search, uid}, {4, 5, nobody}, {16, 7, nobody}, {32, 5, nobody}} {
		list = binary.LittleEndian.AppendUint16(list, e.tag)
		list = binary.LittleEndian.AppendUint16(list, e.perm)
		list = binary.LittleEndian.AppendUint32(list, e.id)
	}
	return list
}
