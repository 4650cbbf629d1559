package dgm

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/transport"
	"github.com/gearsfs/gearsfs/wire"
)

// fakeCluster is a volume of one queue on several nodes that the test deposes,
// freezes and kills. What is applied is never lost, as if by a majority; an
// answer is where the node dies before it is sent.
type fakeCluster struct {
	t     *testing.T
	ctx   context.Context
	nodes []*fakeNode

	mu       sync.Mutex
	changed  sync.Cond // something was applied
	over     bool      // the clients are done
	leader   int       // -1: none
	hints    bool      // who does not lead says who does
	die      bool      // the leader dies when it has applied the next change, before it answers
	minted   uint64
	sessions map[gearsfs.SessionID]map[uint64]*wire.Answer
	refused  map[gearsfs.SessionID]bool // its changes are: it is too old
	queue    []*wire.TakenRecord
	puts     []string // all, in order
	takes    []*fakeWait
	members  map[string]bool
	applied  uint64
}

// fakeWait is a take that waits at the leader.
type fakeWait struct {
	node    *fakeNode
	call    *transport.Call
	id      gearsfs.SessionID
	seq     uint64
	stopped bool
}

// fakeNode is one node, at a unix socket.
type fakeNode struct {
	c    *fakeCluster
	i    int
	path string
	wg   sync.WaitGroup

	mu       sync.Mutex
	thawed   sync.Cond
	frozen   bool
	greeted  int // connections that were accepted
	l        net.Listener
	socks    map[net.Conn]bool
	watching bool
	down     bool
}

func newFakeCluster(t *testing.T, n int) *fakeCluster {
	c := &fakeCluster{
		t: t, ctx: t.Context(), hints: true, sessions: make(map[gearsfs.SessionID]map[uint64]*wire.Answer),
		refused: make(map[gearsfs.SessionID]bool), members: make(map[string]bool),
	}
	c.changed.L = &c.mu
	dir := t.TempDir()
	for i := range n {
		node := &fakeNode{c: c, i: i, path: filepath.Join(dir, fmt.Sprint("n", i)), socks: make(map[net.Conn]bool)}
		node.thawed.L = &node.mu
		c.nodes = append(c.nodes, node)
		c.members[fmt.Sprint("n", i)] = true
		node.start()
		t.Cleanup(node.stop)
	}
	return c
}

func (n *fakeNode) addr() string { return "unix:" + n.path }

// addrs are those of the nodes named by is, of all where there is none.
func (c *fakeCluster) addrs(is ...int) string {
	text := ""
	for i, n := range c.nodes {
		if len(is) == 0 || slices.Contains(is, i) {
			text += "," + n.addr()
		}
	}
	return text[1:]
}

// dial is Dial with a connection that counts as lost soon.
func (c *fakeCluster) dial(addrs string) *Remote {
	c.t.Helper()
	r, err := c.tryDial(c.ctx, addrs)
	require.NoError(c.t, err)
	c.t.Cleanup(func() { require.NoError(c.t, r.Close()) })
	return r
}

func (c *fakeCluster) tryDial(ctx context.Context, addrs string) (*Remote, error) {
	route, err := newDialRoute(addrs, RemoteOptions{})
	require.NoError(c.t, err)
	route.cfg.IdleTimeout = 600 * time.Millisecond
	return newRemote(ctx, RemoteOptions{Client: Client{Process: "test"}}, route)
}

func (n *fakeNode) start() {
	l, err := net.Listen("unix", n.path)
	require.NoError(n.c.t, err)
	n.mu.Lock()
	n.l, n.watching, n.down = l, false, false
	n.mu.Unlock()
	n.wg.Go(func() {
		for {
			sock, err := l.Accept()
			if err != nil {
				return
			}
			n.mu.Lock()
			n.greeted++
			if n.down {
				sock.Close()
			} else {
				n.socks[sock] = true
				n.wg.Go(func() { n.serve(sock) })
			}
			n.mu.Unlock()
		}
	})
}

// stop is a kill: what is connected is lost.
func (n *fakeNode) stop() {
	n.thaw()
	n.mu.Lock()
	n.down = true
	n.l.Close()
	for sock := range n.socks {
		sock.Close()
	}
	clear(n.socks)
	n.mu.Unlock()
	n.wg.Wait()
}

func (n *fakeNode) freeze() {
	n.mu.Lock()
	n.frozen = true
	n.mu.Unlock()
}

func (n *fakeNode) thaw() {
	n.mu.Lock()
	n.frozen = false
	n.thawed.Broadcast()
	n.mu.Unlock()
}

func (n *fakeNode) accepted() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.greeted
}

// freezer is a node's end of a socket: it stands still while the node is frozen.
type freezer struct {
	net.Conn
	n *fakeNode
}

func (f freezer) Read(b []byte) (int, error) {
	n, err := f.Conn.Read(b)
	f.n.mu.Lock()
	defer f.n.mu.Unlock()
	for f.n.frozen && err == nil {
		f.n.thawed.Wait()
	}
	return n, err
}

func (n *fakeNode) serve(sock net.Conn) {
	conn, err := transport.Accept(n.c.ctx, freezer{sock, n}, transport.Config{
		NewHandler: func(*transport.Conn) (transport.Handler, error) { return transport.HandlerFunc(n.handle), nil },
	})
	if err == nil {
		select {
		case <-conn.Done():
		case <-n.c.ctx.Done():
		}
		conn.Close()
	}
	sock.Close()
}

func (n *fakeNode) handle(call *transport.Call) {
	req := new(wire.Request)
	require.NoError(n.c.t, req.UnmarshalVT(call.Body()))
	c := n.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if op := req.GetNode(); op != nil {
		c.answerNode(n, call, op)
		return
	}
	if c.leader != n.i {
		c.reply(call, c.elsewhere())
		return
	}
	id := sessionID(req.SessionMinted, req.SessionSalt)
	switch kind := req.Kind.(type) {
	case *wire.Request_Hello:
		c.hello(call, kind.Hello)
	case *wire.Request_Change:
		c.change(n, call, id, kind.Change)
	case *wire.Request_Query:
		w, ok := kind.Query.Op.(*wire.Query_Watch)
		switch {
		case !ok:
			c.reply(call, failure(gearsfs.ErrUnknownOp))
		case w.Watch.Id == 0:
			n.watching = true
			c.reply(call, &wire.Response{Number: 1})
		case !n.watching:
			c.reply(call, failure(errMissed))
		}
	default:
		c.reply(call, &wire.Response{})
	}
}

func (c *fakeCluster) reply(call *transport.Call, resp *wire.Response) {
	resp.Index = c.applied
	body, err := resp.MarshalVT()
	require.NoError(c.t, err)
	call.Reply(body)
}

func (c *fakeCluster) elsewhere() *wire.Response {
	resp := failure(gearsfs.ErrNotLeader)
	if c.hints && c.leader >= 0 {
		resp.Leader = c.nodes[c.leader].addr()
	}
	return resp
}

func (c *fakeCluster) hello(call *transport.Call, h *wire.Hello) {
	id := sessionID(h.SessionMinted, h.SessionSalt)
	if id.IsZero() {
		c.minted++
		id = gearsfs.SessionID{Minted: int64(c.minted), Salt: 1}
		c.sessions[id] = make(map[uint64]*wire.Answer)
	} else if c.sessions[id] == nil {
		c.reply(call, failure(gearsfs.ErrSession))
		return
	}
	w := &wire.Welcome{SessionMinted: uint64(id.Minted), SessionSalt: id.Salt, VolumeId: []byte("volume")}
	for _, n := range c.nodes {
		w.Addrs = append(w.Addrs, n.addr())
	}
	c.reply(call, &wire.Response{Welcome: w})
}

func (c *fakeCluster) change(n *fakeNode, call *transport.Call, id gearsfs.SessionID, ch *wire.Change) {
	stored, known := c.sessions[id]
	seq := ch.Command.Seq
	switch {
	case !known || c.refused[id]:
		c.reply(call, failure(gearsfs.ErrSession))
		return
	case stored[seq] != nil:
		c.reply(call, &wire.Response{Answer: stored[seq]})
		return
	}
	switch op := ch.Command.Op.(type) {
	case *wire.Command_Put:
		answer := &wire.Answer{}
		for _, r := range op.Put.Records {
			c.puts = append(c.puts, string(r.Data))
			answer.LastSeq = uint64(len(c.puts))
			c.queue = append(c.queue, &wire.TakenRecord{Key: op.Put.Key, Seq: answer.LastSeq, Data: r.Data})
		}
		stored[seq] = answer
		c.answerLater(n, call, answer)
		c.serveTakes()
	case *wire.Command_Take:
		w := &fakeWait{node: n, call: call, id: id, seq: seq}
		c.takes = append(c.takes, w)
		call.OnCancel(func() { // not while c.mu is held: the call is not cancelled yet
			c.mu.Lock()
			w.stopped = true
			c.mu.Unlock()
			c.reply(call, failure(gearsfs.ErrCancelled))
		})
		c.serveTakes()
	default:
		c.reply(call, failure(gearsfs.ErrUnknownOp))
	}
}

// answerLater answers what was applied, unless the leader is to die before.
func (c *fakeCluster) answerLater(n *fakeNode, call *transport.Call, answer *wire.Answer) {
	c.applied++
	defer c.changed.Broadcast()
	if !c.die {
		c.reply(call, &wire.Response{Answer: answer})
		return
	}
	c.die, c.leader = false, -1
	n.mu.Lock()
	for sock := range n.socks {
		sock.Close()
	}
	n.mu.Unlock()
}

// serveTakes gives records to those who wait at the leader.
func (c *fakeCluster) serveTakes() {
	waiting := c.takes
	c.takes = nil
	for _, w := range waiting {
		stored := c.sessions[w.id]
		switch {
		case w.stopped || w.node.i != c.leader:
		case stored[w.seq] != nil:
			c.reply(w.call, &wire.Response{Answer: stored[w.seq]})
		case len(c.queue) == 0:
			c.takes = append(c.takes, w)
		default:
			stored[w.seq] = &wire.Answer{Records: c.queue[:1:1]}
			c.queue = c.queue[1:]
			c.answerLater(w.node, w.call, stored[w.seq])
		}
	}
}

// lead makes a node lead. What waits at the one before is sent there.
func (c *fakeCluster) lead(i int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.leader = i
	waiting := c.takes
	c.takes = nil
	for _, w := range waiting {
		if w.node.i == i {
			c.takes = append(c.takes, w)
		} else if !w.stopped {
			c.reply(w.call, c.elsewhere())
		}
	}
}

// awaitApplied waits until n more changes are applied; it returns false when
// that will not be.
func (c *fakeCluster) awaitApplied(n uint64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for upTo := c.applied + n; c.applied < upTo && !c.over; {
		c.changed.Wait()
	}
	return !c.over
}

// loseAnswer has the leader die when it has applied the next change, and waits
// until it has.
func (c *fakeCluster) loseAnswer() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.loseAnswerLocked()
}

func (c *fakeCluster) loseAnswerLocked() {
	c.die = true
	for c.die && !c.over {
		c.changed.Wait()
	}
}

func (c *fakeCluster) awaitTakers(n int) {
	require.Eventually(c.t, func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return len(c.takes) == n
	}, 10*time.Second, time.Millisecond)
}

func (c *fakeCluster) answerNode(n *fakeNode, call *transport.Call, op *wire.NodeOp) {
	switch kind := op.Op.(type) {
	case *wire.NodeOp_Status:
		c.reply(call, &wire.Response{Status: &wire.NodeStatus{Name: fmt.Sprint("n", n.i)}})
	case *wire.NodeOp_Nodes:
		resp := &wire.Response{}
		for i := range c.nodes {
			if name := fmt.Sprint("n", i); c.members[name] {
				resp.Nodes = append(resp.Nodes, &wire.NodeInfo{Member: &wire.Member{Id: uint64(i + 1), Name: name}})
			}
		}
		c.reply(call, resp)
	case *wire.NodeOp_Remove:
		switch {
		case c.leader != n.i:
			c.reply(call, c.elsewhere())
		case !c.members[kind.Remove]:
			c.reply(call, failure(gearsfs.ErrNotFound))
		default:
			delete(c.members, kind.Remove)
			if c.die {
				c.die = false
				n.mu.Lock()
				for sock := range n.socks {
					sock.Close()
				}
				n.mu.Unlock()
				return
			}
			c.reply(call, &wire.Response{})
		}
	default:
		c.reply(call, failure(gearsfs.ErrUnknownOp))
	}
}
