package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm"
)

const recordBytes = 128

// rate runs op from n goroutines, one call at a time each, and returns calls
// per second.
func (b *bench) rate(ctx context.Context, n int, op func(ctx context.Context, client int) error) (float64, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var calls atomic.Int64
	var over atomic.Bool
	errs := make(chan error, n)
	begin := time.Now()
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			for !over.Load() {
				if err := op(ctx, i); err != nil {
					errs <- err
					return
				}
				calls.Add(1)
			}
		})
	}
	timer := time.AfterFunc(b.seconds, func() { over.Store(true) })
	defer timer.Stop()
	wg.Wait()
	elapsed := time.Since(begin)
	select {
	case err := <-errs:
		return 0, err
	default:
		return float64(calls.Load()) / elapsed.Seconds(), nil
	}
}

// node is a daemon on a new data directory, with clients that have a
// connection each.
type node struct {
	*process
	clients []*dgm.Remote
}

func (b *bench) node(ctx context.Context, clients int) (*node, error) {
	dir, err := os.MkdirTemp(b.dir, "node-")
	if err != nil {
		return nil, err
	}
	addr := "unix:" + filepath.Join(dir, "sock")
	p, err := b.startProcess(ctx, "ready", "gearsfsd", "--data", filepath.Join(dir, "data"), "--listen", addr)
	if err != nil {
		return nil, err
	}
	n := &node{process: p}
	for range clients {
		c, err := dgm.Dial(ctx, addr, dgm.RemoteOptions{Client: dgm.Client{Process: "bench"}})
		if err != nil {
			return nil, errors.Join(err, n.close())
		}
		n.clients = append(n.clients, c)
	}
	return n, nil
}

func (n *node) close() error {
	var errs []error
	for _, c := range n.clients {
		errs = append(errs, c.Close())
	}
	return errors.Join(append(errs, n.stop())...)
}

var (
	jobs   = gearsfs.At("/jobs")
	key    = []gearsfs.Key{"k"}
	record = []gearsfs.NewRecord{{Data: make([]byte, recordBytes)}}
)

// queue compares durable puts and takes with Pebble's synced Set.
func queue(ctx context.Context, b *bench) error {
	fmt.Printf("durable operations of %d B a second over a unix socket, and Pebble Set(Sync) at the same concurrency\n", recordBytes)
	for _, n := range []int{1, 16, 64} {
		var puts, takes, sets []float64
		for range b.rounds {
			set, err := b.pebbleSets(ctx, n)
			if err != nil {
				return err
			}
			put, take, err := b.putsAndTakes(ctx, n)
			if err != nil {
				return err
			}
			puts, takes, sets = append(puts, put), append(takes, take), append(sets, set)
		}
		row(fmt.Sprintf("put, %d clients", n), "/s", puts, sets)
		row(fmt.Sprintf("take, %d clients", n), "/s", takes, sets)
	}
	return b.putToTake(ctx)
}

func (b *bench) pebbleSets(ctx context.Context, n int) (float64, error) {
	dir, err := os.MkdirTemp(b.dir, "pebble-")
	if err != nil {
		return 0, err
	}
	db, err := pebble.Open(dir, &pebble.Options{
		FormatMajorVersion: pebble.FormatNewest, MemTableSize: 64 << 20, MemTableStopWritesThreshold: 4,
		Logger: silent{},
	})
	if err != nil {
		return 0, err
	}
	var next atomic.Uint64
	value := make([]byte, recordBytes)
	r, err := b.rate(ctx, n, func(context.Context, int) error {
		return db.Set(binary.BigEndian.AppendUint64(nil, next.Add(1)), value, pebble.Sync)
	})
	return r, errors.Join(err, db.Close())
}

type silent struct{}

func (silent) Infof(string, ...any)  {}
func (silent) Errorf(string, ...any) {}
func (silent) Fatalf(format string, args ...any) {
	panic(fmt.Sprintf(format, args...))
}

// putsAndTakes measures puts for a while and then takes of what was put, and
// of more that is put before.
func (b *bench) putsAndTakes(ctx context.Context, n int) (put, take float64, err error) {
	node, err := b.node(ctx, n)
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, node.close()) }()
	put, err = b.rate(ctx, n, func(ctx context.Context, i int) error {
		_, err := node.clients[i].Put(ctx, dgm.Put{File: jobs, Key: key[0], Records: record})
		return err
	})
	if err != nil {
		return 0, 0, err
	}
	more := make([]gearsfs.NewRecord, 1000)
	for i := range more {
		more[i] = record[0]
	}
	for range int(b.seconds.Seconds()*200) + 1 { // 200,000 a second and as many as were put
		if _, err := node.clients[0].Put(ctx, dgm.Put{File: jobs, Key: key[0], Records: more}); err != nil {
			return 0, 0, err
		}
	}
	take, err = b.rate(ctx, n, func(ctx context.Context, i int) error {
		_, err := node.clients[i].Take(ctx, dgm.Take{File: jobs, Keys: key})
		return err
	})
	return put, take, err
}

// putToTake measures from the start of a put to the return of a take that
// waited for it, in another connection.
func (b *bench) putToTake(ctx context.Context) error {
	node, err := b.node(ctx, 2)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, node.close()) }()
	var took []time.Duration
	arrived := make(chan error)
	for range 2000 {
		go func() {
			_, err := node.clients[1].Take(ctx, dgm.Take{File: jobs, Keys: key})
			arrived <- err
		}()
		for {
			info, err := node.clients[0].Stream(ctx, jobs, key[0])
			if err == nil && info.Waiting == 1 || gearsfs.CodeOf(err) == gearsfs.ErrNotFound.Code {
				break
			}
		}
		begin := time.Now()
		if _, err := node.clients[0].Put(ctx, dgm.Put{File: jobs, Key: key[0], Records: record}); err != nil {
			return err
		}
		if err := <-arrived; err != nil {
			return err
		}
		took = append(took, time.Since(begin))
	}
	slices.Sort(took)
	fmt.Printf("put to take, durable: p50 %v, p99 %v\n", took[len(took)/2], took[len(took)*99/100])
	return err
}
