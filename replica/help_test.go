package replica

import (
	"fmt"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/wire"
)

// asleepNow waits until the loop sleeps.
func asleepNow(g *Group) {
	for asleep := false; !asleep; runtime.Gosched() {
		g.mu.Lock()
		asleep = g.asleep
		g.mu.Unlock()
	}
}

func quickly(_ *Config, l *limits) { l.quickSync = time.Hour }

// Whoever brings a proposal while the loop sleeps has its answer when it leaves:
// it did the loop's work, and that of the disk. (A timer may wake the loop in the
// moment between: then that does it.)
func TestHelp(t *testing.T) {
	log := new(memLog)
	f := openTest(t, log, new(memMachine), quickly)
	require.NoError(t, f.put("first", true).err) // its sync tells how long one takes
	before := log.hastened
	var want []string
	helped := 0
	for i := range 100 {
		data := fmt.Sprint(i)
		want = append(want, data)
		asleepNow(f.Group)
		f.Enter()
		out := f.start(data, true)
		require.Empty(t, out)
		f.Leave()
		if len(out) > 0 {
			helped++
		}
		require.NoError(t, (<-out).err)
	}
	require.Greater(t, helped, len(want)*9/10)
	require.Equal(t, append([]string{"first"}, want...), f.machine.records())
	require.NoError(t, f.Close())
	require.Greater(t, log.hastened-before, len(want)*9/10, "syncs that the log was told of before the entries were applied")
}

// Where several come together the log is not told of a sync before: a caller that
// waits alone gains by it, and for the others it is one way more through the kernel.
func TestCrowdIsNotHastened(t *testing.T) {
	log := new(memLog)
	f := openTest(t, log, new(memMachine), quickly)
	visit := func(puts int) {
		asleepNow(f.Group)
		f.Enter()
		var outs []<-chan outcome
		for range puts {
			outs = append(outs, f.start("data", true))
		}
		f.Leave()
		for _, out := range outs {
			require.NoError(t, (<-out).err)
		}
	}
	for range 20 { // until that is what it is used to
		visit(crowdMax)
	}
	before := log.hastened
	for range 20 {
		visit(crowdMax)
	}
	require.Equal(t, before, log.hastened, "in a crowd")
	for range 40 {
		visit(1)
	}
	require.NoError(t, f.Close())
	require.Greater(t, log.hastened-before, 20, "alone again")
}

// Helpers, those who only propose, and the timers of the loop meet in every
// order, whoever syncs; each has its puts in order, all of them once.
func TestHelpers(t *testing.T) {
	for _, nodes := range []int{1, 3} {
		for _, quick := range []time.Duration{0, time.Hour} {
			t.Run(fmt.Sprint(nodes, quick), func(t *testing.T) {
				inCluster(t, nodes, func(_ *Config, l *limits) {
					l.quickSync, l.followSync = quick, quick
					l.flushBytes = 4000 // flushes come and go
				}, helpers)
			})
		}
	}
}

func helpers(t *testing.T, c *cluster) {
	const putters, puts = 8, 200
	leader := c.leader()
	had := len(leader.machine.records())
	var wg sync.WaitGroup
	for p := range putters {
		wg.Go(func() {
			for i := range puts {
				out := make(chan error, 1)
				if p%2 == 0 {
					leader.Enter()
				}
				leader.Propose(&Proposal{
					Command: put(fmt.Sprint(p, "/", i)), Durable: i%3 > 0, Prompt: i%5 == 0,
					Done: func(_ *wire.Answer, err error) { out <- err },
				})
				if p%2 == 0 {
					leader.Leave()
				}
				if err := <-out; err != nil {
					t.Errorf("put %d/%d: %v", p, i, err)
				}
			}
		})
	}
	wg.Wait()
	next := make(map[int]int)
	for _, data := range leader.machine.records()[had:] {
		var p, i int
		_, err := fmt.Sscanf(data, "%d/%d", &p, &i)
		require.NoError(t, err)
		require.Equal(t, next[p], i, "of %d", p)
		next[p]++
	}
	require.Len(t, next, putters)
	for _, n := range c.nodes {
		c.eventually("the same on all", func() bool { return len(n.machine.records()) == had+putters*puts })
	}
}

// What a follower is sent is on its disk when the one who brought it leaves, also
// where a leader would leave so long a sync to another goroutine.
func TestFollowerHelps(t *testing.T) {
	inCluster(t, 3, func(_ *Config, l *limits) { l.quickSync, l.followSync = 0, time.Hour }, func(t *testing.T, c *cluster) {
		c.count("a", 3)
		c.settled()
		follower := c.follower()
		brought := make(chan []byte, 1)
		c.setDrop(func(_, to uint64, message []byte) bool {
			if m, err := decodeMessage(message); err == nil && to == follower.id && len(m.GetEntries()) > 0 {
				select {
				case brought <- slices.Clone(message):
				default:
				}
			}
			return to == follower.id
		})
		before := follower.log.Last()
		require.NoError(t, c.leader().put("b", true).err)
		message := <-brought
		asleepNow(follower.Group)
		follower.Enter()
		follower.Receive(message)
		follower.Leave()
		follower.log.mu.Lock()
		last, synced := follower.log.last(), follower.log.synced
		follower.log.mu.Unlock()
		require.Greater(t, last, before)
		require.Equal(t, last, synced)
		c.setDrop(nil)
		c.settled()
	})
}

// Who works in the loop's place does the next thing too that comes meanwhile:
// here an order that comes in during its sync.
func TestHelpOnceMore(t *testing.T) {
	log := &memLog{}
	f := openTest(t, log, new(memMachine), quickly)
	require.NoError(t, f.put("first", true).err)
	asleepNow(f.Group)
	log.mu.Lock()
	log.syncBegan, log.syncGate = make(chan struct{}), make(chan struct{})
	log.mu.Unlock()
	left := make(chan struct{})
	ordered := false
	f.Enter()
	out := f.start("second", true)
	go func() {
		defer close(left)
		f.Leave()
	}()
	<-log.syncBegan
	f.order(order{do: func() error {
		f.mu.Lock()
		defer f.mu.Unlock()
		ordered = f.helping
		return nil
	}})
	log.syncGate <- struct{}{}
	<-left
	require.NoError(t, (<-out).err)
	require.True(t, ordered)
	log.mu.Lock()
	log.syncBegan, log.syncGate = nil, nil
	log.mu.Unlock()
	require.NoError(t, f.Close())
}

// A helper that meets a broken state machine ends the Group, not itself.
func TestHelperFails(t *testing.T) {
	machine := new(memMachine)
	f := openTest(t, new(memLog), machine, quickly)
	require.NoError(t, f.put("good", true).err)
	asleepNow(f.Group)
	machine.mu.Lock()
	machine.fail = true
	machine.mu.Unlock()
	f.Enter()
	out := f.start("bad", true)
	f.Leave()
	require.ErrorIs(t, <-f.fatal, errDisk)
	wantCode(t, gearsfs.ErrMaybe, (<-out).err)
	require.ErrorIs(t, f.Close(), errDisk)
	f.Enter()
	wantCode(t, gearsfs.ErrClosed, f.put("late", true).err)
	f.Leave()
}

// What comes while a sync runs is held back: the more others wait for that, the
// larger the entry. What is left when it ends shares the next sync, as one entry.
// Who need not be durable waits for no sync, and has those before it go on.
func TestHeldForSync(t *testing.T) {
	log := new(memLog)
	f := openTest(t, log, new(memMachine), func(_ *Config, l *limits) { l.quickSync = 0 })
	log.mu.Lock()
	log.syncGate, log.syncBegan = make(chan struct{}), make(chan struct{}, 100)
	log.mu.Unlock()

	var outs []<-chan outcome
	many := make([]*Proposal, 20)
	for i := range many {
		out := make(chan outcome, 1)
		many[i] = &Proposal{Command: put(fmt.Sprint("many ", i)), Durable: true, Done: func(a *wire.Answer, err error) {
			out <- outcome{a, err}
		}}
		outs = append(outs, out)
	}
	f.Propose(many...)
	<-log.syncBegan
	asleepNow(f.Group)
	had := log.Last()
	for i := range 9 { // fewer than half of those that wait
		outs = append(outs, f.start(fmt.Sprint("held ", i), true))
		asleepNow(f.Group)
		require.Equal(t, had, log.Last())
	}
	outs = append(outs, f.start("tenth", true))
	asleepNow(f.Group)
	require.Equal(t, had+1, log.Last(), "the ten are one entry")
	for i := range 3 {
		outs = append(outs, f.start(fmt.Sprint("left ", i), true))
		asleepNow(f.Group)
		require.Equal(t, had+1, log.Last())
	}
	log.syncGate <- struct{}{} // the sync ends, and the next one is for all of them
	<-log.syncBegan
	require.Equal(t, had+2, log.Last())
	for i := range 5 {
		outs = append(outs, f.start(fmt.Sprint("again ", i), true))
		asleepNow(f.Group)
		require.Equal(t, had+2, log.Last())
	}
	require.NoError(t, waitOut(t, f.start("hasty", false)).err)
	require.Equal(t, had+3, log.Last())
	asleepNow(f.Group)
	outs = append(outs, f.start("last", true))
	asleepNow(f.Group)
	require.Equal(t, had+3, log.Last())
	closed := make(chan error)
	go func() { closed <- f.Close() }()
	close(log.syncGate)
	for _, out := range outs {
		require.NoError(t, waitOut(t, out).err)
	}
	require.NoError(t, <-closed)
}
