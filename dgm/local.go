package dgm

import (
	"context"
	"errors"
	"sync"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/wire"
)

// Local is a session of a Volume in this process. Its leases and waits end
// with Close, or with the process.
type Local struct {
	api
	vol  *Volume
	sess *session
	once sync.Once
}

var _ Manager = (*Local)(nil)

// Local opens a session for a client in this process.
func (v *Volume) Local(c Client) (*Local, error) {
	id, err := v.mint(true)
	if err != nil {
		return nil, err
	}
	v.mu.Lock()
	if v.closed {
		v.mu.Unlock()
		return nil, gearsfs.ErrClosed
	}
	s := v.newSessionLocked(id, c, true)
	v.mu.Unlock()
	l := &Local{vol: v, sess: s}
	l.api = api{l}
	return l, nil
}

// Session implements Manager.
func (l *Local) Session() gearsfs.SessionID { return l.sess.id }

// Close implements Manager.
func (l *Local) Close() error {
	l.once.Do(func() {
		over := make(chan struct{})
		l.vol.end(l.sess, true, func() { close(over) })
		<-over
	})
	return nil
}

// replyChans holds channels that one response goes through, for reuse.
var replyChans = sync.Pool{New: func() any { return make(chan *wire.Response, 1) }}

func (l *Local) call(ctx context.Context, req *wire.Request) (*wire.Response, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	reply := replyChans.Get().(chan *wire.Response)
	c := l.vol.start(l.sess, req, func(resp *wire.Response) { reply <- resp })
	var resp *wire.Response
	if c == nil {
		resp = <-reply // never waits for more than the disk
	} else {
		select {
		case resp = <-reply:
		case <-ctx.Done():
			c.cancel(gearsfs.ErrCancelled)
			resp = <-reply
		}
	}
	replyChans.Put(reply)
	err := errorOf(resp)
	if errors.Is(err, gearsfs.ErrCancelled) && ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil {
		return nil, err
	}
	if resp.Answer == nil {
		resp.Answer = &wire.Answer{}
	}
	return resp, nil
}
