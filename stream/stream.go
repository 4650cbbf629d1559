package stream

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/gearsfs/gearsfs"
)

// Stream is a synchronized queue for the goroutines of one process. Its methods
// are safe for concurrent use. Those that take a context wait until it ends and
// then return its error, having changed nothing; what can be done at once is
// done even where it has ended. Who waits is served first come first served:
// takes and leases in one line, puts in another.
//
// An error that is neither the context's nor one that a method names is that
// of broken Records; every later call returns it too.
type Stream struct {
	now func() time.Time

	mu      sync.Mutex // guards everything below
	queue   *Queue
	tickets Tickets
	takes   *Line[*call] // also leases
	puts    *Line[*call]
	peeks   *Line[*call]
	fence   uint64 // the last one given
	broken  error
}

// call is one operation that may wait.
type call struct {
	try  func() bool // with the mutex held: reports whether it is over
	err  error
	over chan struct{} // closed once try was true
}

// NewStream returns the stream of that state over rows, which are its own from
// then on. Records get their time from now.
func NewStream(state State, rows Records, now func() time.Time) (*Stream, error) {
	q, err := NewQueue(state, rows, NewPool(windowBytesMax))
	if err != nil {
		return nil, err
	}
	s := &Stream{now: now, queue: q}
	s.takes, s.puts, s.peeks = NewLine[*call](&s.tickets), NewLine[*call](&s.tickets), NewLine[*call](&s.tickets)
	for _, out := range q.outs.from(gearsfs.Place{}) {
		s.fence = max(s.fence, out.Fence)
	}
	return s, nil
}

// State returns the state as of now, from which NewStream goes on.
func (s *Stream) State() State {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.queue.s
}

// Put appends records, all or none, and returns the seqs of the first and the
// last. It waits while they don't fit the limits. Errors: gearsfs.ErrSealed,
// ErrTooBig.
func (s *Stream) Put(ctx context.Context, records ...gearsfs.NewRecord) (first, last gearsfs.Seq, err error) {
	var bytes uint64
	for _, r := range records {
		if len(r.Data) > gearsfs.RecordBytesMax {
			return 0, 0, gearsfs.ErrTooBig
		}
		bytes += uint64(len(r.Data))
	}
	c := &call{over: make(chan struct{})}
	c.try = func() bool {
		st := s.queue.State()
		if st.Sealed {
			c.err = gearsfs.ErrSealed
			return true
		}
		if !st.Fits(uint64(len(records)), bytes) {
			return false
		}
		now := uint64(s.now().UnixNano())
		for i, r := range records {
			last = s.queue.Append(r.Data, r.Type, now).Seq
			if i == 0 {
				first = last
			}
		}
		return true
	}
	err = s.run(ctx, s.puts, c)
	return first, last, err
}

// Take removes up to limit records from the head, waiting for the first. What
// it returns must not be written to. Error: gearsfs.ErrEnd where the stream is
// sealed and no record is left.
func (s *Stream) Take(ctx context.Context, limit int) ([]Taken, error) {
	return s.hand(ctx, func() ([]Taken, error) {
		return s.queue.Take(nil, limit, gearsfs.BatchBytesMax, false)
	})
}

// Lease hands up to limit records to holder, waiting for the first, until Ack
// or Return. Errors as Take.
func (s *Stream) Lease(ctx context.Context, holder gearsfs.SessionID, limit int) ([]Taken, error) {
	return s.hand(ctx, func() ([]Taken, error) {
		taken, err := s.queue.Lease(nil, limit, gearsfs.BatchBytesMax, Grant{Holder: holder, Fence: s.fence + 1})
		s.fence += uint64(len(taken))
		return taken, err
	})
}

func (s *Stream) hand(ctx context.Context, hand func() ([]Taken, error)) (taken []Taken, err error) {
	c := &call{over: make(chan struct{})}
	c.try = func() bool {
		st := s.queue.State()
		switch {
		case st.Ready > 0:
			taken, c.err = hand()
			s.queue.Clean()
		case st.Sealed && st.Drained():
			c.err = gearsfs.ErrEnd
		default:
			return false
		}
		return true
	}
	err = s.run(ctx, s.takes, c)
	return taken, err
}

// Peek returns copies of up to limit records that Take would get, waiting for
// the first. Errors as Take.
func (s *Stream) Peek(ctx context.Context, limit int) ([]Taken, error) {
	return s.peek(ctx, func() ([]Taken, bool, error) {
		found, err := s.queue.Peek(nil, limit, gearsfs.BatchBytesMax)
		return found, s.queue.s.Drained(), err
	})
}

// Follow returns copies of up to limit records with a greater seq than after,
// leased ones too, waiting for the first. gearsfs.ErrEnd where the stream is
// sealed and has none.
func (s *Stream) Follow(ctx context.Context, after gearsfs.Seq, limit int) ([]Taken, error) {
	return s.peek(ctx, func() ([]Taken, bool, error) {
		found, err := s.queue.Newer(nil, after, limit, gearsfs.BatchBytesMax)
		return found, true, err
	})
}

func (s *Stream) peek(ctx context.Context, look func() (found []Taken, last bool, err error)) (found []Taken, err error) {
	c := &call{over: make(chan struct{})}
	c.try = func() bool {
		var last bool
		found, last, c.err = look()
		if c.err == nil && len(found) == 0 && last && s.queue.s.Sealed {
			c.err = gearsfs.ErrEnd
		}
		return c.err != nil || len(found) > 0
	}
	err = s.run(ctx, s.peeks, c)
	return found, err
}

// Ack ends holder's lease with that fence: the record is gone. Error:
// gearsfs.ErrGone where it is not held.
func (s *Stream) Ack(holder gearsfs.SessionID, at gearsfs.Place, fence uint64) error {
	return s.settle(holder, at, fence, s.queue.Ack)
}

// Return ends holder's lease with that fence: the record is ready again, at
// its old place. Error: gearsfs.ErrGone where it is not held.
func (s *Stream) Return(holder gearsfs.SessionID, at gearsfs.Place, fence uint64) error {
	return s.settle(holder, at, fence, func(at gearsfs.Place) error {
		s.queue.Return(at)
		return nil
	})
}

func (s *Stream) settle(holder gearsfs.SessionID, at gearsfs.Place, fence uint64, settle func(gearsfs.Place) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken != nil {
		return s.broken
	}
	if !s.queue.Held(at, holder, fence) {
		return gearsfs.ErrGone
	}
	err := s.checkLocked(settle(at))
	s.queue.Clean()
	s.serveLocked()
	return err
}

// ReturnAll returns everything that holder has leased.
func (s *Stream) ReturnAll(holder gearsfs.SessionID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var held []gearsfs.Place
	for at, out := range s.queue.outs.from(gearsfs.Place{}) {
		if out.Leased && out.Holder == holder {
			held = append(held, at)
		}
	}
	for _, at := range held {
		s.queue.Return(at)
	}
	s.serveLocked()
}

// Seal ends the stream: there are no more puts, and no waiting for records
// once none is left.
func (s *Stream) Seal() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.queue.SetSealed(true)
	s.serveLocked()
}

// SetLimits makes puts wait that would exceed l.
func (s *Stream) SetLimits(l gearsfs.Limits) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.queue.SetLimits(l)
	s.serveLocked()
}

// run tries c, in its turn, until it is over or ctx ends.
func (s *Stream) run(ctx context.Context, line *Line[*call], c *call) error {
	s.mu.Lock()
	if s.broken != nil {
		defer s.mu.Unlock()
		return s.broken
	}
	if (line.Len() == 0 || line == s.peeks) && c.try() {
		defer s.mu.Unlock()
		c.err = s.checkLocked(c.err)
		s.serveLocked()
		return c.err
	}
	w := line.Join(c)
	s.mu.Unlock()
	select {
	case <-c.over:
		return c.err
	case <-ctx.Done():
	}
	s.mu.Lock()
	waiting := w.Cancel()
	if waiting {
		s.serveLocked() // it may have stood before one that can run
	}
	s.mu.Unlock()
	if waiting {
		return ctx.Err()
	}
	<-c.over
	return c.err
}

// serveLocked lets everyone run whose turn it is and who can.
func (s *Stream) serveLocked() {
	for again := true; again; {
		again = s.serveLineLocked(s.puts)
		s.peeks.PopRunnable(nil, s.peeks.Len(), s.tryLocked)
		again = s.serveLineLocked(s.takes) || again
	}
}

// serveLineLocked serves a line up to the first who can't run: records and
// room are for the oldest.
func (s *Stream) serveLineLocked(line *Line[*call]) (served bool) {
	for w := line.First(); w != nil && s.tryLocked(w); w = line.First() {
		w.Cancel()
		served = true
	}
	return served
}

func (s *Stream) tryLocked(w *Waiter[*call]) bool {
	c := w.Value
	switch {
	case s.broken != nil:
		c.err = s.broken
	case !c.try():
		return false
	default:
		c.err = s.checkLocked(c.err)
	}
	close(c.over)
	return true
}

// checkLocked remembers an error of the Records.
func (s *Stream) checkLocked(err error) error {
	if err == nil || errors.Is(err, gearsfs.ErrEnd) || errors.Is(err, gearsfs.ErrSealed) {
		return err
	}
	if s.broken == nil {
		s.broken = fmt.Errorf("stream: %w", err)
	}
	return s.broken
}
