package load

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// Queue is an empty queue of some system, as a Work is to use it. Connections
// are for one goroutine; they end when the context ends that they were made
// with.
type Queue interface {
	Putter(ctx context.Context) (Putter, error)
	// Taker takes under leases where the Work asks for them, or where the system
	// knows no other way.
	Taker(ctx context.Context) (Taker, error)
	// Current waits until all nodes have what was put.
	Current(ctx context.Context) error
}

// Putter is a connection that puts.
type Putter interface {
	// Put puts n records, and returns when that is durable.
	Put(ctx context.Context, n int) error
	// Fill does too, in whatever way is quick.
	Fill(ctx context.Context, n int) error
	// Waiting tells whether a taker waits.
	Waiting(ctx context.Context) (bool, error)
	Close() error
}

// Taker is a connection that takes.
type Taker interface {
	// Take waits for records and takes up to n of them.
	Take(ctx context.Context, n int) (int, error)
	// Ack acknowledges what was taken under leases, and returns when that is
	// durable.
	Ack(ctx context.Context) error
	// Chain is Ack of what is leased, if anything, and Take of exactly n records
	// in one round trip.
	Chain(ctx context.Context, n int) error
	Close() error
}

// Measure does a work with a queue.
func Measure(ctx context.Context, w Work, q Queue) (f Figures, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	m := &measurement{work: w, queue: q, fail: cancel}
	defer func() { err = errors.Join(err, m.close()) }()
	switch w.Do {
	case Put:
		return m.puts(ctx)
	case Take, Lease, Chain:
		return m.takes(ctx)
	case Both:
		return m.both(ctx)
	case Wake:
		return m.wakes(ctx)
	}
	return f, fmt.Errorf("unknown work %q", w.Do)
}

// measurement is one call of Measure.
type measurement struct {
	work    Work
	queue   Queue
	fail    context.CancelCauseFunc // ends the connections
	putters []Putter
	takers  []Taker
}

func (m *measurement) connect(ctx context.Context, putters, takers int) error {
	for range putters {
		p, err := m.queue.Putter(ctx)
		if err != nil {
			return err
		}
		m.putters = append(m.putters, p)
	}
	for range takers {
		t, err := m.queue.Taker(ctx)
		if err != nil {
			return err
		}
		m.takers = append(m.takers, t)
	}
	return nil
}

func (m *measurement) close() error {
	errs := make([]error, len(m.putters)+len(m.takers))
	var wait sync.WaitGroup
	for i, p := range m.putters {
		wait.Go(func() { errs[i] = p.Close() })
	}
	for i, t := range m.takers {
		wait.Go(func() { errs[len(m.putters)+i] = t.Close() })
	}
	wait.Wait()
	return errors.Join(errs...)
}

// run is Run, but an error of one client frees those that wait.
func (m *measurement) run(ctx context.Context, clients int, op func(ctx context.Context, client int) error) (Figures, error) {
	warm := m.work.Time / 8
	if m.work.takes() {
		warm = 0 // filling was warm-up enough, and the stock is for the measuring
	}
	return Run(ctx, clients, warm, m.work.Time, func(ctx context.Context, i int) (int, error) {
		err := op(ctx, i)
		if err != nil && !errors.Is(err, ErrEmpty) {
			m.fail(err)
		}
		return m.work.Batch, err
	})
}

func (m *measurement) puts(ctx context.Context) (Figures, error) {
	if err := m.connect(ctx, m.work.Clients, 0); err != nil {
		return Figures{}, err
	}
	return m.run(ctx, m.work.Clients, func(ctx context.Context, i int) error {
		return m.putters[i].Put(ctx, m.work.Batch)
	})
}

// takes measures takes of what it puts before.
func (m *measurement) takes(ctx context.Context) (Figures, error) {
	if err := m.connect(ctx, 1, m.work.Clients); err != nil {
		return Figures{}, err
	}
	batch := max(1, min(1000, 1<<20/m.work.bytes()))
	for n := m.work.Stock(); n > 0; n -= batch {
		if err := m.putters[0].Fill(ctx, min(n, batch)); err != nil {
			return Figures{}, fmt.Errorf("fill: %w", err)
		}
	}
	if err := m.queue.Current(ctx); err != nil {
		return Figures{}, err
	}
	var left atomic.Int64
	left.Store(int64(m.work.Stock()))
	return m.run(ctx, m.work.Clients, func(ctx context.Context, i int) error {
		if left.Add(int64(-m.work.Batch)) < 0 {
			return ErrEmpty
		}
		if m.work.Do == Chain {
			return m.takers[i].Chain(ctx, m.work.Batch)
		}
		return take(ctx, m.takers[i], m.work.Batch)
	})
}

// take takes n records for good.
func take(ctx context.Context, t Taker, n int) error {
	for n > 0 {
		got, err := t.Take(ctx, n)
		if err != nil {
			return err
		}
		if err := t.Ack(ctx); err != nil {
			return err
		}
		n -= got
	}
	return nil
}

// both counts takes while others put.
func (m *measurement) both(ctx context.Context) (Figures, error) {
	half := max(1, m.work.Clients/2)
	if err := m.connect(ctx, half, half); err != nil {
		return Figures{}, err
	}
	var over atomic.Bool
	var wait sync.WaitGroup
	errs := make([]error, half)
	for i, p := range m.putters {
		wait.Go(func() {
			for !over.Load() && errs[i] == nil {
				if errs[i] = p.Put(ctx, m.work.Batch); errs[i] != nil {
					m.fail(errs[i])
				}
			}
		})
	}
	f, err := m.run(ctx, half, func(ctx context.Context, i int) error {
		return take(ctx, m.takers[i], m.work.Batch)
	})
	over.Store(true)
	wait.Wait()
	return f, errors.Join(append(errs, err)...)
}

// wakes measures from the start of a put to the return of a take that waited
// for it.
func (m *measurement) wakes(ctx context.Context) (Figures, error) {
	if err := m.connect(ctx, 1, 1); err != nil {
		return Figures{}, err
	}
	type arrival struct {
		at  time.Time
		err error
	}
	arrived := make(chan arrival, 1)
	var next time.Time
	return Sample(ctx, m.work.Time, func(ctx context.Context) (time.Duration, error) {
		go func() {
			_, err := m.takers[0].Take(ctx, 1)
			arrived <- arrival{time.Now(), err}
			if err != nil {
				m.fail(err)
			}
		}()
		for waiting := false; !waiting; {
			var err error
			if waiting, err = m.putters[0].Waiting(ctx); err != nil {
				return 0, err
			}
		}
		time.Sleep(time.Until(next))
		begin := time.Now()
		next = begin.Add(m.work.Pace)
		if err := m.putters[0].Put(ctx, 1); err != nil {
			return 0, err
		}
		a := <-arrived
		if a.err != nil {
			return 0, a.err
		}
		return a.at.Sub(begin), m.takers[0].Ack(ctx)
	})
}
