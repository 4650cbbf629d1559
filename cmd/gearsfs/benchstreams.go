package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm"
)

const benchRecordBytes = 100

// streamBench puts and takes in files of one directory, each client in a session
// of its own and a file of its own.
type streamBench struct {
	app   *app
	addrs string
	path  string // of the directory
	first dgm.Manager
	more  []dgm.Manager
}

func (b *streamBench) close() error {
	var errs []error
	for _, m := range b.more {
		errs = append(errs, m.Close())
	}
	return errors.Join(errs...)
}

// client returns the i-th client.
func (b *streamBench) client(ctx context.Context, i int) (dgm.Manager, error) {
	if i == 0 {
		return b.first, nil
	}
	for len(b.more) < i {
		dialing, cancel := context.WithTimeout(ctx, dialTimeout)
		m, err := b.app.dial(dialing, b.addrs)
		cancel()
		if err != nil {
			return nil, dialError(ctx, b.addrs, err)
		}
		b.more = append(b.more, m)
	}
	return b.more[i-1], nil
}

func (b *streamBench) file(i int) gearsfs.File { return gearsfs.At(fmt.Sprintf("%s/q%d", b.path, i)) }

func (b *streamBench) run(ctx context.Context, clients int) ([]measured, error) {
	var rows []measured
	for _, n := range []int{1, clients} {
		if n == 1 && len(rows) > 0 {
			break // --clients 1
		}
		put, err := b.all(ctx, n, "put", b.put)
		if err != nil {
			return nil, err
		}
		take, err := b.all(ctx, n, "take", b.take)
		if err != nil {
			return nil, err
		}
		rows = append(rows, put, take)
	}
	row, err := b.handOver(ctx)
	return append(rows, row), err
}

// put puts a record at a client's file; it is on disk when this returns.
func (b *streamBench) put(ctx context.Context, m dgm.Manager, i int) (bool, error) {
	_, err := m.Put(ctx, dgm.Put{File: b.file(i), Key: "data", Records: []gearsfs.NewRecord{{Data: noise(benchRecordBytes)}}})
	return true, err
}

// take takes what put has put, and reports whether there was any.
func (b *streamBench) take(ctx context.Context, m dgm.Manager, i int) (bool, error) {
	_, err := m.Take(ctx, dgm.Take{File: b.file(i), Keys: []gearsfs.Key{"data"}, NoWait: true})
	if errors.Is(err, gearsfs.ErrEmpty) {
		return false, nil
	}
	return true, err
}

// all has n clients do the same at once until the span is over or nothing is left.
func (b *streamBench) all(ctx context.Context, n int, what string, do func(context.Context, dgm.Manager, int) (bool, error)) (measured, error) {
	managers := make([]dgm.Manager, n)
	for i := range managers {
		var err error
		if managers[i], err = b.client(ctx, i); err != nil {
			return measured{}, err
		}
	}
	name := fmt.Sprintf("%s, durable: %d clients", what, n)
	if n == 1 {
		name = what + ", durable: 1 client"
	}
	took, errs := make([][]time.Duration, n), make([]error, n)
	var working sync.WaitGroup
	begin := time.Now()
	for i, m := range managers {
		working.Go(func() {
			for last := time.Now(); last.Sub(begin) < benchSpan; {
				more, err := do(ctx, m, i)
				if err != nil || !more {
					errs[i] = err
					return
				}
				now := time.Now()
				took[i] = append(took[i], now.Sub(last))
				last = now
			}
		})
	}
	working.Wait()
	span := time.Since(begin)
	if err := errors.Join(errs...); err != nil {
		return measured{}, fmt.Errorf("%s: %w", name, err)
	}
	var every []time.Duration
	for _, t := range took {
		every = append(every, t...)
	}
	return rate(name, "records/s", every, span), nil
}

// handOver measures how long it takes from the beginning of a put until a take
// that waits for it has the record, one after the other.
func (b *streamBench) handOver(ctx context.Context) (measured, error) {
	taker, err := b.client(ctx, 1)
	if err != nil {
		return measured{}, err
	}
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	file := gearsfs.At(b.path + "/handover")
	taken, ended := make(chan time.Time), make(chan error, 1)
	go func() { // ends with ctx
		for {
			_, err := taker.Take(ctx, dgm.Take{File: file, Keys: []gearsfs.Key{"data"}})
			if err != nil {
				stop(err)
				ended <- err
				return
			}
			select {
			case taken <- time.Now():
			case <-ctx.Done():
				ended <- nil
				return
			}
		}
	}()
	var took []time.Duration
	begin := time.Now()
	for time.Since(begin) < benchSpan && err == nil {
		put := time.Now()
		_, err = b.first.Put(ctx, dgm.Put{File: file, Key: "data", Records: []gearsfs.NewRecord{{Data: noise(benchRecordBytes)}}})
		if err != nil {
			break
		}
		select {
		case at := <-taken:
			took = append(took, at.Sub(put))
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
	}
	span := time.Since(begin)
	stop(nil)
	<-ended
	if err != nil {
		return measured{}, fmt.Errorf("put to take: %w", err)
	}
	return rate("put to waiting take", "records/s", took, span), nil
}
