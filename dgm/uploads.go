package dgm

import (
	"context"
	"errors"
	"sync"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/wire"
)

// uploads are the changes of a session whose payloads are being stored, several at
// once, and those that came behind: so that they keep their order. How many there are
// is bounded by the windows of the connection that they came over.
type uploads struct {
	mu      sync.Mutex
	waiting []*upload
	begun   int // of them, the first ones
	running bool
}

// upload is a change whose payloads are being stored.
type upload struct {
	op      *op
	extents []gearsfs.Extent
	err     error
	done    chan struct{} // extents or err are there
}

// uploadsMax is how many changes of a session store payloads at once.
const uploadsMax = 128

// push takes a change that is to wait; not one that need not.
func (u *uploads) push(o *op) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if !u.running {
		if !o.ten.vol.payloads.Bulky(o.change.Command) || !o.ten.vol.spawn(u.run) {
			return false
		}
		u.running = true
	}
	u.waiting = append(u.waiting, &upload{op: o, done: make(chan struct{})})
	u.beginLocked()
	return true
}

func (u *uploads) beginLocked() {
	for ; u.begun < min(len(u.waiting), uploadsMax); u.begun++ {
		u.waiting[u.begun].begin()
	}
}

// run sends the changes on their way, in order.
func (u *uploads) run() {
	for {
		u.mu.Lock()
		if len(u.waiting) == 0 {
			u.waiting, u.running = nil, false
			u.mu.Unlock()
			return
		}
		first := u.waiting[0]
		u.mu.Unlock()
		<-first.done
		u.mu.Lock()
		u.waiting = u.waiting[1:]
		u.begun--
		u.beginLocked()
		u.mu.Unlock()
		first.launch()
	}
}

// begin has the payloads of the change stored.
func (u *upload) begin() {
	o, v := u.op, u.op.ten.vol
	if !v.payloads.Bulky(o.change.Command) || o.endedBy() != nil || o.answeredBefore() {
		close(u.done)
		return
	}
	if !v.spawn(func() {
		u.extents, u.err = v.upload(v.busy, o.change.Command)
		close(u.done)
	}) {
		u.err = gearsfs.ErrClosed
		close(u.done)
	}
}

// launch goes on with the change as if it had come without payloads.
func (u *upload) launch() {
	o, v := u.op, u.op.ten.vol
	if len(u.extents) > 0 {
		done := o.done
		o.done = func(resp *wire.Response) {
			v.payloads.Unused(u.extents, errorOf(resp))
			done(resp)
		}
	}
	if why := o.endedBy(); why != nil {
		o.fail(why)
		return
	}
	switch {
	case errors.Is(u.err, context.Canceled), errors.Is(u.err, gearsfs.ErrClosed):
		o.fail(gearsfs.ErrClosed)
		return
	case u.err != nil:
		o.refuse(u.err)
		return
	}
	if !v.enter() {
		o.fail(gearsfs.ErrClosed)
		return
	}
	defer v.leave()
	if why := o.ten.ended(); why != nil {
		o.fail(why)
		return
	}
	o.ten.launch(o)
}

// answeredBefore says whether a change was sent before and has its answer: then
// it needs no payload.
func (o *op) answeredBefore() bool {
	if !o.change.Retry {
		return false
	}
	happened, err := o.ten.vol.machine.Answered(o.sess.id, o.change.Command.Seq)
	return err == nil && happened
}
