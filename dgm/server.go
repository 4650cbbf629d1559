package dgm

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"sync"
	"time"

	"github.com/gearsfs/gearsfs/gears"
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
	for {
		nc, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
				continue
			}
			return err
		}
		conns.Go(func() {
			conn, err := transport.Accept(ctx, nc, cfg)
			if err != nil {
				v.log.Debug("a connection was refused", "from", nc.RemoteAddr(), "error", err)
				return
			}
			select {
			case <-conn.Done():
			case <-ctx.Done():
				conn.Close() //nolint:errcheck // the connection is over either way
			}
		})
	}
}

// newPeer returns the maker of the handler for connections to this volume. as,
// where it is not nil, is who the far side counts as.
func (v *Volume) newPeer(as *gears.Caller) func(*transport.Conn) (transport.Handler, error) {
	return func(conn *transport.Conn) (transport.Handler, error) {
		p := &peer{vol: v, conn: conn, as: as, sessions: make(map[gears.SessionID]*session)}
		go p.run() // ends with the connection, which the acceptor or dialer waits for
		return p, nil
	}
}

// peer is one connection's sessions: its own and those it forwards.
type peer struct {
	vol  *Volume
	conn *transport.Conn
	as   *gears.Caller

	mu       sync.Mutex
	sessions map[gears.SessionID]*session
	offers   []string
	gone     bool
}

// run detaches the connection's sessions when it is lost.
func (p *peer) run() {
	<-p.conn.Done()
	p.mu.Lock()
	p.gone = true
	sessions, offers := p.sessions, p.offers
	p.sessions = nil
	p.mu.Unlock()
	for _, name := range offers {
		p.vol.withdraw(name, p.conn)
	}
	grace := graceTCP
	if p.conn.Peer().Kind == transport.PeerUnix {
		grace = 0
	}
	for _, s := range sessions {
		p.vol.detach(s, grace)
	}
}

// Serve implements transport.Handler.
func (p *peer) Serve(call *transport.Call) {
	req := new(wire.Request)
	if err := req.UnmarshalVTUnsafe(call.Body()); err != nil {
		p.reply(call, failure(gears.ErrProtocol.Because("a request can't be decoded: %v", err)))
		return
	}
	if req.Remote != "" {
		p.vol.forward(req, call)
		return
	}
	if hello, ok := req.Kind.(*wire.Request_Hello); ok {
		p.hello(call, hello.Hello)
		return
	}
	p.mu.Lock()
	s := p.sessions[sessionID(req.SessionMinted, req.SessionSalt)]
	p.mu.Unlock()
	if s == nil {
		p.reply(call, failure(gears.ErrSession))
		return
	}
	c := p.vol.start(s, req, func(resp *wire.Response) { p.reply(call, resp) })
	if c != nil {
		call.OnCancel(func() { c.cancel(gears.ErrCancelled) })
	}
}

func (p *peer) reply(call *transport.Call, resp *wire.Response) { p.vol.replies.push(call, resp) }

// hello attaches a session, new or known, to the connection.
func (p *peer) hello(call *transport.Call, h *wire.Hello) {
	v := p.vol
	client := Client{Caller: p.caller(h), Host: h.Host, PID: int(h.Pid), Process: h.Process}
	s, resumed, err := v.attach(sessionID(h.SessionMinted, h.SessionSalt), client, false)
	if err != nil {
		p.reply(call, failure(err))
		return
	}
	p.mu.Lock()
	_, twice := p.sessions[s.id]
	gone := p.gone
	if !gone {
		p.sessions[s.id] = s
		if h.Offer != "" {
			p.offers = append(p.offers, h.Offer)
		}
	}
	p.mu.Unlock()
	if gone || twice {
		v.detach(s, graceTCP)
	}
	if h.Offer != "" && !gone {
		v.offer(h.Offer, p.conn)
	}
	v.keepOpen(s)
	p.reply(call, &wire.Response{Welcome: &wire.Welcome{
		SessionMinted: uint64(s.id.Minted), SessionSalt: s.id.Salt,
		Node: v.cfg.Data.Identity().Name, Volume: v.machine.VolumeName(), VolumeId: v.machine.VolumeID(), Resumed: resumed,
	}})
}

// caller says who a connection speaks for: over a unix socket whom the kernel
// names, with TLS and with Insecure whom it claims to be, else nobody.
func (p *peer) caller(h *wire.Hello) gears.Caller {
	if p.as != nil {
		return *p.as
	}
	who := p.conn.Peer()
	switch {
	case who.Kind == transport.PeerUnix:
		return gears.Caller{UID: who.UID, GIDs: who.GIDs}
	case h.ClaimUid != nil && (who.Kind == transport.PeerTLS || p.vol.cfg.Insecure):
		return gears.Caller{UID: *h.ClaimUid, GIDs: h.ClaimGids}
	}
	return gears.Nobody
}

// keepOpen opens the row of a session that has changed nothing for a while, so
// that a client may wait longer than SessionTTL before its first change.
func (v *Volume) keepOpen(s *session) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if s.kept || s.ended {
		return
	}
	s.kept = true
	time.AfterFunc(gears.SessionTTL/2, func() {
		v.mu.Lock()
		over := s.ended || v.closed
		v.mu.Unlock()
		if !over {
			v.group.Propose(confirmation(s.id))
		}
	})
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
func (r *replies) drain() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for r.busy || len(r.queue) > 0 {
		r.idle.Wait()
	}
}

func (r reply) send() {
	body, err := r.resp.MarshalVT()
	if err != nil { // a string that is not UTF-8 can't be: all of ours are bytes or checked
		body, _ = failure(gears.ErrIO.Because("encode an answer: %v", err)).MarshalVT() //nolint:errcheck // plain text
	}
	r.call.Reply(body)
}
