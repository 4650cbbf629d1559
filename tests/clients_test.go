package tests

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm"
)

// A client asks one thing after another of the streams of one group, and in the
// next epoch of those of the next.
type client struct {
	*history
	m       dgm.Manager
	id, ids int // its id in the history; a new one is ids further on
	name    string
	rng     *rand.Rand
	put     int
	held    []lease
	late    []lease        // held until they have run out
	last    map[int]uint64 // by stream: the last seq that it saw

	patience time.Duration // of what waits, at most; 0 is 20 ms
	chaos    *chaos        // what else it must expect; nil is nothing
}

// A lease is a record that a client holds.
type lease struct {
	held
	receipt gearsfs.Receipt
	stream  int
	since   time.Duration // before which it can't have lapsed
	bounded bool          // nothing else ends it
}

// A call is what a client is about to ask, and how.
type call struct {
	in    ask
	out   reply
	waits bool // until it can be done, or patience is at an end
	do    func(context.Context) error
}

// leaseLasts is how long a lease does that is to be settled before.
const leaseLasts = 30 * time.Second

var linear = gearsfs.At("/linear")

func keyOf(stream int) gearsfs.Key { return gearsfs.Key(fmt.Sprintf("s%d", stream)) }

// step asks one thing and writes it down; an error is one that it must not get.
func (c *client) step(ctx context.Context) error {
	group := c.chaos.epoch(c.began)
	stream, n := c.draw(group), 1+c.rng.IntN(3)
	call := &call{in: ask{stream: stream, or: stream, n: n}}
	switch dice := c.rng.IntN(20); {
	case len(c.late) > 0 && c.late[0].since < time.Since(c.began):
		c.settle(call, &c.late, "ack")
	case len(c.held) > 0 && dice < 12:
		c.settle(call, &c.held, []string{"ack", "ack", "ack", "return", "return", "extend", "tx"}[c.rng.IntN(7)])
	case dice < 7:
		call.in.op = "put"
		c.putting(call)
	case dice == 7:
		call.in.op, call.in.n = "update", 1
		c.updating(call)
	case dice < 13:
		if dice == 12 {
			call.in.or = c.draw(group)
		}
		c.taking(call)
	case dice < 17:
		c.transacting(call, group)
	default:
		c.peeking(call, dice == 17)
	}
	return c.ask(ctx, call)
}

func (c *client) draw(group int) int { return group*groupStreams + c.rng.IntN(groupStreams) }

func (c *client) ask(ctx context.Context, call *call) error {
	var patience time.Duration
	if call.waits {
		patience = time.Duration(c.rng.Int64N(int64(cmp.Or(c.patience, 20*time.Millisecond))))
	}
	return c.record(ctx, patience, &call.in, &call.out, call.do)
}

func (c *client) saw(stream int, seq uint64, data string) {
	c.history.saw(stream, seq, data)
	c.last[stream] = seq
}

// seen makes records a part of an answer.
func (c *client) seen(stream int, out *reply, records []gearsfs.Record) {
	out.stream = stream
	for _, r := range records {
		out.seqs = append(out.seqs, uint64(r.Place.Seq))
		if r.Receipt != nil {
			out.fences = append(out.fences, r.Receipt.Fence)
		}
		c.saw(stream, uint64(r.Place.Seq), string(r.Data))
	}
}

func (c *client) newRecords(who string, n int) []gearsfs.NewRecord {
	records := make([]gearsfs.NewRecord, n)
	for i := range records {
		c.put++
		records[i].Data = fmt.Appendf(nil, "%s/%d", who, c.put)
	}
	return records
}

func (c *client) wasPut(stream int, out *reply, got dgm.PutResult, records ...gearsfs.NewRecord) {
	for i, r := range records {
		seq := uint64(got.First) + uint64(i)
		out.seqs = append(out.seqs, seq)
		c.saw(stream, seq, string(r.Data))
	}
}

func (c *client) putting(call *call) {
	stream, records := call.in.stream, c.newRecords(c.name, call.in.n)
	call.do = func(ctx context.Context) error {
		got, err := c.m.Put(ctx, dgm.Put{File: linear, Key: keyOf(stream), Records: records})
		if err == nil {
			c.wasPut(stream, &call.out, got, records...)
		}
		return err
	}
}

func (c *client) updating(call *call) {
	stream, record := call.in.stream, c.newRecords(c.name, 1)[0]
	call.do = func(ctx context.Context) error {
		got, err := c.m.Update(ctx, dgm.Update{File: linear, Key: keyOf(stream), Record: record})
		if err == nil {
			c.wasPut(stream, &call.out, got, record)
		}
		return err
	}
}

func (c *client) taking(call *call) {
	late, keys := false, []gearsfs.Key{keyOf(call.in.stream)}
	if call.in.or != call.in.stream {
		keys = append(keys, keyOf(call.in.or))
	}
	take := dgm.Take{File: linear, Keys: keys, Max: call.in.n, NoWait: c.rng.IntN(2) == 0, Lease: c.rng.IntN(3) == 0}
	if call.in.op = "take"; take.Lease {
		call.in.op, take.NoWait = "lease", true // nobody would know what it holds
		take.ByReceipt = c.rng.IntN(2) == 0
		switch c.rng.IntN(10) {
		case 0: // to see it run out. If many did at once, their order would be too hard to find
			take.LeaseFor, take.Max = c.soon(), 1
			late = len(c.late) == 0
		case 1, 2, 3, 4:
			take.LeaseFor = leaseLasts
		default:
			take.ByReceipt = false
		}
		call.in.n = take.Max
	}
	call.waits = !take.NoWait
	call.do = func(ctx context.Context) error {
		asked := time.Since(c.began)
		records, err := c.m.Take(ctx, take)
		stream := call.in.stream
		if len(records) > 0 && records[0].Key != keys[0] {
			stream = call.in.or
		}
		c.seen(stream, &call.out, records)
		if take.Lease {
			c.hold(stream, asked, &take, records, late)
			c.shadow(call.in, asked, &take)
		}
		return err
	}
}

func (c *client) soon() time.Duration {
	return cmp.Or(c.patience, 200*time.Millisecond) / 100 * time.Duration(1+c.rng.IntN(60))
}

// hold notes what was leased by a take that was asked then. What is late is left
// to run out.
func (c *client) hold(stream int, asked time.Duration, take *dgm.Take, records []gearsfs.Record, late bool) {
	for _, r := range records {
		l := lease{
			held: held{uint64(r.Place.Seq), r.Receipt.Fence}, receipt: *r.Receipt, stream: stream, since: asked,
			bounded: take.LeaseFor != 0 && (take.ByReceipt || c.chaos == nil),
		}
		if l.bounded {
			l.since += certain(take.LeaseFor)
		}
		if late {
			c.late = append(c.late, l)
		} else {
			c.held = append(c.held, l)
		}
	}
}

// certain is how long a lease lasts at least: a node's clock may be fast.
func certain(d time.Duration) time.Duration { return d - d/100 }

// askedTwice is how long a call takes at least whose answer was lost, so that it
// was asked again.
const askedTwice = 20 * time.Millisecond

// shadow notes that a take that was asked then may have leased what it does not
// know of: it was asked twice, and what the first lease was on was removed, or
// the lease ran out, before it was asked again.
func (c *client) shadow(in ask, asked time.Duration, take *dgm.Take) {
	now := time.Since(c.began)
	if now-asked < min(askedTwice, certain(cmp.Or(take.LeaseFor, askedTwice))) {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.shadows++
	in.held = []held{{fence: 1<<63 + uint64(c.shadows)}}
	for _, op := range []string{"shadow", "fade"} {
		in.op = op
		c.id += c.ids // both are at once
		c.ops = append(c.ops, porcupine.Operation{ClientId: c.id, Input: in, Output: reply{}, Call: int64(asked), Return: int64(now)})
	}
	c.id += c.ids
}

func (c *client) peeking(call *call, head bool) {
	peek := dgm.Peek{File: linear, Key: keyOf(call.in.stream), NoWait: true}
	if call.in.op = "peek"; !head {
		call.in.op, call.in.after = "after", c.last[call.in.stream]
		peek.Follow, peek.After = true, gearsfs.Seq(call.in.after)
		peek.NoWait = c.rng.IntN(2) == 0
		call.waits = !peek.NoWait
	}
	call.do = func(ctx context.Context) error {
		records, err := c.m.Peek(ctx, peek)
		c.seen(call.in.stream, &call.out, records)
		return err
	}
}

// letGo ends what is held: else nobody would know what became of it.
func (c *client) letGo(ctx context.Context) error {
	for len(c.held)+len(c.late) > 0 {
		call := new(call)
		if len(c.held) > 0 {
			c.settle(call, &c.held, "return")
		} else {
			c.settle(call, &c.late, "return")
		}
		if err := c.ask(ctx, call); err != nil {
			return err
		}
	}
	return nil
}

// settle acknowledges, returns or extends the first of some leases, or
// acknowledges it together with a put.
func (c *client) settle(call *call, from *[]lease, op string) {
	l := (*from)[0]
	*from = (*from)[1:]
	settle := dgm.Settle{Receipts: []gearsfs.Receipt{l.receipt}}
	step := ask{stream: l.stream, op: op, held: []held{l.held}}
	call.in = step
	switch op {
	case "return":
		settle.Return = true
	case "extend":
		settle.Extend = leaseLasts
	}
	ask := func(ctx context.Context) error { return c.m.Settle(ctx, settle) }
	if op == "tx" {
		step.op = "ack"
		ask = c.passOn(call, step, settle)
	}
	call.do = func(ctx context.Context) error {
		asked := time.Since(c.began)
		err := ask(ctx)
		switch {
		case errors.Is(err, gearsfs.ErrGone):
			// It ended at some moment since: by its deadline, by an update, or
			// because the node had not heard of this client for too long.
			call.in, call.out = step, reply{}
			call.in.op, call.in.since = "lapse", l.since
			if !l.bounded && c.chaos == nil {
				call.in.op = "gone"
			}
			return nil
		case err == nil && op == "extend":
			if l.bounded {
				l.since = asked + certain(settle.Extend)
			}
			c.held = append(c.held, l)
		case errors.Is(err, gearsfs.ErrNoSpace): // for the put
			c.held = append(c.held, l)
		}
		return err
	}
}
