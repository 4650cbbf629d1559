package transport

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
)

// BenchmarkEcho is one caller's goroutines and a server in one process, 128
// bytes each way, over one connection.
func BenchmarkEcho(b *testing.B) {
	for _, network := range []string{"unix", "tcp"} {
		for _, inFlight := range []int{1, 16, 64} {
			b.Run(fmt.Sprintf("%s/calls-%d", network, inFlight), func(b *testing.B) {
				c := dial(b, serveOn(b, network, serving(echo)), Config{})
				body := make([]byte, 128)
				b.ReportAllocs()
				b.SetBytes(2 * int64(len(body)))
				var left atomic.Int64
				var wait sync.WaitGroup
				b.ResetTimer()
				left.Store(int64(b.N))
				for range inFlight {
					wait.Go(func() {
						for left.Add(-1) >= 0 {
							if _, err := c.Call(context.Background(), body); err != nil {
								b.Error(err)
								return
							}
						}
					})
				}
				wait.Wait()
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "calls/s")
			})
		}
	}
}
