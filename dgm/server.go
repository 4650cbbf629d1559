package dgm

import (
	"context"
	"crypto/tls"
	"errors"
	"maps"
	"net"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/gearsfs/gearsfs"
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
	cfg := transport.Config{TLS: tlsConfig, NewHandler: v.newPeer(nil)}
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
		p := &peer{vol: v, conn: conn, as: as, sessions: make(map[gearsfs.SessionID]*session)}
		go p.run() // ends with the connection, which the acceptor or dialer waits for
		return p, nil
	}
}

// peerSessionsMax bounds the sessions of one connection; a node that passes
// requests on brings those of all its clients.
const peerSessionsMax = 16 << 10

// peer is one connection's sessions: its own and those it forwards.
type peer struct {
	vol  *Volume
	conn *transport.Conn
	as   *gearsfs.Caller

	// Which member's connection it is, and for what; 0 where it is none's. They
	// belong to the goroutine that reads from it.
	member gearsfs.MemberID
	bulk   bool

	// mu is taken after Volume.mu.
	mu        sync.Mutex
	sessions  map[gearsfs.SessionID]*session
	dismissed bool // this end closes the connection
	gone      bool
}

// lose takes a session from the connection.
func (p *peer) lose(id gearsfs.SessionID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.sessions, id)
}

func (p *peer) session(id gearsfs.SessionID) *session {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.sessions[id]
}

// dismiss readies the connection to be closed by this end: what waits on it
// ends, for its clients to ask elsewhere or later.
func (p *peer) dismiss() {
	p.mu.Lock()
	p.dismissed = true
	sessions := slices.Collect(maps.Values(p.sessions))
	p.mu.Unlock()
	v := p.vol
	for _, s := range sessions {
		v.mu.Lock()
		waiting, watch := v.waits.of(s), s.watch
		v.mu.Unlock()
		v.watches.drop(watch)
		for _, o := range waiting {
			o.cancel(gearsfs.ErrNoNode)
		}
	}
}

// run detaches the connection's sessions when it is lost.
func (p *peer) run() {
	<-p.conn.Done()
	p.mu.Lock()
	p.gone = true
	sessions := p.sessions
	p.sessions = nil
	grace := graceTCP
	if p.conn.Peer().Kind == transport.PeerUnix && !p.dismissed {
		grace = 0
	}
	p.mu.Unlock()
	p.vol.withdraw(p)
	p.vol.departed(p)
	for _, s := range sessions {
		p.vol.detach(s, p, grace)
	}
}

// Serve implements transport.Handler.
func (p *peer) Serve(call *transport.Call) {
	req := new(wire.Request)
	if err := req.UnmarshalVTUnsafe(call.Body()); err != nil {
		p.reply(call, failure(gearsfs.ErrProtocol.Because("a request can't be decoded: %v", err)))
		return
	}
	if req.Remote != "" {
		p.forward(req, call)
		return
	}
	if hello, ok := req.Kind.(*wire.Request_Hello); ok {
		p.hello(call, hello.Hello)
		return
	}
	id := sessionID(req.SessionMinted, req.SessionSalt)
	s := p.session(id)
	if s == nil {
		p.reply(call, failure(gearsfs.ErrSession))
		return
	}
	if req.GetGoodbye().GetDeparted() {
		p.lose(id)
		p.vol.detach(s, p, graceTCP)
		p.reply(call, &wire.Response{})
		return
	}
	c := p.vol.start(s, req, func(resp *wire.Response) { p.reply(call, resp) })
	if c == nil {
		return
	}
	call.OnCancel(func() { c.cancel(gearsfs.ErrCancelled) })
	if why := p.unfit(id, s); why != nil {
		c.cancel(why)
	}
}

// unfit returns why an operation that s has just begun must not wait: its
// client has said hello elsewhere meanwhile, or the connection is being closed.
func (p *peer) unfit(id gearsfs.SessionID, s *session) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.sessions[id] != s:
		return gearsfs.ErrCancelled
	case p.dismissed:
		return gearsfs.ErrNoNode
	}
	return nil
}

// reply answers a call. Where the volume ends without having served it the
// client is to ask again: what is sent again under its numbers happens once.
func (p *peer) reply(call *transport.Call, resp *wire.Response) {
	switch gearsfs.Code(resp.GetAnswer().GetCode()) {
	case gearsfs.ErrClosed.Code, gearsfs.ErrMaybe.Code:
		if p.vol.broken.Load() || p.vol.isClosed() {
			resp = failure(gearsfs.ErrNoNode.Because("the node is closing"))
		}
	}
	p.vol.replies.push(call, resp)
}

// hello attaches a session, new or known, to the connection.
func (p *peer) hello(call *transport.Call, h *wire.Hello) {
	v := p.vol
	if !v.enter() {
		p.reply(call, failure(gearsfs.ErrClosed))
		return
	}
	defer v.leave()
	client := Client{Caller: p.caller(h), Host: clip(h.Host), PID: int(h.Pid), Process: clip(h.Process)}
	s, back, err := v.attach(sessionID(h.SessionMinted, h.SessionSalt), client, p, h.Opens)
	if err != nil {
		p.reply(call, failure(err))
		return
	}
	if !back {
		v.keepOpen(s)
		p.welcome(call, s, h.Offer)
		return
	}
	// The state may know it still, or not any more.
	v.confirm(s, func(answer *wire.Answer, err error) {
		if err == nil {
			err = gearsfs.FromCode(gearsfs.Code(answer.Code), answer.Reason)
		}
		if err != nil {
			v.end(s, false, func() { p.reply(call, failure(err)) })
			return
		}
		p.welcome(call, s, h.Offer)
	})
}

func (p *peer) welcome(call *transport.Call, s *session, offer string) {
	v := p.vol
	if offer != "" {
		v.offer(offer, p)
	}
	p.reply(call, &wire.Response{Welcome: &wire.Welcome{
		SessionMinted: uint64(s.id.Minted), SessionSalt: s.id.Salt,
		Node: v.cfg.Data.Identity().Name, Volume: v.machine.VolumeName(), VolumeId: v.machine.VolumeID(),
	}})
}

// clip bounds what a client says of itself, which is only shown.
func clip(s string) string { return s[:min(len(s), gearsfs.NameBytesMax)] }

// caller says who a connection speaks for: over a unix socket whom the kernel
// names, with TLS and with Insecure whom it claims to be, else nobody.
func (p *peer) caller(h *wire.Hello) gearsfs.Caller {
	if p.as != nil {
		return *p.as
	}
	who := p.conn.Peer()
	switch {
	case who.Kind == transport.PeerUnix:
		return gearsfs.Caller{UID: who.UID, GIDs: who.GIDs}
	case h.ClaimUid != nil && (who.Kind == transport.PeerTLS || p.vol.cfg.Insecure):
		return gearsfs.Caller{UID: *h.ClaimUid, GIDs: h.ClaimGids}
	}
	return gearsfs.Nobody
}

// replies answers calls on a goroutine of its own, so that those who apply and
// sync never write to a socket.
type replies struct {
	mu     sync.Mutex
	queue  []reply
	spare  []reply
	signal chan struct{} // of capacity 1
	idle   *sync.Cond    // broadcast when the queue is empty and nothing is under way
	busy   bool
	over   bool // nothing is queued any more
}

type reply struct {
	call *transport.Call
	resp *wire.Response
}

func (r *replies) init(owner *sync.WaitGroup, ctx context.Context) {
	r.signal = make(chan struct{}, 1)
	r.idle = sync.NewCond(&r.mu)
	owner.Go(func() { r.run(ctx) })
}

// push queues an answer. What it holds is bounded by the calls in flight.
func (r *replies) push(call *transport.Call, resp *wire.Response) {
	r.mu.Lock()
	if r.over {
		r.mu.Unlock()
		reply{call, resp}.send()
		return
	}
	r.queue = append(r.queue, reply{call, resp})
	wake := !r.busy && len(r.queue) == 1
	r.mu.Unlock()
	if wake {
		select {
		case r.signal <- struct{}{}:
		default:
		}
	}
}

func (r *replies) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.signal:
		}
		for {
			batch := r.take()
			if len(batch) == 0 {
				break
			}
			for i := range batch {
				batch[i].send()
				batch[i] = reply{}
			}
		}
	}
}

func (r *replies) take() []reply {
	r.mu.Lock()
	defer r.mu.Unlock()
	batch := r.queue
	r.queue, r.spare = r.spare[:0], batch
	r.busy = len(batch) > 0
	if !r.busy {
		r.idle.Broadcast()
	}
	return batch
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

func (r reply) send() {
	body, err := r.resp.MarshalVT()
	if err != nil { // it can't be encoded
		body, _ = failure(gearsfs.ErrIO.Because("encode an answer: %v", err)).MarshalVT() //nolint:errcheck // plain text
	}
	r.call.Reply(body)
}
