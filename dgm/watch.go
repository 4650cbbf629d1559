package dgm

import (
	"maps"
	"slices"
	"sync"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/file"
	"github.com/gearsfs/gearsfs/wire"
)

// watchPendingMax bounds what one watch keeps for a client that is slow to
// fetch it; past it the watch is lost and the client takes everything as
// changed.
const watchPendingMax = 16 << 10

// watches are the sessions that are told what others change.
type watches struct {
	mu   sync.Mutex // never held over a call out
	last uint64
	all  map[*watch]bool
}

// watch is one of them, guarded by watches.mu.
type watch struct {
	id      uint64
	session gearsfs.SessionID
	pending []*wire.Changed
	lost    bool
	waiting func(*wire.Response) // of a request that waits for changes
}

func (ws *watches) init() { ws.all = make(map[*watch]bool) }

// startWatch begins a session's watch (id 0), in place of an older one, or
// fetches what has changed since it was asked last.
func (v *Volume) startWatch(s *session, id uint64, done func(*wire.Response)) canceller {
	ws := &v.watches
	if id == 0 {
		w := &watch{session: s.id}
		ws.mu.Lock()
		ws.last++
		w.id = ws.last
		ws.all[w] = true
		ws.mu.Unlock()
		v.mu.Lock()
		old, over := s.watch, s.ended || v.closed
		if over {
			old = w
		} else {
			s.watch = w
		}
		v.mu.Unlock()
		ws.drop(old)
		if over {
			done(failure(gearsfs.ErrClosed))
			return nil
		}
		done(&wire.Response{Number: w.id})
		return nil
	}
	v.mu.Lock()
	w := s.watch
	v.mu.Unlock()
	ws.mu.Lock()
	switch {
	case w == nil || w.id != id || w.lost || w.waiting != nil:
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

// watchWait is a request that waits for changes.
type watchWait struct {
	ws *watches
	w  *watch
}

func (ww watchWait) cancel(why error) {
	ww.ws.mu.Lock()
	done := ww.w.waiting
	ww.w.waiting = nil
	ww.ws.mu.Unlock()
	if done != nil {
		done(failure(why))
	}
}

var errMissed = gearsfs.ErrOverload.Because("the watch has missed changes")

// lose makes a watch miss changes: an answer with some may be lost. nil is none.
func (ws *watches) lose(w *watch) {
	if w == nil {
		return
	}
	ws.mu.Lock()
	w.lost, w.pending = true, nil
	ws.mu.Unlock()
	watchWait{ws, w}.cancel(errMissed)
}

// dropAll ends all watches.
func (ws *watches) dropAll() {
	ws.mu.Lock()
	all := slices.Collect(maps.Keys(ws.all))
	ws.mu.Unlock()
	for _, w := range all {
		ws.drop(w)
	}
}

// drop ends a watch; nil is none.
func (ws *watches) drop(w *watch) {
	if w == nil {
		return
	}
	ws.mu.Lock()
	delete(ws.all, w)
	ws.mu.Unlock()
	watchWait{ws, w}.cancel(gearsfs.ErrClosed)
}

// tell gives every watch what others changed.
func (ws *watches) tell(changed []file.Changed) {
	type delivery struct {
		done func(*wire.Response)
		resp *wire.Response
	}
	var out []delivery
	ws.mu.Lock()
	for w := range ws.all {
		for _, c := range changed {
			if c.By == w.session {
				continue
			}
			if len(w.pending) >= watchPendingMax {
				w.lost, w.pending = true, nil
			}
			if !w.lost {
				w.pending = append(w.pending, &wire.Changed{Ino: uint64(c.Ino), Name: c.Name, Data: c.Data})
			}
		}
		switch {
		case w.waiting == nil:
		case w.lost:
			out = append(out, delivery{w.waiting, failure(errMissed)})
			w.waiting = nil
		case len(w.pending) > 0:
			out = append(out, delivery{w.waiting, &wire.Response{Changed: w.pending}})
			w.waiting, w.pending = nil, nil
		}
	}
	ws.mu.Unlock()
	for _, d := range out {
		d.done(d.resp)
	}
}
