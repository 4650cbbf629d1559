package tests

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm"
)

// Histories of concurrent clients are linearizable, also while the daemon is
// killed and started again, and with callers that give up waiting.
func TestLinearizable(t *testing.T) {
	t.Parallel()
	const clients, streams = 8, 3
	lasts := time.Duration(size(20, 600)) * time.Second
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)

	d := startDaemon(t)
	h := newHistory()
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	stop := make(chan struct{})
	var asking sync.WaitGroup
	for i := range clients {
		c := &client{
			history: h, m: d.dial(), id: i, ids: clients, name: fmt.Sprint(i),
			streams: streams, rng: rand.New(rand.NewPCG(seed, uint64(i))), last: make(map[int]uint64),
		}
		asking.Go(func() {
			for open(stop) {
				if err := c.step(ctx); err != nil {
					cancel(fmt.Errorf("client %d: %w", i, err))
					return
				}
			}
		})
	}
	rng := rand.New(rand.NewPCG(seed, 1000))
	for kills := 0; time.Since(h.began) < lasts && ctx.Err() == nil; kills++ {
		select {
		case <-ctx.Done():
		case <-time.After(time.Duration(200+rng.IntN(1000)) * time.Millisecond): // when to strike
			d.kill()
			d.start()
		}
	}
	close(stop)
	asking.Wait()
	require.NoError(t, context.Cause(ctx))
	h.check(t)
}

// A place is one record of one stream.
type place struct {
	stream int
	seq    uint64
}

// A history is what all clients asked and were told.
type history struct {
	began time.Time

	mu     sync.Mutex
	ops    []porcupine.Operation
	maybes int
	data   map[place]string // what was put or seen there first
	places map[string]place // where that is
	wrong  error
}

func newHistory() *history {
	return &history{began: time.Now(), data: make(map[place]string), places: make(map[string]place)}
}

// saw says that a client put or was given data at a place.
func (h *history) saw(stream int, seq uint64, data string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	p := place{stream, seq}
	if first, ok := h.data[p]; ok && first != data && h.wrong == nil {
		h.wrong = fmt.Errorf("%v is %q, and was %q", p, data, first)
	}
	if other, ok := h.places[data]; ok && other != p && h.wrong == nil {
		h.wrong = fmt.Errorf("%q is at %v and at %v", data, other, p)
	}
	h.data[p], h.places[data] = data, p
}

func (h *history) check(t testing.TB) {
	t.Helper()
	require.NoError(t, h.wrong)
	t.Logf("%d operations, %d of unknown outcome", len(h.ops), h.maybes)
	require.Greater(t, len(h.ops), 1000, "there was a history")
	model := fifo.ToModel()
	verdict, info := porcupine.CheckOperationsVerbose(model, h.ops, 2*time.Minute)
	if verdict != porcupine.Ok {
		path := filepath.Join(os.TempDir(), "gearsfs-history.html")
		if err := porcupine.VisualizePath(model, info, path); err != nil {
			t.Log(err)
		}
		require.Equal(t, porcupine.Ok, verdict, "see %s", path)
	}
}

// A client asks one thing after another of random streams.
type client struct {
	*history
	m       dgm.Manager
	id, ids int // its id in the history; a new one is ids further on
	name    string
	streams int
	rng     *rand.Rand
	put     int
	held    []lease
	last    map[int]uint64 // by stream: the last seq that it saw

	patience time.Duration // of a take that waits, at most; 0 is 20 ms
	chaos    *chaos        // what else it must expect; nil is nothing
}

// A lease is a record that a client holds, and since when.
type lease struct {
	gearsfs.Record
	stream int
	since  time.Duration // of the history
}

// step asks one thing and writes it down; an error is one that it must not get.
func (c *client) step(ctx context.Context) error {
	stream := c.chaos.epoch()*c.streams + c.rng.IntN(c.streams)
	file, key := gearsfs.At("/linear"), gearsfs.Key(fmt.Sprintf("s%d", stream))
	n := 1 + c.rng.IntN(3)
	in := ask{stream: stream, n: n}
	var out reply
	var do func(context.Context) error
	seen := func(records []gearsfs.Record) {
		for _, r := range records {
			out.seqs = append(out.seqs, uint64(r.Place.Seq))
			c.saw(stream, uint64(r.Place.Seq), string(r.Data))
			c.last[stream] = uint64(r.Place.Seq)
		}
	}
	patience := time.Duration(0) // without end
	switch dice := c.rng.IntN(10); {
	case len(c.held) > 0 && dice < 5:
		in.op = []string{"ack", "return"}[dice%2]
		do = c.settle(&in)
	case dice < 4:
		in.op = "put"
		do = c.putting(file, key, &in, &out)
	case dice < 8:
		take := dgm.Take{File: file, Keys: []gearsfs.Key{key}, Max: n, NoWait: c.rng.IntN(2) == 0, Lease: c.rng.IntN(3) == 0}
		if in.op = "take"; take.Lease {
			in.op = "lease"
		} else if !take.NoWait {
			patience = time.Duration(c.rng.Int64N(int64(cmp.Or(c.patience, 20*time.Millisecond))))
		}
		take.NoWait = take.NoWait || take.Lease
		do = func(ctx context.Context) error {
			records, err := c.m.Take(ctx, take)
			seen(records)
			for _, r := range records {
				if take.Lease {
					c.held = append(c.held, lease{r, stream, time.Since(c.began)})
				}
			}
			return err
		}
	default:
		peek := dgm.Peek{File: file, Key: key, NoWait: true}
		if in.op = "peek"; dice == 9 {
			in.op, in.seqs = "after", []uint64{c.last[stream]}
			peek.Follow, peek.After = true, gearsfs.Seq(c.last[stream])
		}
		do = func(ctx context.Context) error {
			records, err := c.m.Peek(ctx, peek)
			seen(records)
			return err
		}
	}
	return c.record(ctx, patience, &in, &out, do)
}

func (c *client) putting(file gearsfs.File, key gearsfs.Key, in *ask, out *reply) func(context.Context) error {
	return func(ctx context.Context) error {
		records := make([]gearsfs.NewRecord, in.n)
		for i := range records {
			c.put++
			records[i].Data = fmt.Appendf(nil, "%s/%d", c.name, c.put)
		}
		got, err := c.m.Put(ctx, dgm.Put{File: file, Key: key, Records: records})
		if err != nil {
			return err
		}
		for i, r := range records {
			seq := uint64(got.First) + uint64(i)
			out.seqs = append(out.seqs, seq)
			c.saw(in.stream, seq, string(r.Data))
		}
		return nil
	}
}

// settle acknowledges or returns what is held of the stream of the first held;
// where leases may have ended meanwhile only that one.
func (c *client) settle(in *ask) func(context.Context) error {
	first := c.held[0]
	in.stream = first.stream
	var receipts []gearsfs.Receipt
	var rest []lease
	for _, l := range c.held {
		if l.stream != first.stream || c.chaos != nil && len(receipts) > 0 {
			rest = append(rest, l)
			continue
		}
		receipts = append(receipts, *l.Receipt)
		in.seqs = append(in.seqs, uint64(l.Place.Seq))
	}
	c.held = rest
	give := in.op == "return"
	return func(ctx context.Context) error {
		err := c.m.Settle(ctx, dgm.Settle{Receipts: receipts, Return: give})
		if c.chaos != nil && errors.Is(err, gearsfs.ErrGone) {
			// It went back at some moment since, because the node had not
			// heard of this client for too long.
			in.op, in.since = "lapse", first.since
			return nil
		}
		return err
	}
}

// record does one thing and writes down what came of it.
func (c *client) record(ctx context.Context, patience time.Duration, in *ask, out *reply, do func(context.Context) error) error {
	if patience > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, patience)
		defer cancel()
	}
	o := porcupine.Operation{ClientId: c.id, Call: int64(time.Since(c.began))}
	err := do(ctx)
	o.Return = int64(time.Since(c.began))
	if in.op == "lapse" {
		o.Call = int64(in.since)
	}
	switch {
	case errors.Is(err, gearsfs.ErrMaybe) && c.chaos != nil && patience == 0:
		return fmt.Errorf("%+v: %w, and nobody has given up", *in, err)
	case errors.Is(err, gearsfs.ErrMaybe):
		out.maybe = true
		o.Return = math.MaxInt64
		c.id += c.ids
	case errors.Is(err, gearsfs.ErrEmpty):
		out.empty = true
	case errors.Is(err, context.DeadlineExceeded):
		return nil // nothing has happened
	case errors.Is(err, gearsfs.ErrNoSpace) && c.chaos.wasFull(time.Duration(o.Call)):
		return nil
	case err != nil:
		return fmt.Errorf("%+v: %w", *in, err)
	}
	o.Input, o.Output = *in, *out
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ops = append(c.ops, o)
	if out.maybe {
		c.maybes++
	}
	return nil
}
