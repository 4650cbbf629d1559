package tests

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// The relay must see what TestChaos relies on it to see.
func TestTheRelaySeesFaults(t *testing.T) {
	const second = time.Second
	at := relayed{relayFrom, 1}
	sound := func() *relay {
		r := newRelay("/q", 1)
		r.put = []uint64{3}
		r.acked, r.dead, r.left = map[item]int{{0, 0}: 1}, map[item]int{{0, 1}: 1}, map[item]int{{0, 2}: 1}
		r.grants[at] = []*grant{
			{fence: 5, deliveries: 1, asked: second, got: 2 * second, until: 9 * second},
			{fence: 8, deliveries: 2, asked: 7 * second, got: 10 * second, until: 20 * second, ending: 11 * second, ended: true},
		}
		return r
	}
	require.NoError(t, sound().check())
	for wrong, change := range map[string]func(r *relay, first, second *grant){
		"acknowledged 0 times":    func(r *relay, _, _ *grant) { delete(r.acked, item{0, 0}) },
		"dead 2 times":            func(r *relay, _, _ *grant) { r.dead[item{0, 1}]++ },
		"left 1 times":            func(r *relay, _, _ *grant) { r.left[item{0, 0}]++ },
		"nobody put":              func(r *relay, _, _ *grant) { r.left[item{3, 1}]++ },
		"was valid from 2s to 9s": func(_ *relay, _, g *grant) { g.got = 8 * second },
		"behind the begin":        func(_ *relay, g, _ *grant) { g.ending, g.ended = 12*second, true },
		"was given before":        func(_ *relay, g, _ *grant) { g.asked, g.got = 11*second, 12*second },
		"is delivery 2":           func(_ *relay, g, _ *grant) { g.deliveries = 2 },
		"for the 4th time":        func(_ *relay, _, g *grant) { g.deliveries = relayTries + 1 },
	} {
		r := sound()
		change(r, r.grants[at][0], r.grants[at][1])
		require.ErrorContains(t, r.check(), wrong)
	}
	r := sound()
	r.grants[at][0].ending = 6 * second // it was given back
	r.grants[at][1].got = 8 * second
	require.NoError(t, r.check())
}
