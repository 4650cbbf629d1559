package dgm

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/file"
	"github.com/gearsfs/gearsfs/transport"
	"github.com/gearsfs/gearsfs/wire"
)

// How the bytes of extents go from member to member.
const (
	spreadPatience = 2 * time.Second // for those that a majority can do without
	lendPatience   = 5 * time.Second // of one member, for a block
)

// blockWay is the connection to a member that blocks go over, made when needed.
type blockWay struct {
	blocks *blocks
	to     gearsfs.MemberID

	dialling sync.Mutex // held while it is made; taken before mu
	mu       sync.Mutex
	conn     *transport.Conn
}

// wayTo returns the way to a member.
func (b *blocks) wayTo(id gearsfs.MemberID) *blockWay {
	b.mu.Lock()
	defer b.mu.Unlock()
	w := b.ways[id]
	if w == nil {
		w = &blockWay{blocks: b, to: id}
		b.ways[id] = w
	}
	return w
}

// endWays closes the connections to the other members.
func (b *blocks) endWays() {
	b.mu.Lock()
	ways := b.ways
	b.ways = make(map[gearsfs.MemberID]*blockWay)
	b.mu.Unlock()
	for _, w := range ways {
		if conn := w.current(); conn != nil {
			conn.Close() //nolint:errcheck // nothing is left that matters
		}
	}
}

func (w *blockWay) current() *transport.Conn {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.conn != nil && w.conn.Err() != nil {
		w.conn = nil
	}
	return w.conn
}

// open returns the connection, dialled where there is none.
func (w *blockWay) open(ctx context.Context) (*transport.Conn, error) {
	if conn := w.current(); conn != nil {
		return conn, nil
	}
	w.dialling.Lock()
	defer w.dialling.Unlock()
	if conn := w.current(); conn != nil {
		return conn, nil
	}
	link := w.blocks.vol.mesh.link(w.to)
	if link == nil {
		return nil, gearsfs.ErrNotMember.Because("%x is not a member", uint64(w.to))
	}
	conn, err := w.blocks.vol.mesh.dial(ctx, link.who(), true)
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	w.conn = conn
	w.mu.Unlock()
	return conn, nil
}

// ask has the member answer a request whose body is encoded already.
func (w *blockWay) ask(ctx context.Context, body []byte) (*wire.Response, error) {
	return w.carry(ctx, func(conn *transport.Conn, done func([]byte, error)) *transport.Pending {
		return conn.Start(body, done)
	})
}

// carry has the member answer what start starts.
func (w *blockWay) carry(ctx context.Context, start func(*transport.Conn, func([]byte, error)) *transport.Pending) (*wire.Response, error) {
	conn, err := w.open(ctx)
	if err != nil {
		return nil, err
	}
	out := make(chan remoteOutcome, 1)
	call := start(conn, func(body []byte, err error) {
		resp := new(wire.Response)
		if err == nil {
			err = resp.UnmarshalVT(body)
		}
		if err == nil {
			err = errorOf(resp)
		}
		out <- remoteOutcome{resp, err}
	})
	select {
	case o := <-out:
		return o.resp, o.err
	case <-ctx.Done():
		call.Cancel()
		return nil, ctx.Err()
	}
}

func blocksRequest(op *wire.Blocks) ([]byte, error) {
	return (&wire.Request{Kind: &wire.Request_Blocks{Blocks: op}}).MarshalVT()
}

// spread brings what was appended here to the other members, all at once, and
// returns when it is on the disks of a majority of the voters, this node's
// included where it votes. Who is not reached, or is slow, fetches it later.
func (b *blocks) spread(ctx context.Context, extents []gearsfs.Extent, payload []byte) error {
	load, err := newCargo(extents, payload)
	if err != nil {
		return err
	}
	asked := ctx
	ctx, cancel := context.WithTimeoutCause(b.vol.busy, gearsfs.SessionTTL,
		gearsfs.ErrNoNode.Because("no majority of the nodes can be reached with the bytes"))
	status := b.vol.group.Status()
	others := b.vol.mesh.others()
	stored := make(chan gearsfs.MemberID, len(others)+1)
	failed := make(chan error, 1)
	var spreading sync.WaitGroup
	for _, id := range others {
		spreading.Go(func() { // ends with ctx
			if b.send(ctx, id, load) {
				stored <- id
			}
		})
	}
	spreading.Go(func() { // ends with the disk's answer
		if err := b.store.Sync(); err != nil {
			failed <- err
			return
		}
		stored <- b.vol.member
	})
	need := len(status.Voters)/2 + 1
	for have := 0; have < need; {
		select {
		case id := <-stored:
			if slices.Contains(status.Voters, id) {
				have++
			}
		case err := <-failed:
			cancel()
			return err
		case <-ctx.Done():
			defer cancel()
			return context.Cause(ctx)
		case <-asked.Done():
			cancel()
			return asked.Err()
		}
	}
	late := time.AfterFunc(spreadPatience, cancel)
	if !b.vol.spawn(func() {
		spreading.Wait()
		late.Stop()
		cancel()
		load.release()
	}) {
		cancel()
	}
	return nil
}

// send brings a block to one member and says whether it has it; it tries until
// ctx ends.
func (b *blocks) send(ctx context.Context, to gearsfs.MemberID, load *cargo) bool {
	pause := linkPauseMin
	for {
		_, err := b.wayTo(to).carry(ctx, load.start)
		if err == nil {
			return true
		}
		if errors.Is(err, gearsfs.ErrNotMember) || errors.Is(err, gearsfs.ErrNoSpace) || errors.Is(err, gearsfs.ErrUnknownOp) {
			return false
		}
		select {
		case <-time.After(pause/2 + rand.N(pause)):
			pause = min(2*pause, linkPauseMax)
		case <-ctx.Done():
			return false
		}
	}
}

// dropAway tells the other members of what drop gives back. Who misses it keeps
// some pages that nobody needs.
func (b *blocks) dropAway(extents []gearsfs.Extent) {
	if len(extents) == 0 || b.vol.group == nil || b.vol.alone() {
		return
	}
	body, err := blocksRequest(&wire.Blocks{Drop: file.ExtentsToWire(extents)})
	if err != nil {
		return
	}
	for _, id := range b.vol.mesh.others() {
		b.vol.spawn(func() {
			ctx, cancel := context.WithTimeout(b.vol.root, spreadPatience)
			defer cancel()
			b.wayTo(id).ask(ctx, body) //nolint:errcheck // see above
		})
	}
}

// fetch brings what an extent stores here from another member that has it.
func (b *blocks) fetch(ctx context.Context, e gearsfs.Extent) error {
	others := b.vol.mesh.others()
	if i := slices.Index(others, e.Origin); i > 0 {
		others[0], others[i] = others[i], others[0] // it has had it, if anyone
	}
	body, err := blocksRequest(&wire.Blocks{Lend: extentToWire(e)})
	if err != nil {
		return err
	}
	failed := error(gearsfs.ErrNoNode.Because("no other node has it"))
	for _, id := range others {
		err := b.borrow(ctx, id, body, e)
		if err == nil || ctx.Err() != nil {
			return err
		}
		failed = err
	}
	return failed
}

func (b *blocks) borrow(ctx context.Context, from gearsfs.MemberID, body []byte, e gearsfs.Extent) error {
	ctx, cancel := context.WithTimeout(ctx, lendPatience)
	defer cancel()
	resp, err := b.wayTo(from).ask(ctx, body)
	if err != nil {
		return err
	}
	return b.store.Store(e, resp.Data)
}

// serve answers another member about blocks; done is called once. It may write to
// the disk, and does not wait for it.
func (b *blocks) serve(op *wire.Blocks, done func(*wire.Response)) {
	if err := b.serveOp(op, done); err != nil {
		done(failure(err))
	}
}

// serveOp has done called, now or later, unless it returns an error.
func (b *blocks) serveOp(op *wire.Blocks, done func(*wire.Response)) error {
	switch {
	case op.Pending:
		segments, err := b.pending.list()
		if err == nil {
			done(&wire.Response{Segments: segments})
		}
		return err
	case op.Lend != nil:
		e, err := extentFromWire(op.Lend)
		if err != nil {
			return err
		}
		return b.later(func() error {
			data, err := b.store.ReadStored(e)
			if err == nil {
				done(&wire.Response{Data: data})
			}
			return err
		}, done)
	case len(op.Drop) > 0:
		extents, err := extentsFromWire(op.Drop)
		if err != nil {
			return err
		}
		b.mu.Lock()
		b.ready = append(b.ready, extents...)
		b.freeLocked()
		b.mu.Unlock()
		done(&wire.Response{})
		return nil
	}
	extents, err := extentsFromWire(op.Store)
	if err != nil {
		return err
	}
	if b.vol.space.full() {
		return gearsfs.ErrNoSpace
	}
	data := op.Data
	for _, e := range extents {
		if e.Inline() || e.Size > uint64(len(data)) {
			return gearsfs.ErrProtocol.Because("a block of %d bytes comes with %d", e.Size, len(data))
		}
		if err := b.store.Store(e, data[:e.Size]); err != nil {
			return err
		}
		data = data[e.Size:]
	}
	return b.later(func() error {
		err := b.store.Sync()
		if err == nil {
			done(&wire.Response{})
		}
		return err
	}, done)
}

// later runs what waits for the disk on a goroutine of its own, and has its error
// told.
func (b *blocks) later(f func() error, done func(*wire.Response)) error {
	if !b.vol.spawn(func() {
		if err := f(); err != nil {
			done(failure(err))
		}
	}) {
		return gearsfs.ErrClosed
	}
	return nil
}
