package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/bench/load"
	"github.com/gearsfs/gearsfs/dgm"
)

// gears is GearsFS on some nodes.
type gears struct {
	members
	size    int
	network string   // between the nodes and to the clients: "tcp" or "unix"
	args    []string // more of them, of every node

	addrs []string
	files int    // that were used
	puts  uint64 // that were acknowledged in failovers
}

func (g *gears) String() string {
	if g.size == 1 {
		return "one node, " + g.network
	}
	return "gearsfs, " + g.network
}

func (g *gears) can(load.Work) bool { return true }

func (g *gears) start(ctx context.Context) (err error) {
	if g.dir, err = os.MkdirTemp(g.b.dir, "gears-"); err != nil {
		return err
	}
	g.addrs, g.puts = nil, 0
	for range g.size {
		if err := g.add(ctx); err != nil {
			return err
		}
	}
	return g.current(ctx)
}

// add starts one more node and waits until it is ready. The first founds the
// volume, the others join it.
func (g *gears) add(ctx context.Context) error {
	name := fmt.Sprint("n", len(g.all)+1)
	addr := "unix:" + filepath.Join(g.dir, name+".sock")
	if g.network == "tcp" {
		ports, err := freePorts(1)
		if err != nil {
			return err
		}
		addr = ports[0]
	}
	n := &member{
		name: name, program: "gearsfsd", ready: "gearsfsd: ready",
		args: []string{"--data", filepath.Join(g.dir, name), "--name", name, "--listen", addr, "--insecure"},
	}
	n.args = append(n.args, g.args...)
	if len(g.addrs) > 0 {
		n.args = append(n.args, "--join", strings.Join(g.addrs, ","))
	}
	g.all, g.addrs = append(g.all, n), append(g.addrs, addr)
	return g.launch(ctx, n)
}

func (g *gears) dial(ctx context.Context) (*dgm.Remote, error) {
	return dgm.Dial(ctx, strings.Join(g.addrs, ","), dgm.RemoteOptions{
		Client: dgm.Client{Process: "bench", Caller: gearsfs.Root}, ClaimCaller: true,
	})
}

// current waits until all nodes are voters and have applied everything.
func (g *gears) current(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	c, err := g.dial(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	for {
		behind, err := g.behind(ctx, c)
		if err == nil && behind == "" {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("the nodes are not up to date: %s", behind), err)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// behind names a node that is not up to date.
func (g *gears) behind(ctx context.Context, c *dgm.Remote) (string, error) {
	if len(g.all) == 1 {
		return "", nil
	}
	nodes, err := c.Nodes(ctx)
	if err != nil {
		return "", err
	}
	if len(nodes) != len(g.all) {
		return fmt.Sprintf("%d of %d nodes", len(nodes), len(g.all)), nil
	}
	for _, n := range nodes {
		if !n.Reachable || n.Role == "learner" || n.LagEntries > 100 {
			return fmt.Sprintf("%+v", n), nil
		}
	}
	return "", nil
}

// clients have a connection each.
func (g *gears) clients(ctx context.Context, n int) (all []*dgm.Remote, err error) {
	for range n {
		c, err := g.dial(ctx)
		if err != nil {
			return nil, errors.Join(err, closeRemotes(all))
		}
		all = append(all, c)
	}
	return all, nil
}

func closeRemotes(all []*dgm.Remote) error {
	errs := make([]error, len(all))
	var wait sync.WaitGroup
	for i, c := range all {
		wait.Go(func() { errs[i] = c.Close() })
	}
	wait.Wait()
	return errors.Join(errs...)
}

// newFile is one that nothing was put into.
func (g *gears) newFile() gearsfs.File {
	g.files++
	return gearsfs.At(fmt.Sprint("/jobs", g.files))
}

func (g *gears) measure(ctx context.Context, w load.Work) (f load.Figures, err error) {
	n := w.Clients
	if w.Do == load.Wake {
		n = 2
	}
	clients, err := g.clients(ctx, n)
	if err != nil {
		return f, err
	}
	defer func() { err = errors.Join(err, closeRemotes(clients)) }()
	file := g.newFile()
	switch w.Do {
	case load.Put:
		return load.Run(ctx, w.Clients, w.Time, func(ctx context.Context, i int) (int, error) {
			return w.Batch, putRecords(ctx, clients[i], file, w.Batch, w.Single)
		})
	case load.Take:
		return g.take(ctx, w, clients, file)
	case load.Wake:
		return load.Sample(ctx, w.Time, func(ctx context.Context) (time.Duration, error) {
			return wake(ctx, clients[0], clients[1], file)
		})
	}
	return f, fmt.Errorf("unknown work %q", w.Do)
}

// putRecords puts n records with one call, or with so many at once.
func putRecords(ctx context.Context, c *dgm.Remote, file gearsfs.File, n int, single bool) error {
	if !single {
		records := make([]gearsfs.NewRecord, n)
		for i := range records {
			records[i] = record[0]
		}
		_, err := c.Put(ctx, dgm.Put{File: file, Key: key[0], Records: records})
		return err
	}
	errs := make([]error, n)
	var wait sync.WaitGroup
	for i := range n {
		wait.Go(func() { _, errs[i] = c.Put(ctx, dgm.Put{File: file, Key: key[0], Records: record}) })
	}
	wait.Wait()
	return errors.Join(errs...)
}

// take measures takes of what it puts before. One record is taken and
// acknowledged by one call, more by two.
func (g *gears) take(ctx context.Context, w load.Work, clients []*dgm.Remote, file gearsfs.File) (load.Figures, error) {
	const batch = 1000
	for n := 0; n < w.Stock(); n += batch {
		if err := putRecords(ctx, clients[0], file, batch, false); err != nil {
			return load.Figures{}, err
		}
	}
	if err := g.current(ctx); err != nil {
		return load.Figures{}, err
	}
	var left atomic.Int64
	left.Store(int64(w.Stock()))
	return load.Run(ctx, w.Clients, w.Time, func(ctx context.Context, i int) (int, error) {
		if left.Add(int64(-w.Batch)) < 0 {
			return 0, load.ErrEmpty
		}
		if w.Batch == 1 {
			_, err := clients[i].Take(ctx, dgm.Take{File: file, Keys: key})
			return 1, err
		}
		for n := 0; n < w.Batch; {
			taken, err := clients[i].Take(ctx, dgm.Take{File: file, Keys: key, Max: w.Batch - n, Lease: true})
			if err != nil {
				return 0, err
			}
			receipts := make([]gearsfs.Receipt, len(taken))
			for j, r := range taken {
				receipts[j] = *r.Receipt
			}
			if err := clients[i].Settle(ctx, dgm.Settle{Receipts: receipts}); err != nil {
				return 0, err
			}
			n += len(taken)
		}
		return w.Batch, nil
	})
}

// wake measures from the start of a put to the return of a take that waited
// for it.
func wake(ctx context.Context, putter, taker *dgm.Remote, file gearsfs.File) (time.Duration, error) {
	type arrival struct {
		at  time.Time
		err error
	}
	arrived := make(chan arrival, 1)
	go func() {
		_, err := taker.Take(ctx, dgm.Take{File: file, Keys: key})
		arrived <- arrival{time.Now(), err}
	}()
	for {
		info, err := putter.Stream(ctx, file, key[0])
		if err == nil && info.Waiting == 1 || errors.Is(err, gearsfs.ErrNotFound) {
			break // who waits for a missing file is not counted
		}
		if err != nil {
			return 0, err
		}
	}
	begin := time.Now()
	if err := putRecords(ctx, putter, file, 1, false); err != nil {
		return 0, err
	}
	a := <-arrived
	return a.at.Sub(begin), a.err
}

var counted = gearsfs.At("/counted")

// failover puts records with numbers, each until it is acknowledged, so that
// check finds those that are lost or doubled.
// A put must not fail, whatever happens to the leader.
func (g *gears) failover(ctx context.Context) (took time.Duration, err error) {
	c, err := g.dial(ctx)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	status, err := c.Status(ctx)
	if err != nil {
		return 0, err
	}
	leader, err := g.byName(status.Name)
	if err != nil {
		return 0, err
	}
	var failed error
	took, err = load.Failover(ctx, func(ctx context.Context) error {
		number := binary.BigEndian.AppendUint64(make([]byte, 0, recordBytes), g.puts)
		_, err := c.Put(ctx, dgm.Put{File: counted, Key: key[0], Records: []gearsfs.NewRecord{{Data: number[:recordBytes]}}})
		if err != nil {
			failed = fmt.Errorf("put %d: %w", g.puts, err)
			return failed
		}
		g.puts++
		return nil
	}, leader.kill)
	if err := errors.Join(err, failed); err != nil {
		return 0, err
	}
	return took, errors.Join(g.relaunch(ctx), g.current(ctx))
}

// check takes what was put in failovers: each record once, in order.
func (g *gears) check(ctx context.Context) (err error) {
	c, err := g.dial(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	n := uint64(0)
	for {
		taken, err := c.Take(ctx, dgm.Take{File: counted, Keys: key, Max: 1000, NoWait: true})
		if errors.Is(err, gearsfs.ErrEmpty) {
			break
		}
		if err != nil {
			return err
		}
		for _, r := range taken {
			if number := binary.BigEndian.Uint64(r.Data); number != n {
				return fmt.Errorf("record %d is there where %d of %d acknowledged ones should be", number, n, g.puts)
			}
			n++
		}
	}
	if n != g.puts {
		return fmt.Errorf("%d records are there, %d were acknowledged", n, g.puts)
	}
	return nil
}
