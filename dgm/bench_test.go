package dgm_test

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm"
	"github.com/gearsfs/gearsfs/persist"
)

// benchClients runs op from n clients, each with a connection of its own over
// a unix socket and one call in flight, until b is done.
func benchClients(b *testing.B, n int, prepare func(ctx context.Context, m dgm.Manager, calls int), op func(ctx context.Context, m dgm.Manager) error) {
	data, err := persist.Open(b.TempDir(), persist.Options{Create: true, Name: "bench"})
	require.NoError(b, err)
	vol, err := dgm.OpenVolume(b.Context(), dgm.VolumeConfig{Data: data})
	require.NoError(b, err)
	defer vol.Close()
	path := filepath.Join(b.TempDir(), "sock")
	l, err := net.Listen("unix", path)
	require.NoError(b, err)
	ctx, cancel := context.WithCancel(b.Context())
	var serving sync.WaitGroup
	serving.Go(func() { vol.Serve(ctx, l, nil) })
	defer serving.Wait()
	defer cancel()
	clients := make([]*dgm.Remote, n)
	for i := range clients {
		clients[i], err = dgm.Dial(ctx, "unix:"+path, dgm.RemoteOptions{Client: client})
		require.NoError(b, err)
		defer clients[i].Close()
	}
	if prepare != nil {
		prepare(ctx, clients[0], b.N)
	}
	b.ReportAllocs()
	b.ResetTimer()
	var left atomic.Int64
	left.Store(int64(b.N))
	var wg sync.WaitGroup
	for _, c := range clients {
		wg.Go(func() {
			for left.Add(-1) >= 0 {
				if err := op(ctx, c); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "op/s")
}

var benchRecord = []gearsfs.NewRecord{{Data: make([]byte, 128)}}

func BenchmarkDurablePut(b *testing.B) {
	for _, n := range []int{1, 16, 64} {
		b.Run(fmt.Sprintf("clients=%d", n), func(b *testing.B) {
			benchClients(b, n, nil, func(ctx context.Context, m dgm.Manager) error {
				_, err := m.Put(ctx, dgm.Put{File: gearsfs.At("/q"), Key: "k", Records: benchRecord})
				return err
			})
		})
	}
}

func BenchmarkDurableTake(b *testing.B) {
	for _, n := range []int{1, 16, 64} {
		b.Run(fmt.Sprintf("clients=%d", n), func(b *testing.B) {
			fill := func(ctx context.Context, m dgm.Manager, calls int) {
				for calls > 0 {
					n := min(calls, 1000)
					rs := make([]gearsfs.NewRecord, n)
					for i := range rs {
						rs[i] = benchRecord[0]
					}
					_, err := m.Put(ctx, dgm.Put{File: gearsfs.At("/q"), Key: "k", Records: rs})
					require.NoError(b, err)
					calls -= n
				}
			}
			benchClients(b, n, fill, func(ctx context.Context, m dgm.Manager) error {
				_, err := m.Take(ctx, dgm.Take{File: gearsfs.At("/q"), Keys: []gearsfs.Key{"k"}})
				return err
			})
		})
	}
}
