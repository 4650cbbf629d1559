package dgm

import (
	"maps"
	"os"
	"slices"
	"sync"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm/internal/mesh"
	"github.com/gearsfs/gearsfs/replica"
	"github.com/gearsfs/gearsfs/transport"
	"github.com/gearsfs/gearsfs/wire"
)

// peerSessionsMax bounds the sessions of one connection; a node that passes
// requests on brings those of all its clients.
const peerSessionsMax = 16 << 10

// peer is the far end of one connection and its sessions: its own and those it
// forwards. It is a socket's, or that of a Local in this process.
type peer struct {
	vol  *Volume
	conn *transport.Conn // nil in this process
	as   *gearsfs.Caller
	ten  *tenure // that a client in this process came to; nil for others

	// Which member's connection it is. It and group belong to the goroutine that
	// reads from it.
	far   mesh.Peer
	group *replica.Group // once it is there

	// mu is taken after tenure.mu and Volume.mu.
	mu        sync.Mutex
	sessions  map[gearsfs.SessionID]*session
	dismissed bool // this end closes the connection, or has told it to go elsewhere
	courier   bool // a node brings the requests of its Locals, who may come by another way
	gone      bool
}

// serve does what a request asks for and has done called with the response,
// exactly once, maybe before it returns. What it returns, where that is not nil,
// ends the wait.
func (p *peer) serve(req *wire.Request, done func(*wire.Response)) canceller {
	v := p.vol
	switch kind := req.Kind.(type) {
	case *wire.Request_Hello:
		p.hello(kind.Hello, done)
		return nil
	case *wire.Request_Peer, *wire.Request_Fetch, *wire.Request_Blocks:
		p.serveNode(req, done)
		return nil
	case *wire.Request_Node:
		if op := kind.Node.GetFsck(); op != nil && !op.Progress {
			return v.beginFsck(p.trusted(), p.caller(nil), op, done)
		}
		v.nodeOp(p.trusted(), p.caller(nil), kind.Node, done)
		return nil
	}
	id := sessionID(req.SessionMinted, req.SessionSalt)
	s := p.session(id)
	switch {
	case s != nil:
	case v.tenure.Load() == nil:
		done(failure(errNotLeader))
		return nil
	default:
		done(failure(gearsfs.ErrSession))
		return nil
	}
	if req.GetGoodbye().GetDeparted() {
		p.lose(s)
		s.ten.detach(s, p, v.grace())
		done(&wire.Response{})
		return nil
	}
	if len(req.Released) > 0 && s.ten.releasedBy(p, s, req.Released) {
		answer := done
		done = func(resp *wire.Response) { resp.LetGo = true; answer(resp) }
	}
	c := s.ten.start(p, s, req, done)
	if c == nil {
		return nil
	}
	if why := p.unfit(s); why != nil {
		c.cancel(why)
	}
	return c
}

// serveNode serves what only nodes of the volume ask each other.
func (p *peer) serveNode(req *wire.Request, done func(*wire.Response)) {
	if p.conn == nil || !p.trusted() {
		done(failure(errUntrusted))
		return
	}
	switch kind := req.Kind.(type) {
	case *wire.Request_Peer:
		resp, err := p.vol.mesh.Accept(&p.far, kind.Peer)
		if err != nil {
			resp = failure(err)
		}
		done(resp)
		if p.far.Member() != 0 && !p.far.Bulk() {
			p.vol.noteMembers()
		}
	case *wire.Request_Fetch:
		p.vol.mesh.Fetch(&p.far, kind.Fetch, done)
	case *wire.Request_Blocks:
		if p.far.Member() == 0 || !p.far.Bulk() {
			done(failure(gearsfs.ErrAccess.Because("only a member may ask for blocks")))
			return
		}
		p.vol.serveBlocks(kind.Blocks, done)
	}
}

// Notice implements transport.NoticeHandler.
func (p *peer) Notice(body []byte) {
	if p.far.Member() != 0 {
		p.vol.mesh.Notice(&p.far, body)
	}
}

// errUntrusted tells a node what it takes to be believed.
var errUntrusted = gearsfs.ErrAccess.Because("nodes of a volume speak over TLS with certificates (--tls-cert, --tls-key, --tls-ca), " +
	"over a unix socket as the same user, or run with --insecure")

// trusted says whether what the far end says of itself is believed: that it is a
// node of the volume, and whom it speaks for.
func (p *peer) trusted() bool {
	if p.conn == nil || p.as != nil {
		return false // it is whom it was made for
	}
	who := p.conn.Peer()
	switch who.Kind {
	case transport.PeerUnix:
		return who.UID == 0 || int(who.UID) == os.Getuid()
	case transport.PeerTLS:
		return true // both ends show certificates
	}
	return p.vol.cfg.Insecure
}

// caller says who a connection speaks for: over a unix socket whom the kernel
// names, with TLS and with Insecure whom it claims to be, else nobody. A node of
// the volume may speak for others everywhere, and vouch for their permissions.
// h may be nil.
func (p *peer) caller(h *wire.Hello) gearsfs.Caller {
	if p.as != nil {
		return *p.as
	}
	who := p.conn.Peer()
	switch {
	case h != nil && h.Member != 0 && h.ClaimUid != nil && p.trusted():
		return gearsfs.Caller{UID: *h.ClaimUid, GIDs: h.ClaimGids, Checked: h.ClaimChecked}
	case who.Kind == transport.PeerUnix:
		return gearsfs.Caller{UID: who.UID, GIDs: who.GIDs}
	case h != nil && h.ClaimUid != nil && (who.Kind == transport.PeerTLS || p.vol.cfg.Insecure):
		return gearsfs.Caller{UID: *h.ClaimUid, GIDs: h.ClaimGids}
	}
	return gearsfs.Nobody
}

// checkNode refuses a hello of a node that is none of the volume's.
func (p *peer) checkNode(h *wire.Hello) error {
	v := p.vol
	if len(h.VolumeId) > 0 && !slices.Equal(h.VolumeId, v.machine.VolumeID()) {
		return gearsfs.ErrForeign.Because("this node holds another volume, %q", v.machine.VolumeName())
	}
	if h.Member == 0 || p.as != nil {
		return nil
	}
	if !p.trusted() {
		return errUntrusted
	}
	return v.checkMember(gearsfs.MemberID(h.Member))
}

// hello attaches a session, new or known, to the connection.
func (p *peer) hello(h *wire.Hello, done func(*wire.Response)) {
	v := p.vol
	if !v.enter() {
		done(failure(gearsfs.ErrClosed))
		return
	}
	defer v.leave()
	t := v.tenure.Load()
	if t == nil || p.ten != nil && p.ten != t { // its connection ends with the tenure
		done(failure(errNotLeader))
		return
	}
	if err := p.checkNode(h); err != nil {
		done(failure(err))
		return
	}
	if h.Member != 0 && p.conn != nil {
		p.mu.Lock()
		p.courier = true
		p.mu.Unlock()
	}
	client := Client{Caller: p.caller(h), Host: clip(h.Host), PID: int(h.Pid), Process: clip(h.Process)}
	s, back, err := t.attach(greeting{
		id: sessionID(h.SessionMinted, h.SessionSalt), client: client, attempt: h.Attempt, opens: h.Opens, lasting: h.Lasting,
	}, p, func() { p.hello(h, done) })
	switch {
	case err == errEnding:
		return
	case err != nil:
		done(failure(err))
		return
	case !back:
		t.keepOpen(s)
		p.welcome(s, h, done)
		return
	}
	// The state may know it still, or not any more.
	t.confirm(s, func(err error) {
		if err != nil {
			t.endSession(s, false, func(error) { done(failure(err)) })
			return
		}
		p.welcome(s, h, done)
	})
}

func (p *peer) welcome(s *session, h *wire.Hello, done func(*wire.Response)) {
	v := p.vol
	if h.Offer != "" && p.conn != nil {
		v.offer(h.Offer, p)
	}
	done(&wire.Response{Welcome: &wire.Welcome{
		SessionMinted: uint64(s.id.Minted), SessionSalt: s.id.Salt,
		Node: v.cfg.Data.Identity().Name, Volume: v.machine.VolumeName(), VolumeId: v.machine.VolumeID(),
		Addrs: v.nodeAddrs(), LetsGo: true, Near: p.near(h),
	}})
}

// clip bounds what a client says of itself, which is only shown.
func clip(s string) string { return s[:min(len(s), gearsfs.NameBytesMax)] }

// spoken is what a client is told. Where the volume, or the node's time to lead
// it, ends without having served a request, the client is to ask again, maybe
// elsewhere: what is sent again under its numbers happens once.
func (p *peer) spoken(resp *wire.Response) *wire.Response {
	v := p.vol
	switch code := gearsfs.Code(resp.GetAnswer().GetCode()); code {
	case gearsfs.ErrClosed.Code, gearsfs.ErrMaybe.Code, gearsfs.ErrNotLeader.Code:
		over := v.broken.Load() || v.isClosed()
		switch {
		case over && p.conn == nil && code == gearsfs.ErrMaybe.Code: // nobody asks again
		case over && p.conn == nil:
			resp = failure(gearsfs.ErrClosed)
		case over:
			resp = failure(gearsfs.ErrNoNode.Because("the node is closing"))
		case code != gearsfs.ErrClosed.Code:
			p.mu.Lock()
			p.dismissed = true // it loses the connection for that
			p.mu.Unlock()
			resp = failure(errNotLeader)
			resp.Leader = v.leaderAddrs()
		}
	}
	resp.Index = v.progress.index.Load()
	return resp
}

// lose takes a session from the connection.
func (p *peer) lose(s *session) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.sessions[s.id] == s {
		delete(p.sessions, s.id)
	}
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
	for _, s := range sessions {
		t := s.ten
		t.mu.Lock()
		waiting := t.waits.of(s)
		t.mu.Unlock()
		s.watcher.close(gearsfs.ErrNoNode)
		for _, o := range waiting {
			o.cancel(gearsfs.ErrNoNode)
		}
	}
}

// depart detaches the sessions of a connection that is lost.
func (p *peer) depart() {
	p.mu.Lock()
	p.gone = true
	sessions := p.sessions
	p.sessions = nil
	grace := p.vol.grace()
	if (p.conn == nil || p.conn.Peer().Kind == transport.PeerUnix) && !p.dismissed && !p.courier {
		grace = 0
	}
	p.mu.Unlock()
	for _, s := range sessions {
		s.ten.detach(s, p, grace)
	}
}

// unfit returns why an operation that s has just begun must not wait: its
// client has said hello elsewhere meanwhile, or the connection is being closed.
func (p *peer) unfit(s *session) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.sessions[s.id] != s:
		return gearsfs.ErrCancelled
	case p.dismissed:
		return gearsfs.ErrNoNode
	}
	return nil
}
