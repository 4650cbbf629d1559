package dgm

import (
	"context"
	"crypto/tls"
	"errors"
	"math/rand/v2"
	"os"
	"sync"
	"time"

	"github.com/gearsfs/gearsfs/gears"
	"github.com/gearsfs/gearsfs/transport"
	"github.com/gearsfs/gearsfs/wire"
)

// Times that bound what a Remote waits for.
const (
	dialTimeout    = 5 * time.Second        // to reach any of the addresses
	backoffFirst   = 20 * time.Millisecond  // before a lost connection is made again
	backoffMax     = 2 * time.Second        // doubled up to here, jittered
	cancelPatience = 3 * time.Second        // for the true outcome of a cancelled change
	goodbyeTimeout = 500 * time.Millisecond // for the node to hear of the end
)

// remoteCallsMax and remoteBytesMax bound what a Remote has in flight; further
// calls wait.
const (
	remoteCallsMax = 4096
	remoteBytesMax = 48 << 20
)

// RemoteOptions say who a Remote is.
type RemoteOptions struct {
	// Client is what the node shows of it; Host, PID and Process are filled in
	// where they are empty. Its Caller is only a claim, believed over TLS or by
	// a node that runs with --insecure; ClaimCaller says to make it.
	Client      Client
	ClaimCaller bool
	TLS         *tls.Config
	// GiveUp is how long calls wait for a lost node before they fail; 0 is
	// gears.SessionTTL. The connection is tried again nevertheless.
	GiveUp time.Duration
	// OnRetry, where not nil, is told when the connection is lost and each time
	// that it can't be made again. It must not block.
	OnRetry func(error)

	// Offer, where not nil, serves requests for the remote OfferName that the
	// node receives, over this connection; they count as OfferAs.
	Offer     *Volume
	OfferName string
	OfferAs   gears.Caller
}

// Remote is the proxy of a volume on another node: a session there, which
// outlives its connections. When one is lost it is made again with capped,
// jittered back-off, and what was in flight is sent again under the same
// session and sequence numbers, so that it happens once.
type Remote struct {
	api
	opts  RemoteOptions
	addrs string
	route route

	ctx     context.Context // ends with Close
	stop    context.CancelFunc
	stopped chan struct{} // run has returned

	mu      sync.Mutex // not held over I/O, nor while a call's done runs
	room    sync.Cond  // signalled when a call ends or the Remote closes
	session gears.SessionID
	link    link          // nil while the node is lost
	linked  chan struct{} // closed when link is set; a new one when it is lost
	lostAt  time.Time
	lostErr error
	nextSeq uint64
	calls   []*remoteCall // in flight, oldest first; by rising seq among changes
	bytes   int
	opens   map[gears.Ino]int
	closed  bool
}

var _ Manager = (*Remote)(nil)

// remoteCall is a request until its answer.
type remoteCall struct {
	req   *wire.Request
	seq   uint64 // of a change; 0 for a query
	bytes int
	out   chan remoteOutcome // of capacity 1

	// Guarded by Remote.mu.
	link      link // that it was sent on last; nil while it waits for one
	sent      bool
	cancelled bool
	finished  bool
	cancel    func()
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

// Dial connects to a node: addrs are its addresses, or those of the nodes of
// one cluster, separated by commas. It waits at most 5 s. Errors:
// gears.ErrNoNode, ErrVersion, ErrProtocol, ErrAccess and ErrInvalid for an
// address that is none.
func Dial(ctx context.Context, addrs string, opts RemoteOptions) (*Remote, error) {
	route, err := newDialRoute(addrs, opts)
	if err != nil {
		return nil, err
	}
	r, err := newRemote(ctx, opts, route)
	if err != nil {
		return nil, err
	}
	r.addrs = addrs
	return r, nil
}

func newRemote(ctx context.Context, opts RemoteOptions, route route) (*Remote, error) {
	if opts.Client.Host == "" {
		opts.Client.Host, _ = os.Hostname() //nolint:errcheck // only shown to people
	}
	if opts.Client.PID == 0 {
		opts.Client.PID = os.Getpid()
	}
	if opts.GiveUp == 0 {
		opts.GiveUp = gears.SessionTTL
	}
	r := &Remote{
		opts: opts, route: route, stopped: make(chan struct{}),
		linked: make(chan struct{}), nextSeq: firstSeq + 1, opens: make(map[gears.Ino]int),
	}
	r.room.L = &r.mu
	r.api = api{r}
	r.ctx, r.stop = context.WithCancel(context.Background())
	first, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	l, err := r.connect(first)
	if err != nil {
		r.stop()
		if ctx.Err() == nil && first.Err() != nil {
			err = gears.ErrNoNode.Because("no answer within %v: %v", dialTimeout, err)
		}
		return nil, err
	}
	go r.run(l)
	return r, nil
}

// Session implements Manager.
func (r *Remote) Session() gears.SessionID {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.session
}

// connect makes a link and says hello on it.
func (r *Remote) connect(ctx context.Context) (link, error) {
	l, err := r.route.connect(ctx)
	if err != nil {
		return nil, err
	}
	resumed, err := r.hello(ctx, l)
	if err == nil && !resumed {
		err = r.reopen(ctx, l)
	}
	if err != nil {
		l.close()
		return nil, err
	}
	return l, nil
}

// exchange is one request on a link that is not in use yet.
func (r *Remote) exchange(ctx context.Context, l link, req *wire.Request) (*wire.Response, error) {
	body, err := r.encode(req)
	if err != nil {
		return nil, err
	}
	type outcome struct {
		body []byte
		err  error
	}
	out := make(chan outcome, 1)
	cancel := l.start(body, func(body []byte, err error) { out <- outcome{body, err} })
	select {
	case o := <-out:
		if o.err != nil {
			return nil, o.err
		}
		resp := new(wire.Response)
		if err := resp.UnmarshalVT(o.body); err != nil {
			return nil, gears.ErrProtocol.Because("an answer can't be decoded: %v", err)
		}
		return resp, errorOf(resp)
	case <-ctx.Done():
		cancel()
		return nil, ctx.Err()
	}
}

func (r *Remote) encode(req *wire.Request) ([]byte, error) {
	req.Remote = r.route.remote()
	body, err := req.MarshalVT()
	if err != nil {
		return nil, gears.ErrInvalid.Because("the request can't be encoded: %v", err)
	}
	return body, nil
}

// hello attaches the session to a link, minting one where there is none.
func (r *Remote) hello(ctx context.Context, l link) (resumed bool, err error) {
	r.mu.Lock()
	id := r.session
	r.mu.Unlock()
	h := &wire.Hello{
		SessionMinted: uint64(id.Minted), SessionSalt: id.Salt,
		Host: r.opts.Client.Host, Pid: uint32(r.opts.Client.PID), Process: r.opts.Client.Process,
		Offer: r.opts.OfferName,
	}
	if r.opts.ClaimCaller {
		h.ClaimUid, h.ClaimGids = &r.opts.Client.Caller.UID, r.opts.Client.Caller.GIDs
	}
	resp, err := r.exchange(ctx, l, &wire.Request{Kind: &wire.Request_Hello{Hello: h}})
	if err != nil {
		return false, err
	}
	w := resp.Welcome
	if w == nil {
		return false, gears.ErrProtocol
	}
	r.mu.Lock()
	r.session = sessionID(w.SessionMinted, w.SessionSalt)
	r.mu.Unlock()
	return w.Resumed || id.IsZero(), nil
}

// reopen tells a node that has lost them of the inodes that are open.
func (r *Remote) reopen(ctx context.Context, l link) error {
	r.mu.Lock()
	var inos []gears.Ino
	for ino, n := range r.opens {
		for range n {
			inos = append(inos, ino)
		}
	}
	id := r.session
	r.mu.Unlock()
	for _, ino := range inos {
		_, err := r.exchange(ctx, l, &wire.Request{
			SessionMinted: uint64(id.Minted), SessionSalt: id.Salt,
			Kind: &wire.Request_Query{Query: &wire.Query{Op: &wire.Query_Open{Open: uint64(ino)}, Fast: true}},
		})
		if err != nil && gears.CodeOf(err) != gears.ErrStale.Code {
			return err
		}
	}
	return nil
}

// run keeps the Remote linked until it is closed.
func (r *Remote) run(l link) {
	defer close(r.stopped)
	for l != nil {
		r.attach(l)
		select {
		case <-l.done():
		case <-r.ctx.Done():
		}
		r.detach(l)
		l = r.reconnect()
	}
}

// reconnect tries until a link is made; nil where the Remote is closed.
func (r *Remote) reconnect() link {
	backoff := backoffFirst
	for r.ctx.Err() == nil {
		ctx, cancel := context.WithTimeout(r.ctx, dialTimeout)
		l, err := r.connect(ctx)
		cancel()
		if err == nil {
			return l
		}
		if r.ctx.Err() != nil {
			break
		}
		if r.opts.OnRetry != nil {
			r.opts.OnRetry(err)
		}
		r.giveUp(err)
		select {
		case <-time.After(backoff/2 + rand.N(backoff)):
		case <-r.ctx.Done():
		}
		backoff = min(2*backoff, backoffMax)
	}
	return nil
}

// attach puts a link into use and sends what waits for one.
func (r *Remote) attach(l link) {
	r.mu.Lock()
	r.link = l
	close(r.linked)
	var send []*remoteCall
	for _, c := range r.calls {
		if c.link == nil {
			c.link = l
			send = append(send, c)
		}
	}
	r.mu.Unlock()
	for _, c := range send {
		r.send(c, l)
	}
}

func (r *Remote) detach(l link) {
	l.close()
	r.mu.Lock()
	r.link = nil
	r.linked = make(chan struct{})
	r.lostAt = time.Now()
	for _, c := range r.calls {
		if c.link == l {
			c.link, c.cancel = nil, nil
		}
	}
	r.mu.Unlock()
	if r.opts.OnRetry != nil && r.ctx.Err() == nil {
		r.opts.OnRetry(gears.ErrNoNode.Because("the connection is lost"))
	}
}

// giveUp fails what has waited for too long.
func (r *Remote) giveUp(err error) {
	r.mu.Lock()
	var over []*remoteCall
	if r.link == nil && time.Since(r.lostAt) >= r.opts.GiveUp {
		over = append(over, r.calls...)
	}
	r.mu.Unlock()
	for _, c := range over {
		r.finish(c, nil, r.unanswered(c, err))
	}
}

// unanswered is the error of a call whose answer will not come.
func (r *Remote) unanswered(c *remoteCall, err error) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c.sent && c.seq != 0 {
		return gears.ErrMaybe.Because("the node was lost before it answered: the change may have been made (%v)", err)
	}
	return gears.ErrNoNode.Because("%v", err)
}

// linkNow waits for a link.
func (r *Remote) linkNow(ctx context.Context) (link, error) {
	for {
		r.mu.Lock()
		l, linked, closed := r.link, r.linked, r.closed
		r.mu.Unlock()
		switch {
		case closed:
			return nil, gears.ErrClosed
		case l != nil:
			return l, nil
		}
		select {
		case <-linked:
		case <-ctx.Done():
			return nil, gears.ErrNoNode.Because("not connected")
		case <-r.ctx.Done():
			return nil, gears.ErrClosed
		}
	}
}

// Close implements Manager.
func (r *Remote) Close() error {
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		<-r.stopped
		return nil
	}
	r.closed = true
	l, calls := r.link, append([]*remoteCall(nil), r.calls...)
	r.room.Broadcast()
	id := r.session
	r.mu.Unlock()
	for _, c := range calls {
		r.finish(c, nil, gears.ErrClosed)
	}
	var err error
	if l != nil {
		ctx, cancel := context.WithTimeout(r.ctx, goodbyeTimeout)
		_, err = r.exchange(ctx, l, &wire.Request{
			SessionMinted: uint64(id.Minted), SessionSalt: id.Salt, Kind: &wire.Request_Goodbye{Goodbye: &wire.Goodbye{}},
		})
		cancel()
		if err != nil { // the node finds out by the connection
			err = nil
		}
	}
	r.stop()
	<-r.stopped
	return err
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
		stop := context.AfterFunc(ctx, func() {
			r.mu.Lock()
			r.room.Broadcast()
			r.mu.Unlock()
		})
		for r.fullLocked(c) && ctx.Err() == nil && !r.closed {
			r.room.Wait()
		}
		stop()
	}
	if err := ctx.Err(); err != nil || r.closed {
		r.mu.Unlock()
		if err == nil {
			err = gears.ErrClosed
		}
		return err
	}
	if change := c.req.GetChange(); change != nil {
		c.seq = r.nextSeq
		r.nextSeq++
	}
	r.calls = append(r.calls, c)
	r.bytes += c.bytes
	l := r.link
	c.link = l
	r.mu.Unlock()
	if l != nil {
		r.send(c, l)
	}
	return nil
}

func (r *Remote) fullLocked(c *remoteCall) bool {
	return len(r.calls) >= remoteCallsMax || len(r.calls) > 0 && r.bytes+c.bytes > remoteBytesMax
}

// send encodes a call and starts it on the link that it was given.
func (r *Remote) send(c *remoteCall, l link) {
	r.mu.Lock()
	if c.finished {
		r.mu.Unlock()
		return
	}
	c.req.SessionMinted, c.req.SessionSalt = uint64(r.session.Minted), r.session.Salt
	if change := c.req.GetChange(); change != nil {
		change.Command.Seq, change.Command.Confirmed = c.seq, r.confirmedLocked()
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
	c.cancel = cancel
	cancelled := c.cancelled
	r.mu.Unlock()
	if cancelled {
		cancel()
	}
}

// confirmedLocked is the seq below which every answer has arrived.
func (r *Remote) confirmedLocked() uint64 {
	for _, c := range r.calls {
		if c.seq != 0 {
			return c.seq
		}
	}
	return r.nextSeq
}

// answered takes what a link says of a call. One that a lost link leaves
// without an answer stays for the next link.
func (r *Remote) answered(c *remoteCall, l link, body []byte, err error) {
	if err != nil {
		switch code := gears.CodeOf(err); {
		case errors.Is(err, transport.ErrLost):
		case code == gears.ErrTooBig.Code, code == gears.ErrOverload.Code, code == gears.ErrInvalid.Code:
			r.finish(c, nil, err)
		}
		return
	}
	resp := new(wire.Response)
	if err := resp.UnmarshalVT(body); err != nil {
		r.finish(c, nil, gears.ErrProtocol.Because("an answer can't be decoded: %v", err))
		return
	}
	if resp.GetAnswer().GetCode() == uint32(gears.ErrNoNode.Code) {
		l.lose() // who passes it on has lost the node
		return
	}
	r.finish(c, resp, nil)
}

// finish ends a call.
func (r *Remote) finish(c *remoteCall, resp *wire.Response, err error) {
	r.mu.Lock()
	if c.finished {
		r.mu.Unlock()
		return
	}
	c.finished = true
	for i, other := range r.calls {
		if other == c {
			r.calls = append(r.calls[:i], r.calls[i+1:]...)
			break
		}
	}
	r.bytes -= c.bytes
	r.countOpenLocked(c, resp)
	r.room.Signal()
	r.mu.Unlock()
	c.out <- remoteOutcome{resp, err}
}

// countOpenLocked notes what is open, for a node that forgets it.
func (r *Remote) countOpenLocked(c *remoteCall, resp *wire.Response) {
	if resp == nil || errorOf(resp) != nil {
		return
	}
	switch q := c.req.GetQuery().GetOp().(type) {
	case *wire.Query_Open:
		r.opens[gears.Ino(q.Open)]++
	case *wire.Query_Release:
		if r.opens[gears.Ino(q.Release)]--; r.opens[gears.Ino(q.Release)] <= 0 {
			delete(r.opens, gears.Ino(q.Release))
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
	cancel, sent := c.cancel, c.sent
	r.mu.Unlock()
	if cancel != nil {
		cancel()
	}
	if !sent || c.seq == 0 && !c.opens() {
		r.finish(c, nil, ctx.Err())
		return r.outcomeOr(ctx, c, <-c.out)
	}
	patience := time.NewTimer(cancelPatience)
	defer patience.Stop()
	select {
	case o := <-c.out:
		return r.outcomeOr(ctx, c, o)
	case <-patience.C:
		r.finish(c, nil, gears.ErrMaybe.Because("cancelled, and the node did not say whether the change was made"))
		return r.outcomeOr(ctx, c, <-c.out)
	}
}

func (r *Remote) outcomeOr(ctx context.Context, c *remoteCall, o remoteOutcome) (*wire.Response, error) {
	resp, err := r.outcome(c, o)
	if errors.Is(err, gears.ErrCancelled) {
		return nil, ctx.Err()
	}
	return resp, err
}
