package file

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/wire"
)

func moveOp(from, to string, max uint64) *wire.Move {
	return &wire.Move{Target: inRoot, Key: from, To: to, Max: max}
}

func TestMove(t *testing.T) {
	r := newRig(t)
	c := r.client(1)
	op := putOp("a", "1", "2", "3", "4", "5")
	op.Records[1].Type = "t"
	ino := c.must(op).Ino
	leased := c.must(leaseOp(1, "a"))
	cmd := c.command(moveOp("a", "b", 2))
	a := r.entry(cmd)[0]
	require.NoError(t, answerError(a))
	require.Equal(t, []uint64{2, 1, 2, ino}, []uint64{a.Count, a.FirstSeq, a.LastSeq, a.Ino})
	require.Contains(t, r.seen.touched, Touched{Ino: gearsfs.Ino(ino), Key: "b", Ready: true, Appended: true})
	require.Contains(t, r.seen.touched, Touched{Ino: gearsfs.Ino(ino), Key: "a", Room: true})
	require.Equal(t, a.String(), r.entry(cmd)[0].String(), "a retry")
	require.Equal(t, []string{"2", "3"}, c.left("b"))
	require.Equal(t, []string{"4", "5"}, c.left("a"))
	records, err := r.m.Peek(gearsfs.Ino(ino), "b", PeekWhat{}, gearsfs.Root)
	require.NoError(t, err)
	require.Equal(t, "t", records[0].Type)
	c.must(&wire.Settle{Receipts: receipts(leased), Return: true})
	require.EqualValues(t, 3, c.must(moveOp("a", "data", 0)).Count)
	require.Equal(t, "145", string(r.read(gearsfs.Ino(ino), 0, 9)))
	require.Zero(t, c.must(moveOp("a", "b", 0)).Count)
	require.Zero(t, c.must(moveOp("none", "b", 0)).Count)
	require.EqualValues(t, 3, c.must(moveOp("data", "a", 0)).Count)
	require.Empty(t, c.left("data"))
	r.check()
}

// TestMoveStopsWhereNothingFits: it moves what fits, and says why nothing does.
func TestMoveStopsWhereNothingFits(t *testing.T) {
	r := newRig(t)
	c := r.client(1)
	op := putOp("a", "1", "2", "3", "4", "5")
	op.Records[2].Type = "t"
	c.must(op)
	moves := func(n uint64, want error) {
		t.Helper()
		a, err := c.ask(moveOp("a", "b", 0))
		require.ErrorIs(t, err, want)
		require.Equal(t, n, a.Count)
		r.check()
	}
	c.must(limitOp("b", 1, 0))
	moves(1, nil)
	moves(0, gearsfs.ErrFull)
	c.must(limitOp("b", 0, 2))
	moves(1, nil)
	moves(0, gearsfs.ErrFull)
	c.must(limitOp("b", 0, 0))
	c.must(settingsOp("b", &wire.Settings{Type: ptr("t")}))
	moves(1, nil)
	moves(0, gearsfs.ErrType)
	c.must(settingsOp("b", &wire.Settings{Type: ptr(""), Full: ptr(uint32(gearsfs.FullDropOldest)), Records: ptr(uint64(1))}))
	moves(2, nil)
	require.Equal(t, []string{"5"}, c.left("b"))
	c.must(putOp("a", "6"))
	c.must(sealOp("b", true))
	moves(0, gearsfs.ErrSealed)

	for _, op := range []*wire.Move{moveOp("a", "a", 0), moveOp("a", "", 0), moveOp("", "a", 0), moveOp("a", "x/y", 0)} {
		_, err := c.ask(op)
		require.Error(t, err, "%v", op)
	}
	_, err := c.ask(&wire.Move{Target: &wire.Target{Dir: 1, Name: "none"}, Key: "a", To: "b"})
	require.ErrorIs(t, err, gearsfs.ErrNotFound)
	_, err = r.try(gearsfs.Nobody, moveOp("a", "b", 0))
	require.ErrorIs(t, err, gearsfs.ErrAccess)
	ino := c.must(putOp("a")).Ino
	r.do(&wire.Write{Ino: ino, Data: []byte("x")})
	_, err = c.ask(moveOp("data", "b", 0))
	require.ErrorIs(t, err, gearsfs.ErrBlocks)
}

// TestMoveIsBounded: one entry moves what one put may have.
func TestMoveIsBounded(t *testing.T) {
	r := newRig(t)
	for range 2 {
		op := putOp("a")
		for range 10_000 {
			op.Records = append(op.Records, &wire.NewRecord{})
		}
		r.do(op)
	}
	require.EqualValues(t, gearsfs.BatchRecordsMax, r.do(moveOp("a", "b", 0)).Count)
	require.EqualValues(t, 20_000-gearsfs.BatchRecordsMax, r.do(moveOp("a", "b", 1<<40)).Count)
	r.do(putOp("big"))
	for range 3 {
		r.do(&wire.Put{Target: inRoot, Key: "big", Records: []*wire.NewRecord{{Data: make([]byte, 6<<20)}}})
	}
	require.EqualValues(t, 2, r.do(moveOp("big", "b", 0)).Count)
	require.EqualValues(t, 1, r.do(moveOp("big", "b", 0)).Count)
	r.check()
}

func copyOp(from gearsfs.Ino, name string) *wire.CopyFile {
	return &wire.CopyFile{From: &wire.Target{Ino: uint64(from)}, To: &wire.Target{Dir: 1, Name: name}}
}

// TestCopyFile: a copy has all that lives, in its places, whatever is out.
func TestCopyFile(t *testing.T) {
	r := newRig(t)
	c := r.client(1)
	ino := gearsfs.Ino(c.must(putOp("q", "gone", "leased", "returned", "ready")).Ino)
	r.do(&wire.SetAttr{Ino: uint64(ino), Mode: ptr(uint32(0o4640))})
	c.must(takeOp(1, "q"))
	leased := c.must(leaseOp(2, "q"))
	c.must(&wire.Settle{Receipts: receipts(leased)[1:], Return: true})
	delayed := putOp("q", "delayed")
	delayed.Delay = uint64(time.Hour)
	c.must(delayed)
	set := &wire.Settings{Type: ptr(""), AppendOnly: ptr(true), IdWindow: ptr(uint64(5)), Tries: ptr(uint32(3)), Age: ptr(uint64(time.Hour)), Records: ptr(uint64(9))}
	c.must(settingsOp("q", set))
	r.do(&wire.Put{Target: inRoot, Key: "ids", Records: []*wire.NewRecord{withID("x", "A")}})
	r.do(&wire.Write{Ino: uint64(ino), Pos: 100, Data: []byte("bytes")})
	c.must(sealOp("ids", true))

	cmd := c.command(copyOp(ino, "g"))
	a := r.entry(cmd)[0]
	require.NoError(t, answerError(a))
	to := gearsfs.Ino(a.Ino)
	require.Contains(t, r.seen.changed, Changed{Change: gearsfs.Change{Ino: to, Data: true}, By: c.id})
	require.Equal(t, a.String(), r.entry(cmd)[0].String(), "a retry")
	r.check()
	require.EqualValues(t, 0o640, r.attr(to).Mode&0o7777)
	require.Equal(t, r.read(ino, 0, 200), r.read(to, 0, 200))
	records, err := r.m.Peek(to, "q", PeekWhat{Max: 9}, gearsfs.Root)
	require.NoError(t, err)
	require.Equal(t, []string{"leased", "returned", "ready", "delayed"}, datas(records))
	require.EqualValues(t, 2, records[0].Seq)
	require.EqualValues(t, 4, records[0].Pos)
	info, was := r.info(uint64(to), "q"), r.info(uint64(ino), "q")
	require.Equal(t, []uint64{4, 0, 0}, []uint64{info.Records, info.Leased, info.Delayed})
	require.Equal(t, was.Settings, info.Settings)
	require.Equal(t, []any{was.Limits, was.Head, was.Tail, was.Bytes}, []any{info.Limits, info.Head, info.Tail, info.Bytes})
	require.True(t, r.info(uint64(to), "ids").Sealed)

	// The two are each their own.
	c.must(&wire.Settle{Receipts: receipts(leased)[:1]})
	taken := r.do(&wire.Take{Target: &wire.Target{Ino: uint64(to)}, Keys: []string{"q"}, Max: 9})
	require.Equal(t, []uint32{1, 1, 1, 1}, []uint32{taken.Records[0].Deliveries, taken.Records[1].Deliveries, taken.Records[2].Deliveries, taken.Records[3].Deliveries})
	require.Equal(t, []string{"returned", "ready"}, c.left("q"))
	r.do(&wire.Put{Target: &wire.Target{Ino: uint64(to)}, Key: "q", Records: []*wire.NewRecord{{}}})
	require.EqualValues(t, 6, r.info(uint64(to), "q").Head.Seq)
	r.now += uint64(2 * time.Hour)
	r.do(&wire.Confirm{})
	require.Zero(t, r.info(uint64(to), "q").Records, "too old")
	r.check()
	r.reopen()
	r.check()
}

// TestCopyOverAFile: the inode stays, its streams do not.
func TestCopyOverAFile(t *testing.T) {
	r := newRig(t)
	c := r.client(1)
	from := gearsfs.Ino(c.must(putOp("data", "new")).Ino)
	to := r.create(1, "g", 0o600)
	g := &wire.Target{Ino: uint64(to)}
	for i := range 20 {
		r.do(&wire.Write{Ino: uint64(to), Data: fmt.Appendf(nil, "old bytes %d", i)})
	}
	c.must(&wire.Put{Target: g, Key: "q", Records: []*wire.NewRecord{{Data: []byte("x")}, withID("y", "A")}})
	taken := c.command(&wire.Take{Target: g, Keys: []string{"q"}, Max: 1})
	first := r.entry(taken)[0]
	leased := c.must(&wire.Take{Target: g, Keys: []string{"q"}, Max: 1, Lease: true})
	version := r.attr(to).Version
	c.must(copyOp(from, "g"))
	require.Equal(t, "new", string(r.read(to, 0, 99)))
	require.EqualValues(t, 3, r.attr(to).Size)
	require.EqualValues(t, 0o600, r.attr(to).Mode&0o777)
	require.Greater(t, r.attr(to).Version, version)
	_, err := c.ask(&wire.Settle{Receipts: receipts(leased)})
	require.ErrorIs(t, err, gearsfs.ErrGone)
	require.Equal(t, first.String(), r.entry(taken)[0].String(), "what was taken before")
	require.Zero(t, r.idRows())
	r.check()

	r.do(configure("q", func(c *wire.Configure) { c.Clear = true }))
	r.do(r.unlink(1, "f", false))
	from = gearsfs.Ino(c.must(putOp("q", "no bytes")).Ino)
	version = r.attr(to).Version
	c.must(copyOp(from, "g"))
	require.Zero(t, r.attr(to).Size)
	require.Greater(t, r.attr(to).Version, version)
	require.Empty(t, r.read(to, 0, 99))
	r.check()
}

func TestCopyErrors(t *testing.T) {
	r := newRig(t)
	from := gearsfs.Ino(r.do(putOp("q", "x")).Ino)
	d := r.mkdir(1, "d", 0o700)
	fails := func(want error, op *wire.CopyFile) {
		t.Helper()
		_, err := r.try(gearsfs.Root, op)
		require.ErrorIs(t, err, want)
		r.check()
	}
	fails(gearsfs.ErrIsDir, copyOp(from, "d"))
	fails(gearsfs.ErrIsDir, copyOp(d, "g"))
	fails(gearsfs.ErrInvalid, copyOp(from, "f"))
	fails(gearsfs.ErrStale, copyOp(99, "g"))
	fails(gearsfs.ErrNotFound, &wire.CopyFile{From: &wire.Target{Dir: 1, Name: "none"}, To: inRoot})
	fails(gearsfs.ErrNotFound, &wire.CopyFile{From: inRoot, To: &wire.Target{Dir: 99, Name: "g"}})
	_, err := r.try(gearsfs.Nobody, copyOp(from, "g"))
	require.ErrorIs(t, err, gearsfs.ErrAccess)
	g := r.create(1, "g", 0o644)
	r.do(&wire.Configure{Target: &wire.Target{Ino: uint64(g)}, Key: "q", Settings: &wire.Settings{AppendOnly: ptr(true)}})
	fails(gearsfs.ErrPermission, copyOp(from, "g"))

	big := &wire.NewRecord{Data: make([]byte, 16<<20)}
	for range 5 {
		r.do(&wire.Put{Target: inRoot, Key: "big", Records: []*wire.NewRecord{big}})
	}
	fails(gearsfs.ErrTooBig, copyOp(from, "h"))
	r.do(takeOp(1, "big"))
	fails(gearsfs.ErrTooBig, copyOp(from, "h"))
	r.do(takeOp(1, "big"))
	r.do(copyOp(from, "h"))
	r.check()
}
