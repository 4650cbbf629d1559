package payload

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/block"
	"github.com/gearsfs/gearsfs/wire"
)

const (
	sweepFirst      = 20 * time.Minute // after the volume was opened
	sweepEvery      = time.Hour
	sweepBytes      = 64 << 20        // freed in a second
	sweepPatience   = 5 * time.Second // for what other nodes know of their uploads
	sweepDisk       = 10 * time.Second
	removedPatience = 24 * time.Hour // after which nobody has commands of a removed member
)

// sweep gives back the pages of this node's segments, and of its copies of
// others', that no row refers to and no entry to come will: what crashed, refused
// and unanswered uploads have left.
//
//	survey    segments to which nothing was written for 20 minutes
//	pending   each origin says which of its segments have uploads under way
//	barrier   all that was committed before is in the state here
//	live      pages that rows refer to
//	disk      what these rows became has come to this node's disk
//	free      the others
//
// In this order: an upload that ends in between is in the answer to pending, or
// its entry was committed before the barrier and its row is live. One that begins
// later writes to a segment that then has changed since the survey. What a crash
// could bring back is a row of before an entry that is not on the disk: so that
// comes in front of free.
//
// It needs a majority: what is unknown here can't be told from what is not needed.
func (k *Keeper) sweep(ctx context.Context) (block.SweepReport, error) {
	s := &sweepRun{keeper: k, pending: make(map[gearsfs.MemberID]map[uint64]bool)}
	return k.store.Sweep(ctx,
		func(yield func(gearsfs.Extent) error) error { return s.live(ctx, yield) },
		block.SweepOptions{Rate: sweepBytes, Age: k.upkeep.settled, Skip: s.skip})
}

type sweepRun struct {
	keeper  *Keeper
	pending map[gearsfs.MemberID]map[uint64]bool // of the origins that have said it
}

// live is a block.Live, and finds out what skip is to say.
func (s *sweepRun) live(ctx context.Context, yield func(gearsfs.Extent) error) error {
	k := s.keeper
	if err := s.askAll(ctx); err != nil {
		return err
	}
	if err := k.cfg.Node.Certain(ctx); err != nil {
		return err
	}
	if err := k.cfg.Machine.Live(yield); err != nil {
		return err
	}
	index, _ := k.cfg.Machine.Applied()
	if err := k.cfg.Node.Certain(ctx); err != nil {
		return err
	}
	if err := k.awaitDisk(ctx, index); err != nil {
		return err
	}
	return k.cfg.Data.Log.MakeSure() // see invariant 2 of Keeper
}

// awaitDisk returns when this node's log is on its disk up to an index.
func (k *Keeper) awaitDisk(ctx context.Context, index uint64) error {
	ctx, cancel := context.WithTimeoutCause(ctx, sweepDisk, gearsfs.ErrBusy.Because("the log was not on disk within %v", sweepDisk))
	defer cancel()
	for uint64(k.cfg.Node.Durable()) < index {
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// askAll asks all members for their uploads. Segments of those that don't answer
// are left alone.
func (s *sweepRun) askAll(ctx context.Context) error {
	k := s.keeper
	if k.cfg.Members.Alone() { // with an earlier life its Locals and its queues ended
		s.note(k.cfg.Self, k.pending.known())
		return nil
	}
	if k.cfg.Offline {
		return gearsfs.ErrNoNode.Because("uploads of the other nodes are not known while this one does not run")
	}
	own, err := k.pending.list()
	if err != nil {
		return err
	}
	s.note(k.cfg.Self, own)
	body, err := blocksRequest(&wire.Blocks{Pending: true})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, sweepPatience)
	defer cancel()
	var asking sync.WaitGroup
	var mu sync.Mutex
	for _, id := range k.cfg.Members.Others() {
		asking.Go(func() { // ends with ctx
			if resp, err := k.ask(ctx, id, body); err == nil {
				mu.Lock()
				s.note(id, resp.Segments)
				mu.Unlock()
			}
		})
	}
	asking.Wait()
	return nil
}

func (s *sweepRun) note(origin gearsfs.MemberID, segments []uint64) {
	set := make(map[uint64]bool, len(segments))
	for _, n := range segments {
		set[n] = true
	}
	s.pending[origin] = set
}

// skip says which segments are not to be swept.
func (s *sweepRun) skip(origin gearsfs.MemberID, segment uint64) bool {
	if set, ok := s.pending[origin]; ok {
		return set[segment]
	}
	row, ok := s.keeper.cfg.Machine.MemberRow(origin)
	return !ok || !row.Removed || !s.keeper.upkeep.longGone(origin)
}

// longGone reports whether a removed member was known as such long ago.
func (u *upkeep) longGone(id gearsfs.MemberID) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	now := u.keeper.pending.now()
	since, ok := u.removed[id]
	if !ok {
		u.removed[id] = now
		return false
	}
	return now.Sub(since) >= removedPatience
}

// sweepNow is sweep, and says why nothing was freed where that is so.
func (u *upkeep) sweepNow(ctx context.Context) (freed uint64, why string) {
	report, err := u.keeper.sweep(ctx)
	cfg := &u.keeper.cfg
	switch {
	case err == nil:
	case ctx.Err() != nil, errors.Is(err, gearsfs.ErrClosed):
		return uint64(report.Freed), ""
	default:
		why = fmt.Sprintf("what nothing refers to was not swept: %v", err)
	}
	if report.Freed > 0 {
		cfg.Log.Info("freed what uploads have left in the block store", "bytes", report.Freed, "segments", report.Segments)
	}
	return uint64(report.Freed), why
}
