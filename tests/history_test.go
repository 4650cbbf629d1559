package tests

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/stretchr/testify/require"
)

// An ask is what a client asks of one stream.
type ask struct {
	stream int
	op     string        // "put", "take", "lease", "ack", "return", "lapse", "peek" or "after"
	n      int           // records to put, or at most to take
	seqs   []uint64      // of what is acknowledged or returned; what to peek after
	since  time.Duration // the lease that lapsed
}

// A reply is what it was told.
type reply struct {
	seqs  []uint64 // of what was put, taken or seen
	empty bool
	maybe bool // it was told nothing, and it may have happened
}

// A queue is a stream's state: what can be taken, what is leased, what comes
// next. The seqs are in order, and no slice is ever changed.
type queue struct {
	next          uint64
	ready, leased []uint64
}

var fifo = porcupine.NondeterministicModel{
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		var parts [][]porcupine.Operation
		for _, o := range history {
			stream := o.Input.(ask).stream
			for len(parts) <= stream {
				parts = append(parts, nil)
			}
			parts[stream] = append(parts[stream], o)
		}
		return parts
	},
	Init: func() []any { return []any{queue{next: 1}} },
	Step: func(state, input, output any) []any {
		q, in, out := state.(queue), input.(ask), output.(reply)
		if !out.maybe {
			if after, ok := q.step(in, out); ok {
				return []any{after}
			}
			return nil
		}
		may := []any{q}
		for _, out := range q.replies(in) {
			if after, ok := q.step(in, out); ok {
				may = append(may, after)
			}
		}
		return may
	},
	Equal: func(a, b any) bool {
		p, q := a.(queue), b.(queue)
		return p.next == q.next && slices.Equal(p.ready, q.ready) && slices.Equal(p.leased, q.leased)
	},
	DescribeOperation: func(in, out any) string { return fmt.Sprintf("%+v: %+v", in, out) },
}

// step returns the state behind an operation, where out is an answer to it.
func (q queue) step(in ask, out reply) (queue, bool) {
	switch in.op {
	case "put":
		want := make([]uint64, in.n)
		for i := range want {
			want[i] = q.next + uint64(i)
		}
		if !slices.Equal(out.seqs, want) {
			return q, false
		}
		q.next += uint64(in.n)
		q.ready = with(q.ready, want)
	case "take", "lease":
		if out.empty {
			return q, len(q.ready) == 0
		}
		n := len(out.seqs)
		if n == 0 || n > in.n || n > len(q.ready) || !slices.Equal(out.seqs, q.ready[:n]) {
			return q, false
		}
		q.ready = q.ready[n:]
		if in.op == "lease" {
			q.leased = with(q.leased, out.seqs)
		}
	case "ack", "return", "lapse":
		for _, seq := range in.seqs {
			if !slices.Contains(q.leased, seq) {
				return q, false
			}
		}
		q.leased = without(q.leased, in.seqs)
		if in.op != "ack" {
			q.ready = with(q.ready, in.seqs)
		}
	case "peek":
		if out.empty {
			return q, len(q.ready) == 0
		}
		return q, len(q.ready) > 0 && slices.Equal(out.seqs, q.ready[:1])
	case "after":
		all := with(q.ready, q.leased)
		i, found := slices.BinarySearch(all, in.seqs[0])
		if found {
			i++
		}
		if out.empty {
			return q, i == len(all)
		}
		return q, i < len(all) && slices.Equal(out.seqs, all[i:i+1])
	}
	return q, true
}

// replies returns the answers that would have changed something.
func (q queue) replies(in ask) (all []reply) {
	switch in.op {
	case "put":
		r := reply{}
		for i := range in.n {
			r.seqs = append(r.seqs, q.next+uint64(i))
		}
		return []reply{r}
	case "take", "lease":
		for n := 1; n <= min(in.n, len(q.ready)); n++ {
			all = append(all, reply{seqs: q.ready[:n]})
		}
	case "ack", "return":
		return []reply{{}}
	}
	return all
}

// with and without return the sorted set a with b, or without b.
func with(a, b []uint64) []uint64 {
	c := append(slices.Clone(a), b...)
	slices.Sort(c)
	return c
}

func without(a, b []uint64) []uint64 {
	return slices.DeleteFunc(slices.Clone(a), func(seq uint64) bool { return slices.Contains(b, seq) })
}

// The model must see what it is there to see.
func TestTheModelSeesFaults(t *testing.T) {
	at := int64(0)
	did := func(in ask, out reply) porcupine.Operation {
		at += 2
		return porcupine.Operation{Input: in, Output: out, Call: at - 1, Return: at}
	}
	seqs := func(s ...uint64) reply { return reply{seqs: s} }
	put := func(s ...uint64) porcupine.Operation { return did(ask{op: "put", n: len(s)}, seqs(s...)) }
	sound := func(history ...porcupine.Operation) bool {
		at = 0
		return porcupine.CheckOperations(fifo.ToModel(), history)
	}
	take, lease := ask{op: "take", n: 1}, ask{op: "lease", n: 1}
	require.True(t, sound(put(1, 2), did(take, seqs(1)), did(take, seqs(2)), did(take, reply{empty: true})))
	require.False(t, sound(put(1, 2), did(take, seqs(2))), "out of order")
	require.False(t, sound(put(1), did(take, seqs(1)), did(take, seqs(1))), "taken twice")
	require.False(t, sound(put(1), did(take, reply{empty: true})), "lost")
	require.False(t, sound(put(1), put(1)), "a seq used twice")
	require.False(t, sound(did(take, seqs(1)), put(1)), "taken before it was put")
	require.True(t, sound(put(1, 2), did(lease, seqs(1)), did(ask{op: "return", seqs: []uint64{1}}, reply{}), did(take, seqs(1))))
	require.False(t, sound(put(1, 2), did(lease, seqs(1)), did(ask{op: "return", seqs: []uint64{1}}, reply{}), did(take, seqs(2))),
		"a returned record keeps its place")
	require.False(t, sound(put(1), did(lease, seqs(1)), did(take, seqs(1))), "taken while leased")
	require.True(t, sound(put(1), did(lease, seqs(1)), did(ask{op: "lapse", seqs: []uint64{1}}, reply{}), did(lease, seqs(1))))
	require.False(t, sound(put(1), did(lease, seqs(1)), did(ask{op: "ack", seqs: []uint64{1}}, reply{}), did(ask{op: "lapse", seqs: []uint64{1}}, reply{})),
		"acknowledged and lapsed")
	require.True(t, sound(put(1), did(lease, seqs(1)), did(ask{op: "after", seqs: []uint64{0}}, seqs(1))))
	require.True(t, sound(did(ask{op: "put", n: 1}, reply{maybe: true}), did(take, seqs(1))))
	require.True(t, sound(did(ask{op: "put", n: 1}, reply{maybe: true}), did(take, reply{empty: true})))
}
