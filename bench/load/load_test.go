package load

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs/tests/bubble"
)

func TestRunCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, err := Run(t.Context(), 4, time.Second, 8*time.Second, func(context.Context, int) (int, error) {
			bubble.Spend(10 * time.Millisecond)
			return 3, nil
		})
		require.NoError(t, err)
		require.InEpsilon(t, 4*3*100, f.PerSecond, 0.01)
		require.Equal(t, Figures{PerSecond: f.PerSecond, P50: 10_000, P99: 10_000, Max: 10_000}, f)
	})
}

// What is used up before the time is over counts for the time that it took.
func TestRunEndsEarly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var calls atomic.Int64
		f, err := Run(t.Context(), 2, 10*time.Second, 80*time.Second, func(context.Context, int) (int, error) {
			if calls.Add(1) > 40 {
				return 0, ErrEmpty
			}
			bubble.Spend(time.Second)
			return 1, nil
		})
		require.NoError(t, err)
		require.InEpsilon(t, 2, f.PerSecond, 0.1)
	})
}

func TestRunFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broken := errors.New("broken")
		_, err := Run(t.Context(), 3, time.Minute, time.Hour, func(ctx context.Context, client int) (int, error) {
			if client == 1 {
				return 0, broken
			}
			<-ctx.Done()
			return 0, ctx.Err()
		})
		require.ErrorIs(t, err, broken)
		_, err = Run(t.Context(), 1, 0, time.Second, func(context.Context, int) (int, error) { return 0, ErrEmpty })
		require.Error(t, err, "nothing was measured")
	})
}

// Puts fail for a while after the kill; the one that was under way at the kill
// does not count.
func TestFailover(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var killed time.Time
		took, err := Failover(t.Context(), func(context.Context) error {
			bubble.Spend(7 * time.Millisecond)
			if !killed.IsZero() && time.Since(killed) < 300*time.Millisecond {
				return errors.New("no leader")
			}
			return nil
		}, func() error {
			killed = time.Now()
			return nil
		})
		require.NoError(t, err)
		require.GreaterOrEqual(t, took, 300*time.Millisecond)
		require.LessOrEqual(t, took, 314*time.Millisecond)

		_, err = Failover(t.Context(), func(context.Context) error {
			bubble.Spend(time.Millisecond)
			return nil
		}, func() error { return errors.New("no such process") })
		require.ErrorContains(t, err, "no such process")
	})
}

func TestSpread(t *testing.T) {
	var took []time.Duration
	for i := range 100 {
		took = append(took, time.Duration(100-i)*time.Millisecond)
	}
	require.Equal(t, Figures{P50: 51_000, P99: 100_000, Max: 100_000}, Spread(took))
}
