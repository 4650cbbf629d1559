package dgm_test

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm"
)

var q = gearsfs.At("/q")

// transacted is what a transaction in the background returned.
type transacted struct {
	results []dgm.StepResult
	err     error
}

func transactLater(ctx context.Context, m dgm.Manager, steps ...dgm.Step) <-chan transacted {
	out := make(chan transacted, 1)
	go func() {
		results, err := m.Transact(ctx, dgm.Transact{Steps: steps})
		out <- transacted{results, err}
	}()
	return out
}

func takes(key gearsfs.Key) dgm.Step {
	return dgm.Step{Take: &dgm.Take{File: q, Keys: []gearsfs.Key{key}}}
}

func puts(key gearsfs.Key, text string) dgm.Step {
	return dgm.Step{Put: &dgm.Put{File: q, Key: key, Records: []gearsfs.NewRecord{{Data: []byte(text)}}}}
}

// A transaction waits on in the next tenure, and one whose answer was lost is
// not done twice.
func TestTransactionsOutliveATenure(t *testing.T) {
	bothWays(t, func(t *testing.T, vol *dgm.Volume, m dgm.Manager) {
		other := local(t, vol)
		out := transactLater(t.Context(), m, takes("x"), takes("y"), puts("out", "1"))
		untilWaits(t, other, 1)
		for i := range 3 {
			old := vol.Tenure()
			interlude(vol)
			settled(t, old)
			untilWaits(t, other, 1)
			if i == 1 {
				put(t, other, "x", "x")
			}
		}
		put(t, other, "y", "y")
		got := <-out
		require.NoError(t, got.err)
		require.Equal(t, "x", string(got.results[0].Records[0].Data))
		rs, err := other.Take(t.Context(), dgm.Take{File: q, Keys: []gearsfs.Key{"out"}, Max: 5})
		require.NoError(t, err)
		require.Len(t, rs, 1)
	})
}

func TestTransactionWhoseAnswerIsLost(t *testing.T) {
	vol := openVolume(t, t.TempDir())
	b := newBridge(t, serveUnix(t, vol))
	r, m := dial(t, b.addr(), dgm.RemoteOptions{}), local(t, vol)
	for i := range 5 {
		put(t, m, "x", fmt.Sprint(i))
		b.loseAnswer(func() {
			results, err := r.Transact(t.Context(), dgm.Transact{Steps: []dgm.Step{takes("x"), puts("out", "done")}})
			if err != nil || string(results[0].Records[0].Data) != fmt.Sprint(i) {
				t.Errorf("%d: %v, %v", i, results, err)
			}
		})
	}
	info, err := m.Stream(t.Context(), q, "out")
	require.NoError(t, err)
	require.EqualValues(t, 5, info.Records)
}

// Leases end at their deadlines, delays at their time and transactions go on
// whichever node leads.
func TestFailoverOfWork(t *testing.T) {
	t.Parallel()
	for _, way := range ways {
		t.Run(way.name, func(t *testing.T) {
			c := newNodes(t, "a", "b", "c")
			leads, follows := c.leader(), c.follower()
			other := local(t, follows.vol)
			clients := []dgm.Manager{local(t, follows.vol), dial(t, c.addrs(), dgm.RemoteOptions{})}
			put(t, other, "k", "1", "2", "3")
			const later = 3 * time.Second // than the leader is gone
			var kept []gearsfs.Receipt
			var waiting []<-chan transacted
			for i, m := range clients {
				rs, err := m.Take(t.Context(), dgm.Take{File: q, Keys: []gearsfs.Key{"k"}, Lease: true, LeaseFor: time.Hour, ByReceipt: true})
				require.NoError(t, err)
				kept = append(kept, *rs[0].Receipt)
				key := gearsfs.Key(fmt.Sprint("y", i))
				waiting = append(waiting, transactLater(t.Context(), m, takes("x"), takes(key), puts("out", string(key))))
			}
			untilWaits(t, other, len(waiting))
			rs, err := other.Take(t.Context(), dgm.Take{File: q, Keys: []gearsfs.Key{"k"}, Lease: true, LeaseFor: later})
			require.NoError(t, err)
			require.Equal(t, "3", string(rs[0].Data))
			_, err = other.Put(t.Context(), dgm.Put{File: q, Key: "delayed", Records: []gearsfs.NewRecord{{Data: []byte("d")}}, Delay: later})
			require.NoError(t, err)
			back := takeLater(t.Context(), clients[0], dgm.Take{File: q, Keys: []gearsfs.Key{"k"}})
			delayed := takeLater(t.Context(), clients[1], dgm.Take{File: q, Keys: []gearsfs.Key{"delayed"}})

			way.fail(c)

			put(t, other, "x", "a", "b")
			put(t, other, "y1", "1")
			require.NoError(t, (<-waiting[1]).err)
			put(t, other, "y0", "0")
			require.NoError(t, (<-waiting[0]).err)
			got := receive(t, back)
			require.NoError(t, got.err)
			require.Equal(t, "3", string(got.records[0].Data))
			require.EqualValues(t, 2, got.records[0].Deliveries)
			require.NoError(t, receive(t, delayed).err)
			require.NoError(t, other.Settle(t.Context(), dgm.Settle{Receipts: kept}), "whoever has the receipts")
			info, err := other.Stream(t.Context(), q, "out")
			require.NoError(t, err)
			require.EqualValues(t, 2, info.Records)
			if leads.vol == nil {
				require.NoError(t, leads.start(""))
			}
		})
	}
}

// Takes that wait cost memory alone, and a put wakes one. GEARSFS_TORTURE=1: as
// many as the project promises.
func TestManyWaits(t *testing.T) {
	takers, conns, bytesMax := 2000, 20, int64(20<<20)
	if os.Getenv("GEARSFS_TORTURE") != "" {
		takers, conns, bytesMax = 10_000, 100, 100<<20
	}
	vol := openVolume(t, t.TempDir())
	path, m := serveUnix(t, vol), local(t, vol)
	put(t, m, "other", "x")
	var remotes []*dgm.Remote
	for range conns {
		remotes = append(remotes, dial(t, "unix:"+path, dgm.RemoteOptions{}))
	}
	before := memory()
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	var got atomic.Int64
	one := make(chan struct{}, takers)
	for i := range takers {
		all.Go(func() {
			_, err := remotes[i%conns].Take(ctx, takeK)
			if err == nil {
				got.Add(1)
				one <- struct{}{}
			} else if ctx.Err() == nil {
				t.Error(err)
			}
		})
	}
	require.Eventually(t, func() bool {
		status, err := m.Status(t.Context())
		return err == nil && int(status.Waits) == takers
	}, 60*time.Second, 10*time.Millisecond)
	used := memory() - before
	t.Logf("%d takes of %d connections: %.1f MiB, those of the clients in this process included", takers, conns, float64(used)/(1<<20))
	require.Less(t, used, bytesMax)

	cpu := cpuTime()
	<-time.After(time.Second) // in which nothing happens
	idle := cpuTime() - cpu
	t.Logf("CPU in a second: %v", idle)
	require.Less(t, idle, 100*time.Millisecond)

	for i := range 20 {
		index := applied(t, m)
		put(t, m, "k", "x")
		<-one
		require.EqualValues(t, i+1, got.Load())
		require.LessOrEqual(t, applied(t, m)-index, gearsfs.Index(2), "the put and its take")
	}
	status, err := m.Status(t.Context())
	require.NoError(t, err)
	require.EqualValues(t, takers-20, status.Waits)
	cancel()
	all.Wait()
	require.EqualValues(t, 20, got.Load())
}

func applied(t *testing.T, m dgm.Manager) gearsfs.Index {
	status, err := m.Status(t.Context())
	require.NoError(t, err)
	return status.Applied
}

// memory is what this process has in use, stacks included.
func memory() int64 {
	runtime.GC()
	runtime.GC()
	var ms runtime.MemStats
	runtime.ReadMemStats(&ms)
	return int64(ms.HeapInuse + ms.StackInuse)
}

func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// Who follows a stream over a connection that is cut again and again sees every
// record once, in order.
func TestFollowOverCuts(t *testing.T) {
	const records = 300
	vol := openVolume(t, t.TempDir())
	b := newBridge(t, serveUnix(t, vol))
	r, m := dial(t, b.addr(), dgm.RemoteOptions{}), local(t, vol)
	put(t, m, "k", "0")
	var all sync.WaitGroup
	stop := make(chan struct{})
	all.Go(func() {
		for i := 1; i < records; i++ {
			if _, err := m.Put(t.Context(), dgm.Put{File: q, Key: "k", Records: []gearsfs.NewRecord{{Data: fmt.Append(nil, i)}}}); err != nil {
				t.Error(err)
			}
			if i%3 == 0 { // subscribers see what is taken, too, while it is held
				if _, err := m.Take(t.Context(), dgm.Take{File: q, Keys: []gearsfs.Key{"k"}, Lease: true}); err != nil {
					t.Error(err)
				}
			}
		}
	})
	var cuts sync.WaitGroup
	cuts.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(3 * time.Millisecond):
				b.cut()
				b.mend()
			}
		}
	})
	var after gearsfs.Seq
	for after < records {
		rs, err := r.Peek(t.Context(), dgm.Peek{File: q, Key: "k", Follow: true, After: after, Max: 5})
		require.NoError(t, err)
		for _, rec := range rs {
			require.Equal(t, after+1, rec.Place.Seq)
			require.Equal(t, fmt.Sprint(after), string(rec.Data))
			after = rec.Place.Seq
		}
	}
	close(stop)
	all.Wait()
	cuts.Wait()
}
