package file

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/persist"
	"github.com/gearsfs/gearsfs/wire"
)

// client sends the commands of one session.
type client struct {
	*rig
	id  gearsfs.SessionID
	seq uint64
}

func (r *rig) client(salt uint64) *client {
	return &client{rig: r, id: gearsfs.SessionID{Minted: int64(r.now), Salt: salt}}
}

// command makes the session's next command.
func (c *client) command(op any) *wire.Command {
	c.seq++
	cmd := by(c.id, as(gearsfs.Root, op))
	cmd.Seq = c.seq
	return cmd
}

// ask applies the session's next command.
func (c *client) ask(op any) (*wire.Answer, error) {
	c.t.Helper()
	a := c.entry(c.command(op))[0]
	return a, answerError(a)
}

func (c *client) must(op any) *wire.Answer {
	c.t.Helper()
	a, err := c.ask(op)
	require.NoError(c.t, err)
	return a
}

var inRoot = &wire.Target{Dir: uint64(gearsfs.RootIno), Name: "f"}

func putOp(key string, data ...string) *wire.Put {
	op := &wire.Put{Target: inRoot, Key: key}
	for _, d := range data {
		op.Records = append(op.Records, &wire.NewRecord{Data: []byte(d)})
	}
	return op
}

func takeOp(max uint32, keys ...string) *wire.Take {
	return &wire.Take{Target: inRoot, Keys: keys, Max: max}
}

func leaseOp(max uint32, keys ...string) *wire.Take {
	op := takeOp(max, keys...)
	op.Lease = true
	return op
}

func configure(key string, change func(*wire.Configure)) *wire.Configure {
	op := &wire.Configure{Target: inRoot, Key: key}
	change(op)
	return op
}

func limitOp(key string, records, bytes uint64) *wire.Configure {
	return configure(key, func(c *wire.Configure) { c.SetLimits, c.LimitRecords, c.LimitBytes = true, records, bytes })
}

func sealOp(key string, seal bool) *wire.Configure {
	return configure(key, func(c *wire.Configure) { c.Seal = &seal })
}

func receipts(a *wire.Answer) (list []*wire.Receipt) {
	for _, r := range a.Records {
		list = append(list, &wire.Receipt{Ino: r.Ino, Key: r.Key, Pos: r.Pos, Seq: r.Seq, Fence: r.Fence})
	}
	return list
}

func datas(records []*wire.TakenRecord) (list []string) {
	for _, r := range records {
		list = append(list, string(r.Data))
	}
	return list
}

func (r *rig) info(ino uint64, key gearsfs.Key) gearsfs.StreamInfo {
	r.t.Helper()
	info, err := r.m.Stream(gearsfs.Ino(ino), key, gearsfs.Root)
	require.NoError(r.t, err)
	return info
}

// records counts the rows of a stream's records, those of gone ones included.
func (r *rig) recordRows(ino uint64, key gearsfs.Key) (n int) {
	view := r.data.State.View()
	defer view.Close()
	lo, hi := persist.StreamRange(persist.TableRecord, gearsfs.Ino(ino), key)
	require.NoError(r.t, scan(view, lo, hi, func(_, _ []byte) error { n++; return nil }))
	return n
}

func TestPutMakesFileAndStream(t *testing.T) {
	r := newRig(t)
	c := r.client(1)
	a := c.must(putOp("jobs", "one", "two"))
	require.Equal(t, []uint64{1, 2}, []uint64{a.FirstSeq, a.LastSeq})
	require.Contains(t, r.seen.touched, Touched{Ino: gearsfs.Ino(a.Ino), Key: "jobs", Ready: true, Appended: true})
	attr := r.attr(gearsfs.Ino(a.Ino))
	require.EqualValues(t, modeFile|0o644, attr.Mode)
	require.Zero(t, attr.Size, "only the data stream counts")

	op := putOp("data", "hello")
	op.Append = true
	a = c.must(op)
	require.EqualValues(t, 5, a.Attr.Size)
	require.Equal(t, "hello", string(r.read(gearsfs.Ino(a.Ino), 0, 10)))
	infos, err := r.m.ListStreams(gearsfs.Ino(a.Ino), "", 10, gearsfs.Root)
	require.NoError(t, err)
	require.Equal(t, []gearsfs.Key{"data", "jobs"}, []gearsfs.Key{infos[0].Key, infos[1].Key})
	infos, err = r.m.ListStreams(gearsfs.Ino(a.Ino), "data", 1, gearsfs.Root)
	require.NoError(t, err)
	require.Len(t, infos, 1)
	require.Equal(t, gearsfs.Place{Pos: 6, Seq: 3}, infos[0].Tail)
	r.check()
}

func TestQueueErrors(t *testing.T) {
	r := newRig(t)
	c := r.client(1)
	ino := c.must(putOp("jobs", "x")).Ino
	dir := uint64(r.mkdir(gearsfs.RootIno, "d", 0o755))
	r.do(&wire.Make{Dir: 1, Name: "pipe", Mode: 0o010644})
	big := make([]byte, gearsfs.RecordBytesMax+1)
	many := &wire.Put{Target: inRoot, Key: "jobs", Records: make([]*wire.NewRecord, gearsfs.BatchRecordsMax+1)}
	for i := range many.Records {
		many.Records[i] = &wire.NewRecord{}
	}
	before := r.info(ino, "jobs")
	for _, tt := range []struct {
		name string
		op   any
		want error
	}{
		{"empty key", putOp(""), gearsfs.ErrKey},
		{"bad key", putOp("a/b"), gearsfs.ErrKey},
		{"too large", putOp("jobs", "ok", string(big)), gearsfs.ErrTooBig},
		{"too many", many, gearsfs.ErrTooBig},
		{"put into a directory", &wire.Put{Target: &wire.Target{Ino: dir}, Key: "k"}, gearsfs.ErrIsDir},
		{"put into a pipe", &wire.Put{Target: &wire.Target{Dir: 1, Name: "pipe"}, Key: "k"}, gearsfs.ErrInvalid},
		{"put without directory", &wire.Put{Target: &wire.Target{Dir: 99, Name: "x"}, Key: "k"}, gearsfs.ErrNotFound},
		{"put to a removed inode", &wire.Put{Target: &wire.Target{Ino: 99}, Key: "k"}, gearsfs.ErrStale},
		{"take from a directory", &wire.Take{Target: &wire.Target{Ino: dir}, Keys: []string{"k"}}, gearsfs.ErrIsDir},
		{"take without directory", &wire.Take{Target: &wire.Target{Dir: 99, Name: "x"}, Keys: []string{"k"}}, gearsfs.ErrNotFound},
		{"take from a missing file", &wire.Take{Target: &wire.Target{Dir: 1, Name: "x"}, Keys: []string{"k"}}, gearsfs.ErrEmpty},
		{"take from a missing key", takeOp(1, "none"), gearsfs.ErrEmpty},
		{"take of no key", takeOp(1), gearsfs.ErrInvalid},
		{"take of a bad key", takeOp(1, "jobs", "."), gearsfs.ErrKey},
		{"drop data", configure("data", func(c *wire.Configure) { c.Drop = true }), gearsfs.ErrInvalid},
		{"configure a missing file", &wire.Configure{Target: &wire.Target{Dir: 1, Name: "x"}, Key: "k", Clear: true}, gearsfs.ErrNotFound},
		{"settle nothing", &wire.Settle{}, gearsfs.ErrInvalid},
		{"settle what is not leased", &wire.Settle{Receipts: []*wire.Receipt{{Ino: ino, Key: "jobs", Seq: 1, Fence: 1}}}, gearsfs.ErrGone},
		{"settle in a missing file", &wire.Settle{Receipts: []*wire.Receipt{{Ino: 99, Key: "jobs", Seq: 1, Fence: 1}}}, gearsfs.ErrGone},
	} {
		_, err := c.ask(tt.op)
		require.ErrorIs(t, err, tt.want, tt.name)
		require.Equal(t, before, r.info(ino, "jobs"), tt.name)
	}
	_, err := r.try(gearsfs.Root, leaseOp(1, "jobs"))
	require.ErrorIs(t, err, gearsfs.ErrInvalid, "a lease without a session")
	for _, want := range []error{gearsfs.ErrStale, gearsfs.ErrIsDir} {
		where := gearsfs.Ino(dir)
		if want == gearsfs.ErrStale {
			where = 99
		}
		_, err := r.m.Peek(where, "k", PeekWhat{}, gearsfs.Root)
		require.ErrorIs(t, err, want)
		_, err = r.m.Stream(where, "k", gearsfs.Root)
		require.ErrorIs(t, err, want)
		_, err = r.m.ListStreams(where, "", 1, gearsfs.Root)
		require.ErrorIs(t, err, want)
	}
	r.check()
}

func TestQueuePermissions(t *testing.T) {
	r := newRig(t)
	r.do(&wire.SetAttr{Ino: 1, Mode: new(uint32(0o777))})
	owner, other := gearsfs.Caller{UID: 5, GIDs: []uint32{6}}, gearsfs.Caller{UID: 7, GIDs: []uint32{8}}
	op := putOp("jobs", "x")
	op.Mode = 0o644
	a, err := r.try(owner, op)
	require.NoError(t, err)
	attr := r.attr(gearsfs.Ino(a.Ino))
	require.Equal(t, []uint32{5, 6}, []uint32{attr.UID, attr.GID})
	for _, tt := range []struct {
		mode uint32
		op   any
		want error
	}{
		{0o644, putOp("jobs", "y"), gearsfs.ErrAccess},
		{0o644, takeOp(1, "jobs"), gearsfs.ErrAccess},
		{0o642, takeOp(1, "jobs"), gearsfs.ErrAccess},
		{0o642, putOp("jobs", "y"), nil},
		{0o644, sealOp("jobs", true), gearsfs.ErrAccess},
		{0o646, takeOp(1, "jobs"), nil},
	} {
		r.do(&wire.SetAttr{Ino: a.Ino, Mode: new(tt.mode)})
		_, err := r.try(other, tt.op)
		require.ErrorIs(t, err, tt.want, "%o %T", tt.mode, tt.op)
	}
	r.do(&wire.SetAttr{Ino: a.Ino, Mode: new(uint32(0o600))})
	_, err = r.m.Peek(gearsfs.Ino(a.Ino), "jobs", PeekWhat{}, other)
	require.ErrorIs(t, err, gearsfs.ErrAccess)
	checked := other
	checked.Checked = true
	_, err = r.try(checked, putOp("jobs", "z"))
	require.NoError(t, err)
	r.do(&wire.SetAttr{Ino: 1, Mode: new(uint32(0o755))})
	_, err = r.try(other, &wire.Put{Target: &wire.Target{Dir: 1, Name: "new"}, Key: "k"})
	require.ErrorIs(t, err, gearsfs.ErrAccess)
}

func TestTakePrefersTheFirstKey(t *testing.T) {
	r := newRig(t)
	c := r.client(1)
	c.must(putOp("low", "l1", "l2"))
	c.must(putOp("high", "h1"))
	require.Equal(t, []string{"h1"}, datas(c.must(takeOp(5, "high", "low")).Records))
	require.Equal(t, []string{"l1", "l2"}, datas(c.must(takeOp(5, "high", "low")).Records))
	c.must(sealOp("high", true))
	_, err := c.ask(takeOp(1, "high", "low"))
	require.ErrorIs(t, err, gearsfs.ErrEmpty, "low may get some")
	c.must(sealOp("low", true))
	_, err = c.ask(takeOp(1, "high", "low"))
	require.ErrorIs(t, err, gearsfs.ErrEnd)
	_, err = c.ask(takeOp(1, "high", "none"))
	require.ErrorIs(t, err, gearsfs.ErrEmpty)
	_, err = c.ask(putOp("low", "x"))
	require.ErrorIs(t, err, gearsfs.ErrSealed)
	c.must(sealOp("low", false))
	c.must(putOp("low", "x"))
}

func TestSettle(t *testing.T) {
	r := newRig(t)
	c, other := r.client(1), r.client(2)
	ino := c.must(putOp("jobs", "a", "b", "c")).Ino
	leased := c.must(leaseOp(3, "jobs"))
	require.Equal(t, []string{"a", "b", "c"}, datas(leased.Records))
	held := receipts(leased)
	require.Equal(t, uint64(3), r.info(ino, "jobs").Leased)

	_, err := other.ask(&wire.Settle{Receipts: held[:1]})
	require.ErrorIs(t, err, gearsfs.ErrGone, "another session's")
	_, err = c.ask(&wire.Settle{Receipts: []*wire.Receipt{held[0], held[1], held[0]}})
	require.ErrorIs(t, err, gearsfs.ErrGone, "one is there twice")
	require.Equal(t, uint64(3), r.info(ino, "jobs").Leased, "all or none")

	c.must(&wire.Settle{Receipts: held[1:2], Return: true})
	require.Contains(t, r.seen.touched, Touched{Ino: gearsfs.Ino(ino), Key: "jobs", Ready: true, Ended: true})
	_, err = c.ask(&wire.Settle{Receipts: held})
	require.ErrorIs(t, err, gearsfs.ErrGone)
	again := other.must(leaseOp(1, "jobs"))
	require.EqualValues(t, 2, again.Records[0].Deliveries)
	require.NotEqual(t, held[1].Fence, again.Records[0].Fence)

	c.must(sealOp("jobs", true))
	c.must(&wire.Settle{Receipts: []*wire.Receipt{held[0], held[2]}})
	_, err = c.ask(takeOp(1, "jobs"))
	require.ErrorIs(t, err, gearsfs.ErrEmpty, "the other session's may come back")
	other.must(&wire.Settle{Receipts: receipts(again)})
	require.True(t, r.seen.touched[0].Sealed, "takers learn that none comes")
	_, err = c.ask(takeOp(1, "jobs"))
	require.ErrorIs(t, err, gearsfs.ErrEnd)
	require.True(t, new(r.m.StreamState(gearsfs.Ino(ino), "jobs")).Drained())
	r.check()
}

func TestWhatRemovesRecordsEndsLeases(t *testing.T) {
	for name, remove := range map[string]func(r *rig, ino uint64){
		"clear": func(r *rig, _ uint64) { r.do(configure("jobs", func(c *wire.Configure) { c.Clear = true })) },
		"drop":  func(r *rig, _ uint64) { r.do(configure("jobs", func(c *wire.Configure) { c.Drop = true })) },
		"unlink": func(r *rig, ino uint64) {
			r.do(r.unlink(1, "f", false))
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			c := r.client(1)
			ino := c.must(putOp("jobs", "a", "b")).Ino
			held := receipts(c.must(leaseOp(1, "jobs")))
			remove(r, ino)
			_, err := c.ask(&wire.Settle{Receipts: held})
			require.ErrorIs(t, err, gearsfs.ErrGone)
			sessions, err := r.m.Sessions()
			require.NoError(t, err)
			require.Contains(t, sessions, c.id)
			require.Empty(t, r.m.sessions.leases)
			r.do(&wire.EndSession{SessionMinted: uint64(c.id.Minted), SessionSalt: c.id.Salt})
			require.Zero(t, r.recordRows(ino, "jobs"))
			r.check()
			r.reopen()
			require.Zero(t, r.m.volume.Bytes)
		})
	}
}

func TestFullStreamsKeepTheOrderOfPuts(t *testing.T) {
	r := newRig(t)
	c, other := r.client(1), r.client(2)
	ino := c.must(putOp("jobs", "a")).Ino
	c.must(limitOp("jobs", 2, 0))
	big, small := c.command(putOp("jobs", "b1", "b2")), c.command(putOp("jobs", "c"))
	for _, cmd := range []*wire.Command{big, small, big} {
		require.ErrorIs(t, answerError(r.entry(cmd)[0]), gearsfs.ErrFull)
	}
	other.must(putOp("jobs", "x"))
	r.do(takeOp(2, "jobs"))
	require.True(t, r.seen.touched[0].Room)
	require.ErrorIs(t, answerError(r.entry(small)[0]), gearsfs.ErrFull, "an earlier one waits")
	require.ErrorIs(t, answerError(r.entry(c.command(putOp("jobs", "d")))[0]), gearsfs.ErrFull)
	r.reopen()
	require.ErrorIs(t, answerError(r.entry(small)[0]), gearsfs.ErrFull)
	require.NoError(t, answerError(r.entry(big)[0]))
	r.do(takeOp(2, "jobs"))
	late := c.command(putOp("jobs", "late"))
	require.ErrorIs(t, answerError(r.entry(late)[0]), gearsfs.ErrFull, "c and d wait")
	small.GetPut().Retry = true
	require.NoError(t, answerError(r.entry(small)[0]))
	require.ErrorIs(t, answerError(r.entry(late)[0]), gearsfs.ErrFull, "d waits")
	late.Confirmed = late.Seq // d was given up
	require.NoError(t, answerError(r.entry(late)[0]))
	require.Equal(t, []string{"c", "late"}, datas(r.do(takeOp(2, "jobs")).Records))
	require.Equal(t, uint64(0), r.info(ino, "jobs").Records)
	c.must(putOp("jobs", "1", "2", "3"))
	require.Equal(t, uint64(3), r.info(ino, "jobs").Records, "more than the limit fits into an empty stream")
	r.check()
}

// A put that waits for room is not refused because a later one of its session was
// first in line: they may have been asked for at once.
func TestPutsThatWaitInAnyOrder(t *testing.T) {
	r := newRig(t)
	c := r.client(1)
	c.must(putOp("jobs", "a", "b"))
	c.must(limitOp("jobs", 2, 0))
	first, second := c.command(putOp("jobs", "1")), c.command(putOp("jobs", "2"))
	for _, cmd := range []*wire.Command{second, first} {
		require.ErrorIs(t, answerError(r.entry(cmd)[0]), gearsfs.ErrFull)
	}
	for _, cmd := range []*wire.Command{second, first} {
		cmd.GetPut().Retry = true
		r.do(takeOp(1, "jobs"))
		require.NoError(t, answerError(r.entry(cmd)[0]))
	}
	require.Equal(t, []string{"2", "1"}, datas(r.do(takeOp(2, "jobs")).Records))
	r.check()
}

// A put that is refused for want of room, whose client does not wait, stays refused:
// it may be sent again, since its answer was lost, behind a later put of its session.
func TestWhatAPutHasPassedStaysRefused(t *testing.T) {
	r := newRig(t)
	c := r.client(1)
	c.must(putOp("jobs", "a"))
	c.must(limitOp("jobs", 2, 0))
	first, second := c.command(putOp("jobs", "1a", "1b")), c.command(putOp("jobs", "2"))
	refused := func(forGood bool) {
		t.Helper()
		a := r.entry(first)[0]
		require.ErrorIs(t, answerError(a), gearsfs.ErrFull)
		require.Equal(t, forGood, a.Refused)
	}
	refused(false)
	refused(false)
	second.GetPut().Retry, second.GetPut().Refused = true, []uint64{first.Seq} // nobody waits any more
	require.NoError(t, answerError(r.entry(second)[0]))
	refused(true)
	r.do(takeOp(2, "jobs"))
	first.GetPut().Retry = true
	refused(true)
	r.reopen()
	refused(true)
	c.must(putOp("jobs", "3"))
	require.Equal(t, []string{"3"}, datas(r.do(takeOp(2, "jobs")).Records))
	r.check()

	// The next two were refused by their node.
	first, given, second := c.command(putOp("jobs", "4")), c.command(putOp("jobs", "5")), c.command(putOp("jobs", "6"))
	second.GetPut().Refused = []uint64{first.Seq, given.Seq}
	require.NoError(t, answerError(r.entry(given)[0])) // after all
	require.NoError(t, answerError(r.entry(second)[0]))
	refused(true)
	require.NoError(t, answerError(r.entry(given)[0]))
	require.Equal(t, []string{"5", "6"}, datas(r.do(takeOp(3, "jobs")).Records))

	c.must(putOp("few", "a"))
	c.must(settings("few", &wire.Settings{Records: new(uint64(1)), Full: new(uint32(gearsfs.FullRefuse))}))
	first = c.command(putOp("few", "1"))
	require.ErrorIs(t, answerError(r.entry(first)[0]), gearsfs.ErrFull)
	r.do(takeOp(1, "few"))
	c.must(putOp("few", "2"))
	r.do(takeOp(1, "few"))
	refused(true)
}

func TestBlockFilesAreTakenByForce(t *testing.T) {
	r := newRig(t)
	f := r.create(gearsfs.RootIno, "f", 0o644)
	r.do(&wire.Write{Ino: uint64(f), Data: []byte("hello")})
	_, err := r.try(gearsfs.Root, takeOp(1, "data"))
	require.ErrorIs(t, err, gearsfs.ErrBlocks)
	op := takeOp(1, "data")
	op.Force = true
	require.Equal(t, []string{"hello"}, datas(r.do(op).Records))
	require.True(t, r.attr(f).Taken)
	require.Zero(t, r.attr(f).Size)
	r.do(putOp("data", "queue again"))
	require.Equal(t, []string{"queue again"}, datas(r.do(takeOp(1, "data")).Records))
	r.check()
}

func TestPeek(t *testing.T) {
	r := newRig(t)
	c := r.client(1)
	ino := gearsfs.Ino(c.must(putOp("jobs", "1", "", "", "4", "5")).Ino)
	for i := range 100 {
		c.must(putOp("jobs", fmt.Sprint(6+i)))
	}
	peek := func(what PeekWhat) []string {
		t.Helper()
		records, err := r.m.Peek(ino, "jobs", what, gearsfs.Root)
		require.NoError(t, err)
		return datas(records)
	}
	held := receipts(c.must(leaseOp(4, "jobs")))
	c.must(&wire.Settle{Receipts: held[3:], Return: true})
	c.must(&wire.Settle{Receipts: held[1:2]})
	for range 2 {
		require.Equal(t, []string{"4", "5", "6"}, peek(PeekWhat{Max: 3}))
		require.Equal(t, []string{"1", "", "4"}, peek(PeekWhat{Max: 3, Follow: true}), "leased ones too, not what is gone")
		require.Equal(t, []string{"", "4"}, peek(PeekWhat{Max: 2, Follow: true, After: 1}))
		require.Equal(t, []string{"4", "5"}, peek(PeekWhat{Max: 2, Follow: true, After: 3}))
		for _, after := range []gearsfs.Seq{4, 10, 60, 103, 104} {
			require.Equal(t, []string{fmt.Sprint(after + 1)}, peek(PeekWhat{Follow: true, After: after}))
		}
		require.Equal(t, []string{"105"}, peek(PeekWhat{Last: true}))
		_, err := r.m.Peek(ino, "jobs", PeekWhat{Follow: true, After: 105}, gearsfs.Root)
		require.ErrorIs(t, err, gearsfs.ErrEmpty)
		r.reopen()
	}
	c.must(takeOp(2, "jobs"))
	_, err := r.m.Peek(ino, "none", PeekWhat{}, gearsfs.Root)
	require.ErrorIs(t, err, gearsfs.ErrEmpty)
	c.must(sealOp("jobs", true))
	_, err = r.m.Peek(ino, "jobs", PeekWhat{Follow: true, After: 105}, gearsfs.Root)
	require.ErrorIs(t, err, gearsfs.ErrEnd)
	c.must(takeOp(1000, "jobs"))
	require.Equal(t, []string{""}, peek(PeekWhat{Last: true}), "what is leased is the newest left")
	_, err = r.m.Peek(ino, "jobs", PeekWhat{}, gearsfs.Root)
	require.ErrorIs(t, err, gearsfs.ErrEmpty, "leased records may come back")
}

func TestRowsOfTakenRecordsAreCleaned(t *testing.T) {
	r := newRig(t)
	c := r.client(1)
	ino := c.must(putOp("jobs", "pinned", "x")).Ino
	pinned := c.command(takeOp(1, "jobs"))
	first := r.entry(pinned)[0]
	many := putOp("jobs")
	for range 100 {
		many.Records = append(many.Records, &wire.NewRecord{Data: []byte("many")})
	}
	for range 200 {
		r.do(many)
		r.do(takeOp(100, "jobs"))
	}
	require.Less(t, r.recordRows(ino, "jobs"), 9000)
	r.reopen()
	require.Equal(t, datas(first.Records), datas(r.entry(pinned)[0].Records), "its row was held back")
	next := c.command(putOp("jobs"))
	next.Confirmed = next.Seq
	rows := r.recordRows(ino, "jobs")
	require.Zero(t, r.entry(next)[0].Code)
	require.Equal(t, rows-1, r.recordRows(ino, "jobs"), "nothing asks for it any more")
}

// Readers beside Apply see whole entries: pairs are put and taken in one.
func TestQueueReadersSeeWholeEntries(t *testing.T) {
	r := newRig(t)
	ino := gearsfs.Ino(r.do(putOp("jobs", "a", "b")).Ino)
	var readers sync.WaitGroup
	var stop atomic.Bool
	for range 3 {
		readers.Go(func() {
			for !stop.Load() {
				info, err := r.m.Stream(ino, "jobs", gearsfs.Root)
				assert.NoError(t, err)
				assert.Zero(t, info.Records%2, "records")
				assert.Zero(t, r.m.StreamState(ino, "jobs").Ready%2, "ready")
				records, err := r.m.Peek(ino, "jobs", PeekWhat{Max: 100}, gearsfs.Root)
				if gearsfs.CodeOf(err) != gearsfs.ErrEmpty.Code {
					assert.NoError(t, err)
				}
				assert.Zero(t, len(records)%2, "peeked")
				for i, rec := range records {
					assert.EqualValues(t, records[0].Seq+uint64(i), rec.Seq)
				}
				_, err = r.m.Sessions()
				assert.NoError(t, err)
			}
		})
	}
	c := r.client(1)
	for i := range 300 {
		c.must(putOp("jobs", "a", "b"))
		held := receipts(c.must(leaseOp(2, "jobs")))
		c.must(&wire.Settle{Receipts: held, Return: i%4 == 0})
		c.must(putOp("jobs", "a", "b"))
		c.must(takeOp(2, "jobs"))
	}
	stop.Store(true)
	readers.Wait()
}
