package mount

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gearsfs/gearsfs"
)

// believe is what the kernel may believe and how it is told not to: the watch
// on what other sessions change and the notices that follow from it.
type believe struct {
	conn   *os.File           // the FUSE connection
	send   func([]byte) error // sends a notice for this process; may be nil
	epochs bool               // the kernel knows FUSE_NOTIFY_INC_EPOCH

	watched atomic.Bool   // a watch is alive
	moment  atomic.Uint64 // counts batches of changes and the ends of watches

	names, pages queue
}

// moment is a point in the order of what the watch tells.
type moment struct {
	count   uint64
	watched bool
}

// now is called before a Manager is asked for what will be told to the kernel.
func (b *believe) now() moment {
	return moment{b.moment.Load(), b.watched.Load()}
}

// valid says how long the kernel may believe what the Manager answered since
// at. A change that the watch told meanwhile may be about just that, and its
// notice may have overtaken the answer.
func (b *believe) valid(at moment) time.Duration {
	switch {
	case b.moment.Load() != at.count:
		return 0
	case !at.watched || !b.epochs:
		return validUnwatched
	}
	return validWatched
}

// dropPages makes the kernel forget the pages and attributes of a file.
func (b *believe) dropPages(ino gearsfs.Ino) {
	b.notify(noticeInode, inodeNotice(ino, 0)) // an error where it has none is as good
}

// dropAttr makes the kernel ask for the attributes of a file again. It needs no
// lock in the kernel, so a request on the file may call it.
func (b *believe) dropAttr(ino gearsfs.Ino) {
	b.notifyHere(noticeInode, inodeNotice(ino, -1))
}

// Kinds of notices (enum fuse_notify_code in include/uapi/linux/fuse.h).
const (
	noticeInode  = 2
	noticeEntry  = 3
	noticeResend = 7
	noticeEpoch  = 8 // Linux 6.16
)

func inodeNotice(ino gearsfs.Ino, offset int64) []byte {
	b := binary.NativeEndian.AppendUint64(nil, uint64(ino))
	b = binary.NativeEndian.AppendUint64(b, uint64(offset))
	return binary.NativeEndian.AppendUint64(b, 0) // to the end
}

func notice(kind uint32, body []byte) []byte {
	const header = 16
	b := binary.NativeEndian.AppendUint32(nil, uint32(header+len(body)))
	b = binary.NativeEndian.AppendUint32(b, kind)
	b = binary.NativeEndian.AppendUint64(b, 0)
	return append(b, body...)
}

// notify sends a notice for which the kernel may wait: for a page that is being
// read, or a directory that is being changed, until the request that does so is
// answered. A process that is killed meanwhile does not end before that, so
// where another is to take over and answer, it is the supervisor that waits.
func (b *believe) notify(kind uint32, body []byte) error {
	if b.send != nil {
		if err := b.send(notice(kind, body)); !errors.Is(err, ErrNoSupervisor) {
			return err
		}
	}
	return b.notifyHere(kind, body)
}

// notifyHere sends a notice from this process.
func (b *believe) notifyHere(kind uint32, body []byte) error { return Tell(b.conn, notice(kind, body)) }

// Tell sends a notice to the kernel on the connection of a mount. An [os.File] would
// let one write at a time: a notice that waits in the kernel, for a directory that is
// being listed, would hold back one that the handler of that request sends, for ever.
func Tell(conn *os.File, notice []byte) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var sent error
	err = raw.Control(func(fd uintptr) {
		for {
			if _, sent = unix.Write(int(fd), notice); !errors.Is(sent, unix.EINTR) {
				return
			}
		}
	})
	return cmp.Or(err, sent)
}

// changed is for what others changed, in order.
func (b *believe) changed(changes []gearsfs.Change) {
	b.moment.Add(1)
	for _, c := range changes {
		if c.Name != "" {
			b.names.push(c)
		}
		b.pages.push(c)
	}
}

// changed is called with what others changed, in order.
func (s *server) changed(changes []gearsfs.Change) {
	for _, c := range changes {
		if c.Name == "" && !c.Data {
			s.inodes.doubt(c.Ino)
		}
	}
	s.believe.changed(changes)
}

// changedHere tells the kernel of a change that this mount made behind its
// back, through a control file.
func (b *believe) changedHere(c gearsfs.Change) { b.changed([]gearsfs.Change{c}) }

// notifyName tells of a name. It takes the directory's lock in the kernel.
func (s *server) notifyName(c gearsfs.Change) {
	s.files.told(name{c.Ino, c.Name}, func() { s.believe.notifyName(c) })
}

func (b *believe) notifyName(c gearsfs.Change) {
	body := binary.NativeEndian.AppendUint64(nil, uint64(c.Ino))
	body = binary.NativeEndian.AppendUint32(body, uint32(len(c.Name)))
	body = binary.NativeEndian.AppendUint32(body, 0)
	b.notify(noticeEntry, append(append(body, c.Name...), 0))
}

// connected reports whether the kernel still waits for answers.
func (b *believe) connected() bool {
	if b.conn == nil {
		return true
	}
	fds := []unix.PollFd{{Fd: int32(b.conn.Fd())}}
	_, err := unix.Poll(fds, 0)
	return err != nil || fds[0].Revents&unix.POLLERR == 0
}

// notifyInode tells of a file's bytes or attributes, or a directory's times, but not
// of what an OPEN has shown already: it would only be in the way. The kernel ignores
// the answer to a GETATTR that a notice overtakes, and a read behind that OPEN goes
// by the size that it believed in before.
func (s *server) notifyInode(c gearsfs.Change) {
	if c.Name != "" {
		s.believe.notifyInode(c)
		return
	}
	s.told.notice(c.Ino,
		func() (gearsfs.Attr, error) { return s.m.GetAttr(s.life, c.Ino) },
		func() { s.believe.notifyInode(c) })
}

// notifyInode tells of a file's bytes or attributes, or a directory's times.
func (b *believe) notifyInode(c gearsfs.Change) {
	if c.Data && c.Name == "" {
		b.dropPages(c.Ino)
	} else {
		b.dropAttr(c.Ino)
	}
}

// notifyEpoch makes the kernel look up every name again before it is used. It
// reports whether it can.
func (b *believe) notifyEpoch() bool { return b.notifyHere(noticeEpoch, nil) == nil }

// changedAll makes the kernel forget all that this mount told it.
func (s *server) changedAll() {
	s.inodes.doubtAll()
	s.told.unshow()
	s.believe.moment.Add(1)
	s.believe.notifyEpoch()
	for _, ino := range s.inodes.all() {
		s.believe.pages.push(gearsfs.Change{Ino: ino, Data: true})
	}
	s.believe.pages.push(gearsfs.Change{Ino: gearsfs.RootIno})
}

const (
	rewatchMin = 50 * time.Millisecond
	rewatchMax = 5 * time.Second
)

// watch keeps a watch alive until ctx ends. One that ended, because it fell
// behind or its node went, leaves the kernel with nothing to believe.
func (s *server) watch(ctx context.Context) {
	pause := rewatchMin
	for {
		err := s.m.Watch(ctx, func() {
			s.believe.moment.Add(1)
			s.believe.watched.Store(true)
			pause = rewatchMin
		}, s.changed)
		s.believe.watched.Store(false)
		if ctx.Err() != nil {
			return
		}
		s.changedAll()
		s.log.Debug("watch ended", "err", err)
		timer := time.NewTimer(pause/2 + rand.N(pause/2))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		}
		pause = min(2*pause, rewatchMax)
	}
}

// noticesMax bounds the notices that wait; more are all told at once.
const noticesMax = 1 << 14

// queue hands notices to the one goroutine that sends them.
type queue struct {
	mu      sync.Mutex
	waiting []gearsfs.Change
	lost    bool // some did not fit
	wake    chan struct{}
}

func newQueue() queue { return queue{wake: make(chan struct{}, 1)} }

func (q *queue) push(c gearsfs.Change) {
	q.mu.Lock()
	switch {
	case len(q.waiting) >= noticesMax:
		q.lost = true
	case len(q.waiting) > 0 && q.waiting[len(q.waiting)-1] == c: // told already
	default:
		q.waiting = append(q.waiting, c)
	}
	q.mu.Unlock()
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// run sends what is pushed until ctx ends; lost is called where some of it
// did not fit.
func (q *queue) run(ctx context.Context, send func(gearsfs.Change), lost func()) {
	for {
		select {
		case <-q.wake:
		case <-ctx.Done():
			return
		}
		q.mu.Lock()
		batch, overflow := q.waiting, q.lost
		q.waiting, q.lost = nil, false
		q.mu.Unlock()
		for _, c := range batch {
			send(c)
		}
		if overflow {
			lost()
		}
	}
}
