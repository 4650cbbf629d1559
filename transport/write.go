package transport

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"net"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/gearsfs/gearsfs"
)

const (
	// encodeBytes is about how much is encoded and written at once.
	encodeBytes = 64 << 10
	// copyBytesMax is the largest body that is copied behind its header; larger
	// ones are written from where they are.
	copyBytesMax = 16 << 10
	// pieceBytes is how much is written at once where the connection does not
	// tell how far a write has got: a record of TLS.
	pieceBytes = 16 << 10
	// inlineWritesMax is how often a caller writes what others have queued
	// meanwhile, before it leaves the rest to the flusher.
	inlineWritesMax = 4
	// queueKeptMax is the capacity up to which an empty queue is kept.
	queueKeptMax = 4096
)

// writer is what belongs to whoever has set Conn.writing. It turns queued
// frames into bytes piece by piece.
type writer struct {
	batch  []frame // taken from the queue; batch[next:] is to be encoded
	next   int
	buf    []byte // reused
	left   []byte // to be written next: a part of buf or of a body
	body   []byte // to be written behind left
	sum    uint32 // checksum of the frame of body
	sumDue bool   // sum comes behind left and body

	// Bytes in batch[:next] that are not yet known to be written.
	answers, notices int

	write            func(fd uintptr, b []byte) (int, error) // write(2)
	attempt, persist func(fd uintptr) bool                   // of a RawConn, bound once
	err              error                                   // of theirs
	waited           bool                                    // persist had to wait
}

// claimLocked makes the caller the writer where there is something to write and
// no writer. It then must call flush, or handOver.
func (c *Conn) claimLocked() bool {
	if c.writing || c.corked || len(c.queue) == 0 && !c.pongDue && !c.drainedLocked() {
		return false
	}
	c.writing = true
	return true
}

// handOver makes the flusher the writer instead of the caller. At most one
// writer exists, so wake has room.
func (c *Conn) handOver() { c.wake <- struct{}{} }

// flush writes what is queued as far as that needs no waiting, and leaves the
// rest to the flusher. The caller must be the writer and is so no more.
func (c *Conn) flush() {
	if c.raw == nil {
		c.handOver()
		return
	}
	for range inlineWritesMax {
		if !c.prepare() {
			return
		}
		if err := c.attemptWrite(); err != nil {
			c.failWrite(err)
			return
		}
		if len(c.out.left) > 0 {
			break
		}
	}
	c.handOver()
}

// flusher is the goroutine that writes what has to wait.
func (c *Conn) flusher() {
	for {
		select {
		case <-c.quit:
			return
		case <-c.wake:
		}
		for c.prepare() {
			if err := c.waitWrite(); err != nil {
				c.failWrite(err)
				break
			}
		}
	}
}

// failWrite ends the connection; the caller stays the writer for good.
func (c *Conn) failWrite(err error) {
	c.fail(lost(err), false)
	c.closeSock()
}

// prepare readies what is to be written next in out.left. It returns false
// where nothing is left to write; the caller then is not the writer any more.
func (c *Conn) prepare() bool {
	w := &c.out
	if len(w.left) > 0 {
		return true
	}
	if w.body != nil {
		w.left, w.body = w.body, nil
		return true
	}
	if w.next == len(w.batch) && !w.sumDue || w.answers > 0 || w.notices > 0 {
		if !c.takeBatch() {
			return false
		}
	}
	w.encode()
	return true
}

// takeBatch accounts for what was written and takes what is queued if the batch
// before is finished. It returns false where nothing is left, having given the
// writer up.
func (c *Conn) takeBatch() bool {
	w := &c.out
	c.mu.Lock()
	c.unread -= w.answers
	c.noticeBytes -= w.notices
	w.answers, w.notices = 0, 0
	c.resumeLocked()
	if w.next < len(w.batch) || w.sumDue {
		c.mu.Unlock()
		return true
	}
	if c.pongDue && c.err == nil {
		c.pongDue = false
		c.queue = append(c.queue, frame{id: c.pong, kind: kindPong})
	}
	if len(c.queue) > 0 {
		clear(w.batch)
		if cap(w.batch) > queueKeptMax {
			w.batch = nil
		}
		w.batch, c.queue = c.queue, w.batch[:0]
		w.next = 0
		c.mu.Unlock()
		return true
	}
	clear(w.batch)
	w.batch, w.next = w.batch[:0], 0
	last, failed := c.drainedLocked(), c.err != nil
	c.shut = c.shut || last
	c.writing = last || failed // for good, then
	c.mu.Unlock()
	switch {
	case failed:
		c.closeSock()
	case last:
		c.closeWrite()
	}
	return false
}

// encode fills left with the frames that follow, up to a large body.
func (w *writer) encode() {
	buf := w.buf[:0]
	if w.sumDue {
		buf = binary.BigEndian.AppendUint32(buf, w.sum)
		w.sumDue = false
	}
	for w.next < len(w.batch) && len(buf) < encodeBytes && !w.sumDue {
		f := w.batch[w.next]
		w.next++
		switch f.kind {
		case kindResponse, kindFailure:
			w.answers += f.bytes()
		case kindNotice:
			w.notices += f.bytes()
		}
		if len(f.body) <= copyBytesMax {
			buf = f.append(buf)
			continue
		}
		start := len(buf)
		buf = f.appendHeader(buf)
		w.sum = f.sum(crc32.Checksum(buf[start:], castagnoli))
		w.body, w.sumDue = f.body, true
	}
	w.buf, w.left = buf, buf
}

// attemptWrite writes as much of out.left as the socket takes at once.
func (c *Conn) attemptWrite() error {
	return errors.Join(c.raw.Write(c.out.attempt), c.out.err)
}

// waitWrite writes out.left, or a piece of it, and notes when it had to wait and
// got on.
func (c *Conn) waitWrite() error {
	w := &c.out
	if c.raw != nil {
		w.waited = false
		return errors.Join(c.raw.Write(w.persist), w.err)
	}
	n, err := c.nc.Write(w.left[:min(len(w.left), pieceBytes)])
	w.left = w.left[n:]
	if len(w.left) > 0 || w.body != nil || w.sumDue || w.next < len(w.batch) {
		c.moved.Store(true)
	}
	return err
}

// bindRaw makes what c.raw is called with. Of that returning true means not to
// wait for the socket.
func (c *Conn) bindRaw() {
	w := &c.out
	w.write = announcedWrite
	if c.cfg.Unannounced {
		w.write = rawWrite
	}
	w.attempt = func(fd uintptr) bool {
		w.writeTo(fd)
		return true
	}
	w.persist = func(fd uintptr) bool {
		if w.writeTo(fd) > 0 && w.waited {
			c.moved.Store(true)
		}
		w.waited = true
		return len(w.left) == 0 || w.err != nil
	}
}

// writeTo writes as much of left as the socket takes at once, and returns how
// many bytes that were.
func (w *writer) writeTo(fd uintptr) int {
	n, err := w.write(fd, w.left)
	if err != nil {
		if err != syscall.EAGAIN {
			w.err = err
		}
		return 0
	}
	w.left = w.left[n:]
	return n
}

// unacknowledged is how many bytes the kernel keeps for the peer, tcp(7) and
// unix(7) SIOCOUTQ; 0 where that is not known.
func (c *Conn) unacknowledged() int {
	if c.sockRaw == nil {
		return 0
	}
	n := 0
	var err error
	if c.sockRaw.Control(func(fd uintptr) { n, err = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) }) != nil || err != nil {
		return 0
	}
	return n
}

// unsentBytesMax is how much the kernel keeps of a TCP connection beyond what is
// on its way. With more, a PING would stand behind megabytes of a slow link and
// a healthy peer would count as lost.
const unsentBytesMax = 128 << 10

// rawConnOf returns what writes to a socket without waiting, nil where sock is
// none.
func rawConnOf(sock net.Conn) syscall.RawConn {
	switch s := sock.(type) {
	case *net.TCPConn:
		raw, err := s.SyscallConn()
		if err != nil {
			return nil
		}
		lowat := func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, unsentBytesMax)
		}
		if raw.Control(lowat) != nil || err != nil {
			return nil
		}
		return raw
	case *net.UnixConn:
		if raw, err := s.SyscallConn(); err == nil {
			return raw
		}
	}
	return nil
}

// closeWrite tells the peer that nothing more comes; its own end of the stream
// then ends the reading goroutine.
func (c *Conn) closeWrite() {
	half, ok := c.nc.(interface{ CloseWrite() error })
	if !ok {
		c.fail(gearsfs.ErrClosed.Because("the connection is closed"), false)
		return
	}
	if err := half.CloseWrite(); err != nil && !errors.Is(err, net.ErrClosed) {
		c.fail(lost(err), false)
	}
}
