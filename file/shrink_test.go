package file

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/wire"
)

// largeFile makes a file of more rows in the block store than one entry removes.
func (r *rig) largeFile(name string, rows int) (gearsfs.Ino, []byte) {
	r.t.Helper()
	r.m.shrinkMax = 2
	f := r.create(gearsfs.RootIno, name, 0o644)
	var want []byte
	for i := range rows {
		data := letters(128*k, byte('a'+i))
		r.do(&wire.Write{Ino: uint64(f), Pos: uint64(len(want)), Extents: r.blocks.one(data)})
		want = append(want, data...)
	}
	return f, want
}

// removeDoomed does the steps that are left and returns how many they were.
func (r *rig) removeDoomed() (steps int) {
	r.t.Helper()
	for r.m.Doomed() {
		r.do(&wire.Shrink{})
		r.sound()
		steps++
	}
	return steps
}

// TestDoomed: a large file without a name can't be reached by anything, and goes
// in steps, also where the volume is opened again between them.
func TestDoomed(t *testing.T) {
	r := newBlocksRig(t)
	r.do(&wire.SetQuota{Dir: uint64(gearsfs.RootIno), Bytes: new(uint64(1 << 30))})
	r.do(&wire.CountQuota{})
	f, want := r.largeFile("f", 7)
	inodes, used := r.m.Usage().Inodes, func() uint64 {
		q, err := r.m.Quota(gearsfs.RootIno)
		require.NoError(t, err)
		return q.BytesUsed
	}
	require.EqualValues(t, len(want), used())
	r.do(r.unlink(gearsfs.RootIno, "f", false))
	require.True(t, r.m.Doomed())
	require.Equal(t, inodes-1, r.m.Usage().Inodes)
	r.sound()

	_, err := r.m.GetAttr(f)
	require.ErrorIs(t, err, gearsfs.ErrStale)
	_, err = r.m.Read(f, 0, 10, root, nil)
	require.ErrorIs(t, err, gearsfs.ErrStale)
	mode, zero := uint32(0o600), uint64(0)
	for _, op := range []any{
		&wire.Write{Ino: uint64(f), Data: []byte("x")}, &wire.SetAttr{Ino: uint64(f), Mode: &mode}, &wire.SetAttr{Ino: uint64(f), Size: &zero},
		&wire.Link{Ino: uint64(f), Dir: uint64(gearsfs.RootIno), Name: "g"}, &wire.Allocate{Ino: uint64(f), Length: 10},
		&wire.SetXattr{Ino: uint64(f), Name: "user.a"}, &wire.Put{Target: &wire.Target{Ino: uint64(f)}, Key: "k"},
		&wire.Lock{Ino: uint64(f), Kind: 1}, &wire.CopyRange{FromIno: uint64(f), Ino: uint64(f), Length: 1},
	} {
		_, err := r.try(root, op)
		require.Error(t, err, "%T", op)
	}
	r.do(&wire.Release{Ino: uint64(f)})
	r.do(&wire.Shrink{Ino: uint64(f), Key: "data"})
	r.reopen()
	r.m.shrinkMax = 2
	require.True(t, r.m.Doomed())
	before := used()
	r.do(&wire.Shrink{})
	require.Less(t, used(), before)
	require.Positive(t, used())
	require.Positive(t, r.removeDoomed())
	require.Zero(t, used())
	require.Empty(t, r.blocks.live)
}

// TestEmptyRecordsBehindWhatIsLarge: each step removes something, also where a
// stream ends with more empty records than a step removes rows.
func TestEmptyRecordsBehindWhatIsLarge(t *testing.T) {
	r := newBlocksRig(t)
	r.m.shrinkMax = 2
	f := r.create(gearsfs.RootIno, "f", 0o644)
	for _, key := range []string{"j", "k"} {
		for i := range 5 {
			r.do(&wire.Put{Target: &wire.Target{Ino: uint64(f)}, Key: key, Records: []*wire.NewRecord{{Extents: r.blocks.one(letters(70*k, byte('a'+i)))}}})
			r.do(&wire.Put{Target: &wire.Target{Ino: uint64(f)}, Key: key, Records: []*wire.NewRecord{{}, {}, {}, {}}})
		}
	}
	tail := func() gearsfs.Pos {
		st := r.m.StreamState(f, "j")
		return st.State().Tail
	}
	drop := &wire.Configure{Target: &wire.Target{Ino: uint64(f)}, Key: "j", Drop: true}
	for {
		answer, err := r.try(root, drop)
		if err == nil {
			break
		}
		require.ErrorIs(t, err, gearsfs.ErrOversize)
		before := tail()
		r.do(answer.Shrink)
		require.Less(t, tail(), before)
		r.sound()
	}
	r.do(r.unlink(gearsfs.RootIno, "f", false))
	for range 2 * 5 {
		r.do(&wire.Shrink{})
		r.sound()
	}
	require.False(t, r.m.Doomed())
	require.Empty(t, r.blocks.live)
}

// TestDoomedLeases: leases on records of a file that is doomed end as others do,
// with their sessions and with their time.
func TestDoomedLeases(t *testing.T) {
	r := newBlocksRig(t)
	r.m.shrinkMax = 2
	f := r.create(gearsfs.RootIno, "f", 0o644)
	id := gearsfs.SessionID{Minted: rigStart, Salt: 7}
	for i := range 9 {
		r.do(&wire.Put{Target: &wire.Target{Ino: uint64(f)}, Key: "k", Records: []*wire.NewRecord{{Extents: r.blocks.one(letters(70*k, byte('a'+i)))}}})
	}
	for range 2 {
		for _, c := range []*wire.Take{{Lease: true, Tries: 1}, {Lease: true, LeaseFor: uint64(time.Minute), ByReceipt: true}} {
			c.Target, c.Keys = &wire.Target{Ino: uint64(f)}, []string{"k"}
			require.Zero(t, r.entry(by(id, as(root, c)))[0].Code)
		}
	}
	r.do(r.unlink(gearsfs.RootIno, "f", false))
	require.True(t, r.m.Doomed())
	r.sound()
	r.do(&wire.EndSession{SessionMinted: uint64(id.Minted), SessionSalt: id.Salt, Forget: true})
	r.sound()
	r.now += uint64(2 * time.Minute)
	r.do(&wire.Tick{})
	r.sound()
	r.removeDoomed()
	require.Empty(t, r.blocks.live)
}

// TestDoomedOrphan: what was open when it lost its name goes in steps, too, when
// nobody has it open any more.
func TestDoomedOrphan(t *testing.T) {
	r := newBlocksRig(t)
	f, want := r.largeFile("f", 6)
	id := gearsfs.SessionID{Minted: rigStart, Salt: 7}
	r.do(r.unlink(gearsfs.RootIno, "f", false, id))
	require.False(t, r.m.Doomed())
	require.Equal(t, string(want), string(r.read(f, 0, len(want))))
	require.Zero(t, r.entry(by(id, as(root, &wire.Release{Ino: uint64(f)})))[0].Code)
	require.True(t, r.m.Doomed())
	require.Positive(t, r.removeDoomed())
	require.Empty(t, r.blocks.live)
}

// TestOversize: a command that would remove too much of a file changes nothing and
// says what is to go first; that done as often as it says so, it does the rest.
func TestOversize(t *testing.T) {
	size, target := uint64(100_000), func(f gearsfs.Ino) *wire.Target { return &wire.Target{Ino: uint64(f)} }
	for name, op := range map[string]func(f gearsfs.Ino) any{
		"truncate": func(f gearsfs.Ino) any { return &wire.SetAttr{Ino: uint64(f), Size: &size} },
		"clear":    func(f gearsfs.Ino) any { return &wire.Configure{Target: target(f), Key: "data", Clear: true} },
		"update": func(f gearsfs.Ino) any {
			return &wire.Update{Target: target(f), Key: "data", Record: &wire.NewRecord{Data: []byte("x")}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newBlocksRig(t)
			f, want := r.largeFile("f", 9)
			steps := 0
			for {
				before := r.attr(f)
				a, err := r.try(root, op(f))
				if err == nil {
					break
				}
				require.ErrorIs(t, err, gearsfs.ErrOversize)
				require.Equal(t, before, r.attr(f), "a refused command changed something")
				r.do(a.Shrink)
				r.sound()
				steps++
				left := r.attr(f).Size
				require.Less(t, left, before.Size)
				require.Equal(t, string(want[:left]), string(r.read(f, 0, len(want))))
			}
			require.GreaterOrEqual(t, steps, 3, "9 rows, 2 a step")
			r.sound()
			require.LessOrEqual(t, r.attr(f).Size, size)
		})
	}
}
