package transport

import (
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A caller whose call is the only one of the process reads its answer itself. By
// way of the poller an answer passes through threads of which each is woken by the
// one before, and that takes longer than all else that the caller does; the lone
// caller waits for its socket in a system call and is woken by the kernel alone. The
// invariants are the poller's.
const (
	// loneWait is up to how long a lone caller keeps a thread, and may be late to see
	// that its ctx has ended. What takes longer would not be much faster by it.
	loneWait = 2 * time.Millisecond

	// calmCalls is how many calls in a row must have had their answers before
	// another began, once one has not, or has taken longer than loneWait. What
	// waits for long at the peer neither begins nor ends meanwhile, and counts for
	// nothing.
	calmCalls = 3

	// loneRun is after how long lone callers let others run. From a goroutine that
	// is not rescheduled for 10 ms Go's watchdog takes the processor while it is in
	// a system call, and then looks around every 20 µs for a while.
	loneRun = 4 * time.Millisecond
)

// Attend waits for the outcome, up to 2 ms, where the process seems to have no other
// call under way: the caller then reads from the connection, and what else has come
// is handled on its goroutine, as done is. Else, and where the outcome is there, it
// returns at once. It is for who is going to wait anyway, once, right behind Start;
// Call does so by itself.
func (p *Pending) Attend() {
	s := p.conn.polled
	if s == nil || !s.poller.claim(p) {
		return
	}
	if s.poller.giveBack(p.conn, p.conn.readAlone(p)) {
		runtime.Gosched()
	}
}

// began counts a call, and returns its number.
func (p *poller) began() uint64 { return p.calls.Add(1) }

// ended notes whether others began while a call was under way.
func (p *poller) ended(number uint64) {
	if p.calls.Load() != number {
		p.disturbed()
	} else if p.unrest.Load() > 0 {
		p.unrest.Add(-1)
	}
}

func (p *poller) disturbed() {
	if p.unrest.Load() != calmCalls {
		p.unrest.Store(calmCalls)
	}
}

// claim makes the caller of call the one that reads from its connection, until it
// calls giveBack.
func (p *poller) claim(call *Pending) bool {
	c := call.conn
	if p.unrest.Load() > 0 || p.calls.Load() != call.number || c.batcher != nil || !c.underWay(call) || !c.polled.enter() {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.atRest || p.lone != nil || p.conns[int32(c.polled.fd)] != c || c.over || c.kept {
		c.polled.leave()
		return false
	}
	p.lone = c.polled
	p.watchLocked(c.polled) //nolint:errcheck // the worst is that the poller is woken, too
	p.patience = unix.NsecToTimespec(int64(p.loneWait))
	return true
}

// giveBack ends what claim began. What has come and was not read is reported
// now, and so is the end of the stream. It tells whether others should run.
func (p *poller) giveBack(c *Conn, err error) (enough bool) {
	now := time.Now()
	p.mu.Lock()
	p.lone = nil
	p.claims++
	if enough = now.Sub(p.yielded) >= loneRun; enough {
		p.yielded = now
	}
	c.over = err != nil
	p.watchLocked(c.polled) //nolint:errcheck // as before the claim
	p.mu.Unlock()
	c.polled.leave()
	if err != nil {
		go c.end(err) // Done is closed behind it
	}
	return enough
}

// underWay tells whether a call is written, has no outcome, and is the only one of
// its connection. Who has another that waits there, as a mount has for changes,
// serves others meanwhile, and its threads would wait for the processor that the
// lone caller keeps: renames through a mount took a third longer.
func (c *Conn) underWay(call *Pending) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return call.state == pendingSent && len(c.sent) == 1 && !c.writing && !c.corked && c.err == nil
}

// over tells whether a call has its outcome.
func (p *Pending) over() bool {
	p.conn.mu.Lock()
	defer p.conn.mu.Unlock()
	return p.state == pendingEnded
}

// readAlone reads for the lone caller until its call has an outcome, others have
// begun and are better served by the poller, or its time is over. An error is the
// end of the connection.
func (c *Conn) readAlone(call *Pending) error {
	p := c.polled.poller
	for {
		p.asked[0] = unix.PollFd{Fd: int32(c.polled.fd), Events: unix.POLLIN}
		n, err := unix.Ppoll(p.asked[:], &p.patience, nil) // which leaves what is left
		switch {
		case err == syscall.EINTR:
			continue
		case n <= 0:
			p.disturbed()
			return nil
		}
		if err := c.readThere(); err != nil && err != syscall.EAGAIN {
			return err
		}
		if call.over() || p.calls.Load() != call.number {
			return nil
		}
	}
}
