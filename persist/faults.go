package persist

import (
	"fmt"
	"runtime"
	"sync"
)

// faults hears of the errors that Pebble meets in the background. It is
// Pebble's logger: what Pebble calls fatal goes to the injected function
// instead of ending the process from inside.
type faults struct {
	dead chan struct{} // closed by the first fatal error

	mu      sync.Mutex    // guards what follows
	tell    func(error)   // may be nil
	ended   error         // the first fatal error
	latest  error         // of any kind
	changed chan struct{} // closed at the next error
}

func newFaults(tell func(error)) *faults {
	return &faults{tell: tell, dead: make(chan struct{}), changed: make(chan struct{})}
}

// fatal returns the error after which the state can't be trusted in memory.
func (f *faults) fatal() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.ended
}

// next returns a channel that is closed when an error comes.
func (f *faults) next() <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.changed
}

// last returns the newest error.
func (f *faults) last() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.latest
}

// ignore says that nobody is to be told any more.
func (f *faults) ignore() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.tell = nil
}

// background takes an error that Pebble met in the background; it goes on.
func (f *faults) background(err error) {
	if err == nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.latest = err
	close(f.changed)
	f.changed = make(chan struct{})
}

// Fatalf takes what Pebble can't go on after: it expects that this does not
// return. So it ends the goroutine, whose deferred calls release its locks.
func (f *faults) Fatalf(format string, args ...any) {
	err := fmt.Errorf("state: "+format, args...)
	f.background(err)
	f.mu.Lock()
	var tell func(error)
	if f.ended == nil {
		f.ended, tell = err, f.tell
		close(f.dead)
	}
	f.mu.Unlock()
	if tell != nil {
		tell(err)
	}
	runtime.Goexit()
}

// Infof and Errorf drop Pebble's running commentary: the errors in it also come
// out of the call that met them, or as background errors.
func (f *faults) Infof(string, ...any)  {}
func (f *faults) Errorf(string, ...any) {}
