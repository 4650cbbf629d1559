package dgm

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/file"
)

// progress is how far this node's replica has applied the log, for those who
// wait for it. The zero progress is at the beginning.
type progress struct {
	index   atomic.Uint64
	waiting atomic.Int32 // how many wait, so that nobody is looked for in vain

	mu     sync.Mutex
	closed bool
	waits  []*awaited
}

// awaited is who waits for an index.
type awaited struct {
	index uint64
	there chan struct{} // closed when it is applied, or the volume closes
}

// reach notes that everything up to index is applied.
func (p *progress) reach(index uint64) {
	p.index.Store(index)
	if p.waiting.Load() == 0 {
		return // who joins now looks again
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.waits = slices.DeleteFunc(p.waits, func(a *awaited) bool {
		if a.index > index {
			return false
		}
		close(a.there)
		return true
	})
	p.waiting.Store(int32(len(p.waits)))
}

// await returns when everything up to index is applied. Errors: ctx's and
// gearsfs.ErrClosed.
func (p *progress) await(ctx context.Context, index uint64) error {
	for p.index.Load() < index {
		a := &awaited{index: index, there: make(chan struct{})}
		p.mu.Lock()
		if p.closed {
			p.mu.Unlock()
			return gearsfs.ErrClosed
		}
		p.waits = append(p.waits, a)
		p.waiting.Store(int32(len(p.waits)))
		p.mu.Unlock()
		if p.index.Load() >= index { // it came before the count was seen
			p.reach(p.index.Load())
		}
		select {
		case <-a.there:
		case <-ctx.Done():
			p.leave(a)
			return ctx.Err()
		}
	}
	return nil
}

func (p *progress) leave(a *awaited) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.waits = slices.DeleteFunc(p.waits, func(b *awaited) bool { return a == b })
	p.waiting.Store(int32(len(p.waits)))
}

// close sends away who waits.
func (p *progress) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for _, a := range p.waits {
		close(a.there)
	}
	p.waits = nil
	p.waiting.Store(0)
}

// awaitApplied returns when this replica has applied everything up to index.
// Errors: ctx's and gearsfs.ErrClosed.
func (v *Volume) awaitApplied(ctx context.Context, index gearsfs.Index) error {
	return v.progress.await(ctx, uint64(index))
}

// Applied implements file.Observer: watchers are told, what waits here is tried,
// and what is due next may be another thing.
func (v *Volume) Applied(index uint64, touched []file.Touched, changed []file.Changed) {
	v.progress.reach(index)
	if len(changed) > 0 {
		v.watches.tell(changed)
	}
	if t := v.tenure.Load(); t != nil {
		t.applied(touched, changed)
		t.ticks.look()
		t.removeDoomed()
	}
}

// MembersChanged implements file.Observer.
func (v *Volume) MembersChanged() {
	if index, _ := v.machine.Applied(); index != v.progress.index.Load() {
		v.progress.reach(index) // an entry of raft's, or another state
	}
	select {
	case <-v.opened:
		v.membersChanged()
	default: // open does it
	}
}

// replaceState has the state machine go on with the tables that swap brings.
// What has changed nobody can say, so watchers are told that they missed it.
func (v *Volume) replaceState(swap func() error) error {
	err := v.machine.Replace(swap)
	v.watches.loseAll()
	v.payloads.Rescan()
	return err
}

// membersChanged takes over who is in the group.
func (v *Volume) membersChanged() {
	v.mu.Lock()
	close(v.membersNoted)
	v.membersNoted = make(chan struct{})
	v.leaderChangedLocked() // it may be somewhere else
	v.mu.Unlock()
	v.mesh.Update()
	v.payloads.Grown()
}
