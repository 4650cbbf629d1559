package replica

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/tests/bubble"
)

func TestThree(t *testing.T) {
	inCluster(t, 3, nil, func(t *testing.T, c *cluster) {
		acked := c.count("a", 100)
		require.Len(t, acked, 100)
		inOrderOf(t, c.settled(), acked)
		require.Equal(t, acked, c.settled())
		for _, n := range c.nodes {
			s := n.Status()
			require.Equal(t, []gearsfs.MemberID{1, 2, 3}, s.Voters)
			require.Empty(t, s.Learners)
			require.Equal(t, uint64(1), s.Leader)
			require.False(t, s.LeaderSince.IsZero())
			require.Equal(t, s.Applied, s.Durable)
			require.NoError(t, n.Barrier(context.Background()))
		}
		bubble.Pass(200 * time.Millisecond)
		progress := c.nodes[1].Status().Progress
		require.Len(t, progress, 2)
		for _, p := range progress {
			require.True(t, p.Active)
			require.False(t, p.Snapshot)
			require.EqualValues(t, c.nodes[1].Status().Last, p.Match)
			require.Zero(t, p.BehindBytes)
		}
		require.Nil(t, c.nodes[2].Status().Progress)

		// The network takes no time: the others apply at once.
		began := time.Now()
		require.NoError(t, c.nodes[1].put("fast", true).err)
		for c.nodes[2].Status().Applied < c.nodes[1].Status().Applied {
			bubble.Spend(time.Millisecond)
		}
		require.Less(t, time.Since(began), tick/2)
		wantCode(t, gearsfs.ErrNotLeader, c.nodes[2].put("x", true).err)
	})
}

// TestFailover kills the leader again and again: nothing that was acknowledged
// is lost.
func TestFailover(t *testing.T) {
	inCluster(t, 3, nil, func(t *testing.T, c *cluster) {
		var acked []string
		for round := range 5 {
			acked = append(acked, c.count(fmt.Sprint(round, "."), 20)...)
			leader := c.leader()
			leader.kill()
			acked = append(acked, c.count(fmt.Sprint(round, ".down."), 20)...)
			leader.boot()
			acked = append(acked, c.count(fmt.Sprint(round, ".back."), 20)...)
		}
		inOrderOf(t, c.settled(), acked)
	})
}

// TestDied: those who know that the leader's process is gone do not wait for an
// election timeout.
func TestDied(t *testing.T) {
	inCluster(t, 3, nil, func(t *testing.T, c *cluster) {
		for range 10 {
			leader := c.leader()
			leader.kill()
			began := time.Now()
			for _, n := range c.nodes {
				if n.up {
					n.Died(gearsfs.MemberID(leader.id))
				}
			}
			require.NotSame(t, leader, c.leader())
			require.Less(t, time.Since(began), 500*time.Millisecond)
			leader.boot()
			c.settled()
		}
		// It is of no consequence where it is not true.
		term := c.leader().Status().Term
		c.follower().Died(gearsfs.MemberID(c.leader().id))
		bubble.Pass(5 * time.Second)
		require.LessOrEqual(t, c.leader().Status().Term, term+1)
		c.leader().Died(gearsfs.MemberID(c.follower().id))
		c.settled()
	})
}

// TestEntriesGrow: behind what is in flight few wait for company, and many share
// entries; none is left behind.
func TestEntriesGrow(t *testing.T) {
	inCluster(t, 3, nil, func(t *testing.T, c *cluster) {
		leads := c.leader()
		c.setDrop(func(from, _ uint64, _ []byte) bool { return from == leads.id })
		before := leads.Status().Last
		var outs []<-chan outcome
		more := func(n int) uint64 {
			for range n {
				outs = append(outs, leads.start("x", true))
				synctest.Wait()
			}
			return uint64(leads.Status().Last - before)
		}
		require.EqualValues(t, 4, more(4), "each of few is an entry at once")
		require.EqualValues(t, 4, more(3), "three behind four")
		require.EqualValues(t, 5, more(1), "four behind four")
		require.EqualValues(t, 8, more(92), "a hundred")
		leads.start("last", true)
		c.setDrop(nil)
		for _, out := range outs {
			require.NoError(t, waitOut(t, out).err)
		}
		require.Len(t, c.settled(), 101)
	})
}

// TestDeposed cuts the leader off: it knows after an election timeout, answers
// what is in flight, and what only it had in its log is never applied.
func TestDeposed(t *testing.T) {
	inCluster(t, 3, nil, func(t *testing.T, c *cluster) {
		acked := c.count("a", 5)
		old := c.leader()
		c.isolate(old, true)
		var lost []<-chan outcome
		for i := range 4 { // a fifth would wait for them, and be refused
			lost = append(lost, old.start(fmt.Sprint("lost", i), i%2 == 0))
			synctest.Wait()
		}
		certain := make(chan error, 1)
		old.WhenCertain(func(err error) { certain <- err })
		ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
		require.ErrorIs(t, old.Barrier(ctx), context.DeadlineExceeded)
		cancel()
		fresh := make(chan error, 1)
		go func() { fresh <- old.Barrier(context.Background()) }()

		for _, out := range lost {
			wantCode(t, gearsfs.ErrMaybe, waitOut(t, out).err)
		}
		wantCode(t, gearsfs.ErrNotLeader, <-certain)
		wantCode(t, gearsfs.ErrNotLeader, old.put("late", true).err)
		old.WhenCertain(func(err error) { certain <- err })
		wantCode(t, gearsfs.ErrNotLeader, <-certain)
		require.Zero(t, old.held.commands.Load())
		require.Zero(t, old.held.bytes.Load())

		acked = append(acked, c.count("b", 20)...)
		require.Empty(t, fresh)
		c.isolate(old, false)
		require.NoError(t, <-fresh)
		require.Contains(t, old.machine.records(), "b19", "a barrier saw less than was acknowledged before")
		require.Equal(t, acked, c.settled())
		require.Len(t, old.ledIn(), 2)
	})
}

// TestBarrierWaits: a barrier is over when the follower has applied what was
// committed when it began, not when it knows how much that is.
func TestBarrierWaits(t *testing.T) {
	inCluster(t, 3, nil, func(t *testing.T, c *cluster) {
		c.settled()
		follower := c.follower()
		c.setDrop(func(_, to uint64, b []byte) bool {
			m, err := decodeMessage(b)
			return err == nil && to == follower.id && m.GetType() == raftpb.MsgApp
		})
		require.NoError(t, c.leader().put("a", true).err)
		done := make(chan error, 1)
		go func() { done <- follower.Barrier(context.Background()) }()
		bubble.Pass(time.Minute)
		require.Empty(t, done)
		c.setDrop(nil)
		require.NoError(t, <-done)
		require.Contains(t, follower.machine.records(), "a")
	})
}

// TestCertain: a read of the leader's state is answered when others agree that
// it leads, and all that wait share rounds.
func TestCertain(t *testing.T) {
	inCluster(t, 3, nil, func(t *testing.T, c *cluster) {
		leader := c.leader()
		before := c.figure(&c.sent)
		const n = 500
		done := make(chan error, n)
		for range n {
			leader.WhenCertain(func(err error) { done <- err })
		}
		for range n {
			require.NoError(t, <-done)
		}
		require.Less(t, c.figure(&c.sent)-before, n)

		leader.WhenCertain(func(err error) { done <- err })
		require.NoError(t, <-done)
		c.isolate(leader, true)
		leader.WhenCertain(func(err error) { done <- err })
		require.Empty(t, done)
		wantCode(t, gearsfs.ErrNotLeader, <-done)
		c.isolate(leader, false)
	})
}

// TestLossyNetwork drops messages at random.
func TestLossyNetwork(t *testing.T) {
	for seed := range 10 {
		inCluster(t, 3, nil, func(t *testing.T, c *cluster) {
			rnd := rand.New(rand.NewPCG(uint64(seed), 1))
			c.setDrop(func(uint64, uint64, []byte) bool {
				c.mu.Lock()
				defer c.mu.Unlock()
				return rnd.IntN(10) < 2
			})
			acked := c.count("a", 50)
			for range 20 {
				require.NoError(t, c.follower().Barrier(context.Background()))
			}
			c.setDrop(nil)
			inOrderOf(t, c.settled(), acked)
		})
	}
}

// TestRestartOfAll cuts the power of all nodes at once.
func TestRestartOfAll(t *testing.T) {
	inCluster(t, 3, nil, func(t *testing.T, c *cluster) {
		var acked []string
		for round := range 4 {
			acked = append(acked, c.count(fmt.Sprint(round, "."), 30)...)
			for _, n := range c.nodes {
				n.kill()
			}
			for _, n := range c.nodes {
				n.boot()
			}
		}
		acked = append(acked, c.count("end", 5)...)
		inOrderOf(t, c.settled(), acked)
	})
}

// TestForgottenChange restarts the founder, whose state on disk is from before
// the others joined: it must not believe that it is alone.
func TestForgottenChange(t *testing.T) {
	inCluster(t, 3, nil, func(t *testing.T, c *cluster) {
		for id, n := range c.nodes {
			require.Zero(t, n.machine.restart().state.index, "node %d flushed its state", id)
		}
		founder := c.nodes[1]
		for _, n := range c.nodes {
			n.kill()
		}
		founder.boot()
		bubble.Pass(time.Minute)
		require.False(t, founder.led())
		require.Len(t, founder.Status().Voters, 3)
		c.nodes[2].boot()
		c.count("a", 10)
		founder.kill()
		c.nodes[3].boot()
		c.count("b", 10)
		founder.boot()
		c.settled()
	})
}

// TestLostLog empties the log of a member that had acknowledged entries.
func TestLostLog(t *testing.T) {
	inCluster(t, 3, nil, func(t *testing.T, c *cluster) {
		c.count("a", 10)
		victim := c.follower()
		victim.kill()
		victim.log, victim.machine, victim.joined = new(memLog), new(memMachine), true
		victim.boot()
		err := <-victim.fatal
		wantCode(t, gearsfs.ErrDamaged, err)
		require.ErrorContains(t, err, "remove this node")
		victim.down()
		wantCode(t, gearsfs.ErrDamaged, victim.Close())
		require.Len(t, c.count("b", 10), 10)
	})
}

// TestClocks gives every node a clock that is off, and jumps: log time does not
// fall when the lead changes, which memMachine would refuse.
func TestClocks(t *testing.T) {
	skew := map[uint64]time.Duration{1: time.Hour, 2: -time.Hour, 3: 0}
	change := func(cfg *Config, _ *limits) {
		off := skew[cfg.ID]
		cfg.Clock = func() time.Time { return time.Now().Add(off) }
	}
	inCluster(t, 3, change, func(t *testing.T, c *cluster) {
		var acked []string
		for range 5 {
			acked = append(acked, c.count("a", 5)...)
			leader := c.leader()
			leader.kill()
			acked = append(acked, c.count("b", 5)...)
			leader.boot()
		}
		inOrderOf(t, c.settled(), acked)
	})
}

// TestCloseHandsOver closes the leader under load: what was taken is answered
// well, and another node leads at once.
func TestCloseHandsOver(t *testing.T) {
	inCluster(t, 3, nil, func(t *testing.T, c *cluster) {
		leader := c.leader()
		var outs []<-chan outcome
		for i := range 1000 {
			outs = append(outs, leader.start(fmt.Sprint(i), true))
		}
		began := time.Now()
		leader.stop()
		for _, out := range outs {
			require.NoError(t, waitOut(t, out).err)
		}
		require.NotSame(t, leader, c.leader())
		require.Less(t, time.Since(began), 200*time.Millisecond)
		led := leader.ledIn()
		last := led[len(led)-2:]
		require.Equal(t, strings.Replace(last[0], "true", "false", 1), last[1])
		leader.boot()
		c.settled()
	})
}

// TestCloseAlone closes nodes without a majority.
func TestCloseAlone(t *testing.T) {
	inCluster(t, 3, nil, func(t *testing.T, c *cluster) {
		leader := c.leader()
		for _, n := range c.nodes {
			if n != leader {
				n.kill()
			}
		}
		out := leader.start("a", false)
		began := time.Now()
		leader.stop()
		require.LessOrEqual(t, time.Since(began), 2*time.Second)
		wantCode(t, gearsfs.ErrMaybe, waitOut(t, out).err)
		for _, n := range c.nodes {
			n.boot()
		}
		c.settled()
	})
}

func TestTransfer(t *testing.T) {
	inCluster(t, 3, nil, func(t *testing.T, c *cluster) {
		ctx := context.Background()
		c.count("a", 5)
		for _, to := range []gearsfs.MemberID{2, 3, 3, 1} {
			require.NoError(t, c.leader().Transfer(ctx, to))
			require.EqualValues(t, to, c.nodes[uint64(to)].Status().Leader)
			require.EqualValues(t, to, c.leader().id)
		}
		wantCode(t, gearsfs.ErrNotLeader, c.follower().Transfer(ctx, 1))
		wantCode(t, gearsfs.ErrNotMember, c.leader().Transfer(ctx, 9))
		c.isolate(c.nodes[3], true)
		failed := make(chan error, 1)
		go func() { failed <- c.nodes[1].Transfer(ctx, 3) }()
		synctest.Wait()
		wantCode(t, gearsfs.ErrNotLeader, c.nodes[1].put("x", true).err)
		wantCode(t, gearsfs.ErrBusy, c.nodes[1].Transfer(ctx, 2))
		wantCode(t, gearsfs.ErrBusy, <-failed)
		require.NoError(t, c.nodes[1].put("y", true).err, "it leads again")
		c.isolate(c.nodes[3], false)
		c.settled()
	})
}

// TestReplaces: only what a later message tells too is not sent.
func TestReplaces(t *testing.T) {
	message := func(kind raftpb.MessageType, index, commit uint64, entries int, context string) *raftpb.Message {
		m := &raftpb.Message{Type: kind.Enum(), Term: new(uint64(3)), Index: &index, Commit: &commit}
		for range entries {
			m.Entries = append(m.Entries, new(raftpb.Entry))
		}
		if context != "" {
			m.Context = []byte(context)
		}
		return m
	}
	app, resp, beat, beatResp := raftpb.MsgApp, raftpb.MsgAppResp, raftpb.MsgHeartbeat, raftpb.MsgHeartbeatResp
	rejected := message(resp, 4, 0, 0, "")
	rejected.Reject = new(true)
	newer := message(app, 5, 6, 0, "")
	newer.Term = new(uint64(4))
	for i, c := range []struct {
		prev, next *raftpb.Message
		want       bool
	}{
		{message(app, 5, 4, 0, ""), message(app, 5, 5, 1, ""), true},
		{message(app, 5, 4, 0, ""), message(app, 5, 5, 0, ""), true},
		{message(app, 5, 4, 1, ""), message(app, 6, 5, 1, ""), false},
		{message(app, 5, 4, 0, ""), message(app, 3, 5, 1, ""), false},
		{message(app, 5, 4, 0, ""), newer, false},
		{message(app, 5, 4, 0, ""), message(beat, 5, 5, 0, ""), false},
		{message(resp, 5, 0, 0, ""), message(resp, 6, 0, 0, ""), true},
		{message(resp, 5, 0, 0, ""), message(resp, 4, 0, 0, ""), false},
		{rejected, message(resp, 6, 0, 0, ""), false},
		{message(resp, 3, 0, 0, ""), rejected, false},
		{message(beat, 0, 5, 0, ""), message(beat, 0, 5, 0, "12345678"), true},
		{message(beat, 0, 5, 0, "12345678"), message(beat, 0, 5, 0, ""), false},
		{message(beatResp, 0, 0, 0, "12345678"), message(beatResp, 0, 0, 0, ""), false},
		{message(raftpb.MsgVote, 0, 0, 0, ""), message(raftpb.MsgVote, 0, 0, 0, ""), false},
	} {
		require.Equal(t, c.want, replaces(c.next, c.prev), "case %d", i)
	}
}

// TestDeposedStalled cuts off a leader whose state can't be flushed: what waits
// for that was not written.
func TestDeposedStalled(t *testing.T) {
	change := func(_ *Config, l *limits) { l.flushBytes, l.replayBytes = 1000, 3000 }
	inCluster(t, 3, change, func(t *testing.T, c *cluster) {
		leader := c.leader()
		leader.machine.mu.Lock()
		leader.machine.hold = make(chan struct{})
		leader.machine.mu.Unlock()
		var outs []<-chan outcome
		for range 100 {
			outs = append(outs, leader.start(strings.Repeat("x", 100), false))
			synctest.Wait()
		}
		c.isolate(leader, true)
		applied := 0
		for _, out := range outs {
			if o := waitOut(t, out); o.err == nil {
				applied++
			} else {
				wantCode(t, gearsfs.ErrNotLeader, o.err)
			}
		}
		require.Greater(t, applied, 10)
		require.Less(t, applied, 100)
		require.Zero(t, leader.held.commands.Load())
		close(leader.machine.hold)
		c.isolate(leader, false)
		c.settled()
	})
}

// TestOldAnswer: the answer to a question of an earlier life of this node, when
// it counted its questions from 1 too, is none to one of this life.
func TestOldAnswer(t *testing.T) {
	world := new(stepped)
	open := func() *Group {
		cfg := testConfig(new(memLog), new(memMachine), nil)
		cfg.Joined = true // it knows nobody to ask
		g, err := prepare(cfg, defaultLimits, world)
		require.NoError(t, err)
		return g
	}
	var asked [][]byte
	for range 2 {
		g := open()
		done := make(chan error, 1)
		g.whenFresh(func(err error) { done <- err })
		require.True(t, world.step(g, true))
		for _, context := range asked {
			g.readable([]raft.ReadState{{Index: 0, RequestCtx: context}})
		}
		require.False(t, g.endReads())
		require.Empty(t, done)
		context := binary.BigEndian.AppendUint64(nil, g.loop.reads.life)
		asked = append(asked, binary.BigEndian.AppendUint64(context, g.loop.reads.began))
		g.readable([]raft.ReadState{{Index: 0, RequestCtx: asked[len(asked)-1]}})
		require.False(t, g.endReads())
		require.NoError(t, <-done)
	}
	require.Len(t, asked, 2)
}
