package main

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/bench/load"
	"github.com/gearsfs/gearsfs/dgm"
)

// gears is GearsFS on some nodes.
type gears struct {
	members
	name    string // of a system of one node
	size    int
	network string   // between the nodes and to the clients: "tcp" or "unix"
	args    []string // more of them, of every node

	addrs []string
	files int    // that were used
	puts  uint64 // that were acknowledged in failovers
}

func (g *gears) String() string {
	return cmp.Or(g.name, "gearsfs") + ", " + g.network
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
		Far: g.network == "tcp", // as from another machine
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

func (g *gears) measure(ctx context.Context, w load.Work) (load.Figures, error) {
	return load.Measure(ctx, w, newGearsQueue(g, w))
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
