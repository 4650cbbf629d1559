package transport

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/gearsfs/gearsfs"
)

// Listener is a net.Listener on an Addr.
type Listener struct {
	net.Listener
	addr Addr

	// Of a unix socket:
	lock *os.File // held while the socket is ours
	made os.FileInfo

	closeOnce sync.Once
	closeErr  error
}

// Address is where the listener can be reached, with the port that was chosen.
func (l *Listener) Address() Addr { return l.addr }

// Listen listens on addr. A unix socket is made with mode 0600, and replaces one
// that was left behind by a process that is gone; beside it lies PATH.lock,
// which the process that listens keeps locked. Errors: gearsfs.ErrInUse where
// another process listens there, gearsfs.ErrExists where PATH is something else
// than a socket.
func Listen(addr Addr) (*Listener, error) {
	var l *Listener
	var err error
	if addr.Network == "unix" {
		l, err = listenUnix(addr)
	} else {
		l, err = listenTCP(addr)
	}
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, gearsfs.ErrInUse.Because("%s is in use by another process", addr)
	case err != nil:
		return nil, fmt.Errorf("listen on %s: %w", addr, unwrapOp(err))
	}
	return l, nil
}

func listenTCP(addr Addr) (*Listener, error) {
	ln, err := net.Listen("tcp", addr.Address)
	if err != nil {
		return nil, err
	}
	return &Listener{Listener: ln, addr: Addr{Network: "tcp", Address: ln.Addr().String()}}, nil
}

// listenUnix makes the socket under the lock, so that of two processes that find
// a stale one only one replaces it.
func listenUnix(addr Addr) (_ *Listener, err error) {
	path := addr.Address
	lock, err := lockFile(path + ".lock")
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, lock.Close())
		}
	}()
	if err := removeStale(path); err != nil {
		return nil, err
	}
	// bind(2) gives the file the mode of the unbound socket, less the umask:
	// so nobody else can ever open it, and the process-wide umask stays alone.
	private := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var cerr error
		err := raw.Control(func(fd uintptr) { cerr = unix.Fchmod(int(fd), 0o600) })
		return errors.Join(err, cerr)
	}}
	ln, err := private.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, err
	}
	ln.(*net.UnixListener).SetUnlinkOnClose(false)
	made, err := os.Lstat(path)
	if err == nil && made.Mode().Perm()&0o077 != 0 {
		err = fmt.Errorf("%s was made with mode %v", path, made.Mode())
	}
	if err != nil {
		return nil, errors.Join(err, ln.Close())
	}
	return &Listener{Listener: ln, addr: addr, lock: lock, made: made}, nil
}

// lockFile makes and locks a file. The error is gearsfs.ErrInUse where another
// open file has it locked.
func lockFile(path string) (*os.File, error) {
	for {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|syscall.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, err
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			if errors.Is(err, unix.EWOULDBLOCK) {
				err = gearsfs.ErrInUse.Because("in use by another process: it holds %s", path)
			}
			return nil, errors.Join(err, f.Close())
		}
		// Whoever had it before may have removed it since it was opened.
		mine, err := f.Stat()
		if err != nil {
			return nil, errors.Join(err, f.Close())
		}
		if there, err := os.Lstat(path); err == nil && os.SameFile(mine, there) {
			return f, nil
		}
		if err := f.Close(); err != nil {
			return nil, err
		}
	}
}

// removeStale removes a socket that nobody listens on.
func removeStale(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode().Type() != fs.ModeSocket:
		return gearsfs.ErrExists.Because("%s exists and is not a socket", path)
	}
	c, err := net.Dial("unix", path)
	switch {
	case err == nil:
		return errors.Join(gearsfs.ErrInUse.Because("another process listens on %s", path), c.Close())
	case errors.Is(err, syscall.ECONNREFUSED):
		return os.Remove(path)
	case errors.Is(err, syscall.EAGAIN), errors.Is(err, syscall.EPROTOTYPE):
		return gearsfs.ErrInUse.Because("another process uses %s", path)
	}
	return fmt.Errorf("ask whether %s is alive: %w", path, unwrapOp(err))
}

// Close stops listening and removes the unix socket, if it is still the one
// that Listen made, and its lock file. It is idempotent.
func (l *Listener) Close() error {
	l.closeOnce.Do(func() {
		if l.lock == nil {
			l.closeErr = l.Listener.Close()
			return
		}
		var gone error
		if there, err := os.Lstat(l.addr.Address); err == nil && os.SameFile(there, l.made) {
			gone = os.Remove(l.addr.Address)
		}
		l.closeErr = errors.Join(gone, l.Listener.Close(), os.Remove(l.lock.Name()), l.lock.Close())
	})
	return l.closeErr
}
