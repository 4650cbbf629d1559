package transport

import (
	"encoding/binary"
	"slices"

	"github.com/gearsfs/gearsfs"
)

// Handler serves the calls of a connection's peer.
type Handler interface {
	// Serve is called for each call in the order in which they were started,
	// never for two at once, on a goroutine that the connection needs to go on:
	// it must not wait. It may reply at once or keep the call and reply later;
	// every call must be replied to once.
	Serve(call *Call)
}

// Batcher is a Handler of which somebody is told which calls and notices came
// together.
type Batcher interface {
	Handler
	// Batch is asked before what came is handed over, for whom to tell; nil is
	// nobody. Batches are compared: connections that are read together enter and
	// leave one that they have in common once.
	Batch() Batch
}

// Batch is told on the goroutine that reads: Enter before what came is handed
// over, LeaveYielding behind that. LeaveYielding may wait if it calls yield
// before, which lets another goroutine read.
type Batch interface {
	Enter()
	LeaveYielding(yield func())
}

// HandlerFunc is a function as a Handler.
type HandlerFunc func(call *Call)

// Serve calls f.
func (f HandlerFunc) Serve(call *Call) { f(call) }

// Call is a call of the peer. Its methods are safe for concurrent use.
type Call struct {
	conn *Conn
	id   uint64
	body []byte
	held int // bytes, also after the handler has let the body go

	memory []byte // that body is a part of, where nothing else is

	// Guarded by conn.mu.
	replied   bool
	cancelled bool
	onCancel  func()
}

// Body is the request. It belongs to the Handler.
func (call *Call) Body() []byte { return call.body }

// Recycle says that nobody will use the body any more, nor anything that shares its
// bytes: the next large call may be read into its memory.
func (call *Call) Recycle() {
	if call.memory != nil {
		call.conn.in.recycle(call.memory)
		call.body, call.memory = nil, nil
	}
}

// Conn is the connection that the call came over.
func (call *Call) Conn() *Conn { return call.conn }

// Reply answers the call and does not wait. Where the connection has ended the
// answer is dropped, likewise a second one. body must not be changed any more.
// An answer that is larger than a frame may be reaches the caller as
// gearsfs.ErrTooBig.
func (call *Call) Reply(body []byte) {
	if c := call.queue(body); c != nil {
		// Who replies may be serving others too: it is not made to write.
		c.handOver()
	}
}

// ReplyAll answers calls as Reply does, each with the body of its place, and
// writes the answers of each connection together, as far as its socket takes
// them at once.
func ReplyAll(calls []*Call, bodies [][]byte) {
	due := make([]*Conn, 0, len(calls))
	for i, call := range calls {
		if c := call.queue(bodies[i]); c != nil {
			due = append(due, c)
		}
	}
	// What the last one asked for has waited longest, where the others' requests woke
	// it: a put is answered behind the take that got its record.
	for _, c := range slices.Backward(due) {
		c.flush()
	}
}

// queue is Reply without the writing: what it returns, where that is not nil, the
// caller has to write.
func (call *Call) queue(body []byte) (due *Conn) {
	c := call.conn
	c.mu.Lock()
	if call.replied || c.err != nil {
		call.replied = true
		c.mu.Unlock()
		return nil
	}
	call.replied = true
	delete(c.served, call.id)
	c.held -= call.held
	if overheadBytes+len(body) <= c.frameBytesMax {
		c.answerLocked(frame{id: call.id, kind: kindResponse, body: body})
	} else {
		c.refuseLocked(call.id, gearsfs.ErrTooBig.Because("an answer of %d bytes, at most %d are possible", len(body), c.frameBytesMax-overheadBytes))
	}
	over := c.unread > c.cfg.UnreadBytesMax
	unread := c.unread
	own := c.claimLocked()
	c.mu.Unlock()
	if over {
		c.fail(gearsfs.ErrOverload.Because("%d bytes of answers were not read", unread), true)
	}
	if own {
		due = c
	}
	return due
}

// OnCancel has f called once the peer cancels the call or the connection ends,
// at once where that has happened; not after Reply. f must not wait. Only the
// last f of a call counts.
func (call *Call) OnCancel(f func()) {
	c := call.conn
	c.mu.Lock()
	now := call.cancelled && !call.replied
	if !now && !call.replied {
		call.onCancel = f
	}
	c.mu.Unlock()
	if now {
		f()
	}
}

// cancelLocked marks the call and returns what is to be called without mu.
func (call *Call) cancelLocked() func() {
	f := call.onCancel
	call.cancelled, call.onCancel = true, nil
	return f
}

func (c *Conn) handleCancel(id uint64) {
	c.mu.Lock()
	var f func()
	if call := c.served[id]; call != nil { // else the answer is on its way
		f = call.cancelLocked()
	}
	c.mu.Unlock()
	if f != nil {
		f()
	}
}

// answerLocked queues an answer.
func (c *Conn) answerLocked(f frame) {
	c.unread += f.bytes()
	c.queue = append(c.queue, f)
}

func (c *Conn) refuseLocked(id uint64, err error) {
	c.answerLocked(frame{id: id, kind: kindFailure, body: appendError(nil, err)})
}

// handleRequest hands a call to the handler, or parks or refuses it.
func (c *Conn) handleRequest(f frame) error {
	n := len(f.body)
	call := &Call{conn: c, id: f.id, body: f.body, memory: c.in.handed, held: n}
	c.mu.Lock()
	switch {
	case c.err != nil:
		c.mu.Unlock()
		return c.err
	case c.served[f.id] != nil:
		c.mu.Unlock()
		return gearsfs.ErrProtocol.Because("two calls in flight have the same id")
	case len(c.served) >= c.cfg.CallsMax || n > c.granted:
		c.mu.Unlock()
		return gearsfs.ErrProtocol.Because("a call beyond the window")
	}
	c.granted -= n
	if len(c.parked) > 0 || c.parkServer || c.unread > c.cfg.UnreadBytesMax/4 {
		c.served[f.id] = call
		c.held += n
		c.parked = append(c.parked, call)
		c.mu.Unlock()
		return nil
	}
	serve := c.acceptLocked(call)
	c.mu.Unlock()
	if serve {
		c.watched()
		c.handler.Serve(call)
	}
	return nil
}

// acceptLocked takes a call in, or refuses it and returns false.
func (c *Conn) acceptLocked(call *Call) bool {
	c.grantLocked(call.held)
	var err error
	switch {
	case c.going:
		err = gearsfs.ErrClosed.Because("the connection is being closed")
	case c.handler == nil:
		err = gearsfs.ErrUnknownOp.Because("calls are not served here")
	case call.held > heldFreeBytes && c.held+call.held > c.cfg.HeldBytesMax:
		err = gearsfs.ErrOverload.Because("requests of %d bytes are being served", c.held)
	}
	if err != nil {
		c.refuseLocked(call.id, err)
		return false
	}
	c.served[call.id] = call
	c.held += call.held
	return true
}

// grantLocked gives the peer credit for n bytes again, in large pieces.
func (c *Conn) grantLocked(n int) {
	c.ungranted += n
	if c.ungranted < c.windowBytes/4 {
		return
	}
	c.granted += c.ungranted
	c.queue = append(c.queue, frame{kind: kindWindow, body: binary.BigEndian.AppendUint64(nil, uint64(c.ungranted))})
	c.ungranted = 0
}

// resumeLocked has parked calls served once the peer reads its answers again.
func (c *Conn) resumeLocked() {
	if len(c.parked) > 0 && !c.parkServer && c.unread <= c.cfg.UnreadBytesMax/8 && c.err == nil {
		c.parkServer = true
		c.children.Go(c.serveParked)
	}
}

// serveParked serves parked calls until none is left, or the peer stops reading
// again. While it runs the reading goroutine parks all further calls.
func (c *Conn) serveParked() {
	for {
		c.mu.Lock()
		if c.err != nil || len(c.parked) == 0 || c.unread > c.cfg.UnreadBytesMax/4 {
			c.parkServer = false
			own := c.claimLocked()
			c.mu.Unlock()
			if own {
				c.handOver()
			}
			return
		}
		call := c.parked[0]
		c.parked[0] = nil
		c.parked = c.parked[1:]
		delete(c.served, call.id)
		c.held -= call.held
		serve := c.acceptLocked(call)
		c.mu.Unlock()
		if serve {
			c.handler.Serve(call)
		}
	}
}
