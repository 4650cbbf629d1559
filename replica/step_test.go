package replica

import (
	"cmp"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs/wire"
)

// stepped is a world that stands still: its time passes by advance, and what
// was spawned runs when run is called. It is for one goroutine.
type stepped struct {
	now    time.Duration
	armed  []*steppedTimer
	armsN  int
	queued []func()
}

type steppedTimer struct {
	world *stepped
	f     func()
	at    time.Duration
	n     int // in which order those of the same time fire
}

var _ world = (*stepped)(nil)

func (s *stepped) timer(f func()) timer   { return &steppedTimer{world: s, f: f} }
func (s *stepped) spawn(f func())         { s.queued = append(s.queued, f) }
func (s *stepped) elapsed() time.Duration { return s.now }

func (s *stepped) after(d time.Duration) <-chan time.Time {
	c := make(chan time.Time, 1)
	s.timer(func() { c <- time.Time{} }).Reset(d)
	return c
}

func (t *steppedTimer) Stop() bool {
	before := len(t.world.armed)
	t.world.armed = slices.DeleteFunc(t.world.armed, func(o *steppedTimer) bool { return o == t })
	return len(t.world.armed) < before
}

func (t *steppedTimer) Reset(d time.Duration) bool {
	was := t.Stop()
	t.world.armsN++
	t.at, t.n = t.world.now+d, t.world.armsN
	t.world.armed = append(t.world.armed, t)
	return was
}

// advance lets d pass and fires what is due.
func (s *stepped) advance(d time.Duration) {
	end := s.now + d
	for len(s.armed) > 0 {
		next := slices.MinFunc(s.armed, func(a, b *steppedTimer) int {
			return cmp.Or(cmp.Compare(a.at, b.at), cmp.Compare(a.n, b.n))
		})
		if next.at > end {
			break
		}
		s.now = max(s.now, next.at)
		next.Stop()
		next.f()
	}
	s.now = end
}

// run does what was spawned.
func (s *stepped) run() {
	for len(s.queued) > 0 {
		f := s.queued[0]
		s.queued = s.queued[1:]
		f()
	}
}

// step turns g until it is idle or has ended, syncing or not; it reports whether
// g goes on.
func (s *stepped) step(g *Group, sync bool) bool {
	for {
		var state loopState
		err := g.guard(func() (err error) {
			state, err = g.turn()
			return err
		})
		if err != nil || state == stopped {
			g.finish(err)
			return false
		}
		if len(s.queued) > 0 {
			s.run()
		} else if !sync || !g.disk.sync() {
			return true
		}
	}
}

// TestStepped moves a Group of one by hand.
func TestStepped(t *testing.T) {
	log, machine, world := new(memLog), new(memMachine), new(stepped)
	cfg := testConfig(log, machine, nil)
	g, err := prepare(cfg, defaultLimits, world)
	require.NoError(t, err)
	var done []string
	start := func(data string, durable bool) {
		g.Propose(&Proposal{Command: put(data), Durable: durable, Done: func(_ *wire.Answer, err error) {
			done = append(done, fmt.Sprint(data, " ", err))
		}})
	}
	start("a", true)
	start("b", false)
	require.Empty(t, done)
	require.True(t, world.step(g, false))
	require.Equal(t, []string{"b <nil>"}, done)
	require.True(t, g.disk.sync())
	require.Equal(t, []string{"b <nil>", "a <nil>"}, done)
	require.False(t, g.disk.sync())

	start("c", false)
	require.True(t, world.step(g, true))
	require.Less(t, log.syncedIndex(), log.Last())
	world.advance(lazyDelay)
	require.True(t, world.step(g, true))
	require.Equal(t, log.Last(), log.syncedIndex())

	start("d", true)
	g.beginClose()
	require.False(t, world.step(g, true))
	require.NoError(t, g.outcome())
	require.Len(t, done, 4)
	require.Equal(t, []string{"a", "b", "c", "d"}, machine.records())
}
