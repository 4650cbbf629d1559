package wordcount

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm"
)

// firstJob waits for a job on m's node.
func firstJob(ctx context.Context, m dgm.Manager) (job, error) {
	records, err := m.Peek(ctx, dgm.Peek{File: gearsfs.At(jobsPath), Key: gearsfs.DataKey})
	if err != nil {
		return job{}, err
	}
	return parseJob(records[0])
}

// die takes part in a run as a worker that acknowledges a batch of n records
// and is gone before it settles them.
func die(ctx context.Context, addr string, n int) error {
	m, err := dgm.Dial(ctx, addr, dgm.RemoteOptions{})
	if err != nil {
		return err
	}
	defer m.Close()
	j, err := firstJob(ctx, m)
	if err != nil {
		return err
	}
	w := &worker{node: m, o: WorkOptions{Patience: patienceDefault}}
	p := &part{worker: w, job: j, classes: j.Rule.classes()}
	own, err := dgm.Via(ctx, m, j.Remote)
	if err != nil {
		return err
	}
	defer own.Close()
	p.own = own
	records, err := p.lease(ctx, n)
	if err != nil {
		return err
	}
	_, err = p.acknowledge(ctx, records, &wordMap{})
	return err
}

// Workers die between acknowledging and settling, all the time and with other
// batches than those that do the work again: the figures are right.
func TestWorkersDie(t *testing.T) {
	for name, all := range map[string]bool{"beside others": false, "before there is another": true} {
		t.Run(name, func(t *testing.T) {
			a, b := volume(t), volume(t)
			addr := listen(t, b)
			_, err := makeDir(context.Background(), root(t, b))
			require.NoError(t, err)
			s, err := Connect(context.Background(), a, addr, dgm.RemoteOptions{})
			require.NoError(t, err)
			defer func() { require.NoError(t, s.Close()) }()
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()

			var working, dying sync.WaitGroup
			work := func() {
				m, err := dgm.Dial(ctx, addr, dgm.RemoteOptions{})
				if err != nil {
					t.Error(err)
					return
				}
				if err := errors.Join(Work(ctx, m, WorkOptions{}), m.Close()); err != nil {
					t.Error(err)
				}
			}
			deaths := make([]error, 12)
			for i := range deaths {
				dying.Go(func() { deaths[i] = die(ctx, addr, 1+3*i) })
			}
			working.Go(func() {
				if all {
					dying.Wait()
				}
				work()
			})
			text := bytes.Repeat(texts()["long lines"], 4)
			got, err := s.Count(ctx, bytes.NewReader(text), Options{Top: 5, LinesPerRecord: 3})
			require.NoError(t, err)
			require.Equal(t, wc(t, text), got.Counts)
			cancel()
			working.Wait()
			dying.Wait()
			died := 0
			for _, err := range deaths {
				if err == nil {
					died++
				}
			}
			t.Logf("%d died in the work", died)
			require.True(t, died > 0 && (!all || died == len(deaths)), "%v", deaths)
		})
	}
}

// A run whose sender is lost is given up and removed.
func TestALostSenderIsGivenUp(t *testing.T) {
	a, b := volume(t), volume(t)
	addr := listen(t, b)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	given := make(chan error, 1)
	var working sync.WaitGroup
	working.Go(func() {
		err := Work(ctx, root(t, b), WorkOptions{
			Patience: 2 * time.Second, Done: func(_ string, _ Counts, err error) { given <- err },
		})
		if err != nil {
			t.Error(err)
		}
	})
	defer working.Wait()
	defer cancel()

	// The sender dies by losing its session: nobody removes its run.
	s, err := Connect(ctx, a, addr, dgm.RemoteOptions{})
	require.NoError(t, err)
	in, out := io.Pipe()
	defer out.Close()
	sent := make(chan struct{})
	failed := make(chan error, 1)
	go func() {
		_, err := s.Count(ctx, in, Options{Progress: func(p Progress) {
			if p.Counted > 0 {
				close(sent)
			}
		}})
		failed <- err
	}()
	go out.Write(make([]byte, batchBytes+1)) //nolint:errcheck // it is cut off
	select {
	case <-sent:
	case err := <-failed:
		require.NoError(t, err, "before its sender was lost")
	}
	require.NoError(t, s.node.Close())
	require.ErrorIs(t, <-given, errOutOfReach)
	require.NoError(t, out.Close()) // what is left to put finds out
	require.ErrorIs(t, <-failed, gearsfs.ErrClosed)
	requireTidy(t, b)
}
