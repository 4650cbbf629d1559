package dgm

import (
	"context"
	"errors"
	"time"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/transport"
	"github.com/gearsfs/gearsfs/wire"
)

// remoteCall is a request until its answer.
type remoteCall struct {
	req   *wire.Request
	seq   uint64 // of a change; 0 for a query
	bytes int
	out   chan remoteOutcome // of capacity 1

	// Guarded by Remote.mu.
	prev, next *remoteCall // in its callList
	link       link        // that it is given to; nil while it waits for one
	sent       bool
	homeless   bool // the node did not know its session
	cancelled  bool
	finished   bool
	cancel     func()
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
	count   int
	bytes   int
	nextSeq uint64
	told    uint64 // what was last confirmed around calls that wait for long
}

// confirmLag is by how many changes the oldest without an answer may be behind
// the newest before the later ones are confirmed around it.
const confirmLag = 512

func (f *inflight) add(c *remoteCall) {
	if c.req.GetChange() != nil {
		c.seq = f.nextSeq
		f.nextSeq++
		f.changes.push(c)
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

// confirm returns the seq below which every answer has arrived. Where a call
// that waits for long holds that back, it is now and then a later one, and
// unconfirmed are those below it that have no answer.
func (f *inflight) confirm() (confirmed uint64, unconfirmed []uint64) {
	if f.changes.first == nil {
		return f.nextSeq, nil
	}
	oldest := f.changes.first.seq
	if f.nextSeq-max(oldest, f.told) < confirmLag {
		return oldest, nil
	}
	f.told = f.nextSeq
	for c := f.changes.first; c != nil; c = c.next {
		unconfirmed = append(unconfirmed, c.seq)
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
	c := &remoteCall{req: req, bytes: req.SizeVT(), out: make(chan remoteOutcome, 1)}
	if err := r.enter(ctx, c); err != nil {
		return nil, err
	}
	select {
	case o := <-c.out:
		return r.outcome(c, o)
	case <-ctx.Done():
	}
	return r.abandon(ctx, c)
}

// enter admits a call, gives a change its sequence number and sends it where
// there is a link.
func (r *Remote) enter(ctx context.Context, c *remoteCall) error {
	if err := ctx.Err(); err != nil {
		return err
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
	if err := ctx.Err(); err != nil || r.closed {
		r.mu.Unlock()
		if err == nil {
			err = gearsfs.ErrClosed
		}
		return err
	}
	r.calls.add(c)
	l := r.link
	c.link = l
	r.mu.Unlock()
	if l != nil {
		r.send(c, l)
	}
	return nil
}

func (r *Remote) fullLocked(c *remoteCall) bool {
	return r.calls.count >= remoteCallsMax || r.calls.count > 0 && r.calls.bytes+c.bytes > remoteBytesMax
}

// send encodes a call and starts it on the link that it was given to.
func (r *Remote) send(c *remoteCall, l link) {
	r.mu.Lock()
	if c.finished || c.link != l {
		r.mu.Unlock()
		return
	}
	c.req.SessionMinted, c.req.SessionSalt = uint64(r.session.Minted), r.session.Salt
	if change := c.req.GetChange(); change != nil {
		change.Command.Seq = c.seq
		change.Command.Confirmed, change.Command.Unconfirmed = r.calls.confirm()
		change.Retry = c.sent
	}
	c.sent = true
	body, err := r.encode(c.req)
	r.mu.Unlock()
	if err != nil {
		r.finish(c, nil, err)
		return
	}
	cancel := l.start(body, func(body []byte, err error) { r.answered(c, l, body, err) })
	r.mu.Lock()
	cancelled := c.cancelled
	if c.link == l {
		c.cancel = cancel
	}
	r.mu.Unlock()
	if cancelled {
		cancel()
	}
}

// answered takes what a link says of a call. One that a lost link leaves
// without an answer stays for the next link.
func (r *Remote) answered(c *remoteCall, l link, body []byte, err error) {
	resp := new(wire.Response)
	if err == nil {
		if e := resp.UnmarshalVT(body); e != nil {
			resp = failure(gearsfs.ErrProtocol.Because("an answer can't be decoded: %v", e))
		}
	}
	r.mu.Lock()
	over, current, homeless := c.finished, c.link == l, c.homeless
	r.mu.Unlock()
	code := gearsfs.Code(resp.GetAnswer().GetCode())
	switch {
	case over:
		if err == nil {
			r.undo(c, l, resp)
		}
	case !current: // the one that it is given to now will tell
	case err != nil:
		switch gearsfs.CodeOf(err) {
		case gearsfs.ErrTooBig.Code, gearsfs.ErrOverload.Code, gearsfs.ErrInvalid.Code:
			if !errors.Is(err, transport.ErrLost) {
				r.finish(c, nil, err)
			}
		}
	case code == gearsfs.ErrNoNode.Code: // who passes it on has lost the node, or it is closing
		l.lose()
	case code == gearsfs.ErrSession.Code && c.seq != 0 && homeless:
		r.finish(c, nil, gearsfs.ErrMaybe.Because("the node has forgotten the session: the change may have been made"))
	case code == gearsfs.ErrSession.Code && !homeless: // say hello again, which tells more
		r.mu.Lock()
		c.homeless = true
		r.mu.Unlock()
		l.lose()
	default:
		r.finish(c, resp, nil)
	}
}

// undo takes back what a call did that its caller has given up: a lease would
// stay with the session, and so would an open.
func (r *Remote) undo(c *remoteCall, l link, resp *wire.Response) {
	if errorOf(resp) != nil {
		return
	}
	req := &wire.Request{SessionMinted: c.req.SessionMinted, SessionSalt: c.req.SessionSalt}
	switch {
	case c.opens():
		req.Kind = &wire.Request_Query{Query: &wire.Query{
			Op: &wire.Query_Release{Release: c.req.GetQuery().GetOpen()}, Fast: true,
		}}
	case c.req.GetChange().GetCommand().GetTake().GetLease():
		settle := &wire.Settle{Return: true}
		for _, t := range resp.GetAnswer().GetRecords() {
			settle.Receipts = append(settle.Receipts, &wire.Receipt{Ino: t.Ino, Key: t.Key, Pos: t.Pos, Seq: t.Seq, Fence: t.Fence})
		}
		req.Kind = &wire.Request_Change{Change: &wire.Change{
			Command: &wire.Command{Op: &wire.Command_Settle{Settle: settle}}, Fast: true,
		}}
	default:
		return
	}
	if body, err := r.encode(req); err == nil {
		l.start(body, func([]byte, error) {}) // with the link the session's connection goes, and all of this
	}
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
	c.out <- remoteOutcome{resp, err}
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
		ino := gearsfs.Ino(q.Release)
		if r.opens[ino] > 1 {
			r.opens[ino]--
		} else {
			delete(r.opens, ino)
		}
	}
}

func (r *Remote) outcome(c *remoteCall, o remoteOutcome) (*wire.Response, error) {
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
// outcome, though not for ever.
func (r *Remote) abandon(ctx context.Context, c *remoteCall) (*wire.Response, error) {
	r.mu.Lock()
	c.cancelled = true
	cancel := c.cancel
	if !c.sent || c.seq == 0 && !c.opens() {
		r.finishLocked(c, nil, ctx.Err())
	}
	r.mu.Unlock()
	if cancel != nil {
		cancel()
	}
	patience := time.NewTimer(cancelPatience)
	defer patience.Stop()
	select {
	case o := <-c.out:
		return r.outcomeOr(ctx, c, o)
	case <-patience.C:
		r.finish(c, nil, gearsfs.ErrMaybe.Because("cancelled, and the node did not say whether the change was made"))
		return r.outcomeOr(ctx, c, <-c.out)
	}
}

func (r *Remote) outcomeOr(ctx context.Context, c *remoteCall, o remoteOutcome) (*wire.Response, error) {
	resp, err := r.outcome(c, o)
	if errors.Is(err, gearsfs.ErrCancelled) {
		return nil, ctx.Err()
	}
	return resp, err
}
