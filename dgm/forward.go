package dgm

import (
	"context"
	"slices"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/transport"
	"github.com/gearsfs/gearsfs/wire"
)

// offer makes a client that serves requests over its own connection known
// under a name: the reverse of its proxy for this node. Where several do, the
// latest serves.
func (v *Volume) offer(name string, p *peer) {
	v.mu.Lock()
	defer v.mu.Unlock()
	p.mu.Lock()
	gone := p.gone
	p.mu.Unlock()
	if offers := v.offers[name]; !gone && !slices.Contains(offers, p) {
		v.offers[name] = append(offers, p)
	}
}

// offered is the latest who offers a name, nil where none does.
func (v *Volume) offered(name string) *peer {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, p := range slices.Backward(v.offers[name]) {
		if p.conn.Err() == nil { // else it is about to be withdrawn
			return p
		}
	}
	return nil
}

// withdraw ends all offers of a connection that is gone.
func (v *Volume) withdraw(p *peer) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for name, offers := range v.offers {
		offers = slices.DeleteFunc(offers, func(o *peer) bool { return o == p })
		if v.offers[name] = offers; len(offers) == 0 {
			delete(v.offers, name)
		}
	}
}

// passage is a session whose requests this node passes on.
type passage struct {
	remote string
	id     gearsfs.SessionID
}

// forward passes a request on to the remote that it names and its answer back,
// both as they are: sessions are between the ends. But the far end can't see
// the client's connection, so it is told when that is lost.
func (p *peer) forward(req *wire.Request, call *transport.Call) {
	v := p.vol
	name := req.Remote
	req.Remote = ""
	id := sessionID(req.SessionMinted, req.SessionSalt)
	hello := req.GetHello()
	switch {
	case hello != nil && (hello.SessionMinted != 0 || hello.SessionSalt != 0):
		v.carry(passage{name, sessionID(hello.SessionMinted, hello.SessionSalt)}, p)
	case req.GetGoodbye() != nil:
		v.uncarry(passage{name, id}, p)
	}
	body, err := req.MarshalVT()
	if err != nil {
		v.replies.push(reply{call: call, resp: failure(gearsfs.ErrProtocol.Because("a request can't be passed on: %v", err))})
		return
	}
	v.pass(name, body, func(answer []byte, err error) {
		if err != nil {
			v.replies.push(reply{call: call, resp: failure(gearsfs.ErrNoNode.Because("remote %q: %v", name, err))})
			return
		}
		if hello != nil {
			resp := new(wire.Response)
			if err := resp.UnmarshalVT(answer); err == nil && resp.Welcome != nil {
				v.carry(passage{name, sessionID(resp.Welcome.SessionMinted, resp.Welcome.SessionSalt)}, p)
			}
		}
		call.Reply(answer)
	}, call.OnCancel)
}

// carry notes that a session's requests come by p.
func (v *Volume) carry(at passage, p *peer) {
	v.mu.Lock()
	p.mu.Lock()
	gone := p.gone
	p.mu.Unlock()
	if !gone {
		v.passages[at] = p
	}
	v.mu.Unlock()
	if gone {
		v.sayDeparted(at)
	}
}

func (v *Volume) uncarry(at passage, p *peer) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.passages[at] == p {
		delete(v.passages, at)
	}
}

// departed is called when p is gone, for the sessions that it carried.
func (v *Volume) departed(p *peer) {
	var lost []passage
	v.mu.Lock()
	for at, by := range v.passages {
		if by == p {
			lost = append(lost, at)
			delete(v.passages, at)
		}
	}
	v.mu.Unlock()
	for _, at := range lost {
		v.sayDeparted(at)
	}
}

// sayDeparted tells a remote that the client of a session has lost its way
// there. If the remote does not hear it, its own connection is lost.
func (v *Volume) sayDeparted(at passage) {
	req := &wire.Request{
		SessionMinted: uint64(at.id.Minted), SessionSalt: at.id.Salt,
		Kind: &wire.Request_Goodbye{Goodbye: &wire.Goodbye{Departed: true}},
	}
	body, err := req.MarshalVT()
	if err != nil {
		v.log.Warn("a remote was not told of a lost client", "remote", at.remote, "error", err)
		return
	}
	v.pass(at.remote, body, func([]byte, error) {}, func(func()) {})
}

// pass sends an encoded request to a named remote. onCancel registers what
// ends its wait.
func (v *Volume) pass(name string, body []byte, done func([]byte, error), onCancel func(func())) {
	if !v.enter() {
		done(nil, gearsfs.ErrClosed)
		return
	}
	defer v.leave()
	if o := v.offered(name); o != nil {
		p := o.conn.Start(body, done)
		onCancel(p.Cancel)
		return
	}
	v.owned.Go(func() { // the dial is bounded, and ends with the volume
		conn, err := v.remoteConn(name)
		if err != nil {
			done(nil, err)
			return
		}
		p := conn.Start(body, done)
		onCancel(p.Cancel)
	})
}

// remoteConn is the connection to a named remote, made when first needed.
func (v *Volume) remoteConn(name string) (*transport.Conn, error) {
	remotes, err := v.machine.Remotes()
	if err != nil {
		return nil, err
	}
	addrs, ok := remotes[name]
	if !ok {
		return nil, gearsfs.ErrNoNode.Because("no remote of this name is known or connected")
	}
	v.mu.Lock()
	l := v.links[name]
	v.mu.Unlock()
	if l == nil || l.addrs != addrs {
		fresh, err := Dial(v.root, addrs, RemoteOptions{Client: Client{Process: "gearsfsd " + v.cfg.Data.Identity().Name}})
		if err != nil {
			return nil, err
		}
		v.mu.Lock()
		old := v.links[name]
		if old == l && !v.closed {
			v.links[name], old, l = fresh, l, fresh
		} else {
			old, l = fresh, old
		}
		v.mu.Unlock()
		if old != nil {
			if err := old.Close(); err != nil {
				v.log.Debug("a remote's old connection", "name", name, "error", err)
			}
		}
		if l == nil {
			return nil, gearsfs.ErrClosed
		}
	}
	ctx, cancel := context.WithTimeout(v.root, dialTimeout)
	defer cancel()
	return l.current(ctx)
}

// Via returns a Manager of the remote that m's node knows by name: one that was
// named with SetRemote, or a client that offers itself under it. It has a
// session of its own there. Closing it leaves m as it is.
func Via(ctx context.Context, m Manager, name string) (*Remote, error) {
	switch m := m.(type) {
	case *Local:
		opts := RemoteOptions{Client: Client{Process: m.remote.opts.Client.String()}}
		return newRemote(ctx, opts, viaRoute{m.remote, m.vol, name})
	case *Remote:
		if _, dialled := m.route.(*dialRoute); dialled {
			opts := m.opts
			opts.Offer, opts.OfferName = nil, "" // that is m's
			return newRemote(ctx, opts, viaRoute{m, nil, name})
		}
	}
	return nil, gearsfs.ErrUnsupported.Because("a remote behind a remote")
}
