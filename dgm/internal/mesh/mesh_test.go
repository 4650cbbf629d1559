package mesh

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm/internal/answer"
	"github.com/gearsfs/gearsfs/persist"
	"github.com/gearsfs/gearsfs/replica"
	"github.com/gearsfs/gearsfs/transport"
	"github.com/gearsfs/gearsfs/wire"
)

// fakeRoster is a table of members, safe for concurrent use.
type fakeRoster struct {
	mu   sync.Mutex
	rows map[gearsfs.MemberID]*wire.MemberRow
}

func (r *fakeRoster) set(id gearsfs.MemberID, row *wire.MemberRow) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.rows[id] = row
}

func (r *fakeRoster) Members() ([]gearsfs.Member, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []gearsfs.Member
	for id, row := range r.rows {
		if !row.Removed {
			all = append(all, gearsfs.Member{ID: id, Name: row.Name, Addrs: row.Addrs})
		}
	}
	slices.SortFunc(all, func(a, b gearsfs.Member) int { return cmp.Compare(a.ID, b.ID) })
	return all, nil
}

func (r *fakeRoster) MemberRow(id gearsfs.MemberID) (*wire.MemberRow, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	row, ok := r.rows[id]
	return row, ok
}

// fakeReplica notes what a mesh tells the replica.
type fakeReplica struct {
	install func(message []byte) // instead of noting it, where not nil
	heard   func()               // called by Heard, where not nil

	mu          sync.Mutex
	term        uint64
	got         []string
	unreachable []gearsfs.MemberID
	died        []gearsfs.MemberID
}

func (r *fakeReplica) Receive(message []byte) {
	if r.install != nil {
		r.install(message)
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.got = append(r.got, string(message))
}

func (r *fakeReplica) Heard(context.Context) error {
	if r.heard != nil {
		r.heard()
	}
	return nil
}

func (r *fakeReplica) Unreachable(id gearsfs.MemberID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.unreachable = append(r.unreachable, id)
}

func (r *fakeReplica) Died(id gearsfs.MemberID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.died = append(r.died, id)
}

func (r *fakeReplica) Status() replica.Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	return replica.Status{ID: 1, Leader: 1, Term: r.term}
}

func (r *fakeReplica) received() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.got)
}

func (r *fakeReplica) deaths() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.died)
}

// meshNode is a mesh that listens, as a Volume would have it.
type meshNode struct {
	t      *testing.T
	cfg    meshConfig
	self   *wire.Member
	mesh   *Mesh
	roster *fakeRoster
	group  *fakeReplica
	addr   transport.Addr
	server *transport.Server
	ops    func(*wire.NodeOp) *wire.Response
	lent   func(*transport.Conn, *wire.Fetch, *wire.Response)
}

var meshVolume = persist.ID{1, 2, 3}

func newMeshNode(t *testing.T, id gearsfs.MemberID) *meshNode {
	addr := transport.Addr{Network: "unix", Address: filepath.Join(t.TempDir(), "s")}
	n := &meshNode{t: t, addr: addr, group: new(fakeReplica), roster: &fakeRoster{rows: make(map[gearsfs.MemberID]*wire.MemberRow)}}
	n.self = &wire.Member{
		Id: uint64(id), Name: fmt.Sprintf("n%d", id), NodeId: slices.Repeat([]byte{byte(id)}, 16), Addrs: addr.String(),
	}
	n.cfg = meshConfig{
		identity: func() (*wire.Member, persist.ID) { return n.self, meshVolume },
		roster:   n.roster, log: slog.New(slog.DiscardHandler),
	}
	n.mesh = makeMesh(n.cfg)
	t.Cleanup(func() {
		n.mesh.Close()
		n.unlisten()
	})
	return n
}

// row is what the others' rosters say of the node.
func (n *meshNode) row() *wire.MemberRow {
	return &wire.MemberRow{Name: n.self.Name, NodeId: n.self.NodeId, Addrs: n.self.Addrs}
}

func (n *meshNode) id() gearsfs.MemberID { return gearsfs.MemberID(n.self.Id) }

func (n *meshNode) listen() {
	n.t.Helper()
	ln, err := transport.Listen(n.addr)
	require.NoError(n.t, err)
	cfg := Transport()
	cfg.NewHandler = func(conn *transport.Conn) (transport.Handler, error) {
		return meshHandler{n, &Peer{Conn: conn}}, nil
	}
	n.server, err = transport.Serve(ln, cfg)
	require.NoError(n.t, err)
}

func (n *meshNode) unlisten() {
	if n.server != nil {
		n.server.Close() //nolint:errcheck // the test is over or says so
		n.server = nil
	}
}

// reborn replaces the mesh, as a new process would.
func (n *meshNode) reborn() {
	n.mesh.Close()
	n.mesh = makeMesh(n.cfg)
}

type meshHandler struct {
	n *meshNode
	p *Peer
}

func (h meshHandler) Serve(call *transport.Call) {
	req := new(wire.Request)
	if err := req.UnmarshalVT(call.Body()); err != nil {
		panic(err)
	}
	var resp *wire.Response
	switch kind := req.Kind.(type) {
	case *wire.Request_Peer:
		var err error
		if resp, err = h.n.mesh.Accept(h.p, kind.Peer); err != nil {
			resp = answer.Failure(err)
		}
	case *wire.Request_Fetch:
		h.n.mesh.Fetch(h.p, kind.Fetch, func(resp *wire.Response) {
			if h.n.lent != nil {
				h.n.lent(h.p.Conn, kind.Fetch, resp)
			}
			h.reply(call, resp)
		})
		return
	case *wire.Request_Node:
		resp = h.n.ops(kind.Node)
		if resp == nil {
			return
		}
	}
	h.reply(call, resp)
}

func (h meshHandler) reply(call *transport.Call, resp *wire.Response) {
	body, err := resp.MarshalVT()
	if err != nil {
		panic(err)
	}
	call.Reply(body)
}

func (h meshHandler) Notice(body []byte) { h.n.mesh.Notice(h.p, body) }

// meshOf makes nodes that know each other, listen and are connected.
func meshOf(t *testing.T, ids ...gearsfs.MemberID) []*meshNode {
	t.Helper()
	nodes := make([]*meshNode, len(ids))
	for i, id := range ids {
		nodes[i] = newMeshNode(t, id)
	}
	for _, n := range nodes {
		for _, o := range nodes {
			n.roster.set(o.id(), o.row())
		}
		n.listen()
	}
	for _, n := range nodes {
		n.mesh.Begin(n.group)
	}
	for _, n := range nodes {
		for _, o := range nodes {
			n.reaches(o)
		}
	}
	return nodes
}

func (n *meshNode) reaches(o *meshNode) {
	n.t.Helper()
	eventually(n.t, func() bool {
		ok, _ := n.mesh.reachable(o.id())
		return ok
	}, "%s does not reach %s", n.self.Name, o.self.Name)
}

// eventually waits for what other goroutines do.
func eventually(t *testing.T, cond func() bool, format string, args ...any) {
	t.Helper()
	require.Eventually(t, cond, 20*time.Second, time.Millisecond, append([]any{format}, args...)...)
}

func TestMeshMessages(t *testing.T) {
	nodes := meshOf(t, 1, 2, 3)
	var want []string
	for i := range 500 {
		batch := [][]byte{fmt.Appendf(nil, "%d a", i), fmt.Appendf(nil, "%d b", i)}
		want = append(want, string(batch[0]), string(batch[1]))
		nodes[0].mesh.Send(2, batch)
	}
	nodes[1].mesh.Send(1, [][]byte{[]byte("back")})
	eventually(t, func() bool { return len(nodes[1].group.received()) == len(want) }, "messages are missing")
	require.Equal(t, want, nodes[1].group.received())
	eventually(t, func() bool { return len(nodes[0].group.received()) == 1 }, "a message is missing")
	require.Empty(t, nodes[2].group.received())
	require.Empty(t, nodes[0].group.unreachable)
	nodes[0].mesh.Send(9, [][]byte{[]byte("nobody")})
	require.Equal(t, []gearsfs.MemberID{9}, nodes[0].group.unreachable)
}

// Messages that are larger than a notice, alone and together, arrive in order.
func TestMeshLargeMessages(t *testing.T) {
	nodes := meshOf(t, 1, 2)
	var batch [][]byte
	for i, size := range []int{1, 33 << 20, 5, noticeBytesMax - 2, 3, noticeBytesMax} {
		message := make([]byte, size)
		message[0] = byte(i)
		batch = append(batch, message)
	}
	nodes[0].mesh.Send(2, batch)
	eventually(t, func() bool { return len(nodes[1].group.received()) == len(batch) }, "messages are missing")
	for i, got := range nodes[1].group.received() {
		require.Len(t, got, len(batch[i]))
		require.Equal(t, byte(i), got[0])
	}
}

// The latest messages to a member that is not there yet are kept for it.
func TestMeshKeeps(t *testing.T) {
	a, b := newMeshNode(t, 1), newMeshNode(t, 2)
	for _, n := range []*meshNode{a, b} {
		n.roster.set(1, a.row())
		n.roster.set(2, b.row())
	}
	a.mesh.Begin(a.group)
	for i := range keptMessagesMax + 10 {
		a.mesh.Send(2, [][]byte{fmt.Append(nil, i)})
	}
	require.Len(t, a.group.unreachable, 10)
	ok, why := a.mesh.reachable(2)
	require.False(t, ok)
	require.NotEmpty(t, why)
	b.mesh.Begin(b.group)
	b.listen()
	eventually(t, func() bool { return len(b.group.received()) == keptMessagesMax }, "messages are missing")
	require.Equal(t, "10", b.group.received()[0])
	require.Zero(t, a.group.deaths(), "it was never there")
}

// A process that is gone is told from one that is not heard of.
func TestMeshDeath(t *testing.T) {
	nodes := meshOf(t, 1, 2, 3)
	a, b := nodes[0], nodes[1]
	b.mesh.Close()
	b.unlisten()
	eventually(t, func() bool { return a.group.deaths() == 1 }, "the death is not noticed")
	ok, why := a.mesh.reachable(2)
	require.False(t, ok)
	require.Contains(t, why, "nobody listens")
	require.Contains(t, a.group.unreachable, gearsfs.MemberID(2))
	b.reborn()
	b.mesh.Begin(b.group)
	b.listen()
	a.reaches(b)
	b.reaches(a)
	a.mesh.Send(2, [][]byte{[]byte("again")})
	eventually(t, func() bool { return slices.Contains(b.group.received(), "again") }, "it is not heard again")
}

// A process that is back before anybody could see it missing has died too.
func TestMeshRestart(t *testing.T) {
	nodes := meshOf(t, 1, 2)
	a, b := nodes[0], nodes[1]
	b.reborn()
	b.mesh.Begin(b.group)
	eventually(t, func() bool { return a.group.deaths() == 1 }, "the death is not noticed")
}

// A second process with a member's data is refused for as long as the first one
// runs, and can take its place then.
func TestMeshTwin(t *testing.T) {
	nodes := meshOf(t, 1, 2, 3)
	a, b, c := nodes[0], nodes[1], nodes[2]
	copied := newMeshNode(t, 2)
	copied.roster = b.roster
	copied.cfg.roster = b.roster
	refused := make(chan error, 100)
	copied.cfg.fatal = func(err error) { refused <- err }
	copied.listen()
	copied.reborn()
	copied.mesh.Begin(copied.group)
	for range 2 {
		require.ErrorIs(t, <-refused, gearsfs.ErrInUse)
	}
	for _, other := range []*meshNode{a, c} {
		other.reaches(b)
		require.Zero(t, other.group.deaths())
		for _, self := range other.mesh.Said() {
			require.NotEqual(t, copied.self.Addrs, self.Addrs)
		}
		b.reaches(other)
	}
	b.mesh.Close()
	b.unlisten()
	copied.reaches(a)
	copied.reaches(c)
	eventually(t, func() bool { return a.group.deaths() > 0 && c.group.deaths() > 0 }, "the death is not noticed")
}

// A node that is stopped accepts connections and says nothing.
func TestMeshStopped(t *testing.T) {
	a, b := newMeshNode(t, 1), newMeshNode(t, 2)
	a.roster.set(1, a.row())
	a.roster.set(2, b.row())
	ln, err := net.Listen("unix", b.addr.Address)
	require.NoError(t, err)
	defer ln.Close()
	a.mesh.Begin(a.group)
	eventually(t, func() bool {
		_, why := a.mesh.reachable(2)
		return why == b.addr.String()+" does not answer"
	}, "the reason is missing")
	require.Zero(t, a.group.deaths())
}

func TestMeshRefuses(t *testing.T) {
	n := newMeshNode(t, 1)
	n.roster.set(1, n.row())
	n.mesh.Begin(n.group)
	n.roster.set(2, &wire.MemberRow{Name: "two", NodeId: slices.Repeat([]byte{2}, 16)})
	n.roster.set(3, &wire.MemberRow{Name: "three", Removed: true})
	good := func() *wire.Peer {
		return &wire.Peer{
			VolumeId: meshVolume[:], Member: 2, To: 1, Format: persist.FormatVersion, Incarnation: 5,
			Self: &wire.Member{Id: 2, Name: "two", NodeId: slices.Repeat([]byte{2}, 16)},
		}
	}
	for name, test := range map[string]struct {
		change func(*wire.Peer)
		err    error
	}{
		"right":         {func(*wire.Peer) {}, nil},
		"other volume":  {func(p *wire.Peer) { p.VolumeId = make([]byte, 16) }, gearsfs.ErrForeign},
		"older format":  {func(p *wire.Peer) { p.Format = 0 }, gearsfs.ErrFormat},
		"for another":   {func(p *wire.Peer) { p.To = 7 }, gearsfs.ErrNotMember},
		"own id":        {func(p *wire.Peer) { p.Member = 1 }, gearsfs.ErrForeign},
		"removed":       {func(p *wire.Peer) { p.Member = 3 }, gearsfs.ErrNotMember},
		"other data":    {func(p *wire.Peer) { p.Self.NodeId = make([]byte, 16) }, gearsfs.ErrForeign},
		"same name":     {func(p *wire.Peer) { p.Self.Name = "n1" }, gearsfs.ErrExists},
		"says nothing":  {func(p *wire.Peer) { *p = wire.Peer{} }, gearsfs.ErrFormat},
		"unknown guest": {func(p *wire.Peer) { p.Member, p.Self.Name = 9, "nine" }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			hello := good()
			test.change(hello)
			server, client := net.Pipe()
			done := make(chan *transport.Conn, 1)
			go func() {
				conn, err := transport.Connect(t.Context(), client, transport.Config{})
				if err != nil {
					t.Error(err)
				}
				done <- conn
			}()
			conn, err := transport.Accept(t.Context(), server, transport.Config{})
			require.NoError(t, err)
			defer conn.Close()
			defer (<-done).Close()
			p := &Peer{Conn: conn}
			resp, err := n.mesh.Accept(p, hello)
			if err == nil {
				err = answer.ErrorOf(resp)
			}
			if test.err == nil {
				require.NoError(t, err)
				require.Equal(t, uint64(1), resp.Joined.Member)
				require.Equal(t, gearsfs.MemberID(hello.Member), p.member)
				return
			}
			require.ErrorIs(t, err, test.err)
			require.Zero(t, p.member)
			require.Equal(t, name == "removed", resp.GetJoined().GetRemoved())
		})
	}
}

// A node that others have removed learns so when it comes.
func TestMeshRemoved(t *testing.T) {
	nodes := meshOf(t, 1, 2)
	a, b := nodes[0], nodes[1]
	require.Empty(t, b.mesh.Warnings())
	gone := b.row()
	gone.Removed = true
	a.roster.set(2, gone)
	a.mesh.Update()
	eventually(t, func() bool { return len(b.mesh.Warnings()) == 1 }, "it does not hear of it")
	require.Contains(t, b.mesh.Warnings()[0], "removed")
	eventually(t, func() bool { return len(a.mesh.Said()) == 0 }, "its connection stays")
	ok, _ := a.mesh.reachable(2)
	require.False(t, ok)
}

// Of several addresses the one counts where the right member answers.
func TestMeshAddresses(t *testing.T) {
	nodes := meshOf(t, 1, 2, 3)
	a, b, c := nodes[0], nodes[1], nodes[2]
	elsewhere := b.row()
	nowhere := "unix:" + filepath.Join(t.TempDir(), "none")
	elsewhere.Addrs = nowhere + "," + c.addr.String()
	a.roster.set(2, elsewhere)
	a.mesh.Update()
	require.Empty(t, a.group.died)
	b.unlisten() // the connection ends, and is made again at the new addresses
	eventually(t, func() bool {
		_, why := a.mesh.reachable(2)
		return why != "" && (*a.mesh.links.Load())[2].who().Addrs == elsewhere.Addrs
	}, "it is still reached")
	elsewhere = b.row()
	elsewhere.Addrs = nowhere + "," + c.addr.String() + "," + b.addr.String()
	b.listen()
	a.roster.set(2, elsewhere)
	a.mesh.Update()
	a.reaches(b)
}

// A node that is reached over TCP before it has its unix socket is talked with over
// that from then on.
func TestMeshNearer(t *testing.T) {
	a, b := newMeshNode(t, 1), newMeshNode(t, 2)
	ln, err := transport.Listen(transport.Addr{Network: "tcp", Address: "127.0.0.1:0"})
	require.NoError(t, err)
	far := make(chan *transport.Conn, 1)
	cfg := Transport()
	cfg.NewHandler = func(conn *transport.Conn) (transport.Handler, error) {
		b.listen() // it was about to
		far <- conn
		return meshHandler{b, &Peer{Conn: conn}}, nil
	}
	server, err := transport.Serve(ln, cfg)
	require.NoError(t, err)
	t.Cleanup(func() { server.Close() }) //nolint:errcheck // the test is over
	b.self.Addrs += "," + ln.Address().String()
	a.roster.set(2, b.row())
	b.roster.set(1, a.row())
	b.mesh.Begin(b.group)
	a.mesh.Begin(a.group)
	a.reaches(b)
	conn, err := (*a.mesh.links.Load())[2].current()
	require.NoError(t, err)
	require.Equal(t, transport.PeerUnix, conn.Peer().Kind)
	<-(<-far).Done()
	a.mesh.Send(2, [][]byte{[]byte("x")})
	eventually(t, func() bool { return len(b.group.received()) == 1 }, "nothing came")
	require.Empty(t, a.group.died)
	require.Empty(t, b.group.died)
}

// A node whose log is behind does not know a newer member, which may be the
// only one that could tell it more.
func TestMeshGuest(t *testing.T) {
	a, b := newMeshNode(t, 1), newMeshNode(t, 2)
	b.roster.set(1, a.row())
	b.roster.set(2, b.row())
	a.listen()
	b.listen()
	a.mesh.Begin(a.group)
	b.mesh.Begin(b.group)
	a.reaches(b)
	a.mesh.Send(2, [][]byte{[]byte("welcome")})
	eventually(t, func() bool { return len(b.group.received()) == 1 }, "the guest does not hear")
	a.mesh.Update()
	ok, _ := a.mesh.reachable(2)
	require.True(t, ok, "still a guest")
	a.roster.set(2, &wire.MemberRow{Name: "n2", Removed: true})
	a.mesh.Update()
	ok, _ = a.mesh.reachable(2)
	require.False(t, ok)
}

func TestMeshAsk(t *testing.T) {
	nodes := meshOf(t, 1, 2)
	a, b := nodes[0], nodes[1]
	b.ops = func(op *wire.NodeOp) *wire.Response {
		if op.GetStateHash() == 5 {
			return &wire.Response{Data: []byte("hash")}
		}
		return nil // never
	}
	resp, err := a.mesh.Ask(t.Context(), 2, &wire.NodeOp{Op: &wire.NodeOp_StateHash{StateHash: 5}})
	require.NoError(t, err)
	require.Equal(t, "hash", string(resp.Data))
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	_, err = a.mesh.Ask(ctx, 2, &wire.NodeOp{Op: &wire.NodeOp_StateHash{StateHash: 6}})
	require.ErrorIs(t, err, context.DeadlineExceeded)
	_, err = a.mesh.Ask(t.Context(), 3, &wire.NodeOp{})
	require.ErrorIs(t, err, gearsfs.ErrNotMember)
	b.mesh.Close()
	b.unlisten()
	eventually(t, func() bool {
		_, err := a.mesh.Ask(t.Context(), 2, &wire.NodeOp{})
		return err != nil
	}, "an answer of nobody")
}
