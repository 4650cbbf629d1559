package dgm_test

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm"
	"github.com/gearsfs/gearsfs/dgm/dgmtest"
)

// empty removes all that is in a volume.
func empty(t *testing.T, m dgm.Manager, dir gearsfs.Ino) {
	for {
		entries, err := m.ReadDir(t.Context(), dir, "", 1000)
		require.NoError(t, err)
		for _, e := range entries {
			if e.Attr.Mode&syscall.S_IFMT != syscall.S_IFDIR {
				require.NoError(t, m.Unlink(t.Context(), dir, e.Name))
				continue
			}
			empty(t, m, e.Attr.Ino)
			require.NoError(t, m.Rmdir(t.Context(), dir, e.Name))
		}
		if len(entries) == 0 {
			return
		}
	}
}

// TestGroup runs the suite on a group of three: sessions are Locals of the node that
// leads, Locals of one that does not, or Remotes of either.
func TestGroup(t *testing.T) {
	t.Parallel()
	c := newNodes(t, "n0", "n1", "n2")
	turn := 0
	for _, kind := range []struct {
		name string
		open func(t *testing.T) dgm.Manager
	}{
		{"LocalOfTheLeader", func(t *testing.T) dgm.Manager { return local(t, c.all[0].vol) }},
		{"LocalOfAnother", func(t *testing.T) dgm.Manager { return local(t, c.all[1].vol) }},
		{"InTurns", func(t *testing.T) dgm.Manager {
			if turn++; turn%4 == 0 {
				return dial(t, c.all[2].addr(), dgm.RemoteOptions{})
			}
			return local(t, c.all[turn%4-1].vol)
		}},
		{"Remote", func(t *testing.T) dgm.Manager { return dial(t, c.all[2].addr(), dgm.RemoteOptions{}) }},
	} {
		t.Run(kind.name, func(t *testing.T) {
			dgmtest.Run(t, func(t *testing.T) dgmtest.Opener {
				empty(t, local(t, c.all[0].vol), gearsfs.RootIno)
				return kind.open
			})
		})
	}
}

// TestOpenSeesWhatWasClosed is close-to-open over nodes: who opens a file after
// another has changed it sees that, from the own replica.
func TestOpenSeesWhatWasClosed(t *testing.T) {
	c := newNodes(t, "n0", "n1", "n2")
	writers := []dgm.Manager{local(t, c.all[0].vol), local(t, c.all[1].vol)}
	reader := local(t, c.all[2].vol)
	attr, err := writers[0].Make(t.Context(), gearsfs.RootIno, "f", dgm.Make{Mode: 0o100644})
	require.NoError(t, err)
	for i := range 100 {
		text := fmt.Appendf(nil, "%04d", i)
		_, err := writers[i%2].Write(t.Context(), attr.Ino, 0, text)
		require.NoError(t, err)
		_, err = reader.Open(t.Context(), attr.Ino)
		require.NoError(t, err)
		got, err := reader.Read(t.Context(), attr.Ino, 0, 4, nil)
		require.NoError(t, err)
		require.Equal(t, string(text), string(got))
		require.NoError(t, reader.Release(t.Context(), attr.Ino))
	}
}

// TestOwnChangesAreSeen: what a session has changed it reads, though another
// node leads and the own replica is behind.
func TestOwnChangesAreSeen(t *testing.T) {
	c := newNodes(t, "n0", "n1", "n2")
	m := local(t, c.all[2].vol)
	for i := range 100 {
		name := fmt.Sprint("f", i)
		_, err := m.Make(t.Context(), gearsfs.RootIno, name, dgm.Make{Mode: 0o100644})
		require.NoError(t, err)
		_, err = m.Lookup(t.Context(), gearsfs.RootIno, name)
		require.NoError(t, err)
	}
}

// traffic is sessions that put and take until they are told to stop.
type traffic struct {
	t       *testing.T
	ms      []dgm.Manager
	puts    []atomic.Int64 // of each session
	got     chan string
	stop    atomic.Bool
	working sync.WaitGroup
}

func newTraffic(t *testing.T, ms ...dgm.Manager) *traffic {
	tr := &traffic{t: t, ms: ms, puts: make([]atomic.Int64, len(ms)), got: make(chan string, 1<<16)}
	for i := range ms {
		tr.working.Go(func() { tr.put(i) })
		tr.working.Go(func() { tr.take(i) })
	}
	return tr
}

func (tr *traffic) put(i int) {
	for {
		text := fmt.Sprintf("%d %d", i, tr.puts[i].Load())
		over := tr.stop.Load()
		if over {
			text = "end"
		}
		_, err := tr.ms[i].Put(tr.t.Context(), dgm.Put{
			File: gearsfs.At("/q"), Key: "k", Records: []gearsfs.NewRecord{{Data: []byte(text)}},
		})
		if err != nil {
			tr.t.Errorf("put by %d: %v", i, err)
		}
		if err != nil || over {
			return
		}
		tr.puts[i].Add(1)
	}
}

func (tr *traffic) take(i int) {
	for {
		rs, err := tr.ms[i].Take(tr.t.Context(), dgm.Take{File: gearsfs.At("/q"), Keys: []gearsfs.Key{"k"}})
		if err != nil {
			tr.t.Errorf("take by %d: %v", i, err)
			return
		}
		text := string(rs[0].Data)
		if text == "end" {
			return
		}
		tr.got <- text
	}
}

// flows waits until each session has put some more.
func (tr *traffic) flows() {
	for i := range tr.puts {
		before := tr.puts[i].Load()
		require.Eventually(tr.t, func() bool { return tr.puts[i].Load() > before+3 }, 20*time.Second, time.Millisecond,
			"session %d is stuck", i)
	}
}

// end stops it and checks that every record was taken, and once.
func (tr *traffic) end() {
	tr.stop.Store(true)
	tr.working.Wait()
	close(tr.got)
	seen := make(map[string]bool)
	for text := range tr.got {
		require.False(tr.t, seen[text], "taken twice: %s", text)
		seen[text] = true
	}
	total := 0
	for i := range tr.puts {
		total += int(tr.puts[i].Load())
	}
	require.Len(tr.t, seen, total)
}

// TestSessionsOutliveLeaders has sessions of all kinds put and take while the
// lead goes round and a node is closed and opened again.
func TestSessionsOutliveLeaders(t *testing.T) {
	c := newNodes(t, "n0", "n1", "n2")
	m, boss := local(t, c.all[1].vol), local(t, c.all[0].vol)
	tr := newTraffic(t, local(t, c.all[0].vol), m, dial(t, c.all[0].addr()+","+c.all[1].addr(), dgm.RemoteOptions{}))
	// A session that has a file open which loses its name on the way.
	attr, err := m.Make(t.Context(), gearsfs.RootIno, "orphan", dgm.Make{Mode: 0o100644})
	require.NoError(t, err)
	_, err = m.Open(t.Context(), attr.Ino)
	require.NoError(t, err)
	for round := range 6 {
		name := fmt.Sprint("n", (round+1)%3)
		require.NoError(t, boss.TransferLeader(t.Context(), name))
		require.Eventually(t, func() bool {
			st, err := boss.Status(t.Context())
			return err == nil && st.Leader == name
		}, 10*time.Second, time.Millisecond, "this node hears of it")
		tr.flows()
		if round == 1 {
			require.NoError(t, boss.Unlink(t.Context(), gearsfs.RootIno, "orphan"))
		}
		if name == "n2" {
			c.all[2].close()
			require.NoError(t, c.all[2].start(""))
			tr.flows()
		}
	}
	tr.end()
	_, err = m.GetAttr(t.Context(), attr.Ino)
	require.NoError(t, err, "it is open")
	require.NoError(t, m.Release(t.Context(), attr.Ino))
}

// TestLocalWithoutALeader: a node that is alone of three reads, and its changes
// wait for another.
func TestLocalWithoutALeader(t *testing.T) {
	t.Parallel()
	c := newNodes(t, "n0", "n1", "n2")
	attr, err := local(t, c.all[2].vol).Make(t.Context(), gearsfs.RootIno, "f", dgm.Make{Mode: 0o100644})
	require.NoError(t, err)
	for _, m := range c.all {
		m.close()
	}
	require.NoError(t, c.all[2].start(""))
	m := local(t, c.all[2].vol)
	_, err = m.GetAttr(t.Context(), attr.Ino)
	require.NoError(t, err, "what the replica knows")
	nodes, err := m.Nodes(t.Context())
	require.NoError(t, err)
	require.Len(t, nodes, 3)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- m.Unlink(ctx, gearsfs.RootIno, "f") }()
	cancel()
	require.ErrorIs(t, <-ended, context.Canceled)
	made := make(chan error, 1)
	go func() {
		_, err := m.Make(t.Context(), gearsfs.RootIno, "g", dgm.Make{Mode: 0o100644})
		made <- err
	}()
	require.NoError(t, c.all[1].start(""))
	require.NoError(t, <-made)
	_, err = m.Lookup(t.Context(), gearsfs.RootIno, "f")
	require.NoError(t, err)
}

// TestWatchOfAnotherNode: a watch of a follower tells what the own replica has.
func TestWatchOfAnotherNode(t *testing.T) {
	c := newNodes(t, "n0", "n1")
	writer, m := local(t, c.all[0].vol), local(t, c.all[1].vol)
	_, err := m.Make(t.Context(), gearsfs.RootIno, "own", dgm.Make{Mode: 0o100644})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	started, done := make(chan struct{}), make(chan error, 1)
	seen := make(chan gearsfs.Change, 100)
	go func() {
		done <- m.Watch(ctx, func() { close(started) }, func(changes []gearsfs.Change) {
			for _, change := range changes {
				if change.Name != "" {
					_, err := m.Lookup(t.Context(), change.Ino, change.Name)
					if err != nil {
						t.Error(err)
					}
					seen <- change
				}
			}
		})
	}()
	<-started
	_, err = m.Make(t.Context(), gearsfs.RootIno, "mine", dgm.Make{Mode: 0o100644})
	require.NoError(t, err)
	_, err = writer.Make(t.Context(), gearsfs.RootIno, "theirs", dgm.Make{Mode: 0o100644})
	require.NoError(t, err)
	require.Equal(t, gearsfs.Change{Ino: gearsfs.RootIno, Name: "theirs"}, <-seen)
	cancel()
	require.ErrorIs(t, <-done, context.Canceled)
}

// TestViaFromAnyNode: a client that offers itself is known where it is connected,
// at the node that leads; who asks for it at another is led there, also when
// another leads.
func TestViaFromAnyNode(t *testing.T) {
	c := newNodes(t, "n0", "n1", "n2")
	own := openVolume(t, t.TempDir())
	dial(t, c.addrs(), dgm.RemoteOptions{Offer: own, OfferName: "w", OfferAs: gearsfs.Root})
	worker := local(t, own)
	via, err := dgm.Via(t.Context(), local(t, c.all[2].vol), "w")
	require.NoError(t, err)
	defer func() { require.NoError(t, via.Close()) }()
	for _, leader := range []string{"n0", "n1", "n2", "n1"} {
		require.NoError(t, local(t, c.all[0].vol).TransferLeader(t.Context(), leader))
		_, err = via.Put(t.Context(), dgm.Put{File: gearsfs.At("/q"), Key: "k", Records: benchRecord})
		require.NoError(t, err, leader)
	}
	rs, err := worker.Take(t.Context(), dgm.Take{File: gearsfs.At("/q"), Keys: []gearsfs.Key{"k"}, Max: 10})
	require.NoError(t, err)
	require.Len(t, rs, 4)
}
