package dgm

import (
	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm/internal/payload"
	"github.com/gearsfs/gearsfs/wire"
)

// inside is a connection to the sessions of this process's own volume: what a
// socket's is, without the socket and without encoding. It lasts as long as the
// tenure that it was made in.
type inside struct {
	peer *peer
}

// inside connects a client of this process. Errors: gearsfs.ErrNotLeader where
// this node does not serve sessions now, gearsfs.ErrClosed.
func (v *Volume) inside(as gearsfs.Caller) (*inside, error) {
	t := v.tenure.Load()
	switch {
	case v.isClosed():
		return nil, gearsfs.ErrClosed
	case t == nil:
		return nil, errNotLeader
	}
	return &inside{&peer{vol: v, as: &as, ten: t, sessions: make(map[gearsfs.SessionID]*session)}}, nil
}

// start begins a request, which the volume may write into from then on. done is
// called exactly once, on any goroutine and maybe before start returns; then
// nothing of the request is in use any more. It must not block. What start
// returns, where that is not nil, ends the wait.
func (in *inside) start(req *wire.Request, done func(*wire.Response)) canceller {
	return in.peer.serve(req, func(resp *wire.Response) {
		if payload.LacksBytes(resp.Answer) {
			in.peer.vol.fill(resp, func(resp *wire.Response) { done(in.peer.spoken(resp)) })
			return
		}
		done(in.peer.spoken(resp))
	})
}

// lost is closed when the tenure or the volume ends: the client says hello
// elsewhere then.
func (in *inside) lost() <-chan struct{} { return in.peer.ten.lost }

// close ends the connection, and with it the sessions that did not say goodbye.
// It does not wait.
func (in *inside) close() { in.peer.depart() }

// watchNear watches what others than the session that by names change, as this
// replica applies it: id 0 begins a watch and answers with its id, with that id
// it waits for changes. endWatch ends it.
func (v *Volume) watchNear(by func() gearsfs.SessionID, id uint64, done func(*wire.Response)) canceller {
	if id != 0 {
		if wr := v.watches.near(id); wr != nil {
			return wr.start(id, done)
		}
		done(failure(gearsfs.ErrClosed))
		return nil
	}
	wr := &watcher{ws: &v.watches, by: by}
	wr.start(0, func(resp *wire.Response) {
		if errorOf(resp) == nil {
			v.watches.keep(resp.Number, wr)
		}
		done(resp)
	})
	return nil
}

// endWatch ends a watch that watchNear began.
func (v *Volume) endWatch(id uint64) {
	if wr := v.watches.near(id); wr != nil {
		wr.close(gearsfs.ErrClosed)
	}
}
