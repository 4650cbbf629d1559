package transport

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/gearsfs/gearsfs"
)

// ErrLost is in the chain of the error of a call that was sent and whose answer
// did not come before the connection ended: the peer may have served it or not.
// And it is in that of a notice for which the connection has ended.
var ErrLost = errors.New("no answer")

// Conn is one end of a connection; both ends are alike, each can start calls
// and serve those of the other. All methods are safe for concurrent use. It
// ends by Close, by the peer's, or when it is lost; whoever made it closes it.
//
// Invariants of what mu guards:
//
//  1. A call that was started is in waiting or in sent or has ended; one that
//     waits has not been put into the queue.
//  2. len(sent) <= callsMax and 0 <= credit <= windowBytes; credit is what the
//     peer still accepts, as it knows or will know.
//  3. Only who set writing touches out; who finds nothing left to write unsets
//     it. So with writing unset and not corked the queue is empty.
//  4. err is set once. From then on nothing is queued but one GOAWAY.
type Conn struct {
	cfg     Config
	sock    net.Conn        // closed to end it all
	nc      net.Conn        // sock, or the TLS over it
	sockRaw syscall.RawConn // of sock, nil where it is no socket
	raw     syscall.RawConn // sockRaw where nc is sock, else nil
	in      *frameReader    // the reading goroutine's
	batch   Batch           // likewise: to be left
	peer    Peer
	theirs  hello
	handler Handler
	notices NoticeHandler // handler, or nil
	batcher Batcher       // likewise

	// Of a connection that a poller reads; what is not polled belongs to its turn.
	polled              *pollSock // nil where the connection has a goroutine of its own
	again, hungUp, over bool      // in more; the peer has ended; it is not read any more
	kept                bool      // under poller.mu: who reads it has lost the turn

	frameBytesMax int // of what is sent
	callsMax      int
	windowBytes   int

	// What keepAlive watches.
	received atomic.Uint64 // bytes
	frames   atomic.Uint64 // that were received
	midFrame atomic.Bool   // a part of a frame is there
	moved    atomic.Bool   // a writer that had to wait got on

	waiters    sync.Pool // of *Pending, for Call
	out        writer
	wake       chan struct{} // tells the flusher that it has become the writer
	quit       chan struct{}
	sockClosed chan struct{}
	done       chan struct{}
	children   sync.WaitGroup // waited for by run; nothing is added after ended

	mu        sync.Mutex
	err       error // why it ended
	ended     bool  // the callbacks of what was in flight are on their way
	going     bool  // GOAWAY was queued
	peerGoing bool  // GOAWAY was received

	queue     []frame // to be written
	writing   bool    // somebody is the writer, until further notice
	corked    bool    // the reading goroutine will write soon
	shut      bool    // the last byte was written
	pongDue   bool
	pong      uint64
	closeOnce bool // sockClosed is closed

	// Bytes that are not written yet, of answers and of notices.
	unread, noticeBytes int

	// Calls of this end.
	nextID       uint64
	sent         map[uint64]*Pending
	waiting      pendingList // for credit
	waitingBytes int
	credit       int // bytes of requests that the peer accepts now

	// Calls of the peer.
	served     map[uint64]*Call
	held       int // bytes of requests in served
	parked     []*Call
	parkServer bool // serveParked runs
	granted    int  // bytes of requests that the peer may still send
	ungranted  int  // bytes that were handed to the handler and not granted again
}

// newConn makes a Conn that says nothing yet.
func newConn(sock net.Conn, cfg Config) *Conn {
	c := &Conn{
		cfg:        cfg,
		sock:       sock,
		nc:         sock,
		in:         newFrameReader(helloBytesMax),
		wake:       make(chan struct{}, 1),
		quit:       make(chan struct{}),
		sockClosed: make(chan struct{}),
		done:       make(chan struct{}),
		sent:       make(map[uint64]*Pending),
		served:     make(map[uint64]*Call),
		granted:    cfg.WindowBytes,
	}
	c.waiters.New = newWaiter
	c.sockRaw = rawConnOf(sock)
	c.raw = c.sockRaw
	c.bindRaw()
	return c
}

// start begins to read. What it starts ends with end, which closes done.
func (c *Conn) start() {
	c.children.Go(c.flusher)
	c.children.Go(c.keepAlive)
	if c.polled == nil {
		go c.run()
		return
	}
	if err := c.polled.poller.add(c); err != nil {
		go c.end(err)
	}
}

// share has the connection read by the process's poller, where the socket and
// both ends allow it, or by one of its own, where that spares wake-ups
// (Config.OneWay). It is called before anybody else knows the connection.
func (c *Conn) share() {
	join := joinPoller
	_, unix := c.sock.(*net.UnixConn)
	switch {
	case c.raw == nil:
		return
	case c.cfg.Shared && c.theirs.features&featureShared != 0:
	case c.cfg.OneWay && unix:
		join = newPoller
	default:
		return
	}
	p, err := join()
	if err != nil {
		return // it is read by a goroutine of its own
	}
	s, err := newPollSock(c.sock, c.raw, p, c.cfg.Unannounced)
	if err != nil {
		p.part()
		return
	}
	c.polled, c.sock, c.nc = s, s, s
	c.raw, c.sockRaw = pollRaw{s}, pollRaw{s}
}

// discard frees a connection that was not started.
func (c *Conn) discard() {
	c.sock.Close() //nolint:errcheck // whoever discards it has an error
	if c.polled != nil {
		c.polled.leave()
		c.polled.poller.part()
	}
}

// Peer tells who is at the other end, as far as it is proved.
func (c *Conn) Peer() Peer { return c.peer }

// Identity is the peer's Config.Identity, unproved. It must not be changed.
func (c *Conn) Identity() []byte { return c.theirs.identity }

// Features is the peer's Config.Features.
func (c *Conn) Features() uint64 { return c.theirs.features &^ featuresOwn }

// Done is closed when the connection has ended and all of its callbacks have
// returned.
func (c *Conn) Done() <-chan struct{} { return c.done }

// Err returns nil while calls can be started, then why not any more:
// gearsfs.ErrClosed after a Close of either end, gearsfs.ErrNoNode where the
// connection was lost, gearsfs.ErrProtocol, gearsfs.ErrOverload, or what the peer
// ended it with.
func (c *Conn) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.startErrorLocked()
}

func (c *Conn) startErrorLocked() error {
	switch {
	case c.err != nil:
		return c.err
	case c.going:
		return gearsfs.ErrClosed.Because("the connection is closed")
	case c.peerGoing:
		return gearsfs.ErrClosed.Because("the peer is closing the connection")
	}
	return nil
}

// Close is Shutdown within Config.CloseTimeout.
func (c *Conn) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), c.cfg.CloseTimeout)
	defer cancel()
	return c.Shutdown(ctx)
}

// Shutdown ends the connection in peace: no call is started from now on, at
// neither end, calls that have not been sent end with gearsfs.ErrClosed, and those
// in flight, both ways, are waited for. When ctx ends before they do the
// connection is cut, and the error is ctx's; a ctx that has ended cuts it at
// once. When Shutdown returns all callbacks have returned and all goroutines are
// gone; so it must not be called by a callback or Handler. It is idempotent.
func (c *Conn) Shutdown(ctx context.Context) error {
	c.mu.Lock()
	c.sayGoawayLocked(gearsfs.ErrClosed.Because("the connection is closed"))
	own := c.claimLocked()
	c.mu.Unlock()
	if own {
		c.handOver()
	}
	select {
	case <-c.done:
		return nil
	case <-ctx.Done():
	}
	c.fail(gearsfs.ErrClosed.Because("the connection was closed"), false)
	<-c.done
	return ctx.Err()
}

// sayGoawayLocked queues GOAWAY, once, and ends with err the calls that were
// never sent and now will not be.
func (c *Conn) sayGoawayLocked(err error) {
	if c.going || c.err != nil {
		return
	}
	c.going = true
	c.queue = append(c.queue, goaway(nil))
	if refused := c.takeWaitingLocked(); len(refused) > 0 {
		c.children.Go(func() {
			for _, p := range refused {
				p.end(nil, err)
			}
		})
	}
}

// drainedLocked tells whether both ends have said GOAWAY and nothing is in
// flight, so that what is queued is all that will ever be written.
func (c *Conn) drainedLocked() bool {
	return c.going && c.peerGoing && len(c.sent) == 0 && len(c.served) == 0 && !c.shut && c.err == nil
}

// run is the reading goroutine of a connection that is not shared.
func (c *Conn) run() {
	err := c.read()
	c.endBatch()
	c.end(err)
}

// end ends the connection when nothing more is read from it.
func (c *Conn) end(err error) {
	if errors.Is(err, gearsfs.ErrProtocol) || errors.Is(err, gearsfs.ErrOverload) {
		c.fail(err, true)
	} else {
		c.fail(c.endOf(err), false)
	}
	c.endCalls()
	<-c.sockClosed
	close(c.quit)
	c.children.Wait()
	if c.polled != nil {
		c.polled.poller.remove(c)
	}
	close(c.done)
}

// endOf tells a peaceful end from a loss.
func (c *Conn) endOf(err error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if errors.Is(err, io.EOF) && c.going && c.peerGoing && len(c.sent) == 0 && len(c.served) == 0 {
		return gearsfs.ErrClosed.Because("the connection is closed")
	}
	if errors.Is(err, net.ErrClosed) {
		return gearsfs.ErrNoNode.Because("the connection was cut") // fail has the true reason
	}
	return lost(err)
}

// read receives frames until the connection ends. Where each message comes
// alone Read costs two system calls for it, of which the second finds nothing.
// Taking a short read for an empty socket instead gained 0 to 10 % of an echo,
// and would miss an end of the stream that comes together with the last bytes.
func (c *Conn) read() error {
	src := io.Reader(c.nc)
	if c.raw != nil && c.cfg.Unannounced {
		src = newSockReader(c.raw)
	}
	for {
		if err := c.handleAll(); err != nil {
			return err
		}
		c.endBatch()
		c.uncork()
		c.midFrame.Store(c.in.midFrame())
		n, err := c.in.fill(src)
		if err != nil {
			return err
		}
		c.received.Add(uint64(n))
		c.cork()
		if c.batch = c.batchOf(); c.batch != nil {
			c.batch.Enter()
		}
	}
}

// readThere reads once from a shared connection and handles what came. The error
// is EAGAIN where nothing had.
func (c *Conn) readThere() error {
	if err := c.fetch(); err != nil {
		return err
	}
	return c.handleFetched()
}

// fetch is the reading of readThere.
func (c *Conn) fetch() error {
	n, err := c.in.fill(c.polled)
	if err != nil {
		return err
	}
	c.received.Add(uint64(n))
	c.cork()
	return nil
}

// handleFetched is what readThere does with what has come.
func (c *Conn) handleFetched() error {
	if err := c.handleAll(); err != nil {
		return err
	}
	c.uncork()
	c.midFrame.Store(c.in.midFrame())
	return nil
}

// handleAll handles the frames that are there.
func (c *Conn) handleAll() error {
	for {
		f, ok, err := c.in.next()
		if err != nil || !ok {
			return err
		}
		c.frames.Add(1)
		if err := c.handle(f); err != nil {
			return err
		}
	}
}

// cork keeps what is queued from now on for one flush by the reading goroutine.
func (c *Conn) cork() {
	c.mu.Lock()
	c.corked = true
	c.mu.Unlock()
}

func (c *Conn) uncork() {
	c.mu.Lock()
	c.corked = false
	own := c.claimLocked()
	c.mu.Unlock()
	if own {
		c.flush()
	}
}

// batchOf is what is told of the calls that are about to be handled, or nil.
func (c *Conn) batchOf() Batch {
	if c.batcher == nil {
		return nil
	}
	return c.batcher.Batch()
}

func (c *Conn) endBatch() {
	if b := c.batch; b != nil {
		c.batch = nil
		b.LeaveYielding(func() {})
	}
}

// handle does what one frame asks for. An error ends the connection.
func (c *Conn) handle(f frame) error {
	switch f.kind {
	case kindRequest:
		return c.handleRequest(f)
	case kindResponse:
		return c.handleAnswer(f.id, f.body, nil)
	case kindFailure:
		code, reason, err := parseError(f.body)
		if err != nil || code == 0 {
			return gearsfs.ErrProtocol.Because("a FAILURE without an error")
		}
		return c.handleAnswer(f.id, nil, gearsfs.FromCode(code, reason))
	case kindCancel:
		c.handleCancel(f.id)
	case kindPing:
		c.mu.Lock()
		c.pongDue, c.pong = true, f.id
		c.mu.Unlock()
	case kindPong:
	case kindWindow:
		return c.handleWindow(f.body)
	case kindGoaway:
		return c.handleGoaway(f.body)
	case kindNotice:
		c.handleNotice(f.body)
	default:
		if f.kind&kindIgnorable == 0 {
			return gearsfs.ErrProtocol.Because("a frame of the unknown kind %d", f.kind)
		}
	}
	return nil
}

// handleWindow takes back credit.
func (c *Conn) handleWindow(body []byte) error {
	if len(body) < 8 {
		return gearsfs.ErrProtocol.Because("a WINDOW of %d bytes", len(body))
	}
	n := binary.BigEndian.Uint64(body)
	c.mu.Lock()
	defer c.mu.Unlock()
	if n > uint64(c.windowBytes-c.credit) {
		return gearsfs.ErrProtocol.Because("a WINDOW grants more than was used")
	}
	c.credit += int(n)
	c.admitLocked()
	return nil
}

func (c *Conn) handleGoaway(body []byte) error {
	if err := goawayError(body); err != nil {
		c.fail(fmt.Errorf("the peer ended the connection: %w", err), false)
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.peerGoing = true
	c.sayGoawayLocked(gearsfs.ErrClosed.Because("the peer is closing the connection"))
	return nil
}

// farewellTimeout bounds how long the reason of an end is tried to be told.
const farewellTimeout = time.Second

// fail ends the connection for err, unless it has ended before; with tell the
// peer is told, if it listens. It does not wait.
func (c *Conn) fail(err error, tell bool) {
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return
	}
	c.err = err
	clear(c.queue)
	c.queue = c.queue[:0]
	if !tell || c.shut {
		c.mu.Unlock()
		c.closeSock()
		return
	}
	c.queue = append(c.queue, goaway(err))
	own := !c.writing
	c.writing = true
	c.mu.Unlock()
	if err := c.nc.SetWriteDeadline(time.Now().Add(farewellTimeout)); err != nil {
		c.closeSock()
	}
	if own {
		c.handOver()
	}
}

// closeSock cuts the connection. What reads or writes returns.
func (c *Conn) closeSock() {
	c.mu.Lock()
	first := !c.closeOnce
	c.closeOnce = true
	c.mu.Unlock()
	if first {
		c.sock.Close() //nolint:errcheck // nothing is left to be lost
		close(c.sockClosed)
	}
}

// endCalls ends everything that was in flight when the connection ended.
func (c *Conn) endCalls() {
	c.mu.Lock()
	c.ended = true
	err := c.err
	waiting := c.takeWaitingLocked()
	sent, served := c.sent, c.served
	c.sent, c.served, c.parked, c.held = nil, nil, nil, 0
	var cancelled []func()
	for _, call := range served {
		if f := call.cancelLocked(); f != nil {
			cancelled = append(cancelled, f)
		}
	}
	c.mu.Unlock()
	for _, p := range sent {
		p.end(nil, fmt.Errorf("%w: %w", ErrLost, err))
	}
	for _, p := range waiting {
		p.end(nil, err)
	}
	for _, f := range cancelled {
		f()
	}
}
