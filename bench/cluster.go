package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/gearsfs/gearsfs/bench/load"
)

// cluster measures three nodes on this machine beside three servers of NATS
// JetStream, with three replicas and sync_interval always, and three members of
// etcd, and beside one node. What fails does not keep the rest from being
// measured.
func cluster(ctx context.Context, b *bench) error {
	var errs []error
	for _, part := range []func(context.Context, *bench) error{throughput, failovers, catchUp, idle} {
		if ctx.Err() == nil {
			errs = append(errs, part(ctx, b))
		}
	}
	return errors.Join(errs...)
}

// systems returns what is measured, GearsFS over TCP first, and builds what is
// needed for it.
func (b *bench) systems(ctx context.Context, more ...system) ([]system, error) {
	all := []system{
		&gears{members: members{b: b}, size: clusterNodes, network: "tcp"},
		&gears{members: members{b: b}, size: clusterNodes, network: "unix"},
	}
	all = append(all, more...)
	names := b.peersOf("nats", "etcd")
	for _, name := range names {
		all = append(all, &peerSystem{members: members{b: b}, name: name, size: clusterNodes})
	}
	return all, b.buildPeers(ctx, names)
}

// with starts a system, calls f and stops it.
func with(ctx context.Context, s system, f func() error) (err error) {
	defer func() { err = errors.Join(err, s.stop()) }()
	if err := s.start(ctx); err != nil {
		return fmt.Errorf("%s: %w", s, err)
	}
	if err := f(); err != nil {
		return fmt.Errorf("%s: %w", s, err)
	}
	return ctx.Err()
}

// batch is how many records travel in one round trip where it is more than one.
const batch = 64

// clusterWorks are what throughput measures of what -rows names, and what a row
// of it is called.
func (b *bench) clusterWorks() (works []load.Work, names []string) {
	add := func(name string, w load.Work) {
		if !b.rows.MatchString(name) {
			return
		}
		w.Time = b.seconds
		works, names = append(works, w), append(names, name)
	}
	by := map[int]string{1: "1 client", 16: "16 clients", 64: "64 clients", 256: "256 clients"}
	for _, clients := range []int{1, 16, 64, 256} {
		add("put, "+by[clients], load.Work{Do: load.Put, Clients: clients, Batch: 1})
	}
	for _, clients := range []int{1, 16, 64, 256} {
		add("take and acknowledge, "+by[clients], load.Work{Do: load.Take, Clients: clients, Batch: 1})
	}
	for _, clients := range []int{1, 16} {
		add("put, "+by[clients]+", 64 a call", load.Work{Do: load.Put, Clients: clients, Batch: batch})
		add("put, "+by[clients]+", 64 calls at once", load.Work{Do: load.Put, Clients: clients, Batch: batch, Single: true})
		add("take and ack., "+by[clients]+", 64 a call", load.Work{Do: load.Lease, Clients: clients, Batch: batch})
	}
	add("put to a waiting take", load.Work{Do: load.Wake, Clients: 1, Batch: 1})
	return works, names
}

// throughput measures all works with all systems in turn, each round anew. It
// prints what it has where something fails.
func throughput(ctx context.Context, b *bench) error {
	systems, err := b.systems(ctx, &gears{members: members{b: b}, name: "one node", size: 1, network: "tcp"})
	if err != nil {
		return err
	}
	works, names := b.clusterWorks()
	t := newTable(systemNames(systems)...)
	defer t.print(fmt.Sprintf("records of %d B on %d nodes on this machine, acknowledged when on the disks of a majority", recordBytes, clusterNodes))
	for range b.rounds {
		for _, s := range systems {
			err := with(ctx, s, func() error {
				for i, w := range works {
					if !s.can(w) {
						continue
					}
					f, err := s.measure(ctx, w)
					if err != nil {
						return fmt.Errorf("%s: %w", names[i], err)
					}
					if w.Do != load.Wake {
						t.add(names[i], "/s", s.String(), f.PerSecond)
					}
					if w.Do == load.Wake || w.Clients == 1 && w.Batch == 1 {
						t.add(names[i]+", p50", "us", s.String(), f.P50)
						t.add(names[i]+", p99", "us", s.String(), f.P99)
					}
				}
				return nil
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// failovers kills the leader again and again and measures until a put is
// acknowledged. Of the peers, whose failovers take seconds, a tenth as often.
func failovers(ctx context.Context, b *bench) error {
	systems, err := b.systems(ctx)
	if err != nil {
		return err
	}
	fmt.Printf("kill -9 of the leader until the next acknowledged put, ms\n%-20s %8s %8s %8s %8s\n", "", "kills", "p50", "p99", "max")
	for _, s := range systems {
		kills := b.kills
		if _, ours := s.(*gears); !ours {
			kills = (kills + 9) / 10
		}
		var took []time.Duration
		err := with(ctx, s, func() error {
			for range kills {
				d, err := s.failover(ctx)
				if err != nil {
					return fmt.Errorf("kill %d: %w", len(took)+1, err)
				}
				took = append(took, d)
			}
			return s.check(ctx)
		})
		if err != nil {
			return err
		}
		f := load.Spread(took)
		fmt.Printf("%-20s %8d %8.0f %8.0f %8.0f\n", s, len(took), f.P50/1000, f.P99/1000, f.Max/1000)
	}
	return nil
}
