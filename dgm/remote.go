package dgm

import (
	"context"
	"crypto/tls"
	"errors"
	"math/rand/v2"
	"os"
	"sync"
	"time"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/transport"
	"github.com/gearsfs/gearsfs/wire"
)

// Times that bound what a Remote waits for.
const (
	dialTimeout    = 5 * time.Second        // to reach any of the addresses
	dialTries      = 5                      // of Dial, backoffFirst apart
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
	// gearsfs.SessionTTL. The connection is tried again nevertheless.
	GiveUp time.Duration
	// OnRetry, where not nil, is told when the connection is lost and each time
	// that it can't be made again. It must not block.
	OnRetry func(error)

	// Offer, where not nil, serves requests for the remote OfferName that the
	// node receives, over this connection; they count as OfferAs.
	Offer     *Volume
	OfferName string
	OfferAs   gearsfs.Caller
}

// Remote is the proxy of a volume on another node: a session there, which
// outlives its connections. When one is lost it is made again with capped,
// jittered back-off, and what was in flight is sent again under the same
// session and sequence numbers, so that it happens once. Where the node has
// forgotten the session the Remote goes on with a new one.
//
// Invariants of what mu guards:
//
//  1. A call is in calls until it is finished, and finished once.
//  2. While there is a link every call in calls is given to it; what another
//     link still says of the call does not count.
//  3. A change's seq is sent again, under the same session, until its answer
//     has come or it is given up; then never.
type Remote struct {
	api
	opts  RemoteOptions
	addrs string
	route route

	ctx     context.Context // ends with Close
	stop    context.CancelFunc
	stopped chan struct{} // run has returned

	mu      sync.Mutex // not held over I/O, nor while a call's done runs
	room    sync.Cond  // signalled when a call ends, broadcast when the Remote closes
	session gearsfs.SessionID
	link    link          // nil while the node is lost
	linked  chan struct{} // closed when link is set; a new one when it is lost
	lostAt  time.Time
	calls   inflight
	opens   map[gearsfs.Ino]uint64
	closed  bool
}

var _ Manager = (*Remote)(nil)

// Dial connects to a node: addrs are its addresses, or those of the nodes of
// one cluster, separated by commas. It waits at most 5 s. Errors:
// gearsfs.ErrNoNode, ErrVersion, ErrProtocol, ErrAccess and ErrInvalid for an
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
		opts.GiveUp = gearsfs.SessionTTL
	}
	r := &Remote{
		opts: opts, route: route, stopped: make(chan struct{}),
		linked: make(chan struct{}), opens: make(map[gearsfs.Ino]uint64),
	}
	r.calls.nextSeq = 1
	r.room.L = &r.mu
	r.api = api{r}
	r.ctx, r.stop = context.WithCancel(context.Background())
	first, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	l, err := r.connect(first)
	for try := 1; try < dialTries && lost(err) && first.Err() == nil; try++ {
		select {
		case <-time.After(backoffFirst):
		case <-first.Done():
		}
		l, err = r.connect(first)
	}
	if err != nil {
		r.stop()
		if ctx.Err() == nil && first.Err() != nil {
			err = gearsfs.ErrNoNode.Because("no answer within %v: %v", dialTimeout, err)
		}
		return nil, err
	}
	go r.run(l)
	return r, nil
}

// lost says whether an attempt may have failed on the way: then the next may
// not. A peer that is cut off in its hello looks like one that speaks something
// else.
func lost(err error) bool {
	return errors.Is(err, transport.ErrLost) || errors.Is(err, gearsfs.ErrNoNode) || errors.Is(err, gearsfs.ErrProtocol)
}

// Session implements Manager.
func (r *Remote) Session() gearsfs.SessionID {
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
	err = r.hello(ctx, l)
	if errors.Is(err, gearsfs.ErrSession) && r.renew() {
		err = r.hello(ctx, l)
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
			return nil, gearsfs.ErrProtocol.Because("an answer can't be decoded: %v", err)
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
		return nil, gearsfs.ErrInvalid.Because("the request can't be encoded: %v", err)
	}
	return body, nil
}

// hello attaches the session to a link, minting one where there is none, and
// says what is open. gearsfs.ErrSession: the node has forgotten the session.
func (r *Remote) hello(ctx context.Context, l link) error {
	r.mu.Lock()
	id := r.session
	h := &wire.Hello{
		SessionMinted: uint64(id.Minted), SessionSalt: id.Salt,
		Host: r.opts.Client.Host, Pid: uint32(r.opts.Client.PID), Process: r.opts.Client.Process,
		Offer: r.opts.OfferName,
	}
	for ino, n := range r.opens {
		h.Opens = append(h.Opens, uint64(ino), n)
	}
	r.mu.Unlock()
	if r.opts.ClaimCaller {
		h.ClaimUid, h.ClaimGids = &r.opts.Client.Caller.UID, r.opts.Client.Caller.GIDs
	}
	resp, err := r.exchange(ctx, l, &wire.Request{Kind: &wire.Request_Hello{Hello: h}})
	if err != nil {
		return err
	}
	w := resp.Welcome
	if w == nil {
		return gearsfs.ErrProtocol
	}
	r.mu.Lock()
	r.session = sessionID(w.SessionMinted, w.SessionSalt)
	r.mu.Unlock()
	return nil
}

// renew gives up a session that the node has forgotten, and with it its leases.
// Changes that were sent under it may have been made; queries and what was
// never sent go on under the next one. It returns false where there was none.
func (r *Remote) renew() bool {
	r.mu.Lock()
	if r.session.IsZero() {
		r.mu.Unlock()
		return false
	}
	r.session = gearsfs.SessionID{}
	r.calls.told = 0
	var over []*remoteCall
	for _, c := range r.calls.all() {
		if c.sent && c.seq != 0 {
			over = append(over, c)
		}
	}
	r.mu.Unlock()
	for _, c := range over {
		r.finish(c, nil, gearsfs.ErrMaybe.Because("the node has forgotten the session: the change may have been made"))
	}
	return true
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
	for _, c := range r.calls.all() {
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
	for _, c := range r.calls.all() {
		if c.link == l {
			c.link, c.cancel = nil, nil
		}
	}
	r.mu.Unlock()
	if r.opts.OnRetry != nil && r.ctx.Err() == nil {
		r.opts.OnRetry(gearsfs.ErrNoNode.Because("the connection is lost"))
	}
}

// giveUp fails what has waited for too long.
func (r *Remote) giveUp(err error) {
	r.mu.Lock()
	var over []*remoteCall
	if r.link == nil && time.Since(r.lostAt) >= r.opts.GiveUp {
		over = r.calls.all()
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
		return gearsfs.ErrMaybe.Because("the node was lost before it answered: the change may have been made (%v)", err)
	}
	return gearsfs.ErrNoNode.Because("%v", err)
}

// linkNow waits for a link.
func (r *Remote) linkNow(ctx context.Context) (link, error) {
	for {
		r.mu.Lock()
		l, linked, closed := r.link, r.linked, r.closed
		r.mu.Unlock()
		switch {
		case closed:
			return nil, gearsfs.ErrClosed
		case l != nil:
			return l, nil
		}
		select {
		case <-linked:
		case <-ctx.Done():
			return nil, gearsfs.ErrNoNode.Because("not connected")
		case <-r.ctx.Done():
			return nil, gearsfs.ErrClosed
		}
	}
}

// Close implements Manager. What was sent and has no answer when the node has
// ended the session, or can't be reached to do so, ends with gearsfs.ErrMaybe
// where it is a change.
func (r *Remote) Close() error {
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		<-r.stopped
		return nil
	}
	r.closed = true
	l, id := r.link, r.session
	r.room.Broadcast()
	r.mu.Unlock()
	if l != nil {
		r.goodbye(l, id)
	}
	r.stop()
	<-r.stopped
	r.mu.Lock()
	calls := r.calls.all()
	r.mu.Unlock()
	for _, c := range calls {
		err := gearsfs.ErrClosed
		if c.seq != 0 && c.sent {
			err = gearsfs.ErrMaybe.Because("closed before the node answered: the change may have been made")
		}
		r.finish(c, nil, err)
	}
	return nil
}

// goodbye has the node end the session, which ends what waits there, and waits
// for the answers of what is in flight. It is patient for goodbyeTimeout; the
// node finds out by the connection then.
func (r *Remote) goodbye(l link, id gearsfs.SessionID) {
	ctx, cancel := context.WithTimeout(r.ctx, goodbyeTimeout)
	defer cancel()
	_, err := r.exchange(ctx, l, &wire.Request{
		SessionMinted: uint64(id.Minted), SessionSalt: id.Salt, Kind: &wire.Request_Goodbye{Goodbye: &wire.Goodbye{}},
	})
	if err != nil {
		return
	}
	stop := context.AfterFunc(ctx, r.wakeAll)
	defer stop()
	r.mu.Lock()
	defer r.mu.Unlock()
	for r.calls.count > 0 && r.link == l && ctx.Err() == nil {
		r.room.Wait()
	}
}

func (r *Remote) wakeAll() {
	r.mu.Lock()
	r.room.Broadcast()
	r.mu.Unlock()
}
