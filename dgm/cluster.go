package dgm

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/transport"
	"github.com/gearsfs/gearsfs/wire"
)

// cluster turns the calls of Cluster into requests.
type cluster struct{ caller }

var _ Cluster = cluster{}

func (c cluster) node(ctx context.Context, op *wire.NodeOp) (*wire.Response, error) {
	return c.call(ctx, &wire.Request{Kind: &wire.Request_Node{Node: op}})
}

// Nodes implements Cluster.
func (c cluster) Nodes(ctx context.Context) ([]gearsfs.NodeInfo, error) {
	resp, err := c.node(ctx, &wire.NodeOp{Op: &wire.NodeOp_Nodes{Nodes: true}})
	if err != nil {
		return nil, err
	}
	infos := make([]gearsfs.NodeInfo, len(resp.Nodes))
	for i, n := range resp.Nodes {
		infos[i] = nodeInfoFromWire(n)
	}
	return infos, nil
}

// RemoveNode implements Cluster.
func (c cluster) RemoveNode(ctx context.Context, name string) error {
	_, err := c.node(ctx, &wire.NodeOp{Op: &wire.NodeOp_Remove{Remove: name}})
	return err
}

// TransferLeader implements Cluster.
func (c cluster) TransferLeader(ctx context.Context, name string) error {
	_, err := c.node(ctx, &wire.NodeOp{Op: &wire.NodeOp_Transfer{Transfer: name}})
	return err
}

// Verify implements Cluster.
func (c cluster) Verify(ctx context.Context) error {
	_, err := c.node(ctx, &wire.NodeOp{Op: &wire.NodeOp_Verify{Verify: true}})
	return err
}

// madeBefore says whether the answer to a request that was asked again shows
// that it was carried out the first time.
func madeBefore(req *wire.Request, code gearsfs.Code) bool {
	return req.GetNode().GetRemove() != "" && code == gearsfs.ErrNotFound.Code
}

// lostOrLeaderless says whether a request is worth another try.
func lostOrLeaderless(err error) bool {
	return errors.Is(err, gearsfs.ErrNotLeader) || errors.Is(err, transport.ErrLost)
}

// insist tries a request again while there is no leader to answer it, and where
// the answer was lost, for at most patience.
func insist(ctx context.Context, patience time.Duration, req *wire.Request, try func(context.Context) (*wire.Response, error)) (*wire.Response, error) {
	limited, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for failures := 1; ; failures++ {
		resp, err := try(limited)
		switch {
		case failures > 1 && madeBefore(req, gearsfs.CodeOf(err)):
			return &wire.Response{}, nil
		case !lostOrLeaderless(err):
			return resp, err
		}
		select {
		case <-time.After(backoff(failures)):
		case <-limited.Done():
			if ctx.Err() != nil {
				err = ctx.Err()
			}
			return nil, err
		}
	}
}

// askAt asks the node at addrs, which is said to lead, once.
func askAt(ctx context.Context, addrs string, opts RemoteOptions, req *wire.Request) (*wire.Response, error) {
	leader, err := DialNode(ctx, addrs, opts)
	if err != nil {
		return nil, gearsfs.ErrNotLeader.Because("the node that leads can't be reached: %v", err)
	}
	defer leader.Close() //nolint:errcheck // always nil
	return leader.ask(ctx, req)
}

// NodeClient asks a node about itself and about its cluster, without a session
// of the volume: it works also where no node leads. All methods are safe for
// concurrent use.
type NodeClient struct {
	cluster
	route  *dialRoute
	opts   RemoteOptions
	ctx    context.Context // ends with Close
	stop   context.CancelFunc
	owned  sync.WaitGroup
	dialMu sync.Mutex // held while dialling; taken before mu

	mu   sync.Mutex
	link link // nil while there is none
}

var _ Cluster = (*NodeClient)(nil)

// DialNode connects to a node: the first of the addresses, separated by
// commas, that answers; it is the one that is asked. What only the node that
// leads can do is asked of that one. It waits at most 5 s, with the errors of Dial.
func DialNode(ctx context.Context, addrs string, opts RemoteOptions) (*NodeClient, error) {
	route, err := newDialRoute(addrs, opts)
	if err != nil {
		return nil, err
	}
	if opts.GiveUp == 0 {
		opts.GiveUp = gearsfs.SessionTTL
	}
	n := &NodeClient{route: route, opts: opts}
	n.cluster = cluster{n}
	n.ctx, n.stop = context.WithCancel(context.Background())
	first, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	if _, err := n.connected(first); err != nil {
		n.stop()
		if ctx.Err() == nil && first.Err() != nil {
			err = gearsfs.ErrNoNode.Because("no answer within %v: %v", dialTimeout, err)
		}
		return nil, err
	}
	return n, nil
}

// Status describes the node.
func (n *NodeClient) Status(ctx context.Context) (gearsfs.NodeStatus, error) {
	resp, err := n.node(ctx, &wire.NodeOp{Op: &wire.NodeOp_Status{Status: true}})
	if err != nil {
		return gearsfs.NodeStatus{}, err
	}
	return statusFromWire(resp.Status), nil
}

// Fsck has the node check its data, and with repair mend them as far as other
// nodes have what is damaged or missing, and free what nothing refers to. It ends
// with ctx. progress, where it is not nil, is told now and then how far it is, on
// another goroutine. Errors: gearsfs.ErrBusy while somebody else's check is under
// way, gearsfs.ErrPermission; what is wrong with the data is in the report.
func (n *NodeClient) Fsck(ctx context.Context, repair bool, progress func(gearsfs.FsckReport)) (gearsfs.FsckReport, error) {
	var watching sync.WaitGroup
	watched, stop := context.WithCancel(ctx)
	defer watching.Wait()
	defer stop()
	if progress != nil {
		watching.Go(func() { // ends with watched
			for {
				select {
				case <-time.After(fsckLook):
				case <-watched.Done():
					return
				}
				resp, err := n.node(watched, &wire.NodeOp{Op: &wire.NodeOp_Fsck{Fsck: &wire.Fsck{Progress: true}}})
				if err == nil {
					progress(fsckFromWire(resp.Fsck))
				}
			}
		})
	}
	resp, err := n.node(ctx, &wire.NodeOp{Op: &wire.NodeOp_Fsck{Fsck: &wire.Fsck{Repair: repair}}})
	if err != nil {
		return gearsfs.FsckReport{}, err
	}
	return fsckFromWire(resp.Fsck), nil
}

// fsckLook is how often who waits for a check asks how far it is.
const fsckLook = 500 * time.Millisecond

// Close ends the connection. What is asked meanwhile ends with gearsfs.ErrClosed.
func (n *NodeClient) Close() error {
	n.stop()
	n.mu.Lock()
	l := n.link
	n.link = nil
	n.mu.Unlock()
	if l != nil {
		l.close()
	}
	n.owned.Wait()
	return nil
}

// call implements caller.
func (n *NodeClient) call(ctx context.Context, req *wire.Request) (*wire.Response, error) {
	if req.GetNode().GetFsck() != nil { // takes as long as it takes, and is of this node
		return n.ask(ctx, req)
	}
	return insist(ctx, n.opts.GiveUp, req, func(ctx context.Context) (*wire.Response, error) {
		resp, err := n.ask(ctx, req)
		if errors.Is(err, gearsfs.ErrNotLeader) && resp.GetLeader() != "" {
			resp, err = askAt(ctx, resp.Leader, n.opts, req)
		}
		if lostOrLeaderless(err) && n.opts.OnRetry != nil && n.ctx.Err() == nil {
			n.opts.OnRetry(err)
		}
		return resp, err
	})
}

// ask asks the node itself, once.
func (n *NodeClient) ask(ctx context.Context, req *wire.Request) (*wire.Response, error) {
	l, err := n.connected(ctx)
	if err != nil {
		return nil, err
	}
	resp, err := roundTrip(ctx, l, req)
	switch {
	case n.ctx.Err() != nil:
		return nil, gearsfs.ErrClosed
	case errors.Is(err, transport.ErrLost):
		n.lose(l)
	}
	return resp, err
}

// connected is the link in use, made where there is none.
func (n *NodeClient) connected(ctx context.Context) (link, error) {
	n.dialMu.Lock()
	defer n.dialMu.Unlock()
	n.mu.Lock()
	l := n.link
	n.mu.Unlock()
	if l != nil {
		return l, nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(n.ctx, cancel)()
	l, _, err := n.route.connect(ctx, &search{
		greet: func(context.Context, link) (*wire.Response, error) { return nil, nil },
		tries: dialTries, owned: &n.owned,
	})
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.ctx.Err() != nil {
		l.lose()
		return nil, gearsfs.ErrClosed
	}
	n.link = l
	return l, nil
}

// lose drops a link that is lost.
func (n *NodeClient) lose(l link) {
	n.mu.Lock()
	mine := n.link == l
	if mine {
		n.link = nil
	}
	n.mu.Unlock()
	if mine {
		l.lose()
	}
}
