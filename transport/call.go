package transport

import (
	"context"
	"runtime"

	"github.com/gearsfs/gearsfs"
)

// Pending is a call that was started and has not ended.
type Pending struct {
	conn *Conn
	id   uint64
	body []byte // until it is queued
	sums *Sums  // likewise; nil of most
	done func(answer []byte, err error)
	// ended gets the outcome instead of done, of a Call.
	ended chan outcome
	// number is of the poller's calls, where the connection has one.
	number uint64

	// Guarded by conn.mu.
	state      pendingState
	cancelled  bool
	prev, next *Pending // in conn.waiting
}

type outcome struct {
	answer []byte
	err    error
}

type pendingState uint8

const (
	pendingWaits pendingState = iota // for credit
	pendingSent
	pendingEnded
)

// newWaiter makes the Pending of a Call. Each Conn has a pool of its own of
// them: a global one would mix the channels of testing/synctest's bubbles.
func newWaiter() any { return &Pending{ended: make(chan outcome, 1)} }

// Start sends a call and returns without waiting. Calls reach the peer's
// Handler in the order in which they were started.
//
// done is called exactly once with the answer, which belongs to it, or with an
// error: one that the peer's end answered with (gearsfs.ErrUnknownOp,
// gearsfs.ErrOverload, gearsfs.ErrClosed: the call was not served), one with ErrLost
// in its chain where the outcome is unknown, or, where the call was never sent:
// gearsfs.ErrTooBig, gearsfs.ErrOverload, gearsfs.ErrCancelled, or Err's. It is
// called on the goroutine that reads from the connection, or on one of its own,
// never before Start returns on the caller's; it must not wait for anything,
// and may start calls and reply to others.
//
// A call that finds the peer's window full is kept until there is room, up to
// as many calls and bytes as Config.CallsMax and WindowBytes allow, then refused
// with gearsfs.ErrOverload. body must not be changed until done is called.
func (c *Conn) Start(body []byte, done func(answer []byte, err error)) *Pending {
	p := &Pending{conn: c, body: body, done: done}
	c.begin(p)
	return p
}

// Call sends a call and waits for its outcome, also for room in the peer's
// window. The errors are those of Start. When ctx ends before the call was sent,
// its error is returned and nothing has happened; later the peer is asked to
// cancel the call and the true outcome is still waited for. body must not be
// changed meanwhile, the answer belongs to the caller.
func (c *Conn) Call(ctx context.Context, body []byte) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	p := c.waiters.Get().(*Pending)
	p.conn, p.body, p.state, p.cancelled = c, body, pendingWaits, false
	c.begin(p)
	p.Attend()
	var out outcome
	select {
	case out = <-p.ended:
	case <-ctx.Done():
		unsent := p.cancel()
		if out = <-p.ended; unsent {
			out.err = ctx.Err()
		}
	}
	c.waiters.Put(p)
	return out.answer, out.err
}

// Cancel asks that the call ends soon. done is called as ever, with the true
// outcome: Cancel only passes the wish on, to the OnCancel of the peer's Call.
// A call that was not sent yet ends with gearsfs.ErrCancelled. It does not wait
// and may be called at any time and repeatedly.
func (p *Pending) Cancel() { p.cancel() }

// cancel tells whether the call ended without having been sent.
func (p *Pending) cancel() (unsent bool) {
	c := p.conn
	c.mu.Lock()
	switch {
	case p.state == pendingWaits:
		c.waiting.remove(p)
		c.waitingBytes -= len(p.body)
		c.endLaterLocked(p, gearsfs.ErrCancelled)
		c.admitLocked()
		unsent = true
	case p.state == pendingSent && !p.cancelled && c.err == nil:
		p.cancelled = true
		c.queue = append(c.queue, frame{id: p.id, kind: kindCancel})
	}
	own := c.claimLocked()
	c.mu.Unlock()
	if own {
		c.flush()
	}
	return unsent
}

// end reports the outcome. The caller has taken p out of the connection.
func (p *Pending) end(answer []byte, err error) {
	if p.ended != nil {
		p.ended <- outcome{answer, err}
		return
	}
	p.done(answer, err)
}

// endLaterLocked ends p on another goroutine, so that who started or cancelled
// it may hold locks that done takes.
func (c *Conn) endLaterLocked(p *Pending, err error) {
	p.state = pendingEnded
	p.body = nil
	switch {
	case p.ended != nil:
		p.end(nil, err)
	case c.ended:
		go p.end(nil, err)
	default:
		c.children.Go(func() { p.end(nil, err) })
	}
}

// begin sends p, makes it wait for credit, or refuses it.
func (c *Conn) begin(p *Pending) {
	if c.polled != nil {
		p.number = c.polled.poller.began()
	}
	c.mu.Lock()
	err := c.startErrorLocked()
	switch {
	case err != nil:
	case overheadBytes+len(p.body) > c.frameBytesMax:
		err = gearsfs.ErrTooBig.Because("a request of %d bytes, at most %d are possible", len(p.body), c.frameBytesMax-overheadBytes)
	case c.waiting.n == 0 && c.hasCreditLocked(p):
		c.sendLocked(p)
	case p.ended == nil && (c.waiting.n >= c.cfg.CallsMax || c.waitingBytes+len(p.body) > c.cfg.WindowBytes):
		err = gearsfs.ErrOverload.Because("%d calls of %d bytes wait to be sent", c.waiting.n, c.waitingBytes)
	default:
		c.waiting.push(p)
		c.waitingBytes += len(p.body)
	}
	if err != nil {
		c.endLaterLocked(p, err)
	}
	others := len(c.sent) > 1
	own := c.claimLocked()
	c.mu.Unlock()
	switch {
	case !own:
	case !others:
		c.flush()
	case p.ended != nil:
		// Let those run first whose answers have just come: what they call
		// next goes out in the same write.
		runtime.Gosched()
		c.flush()
	default:
		// Likewise; but who starts calls is not made to wait for its turn.
		c.handOver()
	}
}

func (c *Conn) hasCreditLocked(p *Pending) bool {
	return len(c.sent) < c.callsMax && len(p.body) <= c.credit && c.err == nil
}

// sendLocked queues p's request.
func (c *Conn) sendLocked(p *Pending) {
	c.nextID++
	p.id = c.nextID
	p.state = pendingSent
	c.sent[p.id] = p
	c.credit -= len(p.body)
	c.queue = append(c.queue, frame{id: p.id, kind: kindRequest, body: p.body, sums: p.sums})
	p.body, p.sums = nil, nil
}

// admitLocked sends what waits and has credit now, in order.
func (c *Conn) admitLocked() {
	for p := c.waiting.first; p != nil && c.hasCreditLocked(p); p = c.waiting.first {
		c.waiting.remove(p)
		c.waitingBytes -= len(p.body)
		c.sendLocked(p)
	}
}

// takeWaitingLocked takes out all that wait; the caller ends them.
func (c *Conn) takeWaitingLocked() []*Pending {
	var all []*Pending
	for p := c.waiting.first; p != nil; p = c.waiting.first {
		c.waiting.remove(p)
		p.state = pendingEnded
		p.body = nil
		all = append(all, p)
	}
	c.waitingBytes = 0
	return all
}

// handleAnswer ends the call id.
func (c *Conn) handleAnswer(id uint64, answer []byte, err error) error {
	c.mu.Lock()
	p := c.sent[id]
	if p == nil {
		c.mu.Unlock()
		return gearsfs.ErrProtocol.Because("an answer to no call")
	}
	delete(c.sent, id)
	p.state = pendingEnded
	c.admitLocked()
	c.mu.Unlock()
	if c.polled != nil {
		c.polled.poller.ended(p.number)
	}
	p.end(answer, err)
	return nil
}

// pendingList is a list of calls in the order of their start.
type pendingList struct {
	first, last *Pending
	n           int
}

func (l *pendingList) push(p *Pending) {
	p.prev, p.next = l.last, nil
	if l.last != nil {
		l.last.next = p
	} else {
		l.first = p
	}
	l.last = p
	l.n++
}

func (l *pendingList) remove(p *Pending) {
	if p.prev != nil {
		p.prev.next = p.next
	} else {
		l.first = p.next
	}
	if p.next != nil {
		p.next.prev = p.prev
	} else {
		l.last = p.prev
	}
	p.prev, p.next = nil, nil
	l.n--
}
