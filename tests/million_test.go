package tests

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
)

// 32 putters and 32 takers, a connection each: each record is taken once and in
// its putter's order.
func TestMillion(t *testing.T) {
	t.Parallel()
	d := startDaemon(t)
	exchange(t, d, d.addr, 1_000_000)
}

// The same where connections break at random places all the time.
func TestMillionCut(t *testing.T) {
	t.Parallel()
	d := startDaemon(t)
	p := startProxy(t, d.addr, 16<<10)
	exchange(t, d, p.addr, size(200_000, 1_000_000))
	t.Logf("%d connections were cut", p.cuts.Load())
	require.Greater(t, p.cuts.Load(), int64(64), "connections were cut")
}

// exchange has 32 putters put and 32 takers take so many records over addr.
func exchange(t *testing.T, d *daemon, addr string, records int) {
	t.Helper()
	const putters, takers = 32, 32
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	l := newLedger("/q", putters)
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	began := time.Now()
	var putting, taking sync.WaitGroup
	for i := range putters {
		m, rng := dialAt(t, addr), rand.New(rand.NewPCG(seed, uint64(i)))
		putting.Go(func() {
			for left := records / putters; left > 0; {
				n := min(1+rng.IntN(16), left)
				if err := l.putSome(ctx, m, uint32(i), n); err != nil {
					cancel(fmt.Errorf("putter %d: %w", i, err))
					return
				}
				left -= n
			}
		})
	}
	for i := range takers {
		m, rng := dialAt(t, addr), rand.New(rand.NewPCG(seed, uint64(100+i)))
		taking.Go(func() {
			t := taker{ledger: l}
			for {
				err := t.takeSome(ctx, m, 1+rng.IntN(16))
				if errors.Is(err, gearsfs.ErrEnd) {
					return
				}
				if err != nil {
					cancel(fmt.Errorf("taker %d: %w", i, err))
					return
				}
			}
		})
	}
	putting.Wait()
	if ctx.Err() == nil {
		require.NoError(t, l.seal(ctx, d.dial()))
	}
	taking.Wait()
	require.NoError(t, context.Cause(ctx))
	require.NoError(t, l.check())
	require.Len(t, l.taken, records)
	took := time.Since(began)
	t.Logf("%d records in %v: %.0f/s, daemon's peak memory %d MiB",
		records, took.Round(time.Millisecond), float64(records)/took.Seconds(), d.peakRSS()>>20)
}
