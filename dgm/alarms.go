package dgm

import (
	"sync"
	"time"
)

// alarms are timers that none is left of when they are stopped, so that what
// their functions refer to is free then and not when the last would have gone off.
// The zero value is ready.
type alarms struct {
	mu      sync.Mutex // a leaf
	set     map[*time.Timer]struct{}
	stopped bool
}

// after calls f on a goroutine of its own when d has passed, unless the alarms
// are stopped before.
func (a *alarms) after(d time.Duration, f func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.stopped {
		return
	}
	if a.set == nil {
		a.set = make(map[*time.Timer]struct{})
	}
	var timer *time.Timer
	timer = time.AfterFunc(d, func() {
		a.mu.Lock()
		delete(a.set, timer)
		stopped := a.stopped
		a.mu.Unlock()
		if !stopped {
			f()
		}
	})
	a.set[timer] = struct{}{}
}

// stop stops them for good. It waits for none that has gone off.
func (a *alarms) stop() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.stopped = true
	for timer := range a.set {
		timer.Stop()
	}
	a.set = nil
}
