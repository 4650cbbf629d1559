package mesh

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm/internal/answer"
	"github.com/gearsfs/gearsfs/file"
	"github.com/gearsfs/gearsfs/persist"
	"github.com/gearsfs/gearsfs/replica"
	"github.com/gearsfs/gearsfs/tests/bubble"
	"github.com/gearsfs/gearsfs/transport"
	"github.com/gearsfs/gearsfs/wire"
)

// snapNode is a node with data, whose replica installs what it is told to.
type snapNode struct {
	*meshNode
	dir      string
	data     *persist.Data
	machine  *file.Machine
	index    uint64
	sent     atomic.Int64 // bytes of pieces
	messages atomic.Int64 // that came with a snapshot
	deaf     atomic.Bool  // the replica has no use for them
}

func newSnapNode(t *testing.T, id gearsfs.MemberID) *snapNode {
	n := &snapNode{meshNode: newMeshNode(t, id), dir: t.TempDir()}
	n.lent = func(_ *transport.Conn, _ *wire.Fetch, resp *wire.Response) { n.sent.Add(int64(len(resp.Data))) }
	n.group.install = n.receive
	n.open()
	t.Cleanup(n.shut)
	return n
}

func (n *snapNode) open() {
	n.t.Helper()
	var err error
	n.data, err = persist.Open(n.dir, persist.Options{Create: true, Name: n.self.Name})
	require.NoError(n.t, err)
	n.machine, err = file.New(n.data.State, n)
	require.NoError(n.t, err)
	n.mesh.snapshots = makeSnapshots(snapshotsConfig{
		data: n.data, mesh: n.mesh, log: slog.New(slog.DiscardHandler), pace: newPace(1 << 40),
		applied: n.applied, replace: n.machine.Replace,
	})
}

// The node observes its machine.
func (n *snapNode) Applied(uint64, []file.Touched, []file.Changed) {}
func (n *snapNode) MembersChanged()                                {}
func (n *snapNode) Freed(uint64, []gearsfs.Extent)                 {}
func (n *snapNode) Verify(index uint64, state file.View)           { n.mesh.verifier.observe(index, state) }

func (n *snapNode) shut() {
	if n.data != nil {
		n.mesh.Close()
		require.NoError(n.t, n.data.Close())
		n.data = nil
	}
}

// restart is what a new process does with the same data.
func (n *snapNode) restart() {
	n.shut()
	n.unlisten()
	n.mesh = makeMesh(n.cfg)
	n.open()
	n.listen()
	n.mesh.Begin(n.group)
}

func (n *snapNode) applied() uint64 {
	index, _ := n.machine.Applied()
	return index
}

// receive is what raft does with the message of a snapshot.
func (n *snapNode) receive(message []byte) {
	n.messages.Add(1)
	var index, term uint64
	if _, err := fmt.Sscan(string(message), &index, &term); err != nil {
		n.t.Errorf("message %q: %v", message, err)
	}
	if n.deaf.Load() || n.applied() >= index {
		return
	}
	go func() { // the loop's
		if err := n.mesh.snapshots.Install(index, term, nil); err != nil {
			n.t.Error(err)
		}
	}()
}

// fill makes a volume with about that many bytes.
func (n *snapNode) fill(volume persist.ID, bytes int) {
	n.t.Helper()
	n.apply(&wire.Command{Op: &wire.Command_Init{Init: &wire.Init{Id: volume[:], Name: "main"}}})
	n.apply(&wire.Command{Op: &wire.Command_Make{Make: &wire.Make{Dir: 1, Name: "f", Mode: 0o100644}}})
	for range bytes / pieceBytes {
		n.put()
	}
}

func (n *snapNode) put() {
	data := make([]byte, pieceBytes)
	rand.Read(data)
	n.apply(&wire.Command{Op: &wire.Command_Put{Put: &wire.Put{
		Target: &wire.Target{Dir: 1, Name: "f"}, Key: "data", Records: []*wire.NewRecord{{Data: data}},
	}}})
}

func (n *snapNode) apply(cmd *wire.Command) {
	n.t.Helper()
	cmd.Checked = true
	n.index++
	answers, err := n.machine.Apply(n.index, 1, &wire.Entry{Time: n.index, Commands: []*wire.Command{cmd}})
	require.NoError(n.t, err)
	require.Zero(n.t, answers[0].Code, answers[0].Reason)
}

func (n *snapNode) hash() []byte {
	n.t.Helper()
	view := n.data.State.View()
	defer view.Close()
	sum, err := file.HashState(n.t.Context(), view, nil)
	require.NoError(n.t, err)
	return sum
}

func (n *snapNode) snapshot() replica.SnapshotMeta {
	n.t.Helper()
	type outcome struct {
		meta replica.SnapshotMeta
		err  error
	}
	out := make(chan outcome, 1)
	n.mesh.snapshots.Make(func(meta replica.SnapshotMeta, err error) { out <- outcome{meta, err} })
	o := <-out
	require.NoError(n.t, o.err)
	require.Equal(n.t, n.index, o.meta.Index)
	return o.meta
}

// send sends a snapshot; the channel yields what became of it.
func (n *snapNode) send(to *snapNode, meta replica.SnapshotMeta) chan error {
	done := make(chan error, 1)
	n.mesh.snapshots.Send(to.id(), fmt.Append(nil, meta.Index, " ", meta.Term), meta, func(err error) { done <- err })
	return done
}

// snapNodes makes nodes that are connected; the first has data.
func snapNodes(t *testing.T, count, bytes int) []*snapNode {
	t.Helper()
	nodes := make([]*snapNode, count)
	for i := range nodes {
		nodes[i] = newSnapNode(t, gearsfs.MemberID(i+1))
	}
	for _, n := range nodes {
		for _, o := range nodes {
			n.roster.set(o.id(), o.row())
		}
		n.listen()
		n.mesh.Begin(n.group)
	}
	nodes[0].fill(meshVolume, bytes)
	for _, n := range nodes {
		for _, o := range nodes {
			n.reaches(o.meshNode)
		}
	}
	return nodes
}

func (n *snapNode) throttle(bytesPerSecond float64) {
	p := n.mesh.snapshots.cfg.pace
	p.mu.Lock()
	defer p.mu.Unlock()
	p.perSecond = bytesPerSecond
}

func filesBytes(meta replica.SnapshotMeta) int64 { return int64(meta.Data.(*madeSnapshot).Bytes) }

func TestSnapshot(t *testing.T) {
	nodes := snapNodes(t, 2, 8<<20)
	a, b := nodes[0], nodes[1]
	meta := a.snapshot()
	want := a.hash()
	a.put() // it does not matter what happens meanwhile
	require.NoError(t, <-a.send(b, meta))
	require.Equal(t, meta.Index, b.applied())
	require.Equal(t, want, b.hash())
	require.Equal(t, filesBytes(meta), a.sent.Load())
	require.Equal(t, meshVolume[:], b.machine.VolumeID())

	// It is not sent again to who has it, but raft is asked to say so.
	require.NoError(t, <-a.send(b, meta))
	require.Equal(t, filesBytes(meta), a.sent.Load())
	require.Equal(t, int64(2), b.messages.Load())
}

// A connection that is lost again and again delays the snapshot, and little is
// sent twice.
func TestSnapshotResumes(t *testing.T) {
	nodes := snapNodes(t, 2, 12<<20)
	a, b := nodes[0], nodes[1]
	meta := a.snapshot()
	var pieces, cuts int
	a.lent = func(conn *transport.Conn, _ *wire.Fetch, resp *wire.Response) {
		a.sent.Add(int64(len(resp.Data)))
		if pieces++; pieces%10 == 0 {
			cuts++
			cut, cancel := context.WithCancel(context.Background())
			cancel()
			go conn.Shutdown(cut) //nolint:errcheck // it is cut
		}
	}
	require.NoError(t, <-a.send(b, meta))
	require.Equal(t, a.hash(), b.hash())
	require.Positive(t, cuts)
	// What was in flight or not written yet when the connection was cut.
	require.LessOrEqual(t, a.sent.Load(), filesBytes(meta)+int64(cuts)*(piecesInFlight+2)*pieceBytes)
}

// What a node had fetched before it was restarted is not fetched again.
func TestSnapshotRestart(t *testing.T) {
	nodes := snapNodes(t, 2, 12<<20)
	a, b := nodes[0], nodes[1]
	meta := a.snapshot()
	enough, gone := make(chan struct{}), make(chan struct{})
	var once sync.Once
	a.lent = func(_ *transport.Conn, _ *wire.Fetch, resp *wire.Response) {
		a.sent.Add(int64(len(resp.Data)))
		if a.sent.Load() > 8<<20 {
			once.Do(func() { close(enough) })
			<-gone
		}
	}
	done := a.send(b, meta)
	<-enough
	eventually(t, func() bool {
		b.mesh.snapshots.mu.Lock()
		defer b.mesh.snapshots.mu.Unlock()
		p := b.mesh.snapshots.pull
		return p != nil && p.have.Load() > 6<<20
	}, "nothing is written")
	require.Contains(t, b.mesh.Warnings()[0], "fetching a snapshot from n1")
	b.restart()
	before := a.sent.Load()
	close(gone)
	require.NoError(t, <-done)
	require.Equal(t, a.hash(), b.hash())
	require.Less(t, a.sent.Load()-before, filesBytes(meta)-(4<<20))
}

// A file that arrives damaged is fetched again, and only that.
func TestSnapshotDamaged(t *testing.T) {
	nodes := snapNodes(t, 2, 8<<20)
	a, b := nodes[0], nodes[1]
	meta := a.snapshot()
	always := false
	hit := false
	a.lent = func(_ *transport.Conn, _ *wire.Fetch, resp *wire.Response) {
		a.sent.Add(int64(len(resp.Data)))
		if len(resp.Data) > 1000 && (!hit || always) {
			hit = true
			resp.Data[500] ^= 1
		}
	}
	require.NoError(t, <-a.send(b, meta))
	require.Equal(t, a.hash(), b.hash())
	require.Greater(t, a.sent.Load(), filesBytes(meta))

	a.put()
	always = true
	meta = a.snapshot()
	err := <-a.send(b, meta)
	require.ErrorContains(t, err, "not what was sent")
	require.Less(t, b.applied(), meta.Index)
	always = false
	require.NoError(t, <-a.send(b, meta))
	require.Equal(t, a.hash(), b.hash())
}

// A snapshot of another volume is refused, though its node claims to be of this.
func TestSnapshotForeign(t *testing.T) {
	a, b := newSnapNode(t, 1), newSnapNode(t, 2)
	for _, n := range []*snapNode{a, b} {
		n.roster.set(1, a.row())
		n.roster.set(2, b.row())
		n.listen()
		n.mesh.Begin(n.group)
	}
	a.fill(persist.ID{9}, 1<<20)
	err := <-a.send(b, a.snapshot())
	require.ErrorContains(t, err, "of volume 09")
	require.Zero(t, b.applied())
}

// Where the leader dies, what the next one sends counts.
func TestSnapshotDonorDies(t *testing.T) {
	nodes := snapNodes(t, 3, 8<<20)
	a, b, c := nodes[0], nodes[1], nodes[2]
	meta := a.snapshot()
	require.NoError(t, <-a.send(b, meta)) // b has it all, and will lead
	b.index = b.applied()
	b.put()

	stuck := make(chan struct{})
	var once sync.Once
	a.lent = func(*transport.Conn, *wire.Fetch, *wire.Response) { once.Do(func() { close(stuck) }) }
	a.throttle(4 << 20)
	lost := a.send(c, meta)
	<-stuck
	a.shut()
	a.unlisten()
	require.ErrorIs(t, <-lost, gearsfs.ErrClosed)
	b.group.mu.Lock()
	b.group.term++
	b.group.mu.Unlock()
	require.NoError(t, <-b.send(c, b.snapshot()))
	require.Equal(t, b.hash(), c.hash())
}

// A message that raft has no use for any more ends the matter.
func TestSnapshotStale(t *testing.T) {
	nodes := snapNodes(t, 2, 1<<20)
	a, b := nodes[0], nodes[1]
	b.deaf.Store(true)
	done := a.send(b, a.snapshot())
	eventually(t, func() bool { return b.messages.Load() == 1 }, "the message is not handed over")
	b.group.mu.Lock()
	b.group.term = 7
	b.group.mu.Unlock()
	require.ErrorContains(t, <-done, "does not lead")
}

// A replica that comes to the message late, in a later term, has the snapshot
// installed all the same.
func TestSnapshotInstalledLate(t *testing.T) {
	nodes := snapNodes(t, 2, 1<<20)
	a, b := nodes[0], nodes[1]
	meta := a.snapshot()
	b.group.install = func([]byte) { b.messages.Add(1) }
	b.group.heard = func() {
		require.NoError(t, b.mesh.snapshots.Install(meta.Index, meta.Term, nil))
	}
	done := a.send(b, meta)
	eventually(t, func() bool { return b.messages.Load() == 1 }, "the message is not handed over")
	b.group.mu.Lock()
	b.group.term = 7
	b.group.mu.Unlock()
	require.NoError(t, <-done)
	require.Equal(t, a.hash(), b.hash())
}

// A newer snapshot for the same member ends the sending of an older.
func TestSnapshotReplaced(t *testing.T) {
	nodes := snapNodes(t, 2, 8<<20)
	a, b := nodes[0], nodes[1]
	a.throttle(1 << 20)
	old := a.send(b, a.snapshot())
	eventually(t, func() bool { return a.sent.Load() > 0 }, "nothing is sent")
	a.put()
	meta := a.snapshot()
	next := a.send(b, meta)
	require.ErrorIs(t, <-old, errReplaced)
	a.throttle(1 << 40)
	require.NoError(t, <-next)
	require.Equal(t, a.hash(), b.hash())
}

// A snapshot that nobody uses goes when there is a newer one, and not before.
func TestSnapshotKept(t *testing.T) {
	nodes := snapNodes(t, 1, 1<<20)
	s := nodes[0].mesh.snapshots
	first, second := nodes[0].snapshot(), nodes[0].snapshot()
	require.Len(t, s.made, 2, "both are in use")
	s.Drop(first)
	require.Len(t, s.made, 2)
	third := nodes[0].snapshot()
	require.Len(t, s.made, 2)
	s.Drop(second)
	s.Drop(third)
	s.retire()
	require.Empty(t, s.made)
}

func TestFetchRefuses(t *testing.T) {
	nodes := snapNodes(t, 1, 1<<20)
	m := nodes[0].mesh
	meta := nodes[0].snapshot()
	made := meta.Data.(*madeSnapshot)
	member := &Peer{member: 2, bulk: true}
	for name, test := range map[string]struct {
		peer *Peer
		want *wire.Fetch
		err  error
	}{
		"no member":    {&Peer{bulk: true}, &wire.Fetch{Id: made.ID}, gearsfs.ErrAccess},
		"not bulk":     {&Peer{member: 2}, &wire.Fetch{Id: made.ID}, gearsfs.ErrAccess},
		"no snapshot":  {member, &wire.Fetch{Id: "x"}, gearsfs.ErrNotFound},
		"no file":      {member, &wire.Fetch{Id: made.ID, File: "../LOCK"}, gearsfs.ErrNotFound},
		"behind":       {member, &wire.Fetch{Id: made.ID, File: made.Files[0].Name, Offset: 1 << 50}, gearsfs.ErrRange},
		"large pieces": {member, &wire.Fetch{Id: made.ID, File: made.Files[0].Name, Length: 1 << 30}, gearsfs.ErrTooBig},
	} {
		t.Run(name, func(t *testing.T) {
			out := make(chan *wire.Response, 1)
			m.Fetch(test.peer, test.want, func(resp *wire.Response) { out <- resp })
			require.ErrorIs(t, answer.ErrorOf(<-out), test.err)
		})
	}
}

func TestPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPace(1 << 20)
		began := time.Now()
		for range 40 {
			require.NoError(t, p.wait(t.Context(), 256<<10))
		}
		require.InDelta(t, 10, time.Since(began).Seconds(), 0.1)
		bubble.Pass(time.Hour) // nothing is saved up
		began = time.Now()
		var all sync.WaitGroup
		for range 8 { // together
			all.Go(func() { p.wait(context.Background(), 512<<10) }) //nolint:errcheck // it can't end
		}
		all.Wait()
		require.InDelta(t, 4, time.Since(began).Seconds(), 0.1)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		require.True(t, errors.Is(p.wait(ctx, 1<<30), context.Canceled))
	})
}
