package main

import (
	"encoding/binary"
	"errors"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/gearsfs/gearsfs/mount"
)

// A worker has notices sent by the supervisor: the kernel may make the sender
// wait for what only the next worker will answer, and a process that waits so
// can't die. A message is a number and the notice, the answer the number and an
// errno.

const (
	noticeBytesMax = 4096
	noticesAtOnce  = 64
)

// notices are a worker's that are being sent.
type notices struct {
	socket *os.File

	mu      sync.Mutex
	last    uint64
	waiting map[uint64]chan syscall.Errno
	over    bool // the supervisor is gone
}

func newNotices(socket *os.File) *notices {
	n := &notices{socket: socket, waiting: make(map[uint64]chan syscall.Errno)}
	go n.listen() // ends with the supervisor, or the process
	return n
}

func (n *notices) listen() {
	var buf [16]byte
	for {
		size, err := unix.Read(int(n.socket.Fd()), buf[:])
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil || size != 12:
			n.end()
			return
		}
		id := binary.NativeEndian.Uint64(buf[:])
		n.mu.Lock()
		waiter := n.waiting[id]
		delete(n.waiting, id)
		n.mu.Unlock()
		if waiter != nil {
			waiter <- syscall.Errno(binary.NativeEndian.Uint32(buf[8:]))
		}
	}
}

func (n *notices) end() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.over = true
	for id, waiter := range n.waiting {
		close(waiter)
		delete(n.waiting, id)
	}
}

// send has a notice sent, and waits for that.
func (n *notices) send(notice []byte) error {
	answer := make(chan syscall.Errno, 1)
	n.mu.Lock()
	if n.over {
		n.mu.Unlock()
		return mount.ErrNoSupervisor
	}
	n.last++
	id := n.last
	n.waiting[id] = answer
	n.mu.Unlock()
	message := append(binary.NativeEndian.AppendUint64(nil, id), notice...)
	for {
		_, err := unix.Write(int(n.socket.Fd()), message)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			n.end()
		}
		break
	}
	errno, ok := <-answer
	switch {
	case !ok:
		return mount.ErrNoSupervisor
	case errno != 0:
		return errno
	}
	return nil
}

// sendNotices sends a worker's notices on a connection until the worker ends.
func sendNotices(socket, conn *os.File) {
	defer socket.Close()
	var sending sync.WaitGroup
	defer sending.Wait()
	slots := make(chan struct{}, noticesAtOnce)
	buf := make([]byte, noticeBytesMax)
	for {
		n, err := unix.Read(int(socket.Fd()), buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n < 8 {
			return
		}
		message := append([]byte(nil), buf[:n]...)
		slots <- struct{}{}
		sending.Go(func() {
			defer func() { <-slots }()
			var errno syscall.Errno
			if err := mount.Tell(conn, message[8:]); err != nil {
				errno = unix.EIO
				errors.As(err, &errno)
			}
			answer := binary.NativeEndian.AppendUint32(message[:8:8], uint32(errno))
			unix.Sendmsg(int(socket.Fd()), answer, nil, nil, unix.MSG_NOSIGNAL) //nolint:errcheck // the worker is gone
		})
	}
}
