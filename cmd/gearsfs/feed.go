package main

import (
	"context"
	"errors"
	"time"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm"
)

// feed takes sets as slots ask for them, until feeding ends, there are no more
// or none are wanted. ctx is that of the runs.
func (w *worker) feed(ctx, feeding context.Context) {
	var err error
	last := time.Time{} // when the last set was fed
	for err == nil {
		n := w.wanted(feeding)
		if n == 0 {
			break
		}
		if w.every > 0 {
			n = 1
			if err = pause(feeding, w.every-time.Since(last)); err != nil {
				break
			}
		}
		var sets []*set
		sets, err = w.takeSets(feeding, n)
		last = time.Now()
		w.push(ctx, sets)
	}
	w.mu.Lock()
	w.over, w.feedErr = true, cause(feeding, err)
	if err == nil && feeding.Err() != nil {
		w.feedErr = context.Cause(feeding)
	}
	var unrun []*set
	if feeding.Err() != nil {
		unrun, w.queue = w.queue, nil
	}
	w.changed.Broadcast()
	w.mu.Unlock()
	for _, s := range unrun {
		w.giveBack(s)
	}
}

// pause waits; it returns ctx's error when that ends first.
func pause(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// wanted waits until slots want sets, and returns how many; 0 when the limit is
// reached or ctx has ended.
func (w *worker) wanted(ctx context.Context) int {
	for ctx.Err() == nil {
		w.mu.Lock()
		n := w.roomLocked()
		reached := false
		if w.limit > 0 {
			left := w.limit - min(w.limit, w.fed)
			n, reached = int(min(uint64(max(n, 0)), left)), left == 0 && w.running+len(w.queue) == 0
			// What is queued may still be given back and then is fed again.
		}
		w.mu.Unlock()
		if n > 0 {
			return n
		}
		if reached {
			return 0
		}
		select {
		case <-w.demand:
		case <-ctx.Done():
		}
	}
	return 0
}

// roomLocked is how many sets are to be taken, if the limit allows it: as many as
// there is room for, and none while that would be few, so that a take is for
// many where runs are short.
func (w *worker) roomLocked() int {
	ahead := w.aheadLocked()
	if w.idle == 0 && len(w.queue) > ahead/2 {
		return 0
	}
	return w.idle + ahead - len(w.queue)
}

// aheadLocked is how many sets may wait for a slot.
func (w *worker) aheadLocked() int {
	if len(w.inputs) > 1 || w.every > 0 || w.taking || w.typical == 0 {
		return 0
	}
	return int(min(aheadMax, time.Duration(w.jobs)*aheadSpan/max(w.typical, time.Microsecond)))
}

// push hands sets to the slots.
func (w *worker) push(ctx context.Context, sets []*set) {
	now := time.Now()
	for _, s := range sets {
		s.fed = now
		s.ctx, s.cancel = context.WithCancelCause(ctx)
		s.kept = w.keeper.keep(receipts(s.records), now, func() { s.cancel(errLost) })
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.queue = append(w.queue, sets...)
	w.fed += uint64(len(sets))
	w.changed.Broadcast()
}

// takeSets takes up to n sets, waiting for the first.
func (w *worker) takeSets(ctx context.Context, n int) ([]*set, error) {
	if len(w.inputs) > 1 {
		s, err := w.takeTogether(ctx)
		if s == nil {
			return nil, err
		}
		return []*set{s}, err
	}
	in := w.inputs[0]
	if w.single == nil {
		w.single = &leaser{
			app: w.app, target: in.target, keys: in.keys, wait: w.wait, noWait: w.noWait, force: w.force,
			leaseFor: workLease, tries: in.tries,
		}
	}
	records, err := w.single.leaseOne(ctx, uint64(n))
	sets := make([]*set, len(records))
	for i := range records {
		sets[i] = &set{records: records[i : i+1 : i+1], tries: []uint32{in.tries}}
	}
	return sets, err
}

// takeTogether takes a record of each input, all at once.
func (w *worker) takeTogether(ctx context.Context) (*set, error) {
	m := w.inputs[0].Manager
	tx := dgm.Transact{NoWait: w.noWait || !w.looked}
	s := &set{}
	for _, in := range w.inputs {
		tx.Steps = append(tx.Steps, dgm.Step{Take: &dgm.Take{
			File: in.file(), Keys: in.keys, Max: 1, Force: w.force, Lease: true, LeaseFor: workLease, Tries: in.tries,
		}})
		s.tries = append(s.tries, in.tries)
	}
	results, err := m.Transact(ctx, tx)
	if errors.Is(err, gearsfs.ErrEmpty) && !w.noWait && !w.looked {
		for _, in := range w.inputs {
			w.noteMissing(ctx, in.target, in.keys)
		}
		tx.NoWait = false
		results, err = m.Transact(ctx, tx)
	}
	w.looked = true
	if err != nil {
		return nil, err
	}
	for _, result := range results {
		s.records = append(s.records, result.Records...)
	}
	return s, nil
}
