package tests

import (
	"context"
	"fmt"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm"
)

// transacting asks for several things at once: to move records from one or two
// streams to another, to put where a condition is met, or to replace what is in
// one stream by what is in another.
func (c *client) transacting(call *call, group int) {
	step := func(op string, n int) ask { return ask{stream: c.draw(group), op: op, n: n} }
	var steps []ask
	switch c.rng.IntN(5) {
	case 0:
		steps = []ask{step("take", 1), step("put", 1)}
	case 1:
		steps = []ask{step("take", 1), step("take", 1+c.rng.IntN(2)), step("put", 1+c.rng.IntN(2))}
	case 2:
		steps = []ask{c.condition(group), step("put", 1)}
	case 3:
		steps = []ask{c.condition(group), step("take", 1), step("put", 1)}
	case 4:
		steps = []ask{step("take", 1), step("update", 1)}
	}
	call.in = ask{stream: steps[0].stream, op: "tx", steps: steps}
	call.waits = c.rng.IntN(3) == 0 && steps[0].op != "if"
	call.do = c.transaction(call, nil)
}

func (c *client) condition(group int) ask {
	in := ask{stream: c.draw(group), op: "if"}
	last := c.last[in.stream]
	switch c.rng.IntN(4) {
	case 0:
		in.newest = &last
	case 1:
		in.head = &last
	case 2:
		in.empty = true
	default:
		in.n = 1 + c.rng.IntN(3)
	}
	return in
}

// passOn makes a call that acknowledges a record together with a put.
func (c *client) passOn(call *call, ack ask, settle dgm.Settle) func(context.Context) error {
	put := ask{stream: c.draw(ack.stream / groupStreams), op: "put", n: 1 + c.rng.IntN(2)}
	call.in = ask{stream: ack.stream, op: "tx", steps: []ask{ack, put}}
	return c.transaction(call, &settle)
}

// transaction is what asks for the steps of a call; settle is what the one is that
// settles.
func (c *client) transaction(call *call, settle *dgm.Settle) func(context.Context) error {
	tx := dgm.Transact{NoWait: !call.waits}
	who := c.name
	if call.waits { // given up, it may happen behind what comes then
		who = fmt.Sprintf("%s.%d", c.name, c.put)
	}
	records := make([][]gearsfs.NewRecord, len(call.in.steps))
	for i, s := range call.in.steps {
		key := keyOf(s.stream)
		var step dgm.Step
		switch s.op {
		case "take":
			step.Take = &dgm.Take{File: linear, Keys: []gearsfs.Key{key}, Max: s.n}
		case "put":
			records[i] = c.newRecords(who, s.n)
			step.Put = &dgm.Put{File: linear, Key: key, Records: records[i]}
		case "update":
			records[i] = c.newRecords(who, 1)
			step.Update = &dgm.Update{File: linear, Key: key, Record: records[i][0]}
		case "ack":
			step.Settle = settle
		case "if":
			step.Condition = s.asCondition(key)
		}
		tx.Steps = append(tx.Steps, step)
	}
	steps := call.in.steps
	return func(ctx context.Context) error {
		results, err := c.m.Transact(ctx, tx)
		if err != nil {
			return err
		}
		call.out.steps = make([]reply, len(steps))
		for i, r := range results {
			out := &call.out.steps[i]
			c.seen(steps[i].stream, out, r.Records)
			if len(records[i]) > 0 {
				c.wasPut(steps[i].stream, out, r.Put, records[i]...)
			}
		}
		return nil
	}
}

func (s ask) asCondition(key gearsfs.Key) *dgm.Condition {
	cond := &dgm.Condition{File: linear, Key: key, AtLeast: uint64(s.n)}
	seq := func(n *uint64) *gearsfs.Seq {
		if n == nil {
			return nil
		}
		seq := gearsfs.Seq(*n)
		return &seq
	}
	cond.Newest, cond.Head = seq(s.newest), seq(s.head)
	if s.empty {
		cond.Empty = &s.empty
	}
	return cond
}
