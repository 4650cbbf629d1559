package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm"
)

const (
	catchUpBytes       = 1 << 30
	catchUpRecordBytes = 128 << 10
	catchUpClients     = 16
	catchUpRounds      = 3
)

// catchUp measures how fast a new node gets a volume of 1 GiB while clients
// put, until it is a voter, and what that costs them.
func catchUp(ctx context.Context, b *bench) error {
	fmt.Printf("a fourth node joins a volume of %d MiB while %d clients put; medians\n", catchUpBytes>>20, catchUpClients)
	for _, limit := range []struct {
		name string
		args []string
	}{
		{"at the default limit", nil},
		{"without a limit", []string{"--catchup-rate", "100G"}},
	} {
		var rates, before, meanwhile []float64
		for range min(b.rounds, catchUpRounds) {
			g := &gears{members: members{b: b}, size: clusterNodes, network: "tcp", args: limit.args}
			err := with(ctx, g, func() error {
				f, err := g.catchUp(ctx)
				rates = append(rates, catchUpBytes/1e6/f.took.Seconds())
				before, meanwhile = append(before, f.before), append(meanwhile, f.meanwhile)
				return err
			})
			if err != nil {
				return err
			}
		}
		fmt.Printf("%-22s %6.0f MB/s; puts/s before %.0f, meanwhile %.0f\n", limit.name, median(rates), median(before), median(meanwhile))
	}
	return nil
}

// catchUpFigures is how long it took, and how many puts a second there were.
type catchUpFigures struct {
	took              time.Duration
	before, meanwhile float64
}

func (g *gears) catchUp(ctx context.Context) (f catchUpFigures, err error) {
	if err := g.fill(ctx); err != nil {
		return f, fmt.Errorf("fill: %w", err)
	}
	clients, err := g.clients(ctx, catchUpClients)
	if err != nil {
		return f, err
	}
	putting, stop := context.WithCancel(ctx)
	var puts atomic.Int64
	var wait sync.WaitGroup
	errs := make([]error, len(clients))
	file := g.newFile()
	for i, c := range clients {
		wait.Go(func() {
			for putting.Err() == nil && errs[i] == nil {
				_, errs[i] = c.Put(ctx, dgm.Put{File: file, Key: key[0], Records: record})
				puts.Add(1)
			}
		})
	}
	defer func() {
		stop()
		wait.Wait()
		err = errors.Join(append(errs, err, closeRemotes(clients))...)
	}()
	// since returns the puts a second since a moment.
	since := func(begin time.Time, n int64) float64 { return float64(puts.Load()-n) / time.Since(begin).Seconds() }
	begin, n := time.Now(), puts.Load()
	select {
	case <-time.After(g.b.seconds):
	case <-ctx.Done():
		return f, ctx.Err()
	}
	f.before = since(begin, n)
	begin, n = time.Now(), puts.Load()
	if err := g.add(ctx); err != nil {
		return f, err
	}
	f.took, f.meanwhile = time.Since(begin), since(begin, n)
	return f, nil
}

// fill puts what a new node has to get: records of 128 KiB that do not
// compress.
func (g *gears) fill(ctx context.Context) (err error) {
	c, err := g.dial(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	const inOneCall = 32
	rnd := rand.NewChaCha8([32]byte{1})
	records := make([]gearsfs.NewRecord, inOneCall)
	file := g.newFile()
	for range catchUpBytes / catchUpRecordBytes / inOneCall {
		for i := range records {
			records[i].Data = make([]byte, catchUpRecordBytes)
			if _, err := rnd.Read(records[i].Data); err != nil {
				return err
			}
		}
		if _, err := c.Put(ctx, dgm.Put{File: file, Key: key[0], Records: records}); err != nil {
			return err
		}
	}
	return nil
}
