package dgm_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm"
)

// ways in which a node ceases to lead.
var ways = []struct {
	name string
	fail func(c *nodes)
}{
	{"transfer", func(c *nodes) { c.changeLeader() }},
	{"close", func(c *nodes) { c.leader().close() }},
	{"cut off", func(c *nodes) { c.cutOff() }},
}

// cutOff has nobody reach the node that leads until another does.
func (c *nodes) cutOff() {
	c.t.Helper()
	leads := c.leader()
	leads.way.cut()
	require.Eventually(c.t, func() bool { return !leads.vol.Serves() }, 20*time.Second, time.Millisecond)
	c.leader()
	leads.way.mend()
}

// TestFailover: what clients wait for and hold outlives the node that leads,
// whichever node they came by.
func TestFailover(t *testing.T) {
	t.Parallel()
	for _, way := range ways {
		t.Run(way.name, func(t *testing.T) {
			c := newNodes(t, "a", "b", "c")
			leads, follows := c.leader(), c.follower()
			clients := map[string]dgm.Manager{
				"follower": local(t, follows.vol),
				"remote":   dial(t, c.addrs(), dgm.RemoteOptions{}),
			}
			if way.name != "close" { // what is local to a process ends with it
				clients["leader"] = local(t, leads.vol)
			}
			other := local(t, follows.vol)
			put(t, other, "full", "0")
			require.NoError(t, other.Configure(t.Context(), gearsfs.At("/q"), "full", dgm.StreamChange{Limits: &gearsfs.Limits{Records: 1}}))
			held := make(map[string]*holding)
			for name, m := range clients {
				held[name] = hold(t, name, m, other)
			}
			waits := local(t, leads.vol)
			untilWaits(t, waits, 3*len(clients))
			require.NoError(t, waits.Close())
			seen := watchNames(t, other)

			way.fail(c)

			for name, m := range clients {
				held[name].check(t, name, m, other)
			}
			for range len(clients) + 1 { // the puts that waited for room
				got := receive(t, takeLater(t.Context(), other, dgm.Take{File: gearsfs.At("/q"), Keys: []gearsfs.Key{"full"}}))
				require.NoError(t, got.err)
			}
			for name := range clients {
				require.NoError(t, <-held[name].put, name)
			}
			_, err := clients["remote"].Make(t.Context(), gearsfs.RootIno, "last", dgm.Make{Mode: 0o100644})
			require.NoError(t, err)
			for name := range seen {
				if name == "last" {
					break
				}
			}
			if leads.vol == nil {
				require.NoError(t, leads.start(""))
			}
			require.Eventually(t, func() bool {
				return leads.status().Applied >= c.leader().status().Applied
			}, 20*time.Second, time.Millisecond)
		})
	}
}

// holding is what a client has and waits for.
type holding struct {
	lease gearsfs.Receipt
	ino   gearsfs.Ino // open, without a name
	take  <-chan taken
	put   chan error
	file  gearsfs.Ino // locked
	lock  chan error  // of another who waits for that
}

var wholeFile = gearsfs.FileLock{Owner: 1, Write: true, End: gearsfs.LockEnd}

func hold(t *testing.T, name string, m, other dgm.Manager) *holding {
	t.Helper()
	h := &holding{put: make(chan error, 1), lock: make(chan error, 1)}
	file, err := m.Make(t.Context(), gearsfs.RootIno, "locked-"+name, dgm.Make{Mode: 0o100644})
	require.NoError(t, err)
	h.file = file.Ino
	require.NoError(t, m.Lock(t.Context(), h.file, wholeFile, true))
	go func() { h.lock <- other.Lock(t.Context(), h.file, wholeFile, false) }()
	key := gearsfs.Key(name)
	put(t, m, key+"-lease", "leased")
	rs, err := m.Take(t.Context(), dgm.Take{File: gearsfs.At("/q"), Keys: []gearsfs.Key{key + "-lease"}, Lease: true})
	require.NoError(t, err)
	h.lease = *rs[0].Receipt
	attr, err := m.Make(t.Context(), gearsfs.RootIno, "file-"+name, dgm.Make{Mode: 0o100644})
	require.NoError(t, err)
	h.ino = attr.Ino
	_, err = m.Open(t.Context(), h.ino)
	require.NoError(t, err)
	require.NoError(t, m.Unlink(t.Context(), gearsfs.RootIno, "file-"+name))
	h.take = takeLater(t.Context(), m, dgm.Take{File: gearsfs.At("/q"), Keys: []gearsfs.Key{key}})
	go func() {
		_, err := m.Put(t.Context(), dgm.Put{File: gearsfs.At("/q"), Key: "full", Records: []gearsfs.NewRecord{{Data: []byte(name)}}})
		h.put <- err
	}()
	return h
}

func (h *holding) check(t *testing.T, name string, m, other dgm.Manager) {
	t.Helper()
	put(t, other, gearsfs.Key(name), "for "+name)
	got := receive(t, h.take)
	require.NoError(t, got.err, name)
	require.Equal(t, "for "+name, string(got.records[0].Data))
	require.NoError(t, m.Settle(t.Context(), dgm.Settle{Receipts: []gearsfs.Receipt{h.lease}}), name)
	require.ErrorIs(t, other.Lock(t.Context(), h.file, wholeFile, true), gearsfs.ErrLocked, name)
	select {
	case err := <-h.lock:
		require.Fail(t, "a lock did not survive", "%s: %v", name, err)
	default:
	}
	require.NoError(t, m.Unlock(t.Context(), h.file, wholeFile), name)
	require.NoError(t, <-h.lock, name)
	_, err := m.GetAttr(t.Context(), h.ino)
	require.NoError(t, err, name)
	require.NoError(t, m.Release(t.Context(), h.ino))
	goes(t, other, h.ino)
}

// watchNames yields the names that change, until the test ends.
func watchNames(t *testing.T, m dgm.Manager) <-chan string {
	t.Helper()
	names, started := make(chan string, 1000), make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		err := m.Watch(ctx, func() { close(started) }, func(cs []gearsfs.Change) {
			for _, c := range cs {
				names <- c.Name
			}
		})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("watch: %v", err)
		}
	})
	t.Cleanup(wg.Wait)
	t.Cleanup(cancel)
	<-started
	return names
}

// TestFailovers: while nodes lead and are cut off in turn, each record that was
// put is taken once, in its putter's order, and no file stays that nobody has.
func TestFailovers(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	c := newNodes(t, "a", "b", "c")
	first := local(t, c.leader().vol)
	put(t, first, "other", "so that the file is there")
	clients := []dgm.Manager{dial(t, c.addrs(), dgm.RemoteOptions{}), dial(t, c.all[0].addr(), dgm.RemoteOptions{})}
	for _, n := range c.all {
		clients = append(clients, local(t, n.vol))
	}
	const each = 40
	var ops sync.WaitGroup
	for i, m := range clients {
		key := gearsfs.Key(fmt.Sprint("k", i))
		taker := clients[(i+1)%len(clients)]
		ops.Go(func() {
			for n := range each {
				_, err := m.Put(t.Context(), dgm.Put{File: gearsfs.At("/q"), Key: key, Records: []gearsfs.NewRecord{{Data: fmt.Append(nil, n)}}})
				if err != nil {
					t.Errorf("client %d: put: %v", i, err)
					return
				}
				if n%10 == 0 {
					if err := makeOpenUnlink(t.Context(), m, fmt.Sprintf("f%d-%d", i, n)); err != nil {
						t.Errorf("client %d: file: %v", i, err)
						return
					}
				}
			}
		})
		ops.Go(func() {
			for n := range each {
				rs, err := taker.Take(t.Context(), dgm.Take{File: gearsfs.At("/q"), Keys: []gearsfs.Key{key}, Lease: n%2 == 0})
				if err == nil && n%2 == 0 {
					err = taker.Settle(t.Context(), dgm.Settle{Receipts: []gearsfs.Receipt{*rs[0].Receipt}})
				}
				if err != nil {
					t.Errorf("client %d: take: %v", i, err)
					return
				}
				if got := string(rs[0].Data); got != fmt.Sprint(n) {
					t.Errorf("record %d of client %d is %s", n, i, got)
					return
				}
			}
		})
	}
	done := make(chan struct{})
	go func() {
		ops.Wait()
		close(done)
	}()
	for running := true; running; {
		leads := c.leader()
		if rnd.IntN(2) == 0 {
			to := c.all[rnd.IntN(len(c.all))]
			m := local(t, leads.vol)
			if err := m.TransferLeader(t.Context(), to.name); err != nil && !errors.Is(err, gearsfs.ErrBusy) {
				t.Errorf("transfer: %v", err)
			}
		} else {
			c.cutOff()
		}
		select {
		case <-done:
			running = false
		case <-time.After(time.Duration(rnd.Int64N(int64(300 * time.Millisecond)))):
		}
	}
	require.Eventually(t, func() bool {
		usage, err := local(t, c.leader().vol).StatFS(t.Context(), gearsfs.RootIno)
		return err == nil && usage.Inodes == 2 // the root and q
	}, 30*time.Second, 10*time.Millisecond)
}

// TestLeasesOutliveAClock: the lead goes to a node whose clock is an hour ahead,
// and what is leased stays so for as long as it was to be.
func TestLeasesOutliveAClock(t *testing.T) {
	t.Parallel()
	c := newNodes(t, "a")
	for _, name := range []string{"b", "c"} {
		n := c.add(name)
		n.ahead.Store(int64(time.Hour))
		require.NoError(t, n.start(c.all[0].addr()))
		require.NoError(t, n.vol.WaitVoter(t.Context(), nil))
	}
	r := dial(t, c.addrs(), dgm.RemoteOptions{})
	put(t, r, "q", "1", "2", "3")
	lease := func(d time.Duration, byReceipt bool) gearsfs.Receipt {
		rs, err := r.Take(t.Context(), dgm.Take{File: gearsfs.At("/q"), Keys: []gearsfs.Key{"q"}, Lease: true, LeaseFor: d, ByReceipt: byReceipt})
		require.NoError(t, err)
		return *rs[0].Receipt
	}
	held := []gearsfs.Receipt{lease(30*time.Second, false), lease(30*time.Second, true)}
	short := lease(2*time.Second, true)
	require.Equal(t, "a", c.leader().name)
	before := time.Now()
	c.changeLeader()
	require.NotEqual(t, "a", c.leader().name)
	put(t, r, "other", "x") // an entry of the new leader's, whose time is an hour later
	at, err := r.Peek(t.Context(), dgm.Peek{File: gearsfs.At("/q"), Key: "other"})
	require.NoError(t, err)
	require.Greater(t, at[0].Time, before.Add(time.Hour/2))

	again := receive(t, takeLater(t.Context(), r, dgm.Take{File: gearsfs.At("/q"), Keys: []gearsfs.Key{"q"}}))
	require.NoError(t, again.err)
	require.Equal(t, "3", string(again.records[0].Data), "the short one comes back, and it alone")
	require.ErrorIs(t, r.Settle(t.Context(), dgm.Settle{Receipts: []gearsfs.Receipt{short}}), gearsfs.ErrGone)
	require.NoError(t, r.Settle(t.Context(), dgm.Settle{Receipts: held, Extend: 30 * time.Second}))
	require.NoError(t, r.Settle(t.Context(), dgm.Settle{Receipts: held}))
}
