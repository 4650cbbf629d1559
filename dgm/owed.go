package dgm

import (
	"context"
	"slices"
	"time"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/wire"
)

// What a Remote owes the volume: leases that nobody here has. A take that its
// caller has given up before the node said what became of it is owed until that
// is known, and so is the return of what it leased. Both are calls as others,
// with a seq and sent again on the next link, but nobody waits for them; there
// they come first, so that a record is back before another take may find a later
// one.

// leaveLocked has a call that was cancelled go on without its caller, who gets
// err. It reports false where there is nothing to be given back. A process that
// follows does not go on with it: where it begins the call's request anew, it has the
// record under the same number, or, as that was given back, another.
func (r *Remote) leaveLocked(c *remoteCall, err error) bool {
	if c.finished || r.closed {
		return false
	}
	switch op := c.req.GetChange().GetCommand().GetOp().(type) {
	case *wire.Command_Take: // sent again it is cancelled at once
		if !op.Take.Lease {
			return false
		}
	case *wire.Command_Transact:
		if !slices.ContainsFunc(op.Transact.Steps, func(s *wire.Step) bool { return s.GetTake().GetLease() }) {
			return false
		}
		// A command that does nothing is answered under its number as it was, or
		// keeps it from being made now.
		c.req = &wire.Request{Kind: &wire.Request_Change{Change: &wire.Change{
			Command: &wire.Command{Op: &wire.Command_Confirm{Confirm: &wire.Confirm{}}}, Fast: true,
		}}}
	default:
		return false
	}
	c.owed, c.patient = make(chan struct{}), true
	c.out <- remoteOutcome{nil, err}
	return true
}

// returnLeases returns leases of a session. over, which may be nil, is closed when
// that is done or needless.
func (r *Remote) returnLeases(id gearsfs.SessionID, receipts []*wire.Receipt, over chan struct{}) {
	if over == nil {
		over = make(chan struct{})
	}
	c := &remoteCall{owed: over, patient: true, req: &wire.Request{Kind: &wire.Request_Change{Change: &wire.Change{
		Command: &wire.Command{Op: &wire.Command_Settle{Settle: &wire.Settle{Return: true, Receipts: receipts}}}, Fast: true,
	}}}}
	c.bytes = c.req.SizeVT()
	r.mu.Lock()
	if r.closed || r.session != id || r.numberLocked(context.Background(), c) != nil {
		r.mu.Unlock()
		close(over) // they went with the session, or will
		return
	}
	r.calls.add(c)
	l := r.link
	if l == nil {
		l = r.first
	}
	if l == nil || r.drained {
		r.mu.Unlock()
		return
	}
	attempt := r.giveLocked(c, l)
	r.mu.Unlock()
	r.send(c, l, attempt)
}

// settleOwed sends what is owed on a new link and waits a while until it is
// settled.
func (r *Remote) settleOwed(l link) {
	r.mu.Lock()
	r.drained = false
	var send []sending
	for _, c := range r.calls.all() {
		if c.owed != nil && c.link == nil {
			send = append(send, sending{c, r.giveLocked(c, l)})
		}
	}
	if send != nil {
		r.first = l
	}
	r.mu.Unlock()
	if send == nil {
		return
	}
	patience := time.NewTimer(cancelPatience)
	defer patience.Stop()
	for _, s := range send {
		r.send(s.c, l, s.attempt)
	}
	for _, s := range send {
		select {
		case <-s.c.owed:
			continue
		case <-l.done():
		case <-patience.C:
		case <-r.ctx.Done():
		}
		break
	}
	r.mu.Lock()
	r.first = nil
	r.mu.Unlock()
}

// sending is a call and what is to be sent of it.
type sending struct {
	c       *remoteCall
	attempt *wire.Request
}
