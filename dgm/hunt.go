package dgm

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/transport"
	"github.com/gearsfs/gearsfs/wire"
)

const (
	dialTimeout  = 5 * time.Second        // of one attempt, and of Dial
	dialTries    = 4                      // of each address by Dial, where nobody answers
	stagger      = 250 * time.Millisecond // how long an address is tried before the next is too
	backoffFirst = 20 * time.Millisecond  // before an address is tried again
	backoffMax   = 500 * time.Millisecond // doubled up to here, jittered
	hintedTries  = 4                      // of an address that another node names as the leader's, before it waits its turn
)

// backoff is how long to wait after a number of failures in a row.
func backoff(failures int) time.Duration {
	d := min(backoffFirst<<min(failures-1, 10), backoffMax)
	return d/2 + rand.N(d)
}

// search says how a route is to look for the node that serves.
type search struct {
	// greet is said on each link that is made; its response may name the leader,
	// also where it comes with an error.
	greet  func(ctx context.Context, l link) (*wire.Response, error)
	part   func(l link)    // said on a link that is closed after a greeting; may be nil
	failed func(error)     // told of each attempt that failed; may be nil
	tries  int             // of each address where nobody answers; 0: until the context ends
	owned  *sync.WaitGroup // of what is still being closed when the search is over
}

func (s *search) tell(err error) {
	if s.failed != nil {
		s.failed(err)
	}
}

// enough says whether a way that has failed that often, the last time with err,
// is not to be tried again.
func (s *search) enough(failures int, err error) bool {
	switch {
	case s.tries == 0, errors.Is(err, gearsfs.ErrNotLeader):
		return false
	case lost(err):
		return failures >= s.tries
	}
	return true
}

// lost says whether an attempt may have failed on the way: then the next may
// not. A peer that is cut off in its hello looks like one that speaks something
// else.
func lost(err error) bool {
	return errors.Is(err, transport.ErrLost) || errors.Is(err, gearsfs.ErrNoNode) || errors.Is(err, gearsfs.ErrProtocol)
}

// greetTimely greets within dialTimeout.
func (s *search) greetTimely(ctx context.Context, l link) (*wire.Response, error) {
	timely, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	resp, err := s.greet(timely, l)
	if err != nil && timely.Err() != nil && ctx.Err() == nil {
		err = gearsfs.ErrNoNode.Because("no answer within %v", dialTimeout)
	}
	return resp, err
}

// single searches along one way. connect's gearsfs.ErrClosed is final.
func (s *search) single(ctx context.Context, connect func(context.Context) (link, error)) (link, *wire.Response, error) {
	for failures := 1; ; failures++ {
		l, err := connect(ctx)
		switch {
		case errors.Is(err, gearsfs.ErrClosed):
			return nil, nil, err
		case err == nil:
			var resp *wire.Response
			if resp, err = s.greetTimely(ctx, l); err == nil {
				return l, resp, nil
			}
			l.close()
		}
		s.tell(err)
		if ctx.Err() != nil || s.enough(failures, err) {
			return nil, nil, err
		}
		select {
		case <-time.After(backoff(failures)):
		case <-ctx.Done():
			return nil, nil, err
		}
	}
}

// way is an address on trial.
type way struct {
	addr    transport.Addr
	learned bool // from another node, not from who dials
	hinted  bool // said to be the leader's, and to be tried next
	leads   bool // said to be the leader's
	busy    bool
	over    bool
	started time.Time
	next    time.Time // not to be tried before
	fails   int
}

// hunt tries addresses, each a while after the one before or at once when that
// has failed, until one of them welcomes. An address that fails is tried again
// after a back-off of its own, so one that does not answer holds up nobody.
type hunt struct {
	*search
	route   *dialRoute
	ways    []*way
	busy    int
	results chan tried
	turn    chan struct{} // held by who greets, and kept by who was welcomed
	urge    chan struct{} // tells who greets that another way waits for the turn
	greeted int           // greetings that others did not wait for; of who has the turn
	err     error         // the most telling failure
	leader  error         // why who was said to lead was not reached
}

// tried is the outcome of one attempt.
type tried struct {
	way  *way
	link link
	resp *wire.Response
	err  error
}

// connect implements route.
func (d *dialRoute) connect(ctx context.Context, s *search) (link, *wire.Response, error) {
	h := &hunt{search: s, route: d, ways: d.ways(), results: make(chan tried), turn: make(chan struct{}, 1), urge: make(chan struct{})}
	trying, cancel := context.WithCancel(ctx)
	defer cancel()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		wait := h.launch(trying)
		if wait < 0 && h.busy == 0 {
			return nil, nil, h.trouble(nil)
		}
		var due <-chan time.Time
		if wait >= 0 {
			timer.Reset(wait)
			due = timer.C
		}
		select {
		case t := <-h.results:
			t.way.busy = false
			h.busy--
			if t.err == nil {
				d.won(t)
				return t.link, t.resp, nil
			}
			h.fail(t)
		case <-due:
		case <-ctx.Done():
			return nil, nil, h.trouble(ctx.Err())
		}
	}
}

// trouble says why nobody welcomed; ended is why the search ended.
func (h *hunt) trouble(ended error) error {
	switch {
	case h.err == nil:
		return ended
	case errors.Is(h.err, gearsfs.ErrNotLeader) && h.leader != nil:
		return gearsfs.ErrNoNode.Because("the node that leads can't be reached: %v", h.leader)
	}
	return h.err
}

// launch tries what is due and returns when the next way will be; below 0 where
// none is left to be tried before another attempt has ended.
func (h *hunt) launch(ctx context.Context) time.Duration {
	for {
		w := h.nextWay()
		if w == nil {
			return -1
		}
		now := time.Now()
		wait := w.next.Sub(now)
		for _, other := range h.ways {
			if other.busy && !w.hinted {
				wait = max(wait, stagger-now.Sub(other.started))
			}
		}
		if wait > 0 {
			return wait
		}
		w.busy, w.hinted, w.started = true, false, now
		h.busy++
		h.owned.Go(func() { h.try(ctx, w) })
	}
}

// nextWay is the way that is to be tried first, nil where none is.
func (h *hunt) nextWay() *way {
	var first *way
	for _, w := range h.ways {
		switch {
		case w.busy || w.over:
		case first == nil, w.hinted && !first.hinted, w.hinted == first.hinted && w.next.Before(first.next):
			first = w
		}
	}
	return first
}

// try makes one attempt; when the search is over its link is closed.
func (h *hunt) try(ctx context.Context, w *way) {
	t := tried{way: w}
	conn, err := transport.Dial(ctx, w.addr, h.route.cfg)
	if err != nil {
		t.err = err
	} else {
		h.greetInTurn(ctx, conn, &t)
	}
	select {
	case h.results <- t:
	case <-ctx.Done():
		if t.link != nil {
			h.leave(conn)
		}
	}
}

// leave closes a connection on which a greeting was said.
func (h *hunt) leave(conn *transport.Conn) {
	l := connLink{conn}
	if h.part != nil {
		h.part(l)
	}
	l.cut()
}

// greetInTurn greets one node after the other: one that is reached by two
// addresses takes the session from the one connection to the other. Who does
// not answer for a while is left where another waits for the turn. Whoever is
// welcomed keeps it, and with it the link.
func (h *hunt) greetInTurn(ctx context.Context, conn *transport.Conn, t *tried) {
	for held := false; !held; {
		select {
		case h.turn <- struct{}{}:
			held = true
		case h.urge <- struct{}{}:
		case <-ctx.Done():
			t.err = ctx.Err()
			connLink{conn}.cut()
			return
		}
	}
	greeting, cancel := context.WithCancel(ctx)
	defer cancel()
	h.greeted++
	patience := stagger << min(h.greeted-1, 5) // so that one who is slow has its time too
	h.owned.Go(func() {
		select {
		case <-time.After(patience):
		case <-greeting.Done():
			return
		}
		select {
		case <-h.urge:
			cancel()
		case <-greeting.Done():
		}
	})
	t.resp, t.err = h.greetTimely(greeting, connLink{conn})
	switch {
	case t.err == nil && t.way.learned && h.route.foreign(t.resp):
		t.err = gearsfs.ErrForeign.Because("%s is a node of another volume", t.way.addr)
	case t.err == nil:
		t.link = connLink{conn}
		return
	case greeting.Err() != nil && ctx.Err() == nil:
		t.err = gearsfs.ErrNoNode.Because("%s does not answer", t.way.addr)
	}
	h.leave(conn)
	<-h.turn
}

// fail notes that an attempt has failed, and where to look instead.
func (h *hunt) fail(t tried) {
	now := time.Now()
	w := t.way
	w.fails++
	w.next = now.Add(backoff(w.fails))
	w.over = h.enough(w.fails, t.err)
	if h.err == nil || !lost(t.err) || lost(h.err) {
		h.err = t.err
	}
	if w.leads && lost(t.err) {
		h.leader = t.err
	}
	h.tell(t.err)
	if t.resp == nil {
		return
	}
	leader, err := transport.ParseAddrs(t.resp.Leader)
	if err != nil {
		return // it does not know, or names nothing that can be dialled
	}
	for _, addr := range leader {
		h.hint(addr, now)
	}
}

// hint has an address tried next.
func (h *hunt) hint(addr transport.Addr, now time.Time) {
	i := slices.IndexFunc(h.ways, func(w *way) bool { return w.addr == addr })
	if i < 0 {
		if len(h.ways) >= waysMax {
			return
		}
		h.ways = append(h.ways, &way{addr: addr, learned: true, hinted: true, leads: true})
		return
	}
	w := h.ways[i]
	w.leads = true
	if w.busy || w.over || w.fails >= hintedTries {
		return
	}
	w.hinted = true
	if w.fails > 0 {
		w.next = now.Add(backoffFirst)
	}
}
