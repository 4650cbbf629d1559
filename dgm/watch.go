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

// watches are who is told what others change, each on this replica.
type watches struct {
	mu   sync.Mutex // never held over a call out; taken after all others
	last uint64
	all  map[*watch]bool
	own  map[uint64]*watcher // of Locals, by their watches' ids
	over bool
}

// watch is one of them, guarded by watches.mu.
type watch struct {
	id      uint64
	by      func() gearsfs.SessionID // whose own changes it is not told of; must not block
	pending []*wire.Changed
	lost    bool
	waiting func(*wire.Response) // of a request that waits for changes
}

func (ws *watches) init() {
	ws.all = make(map[*watch]bool)
	ws.own = make(map[uint64]*watcher)
}

// watcher is one client, who has one watch at a time: a session here, or a Local
// whose session may be anywhere. Its fields ws and by are set when it is made.
type watcher struct {
	ws *watches
	by func() gearsfs.SessionID

	// Guarded by watches.mu.
	now    *watch
	closed bool
}

// start begins a watch (id 0), in place of an older one, or fetches what has
// changed since it was asked last.
func (wr *watcher) start(id uint64, done func(*wire.Response)) canceller {
	if id == 0 {
		wr.begin(done)
		return nil
	}
	ws := wr.ws
	ws.mu.Lock()
	w := wr.now
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

func (wr *watcher) begin(done func(*wire.Response)) {
	ws := wr.ws
	ws.mu.Lock()
	if wr.closed || ws.over {
		ws.mu.Unlock()
		done(failure(gearsfs.ErrClosed))
		return
	}
	old := wr.now
	ws.last++
	w := &watch{id: ws.last, by: wr.by}
	ws.all[w] = true
	wr.now = w
	ws.mu.Unlock()
	ws.drop(old, gearsfs.ErrClosed)
	done(&wire.Response{Number: w.id})
}

// lose makes the watch miss changes: an answer with some may be lost.
func (wr *watcher) lose() {
	wr.ws.mu.Lock()
	w := wr.now
	wr.ws.mu.Unlock()
	wr.ws.lose(w)
}

// close ends the watcher; who waits is told why.
func (wr *watcher) close(why error) {
	wr.ws.mu.Lock()
	w := wr.now
	wr.now, wr.closed = nil, true
	if w != nil {
		delete(wr.ws.own, w.id)
	}
	wr.ws.mu.Unlock()
	wr.ws.drop(w, why)
}

// keep remembers a Local's watcher by the id of its watch.
func (ws *watches) keep(id uint64, wr *watcher) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	ws.own[id] = wr
}

// near is the Local's watcher with a watch of that id, nil where there is none.
func (ws *watches) near(id uint64) *watcher {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	return ws.own[id]
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

// lose makes a watch miss changes; nil is none.
func (ws *watches) lose(w *watch) {
	if w == nil {
		return
	}
	ws.mu.Lock()
	w.lost, w.pending = true, nil
	ws.mu.Unlock()
	watchWait{ws, w}.cancel(errMissed)
}

// loseAll is for when the state is another one altogether.
func (ws *watches) loseAll() {
	for _, w := range ws.list() {
		ws.lose(w)
	}
}

// dropAll ends all watches, and lets none begin.
func (ws *watches) dropAll(why error) {
	ws.mu.Lock()
	ws.over = true
	ws.mu.Unlock()
	for _, w := range ws.list() {
		ws.drop(w, why)
	}
}

func (ws *watches) list() []*watch {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	return slices.Collect(maps.Keys(ws.all))
}

// drop ends a watch; nil is none.
func (ws *watches) drop(w *watch, why error) {
	if w == nil {
		return
	}
	ws.mu.Lock()
	w.lost, w.pending = true, nil
	delete(ws.all, w)
	ws.mu.Unlock()
	watchWait{ws, w}.cancel(why)
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
		by := w.by()
		for _, c := range changed {
			if c.By == by {
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
