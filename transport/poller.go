package transport

import (
	"errors"
	"io"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// poller reads from the connections that are shared (Config.Shared), or from one
// (Config.OneWay). They are in an epoll instance of its own, which Go's runtime waits
// for as for a socket, or who has the turn does (brisk.go); one goroutine reads once
// from each connection that has something, handles all that came, and leaves their
// Batches only then, so that what many clients ask for at once goes on together and
// wakes others once.
//
// Invariants:
//
//  1. One goroutine has the turn: it alone touches in, again, hungUp and over of
//     the connections, and more. It keeps the turn but for yield, and for the watch
//     (watch.go), which takes it away where a Handler takes long.
//  2. A connection is reported when something comes (edge-triggered), so it is read
//     until a read was not full, and where the peer has ended until that is read:
//     until then it is in more. Each round reads once from each of these, so one
//     that floods gets one read of each round.
//  3. A Batch that may wait says so before; the turn then goes to another goroutine
//     where there are other connections, or when one is added.
//  4. One caller in the process, the lone one, may have a connection to itself: it
//     is claimed only while the turn is at rest, so that no connection is being
//     read or in more, and until it is given back what the turn has of a
//     connection is the lone caller's, and no round reads from it.
//  5. The kernel does not report what comes on the lone connection, but the end of
//     the stream and room to write. Asking for reports again reports what is there
//     then, so what came between the lone caller's last read and that is not missed.
//  6. A connection with a Batch is never claimed, nor is one that is kept.
//  7. epfd is open until all pollReaders have returned.
type poller struct {
	epfd int
	file *os.File // an epoll instance that has epfd in it, unless brisk.apart
	raw  syscall.RawConn

	running sync.WaitGroup // pollReaders
	users   int            // connections; under pollers.mu

	more []*Conn // to be read again; whoever has the turn

	mu    sync.Mutex
	conns map[int32]*Conn // by descriptor
	away  *pollReader     // has the turn, and may be waiting
	spare *pollReader     // waits for the turn; nil where none does
	over  bool            // nobody is to wait for it any more

	// Of the lone caller, see lone.go.
	atRest   bool      // nothing is being read, and more is empty
	lone     *pollSock // is claimed; nil where none is
	loneWait time.Duration
	claims   int       // that have ended
	yielded  time.Time // when lone callers last let others run

	// Of the watch, see watch.go.
	timer    *time.Timer
	period   time.Duration
	rare     int32
	watching bool        // timer is set
	seen     uint64      // state, at the last look
	serving  *pollReader // the turn's: who has made state odd

	brisk  brisk
	serves atomic.Bool // a connection with a Batch was added

	state atomic.Uint64
	unset atomic.Int32

	asked    [1]unix.PollFd // what the lone caller waits for
	patience unix.Timespec  // and for how long still

	calls  atomic.Uint64 // that were begun
	unrest atomic.Int32  // calls that are to end undisturbed before one is alone
}

// What the kernel is to report.
const (
	edgeTriggered = 1 << 31 // syscall.EPOLLET is negative
	wantRead      = syscall.EPOLLIN | syscall.EPOLLRDHUP
	hangUp        = syscall.EPOLLRDHUP | syscall.EPOLLHUP | syscall.EPOLLERR
)

// errEnd is the end of a stream.
var errEnd = io.EOF

// pollers has the process's poller while connections share it.
var pollers struct {
	mu sync.Mutex
	p  *poller
}

// joinPoller returns the process's poller for a connection, which is to call part
// at its end.
func joinPoller() (*poller, error) {
	pollers.mu.Lock()
	defer pollers.mu.Unlock()
	if p := pollers.p; p != nil {
		p.users++
		return p, nil
	}
	p, err := newPoller()
	if err != nil {
		return nil, err
	}
	pollers.p = p
	return p, nil
}

// part ends the poller behind its last connection, and waits for that.
func (p *poller) part() {
	pollers.mu.Lock()
	p.users--
	last := p.users == 0
	if last && pollers.p == p {
		pollers.p = nil
	}
	pollers.mu.Unlock()
	if !last {
		return
	}
	p.mu.Lock()
	p.over = true
	if p.timer != nil {
		p.timer.Stop()
	}
	if p.spare != nil {
		close(p.spare.turn)
		p.spare = nil
	}
	p.mu.Unlock()
	p.file.Close() //nolint:errcheck // it holds nothing
	p.running.Wait()
	syscall.Close(p.epfd) //nolint:errcheck // likewise
}

// newPoller is joinPoller for a connection that nobody else is to read with.
func newPoller() (*poller, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, err
	}
	outer, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	p := &poller{
		epfd: fd, users: 1, conns: make(map[int32]*Conn), atRest: true, loneWait: loneWait,
		period: watchPeriod, rare: rareCalls,
	}
	if err := errors.Join(unix.SetNonblock(outer, true), p.nest(uintptr(outer))); err != nil {
		return nil, errors.Join(err, unix.Close(outer), unix.Close(fd))
	}
	p.file = os.NewFile(uintptr(outer), "epoll")
	if p.raw, err = p.file.SyscallConn(); err != nil {
		return nil, errors.Join(err, p.file.Close(), unix.Close(fd))
	}
	p.running.Go(p.newReader().run)
	return p, nil
}

// want asks the kernel for reports on fd.
func (p *poller) want(fd, op int, events uint32) error {
	return syscall.EpollCtl(p.epfd, op, fd, &syscall.EpollEvent{Events: edgeTriggered | events, Fd: int32(fd)})
}

// watchLocked asks for the reports on s that are wanted now. Those that are due are
// repeated. It does not wait.
func (p *poller) watchLocked(s *pollSock) error {
	var events uint32
	if p.lone != s {
		events |= wantRead
	}
	if s.stuck {
		events |= syscall.EPOLLOUT
	}
	return p.want(s.fd, syscall.EPOLL_CTL_MOD, events)
}

// watchRoom says whether somebody waits for room to write.
func (p *poller) watchRoom(s *pollSock, stuck bool) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	s.stuck = stuck
	return p.watchLocked(s)
}

// add has c read from. What has come before is reported, too.
func (p *poller) add(c *Conn) error {
	p.mu.Lock()
	p.conns[int32(c.polled.fd)] = c
	if c.batcher != nil {
		p.serves.Store(true)
	}
	if r := p.away; r != nil {
		p.away = nil
		p.passLocked(r)
	}
	if len(p.conns) > 1 && !p.watching {
		p.setTimerLocked() // a Handler may be under way
	}
	p.mu.Unlock()
	err := p.want(c.polled.fd, syscall.EPOLL_CTL_ADD, wantRead)
	if err != nil {
		p.forget(c)
	}
	return err
}

// remove ends what add began, once c has ended.
func (p *poller) remove(c *Conn) {
	p.forget(c)
	p.want(c.polled.fd, syscall.EPOLL_CTL_DEL, 0) //nolint:errcheck // it goes with the descriptor
	c.polled.leave()
	p.part()
}

func (p *poller) forget(c *Conn) {
	p.mu.Lock()
	delete(p.conns, int32(c.polled.fd))
	p.mu.Unlock()
}

// passLocked gives r's turn to another.
func (p *poller) passLocked(r *pollReader) {
	r.gone = true
	if s := p.spare; s != nil {
		p.spare = nil
		s.gone = false
		s.turn <- struct{}{}
		return
	}
	p.running.Go(p.newReader().run)
}

// pollReader is a goroutine of a poller.
type pollReader struct {
	p       *poller
	gone    bool          // under p.mu: the turn
	turn    chan struct{} // of capacity 1: it is there
	events  []syscall.EpollEvent
	n       int // of events
	ready   []*Conn
	at      int              // in ready: what is being handled
	number  uint64           // the poller's state meanwhile
	batches []Batch          // that were entered
	look    func(fd uintptr) // poll, bound once, as are those that follow
	attempt func(fd uintptr) bool
	yields  func()
}

// eventsMax is how many connections a round begins with at most.
const eventsMax = 256

func (p *poller) newReader() *pollReader {
	r := &pollReader{p: p, turn: make(chan struct{}, 1), events: make([]syscall.EpollEvent, eventsMax)}
	r.look = r.poll
	r.attempt = func(fd uintptr) bool {
		r.poll(fd)
		return r.n > 0
	}
	r.yields = r.yield
	return r
}

// run reads until the poller ends, or its turn is gone and another waits for the
// next one.
func (r *pollReader) run() {
	for r.wait() {
		r.gather()
		for i := range r.ready {
			if !r.serve(i) {
				break
			}
		}
		clear(r.ready)
		if r.leave() {
			continue
		}
		r.p.mu.Lock()
		enough := r.p.spare != nil || r.p.over
		if !enough {
			r.p.spare = r
		}
		r.p.mu.Unlock()
		if enough {
			return
		}
		if _, ok := <-r.turn; !ok {
			return
		}
	}
}

// wait returns true when there is something to do, and false when the poller has
// ended. Nothing that comes after the look is missed: raw.Read forgets only what
// was reported before it.
func (r *pollReader) wait() bool {
	if len(r.p.more) > 0 {
		return r.p.raw.Control(r.look) == nil
	}
	if r.p.serves.Load() {
		return r.waitBrisk()
	}
	return r.p.raw.Read(r.attempt) == nil
}

// poll asks the kernel, without waiting and so without telling the scheduler. What
// raw has is the instance around.
func (r *pollReader) poll(uintptr) {
	for {
		n, _, errno := syscall.RawSyscall6(syscall.SYS_EPOLL_PWAIT, uintptr(r.p.epfd),
			uintptr(unsafe.Pointer(unsafe.SliceData(r.events))), uintptr(len(r.events)), 0, 0, 0)
		if errno != syscall.EINTR {
			r.n = int(n)
			if errno != 0 {
				r.n = 0
			}
			return
		}
	}
}

// gather lists the connections to be read, in a round of their own those first
// that waited for it.
func (r *pollReader) gather() {
	r.ready, r.p.more = append(r.ready[:0], r.p.more...), r.p.more[:0]
	r.p.mu.Lock()
	defer r.p.mu.Unlock()
	r.p.atRest = false
	for _, e := range r.events[:r.n] {
		c := r.p.conns[e.Fd]
		if c == nil {
			continue // it has ended
		}
		if e.Events&(syscall.EPOLLOUT|hangUp) != 0 {
			c.polled.wakeWriter()
		}
		if c.polled == r.p.lone || c.kept {
			continue // it is reported again
		}
		c.hungUp = c.hungUp || e.Events&hangUp != 0
		if !c.again && !c.over && e.Events&^syscall.EPOLLOUT != 0 {
			c.again = true
			r.ready = append(r.ready, c)
		}
	}
}

// serve reads from ready[i] once and handles what came. It tells whether r still has
// the turn; else what follows in ready is another's.
func (r *pollReader) serve(i int) bool {
	c := r.ready[i]
	c.again = false
	if b := c.batchOf(); b != nil && !slices.Contains(r.batches, b) {
		b.Enter()
		r.batches = append(r.batches, b)
	}
	err := c.fetch()
	if err == nil {
		r.begin(i)
		err = c.handleFetched()
		if !r.finish() {
			r.p.giveUp(c, err)
			return false
		}
	}
	switch {
	case err == syscall.EAGAIN:
	case err != nil:
		c.over = true
		go c.end(err) // Done is closed behind it
	case c.polled.full || c.hungUp:
		c.again = true
		r.p.more = append(r.p.more, c)
	}
	return true
}

// leave leaves the batches, and reports whether the turn is still there.
func (r *pollReader) leave() bool {
	for _, b := range r.batches {
		b.LeaveYielding(r.yields)
	}
	clear(r.batches)
	r.batches = r.batches[:0]
	r.p.mu.Lock()
	defer r.p.mu.Unlock()
	if r.p.away == r {
		r.p.away = nil
	}
	if !r.gone {
		r.p.atRest = len(r.p.more) == 0
	}
	return !r.gone
}

// yield gives the turn away where the caller's wait would hold up others.
func (r *pollReader) yield() {
	p := r.p
	p.mu.Lock()
	defer p.mu.Unlock()
	if !r.gone {
		p.atRest = len(p.more) == 0
	}
	switch {
	case r.gone:
	case len(p.conns) > 1:
		p.away = nil
		p.passLocked(r)
	default:
		p.away = r
	}
}
