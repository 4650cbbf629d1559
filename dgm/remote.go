package dgm

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/transport"
	"github.com/gearsfs/gearsfs/wire"
)

// Times that bound what a Remote waits for.
const (
	cancelPatience  = 3 * time.Second        // for the true outcome of a cancelled change
	goodbyeTimeout  = 500 * time.Millisecond // for the node to hear of the end
	lastingPatience = 10 * time.Second       // for the same in a lasting session, since the node was lost
	giveUpInterval  = 500 * time.Millisecond // between looks for calls that have waited for too long
	drainPatience   = 200 * time.Millisecond // for answers on a link whose session the node does not know
	settledAfter    = time.Second            // a link that lasts so long was of use
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
	// that one of the addresses has failed since. It must not block.
	OnRetry func(error)
	// Far keeps the Remote where it was told to be: else it goes over to the
	// unix socket of a node that it reaches over TCP on its own machine.
	Far bool
	// Lasting, where not nil, makes the session one that another process can go
	// on with should this one die.
	Lasting *Lasting

	// Offer, where not nil, serves requests for the remote OfferName that the
	// node receives, over this connection; they count as OfferAs.
	Offer     *Volume
	OfferName string
	OfferAs   gearsfs.Caller
}

// Remote is the proxy of a volume on other nodes: a session of it, which
// outlives its connections and the leaders that serve it. When a connection is
// lost, or its node does not lead any more, the leader is looked for with
// capped, jittered back-off, and what was in flight is sent again under the same
// session and sequence numbers, so that it happens once. Where the volume has
// forgotten the session the Remote goes on with a new one.
//
// Invariants of what mu guards:
//
//  1. A call is in calls until it is finished, and finished once.
//  2. While there is a link that is not being drained every call in calls is
//     given to it, those first that had another; what another link still says of
//     the call does not count.
//  3. A change's seq is sent again, under the same session, until its answer
//     has come or it is given up; then never, unless it is owed: see leaveLocked.
//     Under another session only where every attempt so far was refused.
//  4. A caller gets its outcome only when nothing that was lent to a link is in
//     use any more.
type Remote struct {
	api
	opts      RemoteOptions
	addrs     string
	route     route
	introduce func(*wire.Hello) // says more in each hello; may be nil
	callsMax  int
	far       bool // does not look for a nearer link; of who connects

	ctx     context.Context // ends with Close
	stop    context.CancelFunc
	stopped chan struct{}  // run has returned
	owned   sync.WaitGroup // what else ends with ctx
	outs    sync.Pool      // of chan remoteOutcome

	hellos  atomic.Uint64 // that were said
	newest  atomic.Uint64 // index of the newest answer
	reached atomic.Uint64 // of those, what this process's replica is known to have applied

	mu               sync.Mutex // not held over I/O, nor while a call's done runs
	room             sync.Cond  // signalled when a call ends, broadcast when the Remote closes
	session          gearsfs.SessionID
	spent            gearsfs.SessionID // not to be used again: the volume refuses it
	noted            gearsfs.SessionID // what Lasting was told last
	reserved         uint64            // seqs below it are noted to be in use
	link             link              // nil while the node is lost
	first            link              // the next link, while it carries only what is owed
	linked           chan struct{}     // closed when link is set; a new one when it is lost
	drained          bool              // link gets no more calls
	resending        bool              // link gets no new calls yet
	given            int               // changes that link has not answered
	futile           int               // links in a row that answered nothing
	trouble          error             // why there is no link
	linkedAt, lostAt time.Time
	calls            inflight
	opens            map[gearsfs.Ino]uint64
	letGo            lettingGo
	closed           bool
}

var _ Manager = (*Remote)(nil)

// Dial connects to a volume: addrs are the addresses of one of its nodes, or of
// several, separated by commas. It finds the one that leads by itself and waits
// at most 5 s. Errors: gearsfs.ErrNoNode, ErrVersion, ErrProtocol, ErrAccess and
// ErrInvalid for an address that is none. To go on with a Lasting session it
// waits for nothing: calls do.
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

// newRemote makes a Remote that is linked.
func newRemote(ctx context.Context, opts RemoteOptions, route route) (*Remote, error) {
	r := makeRemote(opts, route)
	if !r.session.IsZero() { // it has been there, and is waited for as if it were lost
		go r.run(nil)
		return r, nil
	}
	first, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	l, err := r.connect(first, &search{tries: dialTries})
	if err != nil {
		r.stop() // what is still being closed has timeouts
		if ctx.Err() == nil && first.Err() != nil {
			err = gearsfs.ErrNoNode.Because("no answer within %v: %v", dialTimeout, err)
		}
		return nil, err
	}
	go r.run(l)
	return r, nil
}

// makeRemote makes a Remote that has no link yet; run is to be started.
func makeRemote(opts RemoteOptions, route route) *Remote {
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
		opts: opts, route: route, callsMax: remoteCallsMax, far: opts.Far, stopped: make(chan struct{}),
		linked: make(chan struct{}), opens: make(map[gearsfs.Ino]uint64), lostAt: time.Now(),
	}
	r.outs.New = func() any { return make(chan remoteOutcome, 1) }
	r.calls.nextSeq = 1
	if opts.Lasting != nil {
		r.inherit(opts.Lasting)
	}
	r.room.L = &r.mu
	r.api = api{cluster{r}}
	r.ctx, r.stop = context.WithCancel(context.Background())
	return r
}

// Session implements Manager.
func (r *Remote) Session() gearsfs.SessionID {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.session
}

// connect makes a link on which the session has been welcomed.
func (r *Remote) connect(ctx context.Context, s *search) (link, error) {
	s.greet, s.part, s.owned = r.hello, r.depart, &r.owned
	for {
		l, resp, err := r.route.connect(ctx, s)
		if err != nil {
			return nil, err
		}
		r.route.told(resp)
		r.noteIndex(l, resp)
		r.mu.Lock()
		r.session = sessionID(resp.Welcome.SessionMinted, resp.Welcome.SessionSalt)
		r.letGo.heard = resp.Welcome.LetsGo
		r.noteSessionLocked()
		r.mu.Unlock()
		if l = r.nearer(ctx, l, resp.Welcome); l != nil {
			return l, nil
		}
	}
}

// roundTrip is one request on a link. The response comes also with the error
// that it carries.
func roundTrip(ctx context.Context, l link, req *wire.Request) (*wire.Response, error) {
	out := make(chan *wire.Response, 1)
	c := l.start(req, func(resp *wire.Response) { out <- resp })
	select {
	case resp := <-out:
		if resp == nil {
			return nil, fmt.Errorf("%w: %w", transport.ErrLost, whyLost(l))
		}
		return resp, errorOf(resp)
	case <-ctx.Done():
		if c != nil {
			c.cancel(gearsfs.ErrCancelled)
		}
		return nil, ctx.Err()
	}
}

func whyLost(l link) error {
	if err := l.why(); err != nil {
		return err
	}
	return gearsfs.ErrNoNode.Because("the connection is lost")
}

// hello attaches the session to a link, asking for a new one where there is
// none or the volume has forgotten it, and says what is open.
func (r *Remote) hello(ctx context.Context, l link) (*wire.Response, error) {
	r.mu.Lock()
	id, spent := r.session, r.spent
	r.mu.Unlock()
	if !id.IsZero() && id == spent {
		id = r.renew(id)
	}
	resp, err := roundTrip(ctx, l, r.helloAs(id))
	if errors.Is(err, gearsfs.ErrSession) && !id.IsZero() {
		resp, err = roundTrip(ctx, l, r.helloAs(r.renew(id)))
	}
	switch {
	case err == nil && resp.Welcome == nil:
		err = gearsfs.ErrProtocol
	case errors.Is(err, gearsfs.ErrNotLeader) && resp.GetLeader() == "":
		err = gearsfs.ErrNotLeader.Because("no node leads the volume at present")
	}
	return resp, err
}

// depart tells a link that is not used that its client lives: without that the
// end of a connection to a unix socket ends the session.
func (r *Remote) depart(l link) {
	if id := r.Session(); !id.IsZero() {
		l.start(&wire.Request{
			SessionMinted: uint64(id.Minted), SessionSalt: id.Salt,
			Kind: &wire.Request_Goodbye{Goodbye: &wire.Goodbye{Departed: true}},
		}, func(*wire.Response) {})
	}
}

func (r *Remote) helloAs(id gearsfs.SessionID) *wire.Request {
	h := &wire.Hello{
		SessionMinted: uint64(id.Minted), SessionSalt: id.Salt,
		Host: r.opts.Client.Host, Pid: uint32(r.opts.Client.PID), Process: r.opts.Client.Process,
		Offer: r.opts.OfferName, Attempt: r.hellos.Add(1), Lasting: r.opts.Lasting != nil,
	}
	if r.opts.ClaimCaller {
		h.ClaimUid, h.ClaimGids = &r.opts.Client.Caller.UID, r.opts.Client.Caller.GIDs
	}
	r.mu.Lock()
	for ino, n := range r.opens {
		h.Opens = append(h.Opens, uint64(ino), n)
	}
	r.letGo.inos = nil // they are not among these
	r.mu.Unlock()
	if r.introduce != nil {
		r.introduce(h)
	}
	return &wire.Request{Kind: &wire.Request_Hello{Hello: h}}
}

// renew gives up a session that the volume has forgotten, and with it its
// leases, and returns the one to go on with. Changes that were sent under it
// may have been made, unless each attempt was refused: these, queries, and what
// was never sent go on under the next one.
func (r *Remote) renew(id gearsfs.SessionID) gearsfs.SessionID {
	r.mu.Lock()
	if r.session != id { // another attempt has found out
		defer r.mu.Unlock()
		return r.session
	}
	r.session, r.spent = gearsfs.SessionID{}, gearsfs.SessionID{}
	r.calls.told = 0
	var over []*remoteCall
	for _, c := range r.calls.all() {
		c.refused, c.sent = 0, false
		if c.maybe && c.seq != 0 {
			over = append(over, c)
		}
	}
	r.mu.Unlock()
	for _, c := range over {
		r.finish(c, nil, gearsfs.ErrMaybe.Because("the node has forgotten the session: the change may have been made"))
	}
	return gearsfs.SessionID{}
}

// run keeps the Remote linked until it is closed, or can't be linked ever again.
// l is its first link, nil where it has none yet.
func (r *Remote) run(l link) {
	defer close(r.stopped)
	defer r.end()
	for {
		if l == nil {
			if l = r.reconnect(); l == nil {
				return
			}
		}
		r.settleOwed(l)
		r.attach(l)
		select {
		case <-l.done():
		case <-r.ctx.Done():
		}
		r.detach(l)
		l = nil
	}
}

// end ends what has no answer when no link will be made any more.
func (r *Remote) end() {
	r.stop()
	r.mu.Lock()
	r.closed = true
	r.room.Broadcast()
	calls := r.calls.all()
	r.mu.Unlock()
	for _, c := range calls {
		err := gearsfs.ErrClosed
		if c.seq != 0 && c.maybe {
			err = gearsfs.ErrMaybe.Because("closed before the node answered: the change may have been made")
		}
		r.finish(c, nil, err)
	}
	r.owned.Wait()
}

// reconnect tries until a link is made; nil where none will ever be.
func (r *Remote) reconnect() link {
	r.mu.Lock()
	futile, since := r.futile, time.Since(r.lostAt)
	r.mu.Unlock()
	ctx, cancel := context.WithCancel(r.ctx)
	defer cancel()
	r.owned.Go(func() { r.limitPatience(ctx, r.opts.GiveUp-since) })
	if futile > 0 {
		select {
		case <-time.After(backoff(futile)):
		case <-r.ctx.Done():
		}
	}
	l, err := r.connect(r.ctx, &search{failed: r.failed})
	if err != nil {
		return nil
	}
	return l
}

// limitPatience gives up calls that wait for a link, first after a while and
// then whenever another has waited as long, until ctx ends.
func (r *Remote) limitPatience(ctx context.Context, after time.Duration) {
	for {
		select {
		case <-time.After(after):
			r.giveUp()
			after = giveUpInterval
		case <-ctx.Done():
			return
		}
	}
}

// failed notes why there is no link.
func (r *Remote) failed(err error) {
	if r.ctx.Err() != nil {
		return
	}
	r.mu.Lock()
	r.trouble = err
	r.mu.Unlock()
	if r.opts.OnRetry != nil {
		r.opts.OnRetry(err)
	}
}

// attach puts a link into use and sends what waits for one, before what is new: a
// put that is sent again must not find that a later one has passed it.
func (r *Remote) attach(l link) {
	r.mu.Lock()
	r.link, r.drained, r.futile = l, false, r.futile+1
	r.linkedAt = time.Now()
	close(r.linked)
	r.resending = true
	r.sendWaitingLocked(l)
	r.resending = false
	if !r.drained {
		r.sendWaitingLocked(l)
	}
	r.mu.Unlock()
	r.sendLetGo()
}

// sendWaitingLocked gives a link what has none, and lets mu go while it sends.
func (r *Remote) sendWaitingLocked(l link) {
	var send []sending
	for _, c := range r.calls.all() {
		if c.link == nil {
			send = append(send, sending{c, r.giveLocked(c, l)})
		}
	}
	r.mu.Unlock()
	for _, s := range send {
		r.send(s.c, l, s.attempt)
	}
	r.mu.Lock()
}

func (r *Remote) detach(l link) {
	l.close()
	r.mu.Lock()
	r.link, r.given = nil, 0
	r.linked = make(chan struct{})
	now := time.Now()
	if now.Sub(r.linkedAt) > settledAfter {
		r.futile = 0
	}
	r.lostAt, r.trouble = now, whyLost(l)
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
func (r *Remote) giveUp() {
	r.mu.Lock()
	var over []*remoteCall
	if r.link == nil && time.Since(r.lostAt) >= r.opts.GiveUp {
		over = slices.DeleteFunc(r.calls.all(), func(c *remoteCall) bool { return c.patient })
	}
	r.mu.Unlock()
	for _, c := range over {
		r.finish(c, nil, r.unanswered(c))
	}
}

// unanswered is the error of a call whose answer will not come.
func (r *Remote) unanswered(c *remoteCall) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c.maybe && c.seq != 0 {
		return gearsfs.ErrMaybe.Because("the node was lost before it answered: the change may have been made (%v)", r.trouble)
	}
	return gearsfs.ErrNoNode.Because("%v", r.trouble)
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
	return nil
}

// goodbye has the node end the session, which ends what waits there, and waits
// for the answers of what is in flight. It is patient with this process's own
// volume; elsewhere for goodbyeTimeout: the node finds out by the connection then.
func (r *Remote) goodbye(l link, id gearsfs.SessionID) {
	ctx := r.ctx
	if !l.lends() {
		limited, cancel := context.WithTimeout(ctx, goodbyeTimeout)
		defer cancel()
		ctx = limited
	}
	stopped := context.AfterFunc(ctx, r.wakeAll)
	defer stopped()
	_, err := roundTrip(ctx, l, &wire.Request{
		SessionMinted: uint64(id.Minted), SessionSalt: id.Salt, Kind: &wire.Request_Goodbye{Goodbye: &wire.Goodbye{}},
	})
	if err != nil {
		return
	}
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
