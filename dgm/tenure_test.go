package dgm_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm"
)

// bothWays runs a test for a client in the node's process and for one over a
// socket.
func bothWays(t *testing.T, test func(t *testing.T, vol *dgm.Volume, m dgm.Manager)) {
	t.Run("local", func(t *testing.T) {
		vol := openVolume(t, t.TempDir())
		test(t, vol, local(t, vol))
	})
	t.Run("socket", func(t *testing.T) {
		vol := openVolume(t, t.TempDir())
		test(t, vol, dial(t, "unix:"+serveUnix(t, vol), dgm.RemoteOptions{}))
	})
}

// interlude has the node not lead for a moment.
func interlude(vol *dgm.Volume) {
	vol.Depose()
	vol.Reinstate()
	vol.Tenure().Begun()
}

// settled waits until nothing is on its way in a tenure that is over.
func settled(t *testing.T, tenure *dgm.Tenure) {
	t.Helper()
	require.Eventually(t, func() bool { return tenure.Leftovers() == "" }, 10*time.Second, time.Millisecond, "%s", tenure.Leftovers())
}

func TestWaitsOutliveATenure(t *testing.T) {
	bothWays(t, func(t *testing.T, vol *dgm.Volume, m dgm.Manager) {
		take := takeLater(t.Context(), m, takeK)
		missing := takeLater(t.Context(), m, dgm.Take{File: gearsfs.At("/later"), Keys: []gearsfs.Key{"a", "b"}})
		peeked := make(chan taken, 1)
		go func() {
			rs, err := m.Peek(t.Context(), dgm.Peek{File: gearsfs.At("/q"), Key: "peeked"})
			peeked <- taken{rs, err}
		}()
		other := local(t, vol)
		untilWaits(t, other, 3)
		for range 3 {
			old := vol.Tenure()
			interlude(vol)
			settled(t, old)
			untilWaits(t, other, 3)
		}
		put(t, other, "k", "x")
		put(t, other, "peeked", "y")
		_, err := other.Put(t.Context(), dgm.Put{File: gearsfs.At("/later"), Key: "b", Records: []gearsfs.NewRecord{{Data: []byte("z")}}})
		require.NoError(t, err)
		for want, out := range map[string]<-chan taken{"x": take, "y": peeked, "z": missing} {
			got := receive(t, out)
			require.NoError(t, got.err)
			require.Equal(t, want, string(got.records[0].Data))
		}
	})
}

// Puts that wait for room do so in the next tenure, in their order.
func TestFullStreamOutlivesATenure(t *testing.T) {
	bothWays(t, func(t *testing.T, vol *dgm.Volume, m dgm.Manager) {
		file := gearsfs.At("/q")
		put(t, m, "k", "0")
		require.NoError(t, m.Configure(t.Context(), file, "k", dgm.StreamChange{Limits: &gearsfs.Limits{Records: 1}}))
		other := local(t, vol)
		done := make(chan error, 3)
		for i := 1; i <= 3; i++ {
			go func() {
				_, err := m.Put(t.Context(), dgm.Put{File: file, Key: "k", Records: []gearsfs.NewRecord{{Data: []byte{byte('0' + i)}}}})
				done <- err
			}()
			untilWaits(t, other, i)
		}
		interlude(vol)
		untilWaits(t, other, 3)
		for i := range 4 {
			got := receive(t, takeLater(t.Context(), other, takeK))
			require.NoError(t, got.err)
			require.Equal(t, fmt.Sprint(i), string(got.records[0].Data))
		}
		for range 3 {
			require.NoError(t, <-done)
		}
	})
}

// Leases and files without a name stay with a session that comes back.
func TestHoldingsOutliveATenure(t *testing.T) {
	bothWays(t, func(t *testing.T, vol *dgm.Volume, m dgm.Manager) {
		other := local(t, vol)
		put(t, m, "k", "x")
		lease := takeK
		lease.Lease = true
		rs, err := m.Take(t.Context(), lease)
		require.NoError(t, err)
		attr, err := m.Resolve(t.Context(), "/q", true)
		require.NoError(t, err)
		_, err = m.Open(t.Context(), attr.Ino)
		require.NoError(t, err)

		// It is unlinked while its holder is away: before it has come back.
		vol.Depose()
		vol.Reinstate()
		require.NoError(t, other.Unlink(t.Context(), gearsfs.RootIno, "q"))
		interlude(vol)

		got, err := m.GetAttr(t.Context(), attr.Ino)
		require.NoError(t, err)
		require.Zero(t, got.Nlink)
		require.NoError(t, m.Settle(t.Context(), dgm.Settle{Receipts: []gearsfs.Receipt{*rs[0].Receipt}}))
		require.NoError(t, m.Release(t.Context(), attr.Ino))
		goes(t, other, attr.Ino)
	})
}

// goes waits until an inode is deleted.
func goes(t *testing.T, m dgm.Manager, ino gearsfs.Ino) {
	t.Helper()
	require.Eventually(t, func() bool {
		_, err := m.GetAttr(t.Context(), ino)
		return errors.Is(err, gearsfs.ErrStale)
	}, 20*time.Second, time.Millisecond)
}

// What is unlinked while sessions are away stays only for those that come back
// and have it open.
func TestPresumedHolders(t *testing.T) {
	vol := openVolume(t, t.TempDir())
	path := serveUnix(t, vol)
	a := dial(t, "unix:"+path, dgm.RemoteOptions{})
	b := newBridge(t, path)
	gone := dial(t, b.addr(), dgm.RemoteOptions{})
	put(t, a, "k", "x") // so that the state knows them
	put(t, gone, "k", "x")
	attr, err := a.Resolve(t.Context(), "/q", true)
	require.NoError(t, err)
	b.cut()
	vol.Depose()
	vol.Reinstate()
	other := local(t, vol)
	require.NoError(t, other.Unlink(t.Context(), gearsfs.RootIno, "q"))
	_, err = a.GetAttr(t.Context(), gearsfs.RootIno)
	require.NoError(t, err)  // a is back, and has nothing open
	goes(t, other, attr.Ino) // and the other's grace ends
}

// A watch at the leader says that it may have missed something, one on the own
// replica goes on.
func TestWatchOutlivesATenure(t *testing.T) {
	vol := openVolume(t, t.TempDir())
	r, l, other := dial(t, "unix:"+serveUnix(t, vol), dgm.RemoteOptions{}), local(t, vol), local(t, vol)
	started, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- r.Watch(t.Context(), func() { close(started) }, func([]gearsfs.Change) {}) }()
	<-started
	seen, begun := make(chan gearsfs.Change, 100), make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	near := make(chan error, 1)
	go func() {
		near <- l.Watch(ctx, func() { close(begun) }, func(cs []gearsfs.Change) {
			for _, c := range cs {
				seen <- c
			}
		})
	}()
	<-begun
	interlude(vol)
	require.ErrorIs(t, <-ended, gearsfs.ErrOverload, "the leader may have missed changes")
	_, err := other.Make(t.Context(), gearsfs.RootIno, "new", dgm.Make{Mode: 0o644})
	require.NoError(t, err)
	for c := range seen {
		if c.Name == "new" {
			break
		}
	}
	cancel()
	require.ErrorIs(t, <-near, context.Canceled)
}

// When the state of a node is replaced its Locals' watches have missed changes.
func TestWatchOverAnotherState(t *testing.T) {
	vol := openVolume(t, t.TempDir())
	l := local(t, vol)
	started, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- l.Watch(t.Context(), func() { close(started) }, func([]gearsfs.Change) {})
	}()
	<-started
	require.NoError(t, vol.ReplaceState())
	require.ErrorIs(t, <-ended, gearsfs.ErrOverload)
}

// What a session takes after it has come back is not given back by the end of
// what it was before.
func TestEndOfASessionThatComesBack(t *testing.T) {
	vol := openVolume(t, t.TempDir())
	b := newBridge(t, serveUnix(t, vol))
	r, other := dial(t, b.addr(), dgm.RemoteOptions{}), local(t, vol)
	lease := takeK
	lease.Lease = true
	for i := range 30 {
		put(t, other, "k", fmt.Sprint("before ", i))
		before := receive(t, takeLater(t.Context(), r, lease))
		require.NoError(t, before.err)
		b.cut()
		b.mend()
		err := r.Settle(t.Context(), dgm.Settle{Receipts: []gearsfs.Receipt{*before.records[0].Receipt}})
		if err == nil {
			continue // it came back before it was missed
		}
		require.ErrorIs(t, err, gearsfs.ErrGone)
		after := receive(t, takeLater(t.Context(), r, lease))
		require.NoError(t, after.err)
		require.Equal(t, before.records[0].Data, after.records[0].Data)
		require.NoError(t, r.Settle(t.Context(), dgm.Settle{Receipts: []gearsfs.Receipt{*after.records[0].Receipt}}))
	}
}

// While no tenure serves, calls wait; status and nodes answer.
func TestNoTenure(t *testing.T) {
	vol := openVolume(t, t.TempDir())
	addr := "unix:" + serveUnix(t, vol)
	r := dial(t, addr, dgm.RemoteOptions{})
	put(t, r, "k", "x")
	vol.Depose()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err := r.GetAttr(ctx, gearsfs.RootIno)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	l := local(t, vol)
	_, err = l.Resolve(t.Context(), "/q", true)
	require.NoError(t, err, "the replica is there to be read")
	status, err := l.Status(t.Context())
	require.NoError(t, err)
	require.Equal(t, "test", status.Name)
	out := takeLater(t.Context(), l, takeK)
	vol.Reinstate()
	require.NoError(t, receive(t, out).err)
}

// Closing a volume that does not lead, or is about to.
func TestCloseWithoutTenure(t *testing.T) {
	for _, reinstate := range []bool{false, true} {
		vol := openVolume(t, t.TempDir())
		l := local(t, vol)
		out := takeLater(t.Context(), l, takeK)
		vol.Depose()
		if reinstate {
			vol.Reinstate()
		}
		require.NoError(t, vol.Close())
		require.Error(t, receive(t, out).err)
		require.NoError(t, l.Close())
	}
}

// TestTenuresComeAndGo: whatever is under way when a tenure ends, each record
// that was put is taken once, no file stays that nobody has, and nothing of the
// old tenures is left.
func TestTenuresComeAndGo(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	vol := openVolume(t, t.TempDir())
	path := serveUnix(t, vol)
	ctx, cancel := context.WithCancel(t.Context())
	var ops sync.WaitGroup
	var mu sync.Mutex
	got := make(map[string]int)
	const clients, each = 4, 60
	for i := range clients {
		var m dgm.Manager = local(t, vol)
		if i%2 == 0 {
			m = dial(t, "unix:"+path, dgm.RemoteOptions{})
		}
		ops.Go(func() { // puts, where records are limited
			for n := range each {
				_, err := m.Put(t.Context(), dgm.Put{File: gearsfs.At("/q"), Key: "k", Records: []gearsfs.NewRecord{{Data: fmt.Append(nil, i, n)}}})
				if err != nil {
					t.Errorf("put: %v", err)
					return
				}
			}
		})
		ops.Go(func() { // takes, some under a lease
			for n := range each {
				take := takeK
				take.Lease = n%2 == 0
				rs, err := m.Take(t.Context(), take)
				if err == nil && take.Lease {
					err = m.Settle(t.Context(), dgm.Settle{Receipts: []gearsfs.Receipt{*rs[0].Receipt}})
				}
				if err != nil {
					t.Errorf("take: %v", err)
					return
				}
				mu.Lock()
				got[string(rs[0].Data)]++
				mu.Unlock()
			}
		})
		ops.Go(func() { // files that are unlinked while they are open
			for n := range each {
				if err := makeOpenUnlink(t.Context(), m, fmt.Sprintf("f%d-%d", i, n)); err != nil {
					t.Errorf("file: %v", err)
					return
				}
			}
		})
	}
	put(t, local(t, vol), "other", "so that the file is there")
	var flips sync.WaitGroup
	flips.Go(func() {
		rnd := rand.New(rand.NewPCG(seed, 0))
		for ctx.Err() == nil {
			old := vol.Tenure()
			vol.Depose()
			if rnd.IntN(4) == 0 {
				old.Begun()
			}
			vol.Reinstate()
			if rnd.IntN(4) > 0 {
				vol.Tenure().Begun()
				select {
				case <-time.After(time.Duration(rnd.Int64N(int64(40 * time.Millisecond)))):
				case <-ctx.Done():
				}
			}
			settled(t, old)
		}
	})
	ops.Wait()
	cancel()
	flips.Wait()
	require.Len(t, got, clients*each)
	for data, n := range got {
		require.Equal(t, 1, n, "record %s", data)
	}
	m := local(t, vol)
	if !assert.Eventually(t, func() bool {
		usage, err := m.StatFS(t.Context(), gearsfs.RootIno)
		return err == nil && usage.Inodes == 2 // the root and q
	}, 20*time.Second, time.Millisecond) {
		t.Fatal(vol.Orphans())
	}
	settled(t, vol.Tenure())
}

func makeOpenUnlink(ctx context.Context, m dgm.Manager, name string) error {
	attr, err := m.Make(ctx, gearsfs.RootIno, name, dgm.Make{Mode: 0o100644})
	if err != nil {
		return fmt.Errorf("make: %w", err)
	}
	if _, err := m.Open(ctx, attr.Ino); err != nil {
		return fmt.Errorf("open: %w", err)
	}
	if err := m.Unlink(ctx, gearsfs.RootIno, name); err != nil {
		return fmt.Errorf("unlink: %w", err)
	}
	if _, err := m.GetAttr(ctx, attr.Ino); err != nil {
		return fmt.Errorf("look at what is open: %w", err)
	}
	return m.Release(ctx, attr.Ino)
}
