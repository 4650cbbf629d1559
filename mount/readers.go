package mount

import (
	"errors"
	"log/slog"
	"math/bits"
	"sync"
	"time"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// readers read the kernel's requests and answer them, each on the goroutine that
// has read it. go-fuse has a loop for that, too, but it lets another reader wait in
// the kernel for the next request before it handles one. A program that asks
// for one thing after another so wakes a thread with each request, on another
// core: mostly for nothing, since who has answered is back before it. That was up to a
// third of what a request costs.
//
// So here whoever handles a request keeps the place of the reader meanwhile, if the
// request is one that waits for nobody (brief) and those before it came from the
// same thread: that sends the next one when it has this one's answer. Where that
// turns out wrong, because the handler takes longer (look) or another thread asks,
// others read.
//
// Invariants, under mu:
//
//  1. waiting > 0, or kept is set and its handler returns to read, or the connection has
//     ended. So each request is read, at the latest patience*2 after it came.
//  2. Nobody keeps the place while anybody waits in the kernel.
//  3. Of a handler that may wait for other requests another reads at once.
type readers struct {
	conn  int // the connection, which is open as long as any of them runs
	fuse  *fuse.ProtocolServer
	brief func() bool // handlers ask a node in this process
	log   *slog.Logger

	requestBytes int
	spare        chan []byte // buffers for requests
	answers      [answerClasses]sync.Pool

	loops sync.WaitGroup

	mu      sync.Mutex
	waiting int                 // readers that are in read(2), or about to be
	idle    []*reader           // those that nobody needs now
	kept    bool                // a handler keeps the place of the reader
	reads   uint64              // requests that were read
	last    uint64              // of them
	thread  uint32              // that sent it
	inARow  int                 // how many it sent one after the other
	running map[uint64]struct{} // requests that are handled while others are read
	ended   bool

	watch  *time.Timer // calls look
	armed  bool
	looked uint64 // reads, then
}

const (
	// rowLeast is how many requests in a row come from one thread before it counts
	// as alone.
	rowLeast = 16
	// waitingMax is how many wait for requests of several threads.
	waitingMax = 4
	// idleMax is how many are kept that nobody needs now: to start one anew costs as
	// much as a request, as its stack has to grow.
	idleMax = 16
	// patience is how long a handler that keeps the place may take, and twice that
	// at the most.
	patience = 5 * time.Millisecond
	// briefBytes is up to how many bytes a READ or WRITE is brief.
	briefBytes = 128 << 10

	sparesMax = 4
	pageBytes = 4096
)

func newReaders(conn int, server *fuse.ProtocolServer, writeMax int, brief func() bool, log *slog.Logger) *readers {
	r := &readers{
		conn: conn, fuse: server, brief: brief, log: log,
		requestBytes: writeMax + pageBytes,
		spare:        make(chan []byte, sparesMax),
		running:      make(map[uint64]struct{}),
	}
	r.watch = time.AfterFunc(time.Hour, r.look)
	return r
}

// serve reads and answers until the kernel ends the connection and the last
// handler has returned. Those that wait then are interrupted.
func (r *readers) serve() {
	r.mu.Lock()
	r.startLocked()
	r.mu.Unlock()
	r.loops.Wait()
	r.watch.Stop()
}

func (r *readers) startLocked() {
	r.waiting++
	if last := len(r.idle) - 1; last >= 0 {
		r.idle[last].needed <- struct{}{}
		r.idle = r.idle[:last]
		return
	}
	r.loops.Go(func() {
		me := &reader{needed: make(chan struct{}, 1), answer: newAnswer(0)}
		for me.read(r) && r.rest(me) {
		}
	})
}

// rest returns when a reader that was not needed is, or false where it is not any
// more.
func (r *readers) rest(me *reader) bool {
	r.mu.Lock()
	if r.ended || len(r.idle) == idleMax {
		r.mu.Unlock()
		return false
	}
	r.idle = append(r.idle, me)
	r.mu.Unlock()
	_, needed := <-me.needed
	return needed
}

// reader is one of readers.
type reader struct {
	needed  chan struct{} // it is taken from the idle ones; closed at the end
	answer  []byte        // has room for most answers
	request [pageBytes]byte
}

// read reads and answers requests as long as that is needed; it returns false
// where there are no more.
func (me *reader) read(r *readers) bool {
	buf := r.buffer()
	for {
		n, err := unix.Read(r.conn, buf)
		switch {
		case err == nil && n >= int(unsafe.Sizeof(fuse.InHeader{})):
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.ENOENT):
			continue // ENOENT: it was interrupted before it was read
		default:
			r.end(err)
			return false
		}
		request := buf[:n]
		in := (*fuse.InHeader)(unsafe.Pointer(&request[0]))
		keeps := r.took(in)
		if !keeps && n <= len(me.request) { // what may take long does so without the buffer
			request = me.request[:copy(me.request[:], request)]
			r.giveBack(buf)
			buf = nil
		}
		r.handle(request, me.answer)
		if !r.returns(request, keeps) {
			if buf != nil {
				r.giveBack(buf)
			}
			return true
		}
		if buf == nil {
			buf = r.buffer()
		}
	}
}

// took notes a request that was read, and sees to it that the next one is. It
// reports whether its handler keeps the place of the reader.
func (r *readers) took(in *fuse.InHeader) (keeps bool) {
	brief := isBrief(in) && r.brief()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.waiting--
	r.reads++
	r.last = in.Unique
	switch in.Pid {
	case 0: // the kernel's own; nobody waits for the answer
	case r.thread:
		r.inARow++
	default:
		r.thread, r.inARow = in.Pid, 1
	}
	if r.waiting == 0 {
		r.kept = brief && r.aloneLocked() || isForget(in)
		if r.kept {
			r.watchLocked()
			return true
		}
		r.startLocked()
	}
	r.running[in.Unique] = struct{}{}
	return false
}

func (r *readers) aloneLocked() bool { return r.inARow >= rowLeast }

// returns reports whether the reader that has answered a request reads again.
func (r *readers) returns(request []byte, keeps bool) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if keeps && r.kept {
		r.kept = false
		r.waiting++
		return true
	}
	delete(r.running, (*fuse.InHeader)(unsafe.Pointer(&request[0])).Unique)
	if r.kept || r.waiting >= waitingMax || r.waiting > 0 && r.aloneLocked() {
		return false
	}
	r.waiting++
	return true
}

// watchLocked has look called as long as requests come.
func (r *readers) watchLocked() {
	if !r.armed {
		r.armed, r.looked = true, r.reads
		r.watch.Reset(patience)
	}
}

// look gives the place of the reader to another where its handler takes long.
func (r *readers) look() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.reads == r.looked {
		if r.kept {
			r.kept = false
			r.running[r.last] = struct{}{}
			r.startLocked()
		}
		r.armed = false
		return
	}
	r.looked = r.reads
	r.watch.Reset(patience)
}

// end is the end of a reader that found the connection's. What waits, as nobody
// is left whom it would wait for, is told so by the interruption that the kernel
// does not send any more.
func (r *readers) end(err error) {
	r.mu.Lock()
	r.waiting--
	first := !r.ended
	r.ended = true
	var running []uint64
	for unique := range r.running {
		running = append(running, unique)
	}
	for _, idle := range r.idle {
		close(idle.needed)
	}
	r.idle = nil
	r.mu.Unlock()
	if first && !errors.Is(err, unix.ENODEV) {
		r.log.Error("the kernel's requests can't be read", "err", err)
	}
	for _, unique := range running {
		in := fuse.InterruptIn{InHeader: fuse.InHeader{Opcode: opInterrupt}, Unique: unique}
		in.Length = uint32(unsafe.Sizeof(in))
		r.fuse.HandleRequest([][]byte{bytesOf(&in)}, [][]byte{newAnswer(0)}) // nobody is to be answered
	}
}

// handle answers a request. small has room for most answers.
func (r *readers) handle(request, small []byte) {
	in := (*fuse.InHeader)(unsafe.Pointer(&request[0]))
	out := small
	if size := answerBytes(request); size > smallAnswer {
		class := classOf(size)
		kept, _ := r.answers[class].Get().(*[]byte)
		if kept == nil {
			large := newAnswer(class)
			kept = &large
		}
		defer r.answers[class].Put(kept)
		out = *kept
	}
	n, st := r.fuse.HandleRequest([][]byte{request}, [][]byte{out})
	if st != fuse.OK && !isForget(in) { // it is none that can be understood
		n = copy(out, bytesOf(&fuse.OutHeader{Length: uint32(answerHeaderBytes), Status: -int32(unix.EIO), Unique: in.Unique}))
	}
	if n == 0 {
		return
	}
	for {
		_, err := unix.Write(r.conn, out[:n])
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err == nil, errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENODEV): // interrupted, or unmounted
		default:
			r.log.Error("a request's answer was not taken", "opcode", in.Opcode, "bytes", n, "err", err)
		}
		return
	}
}

// Answers lie behind a part of a page, so that the bytes of a READ begin on one.
const (
	answerHeaderBytes = int(unsafe.Sizeof(fuse.OutHeader{}))
	smallAnswer       = 8 << 10     // the longest but for those that say what they may be: a link's target, 4 KiB
	answerClasses     = 1 + 20 - 13 // up to 1 MiB and what stands around it, in powers of two
)

// classOf is the class of buffers for answers that have room for n bytes.
func classOf(n int) int {
	class := bits.Len(uint(n-1)) - bits.Len(uint(smallAnswer-1))
	return min(max(class, 0), answerClasses-1)
}

func newAnswer(class int) []byte {
	buf := make([]byte, pageBytes+smallAnswer<<class+pageBytes)
	return buf[pageBytes-answerHeaderBytes:]
}

// answerBytes is how many bytes a request asks for.
func answerBytes(request []byte) int {
	in := (*fuse.InHeader)(unsafe.Pointer(&request[0]))
	switch {
	case in.Opcode == opRead || in.Opcode == opReadDir || in.Opcode == opReadDirPlus:
		if len(request) >= int(unsafe.Sizeof(fuse.ReadIn{})) {
			return int((*fuse.ReadIn)(unsafe.Pointer(in)).Size)
		}
	case in.Opcode == opGetXattr || in.Opcode == opListXattr:
		if len(request) >= int(unsafe.Sizeof(fuse.GetXAttrIn{})) {
			return int((*fuse.GetXAttrIn)(unsafe.Pointer(in)).Size)
		}
	}
	return 0
}

// buffer returns memory for a request, whose bytes to be written begin on a page.
// It is there: a thread that waits for a request while its process is killed
// still reads one that comes. Where a page is missing the kernel can't bring it for
// a dying thread and fails the request, which nobody has seen, with EIO; else it is
// sent again to the next process.
func (r *readers) buffer() []byte {
	select {
	case buf := <-r.spare:
		return buf
	default:
	}
	buf := make([]byte, r.requestBytes+pageBytes)
	for at := 0; at < len(buf); at += pageBytes {
		buf[at] = 0
	}
	buf[len(buf)-1] = 0
	front := int(unsafe.Sizeof(fuse.WriteIn{}))
	skip := (2*pageBytes - front - int(uintptr(unsafe.Pointer(&buf[0]))%pageBytes)) % pageBytes
	return buf[skip:][:r.requestBytes]
}

func (r *readers) giveBack(buf []byte) {
	select {
	case r.spare <- buf:
	default:
	}
}
