package transport

import (
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// pollSock is a socket that a poller waits for, instead of Go's runtime. It is a
// descriptor of its own, since the runtime asks the kernel for more than is wanted
// here: over a unix socket it would be woken each time that the peer has read.
// It never waits but in Write, which is RawConn's.
//
// Invariants:
//
//  1. The descriptor is closed when refs falls to 0, and never raised from there:
//     so nobody uses a number that has become another file's. The connection has
//     one reference until its end, whoever is in a system call has another.
//  2. After Close nobody begins a system call, and those that wait return.
type pollSock struct {
	net.Conn // closed; knows the addresses
	fd       int
	poller   *poller
	raw      bool // as Config.Unannounced says

	refs     atomic.Int64
	closed   atomic.Bool
	once     sync.Once
	cut      chan struct{} // closed by Close
	writable chan struct{} // of capacity 1: look again
	full     bool          // the reader's: the last Read may have left something
	stuck    bool          // under poller.mu: somebody waits for writable
}

// newPollSock takes a socket from Go's runtime. An error leaves it as it was.
func newPollSock(sock net.Conn, raw syscall.RawConn, p *poller, unannounced bool) (*pollSock, error) {
	fd, err := -1, error(nil)
	cerr := raw.Control(func(old uintptr) { fd, err = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0) })
	if cerr != nil {
		return nil, cerr
	}
	if err != nil {
		return nil, err
	}
	sock.Close() //nolint:errcheck // fd is the socket now
	s := &pollSock{
		Conn: sock, fd: fd, poller: p, raw: unannounced, cut: make(chan struct{}), writable: make(chan struct{}, 1),
	}
	s.refs.Store(1)
	return s, nil
}

// enter lets the caller use the descriptor until it calls leave.
func (s *pollSock) enter() bool {
	for !s.closed.Load() {
		n := s.refs.Load()
		if n == 0 {
			return false
		}
		if s.refs.CompareAndSwap(n, n+1) {
			return true
		}
	}
	return false
}

// leave gives a reference back.
func (s *pollSock) leave() {
	if s.refs.Add(-1) == 0 {
		syscall.Close(s.fd) //nolint:errcheck // what was to be lost is lost
	}
}

// Close implements net.Conn. The poller hears of it from the kernel.
func (s *pollSock) Close() error {
	s.once.Do(func() {
		entered := s.enter()
		s.closed.Store(true)
		close(s.cut)
		if entered {
			syscall.Shutdown(s.fd, syscall.SHUT_RDWR) //nolint:errcheck // the peer has done so
			s.leave()
		}
	})
	return nil
}

// CloseWrite ends the stream to the peer.
func (s *pollSock) CloseWrite() error {
	if !s.enter() {
		return net.ErrClosed
	}
	defer s.leave()
	return syscall.Shutdown(s.fd, syscall.SHUT_WR)
}

// SetWriteDeadline implements net.Conn, for a connection that is to end by t.
func (s *pollSock) SetWriteDeadline(t time.Time) error {
	time.AfterFunc(time.Until(t), func() { s.Close() }) //nolint:errcheck // always nil
	return nil
}

// Write implements net.Conn for the little that is written before the poller knows
// the socket, which has room for it.
func (s *pollSock) Write(b []byte) (int, error) {
	if !s.enter() {
		return 0, net.ErrClosed
	}
	defer s.leave()
	return announcedWrite(uintptr(s.fd), b)
}

// Read implements io.Reader but for that it does not wait: the error is EAGAIN
// where nothing is there.
func (s *pollSock) Read(b []byte) (int, error) {
	if !s.enter() {
		return 0, net.ErrClosed
	}
	defer s.leave()
	b = b[:min(len(b), rawBytesMax)]
	n, err := s.read(b)
	s.full = n == len(b)
	if n == 0 && err == nil {
		return 0, errEnd
	}
	return n, err
}

func (s *pollSock) read(b []byte) (int, error) {
	if s.raw {
		return rawCall(syscall.SYS_READ, uintptr(s.fd), b)
	}
	for {
		n, err := syscall.Read(s.fd, b)
		if err != syscall.EINTR {
			return max(n, 0), err
		}
	}
}

// pollRaw is a pollSock as a RawConn.
type pollRaw struct{ *pollSock }

// Control implements syscall.RawConn.
func (r pollRaw) Control(f func(fd uintptr)) error {
	if !r.enter() {
		return net.ErrClosed
	}
	defer r.leave()
	f(uintptr(r.fd))
	return nil
}

// Read implements syscall.RawConn: who wants to wait reads elsewhere.
func (r pollRaw) Read(func(fd uintptr) bool) error { return os.ErrInvalid }

// Write implements syscall.RawConn. Only while it has to wait is the poller told
// of room in the socket.
func (r pollRaw) Write(f func(fd uintptr) bool) error {
	if !r.enter() {
		return net.ErrClosed
	}
	defer r.leave()
	if f(uintptr(r.fd)) {
		return nil
	}
	for {
		// What became writable since is reported once more.
		if err := r.poller.watchRoom(r.pollSock, true); err != nil {
			return err
		}
		select {
		case <-r.writable:
		case <-r.cut:
			return net.ErrClosed
		}
		if f(uintptr(r.fd)) {
			return r.poller.watchRoom(r.pollSock, false)
		}
	}
}

// wakeWriter has who waits in Write look again.
func (s *pollSock) wakeWriter() {
	select {
	case s.writable <- struct{}{}:
	default:
	}
}
