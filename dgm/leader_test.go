package dgm

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
)

var fakeQueue = gearsfs.At("/q")

func putText(ctx context.Context, m Manager, text string) (PutResult, error) {
	return m.Put(ctx, Put{File: fakeQueue, Key: "k", Records: []gearsfs.NewRecord{{Data: []byte(text)}}})
}

func takeText(ctx context.Context, m Manager) (string, error) {
	rs, err := m.Take(ctx, Take{File: fakeQueue, Keys: []gearsfs.Key{"k"}})
	if err != nil {
		return "", err
	}
	return string(rs[0].Data), nil
}

func TestRemoteFindsTheLeader(t *testing.T) {
	t.Run("told", func(t *testing.T) {
		c := newFakeCluster(t, 3)
		c.lead(2)
		_, err := putText(t.Context(), c.dial(c.addrs(0)), "x")
		require.NoError(t, err)
		require.Zero(t, c.nodes[1].accepted(), "it was told where to go")
	})
	t.Run("by looking", func(t *testing.T) {
		c := newFakeCluster(t, 3)
		c.hints = false
		c.lead(2)
		_, err := putText(t.Context(), c.dial(c.addrs()), "x")
		require.NoError(t, err)
	})
	t.Run("by waiting", func(t *testing.T) {
		c := newFakeCluster(t, 3)
		c.leader = -1
		done := make(chan error, 1)
		go func() {
			r, err := c.tryDial(t.Context(), c.addrs())
			if err == nil {
				err = r.Close()
			}
			done <- err
		}()
		require.Eventually(t, func() bool { return c.nodes[2].accepted() > 1 }, 5*time.Second, time.Millisecond, "it keeps asking")
		c.lead(1)
		require.NoError(t, <-done)
	})
	t.Run("among what it has learned", func(t *testing.T) {
		c := newFakeCluster(t, 3)
		c.hints = false
		r := c.dial(c.addrs(0))
		c.nodes[0].stop()
		c.lead(2)
		_, err := putText(t.Context(), r, "x")
		require.NoError(t, err)
	})
}

func TestDialPassesByWhoDoesNotAnswer(t *testing.T) {
	c := newFakeCluster(t, 3)
	c.lead(1)
	c.nodes[0].freeze()
	ctx, cancel := context.WithTimeout(t.Context(), dialTimeout/2) // what the frozen node alone would use up
	defer cancel()
	r, err := c.tryDial(ctx, c.addrs(0, 1))
	require.NoError(t, err)
	require.Equal(t, 1, c.nodes[0].accepted(), "it was tried first, and once")
	c.nodes[0].thaw()
	require.NoError(t, r.Close())
}

func TestRemoteIgnoresNodesOfAnotherVolume(t *testing.T) {
	c := newFakeCluster(t, 2)
	r := c.dial(c.addrs(0))
	route := r.route.(*dialRoute)
	route.mu.Lock()
	route.volume = []byte("another")
	route.mu.Unlock()
	c.nodes[0].stop()
	c.lead(1)
	require.Eventually(t, func() bool { return c.nodes[1].accepted() > 1 }, 5*time.Second, time.Millisecond)
	r.mu.Lock()
	defer r.mu.Unlock()
	require.Nil(t, r.link)
}

func TestRetryGivesTheFirstAnswer(t *testing.T) {
	c := newFakeCluster(t, 2)
	r := c.dial(c.addrs())
	for i := range 5 {
		done := make(chan PutResult, 1)
		c.mu.Lock() // until it is known that the answer will be lost
		go func() {
			res, err := putText(t.Context(), r, fmt.Sprint(i))
			if err != nil {
				t.Error(err)
			}
			done <- res
		}()
		c.loseAnswerLocked()
		c.mu.Unlock()
		c.lead(1 - i%2)
		require.Equal(t, gearsfs.Seq(i+1), (<-done).Last)
	}
	require.Equal(t, []string{"0", "1", "2", "3", "4"}, c.puts)
}

func TestWaitingTakeMovesOn(t *testing.T) {
	c := newFakeCluster(t, 3)
	taker, putter := c.dial(c.addrs()), c.dial(c.addrs())
	for i := range 6 {
		taken := make(chan string, 1)
		go func() {
			text, err := takeText(t.Context(), taker)
			if err != nil {
				t.Error(err)
			}
			taken <- text
		}()
		c.awaitTakers(1)
		switch i % 3 {
		case 0: // deposed: it tells those who wait
			c.lead(1)
		case 1:
			c.nodes[1].stop()
			c.lead(2)
			c.nodes[1].start()
		case 2:
			c.nodes[2].freeze()
			c.lead(0)
		}
		_, err := putText(t.Context(), putter, fmt.Sprint(i))
		require.NoError(t, err)
		require.Equal(t, fmt.Sprint(i), <-taken)
		c.nodes[2].thaw()
	}
	require.Len(t, c.puts, 6)
	require.Empty(t, c.queue)
}

func TestCancelledWhileNobodyLeads(t *testing.T) {
	c := newFakeCluster(t, 2)
	r := c.dial(c.addrs())
	c.lead(-1)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := takeText(ctx, r)
		done <- err
	}()
	require.Eventually(t, func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.futile+r.calls.count > 0 && r.link == nil
	}, 5*time.Second, time.Millisecond)
	cancel()
	// It may have reached a node before that was known not to lead.
	if err := <-done; !errors.Is(err, gearsfs.ErrMaybe) {
		require.ErrorIs(t, err, context.Canceled)
	}
}

func TestWatchReportsAGap(t *testing.T) {
	c := newFakeCluster(t, 2)
	r := c.dial(c.addrs())
	started, done := make(chan struct{}), make(chan error, 1)
	go func() {
		done <- r.Watch(t.Context(), func() { close(started) }, func([]gearsfs.Change) {})
	}()
	<-started
	c.nodes[0].stop()
	c.lead(1)
	require.ErrorIs(t, <-done, gearsfs.ErrOverload)
}

func TestRefusedSessionIsNoError(t *testing.T) {
	c := newFakeCluster(t, 1)
	r := c.dial(c.addrs())
	first := r.Session()
	c.mu.Lock()
	c.refused[first] = true // the clock was set forward
	c.mu.Unlock()
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			if _, err := putText(t.Context(), r, fmt.Sprint(i)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	require.NotEqual(t, first, r.Session())
	require.Len(t, c.puts, 20)
}

func TestForgottenSessionIsMaybeForWhatWasSent(t *testing.T) {
	c := newFakeCluster(t, 2)
	r := c.dial(c.addrs())
	done := make(chan error, 1)
	c.mu.Lock()
	go func() {
		_, err := putText(t.Context(), r, "x")
		done <- err
	}()
	c.loseAnswerLocked()
	clear(c.sessions)
	c.mu.Unlock()
	c.lead(1)
	require.ErrorIs(t, <-done, gearsfs.ErrMaybe)
	_, err := putText(t.Context(), r, "y")
	require.NoError(t, err)
}

func TestNodeClient(t *testing.T) {
	c := newFakeCluster(t, 3)
	c.leader = -1
	n, err := DialNode(t.Context(), c.addrs(1), RemoteOptions{})
	require.NoError(t, err)
	defer func() { require.NoError(t, n.Close()) }()
	nodes, err := n.Nodes(t.Context())
	require.NoError(t, err, "without a leader")
	require.Len(t, nodes, 3)
	removed := make(chan error, 1)
	go func() { removed <- n.RemoveNode(t.Context(), "n2") }()
	c.lead(0)
	require.NoError(t, <-removed)
	c.mu.Lock()
	c.die = true // before it answers
	c.mu.Unlock()
	require.NoError(t, n.RemoveNode(t.Context(), "n1"))
	require.ErrorIs(t, n.RemoveNode(t.Context(), "n1"), gearsfs.ErrNotFound)
	st, err := n.Status(t.Context())
	require.NoError(t, err)
	require.Equal(t, "n1", st.Name, "it describes the node that was dialled")
	require.ErrorIs(t, n.Verify(t.Context()), gearsfs.ErrUnknownOp)
	c.nodes[1].stop()
	c.nodes[1].start()
	_, err = n.Status(t.Context())
	require.NoError(t, err, "after a restart")
}

// TestLeaderChangesLoseNothing has clients put and take while leaders are
// deposed, killed before and after they have applied something, and frozen.
func TestLeaderChangesLoseNothing(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	c := newFakeCluster(t, 3)
	const clients, each = 3, 150
	var working sync.WaitGroup
	var mu sync.Mutex
	var got []string
	for i := range clients {
		p, q := c.dial(c.addrs()), c.dial(c.addrs(i))
		working.Go(func() {
			for n := range each {
				if _, err := putText(t.Context(), p, fmt.Sprintf("%d %04d", i, n)); err != nil {
					t.Errorf("put: %v", err)
					return
				}
			}
		})
		working.Go(func() {
			for range each {
				text, err := takeText(t.Context(), q)
				if err != nil {
					t.Errorf("take: %v", err)
					return
				}
				mu.Lock()
				got = append(got, text)
				mu.Unlock()
			}
		})
	}
	go func() {
		working.Wait()
		c.mu.Lock()
		c.over = true
		c.changed.Broadcast()
		c.mu.Unlock()
	}()
	faults := 0
	for ; c.awaitApplied(10 + rnd.Uint64N(30)); faults++ {
		oneFault(c, rnd)
	}
	for _, n := range c.nodes {
		n.thaw()
	}
	require.Greater(t, faults, 8, "too few to tell")
	require.Len(t, c.puts, clients*each)
	ordered := slices.Clone(c.puts)
	slices.SortStableFunc(ordered, func(a, b string) int { return int(a[0]) - int(b[0]) })
	require.True(t, slices.IsSorted(ordered), "a client's puts are in order")
	slices.Sort(got)
	want := slices.Sorted(slices.Values(c.puts))
	require.Equal(t, want, got)
}

func oneFault(c *fakeCluster, rnd *rand.Rand) {
	c.mu.Lock()
	old := c.leader
	c.hints = rnd.IntN(2) == 0
	c.mu.Unlock()
	next := rnd.IntN(len(c.nodes))
	for _, n := range c.nodes {
		n.thaw()
	}
	switch kind := rnd.IntN(4); {
	case old < 0 || kind == 0:
		c.lead(next)
	case kind == 1:
		c.nodes[old].stop()
		c.lead(next)
		c.nodes[old].start()
	case kind == 2:
		next = (old + 1) % len(c.nodes)
		c.nodes[old].freeze()
		c.lead(next)
	default:
		c.loseAnswer()
		c.lead(next)
	}
}

func TestDialSaysWhatIsMissing(t *testing.T) {
	c := newFakeCluster(t, 2)
	c.lead(1)
	c.nodes[1].stop()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	_, err := c.tryDial(ctx, c.addrs(0))
	require.ErrorIs(t, err, gearsfs.ErrNoNode)
	require.ErrorContains(t, err, "the node that leads can't be reached")
	c.nodes[1].start()
	c.lead(-1)
	ctx, cancel = context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	_, err = c.tryDial(ctx, c.addrs())
	require.ErrorContains(t, err, "no node leads")
}
