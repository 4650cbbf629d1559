package replica

import (
	"context"
	"math"
	"slices"

	"github.com/gearsfs/gearsfs"
)

// What peers may leave before the loop takes it; more is dropped.
const (
	receivedBytesMax = 64 << 20
	receivedMax      = 1 << 14
)

// arrivals are what other goroutines left for the loop, besides proposals.
type arrivals struct {
	messages [][]byte // from peers
	bytes    int      // of messages
	reads    []*read
	orders   []order
}

// order is a function for the loop's goroutine.
type order struct {
	do   func() error // an error ends the Group
	drop func()       // instead of do when the Group has ended; may be nil
}

func (a *arrivals) empty() bool {
	return len(a.messages) == 0 && len(a.reads) == 0 && len(a.orders) == 0
}

// Receive takes a raft message that a peer sent. It never blocks and owns the
// slice; what is no message, or too much at once, is dropped, since raft
// repeats what matters.
func (g *Group) Receive(message []byte) {
	g.mu.Lock()
	a := &g.arrivals
	if g.over || len(a.messages) >= receivedMax || a.bytes+len(message) > receivedBytesMax {
		g.mu.Unlock()
		return
	}
	a.messages = append(a.messages, message)
	a.bytes += len(message)
	g.unlockAndKick()
}

// order has the loop call o.do, soon.
func (g *Group) order(o order) {
	g.mu.Lock()
	if g.over {
		g.mu.Unlock()
		if o.drop != nil {
			o.drop()
		}
		return
	}
	g.arrivals.orders = append(g.arrivals.orders, o)
	g.unlockAndKick()
}

// ask has the loop begin something and waits for its outcome, or that ctx ends.
func (g *Group) ask(ctx context.Context, begin func(done func(error)) error) error {
	outcome := make(chan error, 1)
	done := func(err error) { outcome <- err }
	g.order(order{do: func() error { return begin(done) }, drop: func() { done(gearsfs.ErrClosed) }})
	select {
	case err := <-outcome:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

type loopState int

const (
	busy loopState = iota
	idle
	closing // and idle
	stopped
)

// next takes what waits, of the proposals what fits one entry.
func (g *Group) next() ([]waiting, arrivals, loopState) {
	g.mu.Lock()
	defer g.mu.Unlock()
	least := g.leastLocked()
	state := g.stateLocked(least)
	if state != busy {
		return nil, arrivals{}, state
	}
	got := g.arrivals
	g.arrivals = arrivals{}
	var items []waiting
	if n := g.fitLocked(); n > 0 && len(g.pending) >= least {
		items = slices.Clone(g.pending[:n])
		left := copy(g.pending, g.pending[n:])
		clear(g.pending[left:])
		g.pending = g.pending[:left]
		g.eager = slices.ContainsFunc(g.pending, func(w waiting) bool { return !w.Durable })
	}
	return items, got, busy
}

// leastLocked is how many proposals make an entry now, for who has the baton. An
// entry costs each member a write, a turn of raft's and a commit of the state, and
// in a group of several messages and a sync, so one that others are ahead of waits
// until it has as many as they have (in a group of one, half as many), or they are
// through: the more there is to do, the larger the entries, and few wait for
// nothing. In a group of several up to four callers do not wait at all. In a group
// of one those that wait for a sync are ahead while one runs: what comes meanwhile
// waits for the next one anyway, unless it need not be durable.
func (g *Group) leastLocked() int {
	flying := g.loop.flying
	switch {
	case g.stalled():
		return math.MaxInt
	case g.sole.Load():
		if !g.eager && !g.closing {
			flying = max(flying, int(g.disk.ahead.Load()))
		}
		return max(1, flying/2)
	case flying < crowdMax:
		return 1
	default:
		return flying
	}
}

// endHoldLocked has proposals wait no longer for the sync that runs.
func (g *Group) endHoldLocked() {
	if g.least != math.MaxInt && g.sole.Load() {
		g.least = 1
	}
}

// stateLocked reports what there is to do, where at least so many proposals make
// an entry.
func (g *Group) stateLocked(least int) loopState {
	switch {
	case g.err != nil:
		return stopped
	case len(g.pending) >= least, !g.arrivals.empty():
		return busy
	case g.closing:
		return closing
	}
	return idle
}

// doze has what comes next wake the loop, where there is nothing to do.
func (g *Group) doze() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	least := g.leastLocked()
	state := g.stateLocked(least)
	g.asleep, g.least = state == idle || state == closing, least
	return g.asleep
}

// fitLocked returns how many of the pending proposals go into the next entry:
// whole calls only, and at least one.
func (g *Group) fitLocked() int {
	n, bytes := 0, 0
	for end := 0; end < len(g.pending); end++ {
		bytes += g.pending[end].bytes
		if n > 0 && (bytes > g.limits.entryBytes || end >= g.limits.entryCommands) {
			break
		}
		if g.pending[end].last {
			n = end + 1
		}
	}
	return n
}
