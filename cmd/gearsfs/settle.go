package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm"
)

// settle makes of a run what its outcome says: outputs and acknowledgement in
// one transaction, or the records go back.
func (w *worker) settle(r result) {
	s, err := r.set, r.err
	if err == nil {
		err = w.commit(s, r.yield)
	}
	_, failed := errors.AsType[*failure](err)
	if failed {
		err = w.giveBackLater(s, err)
	}
	switch {
	case err == nil:
		w.settled(s, failed)
		return
	case errors.Is(err, errLost) || definite(err) || errors.Is(err, gearsfs.ErrMaybe):
		w.keeper.drop(s.kept)
		w.mu.Lock()
		w.lost++
		w.mu.Unlock()
		w.notef("%s: the lease was lost, what the run wrote is dropped: another worker has it", s)
	default:
		stopped := s.ctx.Err() != nil
		w.giveBack(s)
		if !stopped {
			w.fail(fmt.Errorf("%s: %w", s, err))
		}
	}
	s.cancel(nil)
	wake(w.demand)
}

// settled counts a run whose records are acknowledged, or went back after a
// failure.
func (w *worker) settled(s *set, failed bool) {
	w.keeper.drop(s.kept)
	s.cancel(nil)
	w.mu.Lock()
	defer w.mu.Unlock()
	if failed {
		w.failed++
	} else {
		w.done++
	}
}

// String names a set in messages.
func (s *set) String() string {
	if len(s.records) == 1 {
		return fmt.Sprintf("record %d of %s", s.records[0].Place.Seq, s.records[0].Key)
	}
	return fmt.Sprintf("the set of record %d of %s", s.records[0].Place.Seq, s.records[0].Key)
}

// commit puts the outputs of a run and acknowledges its inputs, in one step. It
// waits for room in the outputs. What no transaction has room for is a failure.
func (w *worker) commit(s *set, y yield) error {
	b, err := w.bundle(y)
	if err != nil {
		return err
	}
	return cause(s.ctx, w.acknowledge(s.ctx, receipts(s.records), b, false))
}

// cut makes records of what was written: one, or with -l one per line.
func (w *worker) cut(data []byte) []gearsfs.NewRecord {
	if !w.lines {
		return []gearsfs.NewRecord{{Data: data}}
	}
	var records []gearsfs.NewRecord
	for line := range bytes.Lines(data) {
		records = append(records, gearsfs.NewRecord{Data: bytes.TrimSuffix(line, []byte{'\n'})})
	}
	return records
}

// giveBackLater returns the records of a run that failed because of why; those
// that have failed often enough die.
func (w *worker) giveBackLater(s *set, why error) error {
	var deliveries uint32
	var dead []gearsfs.Record
	for i, r := range s.records {
		deliveries = max(deliveries, r.Deliveries)
		if r.Deliveries >= s.tries[i] && (r.Key+".dead").Check() == nil {
			dead = append(dead, r)
		}
	}
	delay := retryDelay(deliveries)
	settling, cancel := lingering(s.ctx)
	defer cancel()
	err := w.inputs[0].Settle(settling, dgm.Settle{Receipts: receipts(s.records), Return: true, Delay: delay})
	if err != nil {
		return err
	}
	outcome := fmt.Sprintf("it goes back, to be taken again in %s", delay)
	if len(dead) > 0 {
		outcome = fmt.Sprintf("it was tried %s and is in %s.dead now", counted(uint64(dead[0].Deliveries), "time"), dead[0].Key)
	}
	w.mu.Lock()
	w.died += uint64(len(dead))
	w.mu.Unlock()
	w.notef("%s: %v: %s", s, why, outcome)
	return nil
}

// retryDelay is how long a record rests that was handed out so often, and
// failed each time.
func retryDelay(deliveries uint32) time.Duration {
	delay := retryFirst
	for ; deliveries > 1 && delay < retryLast; deliveries-- {
		delay *= 2
	}
	return min(delay, retryLast)
}

// giveBack returns the records of a set that was not run, or not to its end: at
// once, and to no stream of the dead.
func (w *worker) giveBack(s *set) {
	w.keeper.drop(s.kept)
	defer s.cancel(nil)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(s.ctx), settleTimeout)
	defer cancel()
	err := w.inputs[0].Settle(ctx, dgm.Settle{Receipts: receipts(s.records), Return: true, Tries: math.MaxUint32})
	if err != nil && !definite(err) {
		w.notef("give back %s (it goes back by itself when the session ends): %v", s, err)
	}
	wake(w.demand)
}
