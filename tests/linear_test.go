package tests

import (
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
)

// Histories of concurrent clients are linearizable, also while the daemon is
// killed and started again, and with callers that give up waiting.
func TestLinearizable(t *testing.T) {
	t.Parallel()
	const clients = 8
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
			rng: rand.New(rand.NewPCG(seed, uint64(i))), last: make(map[int]uint64),
		}
		asking.Go(func() {
			var err error
			for open(stop) && err == nil {
				err = c.step(ctx)
			}
			if err == nil {
				err = c.letGo(ctx)
			}
			if err != nil {
				cancel(fmt.Errorf("client %d: %w", i, err))
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

	mu      sync.Mutex
	ops     []porcupine.Operation
	maybes  int
	shadows int
	data    map[place]string // what was put or seen there first
	places  map[string]place // where that is
	wrong   error
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
	did := make(map[string]int) // what was not answered that it can't be
	for _, o := range h.ops {
		if !o.Output.(reply).empty {
			did[o.Input.(ask).op]++
		}
	}
	t.Logf("%d operations, %d of unknown outcome: %v", len(h.ops), h.maybes, did)
	for _, op := range []string{"put", "take", "lease", "ack", "return", "extend", "lapse", "update", "tx", "peek", "after"} {
		require.NotZero(t, did[op], "there was a history of each %s", op)
	}
	model := fifo.ToModel()
	verdict, info := porcupine.CheckOperationsVerbose(model, h.ops, 2*time.Minute)
	if verdict != porcupine.Ok {
		explain(t, h.ops, info)
		path := filepath.Join(os.TempDir(), "gearsfs-history.html")
		if err := porcupine.VisualizePath(model, info, path); err != nil {
			t.Log(err)
		}
		require.Equal(t, porcupine.Ok, verdict, "see %s", path)
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
		o.Call = min(int64(in.since), o.Return)
	}
	switch {
	case errors.Is(err, gearsfs.ErrMaybe) && patience == 0:
		return fmt.Errorf("%+v: %w, and nobody has given up", *in, err)
	case errors.Is(err, gearsfs.ErrMaybe):
		out.maybe = true
		o.Return = math.MaxInt64
		c.id += c.ids
	case errors.Is(err, gearsfs.ErrEmpty), errors.Is(err, gearsfs.ErrUnmet) && in.op == "tx":
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
