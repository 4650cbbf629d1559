package dgm

import (
	"context"
	"errors"
	"sync"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/wire"
)

// uploads are the changes of a session whose payloads are being stored, and those
// that came behind: so that they keep their order. How many there are is bounded
// by the windows of the connection that they came over.
type uploads struct {
	mu      sync.Mutex
	waiting []*op
	running bool
}

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
	u.waiting = append(u.waiting, o)
	return true
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
		o := u.waiting[0]
		u.waiting = u.waiting[1:]
		u.mu.Unlock()
		o.uploadAndLaunch()
	}
}

// uploadAndLaunch stores the payloads of a change and goes on with it as if it
// had come without them.
func (o *op) uploadAndLaunch() {
	v := o.ten.vol
	if why := o.endedBy(); why != nil {
		o.fail(why)
		return
	}
	if !o.answeredBefore() {
		extents, err := v.upload(v.busy, o.change.Command)
		switch {
		case errors.Is(err, context.Canceled):
			o.fail(gearsfs.ErrClosed)
			return
		case err != nil:
			o.refuse(err)
			return
		case len(extents) > 0:
			done := o.done
			o.done = func(resp *wire.Response) {
				v.payloads.Unused(extents, errorOf(resp))
				done(resp)
			}
		}
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
