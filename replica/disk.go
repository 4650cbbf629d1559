package replica

import (
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gearsfs/gearsfs"
)

// lazyDelay is how long an entry that nobody waits for may stay unsynced; with
// the sync itself it makes the 100 ms that a power cut may take.
const lazyDelay = 75 * time.Millisecond

// mark is a place in the history of appends: its number, which only rises, and
// the log's last index then, which may fall when a suffix is replaced.
type mark struct {
	seq   uint64
	index uint64
}

// settled is what waits for the append seq to be on disk: the durable
// proposals of an applied batch, or a function.
type settled struct {
	seq   uint64
	batch *batch
	done  func(error)
}

// disk syncs the log, on a goroutine of its own once that is started, and
// answers those who wait for it.
//
// Invariants, under mu:
//
//  1. synced.seq <= written.seq, wanted <= written.seq.
//  2. queue rises by seq; what is in it and not above synced is being answered
//     by the goroutine that set sweeping, in the queue's order.
//  3. err, once set, stays, and queue stays empty.
type disk struct {
	log     Log
	fail    func(error) // the sync failed
	kick    func()      // the loop asked to be told of a sync
	between func()      // called behind each sync that who has the baton does not make
	elapsed func() time.Duration

	wake  chan struct{} // of capacity 1
	quit  chan struct{}
	ended chan struct{} // not nil: run was started
	lazy  timer

	ahead atomic.Int64 // waiting, while a sync runs; else 0

	syncs   durations
	commits durations // of batches whose proposals are durable: see done

	mu       sync.Mutex
	written  mark
	synced   mark
	wanted   uint64 // someone waits for this append
	tell     bool   // kick after the next sync
	queue    []settled
	waiting  int // proposals in queue
	sweeping bool
	lazySet  bool
	syncing  bool          // on some goroutine
	timed    bool          // usual is known
	usual    time.Duration // that a sync takes, as of late
	err      error
}

// newDisk prepares the syncing of log; what is in it already counts as unsynced.
func newDisk(log Log, w world, fail func(error), kick func()) *disk {
	d := &disk{
		log: log, fail: fail, kick: kick,
		between: func() {},
		wake:    make(chan struct{}, 1), quit: make(chan struct{}),
		written: mark{seq: 1, index: log.Last()},
	}
	d.lazy = w.timer(d.wantAll)
	d.elapsed = w.elapsed
	return d
}

// start begins to sync without being stepped.
func (d *disk) start() {
	d.ended = make(chan struct{})
	go d.run()
}

// quick reports whether a sync on the caller's goroutine, now, is likely to take
// less than limit.
func (d *disk) quick(limit time.Duration) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.ended != nil && !d.syncing && d.timed && d.usual < limit
}

// wrote notes an append that made index the log's last, and starts a sync at
// once where one is wanted, else within lazyDelay. It returns the append's
// number. With here, the caller is going to call sync itself.
func (d *disk) wrote(index uint64, want, here bool) uint64 {
	d.mu.Lock()
	d.written.seq++
	d.written.index = index
	seq := d.written.seq
	if want {
		d.wanted = seq
	} else if !d.lazySet {
		d.lazySet = true
		d.lazy.Reset(lazyDelay)
	}
	d.mu.Unlock()
	if want && !here {
		d.poke()
	}
	return seq
}

func (d *disk) poke() {
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// wantAll asks for all that is written.
func (d *disk) wantAll() {
	d.mu.Lock()
	d.lazySet = false
	d.wanted = d.written.seq
	d.mu.Unlock()
	d.poke()
}

// settle answers b's durable proposals once what is written now is on disk.
// False: syncing has failed, and b was not taken.
func (d *disk) settle(b *batch) bool {
	d.mu.Lock()
	if d.err != nil {
		d.mu.Unlock()
		return false
	}
	seq := d.written.seq
	d.queue = append(d.queue, settled{seq: seq, batch: b})
	d.waiting += len(b.items)
	d.countLocked()
	want := d.wanted < seq
	if want {
		d.wanted = seq
	}
	d.sweepLocked()
	d.mu.Unlock()
	if want {
		d.poke()
	}
	return true
}

// whenSynced calls done once what is written now is on disk: at once where it
// is, else from the goroutine that syncs or the loop.
func (d *disk) whenSynced(done func(error)) {
	d.mu.Lock()
	seq, err := d.written.seq, d.err
	if err != nil && d.synced.seq == seq {
		err = nil // closed, with nothing left to sync
	} else if err == nil && d.synced.seq < seq {
		d.queue = append(d.queue, settled{seq: seq, done: done})
		d.wanted = seq
		d.mu.Unlock()
		d.poke()
		return
	}
	d.mu.Unlock()
	done(err)
}

// countLocked keeps ahead.
func (d *disk) countLocked() {
	ahead := 0
	if d.syncing {
		ahead = d.waiting
	}
	d.ahead.Store(int64(ahead))
}

// await returns when what is written now is on disk. Where nobody syncs, the
// caller does, since it waits in any case: no other goroutine is woken.
func (d *disk) await() error {
	d.mu.Lock()
	seq := d.written.seq
	here := d.err == nil && d.synced.seq < seq && !d.syncing
	if here {
		d.wanted = seq
	}
	d.mu.Unlock()
	if here && d.sync() {
		d.between()
		if d.isSynced(seq, false) {
			return nil
		}
	}
	done := make(chan error, 1)
	d.whenSynced(func(err error) { done <- err })
	return <-done
}

// isSynced reports whether append seq is on disk; if not, and tell is set, the
// loop is kicked after the next sync.
func (d *disk) isSynced(seq uint64, tell bool) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	ok := d.synced.seq >= seq
	if !ok && tell {
		d.tell = true
	}
	return ok
}

// installed notes that the log was replaced by one that ends at index and is on
// disk.
func (d *disk) installed(index uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.written = mark{seq: d.written.seq + 1, index: index}
	d.synced = d.written
	d.sweepLocked()
}

func (d *disk) syncedIndex() uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.synced.index
}

func (d *disk) run() {
	defer close(d.ended)
	for {
		select {
		case <-d.wake:
			for d.sync() {
				d.between()
				// Who was told of it runs first. Where somebody is ready to run
				// behind a thread that waits for the disk, Go's watchdog has to take
				// the processor from that, and looks around every 20 µs from then on.
				runtime.Gosched()
			}
		case <-d.quit:
			return
		}
	}
}

// sync syncs what was written until now, where someone wants it, and answers
// all who waited. Meanwhile the loop goes on, so that what it writes shares
// the next sync. False: there was nothing to do, or it failed; a sync that
// failed is never tried again, because the kernel may have dropped the pages
// and say nothing the second time.
func (d *disk) sync() bool { return d.syncThen(func() {}) }

// syncThen is sync that calls synced, unless it returns false, before it answers.
func (d *disk) syncThen(synced func()) bool {
	d.mu.Lock()
	target := d.written
	if d.err != nil || d.syncing || d.wanted <= d.synced.seq {
		d.mu.Unlock()
		return false
	}
	d.syncing = true
	d.countLocked()
	d.mu.Unlock()
	began := d.elapsed()
	if err := d.log.Sync(); err != nil {
		d.fail(fmt.Errorf("sync the log: %w", err))
		return false
	}
	took := d.elapsed() - began
	d.syncs.add(took)
	synced()
	d.mu.Lock()
	d.syncing = false
	d.countLocked()
	if !d.timed {
		d.timed, d.usual = true, took
	}
	d.usual += (took - d.usual) / 8
	tell := d.tell
	d.tell = false
	if d.err == nil {
		if target.seq > d.synced.seq {
			d.synced = target
		}
		d.sweepLocked()
	}
	more := d.wanted > d.synced.seq
	d.mu.Unlock()
	if tell {
		d.kick()
	}
	if more {
		d.poke() // who found it syncing has left it to this one
	}
	return true
}

// sweepLocked answers what is on disk, in order, unlocking mu meanwhile. Only
// one goroutine does so at a time; the other's part is done by it too.
func (d *disk) sweepLocked() {
	if d.sweeping {
		return
	}
	d.sweeping = true
	for {
		n := 0
		for n < len(d.queue) && d.queue[n].seq <= d.synced.seq {
			n++
		}
		if n == 0 {
			break
		}
		ready := d.queue[:n:n]
		for i := range ready {
			if b := ready[i].batch; b != nil {
				d.waiting -= len(b.items)
			}
		}
		if d.queue = d.queue[n:]; len(d.queue) == 0 {
			d.queue = nil
		}
		d.mu.Unlock()
		for i := range ready {
			d.answer(&ready[i], nil)
		}
		d.mu.Lock()
	}
	d.sweeping = false
}

// answer tells who waits for s.
func (d *disk) answer(s *settled, err error) {
	switch {
	case s.done != nil:
		s.done(err)
	case err != nil:
		s.batch.answer(true, err)
	default:
		d.done(s.batch)
	}
}

// done answers b's durable proposals, which are applied and on disk.
func (d *disk) done(b *batch) {
	d.commits.add(d.elapsed() - b.begun)
	b.answer(true, nil)
}

// abort answers all that waits with an unknown outcome because of cause.
func (d *disk) abort(cause error) {
	d.mu.Lock()
	if d.err == nil {
		d.err = cause
	}
	queue := d.queue
	d.queue = nil
	d.mu.Unlock()
	for i := range queue {
		d.answer(&queue[i], gearsfs.ErrMaybe.Because("outcome unknown: %v", cause))
	}
}

// close syncs what is left, where nothing has failed, answers who waits for it
// and returns when that is done. Nothing may be written any more.
func (d *disk) close() {
	d.lazy.Stop()
	close(d.quit)
	if d.ended != nil {
		<-d.ended
	}
	d.wantAll()
	d.sync()
	d.abort(gearsfs.ErrClosed)
}
