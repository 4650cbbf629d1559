package replica

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/tests/bubble"
)

// certainNow calls WhenVouched and reports whether it was answered at once.
func (n *clusterNode) certainNow(v Vouch) (bool, chan error) {
	out := make(chan error, 1)
	n.WhenVouched(v, func(err error) { out <- err })
	return len(out) == 1, out
}

// TestVouched: of three nodes one that follows is enough for the leader to know that
// it leads, and nobody else's word is.
func TestVouched(t *testing.T) {
	inCluster(t, 3, nil, func(t *testing.T, c *cluster) {
		c.settled()
		leader, follower := c.leader(), c.follower()
		v := follower.Vouch()
		require.Equal(t, Vouch{gearsfs.MemberID(follower.id), leader.Status().Term}, v)
		require.Zero(t, leader.Vouch())
		sent := c.figure(&c.sent)
		now, out := leader.certainNow(v)
		require.True(t, now)
		require.NoError(t, <-out)
		require.Equal(t, sent, c.figure(&c.sent))

		self := Vouch{gearsfs.MemberID(leader.id), v.Term}
		for _, bad := range []Vouch{{}, self, {v.Member, v.Term - 1}, {v.Member, v.Term + 1}, {77, v.Term}, {Member: v.Member}} {
			now, out := leader.certainNow(bad)
			require.False(t, now, bad)
			require.NoError(t, <-out, "it has asked")
		}
		now, out = follower.certainNow(v)
		require.True(t, now)
		wantCode(t, gearsfs.ErrNotLeader, <-out)

		c.isolate(leader, true)
		c.eventually("another leader", func() bool { return follower.Status().Term > v.Term && !leader.led() })
		now, out = leader.certainNow(v)
		require.True(t, now)
		wantCode(t, gearsfs.ErrNotLeader, <-out)
		c.isolate(leader, false)
	})
}

// TestVouchedOfMore: of five nodes two are no majority, nor of four.
func TestVouchedOfMore(t *testing.T) {
	inCluster(t, 3, nil, func(t *testing.T, c *cluster) {
		for _, id := range []uint64{4, 5} {
			c.join(id)
			c.settled()
			now, out := c.leader().certainNow(c.follower().Vouch())
			require.False(t, now)
			require.NoError(t, <-out)
		}
	})
}

// supersede has another node lead, if n does, without n hearing of it: for a while
// both believe that they do.
func (c *cluster) supersede(ctx context.Context, n *clusterNode, to uint64) {
	if !n.led() || to == n.id {
		return
	}
	c.mu.Lock()
	for id := range c.nodes {
		c.cut[[2]uint64{id, n.id}] = true
	}
	c.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancel()
	n.Transfer(ctx, gearsfs.MemberID(to)) //nolint:errcheck // it does not hear of it
}

// TestVouchedReads: a read that a member has vouched for shows all that was
// acknowledged before it did so, however late the leader, or who was it, gets it.
func TestVouchedReads(t *testing.T) {
	answered := 0
	for seed := range uint64(20) {
		inCluster(t, 3, nil, func(t *testing.T, c *cluster) {
			rnd := rand.New(rand.NewPCG(seed, 2))
			var mu sync.Mutex
			var acked []string
			ctx, stop := context.WithCancel(context.Background())
			var writers sync.WaitGroup
			for i := range uint64(3) {
				writers.Go(func() {
					pace := time.NewTicker(10 * time.Millisecond)
					defer pace.Stop()
					for j := 0; ; j++ {
						select {
						case <-pace.C:
						case <-ctx.Done():
							return
						}
						data := fmt.Sprintf("%d.%d", i, j)
						for id := range uint64(3) {
							if n := c.nodes[id+1]; n.led() && n.put(data, true).err == nil {
								mu.Lock()
								acked = append(acked, data)
								mu.Unlock()
								break
							}
						}
					}
				})
			}
			for range 300 {
				switch rnd.IntN(20) {
				case 0:
					c.isolate(c.nodes[1+rnd.Uint64N(3)], rnd.IntN(2) == 0)
				case 1:
					c.supersede(ctx, c.nodes[1+rnd.Uint64N(3)], 1+rnd.Uint64N(3))
				}
				by := c.nodes[1+rnd.Uint64N(3)]
				mu.Lock()
				before := slices.Clone(acked)
				mu.Unlock()
				v := by.Vouch()
				bubble.Spend(time.Duration(rnd.Int64N(int64(time.Second) >> rnd.IntN(12))))
				for id := range uint64(3) {
					n := c.nodes[id+1]
					seen := n.machine.records()
					now, out := n.certainNow(v)
					if !now || <-out != nil {
						continue
					}
					answered++
					has := make(map[string]bool, len(seen))
					for _, r := range seen {
						has[r] = true
					}
					for _, r := range before {
						require.True(t, has[r], "seed %d: node %d does not show %s, for which %d vouched %+v", seed, n.id, r, by.id, v)
					}
				}
			}
			stop()
			for id := range uint64(3) {
				c.isolate(c.nodes[id+1], false)
			}
			writers.Wait()
			synctest.Wait()
		})
	}
	require.Greater(t, answered, 1000)
}
