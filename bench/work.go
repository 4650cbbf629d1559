package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"time"

	"github.com/gearsfs/gearsfs/bench/load"
)

// paceTime is the time between two puts where a load is low.
const paceTime = 10 * time.Millisecond

// works measures one node beside queue servers that run on one node too, each
// of them with all that it acknowledges on disk.
func works(ctx context.Context, b *bench) error {
	tcp, unix := b.oneNode("tcp"), b.oneNode("unix")
	systems := []system{tcp, unix}
	peers := b.peersOf("redis-list", "redis-stream", "beanstalkd", "nats")
	for _, name := range peers {
		systems = append(systems, &peerSystem{members: members{b: b}, name: name, size: 1})
	}
	if err := b.buildPeers(ctx, peers); err != nil {
		return err
	}
	fmt.Println("one node beside queue servers, everything on disk before it is acknowledged; medians of the rounds,")
	fmt.Printf("their spread, and ratios of %q and %q; \"aim\" is what the first should reach\n", systems[0], systems[1])
	for _, group := range workGroups() {
		if err := b.measureGroup(ctx, systems, b.chosen(group)); err != nil {
			return err
		}
	}
	if err := b.updates(ctx, tcp, unix); err != nil {
		return err
	}
	return b.eachBesideXargs(ctx, unix)
}

// gearsColumns is how many columns of the tables are GearsFS's: two networks.
const gearsColumns = 2

func (b *bench) oneNode(network string) *gears {
	return &gears{members: members{b: b}, size: 1, network: network}
}

// workRow is a row of the table: a work, and which part of a peer's figure
// GearsFS is to reach, by the peer's name.
type workRow struct {
	name string
	load.Work
	aims map[string]float64
}

// workGroups are the rows, grouped by what is measured on one start of the
// systems. In each, puts come before the takes of the same size, which take as
// many as the puts let expect.
func workGroups() [][]workRow {
	var groups [][]workRow
	list := func(x float64) map[string]float64 { return map[string]float64{"redis-list": x} }
	for _, clients := range []int{1, 64} {
		lease := map[int]float64{1: 1.2, 64: 2}[clients]
		leased := map[string]float64{"redis-stream": lease, "beanstalkd": lease, "nats": lease}
		row := func(name, do string, aims map[string]float64) workRow {
			return workRow{fmt.Sprintf("%s, %d B, %s", name, recordBytes, clientsText(clients)), load.Work{Do: do, Clients: clients, Batch: 1}, aims}
		}
		groups = append(groups, []workRow{
			row("put", load.Put, map[string]float64{"redis-list": 0.8, "redis-stream": 1, "beanstalkd": 1, "nats": 1}),
			row("take with lease, then acknowledge", load.Lease, leased),
			row("take with lease, acknowledging the one before", load.Chain, leased),
			row("take without lease", load.Take, list(0.8)),
			row("puts and takes at once", load.Both, list(map[int]float64{1: 1, 64: 0.8}[clients])),
		})
	}
	const large = 4 << 10
	groups = append(groups, []workRow{
		{"put, 4 KiB, 64 clients", load.Work{Do: load.Put, Clients: 64, Batch: 1, Bytes: large}, list(0.8)},
		{"take without lease, 4 KiB, 64 clients", load.Work{Do: load.Take, Clients: 64, Batch: 1, Bytes: large}, list(0.8)},
	})
	stream := map[string]float64{"redis-stream": 1}
	groups = append(groups, []workRow{
		{"put, 64 a round trip, 16 clients", load.Work{Do: load.Put, Clients: 16, Batch: batch}, stream},
		{"take without lease, 64 a round trip, 16 clients", load.Work{Do: load.Take, Clients: 16, Batch: batch}, nil},
		{"take with lease, then acknowledge, 64 a round trip, 16 clients", load.Work{Do: load.Lease, Clients: 16, Batch: batch}, stream},
		{"take with lease, acknowledging those before, 64 a round trip, 16 clients", load.Work{Do: load.Chain, Clients: 16, Batch: batch}, stream},
	})
	wake := make(map[string]float64)
	for _, name := range []string{"redis-list", "redis-stream", "beanstalkd", "nats"} {
		wake[name] = 1.2
	}
	return append(groups, []workRow{
		{"put to take, 100 puts/s", load.Work{Do: load.Wake, Clients: 1, Batch: 1, Pace: paceTime}, wake},
	})
}

// chosen returns the rows that -rows names.
func (b *bench) chosen(rows []workRow) []workRow {
	return slices.DeleteFunc(rows, func(r workRow) bool { return !b.rows.MatchString(r.name) })
}

func clientsText(clients int) string {
	if clients == 1 {
		return "1 client"
	}
	return fmt.Sprint(clients, " clients")
}

// measureGroup measures rows with all systems, each round anew, and prints them.
func (b *bench) measureGroup(ctx context.Context, systems []system, rows []workRow) error {
	if len(rows) == 0 {
		return nil
	}
	t := newTable(systemNames(systems)...)
	for range b.rounds {
		if err := b.measureRound(ctx, t, systems, rows); err != nil {
			return err
		}
	}
	for i, r := range rows {
		t.rows[i].printBeside(t.columns, gearsColumns, r.aims)
	}
	return nil
}

// measureRound measures each row with one system after the other, so that what
// else the machine does falls on all alike. Those whose turn it is not are
// stopped meanwhile: what a server does behind its answers falls on nobody else.
func (b *bench) measureRound(ctx context.Context, t *table, systems []system, rows []workRow) (err error) {
	defer func() {
		for _, s := range systems {
			err = errors.Join(err, s.stop())
		}
	}()
	for _, s := range systems {
		if err := errors.Join(s.start(ctx), signalAll(s, syscall.SIGSTOP)); err != nil {
			return fmt.Errorf("%s: %w", s, err)
		}
	}
	puts := make(map[system]float64) // a second, of the last row that put
	for _, r := range rows {
		for _, s := range systems {
			if err := b.measureRow(ctx, t, s, r, puts); err != nil {
				return fmt.Errorf("%s: %s: %w", s, r.name, err)
			}
		}
	}
	return nil
}

// signalAll sends a signal to all nodes of a system.
func signalAll(s system, sig syscall.Signal) error {
	for _, n := range s.nodes() {
		if err := n.cmd.Process.Signal(sig); err != nil {
			return err
		}
	}
	return nil
}

// stockOf is how many records takes use up while one is put: what needs no lease
// is quicker than a put at some peers.
func stockOf(do string) float64 {
	if do == load.Take {
		return 3
	}
	return 1.1
}

// measureRow has a system go on and measures one row with it.
func (b *bench) measureRow(ctx context.Context, t *table, s system, r workRow, puts map[system]float64) error {
	unit := "/s"
	if r.Do == load.Wake {
		unit = "us"
	}
	t.row(r.name, unit)
	if !s.can(r.Work) {
		return nil
	}
	if err := signalAll(s, syscall.SIGCONT); err != nil {
		return err
	}
	r.Time = b.seconds
	r.Records = int(puts[s] * stockOf(r.Do) * b.seconds.Seconds())
	f, err := s.measure(ctx, r.Work)
	if err != nil {
		return err
	}
	figure := f.PerSecond
	switch r.Do {
	case load.Put:
		puts[s] = f.PerSecond
	case load.Wake:
		figure = f.P50
	}
	t.add(r.name, unit, s.String(), figure)
	return signalAll(s, syscall.SIGSTOP)
}
