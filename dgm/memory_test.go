package dgm_test

import (
	"fmt"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm"
)

var inMemory = func() dgm.StreamChange { yes := true; return dgm.StreamChange{Set: dgm.SettingsChange{Memory: &yes}} }()

// intoMemory makes /q with streams in memory.
func intoMemory(t *testing.T, m dgm.Manager, keys ...gearsfs.Key) {
	t.Helper()
	put(t, m, "disk")
	for _, key := range keys {
		require.NoError(t, m.Configure(t.Context(), q, key, inMemory))
	}
}

func left(t *testing.T, m dgm.Manager, key gearsfs.Key) gearsfs.StreamInfo {
	t.Helper()
	info, err := m.Stream(t.Context(), q, key)
	require.NoError(t, err)
	return info
}

// An operation on a stream in memory whose answer is lost is done once: asked
// again it has the first answer.
func TestMemoryAnswersThatAreLost(t *testing.T) {
	vol := openVolume(t, t.TempDir())
	l := listenTCP(t) // over which a session outlives its connection for a while
	serve(t, vol, l)
	b := bridgeOn(t, listenTCP(t), l.Addr().String())
	r, m := dial(t, b.addr(), dgm.RemoteOptions{}), local(t, vol)
	intoMemory(t, m, "k", "l")
	take := dgm.Take{File: q, Keys: []gearsfs.Key{"k", "disk", "l"}}
	for i, from := range []gearsfs.Key{"k", "disk", "l", "disk", "k"} {
		put(t, m, from, fmt.Sprint(i))
		b.loseAnswer(func() {
			rs, err := r.Take(t.Context(), take)
			if err != nil || len(rs) != 1 || string(rs[0].Data) != fmt.Sprint(i) || rs[0].Key != from {
				t.Errorf("%d: %v, %v", i, rs, err)
			}
		})
		require.Zero(t, left(t, m, from).Records)
	}
	take.Lease = true
	var held []gearsfs.Receipt
	for _, from := range []gearsfs.Key{"k", "disk", "l"} {
		put(t, m, from, "x", "y")
		b.loseAnswer(func() {
			rs, err := r.Take(t.Context(), take)
			if err != nil || len(rs) != 1 {
				t.Errorf("%s: %v, %v", from, rs, err)
				return
			}
			held = append(held, *rs[0].Receipt)
		})
		require.EqualValues(t, 1, left(t, m, from).Leased)
		_, err := m.Take(t.Context(), dgm.Take{File: q, Keys: []gearsfs.Key{from}})
		require.NoError(t, err)
	}
	b.loseAnswer(func() {
		if err := r.Settle(t.Context(), dgm.Settle{Receipts: held}); err != nil {
			t.Error(err)
		}
	})
	require.ErrorIs(t, r.Settle(t.Context(), dgm.Settle{Receipts: held[:1]}), gearsfs.ErrGone)
	var first dgm.PutResult
	b.loseAnswer(func() {
		var err error
		if first, err = r.Put(t.Context(), dgm.Put{File: q, Key: "k", Records: records("once")}); err != nil {
			t.Error(err)
		}
	})
	info := left(t, m, "k")
	require.EqualValues(t, 1, info.Records)
	require.Equal(t, first.Last, info.Tail.Seq-1)
	b.loseAnswer(func() {
		if _, err := r.Update(t.Context(), dgm.Update{File: q, Key: "k", Record: records("new")[0], IfSeq: &first.Last}); err != nil {
			t.Error(err)
		}
	})
	rs, err := m.Take(t.Context(), dgm.Take{File: q, Keys: []gearsfs.Key{"k"}, Max: 5})
	require.NoError(t, err)
	require.Len(t, rs, 1)
	require.Equal(t, "new", string(rs[0].Data))
}

// A leased record whose taker was lost for so long that the lease ended is not
// taken to be held when it comes back.
func TestMemoryLeaseThatEndedMeanwhile(t *testing.T) {
	vol := openVolume(t, t.TempDir())
	b := newBridge(t, serveUnix(t, vol))
	r, m := dial(t, b.addr(), dgm.RemoteOptions{}), local(t, vol)
	intoMemory(t, m, "k")
	put(t, m, "k", "x")
	other := takeLater(t.Context(), m, dgm.Take{File: q, Keys: []gearsfs.Key{"k"}})
	untilWaits(t, m, 0)
	require.NoError(t, receive(t, other).err)
	put(t, m, "k", "y")
	b.loseAnswer(func() {
		rs, err := r.Take(t.Context(), dgm.Take{File: q, Keys: []gearsfs.Key{"k"}, Lease: true, LeaseFor: time.Nanosecond, ByReceipt: true})
		if err != nil || len(rs) != 1 || rs[0].Deliveries < 2 {
			t.Errorf("%v, %v", rs, err)
		}
	})
}

// However often connections are cut, each record is taken once, from memory and
// from the disk.
func TestMemoryTakesOverCuts(t *testing.T) {
	const takers, each = 4, 300
	vol := openVolume(t, t.TempDir())
	b := newBridge(t, serveUnix(t, vol))
	m := local(t, vol)
	intoMemory(t, m, "k", "l")
	yes := true
	var taking, cuts sync.WaitGroup
	var mu sync.Mutex
	seen := make(map[string]int)
	for range takers {
		r := dial(t, b.addr(), dgm.RemoteOptions{})
		taking.Go(func() {
			for {
				rs, err := r.Take(t.Context(), dgm.Take{File: q, Keys: []gearsfs.Key{"k", "disk", "l"}, Max: 2})
				if gearsfs.CodeOf(err) == gearsfs.ErrEnd.Code {
					return
				}
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				for _, rec := range rs {
					seen[string(rec.Data)]++
				}
				mu.Unlock()
			}
		})
	}
	stop := make(chan struct{})
	cuts.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(2 * time.Millisecond):
				b.halfCut()
			}
		}
	})
	keys := []gearsfs.Key{"k", "disk", "l"}
	for i := range each {
		put(t, m, keys[i%3], fmt.Sprint(i))
	}
	for _, key := range keys {
		require.NoError(t, m.Configure(t.Context(), q, key, dgm.StreamChange{Seal: &yes}))
	}
	taking.Wait()
	close(stop)
	cuts.Wait()
	require.Len(t, seen, each)
	for text, n := range seen {
		require.Equal(t, 1, n, text)
	}
}

// A node is not added to a volume that has streams in memory, and says why; when
// they are on disk it is.
func TestMemoryRefusesAJoin(t *testing.T) {
	c := newNodes(t, "a")
	m := local(t, c.all[0].vol)
	intoMemory(t, m, "k")
	put(t, m, "k", "x")
	n := c.add("b")
	err := n.start(c.all[0].addr())
	require.ErrorIs(t, err, gearsfs.ErrUnsupported)
	require.ErrorContains(t, err, "streams in memory")
	members, err := m.Nodes(t.Context())
	require.NoError(t, err)
	require.Len(t, members, 1)
	no := false
	require.ErrorIs(t, m.Configure(t.Context(), q, "k", dgm.StreamChange{Set: dgm.SettingsChange{Memory: &no}}), gearsfs.ErrInvalid)
	require.NoError(t, m.Configure(t.Context(), q, "k", dgm.StreamChange{Clear: true}))
	require.NoError(t, m.Configure(t.Context(), q, "k", dgm.StreamChange{Set: dgm.SettingsChange{Memory: &no}}))
	require.NoError(t, n.start(c.all[0].addr()))
	require.NoError(t, n.vol.WaitVoter(t.Context(), nil))
	require.ErrorIs(t, m.Configure(t.Context(), q, "k", inMemory), gearsfs.ErrUnsupported)
}

// Seqs rise and leases stay unlike those before over a restart, which a stream in
// memory survives without its records.
func TestMemoryAfterARestart(t *testing.T) {
	dir := t.TempDir()
	var last gearsfs.Seq
	var receipt gearsfs.Receipt
	for i := range 3 {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			vol := openVolume(t, dir)
			m := local(t, vol)
			if i == 0 {
				intoMemory(t, m, "k")
			}
			info := left(t, m, "k")
			require.True(t, info.Settings.Memory)
			require.Zero(t, info.Records+info.Leased+info.Delayed)
			res, err := m.Update(t.Context(), dgm.Update{File: q, Key: "k", IfSeq: new(gearsfs.Seq(0))})
			require.NoError(t, err, "none was put yet")
			require.Greater(t, res.First, last)
			last = res.Last
			if i > 0 {
				require.ErrorIs(t, m.Settle(t.Context(), dgm.Settle{Receipts: []gearsfs.Receipt{receipt}}), gearsfs.ErrGone)
			}
			rs, err := m.Take(t.Context(), dgm.Take{File: q, Keys: []gearsfs.Key{"k"}, Lease: true, LeaseFor: time.Hour, ByReceipt: true})
			require.NoError(t, err)
			require.Greater(t, rs[0].Receipt.Fence, receipt.Fence)
			receipt = *rs[0].Receipt
		})
	}
}

// What is put to a stream while a command is on its way that takes it out of memory
// is there afterwards.
func TestMemoryPutsWhileTheStreamLeaves(t *testing.T) {
	vol := openVolume(t, t.TempDir())
	m, no := local(t, vol), false
	intoMemory(t, m, "k", "l")
	ten := vol.Tenure()
	ten.HoldBack()
	later := func(do func() error) <-chan error {
		done := make(chan error, 1)
		go func() { done <- do() }()
		return done
	}
	configured := later(func() error {
		return m.Configure(t.Context(), q, "k", dgm.StreamChange{Set: dgm.SettingsChange{Memory: &no}})
	})
	for held, _ := ten.Busy(); held == 0; held, _ = ten.Busy() {
		runtime.Gosched()
	}
	done := later(func() error {
		_, err := m.Put(t.Context(), dgm.Put{File: q, Key: "k", Records: records("x")})
		return err
	})
	for !ten.PutsUnderWay() && len(done) == 0 {
		runtime.Gosched()
	}
	put(t, m, "l", "y") // behind it, so it has been looked at
	ten.LetAllThrough()
	require.NoError(t, <-configured)
	require.NoError(t, <-done)
	require.False(t, left(t, m, "k").Settings.Memory)
	rs, err := m.Take(t.Context(), dgm.Take{File: q, Keys: []gearsfs.Key{"k"}, NoWait: true})
	require.NoError(t, err)
	require.Equal(t, "x", string(rs[0].Data))
}
