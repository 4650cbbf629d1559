package file

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/wire"
)

// tx makes a transaction of operations.
func tx(ops ...any) *wire.Transact {
	t := &wire.Transact{}
	for _, op := range ops {
		s := &wire.Step{}
		switch op := op.(type) {
		case *wire.Condition:
			s.Op = &wire.Step_Condition{Condition: op}
		case *wire.Take:
			s.Op = &wire.Step_Take{Take: op}
		case *wire.Look:
			s.Op = &wire.Step_Look{Look: op}
		case *wire.Settle:
			s.Op = &wire.Step_Settle{Settle: op}
		case *wire.Update:
			s.Op = &wire.Step_Update{Update: op}
		case *wire.Put:
			s.Op = &wire.Step_Put{Put: op}
		}
		t.Steps = append(t.Steps, s)
	}
	return t
}

func lookOp(key string, max uint32) *wire.Look { return &wire.Look{Target: inRoot, Key: key, Max: max} }

func condition(key string, set func(*wire.Condition)) *wire.Condition {
	c := &wire.Condition{Target: inRoot, Key: key}
	set(c)
	return c
}

// fails says which step of a transaction must fail, and how.
func (c *client) fails(step uint32, want error, ops ...any) {
	c.t.Helper()
	before := c.m.volume.NextFence
	a, err := c.ask(tx(ops...))
	require.ErrorIs(c.t, err, want)
	require.Equal(c.t, step, a.FailedStep, "%v", err)
	require.Equal(c.t, before, c.m.volume.NextFence)
	require.Empty(c.t, c.seen.touched)
	require.Empty(c.t, a.Steps)
	c.check()
}

func TestTransact(t *testing.T) {
	r := newRig(t)
	c := r.client(1)
	ino := c.must(putOp("in", "a", "b", "c")).Ino
	leased := c.must(leaseOp(1, "in"))
	cmd := c.command(tx(
		putOp("out", "result"),
		lookOp("in", 2),
		takeOp(1, "in"),
		&wire.Settle{Receipts: receipts(leased)},
		condition("out", func(c *wire.Condition) { c.Empty = ptr(true) }),
		updateOp("state", "done"),
		leaseOp(1, "none", "in"),
	))
	a := r.entry(cmd)[0]
	require.NoError(t, answerError(a))
	require.Len(t, a.Steps, 7)
	require.Equal(t, []string{"b", "c"}, datas(a.Steps[1].Records), "as it was before")
	require.Equal(t, []string{"b"}, datas(a.Steps[2].Records))
	require.Equal(t, []string{"c"}, datas(a.Steps[6].Records))
	require.Equal(t, leased.Records[0].Fence+1, a.Steps[6].Records[0].Fence)
	require.Equal(t, []uint64{1, 1}, []uint64{a.Steps[0].FirstSeq, a.Steps[5].LastSeq})
	for _, step := range []int{0, 1, 2, 5, 6} {
		require.Equal(t, ino, a.Steps[step].Ino)
	}
	for _, key := range []gearsfs.Key{"in", "out", "state"} {
		require.True(t, hasTouched(r.seen.touched, key), key)
	}
	info := r.info(ino, "in")
	require.Equal(t, []uint64{0, 1}, []uint64{info.Records, info.Leased})
	require.Equal(t, a.String(), r.entry(cmd)[0].String(), "a retry")
	r.reopen()
	require.Equal(t, a.String(), r.entry(cmd)[0].String(), "a retry after a restart")
	r.check()
}

func hasTouched(touched []Touched, key gearsfs.Key) bool {
	for _, t := range touched {
		if t.Key == key {
			return true
		}
	}
	return false
}

// TestTransactIsAllOrNothing: a step that can't be done leaves all undone, and
// the transaction says which.
func TestTransactIsAllOrNothing(t *testing.T) {
	r := newRig(t)
	c := r.client(1)
	c.must(putOp("x", "1", "2"))
	held := receipts(c.must(leaseOp(1, "x")))
	c.must(putOp("sealed"))
	c.must(sealOp("sealed", true))
	c.must(putOp("full", "1"))
	c.must(limitOp("full", 1, 0))
	before := string(r.dump())
	changes := []any{putOp("y", "no"), updateOp("z", "no"), &wire.Settle{Receipts: held}, takeOp(1, "x")}
	all := func(op any) []any { return append(changes[:len(changes):len(changes)], op) }

	c.fails(5, gearsfs.ErrEmpty, all(takeOp(1, "x"))...)
	c.fails(5, gearsfs.ErrEmpty, all(takeOp(1, "none"))...)
	c.fails(5, gearsfs.ErrEnd, all(takeOp(1, "sealed"))...)
	c.fails(5, gearsfs.ErrSealed, all(putOp("sealed", "x"))...)
	c.fails(5, gearsfs.ErrFull, all(putOp("full", "x"))...)
	c.fails(5, gearsfs.ErrGone, all(&wire.Settle{Receipts: held})...)
	c.fails(5, gearsfs.ErrUnmet, all(ifSeq(updateOp("x", "x"), 3))...)
	c.fails(5, gearsfs.ErrUnmet, all(condition("x", func(c *wire.Condition) { c.AtLeast = 2 }))...)
	c.fails(5, gearsfs.ErrKey, all(putOp("a/b", "x"))...)
	c.fails(5, gearsfs.ErrKey, all(lookOp("", 1))...)
	c.fails(5, gearsfs.ErrNotFound, all(&wire.Put{Target: &wire.Target{Dir: 99, Name: "x"}, Key: "k"})...)
	c.fails(5, gearsfs.ErrStale, all(&wire.Look{Target: &wire.Target{Ino: 99}, Key: "k"})...)
	c.fails(5, gearsfs.ErrUnknownOp, all(nil)...)
	c.fails(3, gearsfs.ErrSealed, takeOp(1, "none"), putOp("full", "x"), putOp("sealed", "x")) // what can't ever be first
	c.fails(1, gearsfs.ErrEmpty, takeOp(1, "none"), putOp("full", "x"))
	c.fails(0, gearsfs.ErrInvalid)
	c.fails(0, gearsfs.ErrInvalid, make([]any, 65)...)
	require.Equal(t, untimed(before), untimed(string(r.dump())))
}

// untimed takes the volume's row, which counts entries, out of a dump.
func untimed(dump string) string { return dump[:len(dump)-len(dump[lastLine(dump):])] }

func lastLine(dump string) int {
	for i := len(dump) - 2; i > 0; i-- {
		if dump[i] == '\n' {
			return i + 1
		}
	}
	return 0
}

func TestTransactTallies(t *testing.T) {
	r := newRig(t)
	c := r.client(1)
	ino := c.must(putOp("q", "a", "b", "c")).Ino
	c.fails(2, gearsfs.ErrEmpty, takeOp(2, "q"), takeOp(2, "q"))
	a := c.must(tx(takeOp(2, "q"), leaseOp(1, "q")))
	require.Equal(t, []string{"a", "b"}, datas(a.Steps[0].Records))
	require.Equal(t, []string{"c"}, datas(a.Steps[1].Records))

	// A put sees the room that takes and acknowledgements make.
	c.must(limitOp("q", 3, 0))
	c.must(putOp("q", "d", "e"))
	c.fails(1, gearsfs.ErrFull, putOp("q", "f"))
	c.fails(2, gearsfs.ErrFull, putOp("q", "f", "g"), putOp("q", "h"), takeOp(2, "q"))
	c.fails(1, gearsfs.ErrFull, putOp("q", "f"), leaseOp(1, "q"))
	c.fails(2, gearsfs.ErrFull, &wire.Settle{Receipts: receipts(a.Steps[1]), Return: true}, putOp("q", "f"))
	c.must(tx(putOp("q", "f", "g"), &wire.Settle{Receipts: receipts(a.Steps[1])}, takeOp(1, "q")))
	require.Equal(t, []string{"e", "f", "g"}, c.left("q"))
	c.must(tx(putOp("q", "i"), updateOp("q", "h"), putOp("q", "j"))) // an update makes room for the puts, wherever it stands
	require.Equal(t, []string{"h", "i", "j"}, c.left("q"))
	c.must(tx(takeOp(3, "q"), updateOp("q", "k")))
	require.Equal(t, []string{"k"}, c.left("q"))

	// By bytes.
	c.must(limitOp("q", 0, 10))
	c.must(putOp("q", "123456789"))
	c.fails(2, gearsfs.ErrFull, takeOp(1, "q"), putOp("q", "12"))
	c.must(tx(takeOp(1, "q"), putOp("q", "1")))

	// Two steps on one name make one file; sealing counts, too.
	g := &wire.Target{Dir: 1, Name: "g"}
	putG := func(key string) *wire.Put {
		return &wire.Put{Target: g, Key: key, Mode: 0o600, Records: []*wire.NewRecord{{}}}
	}
	seal := putG("a")
	seal.Seal = true
	c.fails(2, gearsfs.ErrSealed, seal, putG("a"))
	a = c.must(tx(putG("a"), putG("b"), seal))
	require.Equal(t, a.Steps[0].Ino, a.Steps[1].Ino)
	require.NotEqual(t, ino, a.Steps[0].Ino)
	require.EqualValues(t, 0o600, r.attr(gearsfs.Ino(a.Steps[0].Ino)).Mode&0o777)
	require.True(t, r.info(a.Steps[0].Ino, "a").Sealed)
	require.EqualValues(t, 2, a.Steps[2].LastSeq)
	// The update's condition counts what updates before it do.
	c.must(tx(ifSeq(updateOp("reg", "x"), 0), ifSeq(updateOp("reg", "y"), 1)))
	c.fails(2, gearsfs.ErrUnmet, ifSeq(updateOp("reg", "x"), 2), ifSeq(updateOp("reg", "y"), 2))
	r.check()
}

// left shows what can be taken of a stream.
func (c *client) left(key string) []string {
	c.t.Helper()
	a, err := c.m.Lookup(gearsfs.RootIno, "f", gearsfs.Root)
	require.NoError(c.t, err)
	records, err := c.m.Peek(a.Ino, gearsfs.Key(key), PeekWhat{Max: 1000}, gearsfs.Root)
	if err != nil {
		require.ErrorIs(c.t, err, gearsfs.ErrEmpty)
	}
	return datas(records)
}

func TestConditions(t *testing.T) {
	r := newRig(t)
	c := r.client(1)
	for _, set := range []func(*wire.Condition){
		func(c *wire.Condition) { c.Empty = ptr(true) },
		func(c *wire.Condition) { c.NewestSeq = ptr(uint64(0)) },
		func(c *wire.Condition) { c.HeadSeq = ptr(uint64(0)) },
		func(c *wire.Condition) {},
	} {
		c.must(tx(condition("q", set))) // of a file that is missing
	}
	c.fails(1, gearsfs.ErrUnmet, condition("q", func(c *wire.Condition) { c.AtLeast = 1 }))
	ino := c.must(putOp("q", "a", "b", "c")).Ino
	leased := c.must(leaseOp(1, "q"))
	yes := func(set func(*wire.Condition)) { t.Helper(); c.must(tx(condition("q", set))) }
	no := func(set func(*wire.Condition)) { t.Helper(); c.fails(1, gearsfs.ErrUnmet, condition("q", set)) }
	yes(func(c *wire.Condition) {
		c.AtLeast, c.HeadSeq, c.NewestSeq, c.Empty = 2, ptr(uint64(2)), ptr(uint64(3)), ptr(false)
	})
	no(func(c *wire.Condition) { c.AtLeast = 3 })
	no(func(c *wire.Condition) { c.HeadSeq = ptr(uint64(1)) })
	no(func(c *wire.Condition) { c.NewestSeq = ptr(uint64(2)) })
	no(func(c *wire.Condition) { c.Empty = ptr(true) })
	c.must(takeOp(2, "q"))
	no(func(c *wire.Condition) { c.Empty = ptr(true) }) // one is leased
	yes(func(c *wire.Condition) { c.HeadSeq = ptr(uint64(0)) })
	c.must(&wire.Settle{Receipts: receipts(leased), Return: true})
	yes(func(c *wire.Condition) { c.HeadSeq = ptr(uint64(1)) })
	c.must(takeOp(1, "q"))
	yes(func(c *wire.Condition) { c.Empty = ptr(true) })

	r.do(&wire.SetAttr{Ino: ino, Mode: ptr(uint32(0o600))})
	a := r.entry(by(c.id, as(gearsfs.Nobody, tx(condition("q", func(*wire.Condition) {})))))[0]
	require.ErrorIs(t, answerError(a), gearsfs.ErrAccess)
}

func TestTransactIDs(t *testing.T) {
	r := newRig(t)
	c := r.client(1)
	put := func(key, id string) *wire.Put {
		return &wire.Put{Target: inRoot, Key: key, Records: []*wire.NewRecord{withID(id, id)}}
	}
	a := c.must(tx(put("q", "A"), put("q", "A"), put("p", "A"), &wire.Update{Target: inRoot, Key: "q", Record: withID("B", "B")}))
	require.Equal(t, []string{"B", "A"}, c.left("q"))
	var seqs []uint64
	for _, s := range a.Steps {
		seqs = append(seqs, s.FirstSeq)
	}
	require.Equal(t, []uint64{2, 2, 1, 1}, seqs)
	c.must(limitOp("q", 1, 0))
	c.must(tx(put("q", "B"), put("q", "A"))) // nothing goes in, so nothing needs room
	require.Equal(t, []string{"B", "A"}, c.left("q"))
	r.check()
}

// TestTransactKeepsWhatItTook: a retry gives the records of takes and looks
// again, whatever became of the streams, in the transaction itself and after.
func TestTransactKeepsWhatItTook(t *testing.T) {
	r := newRig(t)
	c, other := r.client(1), r.client(2)
	c.must(putOp("q", "first", "a", "b", "c", "d"))
	c.must(leaseOp(1, "q")) // so that what is taken stands behind the head
	cmd := c.command(tx(takeOp(2, "q"), updateOp("q", "new"), lookOp("q", 9), takeOp(1, "q")))
	a := r.entry(cmd)[0]
	require.NoError(t, answerError(a))
	require.Equal(t, []string{"new"}, c.left("q"))
	again := func() {
		t.Helper()
		require.Equal(t, a.String(), r.entry(cmd)[0].String())
		r.check()
	}
	again()
	other.must(takeOp(1, "q"))
	other.must(configure("q", func(c *wire.Configure) { c.Drop = true }))
	again()
	r.reopen()
	again()

	cmd = other.command(tx(takeOp(1, "x"), takeOp(2, "x"), takeOp(1, "y")))
	other.must(putOp("x", "1", "2", "3", "4"))
	other.must(putOp("y", "a", "b"))
	a = r.entry(cmd)[0]
	require.NoError(t, answerError(a))
	for range 1500 { // the rows of both streams are cleaned up
		r.do(tx(putOp("x", "z"), takeOp(1, "x"), putOp("y", "z"), takeOp(1, "y")))
	}
	again()
	for _, key := range []string{"x", "y"} { // whose first places are the same
		c.must(configure(key, func(c *wire.Configure) { c.Drop = true }))
		again()
	}
	require.NoError(t, answerError(r.entry(by(other.id, &wire.Command{Seq: 99, Confirmed: 99, Op: &wire.Command_Confirm{Confirm: &wire.Confirm{}}}))[0]))
	require.NotContains(t, r.m.sessions.pins, streamKey{2, "x"})
	require.NotContains(t, r.m.sessions.pins, streamKey{2, "y"})
}

// TestARetriedTransactionIsNotDoneAgain: not where a lease of it has ended
// either, which is left out of the answer.
func TestARetriedTransactionIsNotDoneAgain(t *testing.T) {
	r := newRig(t)
	c := r.client(1)
	c.must(putOp("q", "a", "b", "c"))
	cmd := c.command(tx(leaseOp(2, "q"), takeOp(1, "q"), putOp("out", "x")))
	a := r.entry(cmd)[0]
	require.Equal(t, []string{"a", "b"}, datas(a.Steps[0].Records))
	c.must(&wire.Settle{Receipts: receipts(a.Steps[0])[:1], Return: true})
	require.Len(t, r.m.sessions.rows.slots[c.id].value.row.Answers[1].Steps[0].Taken, 1, "a run")
	c.must(takeOp(1, "q"))
	again := r.entry(cmd)[0]
	require.Equal(t, []string{"b"}, datas(again.Steps[0].Records))
	require.Equal(t, a.Steps[0].Records[1].Fence, again.Steps[0].Records[0].Fence)
	require.Equal(t, []string{"c"}, datas(again.Steps[1].Records))
	require.Equal(t, []string{"x"}, c.left("out"))
	require.Zero(t, r.entry(as(gearsfs.Root, &wire.EndSession{SessionMinted: uint64(c.id.Minted), SessionSalt: c.id.Salt}))[0].Code)
	again = r.entry(cmd)[0]
	require.Empty(t, again.Steps[0].Records)
	require.Equal(t, []string{"c"}, datas(again.Steps[1].Records))
	require.Equal(t, []string{"x"}, c.left("out"))
	r.check()
}

func TestTransactBounds(t *testing.T) {
	r := newRig(t)
	c := r.client(1)
	big := &wire.NewRecord{Data: make([]byte, 6<<20)}
	for range 3 {
		c.must(&wire.Put{Target: inRoot, Key: "big", Records: []*wire.NewRecord{big}})
	}
	c.fails(2, gearsfs.ErrTooBig, takeOp(2, "big"), takeOp(1, "big"))
	c.fails(1, gearsfs.ErrTooBig, takeOp(3, "big"))
	c.fails(1, gearsfs.ErrTooBig, lookOp("big", 1))
	put := &wire.Put{Target: inRoot, Key: "out", Records: []*wire.NewRecord{big, big}}
	c.fails(2, gearsfs.ErrTooBig, put, put)
	c.fails(1, gearsfs.ErrTooBig, takeOp(gearsfs.BatchRecordsMax+1, "big"))
	require.Len(t, c.must(tx(takeOp(2, "big"), put)).Steps[0].Records, 2)

	op := putOp("small")
	for i := range 200 {
		op.Records = append(op.Records, &wire.NewRecord{Data: fmt.Appendf(make([]byte, 9<<10), "%d", i)})
	}
	c.must(op)
	a := c.must(tx(lookOp("small", 1000)))
	require.Equal(t, 113, len(a.Steps[0].Records), "a look shows what fits")
}

// TestRandomSetsOfTakes: transactions that take from random sets of a few
// streams and put what they took get all their records or none; in the end
// every record is where it was put, or taken by one.
func TestRandomSetsOfTakes(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 5))
	r := newRig(t)
	keys := []string{"w", "x", "y", "z"}
	clients := []*client{r.client(1), r.client(2), r.client(3)}
	count := map[string]int{} // what was put, or taken and acknowledged, by how often
	var sent []*wire.Command
	var answers []*wire.Answer
	puts, done, none := 0, 0, 0
	for range 3000 {
		c := pick(rng, clients)
		if rng.IntN(3) == 0 {
			name := fmt.Sprint(puts)
			c.must(putOp(pick(rng, keys), name))
			puts++
			continue
		}
		var steps []any
		want := 0
		rng.Shuffle(len(keys), func(i, j int) { keys[i], keys[j] = keys[j], keys[i] })
		for _, key := range keys[:2+rng.IntN(3)] {
			op := takeOp(1+rng.Uint32N(2), key)
			op.Lease = rng.IntN(3) == 0
			want += int(op.Max)
			steps = append(steps, op)
		}
		cmd := c.command(tx(append(steps, putOp("runs", fmt.Sprint(want)))...))
		before := r.dump()
		a := r.entry(cmd)[0]
		if a.Code != 0 {
			require.EqualValues(t, gearsfs.ErrEmpty.Code, a.Code)
			require.Equal(t, untimed(string(before)), untimed(string(r.dump())))
			none++
			continue
		}
		done++
		records := allRecords(a)
		require.Len(t, records, want)
		sent, answers = append(sent, cmd), append(answers, a)
		var leased []*wire.Receipt
		back := rng.IntN(3) == 0
		for _, rec := range records {
			if rec.Fence == 0 {
				count[string(rec.Data)]++
				continue
			}
			leased = append(leased, receipts(&wire.Answer{Records: []*wire.TakenRecord{rec}})...)
			if !back {
				count[string(rec.Data)]++
			}
		}
		if len(leased) > 0 && rng.IntN(2) == 0 { // the other half's retry finds them leased
			i := len(sent) - 1
			require.Equal(t, answers[i].String(), r.entry(sent[i])[0].String())
		}
		if len(leased) > 0 {
			c.must(&wire.Settle{Receipts: leased, Return: back})
		}
	}
	for _, key := range keys {
		for _, data := range clients[0].left(key) {
			count[data]++
		}
	}
	require.Len(t, count, puts)
	for name, n := range count {
		require.Equal(t, 1, n, "record %s", name)
	}
	require.Len(t, clients[0].left("runs"), min(done, 1000))
	require.Greater(t, done, 100)
	require.Greater(t, none, 100)
	r.check()
}
