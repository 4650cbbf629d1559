package dgm

import (
	"context"
	"crypto/tls"
	"sync"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/wire"
)

// inside is a connection to this process's own volume while that leads: what
// a socket is to a Remote, but requests and responses pass as they are.
type inside struct {
	vol *Volume
	as  gearsfs.Caller

	mu   sync.Mutex // taken before Volume.mu
	sess *session   // nil before the hello
	shut bool
}

// inside connects a client of this process. Errors: gearsfs.ErrNotLeader, and
// gearsfs.ErrClosed once the volume is closed.
func (v *Volume) inside(as gearsfs.Caller) (*inside, error) {
	if v.isClosed() {
		return nil, gearsfs.ErrClosed
	}
	return &inside{vol: v, as: as}, nil
}

// start begins a request, which the volume may write into from then on. done is
// called exactly once, maybe before start returns; then nothing of the request
// is in use any more.
func (in *inside) start(req *wire.Request, done func(*wire.Response)) canceller {
	switch kind := req.Kind.(type) {
	case *wire.Request_Hello:
		in.hello(kind.Hello, done)
		return nil
	case *wire.Request_Node:
		in.vol.nodeOp(true, in.as, kind.Node, done)
		return nil
	}
	in.mu.Lock()
	s := in.sess
	in.mu.Unlock()
	if s == nil || s.id != sessionID(req.SessionMinted, req.SessionSalt) {
		done(failure(gearsfs.ErrSession))
		return nil
	}
	return in.vol.start(s, req, done)
}

// hello makes the client's session; a known id is not known any more.
func (in *inside) hello(h *wire.Hello, done func(*wire.Response)) {
	v := in.vol
	if h.SessionMinted != 0 || h.SessionSalt != 0 {
		done(failure(gearsfs.ErrSession))
		return
	}
	id, err := v.mint(true)
	if err != nil {
		done(failure(err))
		return
	}
	client := Client{Caller: in.as, Host: h.Host, PID: int(h.Pid), Process: h.Process}
	in.mu.Lock()
	v.mu.Lock()
	if v.closed || in.shut {
		v.mu.Unlock()
		in.mu.Unlock()
		done(failure(gearsfs.ErrClosed))
		return
	}
	s := v.newSessionLocked(id, client, true)
	v.declareLocked(s, h.Opens)
	v.mu.Unlock()
	in.sess = s
	in.mu.Unlock()
	v.keepOpen(s)
	done(&wire.Response{Welcome: &wire.Welcome{
		SessionMinted: uint64(id.Minted), SessionSalt: id.Salt,
		Node: v.cfg.Data.Identity().Name, Volume: v.machine.VolumeName(), VolumeId: v.machine.VolumeID(),
	}})
}

// lost is closed when the volume does not lead any more, or is closed.
func (in *inside) lost() <-chan struct{} { return in.vol.root.Done() }

// close ends the connection and with it the session. What it has begun is
// answered all the same.
func (in *inside) close() {
	in.mu.Lock()
	in.shut = true
	s := in.sess
	in.mu.Unlock()
	if s != nil {
		in.vol.end(s, false, func() {})
	}
}

// leader says whether this node leads, else where the one that does is
// reached, "" where that is not known. changed is closed when the answer is
// another.
func (v *Volume) leader() (self bool, addrs string, changed <-chan struct{}) {
	return true, "", v.root.Done()
}

// awaitApplied waits until this replica has applied an index.
func (v *Volume) awaitApplied(context.Context, gearsfs.Index) error { return nil }

// readNear answers a query that neither waits nor changes anything from this
// replica as it is.
func (v *Volume) readNear(who gearsfs.Caller, q *wire.Query) (*wire.Response, error) {
	if !v.enter() {
		return nil, gearsfs.ErrClosed
	}
	defer v.leave()
	return v.read(&session{caller: who}, q)
}

// watchNear watches what others than the session that by names change, as this
// replica applies it: id 0 begins a watch and answers with its id, with that id
// it waits for changes. endWatch ends it.
func (v *Volume) watchNear(by func() gearsfs.SessionID, id uint64, done func(*wire.Response)) canceller {
	ws := &v.watches
	if id == 0 {
		if v.isClosed() {
			done(failure(gearsfs.ErrClosed))
			return nil
		}
		w := &watch{session: by()}
		ws.mu.Lock()
		ws.last++
		w.id = ws.last
		ws.all[w] = true
		ws.mu.Unlock()
		done(&wire.Response{Number: w.id})
		return nil
	}
	w := ws.find(id)
	if w == nil {
		done(failure(gearsfs.ErrClosed))
		return nil
	}
	ws.mu.Lock()
	switch {
	case w.lost || w.waiting != nil:
		ws.mu.Unlock()
		done(failure(errMissed))
		return nil
	case len(w.pending) == 0:
		w.waiting = done
		ws.mu.Unlock()
		return watchWait{ws, w}
	}
	changed := w.pending
	w.pending = nil
	ws.mu.Unlock()
	done(&wire.Response{Changed: changed})
	return nil
}

// endWatch ends a watch that watchNear began.
func (v *Volume) endWatch(id uint64) { v.watches.drop(v.watches.find(id)) }

func (ws *watches) find(id uint64) *watch {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	for w := range ws.all {
		if w.id == id {
			return w
		}
	}
	return nil
}

// nodeOp answers what is asked about the node or its cluster. done is called
// exactly once.
func (v *Volume) nodeOp(_ bool, _ gearsfs.Caller, op *wire.NodeOp, done func(*wire.Response)) {
	switch op.Op.(type) {
	case *wire.NodeOp_Status:
		done(&wire.Response{Status: statusToWire(v.status())})
	case *wire.NodeOp_Nodes:
		s := v.status()
		done(&wire.Response{Nodes: []*wire.NodeInfo{{
			Member: &wire.Member{Id: 1, Name: s.Name}, Role: s.Role, Reachable: true, Version: s.Version, Term: s.Term,
			Commit: uint64(s.Commit), Applied: uint64(s.Applied), LogBytes: s.LogBytes, StateBytes: s.StateBytes,
		}}})
	default:
		done(failure(gearsfs.ErrUnknownOp))
	}
}

// asMember is what a Local says of itself to a leader on another node, and how
// it gets there.
func (v *Volume) asMember() (member gearsfs.MemberID, volume []byte, tlsConfig *tls.Config) {
	return 1, v.ID(), nil
}
