package dgm

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"time"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/wire"
)

// remoteCall is a request until its answer.
type remoteCall struct {
	req   *wire.Request // as it was asked; attempts are copies
	seq   uint64        // of a change; 0 for another request
	bytes int
	out   chan remoteOutcome // of capacity 1

	// Guarded by Remote.mu.
	patient    bool          // waits for a lost node for as long as its context lasts
	owed       chan struct{} // of what nobody waits for any more (owed.go): closed when it is over
	prev, next *remoteCall   // in its callList
	link       link          // that it is given to; nil while it waits for one
	cancel     canceller     // of the attempt there
	sent       bool          // under this session
	maybe      bool          // an attempt may have been, or may be, made
	before     bool          // maybe, as it was before the last attempt
	refused    int           // attempts in a row whose session was not known
	lent       int           // attempts that still hold the request
	cancelled  bool
	finished   bool
	result     remoteOutcome // where it is finished
}

// opens says whether the call is an open, which counts at the node even where
// nobody waits for its answer.
func (c *remoteCall) opens() bool {
	_, ok := c.req.GetQuery().GetOp().(*wire.Query_Open)
	return ok
}

type remoteOutcome struct {
	resp *wire.Response
	err  error
}

// inflight are the calls of a Remote that have no answer yet.
type inflight struct {
	changes callList // by rising seq
	queries callList
	held    []uint64 // seqs, rising, whose answers may be wanted again by a process that takes over
	count   int
	bytes   int
	nextSeq uint64
	told    uint64 // what was last confirmed around calls that wait for long
}

// confirmLag is by how many changes the oldest without an answer may be behind
// the newest before the later ones are confirmed around it.
const confirmLag = 512

// add counts a call. A change that has no seq yet, as one that is made again
// has, gets the next.
func (f *inflight) add(c *remoteCall) {
	if c.req.GetChange() != nil {
		if c.seq == 0 {
			c.seq = f.nextSeq
			f.nextSeq++
		}
		f.changes.insert(c)
	} else {
		f.queries.push(c)
	}
	f.count++
	f.bytes += c.bytes
}

func (f *inflight) remove(c *remoteCall) {
	if c.seq != 0 {
		f.changes.remove(c)
	} else {
		f.queries.remove(c)
	}
	f.count--
	f.bytes -= c.bytes
}

// all returns the calls, changes in their order.
func (f *inflight) all() []*remoteCall {
	out := make([]*remoteCall, 0, f.count)
	for _, l := range []*callList{&f.changes, &f.queries} {
		for c := l.first; c != nil; c = c.next {
			out = append(out, c)
		}
	}
	return out
}

// confirm returns the seq below which every answer has arrived and is not
// wanted again. Where a call that waits for long holds that back, it is now and
// then a later one, and unconfirmed are those below it that are wanted.
func (f *inflight) confirm() (confirmed uint64, unconfirmed []uint64) {
	oldest := f.nextSeq
	if f.changes.first != nil {
		oldest = f.changes.first.seq
	}
	if len(f.held) > 0 {
		oldest = min(oldest, f.held[0])
	}
	if f.nextSeq-max(oldest, f.told) < confirmLag {
		return oldest, nil
	}
	f.told = f.nextSeq
	for c := f.changes.first; c != nil; c = c.next {
		unconfirmed = append(unconfirmed, c.seq)
	}
	if len(f.held) > 0 {
		unconfirmed = append(unconfirmed, f.held...)
		slices.Sort(unconfirmed)
		unconfirmed = slices.Compact(unconfirmed)
	}
	return f.told, unconfirmed
}

// callList is a list of calls in the order of their coming.
type callList struct{ first, last *remoteCall }

func (l *callList) push(c *remoteCall) {
	c.prev, c.next = l.last, nil
	if l.last != nil {
		l.last.next = c
	} else {
		l.first = c
	}
	l.last = c
}

// insert keeps the list in the order of seqs.
func (l *callList) insert(c *remoteCall) {
	after := l.last
	for after != nil && after.seq > c.seq {
		after = after.prev
	}
	if after == l.last {
		l.push(c)
		return
	}
	c.prev, c.next = after, l.first
	if after != nil {
		c.next = after.next
		after.next = c
	} else {
		l.first = c
	}
	c.next.prev = c
}

func (l *callList) remove(c *remoteCall) {
	if c.prev != nil {
		c.prev.next = c.next
	} else {
		l.first = c.next
	}
	if c.next != nil {
		c.next.prev = c.prev
	} else {
		l.last = c.prev
	}
	c.prev, c.next = nil, nil
}

// call implements caller.
func (r *Remote) call(ctx context.Context, req *wire.Request) (*wire.Response, error) {
	c := &remoteCall{req: req, bytes: req.SizeVT()}
	c.out = r.outs.Get().(chan remoteOutcome)
	if o, _ := ctx.Value(OnceKey).(*Once); o != nil && req.GetChange() != nil {
		c.patient = o.Patient
	}
	under, err := r.enter(ctx, c)
	if err != nil {
		return nil, err
	}
	if a, ok := under.(attender); ok {
		a.Attend()
	}
	var o remoteOutcome
	select {
	case o = <-c.out:
	case <-ctx.Done():
		o = r.abandon(ctx, c)
	}
	r.outs.Put(c.out) // nothing more comes through it
	resp, err := outcome(o)
	if errors.Is(err, gearsfs.ErrCancelled) && ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err == nil {
		made(ctx, req)
	}
	return resp, err
}

// attender is a canceller who gains where the caller does a part of the work that
// its wait is for.
type attender interface{ Attend() }

var _ attender = pendingCall{}

// enter admits a call, gives a change its sequence number and sends it where
// there is a link. What it returns, where that is not nil, is the attempt there.
func (r *Remote) enter(ctx context.Context, c *remoteCall) (canceller, error) {
	begun := r.begun(ctx, c.req)
	if err := ctx.Err(); err != nil && !begun {
		return nil, err
	}
	r.mu.Lock()
	if r.fullLocked(c) {
		stop := context.AfterFunc(ctx, r.wakeAll)
		for r.fullLocked(c) && ctx.Err() == nil && !r.closed {
			r.room.Wait()
		}
		stop()
		defer r.room.Signal() // there may be room for another too
	}
	if err := ctx.Err(); err != nil && !begun || r.closed {
		r.mu.Unlock()
		if err == nil || begun {
			err = gearsfs.ErrClosed
		}
		return nil, err
	}
	if err := r.numberLocked(ctx, c); err != nil {
		r.mu.Unlock()
		return nil, err
	}
	r.calls.add(c)
	l := r.link
	if l == nil || r.drained || r.resending {
		r.mu.Unlock()
		return nil, nil
	}
	attempt := r.giveLocked(c, l)
	r.mu.Unlock()
	return r.send(c, l, attempt), nil
}

func (r *Remote) fullLocked(c *remoteCall) bool {
	return r.calls.count >= r.callsMax || r.calls.count > 0 && r.calls.bytes+c.bytes > remoteBytesMax
}

// giveLocked gives a call to a link and returns what is to be sent there.
func (r *Remote) giveLocked(c *remoteCall, l link) *wire.Request {
	attempt := attemptAt(c.req, r.session)
	if change := attempt.GetChange(); change != nil {
		change.Command.Seq = c.seq
		change.Command.Confirmed, change.Command.Unconfirmed = r.calls.confirm()
		change.Retry = c.sent
		r.given++
	}
	attempt.Released = r.takeLetGoLocked(l)
	c.link = l
	c.before, c.maybe, c.sent = c.maybe, true, true
	if l.lends() {
		c.lent++
	}
	return attempt
}

// send starts an attempt on the link that the call was given to, and returns what
// cancels it.
func (r *Remote) send(c *remoteCall, l link, attempt *wire.Request) canceller {
	cancel := l.start(attempt, func(resp *wire.Response) { r.answered(c, l, attempt, resp) })
	if cancel == nil {
		return nil
	}
	r.mu.Lock()
	cancelled := c.cancelled
	if c.link == l {
		c.cancel = cancel
	}
	r.mu.Unlock()
	if cancelled {
		cancel.cancel(gearsfs.ErrCancelled)
	}
	return cancel
}

// answered takes what a link says of an attempt. One that a lost link, or a
// node that does not lead, leaves without an answer stays for the next link.
func (r *Remote) answered(c *remoteCall, l link, attempt *wire.Request, resp *wire.Response) {
	if resp != nil {
		r.noteIndex(l, resp)
	}
	lose, undo := false, false
	r.mu.Lock()
	if resp != nil && !resp.LetGo {
		r.keepLetGoLocked(l, attempt.Released)
	}
	if l.lends() {
		c.lent--
	}
	code := gearsfs.Code(resp.GetAnswer().GetCode())
	switch {
	case c.finished:
		if c.lent == 0 && l.lends() && c.owed == nil {
			c.out <- c.result
		}
		undo = resp != nil && code == 0
	case c.link != l: // the one that it is given to now will tell
	case resp == nil:
	case code == gearsfs.ErrNoNode.Code, // who passes it on has lost the node, or it is closing
		code == gearsfs.ErrNotLeader.Code:
		lose = true
	case code == gearsfs.ErrSession.Code:
		lose = r.refusedLocked(c, l)
	default:
		switch {
		case c.before && madeBefore(c.req, code):
			resp = &wire.Response{Index: resp.Index}
		case c.before && c.seq != 0 && code == gearsfs.ErrOverload.Code: // of this attempt alone
			resp = failure(gearsfs.ErrMaybe.Because("it was sent before, and now refused: %s", resp.Answer.Reason))
		}
		r.futile = 0
		if c.seq != 0 {
			r.given--
		}
		undo = c.owed != nil && code == 0
		r.finishLocked(c, resp, nil)
		lose = r.drained && r.given == 0 && r.link == l
	}
	r.mu.Unlock()
	if lose {
		r.route.told(resp)
		l.lose()
	}
	if undo {
		r.undo(c, l, attempt, resp)
	}
}

// refusedLocked takes a call back whose session was not known where it was
// sent: the attempt was not made. It says whether the link is of no use any more:
// the next hello tells more. Where a session is refused that was welcomed, it is
// not used again. The other changes on the link have their answers, which may
// be the same, a while to come.
func (r *Remote) refusedLocked(c *remoteCall, l link) (lose bool) {
	c.link, c.cancel, c.maybe = nil, nil, c.before
	c.refused++
	if c.refused > 1 {
		r.spent = r.session
	}
	if c.seq != 0 {
		r.given--
	}
	if !r.drained {
		r.drained = true
		time.AfterFunc(drainPatience, l.lose)
	}
	return r.given == 0
}

// noteIndex notes how far the volume was when a link answered.
func (r *Remote) noteIndex(l link, resp *wire.Response) {
	raise(&r.newest, resp.Index)
	if l.lends() {
		raise(&r.reached, resp.Index)
	}
}

func raise(to *atomic.Uint64, value uint64) {
	for old := to.Load(); old < value; old = to.Load() {
		if to.CompareAndSwap(old, value) {
			return
		}
	}
}

// undo takes back what a call did that its caller has given up: a lease would
// stay with the session, and so would an open.
func (r *Remote) undo(c *remoteCall, l link, attempt *wire.Request, resp *wire.Response) {
	ino := c.req.GetQuery().GetOpen()
	if resp.Opened {
		ino = resp.GetAnswer().GetAttr().GetIno()
	}
	if c.opens() || resp.Opened {
		l.start(&wire.Request{
			SessionMinted: attempt.SessionMinted, SessionSalt: attempt.SessionSalt,
			Kind: &wire.Request_Query{Query: &wire.Query{Op: &wire.Query_Release{Release: ino}, Fast: true}},
		}, func(*wire.Response) {}) // the next hello does not name it
		return
	}
	if receipts := leases(resp.GetAnswer()); c.seq != 0 && receipts != nil {
		r.returnLeases(sessionID(attempt.SessionMinted, attempt.SessionSalt), receipts, c.owed)
	}
}

// leases are the receipts of what an answer hands out, nil where nothing is leased.
func leases(a *wire.Answer) (receipts []*wire.Receipt) {
	for _, t := range a.GetRecords() {
		if t.Fence != 0 {
			receipts = append(receipts, &wire.Receipt{Ino: t.Ino, Key: t.Key, Pos: t.Pos, Seq: t.Seq, Fence: t.Fence})
		}
	}
	for _, step := range a.GetSteps() {
		receipts = append(receipts, leases(step)...)
	}
	return receipts
}

// finish ends a call.
func (r *Remote) finish(c *remoteCall, resp *wire.Response, err error) {
	r.mu.Lock()
	r.finishLocked(c, resp, err)
	r.mu.Unlock()
}

func (r *Remote) finishLocked(c *remoteCall, resp *wire.Response, err error) {
	if c.finished {
		return
	}
	c.finished = true
	r.calls.remove(c)
	r.countOpenLocked(c, resp)
	if r.closed {
		r.room.Broadcast() // Close waits among others
	} else {
		r.room.Signal()
	}
	c.result = remoteOutcome{resp, err}
	switch {
	case c.owed == nil:
		if c.lent == 0 {
			c.out <- c.result
		}
	case leases(resp.GetAnswer()) == nil: // else they are given back first
		close(c.owed)
	}
}

// countOpenLocked notes what is open, to be said in the next hello.
func (r *Remote) countOpenLocked(c *remoteCall, resp *wire.Response) {
	if resp == nil || errorOf(resp) != nil {
		return
	}
	switch q := c.req.GetQuery().GetOp().(type) {
	case *wire.Query_Open:
		r.opens[gearsfs.Ino(q.Open)]++
	case *wire.Query_Release:
		r.uncountOpenLocked(gearsfs.Ino(q.Release))
	}
	if resp.Opened {
		r.opens[gearsfs.Ino(resp.GetAnswer().GetAttr().GetIno())]++
	}
}

func (r *Remote) uncountOpenLocked(ino gearsfs.Ino) {
	if r.opens[ino] > 1 {
		r.opens[ino]--
	} else {
		delete(r.opens, ino)
	}
}

func outcome(o remoteOutcome) (*wire.Response, error) {
	if o.err != nil {
		return nil, o.err
	}
	if err := errorOf(o.resp); err != nil {
		return nil, err
	}
	if o.resp.Answer == nil {
		o.resp.Answer = &wire.Answer{}
	}
	return o.resp, nil
}

// abandon cancels a call whose context has ended and waits for its true
// outcome, though not for ever where the node is another. What it may lease is
// given back then without its caller.
func (r *Remote) abandon(ctx context.Context, c *remoteCall) remoteOutcome {
	r.mu.Lock()
	c.cancelled = true
	cancel := c.cancel
	if !c.maybe || c.seq == 0 && !c.opens() {
		r.finishLocked(c, nil, ctx.Err())
	}
	r.mu.Unlock()
	if cancel != nil {
		cancel.cancel(gearsfs.ErrCancelled)
	}
	for {
		select {
		case o := <-c.out:
			return o
		case <-time.After(cancelPatience):
		}
		r.mu.Lock()
		// Where a process has just taken over, or its node, the answer is worth
		// more than the hurry of who may only have got some signal.
		soon := r.opts.Lasting != nil && r.link == nil && time.Since(r.lostAt) < lastingPatience
		if c.lent == 0 && !soon {
			err := gearsfs.ErrMaybe.Because("cancelled, and the node did not say whether the change was made")
			if !r.leaveLocked(c, err) {
				r.finishLocked(c, nil, err)
			}
		}
		r.mu.Unlock()
	}
}
