package file

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/wire"
)

const second = uint64(time.Second)

// tick lets time pass and applies an entry that does nothing else.
func (r *rig) tick(nanoseconds uint64) {
	r.t.Helper()
	r.now += nanoseconds
	r.do(&wire.Tick{})
}

func (r *rig) nextDue() uint64 {
	due, _ := r.m.NextDue()
	return due
}

func leaseFor(nanoseconds uint64, max uint32, keys ...string) *wire.Take {
	op := leaseOp(max, keys...)
	op.LeaseFor = nanoseconds
	return op
}

func byReceipt(nanoseconds uint64, max uint32, keys ...string) *wire.Take {
	op := leaseFor(nanoseconds, max, keys...)
	op.ByReceipt = true
	return op
}

func returned(a *wire.Answer) *wire.Settle { return &wire.Settle{Receipts: receipts(a), Return: true} }

func settings(key string, set *wire.Settings) *wire.Configure {
	return configure(key, func(c *wire.Configure) { c.Settings = set })
}

func TestALeaseEndsAtItsDeadline(t *testing.T) {
	r := newRig(t)
	c := r.client(1)
	ino := c.must(putOp("jobs", "a", "b", "c")).Ino
	leased := c.must(leaseFor(second, 2, "jobs"))
	end := r.now + second
	require.Equal(t, []uint64{end, end}, []uint64{leased.Records[0].Deadline, leased.Records[1].Deadline})
	require.Equal(t, end, r.nextDue())
	c.must(&wire.Settle{Receipts: receipts(leased)[1:]})
	require.Equal(t, end, r.nextDue())
	r.reopen()
	require.Equal(t, end, r.nextDue())
	r.tick(second - 3e6)
	require.Less(t, r.now, end)
	require.EqualValues(t, 1, r.info(ino, "jobs").Leased)
	require.Empty(t, r.seen.touched)
	r.tick(0)
	require.EqualValues(t, 0, r.info(ino, "jobs").Leased)
	require.Equal(t, []Touched{{Ino: gearsfs.Ino(ino), Key: "jobs", Ready: true, Ended: true}}, r.seen.touched)
	require.Zero(t, r.nextDue())
	_, err := c.ask(&wire.Settle{Receipts: receipts(leased)[:1]})
	require.ErrorIs(t, err, gearsfs.ErrGone)
	again := c.must(leaseOp(9, "jobs"))
	require.Equal(t, []string{"a", "c"}, datas(again.Records), "the old order")
	require.Equal(t, []uint32{2, 1}, []uint32{again.Records[0].Deliveries, again.Records[1].Deliveries})
	require.Zero(t, again.Records[0].Deadline)
	require.Zero(t, r.nextDue())
	r.check()
}

func TestARetriedLeaseTellsItsDeadline(t *testing.T) {
	r := newRig(t)
	c := r.client(1)
	c.must(putOp("jobs", "a", "b"))
	for _, op := range []*wire.Take{leaseFor(second, 1, "jobs"), byReceipt(second, 1, "jobs")} {
		cmd := c.command(op)
		first, err := r.again(cmd)
		require.NoError(t, err)
		again, err := r.again(cmd)
		require.NoError(t, err)
		require.Equal(t, first.String(), again.String())
	}
}

// What is due is done in the table's order, a bounded number per entry, before
// the entry's commands.
func TestTimersAreBounded(t *testing.T) {
	r := newRig(t)
	c := r.client(1)
	const leases = 2*timersMax + 100
	var records []string
	for i := range leases {
		records = append(records, fmt.Sprint(i))
	}
	ino := c.must(putOp("jobs", records...)).Ino
	c.must(leaseFor(second, leases, "jobs"))
	due := r.nextDue()
	r.now += second
	taken := c.must(takeOp(leases, "jobs"))
	require.Equal(t, records[:timersMax], datas(taken.Records), "the entry's own take has what is due")
	require.Equal(t, due, r.nextDue(), "there is more")
	r.reopen()
	require.Equal(t, due, r.nextDue())
	r.check()
	r.tick(0)
	require.EqualValues(t, timersMax, r.info(ino, "jobs").Records)
	r.tick(0)
	require.EqualValues(t, leases-timersMax, r.info(ino, "jobs").Records)
	require.Zero(t, r.nextDue())
	require.Equal(t, records[timersMax:], datas(c.must(takeOp(leases, "jobs")).Records))
	r.check()
}

func TestExtend(t *testing.T) {
	r := newRig(t)
	c, other := r.client(1), r.client(2)
	ino := c.must(putOp("jobs", "a", "b")).Ino
	short, open := c.must(leaseFor(second, 1, "jobs")), c.must(leaseOp(1, "jobs"))
	extend := func(a *wire.Answer, by uint64) *wire.Settle { return &wire.Settle{Receipts: receipts(a), Extend: by} }
	r.tick(second / 2)
	c.must(extend(short, second))
	require.Equal(t, r.now+second, r.nextDue())
	c.must(extend(open, second))
	require.Equal(t, r.now+second-1e6, r.nextDue(), "one without a deadline stays so")
	_, err := other.ask(extend(open, second))
	require.ErrorIs(t, err, gearsfs.ErrGone)
	c.must(extend(short, second/4))
	r.tick(second / 2)
	require.EqualValues(t, 1, r.info(ino, "jobs").Leased)
	_, err = c.ask(extend(short, second))
	require.ErrorIs(t, err, gearsfs.ErrGone)
	_, err = c.ask(&wire.Settle{Receipts: receipts(open), Extend: 1, Return: true})
	require.ErrorIs(t, err, gearsfs.ErrInvalid)
	c.must(extend(open, ^uint64(0)))
	r.check()
}

// A lease that is held by its receipt outlives its session, and whoever has the
// receipt and may take from the file ends it.
func TestLeasesByReceipt(t *testing.T) {
	r := newRig(t)
	c, other := r.client(1), r.client(2)
	ino := c.must(putOp("jobs", "a", "b", "c", "d")).Ino
	leased := c.must(byReceipt(second, 3, "jobs"))
	own := c.must(leaseFor(second, 1, "jobs"))
	r.do(&wire.EndSession{SessionMinted: uint64(c.id.Minted), SessionSalt: c.id.Salt})
	require.EqualValues(t, 3, r.info(ino, "jobs").Leased, "its own came back")
	known, err := r.m.Sessions()
	require.NoError(t, err)
	require.Empty(t, known)
	_, err = other.ask(&wire.Settle{Receipts: receipts(own)})
	require.ErrorIs(t, err, gearsfs.ErrGone)
	forged := receipts(leased)[:1]
	forged[0].Fence++
	_, err = other.ask(&wire.Settle{Receipts: forged})
	require.ErrorIs(t, err, gearsfs.ErrGone)
	stranger := gearsfs.Caller{UID: 7, GIDs: []uint32{8}}
	_, err = r.try(stranger, &wire.Settle{Receipts: receipts(leased)})
	require.ErrorIs(t, err, gearsfs.ErrAccess)
	other.must(&wire.Settle{Receipts: receipts(leased)[:1]})
	_, err = r.try(gearsfs.Root, &wire.Settle{Receipts: receipts(leased)[1:2], Return: true})
	require.NoError(t, err, "a session is not needed")
	r.reopen()
	r.tick(second)
	require.EqualValues(t, 3, r.info(ino, "jobs").Records)
	for _, op := range []*wire.Take{byReceipt(0, 1, "jobs"), {Target: inRoot, Keys: []string{"jobs"}, LeaseFor: 1},
		{Target: inRoot, Keys: []string{"jobs"}, Tries: 1}} {
		_, err := c.ask(op)
		require.ErrorIs(t, err, gearsfs.ErrInvalid)
	}
	_, err = r.try(gearsfs.Root, byReceipt(second, 1, "jobs"))
	require.NoError(t, err)
	r.check()
}

func TestReturnWithADelay(t *testing.T) {
	r := newRig(t)
	c := r.client(1)
	ino := c.must(putOp("jobs", "a", "b", "c")).Ino
	leased := c.must(leaseFor(second, 1, "jobs"))
	c.must(sealOp("jobs", true))
	back := returned(leased)
	back.Delay = 5 * second
	c.must(back)
	require.Equal(t, []Touched{{Ino: gearsfs.Ino(ino), Key: "jobs", Ended: true}}, r.seen.touched)
	require.Equal(t, r.now+5*second, r.nextDue(), "in the place of the lease's deadline")
	require.EqualValues(t, 1, r.info(ino, "jobs").Delayed)
	require.EqualValues(t, 1, r.info(ino, "jobs").Head.Seq)
	_, err := c.ask(&wire.Settle{Receipts: receipts(leased)})
	require.ErrorIs(t, err, gearsfs.ErrGone)
	require.Equal(t, []string{"b"}, datas(c.must(takeOp(1, "jobs")).Records))
	require.Equal(t, []string{"c"}, datas(c.must(takeOp(1, "jobs")).Records))
	_, err = c.ask(takeOp(1, "jobs"))
	require.ErrorIs(t, err, gearsfs.ErrEmpty, "a delayed one may come")
	require.False(t, new(r.m.StreamState(gearsfs.Ino(ino), "jobs")).Drained())
	r.check()
	r.tick(5 * second)
	require.Equal(t, []Touched{{Ino: gearsfs.Ino(ino), Key: "jobs", Ready: true}}, r.seen.touched)
	again := c.must(takeOp(1, "jobs"))
	require.EqualValues(t, 2, again.Records[0].Deliveries)
	_, err = c.ask(takeOp(1, "jobs"))
	require.ErrorIs(t, err, gearsfs.ErrEnd)
	r.check()
}

// A record that comes back too often, in whatever way, moves to the dead stream.
func TestTries(t *testing.T) {
	for name, comesBack := range map[string]func(r *rig, c *client, a *wire.Answer){
		"returned": func(_ *rig, c *client, a *wire.Answer) { c.must(returned(a)) },
		"returned with a delay": func(r *rig, c *client, a *wire.Answer) {
			op := returned(a)
			op.Delay = second / 10
			c.must(op)
			r.tick(second / 10)
		},
		"deadline": func(r *rig, _ *client, _ *wire.Answer) { r.tick(second) },
		"end of session": func(r *rig, c *client, _ *wire.Answer) {
			r.do(&wire.EndSession{SessionMinted: uint64(c.id.Minted), SessionSalt: c.id.Salt})
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			c := r.client(1)
			put := putOp("jobs", "bad", "good")
			put.Records[0].Type = "text"
			ino := c.must(put).Ino
			c.must(settings("jobs", &wire.Settings{Tries: new(uint32(3))}))
			c.must(limitOp("jobs.dead", 1, 1)) // does not matter
			for n := uint32(1); n <= 3; n++ {
				require.Zero(t, r.info(ino, "jobs.dead").Records)
				a := c.must(leaseFor(second, 1, "jobs"))
				require.Equal(t, []any{"bad", n}, []any{string(a.Records[0].Data), a.Records[0].Deliveries})
				comesBack(r, c, a)
				r.check()
			}
			require.EqualValues(t, 1, r.info(ino, "jobs").Records)
			require.Equal(t, []string{"good"}, datas(c.must(takeOp(9, "jobs")).Records))
			dead := c.must(takeOp(9, "jobs.dead"))
			require.Equal(t, []string{"bad"}, datas(dead.Records))
			require.EqualValues(t, "text", dead.Records[0].Type)
			require.EqualValues(t, 1, dead.Records[0].Deliveries)
			r.check()
		})
	}
}

func TestTriesOfTheLeaseAndTheReturn(t *testing.T) {
	r := newRig(t)
	c := r.client(1)
	ino := c.must(putOp("jobs", "a", "b", "c")).Ino
	c.must(settings("jobs", &wire.Settings{Tries: new(uint32(1))}))
	op := leaseOp(2, "jobs")
	op.Tries = 2
	leased := receipts(c.must(op))
	c.must(&wire.Settle{Receipts: leased[:1], Return: true})
	require.Zero(t, r.info(ino, "jobs.dead").Records, "the lease says more often")
	c.must(&wire.Settle{Receipts: leased[1:], Return: true, Tries: 1})
	require.Contains(t, r.seen.touched, Touched{Ino: gearsfs.Ino(ino), Key: "jobs.dead", Ready: true, Appended: true})
	require.EqualValues(t, 1, r.info(ino, "jobs.dead").Records, "the return says less often")

	long := strings.Repeat("k", gearsfs.KeyBytesMax-2)
	c.must(putOp(long, "x"))
	c.must(settings(long, &wire.Settings{Tries: new(uint32(1))}))
	c.must(returned(c.must(leaseOp(1, long))))
	require.EqualValues(t, 1, r.info(ino, gearsfs.Key(long)).Records, "there is no key for its dead")
	r.check()
}

// What can't be moved in one entry is held by nobody until the next.
func TestDeadRecordsAreMovedInPieces(t *testing.T) {
	r := newRig(t)
	c := r.client(1)
	const n = 5
	var ino uint64
	for range n {
		ino = c.must(putOp("jobs", string(make([]byte, gearsfs.BatchBytesMax/2)))).Ino
	}
	c.must(settings("jobs", &wire.Settings{Tries: new(uint32(1))}))
	var held []*wire.Receipt
	for range n {
		held = append(held, receipts(c.must(leaseOp(1, "jobs")))...)
	}
	c.must(&wire.Settle{Receipts: held, Return: true})
	for dead := uint64(2); dead < n; dead += 2 {
		info := r.info(ino, "jobs.dead")
		require.Equal(t, dead, info.Records)
		require.EqualValues(t, n-dead, r.info(ino, "jobs").Leased)
		_, err := c.ask(&wire.Settle{Receipts: held[n-1:]})
		require.ErrorIs(t, err, gearsfs.ErrGone)
		r.check()
	}
	for ; r.nextDue() != 0; r.tick(0) {
		require.LessOrEqual(t, r.nextDue(), r.now)
	}
	require.EqualValues(t, n, r.info(ino, "jobs.dead").Records)
	require.Zero(t, r.info(ino, "jobs").Leased)
	r.check()
}

func TestDelayedPuts(t *testing.T) {
	r := newRig(t)
	c := r.client(1)
	ino := c.must(putOp("jobs", "a")).Ino
	late := putOp("jobs", "b", "c")
	late.Delay = 2 * second
	a := c.must(late)
	require.Equal(t, []Touched{{Ino: gearsfs.Ino(ino), Key: "jobs", Appended: true}}, r.seen.touched)
	require.Equal(t, []uint64{2, 3}, []uint64{a.FirstSeq, a.LastSeq})
	at := putOp("jobs", "d")
	at.At = r.now + second
	c.must(at)
	over := putOp("jobs", "e")
	over.At = r.now
	c.must(over)
	info := r.info(ino, "jobs")
	require.Equal(t, []uint64{2, 3, 5}, []uint64{info.Records, info.Delayed, info.Bytes})
	r.check()
	peek := func(what PeekWhat) []string {
		what.Max = 9
		records, err := r.m.Peek(gearsfs.Ino(ino), "jobs", what, gearsfs.Root)
		require.NoError(t, err)
		return datas(records)
	}
	require.Equal(t, []string{"a", "e"}, peek(PeekWhat{}))
	require.Equal(t, []string{"b", "c", "d", "e"}, peek(PeekWhat{Follow: true, After: 1}), "a follower misses nothing")
	cmd := c.command(takeOp(9, "jobs"))
	taken, err := r.again(cmd)
	require.NoError(t, err)
	require.Equal(t, []string{"a", "e"}, datas(taken.Records))
	again, err := r.again(cmd)
	require.NoError(t, err)
	require.Equal(t, taken.String(), again.String())
	require.EqualValues(t, 2, r.info(ino, "jobs").Head.Seq)
	r.reopen()
	require.Equal(t, at.At, r.nextDue())
	r.tick(second)
	require.Equal(t, []string{"d"}, peek(PeekWhat{}))
	r.tick(second)
	cmd = c.command(leaseOp(9, "jobs"))
	taken, err = r.again(cmd)
	require.NoError(t, err)
	require.Equal(t, []string{"b", "c", "d"}, datas(taken.Records), "each at its place")
	require.EqualValues(t, 1, taken.Records[0].Deliveries)
	again, err = r.again(cmd)
	require.NoError(t, err)
	require.Equal(t, taken.String(), again.String())
	c.must(&wire.Settle{Receipts: receipts(taken)})
	require.Zero(t, r.nextDue())
	c.must(late)
	c.must(configure("jobs", func(c *wire.Configure) { c.Drop = true }))
	require.Zero(t, r.nextDue(), "what is due goes with the stream")
	r.check()
}

func TestAge(t *testing.T) {
	r := newRig(t)
	c := r.client(1)
	ino := c.must(putOp("jobs", "a", "b")).Ino
	first := r.now
	c.must(settings("jobs", &wire.Settings{Age: new(10 * second)}))
	require.Equal(t, first+10*second, r.nextDue())
	leased := c.must(leaseOp(1, "jobs"))
	r.tick(5 * second)
	c.must(putOp("jobs", "c"))
	late := putOp("jobs", "d")
	late.Delay = 100 * second
	c.must(late)
	require.Equal(t, first+10*second, r.nextDue())
	r.reopen()
	r.tick(5 * second)
	info := r.info(ino, "jobs")
	require.Equal(t, []uint64{1, 1, 1, 1}, []uint64{info.Records, info.Leased, info.Delayed, info.Discarded}, "b is too old")
	require.Contains(t, r.seen.touched, Touched{Ino: gearsfs.Ino(ino), Key: "jobs", Room: true})
	r.check()
	c.must(returned(leased))
	require.Equal(t, first+10*second, r.nextDue(), "a is too old, too")
	r.tick(0)
	require.Equal(t, []string{"c"}, datas(c.must(takeOp(9, "jobs")).Records))
	require.EqualValues(t, 2, r.info(ino, "jobs").Discarded)
	r.tick(20 * second)
	require.NotZero(t, r.nextDue(), "that of the delay")
	require.Greater(t, r.nextDue(), r.now)
	c.must(settings("jobs", &wire.Settings{Age: new(uint64(0))}))
	r.tick(100 * second)
	require.Equal(t, []string{"d"}, datas(c.must(takeOp(9, "jobs")).Records))
	require.Zero(t, r.nextDue())
	r.check()
}

func TestAgeIsBoundedByTheEntry(t *testing.T) {
	r := newRig(t)
	c := r.client(1)
	var records []string
	for range timersMax + 10 {
		records = append(records, "x")
	}
	ino := c.must(putOp("data", records...)).Ino
	c.must(settings("data", &wire.Settings{Age: new(second)}))
	r.tick(second)
	require.EqualValues(t, 10, r.info(ino, "data").Records)
	require.LessOrEqual(t, r.nextDue(), r.now)
	require.True(t, r.attr(gearsfs.Ino(ino)).Taken)
	r.check()
	r.tick(0)
	require.EqualValues(t, timersMax+10, r.info(ino, "data").Discarded)
	require.Zero(t, r.attr(gearsfs.Ino(ino)).Size)
	require.Zero(t, r.nextDue())
	r.check()
}

func TestWhatAFullStreamDoes(t *testing.T) {
	r := newRig(t)
	c := r.client(1)
	ino := c.must(putOp("jobs", "a", "b")).Ino
	set := &wire.Settings{Records: new(uint64(3)), Bytes: new(uint64(100)), Full: new(uint32(gearsfs.FullRefuse))}
	c.must(settings("jobs", set))
	require.Contains(t, r.seen.touched, Touched{Ino: gearsfs.Ino(ino), Key: "jobs", Room: true})
	_, err := c.ask(putOp("jobs", "c", "d"))
	require.ErrorIs(t, err, gearsfs.ErrFull)
	c.must(putOp("jobs", "c"))
	require.Equal(t, gearsfs.FullRefuse, r.m.StreamState(gearsfs.Ino(ino), "jobs").Full)

	leased := c.must(leaseOp(1, "jobs"))
	late := putOp("jobs", "d")
	late.Delay = 1000 * second
	set = &wire.Settings{Full: new(uint32(gearsfs.FullDropOldest))}
	c.must(settings("jobs", set))
	c.must(late)
	_, err = c.ask(&wire.Settle{Receipts: receipts(leased)})
	require.ErrorIs(t, err, gearsfs.ErrGone, "it was the oldest")
	c.must(putOp("jobs", "e", "f"))
	info := r.info(ino, "jobs")
	require.Equal(t, []uint64{2, 1, 3}, []uint64{info.Records, info.Delayed, info.Discarded})
	r.check()
	c.must(putOp("jobs", "g"))
	require.Zero(t, r.nextDue(), "delayed ones go as well")
	require.Equal(t, []string{"e", "f", "g"}, datas(c.must(takeOp(9, "jobs")).Records))
	_, err = c.ask(putOp("jobs", "1", "2", "3", "4"))
	require.ErrorIs(t, err, gearsfs.ErrTooBig)
	_, err = c.ask(putOp("jobs", string(make([]byte, 101))))
	require.ErrorIs(t, err, gearsfs.ErrTooBig)
	info = r.info(ino, "jobs")
	require.Equal(t, gearsfs.Limits{Records: 3, Bytes: 100}, info.Limits)
	require.Equal(t, gearsfs.Settings{Full: gearsfs.FullDropOldest}, info.Settings)
	r.check()
}

// A put that waited for room is refused once the stream refuses.
func TestWaitingPutsMeetANewPolicy(t *testing.T) {
	r := newRig(t)
	c := r.client(1)
	c.must(putOp("jobs", "a"))
	c.must(limitOp("jobs", 1, 0))
	waits := c.command(putOp("jobs", "b"))
	_, err := r.again(waits)
	require.ErrorIs(t, err, gearsfs.ErrFull)
	c.must(settings("jobs", &wire.Settings{Full: new(uint32(gearsfs.FullRefuse))}))
	waits.GetPut().Retry = true
	_, err = r.again(waits)
	require.ErrorIs(t, err, gearsfs.ErrFull)
	c.must(takeOp(1, "jobs"))
	c.must(putOp("jobs", "c")) // does not wait behind it
	require.Equal(t, []string{"c"}, datas(c.must(takeOp(9, "jobs")).Records))
}

// Rows of what is dropped for newer records don't pile up.
func TestDroppedRowsAreCleaned(t *testing.T) {
	r := newRig(t)
	c := r.client(1)
	ino := c.must(putOp("jobs")).Ino
	c.must(settings("jobs", &wire.Settings{Records: new(uint64(100)), Full: new(uint32(gearsfs.FullDropOldest))}))
	const puts = 400
	for i := range puts {
		op := putOp("jobs", slices.Repeat([]string{"x"}, 50)...)
		c.must(op)
		if i%20 == 0 {
			require.LessOrEqual(t, r.recordRows(ino, "jobs"), 9000)
		}
	}
	require.EqualValues(t, puts*50-100, r.info(ino, "jobs").Discarded)
	r.check()
}

func TestSettings(t *testing.T) {
	r := newRig(t)
	c := r.client(1)
	ino := c.must(putOp("jobs")).Ino
	c.must(settings("jobs", &wire.Settings{Records: new(uint64(5)), Age: new(second), Full: new(uint32(1)), Tries: new(uint32(4)), Memory: new(true)}))
	r.reopen()
	info := r.info(ino, "jobs")
	require.Equal(t, gearsfs.Limits{Records: 5}, info.Limits)
	require.Equal(t, gearsfs.Settings{Age: time.Second, Full: gearsfs.FullRefuse, Tries: 4, Memory: true}, info.Settings)
	c.must(settings("jobs", &wire.Settings{Bytes: new(uint64(7)), Memory: new(false)}))
	require.Equal(t, gearsfs.Limits{Records: 5, Bytes: 7}, r.info(ino, "jobs").Limits)
	c.must(putOp("jobs", "x"))
	for _, tt := range []struct {
		key  string
		set  *wire.Settings
		want error
	}{
		{"jobs", &wire.Settings{Full: new(uint32(3))}, gearsfs.ErrInvalid},
		{"jobs", &wire.Settings{Age: new(uint64(1) << 63)}, gearsfs.ErrInvalid},
		{"jobs", &wire.Settings{Memory: new(true)}, gearsfs.ErrInvalid},
		{"data", &wire.Settings{Memory: new(true)}, gearsfs.ErrUnsupported},
	} {
		_, err := c.ask(settings(tt.key, tt.set))
		require.ErrorIs(t, err, tt.want, "%v", tt.set)
	}
	require.Zero(t, r.info(ino, "data").Version, "a refused change makes no stream")
	r.check()
}

// The index of dues is the table's, whatever is added and removed.
func TestTimersAgainstList(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	var timers timers
	var list []uint64
	for i := range 20_000 {
		if len(list) == 0 || rng.IntN(20_000) > i {
			due := rng.Uint64N(50) + uint64(i/100)
			timers.add(due)
			list = append(list, due)
		} else {
			j := rng.IntN(len(list))
			timers.remove(list[j])
			list = slices.Delete(list, j, j+1)
		}
		if rng.IntN(4) == 0 {
			timers.tidy()
			if len(list) == 0 {
				require.Empty(t, timers.dues)
			} else {
				require.Equal(t, slices.Min(list), timers.dues[0])
			}
			require.LessOrEqual(t, len(timers.dues)+len(timers.gone), 3*len(list)+200)
		}
	}
}

// Check finds timers that belong to nothing, and marks without one.
func TestCheckFindsWrongTimers(t *testing.T) {
	r := newRig(t)
	c := r.client(1)
	c.must(putOp("jobs", "a"))
	c.must(leaseFor(second, 1, "jobs"))
	r.check()
	due, err := r.m.dueTimers(r.nextDue())
	require.NoError(t, err)
	require.Len(t, due, 1)
	r.m.removeTimer(due[0])
	require.NoError(t, r.data.State.Commit())
	require.ErrorContains(t, errors.Join(r.m.Check()...), "1 timers are missing")
	due[0].Due++
	r.m.setTimer(due[0])
	require.NoError(t, r.data.State.Commit())
	require.ErrorContains(t, errors.Join(r.m.Check()...), "is not known to it")
	r.m.timers.tidy()
	r.now += 2 * second
	_, err = r.m.Apply(r.index+1, 1, &wire.Entry{Time: r.now})
	require.ErrorIs(t, err, gearsfs.ErrDamaged)
}

// A stored answer refers to its records alone, also where those between have
// the same position.
func TestARetriedTakePassesByDelayedRecords(t *testing.T) {
	r := newRig(t)
	c := r.client(1)
	c.must(putOp("jobs", ""))
	late := putOp("jobs", "")
	late.Delay = second
	c.must(late)
	c.must(putOp("jobs", "", "x"))
	for _, op := range []*wire.Take{leaseOp(9, "jobs"), takeOp(9, "jobs")} {
		cmd := c.command(op)
		taken, err := r.again(cmd)
		require.NoError(t, err)
		require.Len(t, taken.Records, 3)
		again, err := r.again(cmd)
		require.NoError(t, err)
		require.Equal(t, taken.String(), again.String())
		if op.Lease {
			c.must(returned(taken))
		}
	}
	r.check()
}
