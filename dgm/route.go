package dgm

import (
	"context"
	"sync"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/transport"
)

// route is a way to a volume; it makes links.
type route interface {
	connect(ctx context.Context) (link, error)
	// remote is what requests name as the one to be passed on to; "" for the
	// node itself.
	remote() string
}

// link carries requests until it is lost.
type link interface {
	start(body []byte, done func([]byte, error)) (cancel func())
	done() <-chan struct{} // closed when it is lost
	lose()                 // makes it lost; for callbacks, waits for nothing
	close()                // makes it lost and waits for its callbacks
}

// dialRoute dials addresses in turn.
type dialRoute struct {
	addrs []transport.Addr
	cfg   transport.Config
}

func newDialRoute(addrs string, opts RemoteOptions) (*dialRoute, error) {
	list, err := transport.ParseAddrs(addrs)
	if err != nil {
		return nil, err
	}
	cfg := transport.Config{TLS: opts.TLS}
	if opts.Offer != nil {
		cfg.NewHandler = opts.Offer.newPeer(&opts.OfferAs)
	}
	return &dialRoute{list, cfg}, nil
}

func (d *dialRoute) remote() string { return "" }

func (d *dialRoute) connect(ctx context.Context) (link, error) {
	var last error
	for _, addr := range d.addrs {
		conn, err := transport.Dial(ctx, addr, d.cfg)
		if err == nil {
			return connLink{conn}, nil
		}
		last = err
	}
	return nil, last
}

type connLink struct{ conn *transport.Conn }

func (l connLink) start(body []byte, done func([]byte, error)) func() {
	return l.conn.Start(body, done).Cancel
}
func (l connLink) done() <-chan struct{} { return l.conn.Done() }
func (l connLink) lose()                 { go l.close() }   // ends with the connection, which has a timeout
func (l connLink) close()                { l.conn.Close() } //nolint:errcheck // always nil

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

func (l *lossy) done() <-chan struct{} { return l.lost }
func (l *lossy) close()                { l.lose() }
func (l *lossy) lose()                 { l.once.Do(func() { close(l.lost) }) }

// remoteRoute goes through the connection of another Remote, whose node passes
// on what names the remote.
type remoteRoute struct {
	parent *Remote
	name   string
}

func (rr remoteRoute) remote() string { return rr.name }

func (rr remoteRoute) connect(ctx context.Context) (link, error) {
	parent, err := rr.parent.linkNow(ctx)
	if err != nil {
		return nil, err
	}
	l := &sharedLink{parent: parent, lossy: lossy{lost: make(chan struct{})}}
	go func() { // ends with the link
		select {
		case <-parent.done():
			l.close()
		case <-l.lost:
		}
	}()
	return l, nil
}

type sharedLink struct {
	parent link
	lossy
}

func (l *sharedLink) start(body []byte, done func([]byte, error)) func() {
	return l.parent.start(body, done)
}

// volumeRoute goes from this process's volume to a remote that it knows.
type volumeRoute struct {
	vol  *Volume
	name string
}

func (vr volumeRoute) remote() string { return "" }

func (vr volumeRoute) connect(context.Context) (link, error) {
	return &volumeLink{vr, lossy{lost: make(chan struct{})}}, nil
}

type volumeLink struct {
	volumeRoute
	lossy
}

func (l *volumeLink) start(body []byte, done func([]byte, error)) func() {
	c := new(lateCancel)
	l.vol.pass(l.name, body, func(resp []byte, err error) {
		if err != nil {
			l.close()
		}
		done(resp, err)
	}, c.set)
	return c.cancel
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

func (c *lateCancel) cancel() {
	c.mu.Lock()
	f := c.f
	c.called = true
	c.mu.Unlock()
	if f != nil {
		f()
	}
}
