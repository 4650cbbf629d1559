package main

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm"
)

// errLost is why a run was killed whose lease another may have by now.
var errLost = gearsfs.ErrGone.Because("the lease was lost")

// keeper extends leases for as long as they are held, each when a third of it
// has passed.
type keeper struct {
	m        dgm.Manager
	leaseFor time.Duration
	// strict says that a lease which could not be extended counts as lost a
	// little before it would end, even if nobody says so.
	strict bool

	mu   sync.Mutex
	held map[*kept]struct{}

	stop  context.CancelFunc
	ended chan struct{}
}

// kept are leases that are held for one purpose, all or none.
type kept struct {
	receipts []gearsfs.Receipt
	extended time.Time // when the last extension was asked for that was granted
	lost     func()    // called at most once, on a goroutine of the keeper
}

// startKeeper begins; close must be called.
func startKeeper(m dgm.Manager, leaseFor time.Duration, strict bool) *keeper {
	ctx, stop := context.WithCancel(context.Background())
	k := &keeper{
		m: m, leaseFor: leaseFor, strict: strict, held: make(map[*kept]struct{}),
		stop: stop, ended: make(chan struct{}),
	}
	go k.run(ctx)
	return k
}

// close ends the extending; leases that are held still go on until their end.
func (k *keeper) close() {
	k.stop()
	<-k.ended
}

// keep holds leases, that were granted or extended after since, until drop.
func (k *keeper) keep(receipts []gearsfs.Receipt, since time.Time, lost func()) *kept {
	h := &kept{receipts: receipts, extended: since, lost: lost}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.held[h] = struct{}{}
	return h
}

// drop lets leases be, and reports whether they were not lost before.
func (k *keeper) drop(h *kept) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	_, held := k.held[h]
	delete(k.held, h)
	return held
}

func (k *keeper) run(ctx context.Context) {
	defer close(k.ended)
	tick := time.NewTicker(k.leaseFor / 12)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			k.extendDue(ctx)
		case <-ctx.Done():
			return
		}
	}
}

// extendDue extends what was extended last a third of a lease ago: all in one
// call, and where some are gone each on its own.
func (k *keeper) extendDue(ctx context.Context) {
	now := time.Now()
	var due []*kept
	var all []gearsfs.Receipt
	k.mu.Lock()
	for h := range k.held {
		if now.Sub(h.extended) >= k.leaseFor/3 && len(all)+len(h.receipts) <= gearsfs.BatchRecordsMax {
			due, all = append(due, h), append(all, h.receipts...)
		}
	}
	k.mu.Unlock()
	if len(due) == 0 {
		return
	}
	err := k.extend(ctx, due, all)
	if errors.Is(err, gearsfs.ErrGone) && len(due) > 1 {
		for _, h := range due {
			if err := k.extend(ctx, []*kept{h}, h.receipts); definite(err) {
				k.lose(h)
			}
		}
		return
	}
	for _, h := range due {
		if definite(err) || k.strict && time.Since(h.extended) >= k.safeFor() {
			k.lose(h)
		}
	}
}

// safeFor is for how long after an extension was asked for a lease is surely
// held: the clocks on both sides may differ in speed.
func (k *keeper) safeFor() time.Duration { return k.leaseFor - k.leaseFor/6 }

// definite reports whether err says that leases are not held any more.
func definite(err error) bool {
	return errors.Is(err, gearsfs.ErrGone) || errors.Is(err, gearsfs.ErrSession) || errors.Is(err, gearsfs.ErrStale)
}

// extend asks for one extension of several leases. With strict it does not
// wait for an answer that would come too late.
func (k *keeper) extend(ctx context.Context, due []*kept, receipts []gearsfs.Receipt) error {
	if k.strict {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, due[0].extended.Add(k.safeFor()))
		defer cancel()
	}
	asked := time.Now()
	settled := make(chan error, 1)
	go func() { // ends at the latest when the session is closed
		settled <- k.m.Settle(ctx, dgm.Settle{Receipts: receipts, Extend: k.leaseFor})
	}()
	var err error
	select {
	case err = <-settled:
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err == nil {
		k.mu.Lock()
		for _, h := range due {
			h.extended = asked
		}
		k.mu.Unlock()
	}
	return err
}

func (k *keeper) lose(h *kept) {
	if k.drop(h) {
		h.lost()
	}
}
