package tests

import (
	"testing"

	"github.com/anishathalye/porcupine"
	"github.com/stretchr/testify/require"
)

// happened makes histories of operations that come one after the other.
type happened struct{ at int64 }

func (h *happened) did(in ask, out reply) porcupine.Operation {
	h.at += 2
	for i := range in.steps {
		in.stream = in.steps[i].stream
	}
	return porcupine.Operation{Input: in, Output: out, Call: h.at - 1, Return: h.at}
}

func (h *happened) put(stream int, seqs ...uint64) porcupine.Operation {
	return h.did(ask{stream: stream, op: "put", n: len(seqs)}, reply{seqs: seqs})
}

func sound(history ...porcupine.Operation) bool {
	return porcupine.CheckOperations(fifo.ToModel(), history)
}

func seqs(s ...uint64) reply { return reply{seqs: s} }

func leasedAs(fence uint64, s ...uint64) reply {
	r := reply{seqs: s}
	for i := range s {
		r.fences = append(r.fences, fence+uint64(i))
	}
	return r
}

func on(op string, seq, fence uint64) ask { return ask{op: op, held: []held{{seq, fence}}} }

// The model must see what it is there to see.
func TestTheModelSeesFaults(t *testing.T) {
	h := new(happened)
	put := func(s ...uint64) porcupine.Operation { return h.put(0, s...) }
	did := h.did
	take, lease := ask{op: "take", n: 1}, ask{op: "lease", n: 1}
	require.True(t, sound(put(1, 2), did(take, seqs(1)), did(take, seqs(2)), did(take, reply{empty: true})))
	require.False(t, sound(put(1, 2), did(take, seqs(2))), "out of order")
	require.False(t, sound(put(1), did(take, seqs(1)), did(take, seqs(1))), "taken twice")
	require.False(t, sound(put(1), did(take, reply{empty: true})), "lost")
	require.False(t, sound(put(1), put(1)), "a seq used twice")
	require.False(t, sound(did(take, seqs(1)), put(1)), "taken before it was put")
	require.True(t, sound(put(1, 2), did(lease, leasedAs(7, 1)), did(on("return", 1, 7), reply{}), did(take, seqs(1))))
	require.False(t, sound(put(1, 2), did(lease, leasedAs(7, 1)), did(on("return", 1, 7), reply{}), did(take, seqs(2))),
		"a returned record keeps its place")
	require.False(t, sound(put(1), did(lease, leasedAs(7, 1)), did(take, seqs(1))), "taken while leased")
	require.True(t, sound(put(1), did(lease, leasedAs(7, 1)), did(ask{op: "after"}, seqs(1))))
	require.True(t, sound(did(ask{op: "put", n: 1}, reply{maybe: true}), did(take, seqs(1))))
	require.True(t, sound(did(ask{op: "put", n: 1}, reply{maybe: true}), did(take, reply{empty: true})))
	either := ask{op: "take", n: 1, or: 1}
	require.True(t, sound(put(1), h.put(1, 1), did(either, reply{stream: 0, seqs: []uint64{1}}), did(either, reply{stream: 1, seqs: []uint64{1}})))
	require.False(t, sound(put(1), h.put(1, 1), did(either, reply{stream: 1, seqs: []uint64{1}})), "the first one has some")
	require.False(t, sound(h.put(1, 1), did(either, reply{empty: true})), "the second one has some")
}

func TestTheModelSeesFaultsOfLeases(t *testing.T) {
	h := new(happened)
	put := func(s ...uint64) porcupine.Operation { return h.put(0, s...) }
	did := h.did
	take, lease := ask{op: "take", n: 1}, ask{op: "lease", n: 1}
	update := ask{op: "update", n: 1}
	require.True(t, sound(put(1), did(lease, leasedAs(7, 1)), did(on("lapse", 1, 7), reply{}), did(lease, leasedAs(8, 1))))
	require.False(t, sound(put(1), did(lease, leasedAs(7, 1)), did(lease, leasedAs(8, 1)), did(on("lapse", 1, 7), reply{})),
		"two hold it")
	require.False(t, sound(put(1), did(lease, leasedAs(7, 1)), did(on("ack", 1, 7), reply{}), did(on("ack", 1, 7), reply{})),
		"acknowledged twice")
	require.False(t, sound(put(1), did(lease, leasedAs(7, 1)), did(on("lapse", 1, 7), reply{}), did(lease, leasedAs(8, 1)), did(on("ack", 1, 7), reply{})),
		"acknowledged under an old lease")
	require.True(t, sound(put(1), did(lease, leasedAs(7, 1)), did(on("extend", 1, 7), reply{}), did(on("ack", 1, 7), reply{})))
	require.False(t, sound(put(1), did(lease, leasedAs(7, 1)), did(on("lapse", 1, 7), reply{}), did(on("extend", 1, 7), reply{})),
		"extended when it was over")
	require.True(t, sound(put(1, 2), did(lease, leasedAs(7, 1)), did(update, seqs(3)), did(on("lapse", 1, 7), reply{}), did(take, seqs(3)), did(take, reply{empty: true})))
	require.False(t, sound(put(1, 2), did(update, seqs(3)), did(take, seqs(1))), "an update leaves one record")
	require.False(t, sound(put(1), did(lease, leasedAs(7, 1)), did(update, seqs(2)), did(on("ack", 1, 7), reply{})), "an update ends leases")
	require.False(t, sound(put(1), did(update, seqs(1))), "an update has a seq of its own")
	require.False(t, sound(put(1), did(on("lapse", 1, 7), reply{})), "it was never leased")
	gone := on("gone", 1, 7)
	require.True(t, sound(put(1), did(lease, leasedAs(7, 1)), did(update, seqs(2)), did(gone, reply{})))
	require.False(t, sound(put(1), did(lease, leasedAs(7, 1)), did(gone, reply{})), "it is not gone")
	shadow, fade := ask{op: "shadow", n: 2, held: []held{{fence: 9}}}, ask{op: "fade", held: []held{{fence: 9}}}
	require.True(t, sound(put(1), did(shadow, reply{}), did(take, seqs(1)), did(fade, reply{})))
	require.True(t, sound(put(1, 2, 3), did(shadow, reply{}), did(take, seqs(3)), did(fade, reply{}), did(take, seqs(1))))
	require.False(t, sound(put(1, 2, 3), did(shadow, reply{}), did(fade, reply{}), did(take, seqs(3))))
}

func TestTheModelSeesFaultsOfTransactions(t *testing.T) {
	h := new(happened)
	did := h.did
	tx := func(steps ...ask) ask { return ask{op: "tx", steps: steps} }
	told := func(steps ...reply) reply { return reply{steps: steps} }
	step := func(stream int, op string, n int) ask { return ask{stream: stream, op: op, n: n} }
	none := reply{empty: true}
	move := tx(step(0, "take", 1), step(1, "take", 1), step(2, "put", 1))
	moved := told(seqs(1), seqs(1), seqs(1))
	last := ask{stream: 2, op: "take", n: 1, or: 2}

	require.True(t, sound(h.put(0, 1), did(move, none), h.put(1, 1), did(move, moved), did(last, seqs(1))))
	require.False(t, sound(h.put(0, 1), h.put(1, 1), did(move, none)), "it can be done")
	require.False(t, sound(h.put(0, 1), did(move, moved)), "it can't be done")
	require.False(t, sound(h.put(0, 1), h.put(1, 1), did(move, moved), did(last, none)), "half of it is done")
	require.False(t, sound(h.put(0, 1), h.put(1, 1), did(move, moved), did(ask{op: "take", n: 1}, seqs(1))), "likewise")
	require.True(t, sound(h.put(0, 1), h.put(1, 1), did(move, reply{maybe: true}), did(last, seqs(1))))
	require.True(t, sound(h.put(0, 1), h.put(1, 1), did(move, reply{maybe: true}), did(last, none)))
	require.False(t, sound(h.put(0, 1), did(move, reply{maybe: true}), did(last, seqs(1))))
	require.False(t, sound(h.put(0, 1), h.put(1, 1), did(move, reply{maybe: true}), did(last, seqs(1)), did(ask{op: "peek"}, seqs(1))), "half of it")

	run := tx(ask{op: "ack", held: []held{{1, 7}}}, step(1, "put", 1))
	lease := ask{op: "lease", n: 1}
	require.True(t, sound(h.put(0, 1), did(lease, leasedAs(7, 1)), did(run, told(reply{}, seqs(1)))))
	require.False(t, sound(h.put(0, 1), did(run, told(reply{}, seqs(1)))), "nothing is held")

	seq, zero := uint64(1), uint64(0)
	for _, c := range []struct {
		cond ask
		met  bool
	}{
		{ask{op: "if", newest: &seq}, true}, {ask{op: "if", newest: &zero}, false},
		{ask{op: "if", head: &seq}, true}, {ask{stream: 1, op: "if", head: &seq}, false},
		{ask{op: "if", head: &zero}, false}, {ask{stream: 1, op: "if", head: &zero}, true},
		{ask{op: "if", empty: true}, false}, {ask{stream: 1, op: "if", empty: true}, true},
		{ask{op: "if", n: 1}, true}, {ask{op: "if", n: 2}, false},
	} {
		put := tx(c.cond, step(2, "put", 1))
		require.Equal(t, c.met, sound(h.put(0, 1), did(put, told(reply{}, seqs(1)))), "%+v", c.cond)
		require.Equal(t, !c.met, sound(h.put(0, 1), did(put, none)), "%+v", c.cond)
	}
	require.True(t, sound(h.put(0, 1, 2), did(tx(step(0, "take", 1), step(0, "take", 1), step(0, "update", 1), step(0, "put", 1)),
		told(seqs(1), seqs(2), seqs(3), seqs(4))), did(ask{op: "peek"}, seqs(3))))
}
