package dgm

import (
	"context"
	"os"
	"time"

	"github.com/gearsfs/gearsfs/transport"
	"github.com/gearsfs/gearsfs/wire"
)

// nearTimeout is how long the unix socket of a node that has just answered over
// TCP is waited for.
const nearTimeout = time.Second

// near is the unix socket at which the client of a connection finds this node,
// where it came over TCP from this machine, and over the socket would be the
// same caller; else "".
func (p *peer) near(h *wire.Hello) string {
	if p.conn == nil || p.as != nil || h.Member != 0 || h.ClaimUid == nil {
		return ""
	}
	who := p.conn.Peer()
	if who.Kind != transport.PeerTLS && (who.Kind != transport.PeerTCP || !p.vol.cfg.Insecure) || !who.Here {
		return ""
	}
	addrs, err := transport.ParseAddrs(p.vol.cfg.Addrs)
	if err != nil {
		return "" // it has none
	}
	for _, addr := range addrs {
		if addr.Network == "unix" {
			return addr.String()
		}
	}
	return ""
}

// nearer returns a link to the unix socket that a welcome names, and gives up l,
// where this process can use it: a call costs a quarter to a third less there
// than over TCP. Else it returns l; nil where it is not known to which of them
// the node has given the session, and then never tries again.
func (r *Remote) nearer(ctx context.Context, l link, w *wire.Welcome) link {
	far, dialled := l.(connLink)
	route, routed := r.route.(*dialRoute)
	if !dialled || !routed || r.far || w.Near == "" {
		return l
	}
	addr, err := transport.ParseAddr(w.Near)
	if err != nil || addr.Network != "unix" {
		return l
	}
	ctx, cancel := context.WithTimeout(ctx, nearTimeout)
	defer cancel()
	conn, err := transport.Dial(ctx, addr, route.cfg)
	if err != nil {
		return l // another machine, network or user
	}
	near := connLink{conn}
	if who := conn.Peer(); who.UID != 0 && int(who.UID) != os.Geteuid() {
		r.owned.Go(near.cut)
		return l
	}
	resp, err := r.helloThere(ctx, near, w)
	switch {
	case err == nil:
		route.prefer(addr)
		r.owned.Go(far.cut)
		return near
	case resp != nil: // it was refused, so all is as before
		r.owned.Go(near.cut)
		return l
	}
	r.far = true
	r.depart(near)
	r.owned.Go(near.cut)
	r.owned.Go(far.cut)
	return nil
}

// helloThere attaches the session that has just been welcomed to another link of
// the same volume, and no other.
func (r *Remote) helloThere(ctx context.Context, l link, w *wire.Welcome) (*wire.Response, error) {
	hello := r.helloAs(sessionID(w.SessionMinted, w.SessionSalt))
	hello.GetHello().VolumeId = w.VolumeId
	return roundTrip(ctx, l, hello)
}
