package tests

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm"
)

// chaosLasts is how long TestChaos breaks things, a duration; chaosSeed draws
// the faults.
var chaosLasts, chaosSeed = os.Getenv("GEARSFS_CHAOS"), os.Getenv("GEARSFS_CHAOS_SEED")

// progressWithin bounds how long it takes from when a majority can talk to the
// next acknowledged put.
const progressWithin = 5 * time.Second

// Three nodes in network namespaces are killed, stopped, cut off, filled up and
// given the wrong time. No client sees an error, but that a put is refused
// while a disk is full; what was acknowledged is there once and in order, all
// histories are linearizable, and whenever a majority can talk it goes on.
func TestChaos(t *testing.T) {
	lasts, err := time.ParseDuration(cmp.Or(chaosLasts, time.Duration(size(40, 3600)*int(time.Second)).String()))
	require.NoError(t, err, "GEARSFS_CHAOS")
	seed := uint64(time.Now().UnixNano())
	if chaosSeed != "" {
		seed, err = strconv.ParseUint(chaosSeed, 10, 64)
		require.NoError(t, err, "GEARSFS_CHAOS_SEED")
	}
	t.Logf("GEARSFS_CHAOS=%v GEARSFS_CHAOS_SEED=%d draws the same faults", lasts, seed)
	c := startChaos(t, seed)
	c.longest = min(30*time.Second, lasts/12)
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	stop := make(chan struct{})
	clients := c.startClients(ctx, cancel, stop)

	for c.began = time.Now(); time.Since(c.began) < lasts && ctx.Err() == nil; {
		c.round(ctx)
	}
	close(stop)
	stuck := time.AfterFunc(runWithin, func() { cancel(errors.New("a client hangs")) })
	clients.asking.Wait()
	stuck.Stop()
	require.NoError(t, context.Cause(ctx), c.describe())
	c.check(ctx, cancel, clients)
}

// chaos breaks a cluster. Its methods are for the test's goroutine unless they
// say otherwise.
type chaos struct {
	*cluster
	net     *network
	rng     *rand.Rand
	began   time.Time
	longest time.Duration // that a fault lasts

	world  world
	clocks []*os.File // what each node's clock is wrong by
	leaps  int        // so many hours is log time ahead, at most
	counts map[string]int
	slow   []time.Duration // how long it took to go on

	mu       sync.Mutex
	acked    time.Time     // the last acknowledged put
	ackedNow chan struct{} // closed with the next one
	fullAt   time.Time     // a disk is full since
	roomAt   time.Time     // and no more since; later than fullAt where none is
}

func startChaos(t *testing.T, seed uint64) *chaos {
	t.Helper()
	const nodes = 3
	program := faultProgram(t)
	c := &chaos{
		cluster: newCluster(t, nodes), net: newNetwork(t, nodes), rng: rand.New(rand.NewPCG(seed, 1)), began: time.Now(),
		counts: make(map[string]int), ackedNow: make(chan struct{}),
	}
	for i, d := range c.nodes {
		tcp := c.tcp(i)
		d.program, d.net = program, c.net.nodes[i]
		d.args = append(d.args, "--listen", tcp, "--advertise", tcp, "--insecure", "--verify-every", "5s")
		c.onSmallDisk(d)
		c.clocks = append(c.clocks, c.clockOf(d))
		d.start()
	}
	return c
}

func (c *chaos) tcp(i int) string { return c.net.host(i+1) + ":4096" }

// chaosClients are who asks while things break.
type chaosClients struct {
	asking  sync.WaitGroup
	history *history
	list    []*client
	ledger  *ledger
	relay   *relay
	taking  sync.WaitGroup
}

// startClients starts 8 clients that do everything, half of them over the
// network that is cut and half over sockets that are not; putters and takers that
// do nothing else; and a relay, half of whose workers are over the network, too.
func (c *chaos) startClients(ctx context.Context, cancel context.CancelCauseFunc, stop chan struct{}) *chaosClients {
	const clients, putters = 8, 2
	all := &chaosClients{history: newHistory(), ledger: newLedger("/ledger", putters), relay: newRelay("/relay", 1)}
	all.ledger.someLarge = true
	seeds := c.rng.Uint64()
	for i := range clients {
		addrs := c.addrs()
		if i%2 == 0 {
			addrs = c.tcps()
		}
		one := &client{
			history: all.history, m: c.dial(addrs), id: i, ids: clients, name: fmt.Sprint(i),
			rng: rand.New(rand.NewPCG(seeds, uint64(i))), last: make(map[int]uint64), patience: 8 * time.Second, chaos: c,
		}
		all.list = append(all.list, one)
		all.asking.Go(func() {
			for open(stop) && ctx.Err() == nil {
				pause(ctx, time.Duration(one.rng.IntN(20))*time.Millisecond)
				if err := one.step(ctx); err != nil {
					cancel(fmt.Errorf("client %d: %w", i, err))
				}
			}
		})
	}
	c.startRelay(ctx, cancel, stop, all, seeds)
	for i := range putters {
		m := c.dial(c.addrs())
		all.asking.Go(func() {
			for open(stop) && ctx.Err() == nil {
				asked := time.Now()
				switch err := all.ledger.putSome(ctx, m, uint32(i), 1+i*3); {
				case err == nil:
					c.ack()
				case errors.Is(err, gearsfs.ErrNoSpace) && c.wasFull(asked.Sub(c.began)):
				case ctx.Err() == nil:
					cancel(fmt.Errorf("putter %d: %w", i, err))
				}
				pause(ctx, 2*time.Millisecond)
			}
		})
	}
	for i := range 2 {
		m := c.dial(c.addrs())
		all.taking.Go(func() {
			t := taker{ledger: all.ledger}
			for {
				err := t.takeSome(ctx, m, 4)
				if errors.Is(err, gearsfs.ErrEnd) || ctx.Err() != nil {
					return
				}
				if err != nil {
					cancel(fmt.Errorf("taker %d: %w", i, err))
				}
			}
		})
	}
	return all
}

// startRelay starts a putter and workers that pass its records on.
func (c *chaos) startRelay(ctx context.Context, cancel context.CancelCauseFunc, stop chan struct{}, all *chaosClients, seed uint64) {
	const workers = 6
	m := c.dial(c.addrs())
	// A move needs the file; only a put makes it.
	require.NoError(c.t, all.relay.putOne(ctx, m, 0))
	repeat := func(what string, every time.Duration, do func() error) {
		all.asking.Go(func() {
			for open(stop) && ctx.Err() == nil {
				asked := time.Since(c.began)
				err := do()
				if err != nil && ctx.Err() == nil && !(errors.Is(err, gearsfs.ErrNoSpace) && c.wasFull(asked)) {
					cancel(fmt.Errorf("%s: %w", what, err))
				}
				pause(ctx, every)
			}
		})
	}
	repeat("the relay's putter", 40*time.Millisecond, func() error { return all.relay.putOne(ctx, m, 0) })
	for i := range workers {
		addrs := c.addrs()
		if i%2 == 0 {
			addrs = c.tcps()
		}
		w := &relayer{relay: all.relay, m: c.dial(addrs), rng: rand.New(rand.NewPCG(seed, uint64(1000+i)))}
		repeat(fmt.Sprintf("relayer %d", i), 10*time.Millisecond, func() error { return w.step(ctx) })
	}
}

// tcps are the addresses of all nodes in the network that is cut.
func (c *chaos) tcps() string {
	var all []string
	for i := range c.nodes {
		all = append(all, c.tcp(i))
	}
	return strings.Join(all, ",")
}

func (c *chaos) dial(addrs string) *dgm.Remote {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), runWithin)
	defer cancel()
	r, err := dgm.Dial(ctx, addrs, dgm.RemoteOptions{ClaimCaller: true, Client: dgm.Client{Caller: gearsfs.Root}})
	require.NoError(c.t, err)
	c.t.Cleanup(func() {
		if err := r.Close(); err != nil {
			c.t.Logf("close the session: %v", err)
		}
	})
	return r
}

// pause is for load that is less than what is possible, and for faults that
// last.
func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// epoch counts the time in pieces: in each, clients use streams of its own, so
// that there are many short histories instead of a long one. Any goroutine.
func (c *chaos) epoch(began time.Time) int {
	lasts := time.Second
	if c != nil {
		lasts *= 5
	}
	return int(time.Since(began) / lasts)
}

// ack notes that a put was acknowledged. Any goroutine.
func (c *chaos) ack() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.acked = time.Now()
	close(c.ackedNow)
	c.ackedNow = make(chan struct{})
}

// wasFull reports whether a disk was full at some time from `since` on. Any
// goroutine.
func (c *chaos) wasFull(since time.Duration) bool {
	if c == nil {
		return false
	}
	const late = time.Second // a node may have looked a moment ago
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.fullAt.After(c.roomAt) || c.roomAt.Add(late).After(c.began.Add(since))
}

func (c *chaos) setFull(full bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if full {
		c.fullAt = time.Now()
	} else {
		c.roomAt = time.Now()
	}
}

// round breaks one thing, or two at once, lets that last, and mends them.
func (c *chaos) round(ctx context.Context) {
	var mend []func()
	for range 1 + c.rng.IntN(4)/3 {
		f := faults[c.rng.IntN(len(faults))]
		what, heal := f.begin(c)
		if heal == nil {
			continue // what is broken already keeps it from breaking
		}
		c.t.Logf("%6.1fs %s: %s", time.Since(c.began).Seconds(), f.name, what)
		c.counts[f.name]++
		mend = append(mend, heal)
	}
	lasts := min(c.longest, time.Duration((0.2+6*c.rng.ExpFloat64())*float64(time.Second)))
	until := time.Now().Add(lasts)
	c.requireProgress(ctx, "although that is broken")
	pause(ctx, time.Until(until))
	for _, heal := range slices.Backward(mend) {
		heal()
	}
	c.requireProgress(ctx, "when that is mended")
	pause(ctx, time.Duration(c.rng.IntN(1500))*time.Millisecond)
}

// requireProgress waits for the next acknowledged put, which must not take
// long where a majority can talk.
func (c *chaos) requireProgress(ctx context.Context, when string) {
	c.t.Helper()
	if !c.world.majority() || c.wasFull(time.Since(c.began)) {
		return
	}
	from := time.Now()
	c.mu.Lock()
	next := c.ackedNow
	c.mu.Unlock()
	select {
	case <-ctx.Done():
	case <-next:
		c.slow = append(c.slow, time.Since(from))
	case <-time.After(progressWithin):
		require.Fail(c.t, "no put is acknowledged", "within %v %s\n%s", progressWithin, when, c.describe())
	}
}

// describe says what the nodes say.
func (c *chaos) describe() string {
	var all strings.Builder
	fmt.Fprintf(&all, "%.1fs, %+v\n", time.Since(c.began).Seconds(), c.world)
	for i, d := range c.nodes {
		if !c.world.down[i] && !c.world.stopped[i] {
			s, err := d.status()
			fmt.Fprintf(&all, "n%d: %+v, %v\n", i+1, s, err)
		}
	}
	return all.String()
}

// check is when everything is mended and all clients are done but the takers.
func (c *chaos) check(ctx context.Context, cancel context.CancelCauseFunc, clients *chaosClients) {
	c.t.Helper()
	for _, one := range clients.list {
		require.NoError(c.t, one.letGo(ctx))
	}
	clients.drain(ctx, c)
	m := c.dial(c.addrs())
	require.NoError(c.t, clients.ledger.seal(ctx, m))
	stuck := time.AfterFunc(runWithin, func() { cancel(errors.New("a taker hangs")) })
	clients.taking.Wait()
	stuck.Stop()
	require.NoError(c.t, context.Cause(ctx), c.describe())
	require.NoError(c.t, clients.ledger.check())
	require.NoError(c.t, clients.relay.drain(ctx, m))
	require.NoError(c.t, clients.relay.check())
	require.NotZero(c.t, len(clients.relay.acked)*len(clients.relay.dead), "%v", clients.relay)
	clients.checkOrder(c.t)
	c.verify()
	clients.history.check(c.t)

	slices.Sort(c.slow)
	c.t.Logf("%d records of putters; %v; %d faults: %v; went on within p50 %v, p99 %v, at most %v", len(clients.ledger.taken), clients.relay,
		sum(c.counts), c.counts, quantile(c.slow, 0.5), quantile(c.slow, 0.99), quantile(c.slow, 1))
	for _, d := range c.nodes {
		require.NotContains(c.t, d.words.String(), "differ", "the replicas are the same")
	}
}

func sum(counts map[string]int) (n int) {
	for _, count := range counts {
		n += count
	}
	return n
}

// quantile is of what is sorted.
func quantile(all []time.Duration, q float64) time.Duration {
	if len(all) == 0 {
		return 0
	}
	return all[min(len(all)-1, int(q*float64(len(all))))].Round(100 * time.Microsecond)
}

// drain takes what is left of each stream, as a part of the history.
func (all *chaosClients) drain(ctx context.Context, c *chaos) {
	c.t.Helper()
	first := all.list[0]
	last := &client{
		history: all.history, m: c.dial(c.addrs()), id: -1, ids: first.ids, name: "drain", last: make(map[int]uint64), chaos: c,
		rng: rand.New(rand.NewPCG(1, 2)),
	}
	infos, err := last.m.ListStreams(ctx, gearsfs.At("/linear"), "", 1<<16)
	require.NoError(c.t, err)
	for _, info := range infos {
		var stream int
		if _, err := fmt.Sscanf(string(info.Key), "s%d", &stream); err != nil {
			continue // the stream that is the file's bytes
		}
		require.Zero(c.t, info.Leased, "of %s; everybody has returned what he held", info.Key)
		for drained := false; !drained; {
			in, out := ask{stream: stream, or: stream, op: "take", n: 100}, reply{}
			require.NoError(c.t, last.record(ctx, 0, &in, &out, func(ctx context.Context) error {
				records, err := last.m.Take(ctx, dgm.Take{
					File: gearsfs.At("/linear"), Keys: []gearsfs.Key{info.Key}, Max: 100, NoWait: true,
				})
				for _, r := range records {
					out.seqs = append(out.seqs, uint64(r.Place.Seq))
					last.saw(stream, uint64(r.Place.Seq), string(r.Data))
				}
				return err
			}))
			drained = out.empty
		}
	}
}

// checkOrder checks that the puts of each client to each stream are in order.
func (all *chaosClients) checkOrder(t testing.TB) {
	t.Helper()
	type line struct {
		stream int
		client string
	}
	type put struct {
		number int
		seq    uint64
	}
	puts := make(map[line][]put)
	for p, data := range all.history.data {
		who, number, ok := strings.Cut(data, "/")
		var n int
		_, err := fmt.Sscan(number, &n)
		require.True(t, ok && err == nil, "%q is nobody's", data)
		puts[line{p.stream, who}] = append(puts[line{p.stream, who}], put{n, p.seq})
	}
	for at, list := range puts {
		slices.SortFunc(list, func(a, b put) int { return cmp.Compare(a.seq, b.seq) })
		require.True(t, slices.IsSortedFunc(list, func(a, b put) int { return cmp.Compare(a.number, b.number) }), "%v: %v", at, list)
	}
}
