package file

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/persist"
	"github.com/gearsfs/gearsfs/wire"
)

func updateOp(key, data string) *wire.Update {
	return &wire.Update{Target: inRoot, Key: key, Record: &wire.NewRecord{Data: []byte(data)}}
}

func ifSeq(op *wire.Update, seq uint64) *wire.Update {
	op.IfSeq = &seq
	return op
}

func withID(data, id string) *wire.NewRecord { return &wire.NewRecord{Data: []byte(data), Id: id} }

func settingsOp(key string, set *wire.Settings) *wire.Configure {
	return configure(key, func(c *wire.Configure) { c.Settings = set })
}

func ptr[T any](v T) *T { return &v }

func TestUpdate(t *testing.T) {
	r := newRig(t)
	c := r.client(1)
	a := c.must(updateOp("reg", "one"))
	require.Equal(t, []uint64{1, 1}, []uint64{a.FirstSeq, a.LastSeq})
	ino := a.Ino
	require.EqualValues(t, 0o644, r.attr(gearsfs.Ino(ino)).Mode&0o777)
	c.must(putOp("reg", "two", "three"))
	leased := c.must(leaseOp(2, "reg"))
	was := r.info(ino, "reg")
	retried := c.command(ifSeq(updateOp("reg", "four"), 3))
	a = r.entry(retried)[0]
	require.EqualValues(t, 4, a.LastSeq)
	require.Contains(t, r.seen.touched, Touched{Ino: gearsfs.Ino(ino), Key: "reg", Ready: true, Appended: true, Room: true, Ended: true})
	info := r.info(ino, "reg")
	require.Equal(t, []uint64{1, 0, 4, was.Version + 1}, []uint64{info.Records, info.Leased, info.Bytes, info.Version})
	_, err := c.ask(&wire.Settle{Receipts: receipts(leased)})
	require.ErrorIs(t, err, gearsfs.ErrGone)
	require.Equal(t, a.String(), r.entry(retried)[0].String(), "a retry")

	for seq, want := range map[uint64]error{3: gearsfs.ErrUnmet, 5: gearsfs.ErrUnmet, 0: gearsfs.ErrUnmet} {
		_, err := c.ask(ifSeq(updateOp("reg", "no"), seq))
		require.ErrorIs(t, err, want)
	}
	require.Equal(t, []string{"four"}, datas(c.must(takeOp(9, "reg")).Records))
	c.must(ifSeq(updateOp("reg", "five"), 4)) // also where it was taken
	_, err = c.ask(ifSeq(updateOp("other", "x"), 1))
	require.ErrorIs(t, err, gearsfs.ErrUnmet)
	c.must(ifSeq(updateOp("other", "first"), 0))

	c.must(limitOp("reg", 1, 1)) // a register is full all the time
	c.must(updateOp("reg", "longer than the limit"))
	c.must(sealOp("reg", true))
	_, err = c.ask(updateOp("reg", "no"))
	require.ErrorIs(t, err, gearsfs.ErrSealed)
	_, err = c.ask(&wire.Update{Target: inRoot, Key: "reg"})
	require.ErrorIs(t, err, gearsfs.ErrInvalid)
	_, err = r.try(gearsfs.Nobody, updateOp("other", "no"))
	require.ErrorIs(t, err, gearsfs.ErrAccess)
	r.check()
}

// TestUpdateOfBytes: what POSIX sees of the file is the new record.
func TestUpdateOfBytes(t *testing.T) {
	r := newRig(t)
	ino := r.create(1, "f", 0o644)
	r.do(&wire.Write{Ino: uint64(ino), Pos: 0, Data: make([]byte, 50<<10)})
	r.do(updateOp("data", "short"))
	require.EqualValues(t, 5, r.attr(ino).Size)
	require.Equal(t, "short", string(r.read(ino, 0, 100)))
	require.Contains(t, r.seen.changed, Changed{Change: gearsfs.Change{Ino: ino, Data: true}})
	require.Equal(t, []string{"short"}, datas(r.do(takeOp(1, "data")).Records), "taken without force")
	r.check()
}

// TestRegistersAreFast: no update walks over what the ones before it removed.
func TestRegistersAreFast(t *testing.T) {
	r := newRig(t)
	ino := r.do(updateOp("reg", "0")).Ino
	for i := range 2000 {
		r.do(updateOp("reg", fmt.Sprint(i)))
	}
	require.Equal(t, 1, r.recordRows(ino, "reg"))
	n, err := r.m.node(gearsfs.Ino(ino))
	require.NoError(t, err)
	s, err := r.m.stream(n, "reg")
	require.NoError(t, err)
	require.Equal(t, gearsfs.Place{Seq: 2001}, s.queue.State().Cursor)
	records, err := r.m.Peek(gearsfs.Ino(ino), "reg", PeekWhat{}, gearsfs.Root)
	require.NoError(t, err)
	require.Equal(t, []string{"1999"}, datas(records))
	r.check()
}

func TestIDs(t *testing.T) {
	r := newRig(t)
	put := func(records ...*wire.NewRecord) []uint64 {
		t.Helper()
		a := r.do(&wire.Put{Target: inRoot, Key: "q", Records: records})
		r.check()
		return []uint64{a.FirstSeq, a.LastSeq}
	}
	require.Equal(t, []uint64{1, 1}, put(withID("a", "A")))
	require.Equal(t, []uint64{1, 1}, put(withID("b", "A")), "the old seq")
	require.Equal(t, []uint64{2, 3}, put(withID("c", "A"), withID("d", "B"), &wire.NewRecord{Data: []byte("e")}, withID("f", "B")))
	require.Equal(t, []uint64{0, 0}, put(withID("g", "A"), withID("h", "B")))
	a := r.do(takeOp(9, "q"))
	ino := a.Ino
	require.Equal(t, []string{"a", "d", "e"}, datas(a.Records))
	require.Equal(t, []uint64{1, 1}, put(withID("i", "A")), "ids outlive their records")
	r.do(configure("q", func(c *wire.Configure) { c.Clear = true }))
	require.Equal(t, []uint64{1, 1}, put(withID("j", "A")))
	require.EqualValues(t, 2, r.do(&wire.Update{Target: inRoot, Key: "q", Record: withID("k", "B")}).LastSeq)
	require.Zero(t, r.info(ino, "q").Records)
	require.EqualValues(t, 4, r.do(&wire.Update{Target: inRoot, Key: "q", Record: withID("k", "C")}).LastSeq)
	r.reopen()
	require.Equal(t, []uint64{4, 4}, put(withID("l", "C")))

	r.do(sealOp("q", true)) // a rerun of what sealed it is acknowledged
	require.Equal(t, []uint64{4, 4}, put(withID("l", "C")))
	_, err := r.try(gearsfs.Root, &wire.Put{Target: inRoot, Key: "q", Records: []*wire.NewRecord{withID("n", "C"), withID("m", "D")}})
	require.ErrorIs(t, err, gearsfs.ErrSealed)
	_, err = r.try(gearsfs.Root, &wire.Put{Target: inRoot, Key: "q", Records: []*wire.NewRecord{withID("", string(make([]byte, 251)))}})
	require.ErrorIs(t, err, gearsfs.ErrInvalid)

	r.do(configure("q", func(c *wire.Configure) { c.Drop = true }))
	require.Equal(t, []uint64{1, 1}, put(withID("l", "C")), "they go with their stream")
	r.do(r.unlink(1, "f", false))
	require.Zero(t, r.idRows())
	r.check()
}

// idRows counts the rows of both tables of ids.
func (r *rig) idRows() (n int) {
	view := r.data.State.View()
	defer view.Close()
	for _, table := range []persist.Table{persist.TableID, persist.TableIDOrder} {
		lo, hi := persist.TableRange(table)
		require.NoError(r.t, scan(view, lo, hi, func(_, _ []byte) error { n++; return nil }))
	}
	return n
}

func TestIDsLeaveTheirWindow(t *testing.T) {
	r := newRig(t)
	put := func(id string) uint64 {
		t.Helper()
		a := r.do(&wire.Put{Target: inRoot, Key: "q", Records: []*wire.NewRecord{withID("", id)}})
		r.check()
		return a.FirstSeq
	}
	require.EqualValues(t, 1, put("A"))
	r.now += uint64(gearsfs.IDWindowDefault) - 2e6
	require.EqualValues(t, 1, put("A"))
	require.EqualValues(t, 2, put("A"), "24 hours later")
	require.Equal(t, 2, r.idRows())
	r.do(settingsOp("q", &wire.Settings{IdWindow: ptr(uint64(time.Second))}))
	require.EqualValues(t, 2, put("A"))
	r.now += 1e9
	require.EqualValues(t, 3, put("A"))
	require.Equal(t, time.Second, r.info(r.do(&wire.Put{Target: inRoot, Key: "q"}).Ino, "q").Settings.IDWindow)

	r.m.idsMax = 3
	r.do(settingsOp("q", &wire.Settings{IdWindow: ptr(uint64(0))}))
	for i := range 5 {
		require.EqualValues(t, 4+i, put(fmt.Sprint(i)))
	}
	require.Equal(t, 6, r.idRows())
	require.EqualValues(t, 6, put("2"))
	require.EqualValues(t, 9, put("1"), "only three are remembered")
	require.EqualValues(t, 10, put("2"))
}

// TestIDsOfAnIdleStream: its ids leave the window without a put, not all of many in
// one entry.
func TestIDsOfAnIdleStream(t *testing.T) {
	r := newRig(t)
	op := &wire.Put{Target: inRoot, Key: "q"}
	for i := range 2500 {
		op.Records = append(op.Records, withID("", fmt.Sprint(i)))
	}
	r.do(op)
	first := r.now
	window := uint64(gearsfs.IDWindowDefault)
	require.Equal(t, first+window, r.nextDue())
	r.now += window / 2
	r.do(&wire.Put{Target: inRoot, Key: "q", Records: []*wire.NewRecord{withID("", "new")}})
	second := r.now
	r.now = first + window - 2e6
	r.do(&wire.Tick{})
	r.check()
	require.Equal(t, 2*2501, r.idRows())
	for _, left := range []int{1501, 501, 1, 1} {
		r.now = max(r.now, first+window)
		r.do(&wire.Tick{})
		r.check()
		require.Equal(t, 2*left, r.idRows())
	}
	require.Equal(t, second+window, r.nextDue(), "of the one that is left")
	r.do(settingsOp("q", &wire.Settings{IdWindow: ptr(uint64(time.Second))}))
	require.Less(t, r.nextDue(), r.now, "the window is shorter now")
	r.do(&wire.Tick{})
	r.check()
	require.Zero(t, r.idRows())
	_, due := r.m.NextDue()
	require.False(t, due)

	// One that was put again after it had left the window.
	r.do(settingsOp("q", &wire.Settings{IdWindow: ptr(uint64(time.Hour))}))
	for range 3 {
		r.do(&wire.Put{Target: inRoot, Key: "q", Records: []*wire.NewRecord{withID("", "again")}})
		r.now += uint64(time.Hour)
	}
	r.do(&wire.Tick{})
	r.check()
	require.Zero(t, r.idRows())
	r.do(&wire.Put{Target: inRoot, Key: "q", Records: []*wire.NewRecord{withID("", "dropped")}})
	r.do(&wire.Configure{Target: inRoot, Key: "q", Drop: true})
	r.check()
	_, due = r.m.NextDue()
	require.False(t, due)
}

func TestTypes(t *testing.T) {
	r := newRig(t)
	typed := func(types ...string) *wire.Put {
		op := &wire.Put{Target: inRoot, Key: "q"}
		for _, typ := range types {
			op.Records = append(op.Records, &wire.NewRecord{Type: typ})
		}
		return op
	}
	ino := r.do(typed("job", "other")).Ino
	r.do(settingsOp("q", &wire.Settings{Type: ptr("job")})) // what is there may be of another
	require.Equal(t, "job", r.info(ino, "q").Settings.Type)
	r.do(typed("job", "job"))
	_, err := r.try(gearsfs.Root, typed("job", "other"))
	require.ErrorIs(t, err, gearsfs.ErrType)
	require.ErrorContains(t, err, `"job"`)
	require.ErrorContains(t, err, `"other"`)
	_, err = r.try(gearsfs.Root, updateOp("q", "x"))
	require.ErrorIs(t, err, gearsfs.ErrType)
	require.Equal(t, uint64(4), r.info(ino, "q").Records)
	_, err = r.try(gearsfs.Root, settingsOp("q", &wire.Settings{Type: ptr(string(make([]byte, 251)))}))
	require.ErrorIs(t, err, gearsfs.ErrInvalid)

	r.do(settingsOp("data", &wire.Settings{Type: ptr("text")}))
	_, err = r.try(gearsfs.Root, &wire.Write{Ino: ino, Data: []byte("x")})
	require.ErrorIs(t, err, gearsfs.ErrType)
	r.do(settingsOp("data", &wire.Settings{Type: ptr("")}))
	r.do(&wire.Write{Ino: ino, Data: []byte("x")})
	r.check()
}

func TestAppendOnly(t *testing.T) {
	r := newRig(t)
	ino := r.do(putOp("data", "one", "two")).Ino
	r.do(settingsOp("data", &wire.Settings{AppendOnly: ptr(true)}))
	r.do(putOp("other", "x"))
	r.do(settingsOp("other", &wire.Settings{AppendOnly: ptr(true)}))
	for _, op := range []any{
		&wire.Write{Ino: ino, Data: []byte("x")},
		&wire.Write{Ino: ino, Pos: 6, Data: []byte("x")},
		&wire.SetAttr{Ino: ino, Size: ptr(uint64(0))},
		&wire.SetAttr{Ino: ino, Size: ptr(uint64(3))},
		&wire.Allocate{Ino: ino, Pos: 0, Length: 2, Mode: allocPunchHole | allocKeepSize},
		configure("other", func(c *wire.Configure) { c.Clear = true }),
		configure("data", func(c *wire.Configure) { c.Clear = true }),
		configure("other", func(c *wire.Configure) { c.Drop = true }),
		updateOp("data", "x"),
		updateOp("other", "x"),
	} {
		_, err := r.try(gearsfs.Root, op)
		require.ErrorIs(t, err, gearsfs.ErrPermission, "%T %v", op, op)
	}
	r.do(putOp("data", "three"))
	require.Equal(t, "onetwothree", string(r.read(gearsfs.Ino(ino), 0, 99)))
	require.Equal(t, []string{"one"}, datas(r.do(takeOp(1, "data")).Records))
	require.True(t, r.info(ino, "data").Settings.AppendOnly)
	r.do(settingsOp("data", &wire.Settings{AppendOnly: ptr(false)}))
	r.do(&wire.SetAttr{Ino: ino, Size: ptr(uint64(0))})
	r.check()
}

// TestCheckFindsLostIDs: Check sees ids that contradict themselves.
func TestCheckFindsLostIDs(t *testing.T) {
	for name, damage := range map[string]func(s *persist.State, ino gearsfs.Ino){
		"no number":  func(s *persist.State, ino gearsfs.Ino) { s.Delete(persist.IDOrderKey(ino, "q", 1)) },
		"no id":      func(s *persist.State, ino gearsfs.Ino) { s.Delete(persist.IDKey(ino, "q", "B")) },
		"stray id":   func(s *persist.State, ino gearsfs.Ino) { s.Set(persist.IDKey(ino, "q", "D"), nil) },
		"no stream":  func(s *persist.State, ino gearsfs.Ino) { s.Set(persist.IDKey(ino, "r", "D"), nil) },
		"a number 9": func(s *persist.State, ino gearsfs.Ino) { s.Set(persist.IDOrderKey(ino, "q", 9), []byte("A")) },
		"an order":   func(s *persist.State, ino gearsfs.Ino) { s.Set(persist.IDOrderKey(ino, "r", 9), []byte("A")) },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			ino := r.do(&wire.Put{Target: inRoot, Key: "q", Records: []*wire.NewRecord{withID("", "A"), withID("", "B")}}).Ino
			r.check()
			damage(r.data.State, gearsfs.Ino(ino))
			require.NoError(t, r.data.State.Commit())
			require.NotEmpty(t, r.m.Check())
		})
	}
}
