package dgm

import (
	"context"
	"sync"
	"time"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/wire"
)

// fitness is what a leader knows of the learners' block stores: one that lacks
// bytes of the volume gets no vote, for what a majority has must not be lost with
// the others.
type fitness struct {
	mu    sync.Mutex
	asked map[uint64]bool // members that are asked now
	until map[uint64]time.Time
}

// fitFor is how long an answer counts; a member asks again what it was asked.
const fitFor = 10 * time.Second

// fitToVote implements replica.Config.Fit.
func (v *Volume) fitToVote(member uint64) bool {
	f := &v.fitness
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.until == nil {
		f.asked, f.until = make(map[uint64]bool), make(map[uint64]time.Time)
	}
	if time.Now().Before(f.until[member]) {
		return true
	}
	if !f.asked[member] {
		f.asked[member] = v.spawn(func() { v.askWhole(member) })
	}
	return false
}

// askWhole asks a member whether it has all bytes that its state refers to.
func (v *Volume) askWhole(member uint64) {
	ctx, cancel := context.WithTimeout(v.busy, fitFor)
	defer cancel()
	_, err := v.mesh.Ask(ctx, gearsfs.MemberID(member), &wire.NodeOp{Op: &wire.NodeOp_Whole{Whole: true}})
	f := &v.fitness
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.asked, member)
	if err == nil {
		f.until[member] = time.Now().Add(fitFor)
	}
}

// answerWhole answers when this node has all bytes that its state refers to, once
// that is all that was committed when it was asked: who has all in its log counts as
// caught up, and may not have applied any of it. gearsfs.ErrBusy after a while.
func (v *Volume) answerWhole(ctx context.Context) (*wire.Response, error) {
	ctx, cancel := context.WithTimeout(ctx, fitFor/2)
	defer cancel()
	if err := v.group.Barrier(ctx); err != nil {
		return nil, gearsfs.ErrBusy.Because("this node has not applied all yet: %v", err)
	}
	if err := v.payloads.Whole(ctx); err != nil {
		return nil, gearsfs.ErrBusy.Because("%d blocks are still missing here", v.payloads.Lacking())
	}
	return &wire.Response{}, nil
}
