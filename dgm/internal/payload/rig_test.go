package payload

import (
	"context"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/file"
	"github.com/gearsfs/gearsfs/persist"
	"github.com/gearsfs/gearsfs/transport"
	"github.com/gearsfs/gearsfs/wire"
)

// rig are nodes with a volume in common. What a group does is done by hand: each
// entry is applied at all of them and on their disks at once.
type rig struct {
	t     *testing.T
	nodes []*node
	index uint64
}

// node has a Keeper, and is the Node and the Members that it knows.
type node struct {
	rig     *rig
	id      gearsfs.MemberID
	dir     string
	data    *persist.Data
	machine *file.Machine
	keeper  *Keeper
	root    context.Context
	stop    context.CancelFunc
	owned   sync.WaitGroup

	mu    sync.Mutex
	conns map[gearsfs.MemberID]*transport.Conn
	ends  []*transport.Conn // of others' connections to this node
}

var (
	_ Node          = (*node)(nil)
	_ Members       = (*node)(nil)
	_ file.Observer = (*node)(nil)
)

// newRig returns so many nodes, whose data are in new directories.
func newRig(t *testing.T, n int) *rig {
	t.Helper()
	r := &rig{t: t}
	for i := range n {
		r.nodes = append(r.nodes, &node{rig: r, id: gearsfs.MemberID(i + 1), dir: t.TempDir()})
		r.nodes[i].open()
	}
	t.Cleanup(func() {
		for _, n := range r.nodes {
			n.stop()
		}
		for _, n := range r.nodes {
			n.close()
		}
	})
	r.apply(&wire.Command{Op: &wire.Command_Init{Init: &wire.Init{Id: make([]byte, 16), Name: "main"}}})
	return r
}

func (n *node) open() {
	t := n.rig.t
	t.Helper()
	var err error
	n.data, err = persist.Open(n.dir, persist.Options{Create: true, Name: "n"})
	require.NoError(t, err)
	n.machine, err = file.New(n.data.State, n)
	require.NoError(t, err)
	n.root, n.stop = context.WithCancel(context.Background())
	n.conns = make(map[gearsfs.MemberID]*transport.Conn)
	n.keeper = new(Keeper)
	require.NoError(t, n.keeper.Open(Config{
		Self: n.id, Data: n.data, Machine: n.machine, Clock: time.Now, Least: 64 << 10, Log: slog.New(slog.DiscardHandler),
		Node: n, Members: n, Busy: n.root, Root: n.root, Reads: make(chan struct{}, 1),
	}))
}

func (n *node) close() {
	n.stop()
	n.mu.Lock()
	conns := n.ends
	for _, c := range n.conns {
		conns = append(conns, c)
	}
	n.conns, n.ends = nil, nil
	n.mu.Unlock()
	for _, c := range conns {
		c.Shutdown(n.root) //nolint:errcheck // it is over
	}
	n.owned.Wait()
	require.NoError(n.rig.t, n.keeper.Close())
	require.NoError(n.rig.t, n.data.Close())
}

// reopen is a crash of the process, after which it begins again.
func (n *node) reopen() {
	n.close()
	n.open()
}

func (n *node) Applied(uint64, []file.Touched, []file.Changed) {}
func (n *node) MembersChanged()                                {}
func (n *node) Freed(index uint64, extents []gearsfs.Extent)   { n.keeper.Freed(index, extents) }
func (n *node) Verify(_ uint64, state file.View)               { require.NoError(n.rig.t, state.Close()) }
func (n *node) Full() bool                                     { return false }
func (n *node) Certain(context.Context) error                  { return nil }
func (n *node) Durable() gearsfs.Index                         { return gearsfs.Index(n.rig.index) }
func (n *node) Fatal(err error)                                { n.rig.t.Errorf("fatal: %v", err) }
func (n *node) Alone() bool                                    { return len(n.rig.nodes) == 1 }

func (n *node) Spawn(f func()) bool {
	n.owned.Go(f)
	return true
}

// Quorums has what is stored be at all nodes: each is a set by itself.
func (n *node) Quorums() (sets [][]gearsfs.MemberID) {
	for _, o := range n.rig.nodes {
		sets = append(sets, []gearsfs.MemberID{o.id})
	}
	return sets
}

func (n *node) Others() (ids []gearsfs.MemberID) {
	for _, o := range n.rig.nodes {
		if o != n {
			ids = append(ids, o.id)
		}
	}
	return ids
}

func (n *node) Carry(ctx context.Context, to gearsfs.MemberID, start Start) (*wire.Response, error) {
	conn, err := n.dial(ctx, n.rig.nodes[to-1])
	if err != nil {
		return nil, err
	}
	type outcome struct {
		body []byte
		err  error
	}
	out := make(chan outcome, 1)
	call := start(conn, func(body []byte, err error) { out <- outcome{body, err} })
	select {
	case o := <-out:
		resp := new(wire.Response)
		if o.err == nil {
			o.err = resp.UnmarshalVT(o.body)
		}
		if o.err == nil && resp.Answer != nil {
			o.err = gearsfs.FromCode(gearsfs.Code(resp.Answer.Code), resp.Answer.Reason)
		}
		return resp, o.err
	case <-ctx.Done():
		call.Cancel()
		return nil, ctx.Err()
	}
}

// dial connects to another node.
func (n *node) dial(ctx context.Context, to *node) (*transport.Conn, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if conn := n.conns[to.id]; conn != nil {
		return conn, nil
	}
	here, there := net.Pipe()
	n.owned.Go(func() {
		end, err := transport.Accept(ctx, there, transport.Config{NewHandler: to.serve})
		if err == nil {
			to.mu.Lock()
			to.ends = append(to.ends, end)
			to.mu.Unlock()
		}
	})
	conn, err := transport.Connect(ctx, here, transport.Config{})
	if err == nil {
		n.conns[to.id] = conn
	}
	return conn, err
}

// serve answers the calls of other nodes.
func (n *node) serve(*transport.Conn) (transport.Handler, error) {
	return transport.HandlerFunc(func(call *transport.Call) {
		req := new(wire.Request)
		require.NoError(n.rig.t, req.UnmarshalVT(call.Body()))
		n.keeper.Serve(req.GetBlocks(), func(resp *wire.Response, err error) {
			if err != nil {
				resp = &wire.Response{Answer: &wire.Answer{Code: uint32(gearsfs.CodeOf(err)), Reason: err.Error()}}
			}
			body, err := resp.MarshalVT()
			require.NoError(n.rig.t, err)
			call.Reply(body)
		})
	}), nil
}

// apply has a command in an entry.
func (r *rig) apply(cmd *wire.Command) *wire.Answer {
	r.t.Helper()
	r.index++
	var answer *wire.Answer
	for _, n := range r.nodes {
		answers, err := n.machine.Apply(r.index, 1, &wire.Entry{Time: uint64(time.Now().UnixNano()), Commands: []*wire.Command{cmd}})
		require.NoError(r.t, err)
		require.Zero(r.t, answers[0].Code, answers[0].Reason)
		n.keeper.Named([]*wire.Command{cmd})
		require.NoError(r.t, n.keeper.store.Sync())
		n.keeper.Durable(r.index)
		answer = answers[0]
	}
	return answer
}

// write makes a file through a node.
func (n *node) write(name string, data []byte) gearsfs.Ino {
	r := n.rig
	r.t.Helper()
	made := r.apply(&wire.Command{Op: &wire.Command_Make{Make: &wire.Make{Dir: uint64(gearsfs.RootIno), Name: name, Mode: 0o100644}}})
	ino := made.Attr.Ino
	cmd := &wire.Command{Op: &wire.Command_Write{Write: &wire.Write{Ino: ino, Data: data}}}
	extents, err := n.keeper.Upload(r.t.Context(), cmd)
	require.NoError(r.t, err)
	require.NotEmpty(r.t, extents)
	r.apply(cmd)
	n.keeper.Unused(extents, nil)
	return gearsfs.Ino(ino)
}

// requireFile reads a file at a node.
func (n *node) requireFile(want []byte, ino gearsfs.Ino) {
	t := n.rig.t
	t.Helper()
	got, err := n.keeper.Content(t.Context(), gearsfs.Root, &wire.Read{Ino: uint64(ino), Length: uint32(len(want))}, nil)
	require.NoError(t, err)
	require.Equal(t, len(want), len(got))
	require.True(t, string(want) == string(got))
}

// noise returns bytes that do not compress and are not zeros.
func noise(seed byte, n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{seed}).Read(b) //nolint:errcheck // always nil
	return b
}

// bytes are those that a node's block store has on disk.
func (n *node) bytes() uint64 {
	usage, err := n.keeper.store.Usage()
	require.NoError(n.rig.t, err)
	return uint64(usage.Bytes)
}

// damage changes a byte in the middle of a page of a node's first segment.
func (n *node) damage() {
	t := n.rig.t
	t.Helper()
	var first string
	err := filepath.WalkDir(n.data.Blocks(), func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && first == "" {
			first = path
		}
		return err
	})
	require.NoError(t, err)
	f, err := os.OpenFile(first, os.O_RDWR, 0)
	require.NoError(t, err)
	defer f.Close()
	b := make([]byte, 1)
	_, err = f.ReadAt(b, 8192+100)
	require.NoError(t, err)
	b[0] ^= 1
	_, err = f.WriteAt(b, 8192+100)
	require.NoError(t, err)
}

// sweepAll has sweeps look at segments that were written to just now.
func (n *node) sweepAll() { n.keeper.upkeep.settled = -1 }

// pass lets time go by for what is known of uploads.
func (n *node) pass(d time.Duration) {
	p := &n.keeper.pending
	p.mu.Lock()
	defer p.mu.Unlock()
	was := p.now
	p.now = func() time.Time { return was().Add(d) }
}
