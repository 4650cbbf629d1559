package persist

import "sync/atomic"

// beforeFlush is what Data.BeforeFlush was last given.
type beforeFlush struct{ given atomic.Pointer[earlier] }

type earlier struct {
	sync func() error
	due  func() bool
}

func (b *beforeFlush) set(sync func() error, due func() bool) {
	if sync == nil {
		b.given.Store(nil)
		return
	}
	b.given.Store(&earlier{sync, due})
}

// run calls it; b may be nil.
func (b *beforeFlush) run() error {
	if b == nil {
		return nil
	}
	if e := b.given.Load(); e != nil {
		return e.sync()
	}
	return nil
}

// beside calls it and other, and returns when both have: where both wait for the
// disk they do so at the same time, which takes it little longer than one. The
// first error is its own.
func (b *beforeFlush) beside(other func() error) (mine, others error) {
	if b == nil {
		return nil, other()
	}
	if e := b.given.Load(); e != nil {
		if !e.due() {
			if mine = e.sync(); mine != nil {
				return mine, nil
			}
			return nil, other()
		}
		done := make(chan error, 1)
		go func() { done <- e.sync() }() // ends when the disk has answered
		others = other()
		return <-done, others
	}
	return nil, other()
}
