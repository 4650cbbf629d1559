package dgm

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm/internal/mesh"
	"github.com/gearsfs/gearsfs/dgm/internal/payload"
	"github.com/gearsfs/gearsfs/transport"
	"github.com/gearsfs/gearsfs/wire"
)

// Serve accepts connections from l and serves their sessions until ctx ends or
// the volume closes; it closes l and returns when its connections are closed.
// tlsConfig may be nil.
func (v *Volume) Serve(ctx context.Context, l net.Listener, tlsConfig *tls.Config) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stopRoot := context.AfterFunc(v.root, cancel)
	defer stopRoot()
	stop := context.AfterFunc(ctx, func() { l.Close() }) //nolint:errcheck // ends Accept
	defer stop()
	var conns sync.WaitGroup
	defer conns.Wait()
	cfg := mesh.Transport()
	cfg.TLS, cfg.NewHandler, cfg.Shared = tlsConfig, v.newPeer(nil), true
	pause := acceptPauseMin
	for {
		nc, err := l.Accept()
		if err != nil {
			switch {
			case ctx.Err() != nil:
				return nil
			case !passing(err):
				return err
			}
			v.log.Warn("a connection can't be accepted", "error", err)
			select {
			case <-time.After(pause):
			case <-ctx.Done():
			}
			pause = min(2*pause, acceptPauseMax)
			continue
		}
		pause = acceptPauseMin
		conns.Go(func() { v.serveConn(ctx, nc, cfg) })
	}
}

// How long to wait after a connection that could not be accepted.
const (
	acceptPauseMin = 5 * time.Millisecond
	acceptPauseMax = time.Second
)

// passing reports whether accept(2) failed for want of something that may be
// there later, or because of the one connection alone.
func passing(err error) bool {
	for _, errno := range []syscall.Errno{
		syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED, syscall.EPROTO, syscall.EINTR,
	} {
		if errors.Is(err, errno) {
			return true
		}
	}
	ne, ok := errors.AsType[net.Error](err)
	return ok && ne.Timeout()
}

// serveConn serves one connection until it is lost or ctx ends.
func (v *Volume) serveConn(ctx context.Context, nc net.Conn, cfg transport.Config) {
	var p *peer
	newPeer := cfg.NewHandler
	cfg.NewHandler = func(conn *transport.Conn) (transport.Handler, error) {
		h, err := newPeer(conn)
		p, _ = h.(*peer)
		return h, err
	}
	conn, err := transport.Accept(ctx, nc, cfg)
	if err != nil {
		v.log.Debug("a connection was refused", "from", nc.RemoteAddr(), "error", err)
		return
	}
	select {
	case <-conn.Done():
	case <-ctx.Done():
		p.dismiss()
		conn.Close() //nolint:errcheck // the connection is over either way
	}
}

// newPeer returns the maker of the handler for connections to this volume. as,
// where it is not nil, is who the far side counts as.
func (v *Volume) newPeer(as *gearsfs.Caller) func(*transport.Conn) (transport.Handler, error) {
	return func(conn *transport.Conn) (transport.Handler, error) {
		p := &peer{vol: v, conn: conn, far: mesh.Peer{Conn: conn}, as: as, sessions: make(map[gearsfs.SessionID]*session)}
		go p.run() // ends with the connection, which the acceptor or dialer waits for
		return p, nil
	}
}

// run clears up when the connection is lost.
func (p *peer) run() {
	<-p.conn.Done()
	p.depart()
	p.vol.withdraw(p)
	p.vol.departed(p)
}

// Batch implements transport.Batcher: the replica is not woken for each of what
// came together, and what came may be brought through the log by who reads it.
// Blocks are nothing for the log, and who stores one takes long: it neither keeps
// the replica from being woken nor brings through the log what came over other
// connections.
func (p *peer) Batch() transport.Batch {
	if p.far.Bulk() {
		return nil
	}
	if p.group == nil {
		select {
		case <-p.vol.opened:
			p.group = p.vol.group
		default:
		}
		if p.group == nil {
			return nil
		}
	}
	return p.group
}

// Serve implements transport.Handler.
func (p *peer) Serve(call *transport.Call) {
	req, err := decodeRequest(call.Body())
	if err != nil {
		p.reply(call, failure(gearsfs.ErrProtocol.Because("a request can't be decoded: %v", err)))
		return
	}
	if req.Remote != "" {
		if why := p.keepBack(req); why != nil {
			p.reply(call, failure(why))
			return
		}
		p.forward(req, call)
		return
	}
	if c := p.serve(req, func(resp *wire.Response) { p.reply(call, resp) }); c != nil {
		call.OnCancel(func() { c.cancel(gearsfs.ErrCancelled) })
	}
	if len(req.GetBlocks().GetStore()) > 0 {
		call.Recycle() // they are written, or refused
	}
}

// incoming is a request in one piece of memory with what most of them have: else a
// put of one record is nine.
type incoming struct {
	request wire.Request
	kind    wire.Request_Change
	change  wire.Change
	command wire.Command
	op      wire.Command_Put
	put     wire.Put
	records [1]*wire.NewRecord
}

// decodeRequest decodes a request, which refers to body. Decoding fills in what is
// there and has the right kind, and puts another in its place where it has not.
func decodeRequest(body []byte) (*wire.Request, error) {
	a := new(incoming)
	a.request.Kind = &a.kind
	a.kind.Change = &a.change
	a.change.Command = &a.command
	a.command.Op = &a.op
	a.op.Put = &a.put
	a.put.Records = a.records[:0]
	if err := a.request.UnmarshalVTUnsafe(body); err != nil {
		return nil, err
	}
	if a.put.Key == "" && a.command.Op == &a.op {
		a.command.Op = nil // it was none of those known: a put names its stream
	}
	return &a.request, nil
}

// keepBack refuses to pass on what the far end would believe because it comes
// from this node.
func (p *peer) keepBack(req *wire.Request) error {
	switch kind := req.Kind.(type) {
	case *wire.Request_Hello:
		kind.Hello.Member, kind.Hello.ClaimChecked = 0, false
	case *wire.Request_Change, *wire.Request_Query, *wire.Request_Goodbye:
	default:
		return gearsfs.ErrUnknownOp.Because("ask that node itself")
	}
	return nil
}

// reply answers a call.
func (p *peer) reply(call *transport.Call, resp *wire.Response) {
	if payload.LacksBytes(resp.Answer) {
		p.vol.fill(resp, func(resp *wire.Response) { p.vol.replies.push(reply{call: call, resp: p.spoken(resp)}) })
		return
	}
	p.vol.replies.push(reply{call: call, resp: p.spoken(resp)})
}

// part ends a client's connection from this side, behind the answers that it is
// about to get: its sessions go on elsewhere.
func (p *peer) part() {
	p.dismiss()
	if p.conn != nil {
		p.vol.replies.push(reply{last: p})
	}
}

// end closes the connection.
func (p *peer) end() {
	p.vol.owned.Go(func() { p.conn.Close() }) //nolint:errcheck // it is over either way
}

// replies answers calls on a goroutine of its own, so that those who apply and
// sync do not write to sockets; where little is to do, visitors of the replica
// do it, who are not waited for.
type replies struct {
	mu     sync.Mutex
	queue  []reply
	spare  []reply
	signal chan struct{} // of capacity 1
	idle   *sync.Cond    // broadcast when the queue is empty and nothing is under way
	busy   bool          // somebody has taken a batch and sends it
	over   bool          // nothing is queued any more
	guests int           // will send what is queued, soon: they have called Gather
}

type reply struct {
	call *transport.Call
	resp *wire.Response
	last *peer // instead: what was queued before is all that this one gets
}

func (r *replies) init(owner *sync.WaitGroup, ctx context.Context) {
	r.signal = make(chan struct{}, 1)
	r.idle = sync.NewCond(&r.mu)
	owner.Go(func() { r.run(ctx) })
}

// push queues an answer. What it holds is bounded by the calls in flight.
func (r *replies) push(answer reply) {
	r.mu.Lock()
	if r.over {
		r.mu.Unlock()
		r.send([]reply{answer})
		return
	}
	r.queue = append(r.queue, answer)
	wake := !r.busy && len(r.queue) == 1 && r.guests == 0
	r.mu.Unlock()
	if wake {
		r.wake()
	}
}

func (r *replies) wake() {
	select {
	case r.signal <- struct{}{}:
	default:
	}
}

// Gather implements replica.Answers.
func (r *replies) Gather() {
	r.mu.Lock()
	r.guests++
	r.mu.Unlock()
}

// deliveredMax is up to how many answers who has gathered them sends. More are
// worth another goroutine.
const deliveredMax = 8

// Deliver implements replica.Answers.
func (r *replies) Deliver() {
	r.mu.Lock()
	r.guests--
	n := len(r.queue)
	if r.busy || r.guests > 0 || n == 0 {
		r.mu.Unlock()
		return
	}
	if n > deliveredMax {
		r.mu.Unlock()
		r.wake()
		return
	}
	r.busy = true
	batch := r.takeLocked()
	r.mu.Unlock()
	r.send(batch)
	r.mu.Lock()
	more := len(r.queue) > 0
	r.doneLocked()
	r.mu.Unlock()
	if more {
		r.wake()
	}
}

func (r *replies) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.signal:
		}
		r.sendAll()
	}
}

// sendAll sends until nothing is left, unless somebody else sends, who will call
// again.
func (r *replies) sendAll() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.busy {
		return
	}
	r.busy = true
	for len(r.queue) > 0 {
		batch := r.takeLocked()
		r.mu.Unlock()
		r.send(batch)
		r.mu.Lock()
	}
	r.doneLocked()
}

// takeLocked is for who has set busy.
func (r *replies) takeLocked() []reply {
	batch := r.queue
	r.queue, r.spare = r.spare[:0], batch
	return batch
}

func (r *replies) doneLocked() {
	r.busy = false
	if len(r.queue) == 0 {
		r.idle.Broadcast()
	}
}

// drain waits until every answer that was pushed is handed to its connection.
// Later ones are handed on by whoever pushes them.
func (r *replies) drain() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for r.busy || len(r.queue) > 0 {
		r.idle.Wait()
	}
	r.over = true
}

// send hands a batch to its connections, and clears it.
func (r *replies) send(batch []reply) {
	calls, bodies := make([]*transport.Call, 0, len(batch)), make([][]byte, 0, len(batch))
	var last []*peer
	for i := range batch {
		if p := batch[i].last; p != nil {
			last = append(last, p)
			continue
		}
		calls, bodies = append(calls, batch[i].call), append(bodies, batch[i].body())
	}
	clear(batch)
	transport.ReplyAll(calls, bodies)
	for _, p := range last {
		p.end()
	}
}

func (r *reply) body() []byte {
	body, err := r.resp.MarshalVT()
	if err != nil { // it can't be encoded
		body, _ = failure(gearsfs.ErrIO.Because("encode an answer: %v", err)).MarshalVT() //nolint:errcheck // plain text
	}
	return body
}
