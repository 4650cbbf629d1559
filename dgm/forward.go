package dgm

import (
	"context"
	"slices"

	"github.com/gearsfs/gearsfs/gears"
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
	if offers := v.offers[name]; len(offers) > 0 {
		return offers[len(offers)-1]
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

// forward passes a request on to the remote that it names and its answer back,
// both as they are: sessions are between the ends.
func (v *Volume) forward(req *wire.Request, call *transport.Call) {
	name := req.Remote
	req.Remote = ""
	body, err := req.MarshalVT()
	if err != nil {
		v.replies.push(call, failure(gears.ErrProtocol.Because("a request can't be passed on: %v", err)))
		return
	}
	v.pass(name, body, func(resp []byte, err error) {
		if err != nil {
			v.replies.push(call, failure(gears.ErrNoNode.Because("remote %q: %v", name, err)))
			return
		}
		call.Reply(resp)
	}, call.OnCancel)
}

// pass sends an encoded request to a named remote. onCancel registers what
// ends its wait.
func (v *Volume) pass(name string, body []byte, done func([]byte, error), onCancel func(func())) {
	if !v.enter() {
		done(nil, gears.ErrClosed)
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
		return nil, gears.ErrNoNode.Because("no remote of this name is known or connected")
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
			return nil, gears.ErrClosed
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
		return newRemote(ctx, RemoteOptions{Client: Client{Process: m.sess.client}}, volumeRoute{m.vol, name})
	case *Remote:
		opts := m.opts
		opts.Offer, opts.OfferName = nil, "" // that is m's
		return newRemote(ctx, opts, remoteRoute{m, name})
	}
	return nil, gears.ErrUnsupported
}
