package file

import (
	"errors"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/persist"
	"github.com/gearsfs/gearsfs/wire"
)

// FuzzCommand: a command of any bytes is done or refused; the tables stay
// sound, and trying it again gives the same answer where it was done.
func FuzzCommand(f *testing.F) {
	put := putOp("q", "x")
	put.Records[0].Id, put.Records[0].Type, put.Delay = "A", "t", 5
	lease := leaseOp(1, "q", "data")
	lease.LeaseFor, lease.ByReceipt, lease.Tries = 7, true, 2
	settle := &wire.Settle{Receipts: []*wire.Receipt{{Ino: 2, Key: "q", Seq: 1, Fence: 1}}, Return: true, Delay: 1, Tries: 1}
	all := tx(put, takeOp(2, "q"), lookOp("data", 3), settle, ifSeq(updateOp("r", "y"), 0),
		condition("q", func(c *wire.Condition) { c.AtLeast, c.HeadSeq, c.Empty = 1, ptr(uint64(2)), ptr(false) }))
	set := settingsOp("q", &wire.Settings{Type: ptr("t"), IdWindow: ptr(uint64(1)), AppendOnly: ptr(true), Age: ptr(uint64(9))})
	blocks := newFakeBlocks(f, rand.New(rand.NewPCG(1, 2)))
	old, stored := blocks.one(make([]byte, 9000)), blocks.one(make([]byte, 9000))
	for _, op := range []any{put, lease, settle, all, set, ifSeq(updateOp("q", "z"), 3), moveOp("q", "data", 2), copyOp(2, "g"),
		&wire.Write{Ino: 2, Pos: 100, Extents: stored}, &wire.CopyRange{FromIno: 2, Ino: 2, FromPos: 1, Pos: 10000, Length: 5000},
		&wire.Put{Target: inRoot, Key: "q", Records: []*wire.NewRecord{{Extents: stored}}},
		&wire.Rewrite{Ino: 2, Key: "data", Seq: 1, Was: old, Extents: stored},
		&wire.Allocate{Ino: 2, Pos: 100, Length: 5000, Mode: allocPunchHole | allocKeepSize}, &wire.SetAttr{Ino: 2, Size: ptr(uint64(5000))},
		&wire.CopyFile{From: inRoot, To: inRoot}, tx(updateOp("q", "new"), takeOp(1, "q"), put)} {
		b, err := as(gearsfs.Root, op).MarshalVT()
		require.NoError(f, err)
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		cmd := new(wire.Command)
		if cmd.UnmarshalVT(b) != nil {
			return
		}
		r := newRig(t)
		c := r.client(1)
		ino := c.must(putOp("q", "a", "b", "c")).Ino
		c.must(&wire.Write{Ino: ino, Extents: cloneExtents(old)})
		c.must(leaseOp(1, "q"))
		cmd.SessionMinted, cmd.SessionSalt, cmd.Seq, cmd.Confirmed, cmd.Unconfirmed = uint64(c.id.Minted), c.id.Salt, 9, 0, nil
		a := r.entry(cmd)[0]
		r.check()
		_, isEnd := cmd.Op.(*wire.Command_EndSession)
		if _, again := cmd.Op.(*wire.Command_Confirm); a.Code != 0 || again || isEnd || cmd.Close {
			return
		}
		second := r.entry(cmd)[0]
		require.Zero(t, second.Code, second.Reason)
		require.Equal(t, []uint64{a.FirstSeq, a.LastSeq, a.Count}, []uint64{second.FirstSeq, second.LastSeq, second.Count})
		require.Len(t, second.Steps, len(a.Steps))
		r.check()
	})
}

// allRows are the tables' rows, in the order of their keys.
func (r *rig) allRows() (keys, values [][]byte) {
	view := r.data.State.View()
	defer view.Close()
	require.NoError(r.t, scan(view, []byte{0}, []byte{0xff}, func(key, value []byte) error {
		keys, values = append(keys, slices.Clone(key)), append(values, slices.Clone(value))
		return nil
	}))
	return keys, values
}

// fullRig has rows of all that streams have to do with log time.
func fullRig(t testing.TB) *rig {
	r := newRig(t)
	c := r.client(1)
	c.must(putOp("other", "x"))
	c.must(settings("q", &wire.Settings{Age: ptr(60 * second), Tries: ptr(uint32(2)), IdWindow: ptr(9 * second)}))
	put := putOp("q", "a", "b", "c", "d")
	put.Records[0].Id, put.Records[3].Id = "first", "last"
	c.must(put)
	late := putOp("q", "late")
	late.Delay = 5 * second
	c.must(late)
	c.must(leaseFor(2*second, 1, "q"))
	r.leapBy(hour)
	c.must(&wire.Settle{Receipts: receipts(c.must(byReceipt(3*second, 1, "q"))), Extend: 4 * second})
	return r
}

// FuzzRow: a row of any bytes is found damaged, or does no harm; at worst the
// tables contradict themselves, which the check tells.
func FuzzRow(f *testing.F) {
	r := fullRig(f)
	keys, values := r.allRows()
	for i := range keys {
		f.Add(uint(i), values[i])
		f.Add(uint(i), []byte("\xff\xff"))
	}
	for _, out := range []*wire.OutRow{{}, {Leased: true}, {Deadline: rigStart}, {Leased: true, Deadline: rigStart, Jumped: 1 << 63}} {
		b, err := out.MarshalVT()
		require.NoError(f, err)
		for i, k := range keys {
			if k[0] == byte(persist.TableOut) {
				f.Add(uint(i), b)
			}
		}
	}
	index, now := r.index, r.now
	f.Fuzz(func(t *testing.T, which uint, value []byte) {
		which %= uint(len(keys))
		if table := persist.Table(keys[which][0]); table == persist.TableStream || table == persist.TableRecord || table == persist.TableInode {
			return // they are not new
		}
		r.t, r.index, r.now = t, index, now
		r.data.State.DeleteRange([]byte{0}, []byte{0xff})
		for i, k := range keys {
			r.data.State.Set(k, values[i])
		}
		r.data.State.Set(keys[which], value)
		require.NoError(t, r.data.State.Commit())
		var err error
		if r.m, err = New(r.data.State, nil); err != nil {
			require.Contains(t, []gearsfs.Code{gearsfs.ErrDamaged.Code, gearsfs.ErrFormat.Code}, gearsfs.CodeOf(err))
			return
		}
		errors.Join(r.m.Check()...) //nolint:errcheck // that it ends is enough
		c := r.client(2)
		for _, op := range []any{&wire.Tick{}, takeOp(1, "q"), putOp("q", "e"), leaseOp(9, "q", "q.dead"), &wire.Tick{},
			configure("q", func(c *wire.Configure) { c.Drop = true })} {
			r.index, r.now = r.index+1, r.now+2*second
			if _, err := r.m.Apply(r.index, 1, &wire.Entry{Time: r.now, Commands: []*wire.Command{c.command(op)}}); err != nil {
				require.ErrorIs(t, err, gearsfs.ErrDamaged)
				r.data.State.Commit() //nolint:errcheck // what is in the batch of a broken machine
				return
			}
		}
	})
}

// FuzzRecordRow: what is in a record's row never makes a reader or a writer
// panic; what can't be is found damaged.
func FuzzRecordRow(f *testing.F) {
	blocks := newFakeBlocks(f, rand.New(rand.NewPCG(1, 2)))
	for _, row := range []*wire.RecordRow{
		{Data: []byte("bytes")},
		{Extents: blocks.append(make([]byte, 9000)), Block: true},
		{Extents: append(blocks.append(make([]byte, 9000)), &wire.Extent{Length: 5}, &wire.Extent{Length: 2, Data: []byte("ab")})},
		{Extents: []*wire.Extent{{Origin: 1, Segment: 1, Size: 1 << 63, Length: 1 << 63}}},
	} {
		b, err := row.MarshalVT()
		require.NoError(f, err)
		f.Add(b)
	}
	r := newRig(f)
	ino := uint64(r.create(1, "f", 0o644))
	r.do(&wire.Write{Ino: ino, Extents: blocks.one(make([]byte, 20000))})
	keys, values := r.allRows()
	index, now := r.index, r.now
	f.Fuzz(func(t *testing.T, value []byte) {
		r.t, r.index, r.now = t, index, now
		r.data.State.DeleteRange([]byte{0}, []byte{0xff})
		for i, k := range keys {
			if k[0] == byte(persist.TableRecord) {
				r.data.State.Set(k, value)
			} else {
				r.data.State.Set(k, values[i])
			}
		}
		require.NoError(t, r.data.State.Commit())
		m, err := New(r.data.State, nil)
		require.NoError(t, err)
		errors.Join(m.Check()...) //nolint:errcheck // that it ends is enough
		if _, err := m.Read(gearsfs.Ino(ino), 3, 10000, gearsfs.Root, nil); err != nil {
			require.ErrorIs(t, err, gearsfs.ErrDamaged)
			return
		}
		m.Live(func(gearsfs.Extent) error { return nil }) //nolint:errcheck // as above
		for _, op := range []any{&wire.Write{Ino: ino, Pos: 5, Data: []byte("x")}, &wire.CopyRange{FromIno: ino, Ino: ino, Pos: 1 << 20, Length: 1 << 20},
			&wire.Allocate{Ino: ino, Pos: 1, Length: 9, Mode: allocPunchHole | allocKeepSize}, &wire.SetAttr{Ino: ino, Size: ptr(uint64(7))}} {
			r.index, r.now = r.index+1, r.now+1
			if _, err := m.Apply(r.index, 1, &wire.Entry{Time: r.now, Commands: []*wire.Command{as(gearsfs.Root, op)}}); err != nil {
				require.ErrorIs(t, err, gearsfs.ErrDamaged)
				r.data.State.Commit() //nolint:errcheck // what is in the batch of a broken machine
				return
			}
		}
	})
}
