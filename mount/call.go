package mount

import (
	"context"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/gearsfs/gearsfs/dgm"
)

// call is one request while its handler runs: the handler's receiver, and the
// context of what it asks the Manager. It ends with the mount, and where it
// takes longer than a node that is there does, when its process is interrupted.
type call struct {
	server
	unique uint64 // of the request, for the connection's life
	cancel <-chan struct{}
	began  uint32 // in beats of calls
	unsent error  // why what was held of the file is not sent

	// What the next process has to know, where there is a keeper.
	once     dgm.Once
	numbered bool    // it has made a change
	effects  []byte  // on what the mount keeps; see keep.go
	reply    []byte  // into which the handler answers
	turns    []ender // end when the entry is written: so entries are in the order of what they tell
	known    bool    // it was answered before
	status   fuse.Status

	prev, next *call // in calls

	mu   sync.Mutex
	done chan struct{} // nil until somebody waits
	err  error
}

var _ context.Context = (*call)(nil)

// ender is what others wait for until it ends: a turn of a handle, or a giving.
type ender interface{ end() }

var _, _ ender = turn(nil), (*giving)(nil)

// Deadline implements context.Context.
func (c *call) Deadline() (time.Time, bool) { return time.Time{}, false }

// Done implements context.Context.
func (c *call) Done() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.done == nil {
		c.done = make(chan struct{})
		if c.err != nil {
			close(c.done)
		}
	}
	return c.done
}

// Err implements context.Context.
func (c *call) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Value implements context.Context.
func (c *call) Value(key any) any {
	if key == dgm.OnceKey {
		return &c.once
	}
	return c.life.Value(key)
}

func (c *call) end(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return
	}
	c.err = err
	if c.done != nil {
		close(c.done)
	}
}

// closing returns the server for a close(2) that commits something, and can't be made
// again: a signal that does not end its process, as those by which Go's runtime stops
// its threads, is no reason to give up what was written. It ends with the mount, when
// the process is being killed, or when nobody waits for the answer any more. stop
// must be called before the handler returns.
func (s *server) closing(thread uint32) (closing *server, stop func()) {
	ctx, end := context.WithCancel(context.WithoutCancel(s.ctx))
	var watcher sync.WaitGroup
	watcher.Go(func() {
		select {
		case <-s.ctx.Done():
		case <-ctx.Done():
			return
		}
		defer end()
		ticker := time.NewTicker(beat)
		defer ticker.Stop()
		for !killed(thread) && s.believe.connected() {
			select {
			case <-ticker.C:
			case <-s.life.Done():
				return
			case <-ctx.Done():
				return
			}
		}
	})
	patient := *s
	patient.ctx = ctx
	return &patient, func() { end(); watcher.Wait() }
}

// A request that has waited for patienceBeats is one whose node does not answer:
// from then on an interruption is heard, at the next beat. A node that is there
// is faster, and what it does for a process that got some signal is done.
const (
	beat          = 200 * time.Millisecond
	patienceBeats = 4
)

// calls are the requests whose handlers run.
type calls struct {
	mu    sync.Mutex
	first *call
	beats uint32
	over  error // the mount has ended
}

func (t *calls) add(c *call) {
	t.mu.Lock()
	defer t.mu.Unlock()
	c.began = t.beats
	if c.next = t.first; c.next != nil {
		c.next.prev = c
	}
	t.first = c
	if t.over != nil {
		c.end(t.over)
	}
}

func (t *calls) remove(c *call) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if c.prev != nil {
		c.prev.next = c.next
	} else {
		t.first = c.next
	}
	if c.next != nil {
		c.next.prev = c.prev
	}
}

// watch ends the calls that are interrupted, and all when ctx ends.
func (t *calls) watch(ctx context.Context) {
	ticker := time.NewTicker(beat)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			t.look()
		case <-ctx.Done():
			t.mu.Lock()
			t.over = ctx.Err()
			for c := t.first; c != nil; c = c.next {
				c.end(t.over)
			}
			t.mu.Unlock()
			return
		}
	}
}

func (t *calls) look() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.beats++
	for c := t.first; c != nil; c = c.next {
		if t.beats-c.began < patienceBeats {
			continue
		}
		select {
		case <-c.cancel: // it is the call's as long as it is in the list
			c.end(context.Canceled)
		default:
		}
	}
}
