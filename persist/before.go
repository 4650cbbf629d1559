package persist

import "sync/atomic"

// beforeFlush is what Data.BeforeFlush was last given.
type beforeFlush struct{ sync atomic.Pointer[func() error] }

func (b *beforeFlush) set(sync func() error) {
	if sync == nil {
		b.sync.Store(nil)
		return
	}
	b.sync.Store(&sync)
}

// run calls it; b may be nil.
func (b *beforeFlush) run() error {
	if b == nil {
		return nil
	}
	if sync := b.sync.Load(); sync != nil {
		return (*sync)()
	}
	return nil
}
