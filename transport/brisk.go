package transport

import (
	"runtime"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"
)

// Where requests follow each other within moments, who has the turn waits for the
// next one in the kernel itself. Else it parks, and a thread looks for something else
// to run, waits for the network, and gives the processor back to the reader: two to
// three system calls more for each request, and more turns of Go's watchdog.
//
// Go's runtime must not be told of those requests then, or it would wake a thread for
// each: it waits for an epoll instance of which that of the poller is taken out. A
// thread that is blocked so counts as one in any other system call: its processor is
// taken from it where somebody else needs that.
const (
	// briskWait is up to how long the runtime is not told of the wait for a request.
	briskWait = 2 * time.Millisecond

	// briskWaits is how many waits in a row must have been shorter before.
	briskWaits = 8

	// briskRun is after how long others are let run, as with loneRun. The first time
	// is when the runtime is told no more: it then has another thread wait for the
	// rest of the network, and for timers.
	briskRun = 4 * time.Millisecond
)

// brisk is that of a poller. All of it is the turn's, but that apart can be read.
type brisk struct {
	short   int         // waits in a row that were shorter than briskWait
	apart   atomic.Bool // the runtime is not told of what comes
	yielded time.Time   // when others were let run
}

// waitBrisk is wait where nothing is left to be read, and the poller serves.
func (r *pollReader) waitBrisk() bool {
	p, b := r.p, &r.p.brisk
	for b.apart.Load() {
		if r.waitApart() {
			return true
		}
		b.short = 0
		if p.raw.Control(func(outer uintptr) { b.apart.Store(p.nest(outer) != nil) }) != nil {
			return false
		}
	}
	began := time.Now()
	if p.raw.Read(r.attempt) != nil {
		return false
	}
	if time.Since(began) >= briskWait {
		b.short = 0
		return true
	}
	if b.short++; b.short < briskWaits {
		return true
	}
	return p.raw.Control(func(outer uintptr) { b.apart.Store(p.unnest(outer) == nil) }) == nil
}

// waitApart waits for up to briskWait, and tells whether there is something to do.
func (r *pollReader) waitApart() bool {
	b := &r.p.brisk
	if now := time.Now(); now.Sub(b.yielded) >= briskRun {
		b.yielded = now
		runtime.Gosched()
	}
	for {
		n, _, errno := syscall.Syscall6(syscall.SYS_EPOLL_PWAIT, uintptr(r.p.epfd),
			uintptr(unsafe.Pointer(unsafe.SliceData(r.events))), uintptr(len(r.events)),
			uintptr(briskWait/time.Millisecond), 0, 0)
		if errno == syscall.EINTR {
			continue
		}
		r.n = int(n)
		if errno != 0 {
			r.n = 0
		}
		return r.n > 0
	}
}

// nest has the runtime's epoll instance hear of what comes, and what has come.
func (p *poller) nest(outer uintptr) error {
	return syscall.EpollCtl(int(outer), syscall.EPOLL_CTL_ADD, p.epfd,
		&syscall.EpollEvent{Events: edgeTriggered | syscall.EPOLLIN, Fd: int32(p.epfd)})
}

// unnest ends what nest began.
func (p *poller) unnest(outer uintptr) error {
	return syscall.EpollCtl(int(outer), syscall.EPOLL_CTL_DEL, p.epfd, nil)
}
