package main

import (
	"context"
	"errors"
	"sync"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/bench/load"
	"github.com/gearsfs/gearsfs/dgm"
)

// gearsQueue is a stream of GearsFS.
type gearsQueue struct {
	g    *gears
	work load.Work
	file gearsfs.File
	data []byte
}

var _ load.Queue = (*gearsQueue)(nil)

// newGearsQueue names a stream that nothing was put into.
func newGearsQueue(g *gears, w load.Work) *gearsQueue {
	return &gearsQueue{g: g, work: w, file: g.newFile(), data: w.Payload()}
}

func (q *gearsQueue) Current(ctx context.Context) error { return q.g.current(ctx) }

func (q *gearsQueue) Putter(ctx context.Context) (load.Putter, error) {
	c, err := q.g.dial(ctx)
	if err != nil {
		return nil, err
	}
	return &gearsPutter{Remote: c, q: q}, nil
}

func (q *gearsQueue) Taker(ctx context.Context) (load.Taker, error) {
	c, err := q.g.dial(ctx)
	if err != nil {
		return nil, err
	}
	lease := q.work.Do == load.Lease || q.work.Do == load.Chain
	return &gearsTaker{Remote: c, take: dgm.Take{File: q.file, Keys: key, Lease: lease}}, nil
}

type gearsPutter struct {
	*dgm.Remote
	q       *gearsQueue
	records []gearsfs.NewRecord
}

var _ load.Putter = (*gearsPutter)(nil)

func (p *gearsPutter) Put(ctx context.Context, n int) error {
	if p.q.work.Single && n > 1 {
		return p.putSingle(ctx, n)
	}
	return p.Fill(ctx, n)
}

func (p *gearsPutter) Fill(ctx context.Context, n int) error {
	for len(p.records) < n {
		p.records = append(p.records, gearsfs.NewRecord{Data: p.q.data})
	}
	_, err := p.Remote.Put(ctx, dgm.Put{File: p.q.file, Key: key[0], Records: p.records[:n]})
	return err
}

// putSingle puts n records with so many calls at once.
func (p *gearsPutter) putSingle(ctx context.Context, n int) error {
	errs := make([]error, n)
	var wait sync.WaitGroup
	one := []gearsfs.NewRecord{{Data: p.q.data}}
	for i := range n {
		wait.Go(func() {
			_, errs[i] = p.Remote.Put(ctx, dgm.Put{File: p.q.file, Key: key[0], Records: one})
		})
	}
	wait.Wait()
	return errors.Join(errs...)
}

func (p *gearsPutter) Waiting(ctx context.Context) (bool, error) {
	info, err := p.Stream(ctx, p.q.file, key[0])
	if errors.Is(err, gearsfs.ErrNotFound) {
		return true, nil // who waits for a missing file is not counted
	}
	return info.Waiting == 1, err
}

type gearsTaker struct {
	*dgm.Remote
	take     dgm.Take
	receipts []gearsfs.Receipt // not acknowledged
}

var _ load.Taker = (*gearsTaker)(nil)

func (t *gearsTaker) Take(ctx context.Context, n int) (int, error) {
	take := t.take
	take.Max = n
	taken, err := t.Remote.Take(ctx, take)
	t.keep(taken)
	return len(taken), err
}

// keep remembers the leases of what was taken.
func (t *gearsTaker) keep(taken []gearsfs.Record) {
	t.receipts = t.receipts[:0]
	for _, r := range taken {
		if r.Receipt != nil {
			t.receipts = append(t.receipts, *r.Receipt)
		}
	}
}

func (t *gearsTaker) Ack(ctx context.Context) error {
	if len(t.receipts) == 0 {
		return nil
	}
	return t.Settle(ctx, dgm.Settle{Receipts: t.receipts})
}

// Chain is a transaction of both.
func (t *gearsTaker) Chain(ctx context.Context, n int) error {
	take := t.take
	take.Max = n
	steps := []dgm.Step{{Take: &take}}
	if len(t.receipts) > 0 {
		steps = append(steps, dgm.Step{Settle: &dgm.Settle{Receipts: t.receipts}})
	}
	results, err := t.Transact(ctx, dgm.Transact{Steps: steps})
	if err != nil {
		return err
	}
	t.keep(results[0].Records)
	return nil
}
