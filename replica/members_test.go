package replica

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/tests/bubble"
)

func TestMembers(t *testing.T) {
	inCluster(t, 3, nil, func(t *testing.T, c *cluster) {
		ctx := context.Background()
		acked := c.count("a", 5)
		leader, follower := c.leader(), c.follower()
		require.Contains(t, leader.machine.given(), "add 2")
		wantCode(t, gearsfs.ErrNotLeader, follower.AddLearner(ctx, 9, nil))
		wantCode(t, gearsfs.ErrNotLeader, follower.RemoveMember(ctx, 9, nil))
		require.NoError(t, leader.RemoveMember(ctx, 9, nil), "it is not there")
		require.NoError(t, leader.AddLearner(ctx, gearsfs.MemberID(follower.id), nil), "it is there")
		wantCode(t, gearsfs.ErrBusy, leader.RemoveMember(ctx, gearsfs.MemberID(leader.id), nil))
		wantCode(t, gearsfs.ErrInvalid, leader.AddLearner(ctx, 0, nil))

		// One that is not there stays a learner, and can go again.
		require.NoError(t, leader.AddLearner(ctx, 9, []byte("nobody")))
		bubble.Pass(5 * time.Second)
		require.Equal(t, []gearsfs.MemberID{9}, leader.Status().Learners)
		wantCode(t, gearsfs.ErrNotMember, leader.Transfer(ctx, 9))
		acked = append(acked, c.count("b", 5)...)
		require.NoError(t, leader.RemoveMember(ctx, 9, []byte("gone")))

		// Changes in flight exclude each other.
		c.isolate(leader, true)
		first := make(chan error, 1)
		go func() { first <- leader.AddLearner(ctx, 10, nil) }()
		synctest.Wait()
		wantCode(t, gearsfs.ErrBusy, leader.AddLearner(ctx, 11, nil))
		wantCode(t, gearsfs.ErrMaybe, <-first)
		c.isolate(leader, false)
		inOrderOf(t, c.settled(), acked)
		require.Empty(t, c.leader().Status().Learners)

		// A fourth and a fifth.
		c.join(4)
		c.join(5)
		acked = append(acked, c.count("c", 5)...)
		require.Len(t, c.leader().Status().Voters, 5)
		require.Equal(t, acked, c.settled())
	})
}

// TestRemoved removes members until one is left.
func TestRemoved(t *testing.T) {
	inCluster(t, 3, nil, func(t *testing.T, c *cluster) {
		ctx := context.Background()
		acked := c.count("a", 5)
		leader := c.leader()
		for id, n := range c.nodes {
			if n == leader {
				continue
			}
			require.NoError(t, leader.RemoveMember(ctx, gearsfs.MemberID(id), []byte("bye")))
			c.eventually("removed", func() bool { return n.Status().Removed })
			acked = append(acked, c.count(fmt.Sprint("b", id), 5)...)
			// It is passive, also when it starts again, and disturbs nobody.
			n.stop()
			n.boot()
			bubble.Pass(10 * time.Second)
			require.True(t, n.Status().Removed)
			require.False(t, n.led())
			acked = append(acked, c.count(fmt.Sprint("c", id), 5)...)
		}
		require.True(t, leader.alone.Load())
		require.NoError(t, leader.Barrier(ctx))
		require.Len(t, leader.ledIn(), 1, "it led all the time")
		require.Equal(t, acked, slices.DeleteFunc(leader.machine.records(), func(s string) bool { return s == "" }))
		leader.stop()
		leader.boot()
		require.True(t, leader.led(), "it is alone, and leads when it is open")
	})
}

// TestRemoveNeeded does not remove the member without which nothing goes on,
// but the dead one.
func TestRemoveNeeded(t *testing.T) {
	inCluster(t, 3, nil, func(t *testing.T, c *cluster) {
		ctx := context.Background()
		dead := c.follower()
		dead.kill()
		bubble.Pass(3 * time.Second)
		leader, other := c.leader(), c.follower()
		wantCode(t, gearsfs.ErrBusy, leader.RemoveMember(ctx, gearsfs.MemberID(other.id), nil))
		require.NoError(t, leader.RemoveMember(ctx, gearsfs.MemberID(dead.id), nil))
		require.Len(t, c.count("a", 5), 5)
		// It does not know, asks for votes, and is not heard.
		dead.boot()
		term := leader.Status().Term
		bubble.Pass(30 * time.Second)
		require.Equal(t, term, leader.Status().Term)
		require.False(t, dead.Status().Removed)
	})
}

// TestLearnerSeesNoMore: with a learner beside it a single voter commits nothing
// that is not on its disk, or a power cut took it back while the learner has it.
func TestLearnerSeesNoMore(t *testing.T) {
	inCluster(t, 1, nil, func(t *testing.T, c *cluster) {
		n := c.nodes[1]
		require.NoError(t, n.AddLearner(context.Background(), 9, nil))
		gate := make(chan struct{})
		n.log.mu.Lock()
		n.log.syncGate = gate
		n.log.mu.Unlock()
		out := n.start("a", false)
		bubble.Pass(time.Minute)
		require.Empty(t, out)
		require.Empty(t, n.machine.records())
		close(gate)
		require.NoError(t, waitOut(t, out).err)
	})
}

// smallLog flushes and cuts the log often, and keeps little.
func smallLog(keep uint64) func(*Config, *limits) {
	return func(cfg *Config, l *limits) {
		cfg.KeepLogBytes = keep
		l.flushBytes = 2000
	}
}

var long = strings.Repeat("x", 100)

// TestRetention kills a follower: while it is away no longer than the log is
// kept, it catches up from the log, else by a snapshot.
func TestRetention(t *testing.T) {
	inCluster(t, 3, smallLog(20_000), func(t *testing.T, c *cluster) {
		victim := c.follower()
		for _, away := range []struct{ puts, installs int }{{50, 0}, {1000, 1}, {50, 1}, {1000, 2}} {
			victim.kill()
			acked := c.count(fmt.Sprint(away.installs, long), away.puts)
			bubble.Spend(time.Second)
			for _, n := range c.nodes {
				if n.up {
					require.Less(t, n.log.Bytes(), uint64(30_000), "the log grows")
					require.Greater(t, n.log.Bytes(), uint64(5_000))
				}
			}
			victim.boot()
			inOrderOf(t, c.settled(), acked)
			require.Equal(t, away.installs, c.figure(&victim.installs))
		}
		// All have all: the leader keeps nothing.
		c.count("end", 100)
		leader := c.leader()
		for range 40 { // in memLog a segment has 32 entries
			c.settled()
		}
		require.Less(t, leader.log.Bytes(), uint64(20_000))
	})
}

// TestJoinBySnapshot adds a member to a group whose log does not begin at 1.
func TestJoinBySnapshot(t *testing.T) {
	inCluster(t, 1, smallLog(1000), func(t *testing.T, c *cluster) {
		acked := c.count(long, 200)
		require.Greater(t, c.nodes[1].log.First(), uint64(100))
		for id := range uint64(2) {
			n := c.join(id + 2)
			require.Equal(t, 1, c.figure(&n.installs))
			acked = append(acked, c.count(fmt.Sprint("b", id, long), 20)...)
		}
		require.Equal(t, acked, c.settled())
		for _, n := range c.nodes {
			n.kill()
		}
		for _, n := range c.nodes {
			n.boot()
		}
		require.Equal(t, acked, c.settled())
	})
}

// TestSnapshotFails refuses snapshots for a while: they are asked for again, not
// too often.
func TestSnapshotFails(t *testing.T) {
	inCluster(t, 1, smallLog(1000), func(t *testing.T, c *cluster) {
		acked := c.count(long, 200)
		c.mu.Lock()
		c.refuse = errDisk
		c.mu.Unlock()
		n := c.add(2, true)
		c.addLearner(2)
		bubble.Pass(time.Minute)
		require.Zero(t, c.figure(&n.installs))
		require.Less(t, c.figure(&c.made), 120)
		require.Greater(t, c.figure(&c.made), 1)
		c.mu.Lock()
		c.refuse = nil
		c.mu.Unlock()
		c.promoted(n)
		require.Equal(t, acked, c.settled())
	})
}

// TestSlowSnapshot has the lead change while a member fetches a snapshot, which
// is as good under the new leader, and what is written meanwhile is kept for it.
func TestSlowSnapshot(t *testing.T) {
	inCluster(t, 3, smallLog(50_000), func(t *testing.T, c *cluster) {
		c.count(long, 800)
		c.mu.Lock()
		c.fetch = 20 * time.Second
		c.mu.Unlock()
		began := time.Now()
		n := c.add(4, true)
		c.addLearner(4)
		c.eventually("it needs a snapshot", func() bool { return c.leader().Status().Progress[4].Snapshot })
		bubble.Pass(10 * time.Second)
		heir := c.follower()
		require.NoError(t, c.leader().Transfer(context.Background(), gearsfs.MemberID(heir.id)))
		c.eventually("another leader", heir.led)
		acked := c.count(fmt.Sprint("b", long), 100)
		c.promoted(n)
		require.Equal(t, 1, c.figure(&n.installs))
		require.Less(t, time.Since(began), 25*time.Second, "the first was of no use")
		inOrderOf(t, c.settled(), acked)
	})
}

// TestSnapshotOverTail gives a snapshot to a node that has entries which nobody
// committed.
func TestSnapshotOverTail(t *testing.T) {
	inCluster(t, 3, smallLog(1000), func(t *testing.T, c *cluster) {
		old := c.leader()
		c.isolate(old, true)
		var lost []<-chan outcome
		for range 4 { // more would wait for them
			lost = append(lost, old.start("lost", false))
			synctest.Wait()
		}
		for _, out := range lost {
			wantCode(t, gearsfs.ErrMaybe, waitOut(t, out).err)
		}
		acked := c.count(long, 500)
		c.isolate(old, false)
		require.Equal(t, acked, c.settled())
		require.Equal(t, 1, c.figure(&old.installs))
		acked = append(acked, c.count("b", 10)...)
		require.Equal(t, acked, c.settled())
		require.Equal(t, old.Status().Applied, old.Status().Durable)
	})
}

// TestInstalled: a log that was replaced is on disk, also where a sync of the
// old one ends later.
func TestInstalled(t *testing.T) {
	log := &memLog{syncGate: make(chan struct{}), syncBegan: make(chan struct{})}
	d := newDisk(log, new(stepped), func(err error) { t.Error(err) }, func() {})
	seq := d.wrote(5, true, false)
	synced := make(chan bool)
	go func() { synced <- d.sync() }()
	<-log.syncBegan
	d.installed(100)
	require.True(t, d.isSynced(seq, false))
	require.EqualValues(t, 100, d.syncedIndex())
	close(log.syncGate)
	require.True(t, <-synced)
	require.EqualValues(t, 100, d.syncedIndex())
	require.False(t, d.sync())
}

// TestJoint: who is given a vote knows until when the old voters are needed for it,
// and from then on the group can lose its leader.
func TestJoint(t *testing.T) {
	inCluster(t, 2, nil, func(t *testing.T, c *cluster) {
		leader, other := c.leader(), c.follower()
		leaves := func(e *raftpb.Entry) bool {
			return e.GetType() == raftpb.EntryConfChangeV2 && len(e.GetData()) == 0
		}
		c.setDrop(func(_, to uint64, message []byte) bool {
			m, err := decodeMessage(message)
			return err == nil && to == other.id && slices.ContainsFunc(m.GetEntries(), leaves)
		})
		n := c.add(3, true)
		c.addLearner(3)
		votes := func() bool { return slices.Contains(n.Status().Voters, gearsfs.MemberID(3)) }
		c.eventually("a vote", votes)
		require.True(t, n.Status().Joint)
		require.Equal(t, [][]gearsfs.MemberID{{1, 2, 3}, {1, 2}}, n.Quorums())
		c.setDrop(nil)
		c.promoted(n)
		require.Equal(t, [][]gearsfs.MemberID{{1, 2, 3}}, n.Quorums())
		leader.kill()
		require.NotSame(t, leader, c.leader())
	})
}
