package transport

import (
	"io"
	"syscall"
	"unsafe"
)

// rawBytesMax is up to how much is read or written at once without telling the
// scheduler, because it can't go on with others while somebody copies.
const rawBytesMax = 256 << 10

// sockReader reads from a socket as Config.Unannounced says.
type sockReader struct {
	raw     syscall.RawConn
	attempt func(fd uintptr) bool // of raw, bound once
	buf     []byte                // of the Read under way
	n       int                   // what it got
	err     error
}

func newSockReader(raw syscall.RawConn) *sockReader {
	s := &sockReader{raw: raw}
	s.attempt = func(fd uintptr) bool {
		s.n, s.err = rawCall(syscall.SYS_READ, fd, s.buf)
		return s.err != syscall.EAGAIN
	}
	return s
}

// Read implements io.Reader, as the socket's Read does. b must not be empty.
func (s *sockReader) Read(b []byte) (int, error) {
	s.buf, s.n, s.err = b[:min(len(b), rawBytesMax)], 0, nil
	err := s.raw.Read(s.attempt)
	s.buf = nil
	switch {
	case err != nil:
		return 0, err
	case s.err != nil:
		return 0, s.err
	case s.n == 0:
		return 0, io.EOF
	}
	return s.n, nil
}

// rawCall is read(2) or write(2) of b on a socket that does not block.
func rawCall(trap, fd uintptr, b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	for {
		n, _, errno := syscall.RawSyscall(trap, fd, uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
		switch errno {
		case 0:
			return int(n), nil
		case syscall.EINTR:
			continue
		}
		return 0, errno
	}
}

// rawWrite, as announcedWrite, stops short of b's end only where the socket is full.
func rawWrite(fd uintptr, b []byte) (int, error) {
	if len(b) > rawBytesMax {
		return announcedWrite(fd, b)
	}
	return rawCall(syscall.SYS_WRITE, fd, b)
}

func announcedWrite(fd uintptr, b []byte) (int, error) {
	for {
		n, err := syscall.Write(int(fd), b)
		if err != syscall.EINTR {
			return n, err
		}
	}
}
