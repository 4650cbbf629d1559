package main

import (
	"context"
	"sync"
	"time"

	"github.com/gearsfs/gearsfs"
)

// What came of runs gathers while others go on, and is then settled in one call:
// gatherSpan after the settlement before, or as soon as gatherMax runs or
// gatherBytesMax of outputs have gathered or no other run goes on. So a run is
// settled at once where somebody may wait for it, and a thousand short ones a
// second cost the node and this process two hundred settlements.
const (
	gatherSpan     = 5 * time.Millisecond
	gatherMax      = 32
	gatherBytesMax = gearsfs.BatchBytesMax
)

// result is what came of a set's run.
type result struct {
	*set
	yield yield
	err   error
}

// gathering is the results that are to be settled. The worker's mutex guards it.
type gathering struct {
	results []result
	bytes   int
	due     bool          // gatherSpan has passed
	last    time.Time     // when results were last taken to be settled
	over    bool          // no more will come
	ready   chan struct{} // holds one token where they are to be settled
}

// hasRoom reports whether a result may come before others are settled.
func (g *gathering) hasRoom() bool { return len(g.results) < gatherMax && g.bytes < gatherBytesMax }

// gather hands over what came of a run, waiting for room.
func (w *worker) gather(r result) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for !w.gathering.hasRoom() {
		w.changed.Wait()
	}
	w.gathering.results = append(w.gathering.results, r)
	w.gathering.bytes += r.yield.bytes()
	if w.gatheredLocked() {
		wake(w.gathering.ready)
	}
}

// gatheredLocked reports whether results are to be settled now.
func (w *worker) gatheredLocked() bool {
	g := &w.gathering
	return len(g.results) > 0 && (g.due || !g.hasRoom() || w.running == 0 && len(w.queue) == 0)
}

// endGathering says that all results were handed over.
func (w *worker) endGathering() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.gathering.over = true
	wake(w.gathering.ready)
}

// settleRuns settles what runs hand over, until endGathering. At most as many
// calls are under way as there are slots, so that outputs which are full hold up
// the runs. With one slot the outputs keep the order of the runs.
func (w *worker) settleRuns(ctx context.Context) {
	var settling sync.WaitGroup
	calls := make(chan struct{}, w.jobs)
	for {
		calls <- struct{}{}
		results := w.gathered()
		if len(results) == 0 {
			break
		}
		settling.Go(func() {
			w.settleAll(ctx, results)
			<-calls
		})
	}
	settling.Wait()
}

// gathered waits until results are to be settled and returns them, none at the
// end.
func (w *worker) gathered() []result {
	g := &w.gathering
	due := time.NewTimer(time.Until(g.last.Add(gatherSpan)))
	defer due.Stop()
	for {
		w.mu.Lock()
		if g.over || w.gatheredLocked() {
			results := g.results
			g.results, g.bytes, g.due, g.last = nil, 0, false, time.Now()
			w.changed.Broadcast()
			w.mu.Unlock()
			return results
		}
		w.mu.Unlock()
		select {
		case <-g.ready:
		case <-due.C:
			w.mu.Lock()
			g.due = true
			w.mu.Unlock()
		}
	}
}

// settleAll settles several runs: those that did not fail in one call, and each
// on its own where that is not possible.
func (w *worker) settleAll(ctx context.Context, results []result) {
	var good, rest []result
	for _, r := range results {
		if r.err == nil {
			good = append(good, r)
		} else {
			rest = append(rest, r)
		}
	}
	if w.settleTogether(ctx, good) {
		for _, r := range good {
			w.settled(r.set, false)
		}
	} else {
		rest = results
	}
	var settling sync.WaitGroup
	for _, r := range rest {
		if w.jobs == 1 {
			w.settle(r)
		} else {
			settling.Go(func() { w.settle(r) })
		}
	}
	settling.Wait()
}

// settleTogether acknowledges the inputs of several runs and puts their outputs,
// all in one step, and reports whether it did. Where it did not, what it asked
// for may still have happened if the answer was lost; each run then finds its
// lease gone, as after such an answer of its own.
func (w *worker) settleTogether(ctx context.Context, results []result) bool {
	if len(results) < 2 || len(w.inputs[0].keys) > 1 { // which may be in two stores, settled in two steps
		return false
	}
	var held []gearsfs.Receipt
	var all bundle
	for _, r := range results {
		b, err := w.bundle(r.yield)
		if err != nil || !all.join(b) {
			return false
		}
		held = append(held, receipts(r.records)...)
	}
	return w.acknowledge(ctx, held, all, true) == nil
}
