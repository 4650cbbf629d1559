package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"syscall"
	"time"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/cmd/internal/units"
)

// workLease is how long a worker's leases last that are not extended. They end
// earlier, with the session, where the connection tells that the worker died.
const workLease = 30 * time.Second

// A worker's records that wait for a free slot are few enough that they will
// begin within aheadSpan, by what runs took so far; who waits longer than
// aheadPatience goes back, for others to take.
const (
	aheadMax      = 64
	aheadSpan     = 100 * time.Millisecond
	aheadPatience = time.Second
)

// Failed runs are repeated after retryFirst, then twice as long, up to retryLast.
const (
	retryFirst = time.Second
	retryLast  = time.Hour
)

// worker takes sets of records, runs a command for each and commits what came
// of it.
//
//	feed ──▶ queue ──▶ jobs slots, each a runner ──▶ gathering ──▶ settlements, at most jobs of them
//
// One goroutine feeds; each slot has one; one settles what has gathered, each
// settlement on a goroutine of its own, and the next runs begin meanwhile. A
// set's leases are kept from the moment it is fed until it is settled.
type worker struct {
	*app
	inputs  []source
	outputs []volumeStream
	spec    runSpec
	jobs    int
	limit   uint64 // of sets; 0 is none
	noWait  bool
	wait    units.Duration
	force   bool
	every   time.Duration // between starts; 0 is none
	lines   bool
	seal    bool
	taking  bool // each failure counts, not only that of records that died
	board   *board

	keeper *keeper
	single *leaser // where there is one input
	looked bool
	began  time.Time

	mu        sync.Mutex
	changed   *sync.Cond // queue, over or gathering
	demand    chan struct{}
	queue     []*set
	idle      int    // slots that wait
	fed       uint64 // sets
	over      bool   // nothing will be fed any more
	feedErr   error  // why
	fatal     error  // what this worker can't go on with
	stop      context.CancelCauseFunc
	typical   time.Duration // of a run
	gathering gathering
	tally
	lost  uint64
	noted map[string]bool // outputs by GEARSFS_OUT that are to be sealed, too
}

// source is where a worker takes one record of each set from: the first of keys
// that has one.
type source struct {
	volumeStream
	keys  []gearsfs.Key
	tries uint32
}

// set is one record of each input.
type set struct {
	records []gearsfs.Record
	tries   []uint32
	fed     time.Time
	ctx     context.Context // ends when the leases are lost, or are to be given back
	cancel  context.CancelCauseFunc
	kept    *kept
}

func newWorker(a *app) *worker {
	w := &worker{app: a, demand: make(chan struct{}, 1)}
	w.gathering.ready = make(chan struct{}, 1)
	w.changed = sync.NewCond(&w.mu)
	return w
}

// oneVolume returns an error where inputs and outputs are not reached in one
// way: then they can't be part of one transaction.
func (w *worker) oneVolume() error {
	first := w.inputs[0]
	for _, in := range w.inputs {
		if in.Manager != first.Manager {
			return gearsfs.ErrInvalid.Because("%s and %s must be named through the same node, as parts of one volume", first.arg, in.arg)
		}
	}
	for _, out := range w.outputs {
		if out.Manager != first.Manager {
			return gearsfs.ErrInvalid.Because("%s and %s must be named through the same node, as parts of one volume", first.arg, out.arg)
		}
	}
	return nil
}

// work runs until the input is drained, the limit is reached, or ctx or a signal
// ends it. When it returns, nothing is leased.
func (w *worker) work(ctx context.Context) error {
	m := w.inputs[0].Manager
	w.began = time.Now()
	w.keeper = startKeeper(m, workLease, false)
	defer w.keeper.close()
	var runners []*runner
	defer func() {
		for _, r := range runners {
			r.close()
		}
	}()
	for range w.jobs {
		r, err := w.newRunner(w.spec)
		if err != nil {
			return err
		}
		runners = append(runners, r)
	}
	feeding, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	w.stop = stop
	w.stopOnSignal()
	defer w.onSignal.Store(nil)
	var jobs sync.WaitGroup
	for _, r := range runners {
		jobs.Go(func() { w.slot(r) })
	}
	jobs.Go(func() { w.feed(ctx, feeding) })
	watching, done := context.WithCancel(ctx)
	var watch sync.WaitGroup
	watch.Go(func() { w.watch(watching) })
	var settling sync.WaitGroup
	settling.Go(func() { w.settleRuns(ctx) })
	jobs.Wait()
	w.endGathering()
	settling.Wait()
	done()
	watch.Wait()
	return w.verdict(ctx)
}

// stopOnSignal has the first signal start no more runs; the next ends ctx.
func (w *worker) stopOnSignal() {
	first := true
	f := func(s syscall.Signal) bool {
		if !first {
			return false
		}
		first = false
		w.stop(&signalError{s})
		return true
	}
	w.onSignal.Store(&f)
}

// verdict is what the command returns when all is settled.
func (w *worker) verdict(ctx context.Context) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	end := w.feedErr
	ended := errors.Is(end, gearsfs.ErrEnd)
	switch {
	case w.fatal != nil:
		return w.fatal
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case end != nil && (!drained(end) || w.taking):
		return fmt.Errorf("%s: %w", w.inputs[0], end)
	}
	if w.seal {
		if err := w.sealOutputs(ctx, ended); err != nil {
			return err
		}
	}
	switch {
	case w.died > 0:
		return fmt.Errorf("died: %d (in KEY.dead now, whence move brings them back)", w.died)
	case w.taking && w.failed > 0:
		return &toldError{exitFailed}
	}
	return nil
}

// slot runs the command for one set after the other.
func (w *worker) slot(r *runner) {
	for s := w.next(); s != nil; s = w.next() {
		began := time.Now()
		y, err := r.run(s.ctx, s.records)
		w.ran(time.Since(began))
		w.gather(result{s, y, err})
	}
}

// next waits for a set; nil says that there will be none.
func (w *worker) next() *set {
	w.mu.Lock()
	defer w.mu.Unlock()
	for len(w.queue) == 0 {
		if w.over {
			return nil
		}
		w.idle++
		wake(w.demand)
		w.changed.Wait()
		w.idle--
	}
	s := w.queue[0]
	w.queue = w.queue[1:]
	w.running++
	if w.roomLocked() > 0 {
		wake(w.demand)
	}
	return s
}

// ran learns how long a run took.
func (w *worker) ran(took time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.running--
	if w.typical == 0 {
		w.typical = took
	}
	w.typical += (took - w.typical) / 4
}

// fail makes the worker end, because of what it can't go on with.
func (w *worker) fail(err error) {
	w.mu.Lock()
	if w.fatal == nil {
		w.fatal = err
	}
	w.mu.Unlock()
	w.stop(err)
}

// watch gives back what waits for too long, and draws the board.
func (w *worker) watch(ctx context.Context) {
	tick := time.NewTicker(boardEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		w.giveBackStale()
		if w.board == nil || !w.board.terminal {
			continue
		}
		in := w.inputs[0]
		info, err := in.Stream(ctx, in.file(), in.key)
		if err != nil {
			continue // it will be drawn when the node answers again
		}
		w.mu.Lock()
		t := w.tally
		w.mu.Unlock()
		t.left = info.Records + info.Leased + info.Delayed
		t.rate = float64(t.done) / time.Since(w.began).Seconds()
		w.board.draw(t)
	}
}

// giveBackStale gives back what has been in the queue for long: the runs before
// it take longer than those that came before.
func (w *worker) giveBackStale() {
	w.mu.Lock()
	var stale []*set
	for len(w.queue) > 0 && time.Since(w.queue[0].fed) > aheadPatience && w.idle == 0 {
		stale = append(stale, w.queue[0])
		w.queue = w.queue[1:]
		w.fed--
		w.typical = max(w.typical, aheadPatience)
	}
	w.mu.Unlock()
	for _, s := range stale {
		w.giveBack(s)
	}
}

// neverIfZero is a number of tries as a lease is told it, where 0 would mean
// what the stream says.
func neverIfZero(tries uint32) uint32 {
	if tries == 0 {
		return math.MaxUint32
	}
	return tries
}
