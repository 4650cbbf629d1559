package dgm

import (
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// fakeTicks are ticks over a clock and a state machine that are the test's.
type fakeTicks struct {
	ticks
	clock   uint64
	dues    []uint64
	timers  map[int]func()
	at      map[int]uint64
	made    int
	entries int
	each    int // how much one entry does
}

func newFakeTicks() *fakeTicks {
	f := &fakeTicks{timers: make(map[int]func()), at: make(map[int]uint64), each: 10}
	f.ticks.due = func() (uint64, bool) {
		if len(f.dues) == 0 {
			return 0, false
		}
		return slices.Min(f.dues), true
	}
	f.ticks.now = func() uint64 { return f.clock }
	f.ticks.after = func(d time.Duration, do func()) func() {
		f.made++
		n := f.made
		f.timers[n], f.at[n] = do, f.clock+uint64(d)
		return func() { delete(f.timers, n) }
	}
	f.ticks.propose = func(done func()) { f.apply(); done() }
	return f
}

// apply is an entry.
func (f *fakeTicks) apply() {
	f.entries++
	slices.Sort(f.dues)
	for range f.each {
		if len(f.dues) > 0 && f.dues[0] <= f.clock {
			f.dues = f.dues[1:]
		}
	}
	f.look()
}

// run lets time pass.
func (f *fakeTicks) run(until uint64) {
	for {
		next := 0
		for n := range f.timers {
			if f.at[n] <= until && (next == 0 || f.at[n] < f.at[next]) {
				next = n
			}
		}
		if next == 0 {
			f.clock = until
			return
		}
		do := f.timers[next]
		delete(f.timers, next)
		f.clock = max(f.clock, f.at[next])
		do()
	}
}

func TestTicks(t *testing.T) {
	const ms = uint64(time.Millisecond)
	f := newFakeTicks()
	f.look()
	require.Empty(t, f.timers, "nothing is due, nothing runs")
	f.dues = []uint64{100 * ms}
	f.look()
	f.look()
	require.Len(t, f.timers, 1)
	f.dues = append(f.dues, 50*ms)
	f.look()
	require.Len(t, f.timers, 1, "the timer moves to what is due first")
	f.run(99 * ms)
	require.Equal(t, 1, f.entries)
	require.Equal(t, []uint64{100 * ms}, f.dues)
	f.run(100 * ms)
	require.Equal(t, 2, f.entries)
	require.Empty(t, f.dues)
	require.Empty(t, f.timers)

	f.dues = []uint64{200 * ms, 300 * ms}
	f.look()
	f.clock = 250 * ms // entries come for other reasons
	f.apply()
	before := f.entries
	f.run(299 * ms)
	require.Equal(t, before, f.entries, "what is done needs no tick")
	f.run(301 * ms)
	require.Equal(t, before+1, f.entries)

	for range 25 { // more than an entry does
		f.dues = append(f.dues, 400*ms)
	}
	f.look()
	before = f.entries
	f.run(500 * ms)
	require.Equal(t, before+3, f.entries)
	require.Empty(t, f.dues)

	f.dues = []uint64{600 * ms}
	f.look()
	f.close()
	f.look()
	require.Empty(t, f.timers)
}
