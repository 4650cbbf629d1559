package dgm

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/transport"
	"github.com/gearsfs/gearsfs/wire"
)

// route is a way to a volume; it makes links.
type route interface {
	// connect makes a link on which the search's greeting has succeeded, and
	// returns the response to that. gearsfs.ErrClosed means that there never will
	// be one any more.
	connect(ctx context.Context, s *search) (link, *wire.Response, error)
	// told is given what a node says of where others are: in a response that it
	// does not lead, or in a welcome.
	told(resp *wire.Response)
}

// link carries requests until it is lost.
type link interface {
	// start sends a request, which is the link's from then on. done is called exactly once, maybe before start
	// returns, and must not block: with nil where the link was lost before the
	// answer came. What start returns, where that is not nil, asks for an end of
	// the wait.
	start(req *wire.Request, done func(*wire.Response)) canceller
	// lends says that requests are passed on as they are, and what they hold is
	// in use until done is called.
	lends() bool
	done() <-chan struct{} // closed when it is lost
	why() error            // it was lost
	lose()                 // makes it lost; for callbacks, waits for nothing
	close()                // makes it lost and waits for its callbacks
}

// waysMax bounds the addresses that are known of one volume's nodes.
const waysMax = 64

// dialRoute dials addresses.
type dialRoute struct {
	given []transport.Addr
	cfg   transport.Config

	mu      sync.Mutex
	last    []transport.Addr // where the last link was, or where the leader is said to be
	learned []transport.Addr // of the volume's other nodes
	volume  []byte           // its id; nil before the first link
}

func newDialRoute(addrs string, opts RemoteOptions) (*dialRoute, error) {
	list, err := transport.ParseAddrs(addrs)
	if err != nil {
		return nil, err
	}
	cfg := transport.Config{TLS: opts.TLS, Unannounced: true, Shared: true}
	if opts.Offer != nil {
		cfg.NewHandler = opts.Offer.newPeer(&opts.OfferAs)
	}
	return &dialRoute{given: list, cfg: cfg}, nil
}

// ways are the addresses to try, the likeliest first.
func (d *dialRoute) ways() []*way {
	d.mu.Lock()
	defer d.mu.Unlock()
	var ways []*way
	for _, list := range [][]transport.Addr{d.last, d.given, d.learned} {
		for _, addr := range list {
			if len(ways) < waysMax && !slices.ContainsFunc(ways, func(w *way) bool { return w.addr == addr }) {
				ways = append(ways, &way{addr: addr, learned: !slices.Contains(d.given, addr)})
			}
		}
	}
	return ways
}

// won notes which way a link was made.
func (d *dialRoute) won(t tried) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.last = []transport.Addr{t.way.addr}
	if id := t.resp.GetWelcome().GetVolumeId(); len(id) > 0 {
		d.volume = id
	}
}

// prefer has an address be the first to be tried for the next link.
func (d *dialRoute) prefer(addr transport.Addr) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.last = []transport.Addr{addr}
}

// foreign says whether a welcome is not that of the volume that it is known to be.
func (d *dialRoute) foreign(resp *wire.Response) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	id := resp.GetWelcome().GetVolumeId()
	return d.volume != nil && len(id) > 0 && !bytes.Equal(id, d.volume)
}

func (d *dialRoute) told(resp *wire.Response) {
	var learned []transport.Addr
	for _, node := range resp.GetWelcome().GetAddrs() {
		if addrs, err := transport.ParseAddrs(node); err == nil { // else it can't be dialled
			learned = append(learned, addrs...)
		}
	}
	leader, _ := transport.ParseAddrs(resp.Leader) //nolint:errcheck // empty where it is not known
	d.mu.Lock()
	defer d.mu.Unlock()
	if learned != nil {
		d.learned = learned
	}
	if leader != nil {
		d.last = leader
	}
}

type connLink struct{ conn *transport.Conn }

func (l connLink) start(req *wire.Request, done func(*wire.Response)) canceller {
	body, err := req.MarshalVT()
	if err != nil {
		done(failure(gearsfs.ErrInvalid.Because("the request can't be encoded: %v", err)))
		return nil
	}
	return pendingCall{l.conn.Start(body, func(body []byte, err error) { done(received(body, err)) })}
}

func (l connLink) lends() bool           { return false }
func (l connLink) done() <-chan struct{} { return l.conn.Done() }
func (l connLink) why() error            { return l.conn.Err() }
func (l connLink) lose()                 { go l.cut() }     // ends with the connection, which has a timeout
func (l connLink) close()                { l.conn.Close() } //nolint:errcheck // always nil

// farewell is how long a node is waited for whose link is lost on purpose: what
// is in flight is asked elsewhere, and the node may not be there at all.
const farewell = 100 * time.Millisecond

func (l connLink) cut() {
	ctx, cancel := context.WithTimeout(context.Background(), farewell)
	defer cancel()
	l.conn.Shutdown(ctx) //nolint:errcheck // the connection is over either way
}

// pendingCall makes a transport's call a canceller.
type pendingCall struct{ *transport.Pending }

func (p pendingCall) cancel(error) { p.Cancel() }

// received is the response to a request as the transport answers it: nil where
// that says nothing of the request.
func received(body []byte, err error) *wire.Response {
	if err != nil {
		if errors.Is(err, transport.ErrLost) {
			return nil
		}
		switch gearsfs.CodeOf(err) {
		case gearsfs.ErrTooBig.Code, gearsfs.ErrOverload.Code, gearsfs.ErrInvalid.Code,
			gearsfs.ErrUnknownOp.Code, gearsfs.ErrCancelled.Code:
			return failure(err)
		}
		return nil
	}
	resp := new(wire.Response)
	if err := resp.UnmarshalVT(body); err != nil {
		return failure(gearsfs.ErrProtocol.Because("an answer can't be decoded: %v", err))
	}
	return resp
}

// current waits for the connection of a Remote that dials.
func (r *Remote) current(ctx context.Context) (*transport.Conn, error) {
	l, err := r.linkNow(ctx)
	if err != nil {
		return nil, err
	}
	c, ok := l.(connLink)
	if !ok {
		return nil, gearsfs.ErrUnsupported.Because("a remote behind a remote")
	}
	return c.conn, nil
}

// lossy is the part of a link that others can lose.
type lossy struct {
	once sync.Once
	lost chan struct{}
}

func newLossy() lossy { return lossy{lost: make(chan struct{})} }

func (l *lossy) done() <-chan struct{} { return l.lost }
func (l *lossy) close()                { l.lose() }
func (l *lossy) lose()                 { l.once.Do(func() { close(l.lost) }) }

// loseWith loses it with another; the goroutine ends then.
func (l *lossy) loseWith(other <-chan struct{}) {
	go func() {
		select {
		case <-other:
			l.lose()
		case <-l.lost:
		}
	}()
}

// viaRoute leads to a remote that a session's node knows by name, and passes
// requests on to: by the link of that session, or, where that is this process's
// own volume, through the volume.
type viaRoute struct {
	parent *Remote
	vol    *Volume // of a Local
	name   string
}

func (viaRoute) told(*wire.Response) {}

func (vr viaRoute) connect(ctx context.Context, s *search) (link, *wire.Response, error) {
	return s.single(ctx, func(ctx context.Context) (link, error) {
		parent, err := vr.parent.linkNow(ctx)
		if err != nil {
			return nil, err
		}
		if parent.lends() {
			l := &volumeLink{vol: vr.vol, name: vr.name, lossy: newLossy()}
			l.loseWith(parent.done())
			return l, nil
		}
		l := &sharedLink{parent: parent, name: vr.name, lossy: newLossy()}
		l.loseWith(parent.done())
		return l, nil
	})
}

// sharedLink is the link of a session, for requests that its node passes on.
type sharedLink struct {
	parent link
	name   string
	lossy
}

func (l *sharedLink) lends() bool { return false } // the parent does not

func (l *sharedLink) why() error {
	if err := l.parent.why(); err != nil {
		return err
	}
	return gearsfs.ErrNoNode.Because("the node has lost the remote")
}

func (l *sharedLink) start(req *wire.Request, done func(*wire.Response)) canceller {
	req.Remote = l.name
	return l.parent.start(req, done)
}

// volumeLink goes from this process's volume to a remote that it knows.
type volumeLink struct {
	vol  *Volume
	name string
	lossy
	mu  sync.Mutex
	err error
}

func (l *volumeLink) lends() bool { return false }

func (l *volumeLink) why() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

func (l *volumeLink) start(req *wire.Request, done func(*wire.Response)) canceller {
	body, err := req.MarshalVT()
	if err != nil {
		done(failure(gearsfs.ErrInvalid.Because("the request can't be encoded: %v", err)))
		return nil
	}
	c := new(lateCancel)
	l.vol.pass(l.name, body, func(resp []byte, err error) {
		if err != nil {
			l.mu.Lock()
			l.err = err
			l.mu.Unlock()
			l.close()
		}
		done(received(resp, err))
	}, c.set)
	return c
}

// lateCancel is a cancel that may be called before it is known what to cancel.
type lateCancel struct {
	mu     sync.Mutex
	called bool
	f      func()
}

func (c *lateCancel) set(f func()) {
	c.mu.Lock()
	c.f = f
	called := c.called
	c.mu.Unlock()
	if called {
		f()
	}
}

func (c *lateCancel) cancel(error) {
	c.mu.Lock()
	f := c.f
	c.called = true
	c.mu.Unlock()
	if f != nil {
		f()
	}
}
