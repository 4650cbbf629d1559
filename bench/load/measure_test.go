package load

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs/tests/bubble"
)

// fakeQueue keeps records in memory. Each call takes a millisecond of virtual
// time.
type fakeQueue struct {
	records  chan struct{}
	acks     int
	open     int
	putFails error
}

func (q *fakeQueue) Current(context.Context) error { return nil }

func (q *fakeQueue) Putter(context.Context) (Putter, error) {
	q.open++
	return &fakeClient{fakeQueue: q}, nil
}

func (q *fakeQueue) Taker(ctx context.Context) (Taker, error) {
	q.open++
	return &fakeClient{fakeQueue: q, ctx: ctx}, nil
}

type fakeClient struct {
	*fakeQueue
	ctx  context.Context // of the connection
	held int
}

func (c *fakeClient) Close() error {
	c.open--
	return nil
}

func (c *fakeClient) Put(ctx context.Context, n int) error {
	bubble.Spend(time.Millisecond)
	if c.putFails != nil {
		return c.putFails
	}
	return c.Fill(ctx, n)
}

func (c *fakeClient) Fill(_ context.Context, n int) error {
	for range n {
		c.records <- struct{}{}
	}
	return nil
}

func (c *fakeClient) Waiting(context.Context) (bool, error) {
	synctest.Wait()
	return true, nil
}

// Take gives at most half of what was asked for.
func (c *fakeClient) Take(_ context.Context, n int) (int, error) {
	bubble.Spend(time.Millisecond)
	n = (n + 1) / 2
	for range n {
		select {
		case <-c.records:
		case <-c.ctx.Done():
			return 0, errors.New("the connection has ended")
		}
	}
	c.held += n
	return n, nil
}

func (c *fakeClient) Ack(context.Context) error {
	bubble.Spend(time.Millisecond)
	c.acks += c.held
	c.held = 0
	return nil
}

func (c *fakeClient) Chain(_ context.Context, n int) error {
	bubble.Spend(time.Millisecond)
	c.acks += c.held
	for c.held = 0; c.held < n; c.held++ {
		<-c.records
	}
	return nil
}

func measureFake(t *testing.T, q *fakeQueue, w Work) (f Figures, err error) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		q.records = make(chan struct{}, 1<<20)
		f, err = Measure(t.Context(), w, q)
	})
	require.Zero(t, q.open, "connections are left open")
	return f, err
}

func TestMeasure(t *testing.T) {
	for _, c := range []struct {
		name      string
		work      Work
		perSecond float64
	}{
		{"one put a millisecond", Work{Do: Put, Clients: 1, Batch: 1, Time: time.Second}, 1000},
		{"two clients put batches", Work{Do: Put, Clients: 2, Batch: 8, Time: time.Second}, 16_000},
		{"take and acknowledge", Work{Do: Lease, Clients: 1, Batch: 1, Time: time.Second}, 500},
		{"a batch is taken in pieces", Work{Do: Take, Clients: 1, Batch: 4, Time: time.Second}, 4000. / 6},
		{"acknowledge with the next", Work{Do: Chain, Clients: 1, Batch: 4, Time: time.Second}, 4000},
		{"a small stock is used up", Work{Do: Chain, Clients: 1, Batch: 1, Records: 100, Time: time.Second}, 1000},
		{"takes follow the puts", Work{Do: Both, Clients: 1, Batch: 1, Time: time.Second}, 500},
	} {
		t.Run(c.name, func(t *testing.T) {
			f, err := measureFake(t, new(fakeQueue), c.work)
			require.NoError(t, err)
			require.InEpsilon(t, c.perSecond, f.PerSecond, 0.05)
		})
	}
}

// A chain holds one batch at a time, and acknowledges it.
func TestMeasureChainAcknowledges(t *testing.T) {
	q := new(fakeQueue)
	_, err := measureFake(t, q, Work{Do: Chain, Clients: 1, Batch: 4, Records: 40, Time: time.Second})
	require.NoError(t, err)
	require.Equal(t, 36, q.acks, "all but the last")
}

// A wake is paced, and lasts as long as the put.
func TestMeasureWake(t *testing.T) {
	q := new(fakeQueue)
	f, err := measureFake(t, q, Work{Do: Wake, Clients: 1, Batch: 1, Pace: 10 * time.Millisecond, Time: time.Second})
	require.NoError(t, err)
	require.Equal(t, 1000., f.P50)
	require.InDelta(t, 100, q.acks, 1)
}

// Where a put fails, takers that wait do not wait for ever.
func TestMeasureFails(t *testing.T) {
	q := new(fakeQueue)
	q.putFails = errors.New("no room")
	_, err := measureFake(t, q, Work{Do: Both, Clients: 1, Batch: 1, Time: time.Second})
	require.ErrorIs(t, err, q.putFails)
	_, err = measureFake(t, q, Work{Do: "nothing", Time: time.Second})
	require.Error(t, err)
}
