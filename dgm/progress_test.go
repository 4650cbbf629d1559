package dgm

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
)

func TestProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p progress
		require.NoError(t, p.await(t.Context(), 0))
		p.reach(3)
		require.NoError(t, p.await(t.Context(), 3))
		got := make(map[uint64]error)
		var mu sync.Mutex
		for _, index := range []uint64{4, 5, 5, 7} {
			go func() {
				err := p.await(t.Context(), index)
				mu.Lock()
				defer mu.Unlock()
				got[index] = err
			}()
		}
		late, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		require.ErrorIs(t, p.await(late, 6), context.DeadlineExceeded)
		require.EqualValues(t, 4, p.waiting.Load())
		p.reach(5)
		synctest.Wait()
		mu.Lock()
		require.Equal(t, map[uint64]error{4: nil, 5: nil}, got)
		mu.Unlock()
		p.close()
		synctest.Wait()
		require.ErrorIs(t, got[7], gearsfs.ErrClosed)
		require.ErrorIs(t, p.await(t.Context(), 8), gearsfs.ErrClosed)
		require.Zero(t, p.waiting.Load())
	})
}
