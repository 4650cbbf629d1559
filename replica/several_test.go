package replica

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
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
		time.Sleep(200 * time.Millisecond)
		progress := c.nodes[1].Status().Progress
		require.Len(t, progress, 2)
		for _, p := range progress {
			require.True(t, p.Active)
			require.False(t, p.Snapshot)
			require.EqualValues(t, c.nodes[1].Status().Last, p.Match)
			require.Zero(t, p.BehindBytes)
		}
		require.Nil(t, c.nodes[2].Status().Progress)
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
			leader.start()
			acked = append(acked, c.count(fmt.Sprint(round, ".back."), 20)...)
		}
		inOrderOf(t, c.settled(), acked)
	})
}
