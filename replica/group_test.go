package replica

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/tests/bubble"
	"github.com/gearsfs/gearsfs/wire"
)

func TestPutAndReopen(t *testing.T) {
	log, machine := new(memLog), new(memMachine)
	f := openTest(t, log, machine, nil)
	require.Equal(t, uint64(7), f.Status().Leader)
	for _, durable := range []bool{false, true} {
		out := f.put("a", durable)
		require.NoError(t, out.err)
		require.NotZero(t, out.answer.FirstSeq)
	}
	require.NoError(t, f.Barrier(context.Background()))
	require.NoError(t, f.Close())
	require.NoError(t, f.Close())
	require.Equal(t, []string{"a", "a"}, machine.records())
	require.Equal(t, log.Last(), machine.saved.index, "nothing to replay after Close")

	again := openTest(t, log, machine.restart(), nil)
	require.NoError(t, again.put("b", true).err)
	require.Equal(t, []string{"a", "a", "b"}, again.machine.records())
	require.Greater(t, again.Status().Term, f.Status().Term)
	status := again.Status()
	require.Equal(t, status.Commit, status.Applied)
	require.Equal(t, status.Commit, status.Durable)
	require.NoError(t, again.Close())
}

// TestHeard: it returns behind a pass that began behind another one that had all
// messages, and not at all where there are none any more.
func TestHeard(t *testing.T) {
	f := openTest(t, new(memLog), new(memMachine), nil)
	ctx := context.Background()
	passes := 0
	for range 3 {
		f.order(order{do: func() error { passes++; return nil }})
		require.NoError(t, f.Heard(ctx))
	}
	require.Equal(t, 3, passes)
	gone, cancel := context.WithCancel(ctx)
	cancel()
	block := make(chan struct{})
	f.order(order{do: func() error { <-block; return nil }})
	require.ErrorIs(t, f.Heard(gone), context.Canceled)
	close(block)
	require.NoError(t, f.Close())
	wantCode(t, gearsfs.ErrClosed, f.Heard(ctx))
}

// TestOrder proposes calls of several commands from many goroutines: each
// proposer's order stays, and a call is in one entry, without strangers.
func TestOrder(t *testing.T) {
	f := openTest(t, new(memLog), new(memMachine), func(_ *Config, l *limits) {
		l.entryCommands, l.entryBytes = 20, 600
	})
	const proposers, calls = 16, 200
	var wg sync.WaitGroup
	for p := range proposers {
		wg.Go(func() {
			var done sync.WaitGroup
			rnd := rand.New(rand.NewPCG(1, uint64(p)))
			for c := range calls {
				n := 1 + rnd.IntN(30)
				ps := make([]*Proposal, n)
				entries := make([]uint64, n)
				done.Add(n)
				for i := range ps {
					ps[i] = &Proposal{
						Command: put(fmt.Sprintf("%d %d %d/%d", p, c, i, n)), Durable: rnd.IntN(2) == 0,
						Done: func(a *wire.Answer, err error) {
							if err != nil {
								t.Error(err)
							}
							entries[i] = a.GetIno()
							done.Done()
						},
					}
				}
				f.Propose(ps...)
				if rnd.IntN(4) == 0 {
					done.Wait()
					for i := range entries {
						if entries[i] != entries[0] {
							t.Errorf("one call in the entries %v", entries)
						}
					}
				}
			}
			done.Wait()
		})
	}
	wg.Wait()
	require.NoError(t, f.Close())

	next := [proposers]int{}
	records := f.machine.records()
	for len(records) > 0 {
		var p, c, i, n int
		_, err := fmt.Sscanf(records[0], "%d %d %d/%d", &p, &c, &i, &n)
		require.NoError(t, err)
		require.Equal(t, next[p], c)
		next[p]++
		for i := range n {
			require.Equal(t, fmt.Sprintf("%d %d %d/%d", p, c, i, n), records[i])
		}
		records = records[n:]
	}
	for p := range next {
		require.Equal(t, calls, next[p])
	}
	for _, size := range f.machine.state.sizes {
		require.LessOrEqual(t, size, 30, "an entry holds one call, or stays in its bounds")
	}
}

// TestDurable holds a sync up: durable proposals wait for one that began after
// they were written, others do not, and those that come meanwhile share one.
func TestDurable(t *testing.T) {
	log := new(memLog)
	f := openTest(t, log, new(memMachine), nil)
	_, opened := new(f.Timings().Sync).Cumulative()
	log.mu.Lock()
	log.syncGate, log.syncBegan = make(chan struct{}), make(chan struct{})
	log.mu.Unlock()

	first := f.start("first", true)
	<-log.syncBegan
	require.NoError(t, f.put("other", false).err)
	var later []<-chan outcome
	for range 10 {
		later = append(later, f.start("later", true))
		require.NoError(t, f.put("other", false).err) // so it is applied
	}
	var when error = errors.New("not called")
	whenDone := make(chan struct{})
	f.WhenCertain(func(err error) { when = err; close(whenDone) })
	require.Empty(t, first)
	before := f.Status()
	require.Less(t, before.Durable, before.Applied)

	log.syncGate <- struct{}{}
	require.NoError(t, (<-first).err)
	<-log.syncBegan
	for _, out := range later {
		require.Empty(t, out)
	}
	log.syncGate <- struct{}{}
	for _, out := range later {
		require.NoError(t, (<-out).err)
	}
	<-whenDone
	require.NoError(t, when)
	require.Equal(t, before.Applied, f.Status().Durable)
	_, commits := new(f.Timings().Commit).Cumulative()
	require.EqualValues(t, 11, commits, "of entries that somebody wants on disk")
	_, syncs := new(f.Timings().Sync).Cumulative()
	require.EqualValues(t, 2, syncs-opened)
	log.mu.Lock()
	log.syncGate, log.syncBegan = nil, nil
	log.mu.Unlock()
	called := false
	f.WhenCertain(func(err error) { called = err == nil })
	require.True(t, called, "at once where all is on disk")
	require.NoError(t, f.Close())
	f.WhenCertain(func(err error) { called = err == nil })
	require.True(t, called)
}

// TestSync: who waits for the disk syncs it, and shares the next sync where one is
// under way. Nothing else runs here that could.
func TestSync(t *testing.T) {
	log := &memLog{syncGate: make(chan struct{}), syncBegan: make(chan struct{})}
	failed := make(chan error, 1)
	d := newDisk(log, new(stepped), func(err error) { failed <- err }, func() {})
	await := func() <-chan error {
		out := make(chan error, 1)
		go func() { out <- d.await() }()
		return out
	}
	first := await()
	<-log.syncBegan
	d.wrote(1, false, false)
	log.syncGate <- struct{}{}
	require.NoError(t, <-first, "it does not wait for what came later")
	require.False(t, d.isSynced(2, false))

	second := await()
	<-log.syncBegan
	d.wrote(2, false, false)
	joins := make(chan error, 1)
	d.whenSynced(func(err error) { joins <- err })
	log.syncGate <- struct{}{}
	require.NoError(t, <-second)
	require.Empty(t, joins, "it was written after that sync began")
	third := await()
	<-log.syncBegan
	log.syncGate <- struct{}{}
	require.NoError(t, <-third)
	require.NoError(t, <-joins)
	require.NoError(t, d.await(), "there is nothing to sync")

	d.wrote(3, false, false)
	log.failSync = 1
	fourth := await()
	<-log.syncBegan
	log.syncGate <- struct{}{}
	require.ErrorIs(t, <-failed, errDisk)
	d.abort(errDisk)
	require.Error(t, <-fourth)
}

func TestLazySync(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := new(memLog)
		f := openTest(t, log, new(memMachine), nil)
		require.NoError(t, f.put("a", false).err)
		require.NoError(t, f.put("b", false).err)
		require.Less(t, log.syncedIndex(), log.Last())
		bubble.Pass(100 * time.Millisecond)
		require.Equal(t, log.Last(), log.syncedIndex())
		syncs := log.syncs
		bubble.Pass(time.Hour)
		require.Equal(t, syncs, log.syncs, "nothing is synced without need")
		require.NoError(t, f.Close())
	})
}

func TestOverload(t *testing.T) {
	log := new(memLog)
	f := openTest(t, log, new(memMachine), func(_ *Config, l *limits) {
		l.heldCommands, l.heldBytes, l.callBytes = 5, 400, 300
	})
	big := strings.Repeat("x", 200)
	wantCode(t, gearsfs.ErrTooBig, f.put(big+big, false).err)

	log.mu.Lock()
	log.syncGate = make(chan struct{})
	log.mu.Unlock()
	var held []<-chan outcome
	for range 5 {
		held = append(held, f.start("a", true))
	}
	wantCode(t, gearsfs.ErrOverload, f.put("b", false).err)
	close(log.syncGate)
	for _, out := range held {
		require.NoError(t, (<-out).err)
	}
	require.NoError(t, f.put(big, true).err)
	require.Zero(t, f.held.bytes.Load())
	require.Zero(t, f.held.commands.Load())
	require.NoError(t, f.Close())
}

func TestHeldBytes(t *testing.T) {
	log := new(memLog)
	f := openTest(t, log, new(memMachine), func(_ *Config, l *limits) { l.heldBytes = 400 })
	log.mu.Lock()
	log.syncGate = make(chan struct{})
	log.mu.Unlock()
	big := f.start(strings.Repeat("x", 250), true)
	wantCode(t, gearsfs.ErrOverload, f.put(strings.Repeat("x", 250), false).err)
	close(log.syncGate)
	require.NoError(t, (<-big).err)
	require.NoError(t, f.Close())
}

func TestCloseFinishes(t *testing.T) {
	f := openTest(t, new(memLog), new(memMachine), func(_ *Config, l *limits) { l.entryCommands = 3 })
	var outs []<-chan outcome
	for i := range 1000 {
		outs = append(outs, f.start(fmt.Sprint(i), i%2 == 0))
	}
	require.NoError(t, f.Close())
	for _, out := range outs {
		require.Len(t, out, 1)
		require.NoError(t, (<-out).err)
	}
	require.Len(t, f.machine.records(), 1000)
	require.Equal(t, f.log.Last(), f.log.syncedIndex())
	wantCode(t, gearsfs.ErrClosed, f.put("late", false).err)
	wantCode(t, gearsfs.ErrClosed, f.Barrier(context.Background()))
}

// TestClock lets the clock jump: in a tenure that changes nothing, and log time
// never falls; memMachine refuses that.
func TestClock(t *testing.T) {
	clock, world := time.Unix(1000, 0), new(stepped)
	log, machine := new(memLog), new(memMachine)
	open := func() *Group {
		cfg := testConfig(log, machine, nil)
		cfg.Clock = func() time.Time { return clock }
		g, err := prepare(cfg, defaultLimits, world)
		require.NoError(t, err)
		return g
	}
	g := open()
	put := func() time.Time {
		g.Propose(&Proposal{Command: put("a"), Done: func(*wire.Answer, error) {}})
		require.True(t, world.step(g, true))
		require.GreaterOrEqual(t, g.Time(), machine.LogTime())
		return time.Unix(0, int64(machine.LogTime()))
	}
	for _, step := range []time.Duration{0, time.Hour, -2 * time.Hour, time.Nanosecond} {
		clock = clock.Add(step)
		world.advance(time.Second)
		put()
		require.Zero(t, machine.jump)
	}
	require.Equal(t, time.Unix(1004, 0), put())
	g.beginClose()
	require.False(t, world.step(g, true))

	machine, clock = machine.restart(), time.Unix(-5, 0)
	g = open()
	require.Equal(t, time.Unix(1004, 0), put(), "also after a restart")
	world.advance(time.Minute)
	require.Equal(t, time.Unix(1064, 0), put())
	require.Zero(t, machine.jump, "it passed")
	machine, clock = machine.restart(), time.Unix(5000, 0)
	g = open()
	world.advance(time.Minute)
	require.Equal(t, time.Unix(5060, 0), put())
	require.EqualValues(t, (5000-1064)*time.Second, machine.jump)
	put()
	require.Zero(t, machine.jump, "the first entry tells")
}

// TestJump: what a node has seen pass since the last entry is no jump.
func TestJump(t *testing.T) {
	for _, c := range []struct {
		wall, elapsed, want time.Duration
	}{
		{100 * time.Second, 7 * time.Second, 0},
		{105 * time.Second, 12 * time.Second, 0},
		{105 * time.Second, 10 * time.Second, 2 * time.Second},
		{102 * time.Second, 12 * time.Second, 0},
		{time.Hour, 7 * time.Second, time.Hour - 100*time.Second},
	} {
		p := passed{time: uint64(100 * time.Second), at: 7 * time.Second, jump: 5}
		p.jumpTo(uint64(c.wall), c.elapsed)
		require.Equal(t, c.want, time.Duration(p.jump), "%v", c)
	}
	first := passed{}
	first.jumpTo(uint64(time.Hour), time.Second)
	require.Zero(t, first.jump, "there is nothing before")
}

func TestBarrierByReadIndex(t *testing.T) {
	f := openTest(t, new(memLog), new(memMachine), nil)
	f.alone.Store(false) // as in a group of several
	for range 3 {
		require.NoError(t, f.put("a", false).err)
		require.NoError(t, f.Barrier(context.Background()))
	}
	require.NoError(t, f.Close())
	wantCode(t, gearsfs.ErrClosed, f.Barrier(context.Background()))
}

// TestConfChange replays an entry that adds a learner.
func TestConfChange(t *testing.T) {
	log, machine := new(memLog), new(memMachine)
	f := openTest(t, log, machine, nil)
	require.NoError(t, f.put("a", true).err)
	require.NoError(t, f.Close())

	kind, change, err := raftpb.MarshalConfChange(&raftpb.ConfChangeV2{Changes: []*raftpb.ConfChangeSingle{
		{Type: raftpb.ConfChangeAddLearnerNode.Enum(), NodeId: new(uint64(8))},
	}})
	require.NoError(t, err)
	entry := LogEntry{Index: log.Last() + 1, Term: f.Status().Term, Type: uint8(kind), Data: change}
	require.NoError(t, log.Append([]LogEntry{entry}, nil))
	machine = machine.restart()
	for range 2 {
		f = openTest(t, log, machine, nil)
		require.NoError(t, f.put("b", true).err)
		conf := new(raftpb.ConfState)
		require.NoError(t, proto.Unmarshal(machine.ConfState(), conf))
		require.Equal(t, []uint64{7}, conf.GetVoters())
		require.Equal(t, []uint64{8}, conf.GetLearners())
		require.NoError(t, f.Close())
	}
	require.Equal(t, []string{"a", "b", "b"}, machine.records())
}

func TestOpenRefuses(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*Config, *memLog, *memMachine)
		want   error
	}{
		{"log begins too late", func(_ *Config, l *memLog, m *memMachine) {
			l.front, l.entries = LogEntry{Index: 4, Term: 2}, l.entries[4:]
		}, gearsfs.ErrDamaged},
		{"other term", func(_ *Config, l *memLog, m *memMachine) { m.state.term++ }, gearsfs.ErrDamaged},
		{"hard state", func(_ *Config, l *memLog, m *memMachine) { l.hard = []byte{0xff} }, gearsfs.ErrDamaged},
		{"conf state", func(_ *Config, l *memLog, m *memMachine) { m.state.conf = []byte{0xff} }, gearsfs.ErrDamaged},
		{"entry", func(_ *Config, l *memLog, m *memMachine) { l.entries[len(l.entries)-1].Data = []byte{0xff} }, gearsfs.ErrDamaged},
		{"several voters and a short log", func(_ *Config, l *memLog, m *memMachine) {
			conf, err := proto.Marshal(&raftpb.ConfState{Voters: []uint64{7, 8, 9}})
			require.NoError(t, err)
			m.state.conf, l.entries = conf, nil
		}, gearsfs.ErrDamaged},
		{"another node's state", func(c *Config, l *memLog, m *memMachine) { c.ID = 8 }, gearsfs.ErrForeign},
		{"another node's log", func(c *Config, l *memLog, m *memMachine) { c.ID = 8; m.state = machineState{} }, gearsfs.ErrForeign},
		{"no id", func(c *Config, l *memLog, m *memMachine) { c.ID = 0 }, gearsfs.ErrInvalid},
	} {
		t.Run(c.name, func(t *testing.T) {
			log, machine := new(memLog), new(memMachine)
			f := openTest(t, log, machine, nil)
			require.NoError(t, f.put("a", true).err)
			<-machine.flush()
			require.NoError(t, f.put("b", true).err)
			require.NoError(t, f.put("c", true).err)
			after := log.crash(0)
			machine = machine.restart() // at entry 3, the log at 5
			require.NoError(t, f.Close())
			cfg := testConfig(after, machine, make(chan error, 1))
			c.change(&cfg, after, machine)
			_, err := Open(cfg)
			wantCode(t, c.want, err)
		})
	}
}
