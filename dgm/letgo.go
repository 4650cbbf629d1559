package dgm

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/wire"
)

// lettingGo are opens that are over and that the node that leads has not been told
// of. They go along with the next request; where none comes, with one of their own.
//
// Each is told exactly once, by one of these:
//
//  1. a hello, which says what is still open. It is said only while there is no link,
//     and nothing that is told on a link counts behind the next hello;
//  2. a request whose answer says that they are let go;
//  3. where another answer comes, as of a request that was never served, they are kept
//     for the next one. Where none comes the link is lost, and a hello follows.
//
// Each of them was an open that was answered: so there are no more than that, and no
// open that is counted later is meant.
type lettingGo struct {
	inos  []uint64
	timer bool // sendLetGo will be called
	heard bool // the node that was met last reads them in requests
}

const (
	letGoWithin = 10 * time.Millisecond
	letGoMax    = 1024 // with one request
)

// LetGo implements Content.
func (r *Remote) LetGo(ctx context.Context, ino gearsfs.Ino) error {
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return gearsfs.ErrClosed
	}
	if r.link != nil && !r.carriesLetGoLocked(r.link) {
		r.mu.Unlock()
		return r.Release(ctx, ino)
	}
	r.uncountOpenLocked(ino)
	r.letGo.inos = append(r.letGo.inos, uint64(ino))
	full := len(r.letGo.inos) >= letGoMax
	r.timeLetGoLocked()
	r.mu.Unlock()
	if full {
		r.sendLetGo()
	}
	return nil
}

// LetGo implements Content.
func (l *Local) LetGo(ctx context.Context, ino gearsfs.Ino) error { return l.remote.LetGo(ctx, ino) }

// carriesLetGoLocked says whether what is let go travels with requests: in this
// process that would spare nothing.
func (r *Remote) carriesLetGoLocked(l link) bool { return r.letGo.heard && !l.lends() }

// timeLetGoLocked has sendLetGo called soon. In a flow of requests there is one timer
// at a time, which seldom finds something.
func (r *Remote) timeLetGoLocked() {
	if !r.letGo.timer {
		r.letGo.timer = true
		time.AfterFunc(letGoWithin, func() {
			r.mu.Lock()
			r.letGo.timer = false
			r.mu.Unlock()
			r.sendLetGo()
		})
	}
}

// takeLetGoLocked returns what a request on a link tells.
func (r *Remote) takeLetGoLocked(l link) []uint64 {
	if len(r.letGo.inos) == 0 || !r.carriesLetGoLocked(l) {
		return nil
	}
	n := min(len(r.letGo.inos), letGoMax)
	inos := slices.Clone(r.letGo.inos[:n])
	r.letGo.inos = slices.Delete(r.letGo.inos, 0, n)
	return inos
}

// keepLetGoLocked takes back what a request on a link was to tell and has not.
func (r *Remote) keepLetGoLocked(l link, inos []uint64) {
	if len(inos) > 0 && r.link == l {
		r.letGo.inos = append(r.letGo.inos, inos...)
		r.timeLetGoLocked()
	}
}

// sendLetGo tells what no request has told.
func (r *Remote) sendLetGo() {
	for {
		r.mu.Lock()
		l := r.link
		if l == nil || r.drained || r.closed || len(r.letGo.inos) == 0 {
			r.mu.Unlock()
			return
		}
		q := &wire.Query_Release{} // of no inode
		inos := r.takeLetGoLocked(l)
		if inos == nil { // a node that knows only this
			q.Release = r.letGo.inos[0]
			r.letGo.inos = r.letGo.inos[1:]
		}
		req := &wire.Request{
			SessionMinted: uint64(r.session.Minted), SessionSalt: r.session.Salt, Released: inos,
			Kind: &wire.Request_Query{Query: &wire.Query{Op: q, Fast: true}},
		}
		r.mu.Unlock()
		l.start(req, func(resp *wire.Response) { r.toldLetGo(l, inos, resp) })
	}
}

// toldLetGo takes the answer to a request of sendLetGo. What is wrong with the link
// or the session the next hello puts right.
func (r *Remote) toldLetGo(l link, inos []uint64, resp *wire.Response) {
	if resp == nil {
		return
	}
	r.mu.Lock()
	if !resp.LetGo {
		r.keepLetGoLocked(l, inos)
	}
	r.mu.Unlock()
	if err := errorOf(resp); err != nil && !errors.Is(err, gearsfs.ErrOverload) {
		l.lose()
	}
}
