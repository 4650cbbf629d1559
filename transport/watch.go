package transport

import (
	"time"
)

// A Handler must not wait, but may have to: for a disk that is slow for once, or a
// lock that such a one holds. It is called by who has the turn of a poller, and so
// would hold up all other connections. So there is a watch: it looks every
// watchPeriod, and where one read and what it brought are still being handled since
// the look before, it gives the turn to another goroutine. The one that is held up
// keeps its connection, from which nobody else reads until it is done with what was
// read, so that calls of one connection are served in order and never two at once.
//
// The watch is a timer, and to set one wakes a thread, as it does when it is due. So in a
// flow of reads it goes on by itself; where they are rare it is set by one of
// rareCalls calls and notices and looks once: then a Handler that takes long mostly holds
// up the others. With one connection it is not set: nobody is held up.
//
// Invariants, beside the poller's:
//
//  1. state is odd while the one that has the turn handles what it has read. Who has
//     the turn makes it odd; it is made even by the same goroutine, or under mu by the
//     watch, which then has the turn: each number is made even once.
//  2. A connection with kept set belongs to the goroutine that has lost the turn
//     there, in all that is the turn's otherwise. It is neither in more nor read, and
//     its reports are dropped, but asked for again when it is given back.
//  3. unset, where it is above 0, is how many calls of a Handler, the next one
//     included, there are until one has to set the timer. It says so before the watch
//     looks at state for the last time, and who handles something makes state odd
//     before looking at unset: so one sees the other.

// watchPeriod is how long after a look the next one follows. A Handler holds up other
// connections for this long at least, and for twice as long at the most.
const watchPeriod = 4 * time.Millisecond

// rareReads is up to how many reads between two looks the second is the last, until
// the next call.
const rareReads = 2

// rareCalls is one of how many calls sets the timer where they are rare: what that
// costs, three switches of threads, would be a part of each call's time.
const rareCalls = 16

// begin says that r, which has the turn, is about to handle what ready[i] was sent.
func (r *pollReader) begin(i int) {
	p := r.p
	r.at, r.number = i, p.state.Load()+1
	p.serving = r
	p.state.Store(r.number)
}

// finish ends what begin began, and tells whether r still has the turn.
func (r *pollReader) finish() bool {
	return r.p.state.CompareAndSwap(r.number, r.number+1)
}

// watched is called before a Handler is.
func (c *Conn) watched() {
	if c.polled == nil {
		return
	}
	if p := c.polled.poller; p.unset.Load() > 0 && p.unset.Add(-1) <= 0 {
		p.watch()
	}
}

// watch sets the timer where that is due.
func (p *poller) watch() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.watching && !p.over {
		p.setTimerLocked()
	}
}

func (p *poller) setTimerLocked() {
	p.unset.Store(0)
	p.watching = true
	if p.timer == nil {
		p.timer = time.AfterFunc(p.period, p.lookAround)
		return
	}
	p.timer.Reset(p.period)
}

// lookAround is what the timer does.
func (p *poller) lookAround() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.over {
		return
	}
	if p.lookLocked() {
		p.setTimerLocked()
	} else {
		p.watching = false
	}
}

// lookLocked looks once, and tells whether to look again without being asked to.
func (p *poller) lookLocked() bool {
	before, number := p.seen, p.state.Load()
	p.seen = number
	handles := number%2 == 1
	switch {
	case len(p.conns) < 2:
		return false // add asks for it
	case handles && number == before:
		p.relieveLocked(number)
		return true
	case handles || number-before > 2*rareReads:
		return true
	}
	p.unset.Store(p.rare)
	return p.state.Load() != number
}

// relieveLocked gives the turn of who handles number to another, unless that is done
// by now. What was to be read in the same round is for the other, and the batches are
// left on a goroutine of their own: others may wait for that.
func (p *poller) relieveLocked(number uint64) {
	if !p.state.CompareAndSwap(number, number+1) {
		return
	}
	r := p.serving
	c, rest := r.ready[r.at], r.ready[r.at+1:]
	c.kept = true
	p.more = append(append([]*Conn(nil), rest...), p.more...)
	p.atRest = len(p.more) == 0
	batches := r.batches
	r.batches = nil
	p.passLocked(r)
	p.running.Go(func() {
		c.uncork() // for the answers that are there
		for _, b := range batches {
			b.LeaveYielding(func() {})
		}
	})
}

// giveUp is what a reader does that has lost the turn when it is done with what it
// has read from c; err ends c. What has come meanwhile is reported now, and so is the
// end of the stream.
func (p *poller) giveUp(c *Conn, err error) {
	p.mu.Lock()
	c.kept = false
	c.over = err != nil
	if err == nil {
		err = p.watchLocked(c.polled)
		c.over = err != nil
	}
	p.mu.Unlock()
	if err != nil {
		go c.end(err) // Done is closed behind it
	}
}
