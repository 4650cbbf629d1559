package transport

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"
)

var benchInFlight = []int{1, 16, 64}

// BenchmarkCall is so many goroutines that call and wait, and a server, in one
// process: 128 bytes each way over one connection. One operation is a hundred
// calls of each goroutine.
func BenchmarkCall(b *testing.B) {
	const callsEach = 100
	for _, network := range []string{"unix", "tcp"} {
		for _, inFlight := range benchInFlight {
			b.Run(fmt.Sprintf("%s/inflight-%d", network, inFlight), func(b *testing.B) {
				c := dial(b, serveOn(b, network, serving(echo)), Config{})
				body := make([]byte, 128)
				b.ReportAllocs()
				b.SetBytes(int64(2 * len(body) * callsEach * inFlight))
				for b.Loop() {
					var wait sync.WaitGroup
					for range inFlight {
						wait.Go(func() {
							for range callsEach {
								if _, err := c.Call(b.Context(), body); err != nil {
									b.Error(err)
								}
							}
						})
					}
					wait.Wait()
				}
				b.ReportMetric(float64(b.N*inFlight*callsEach)/b.Elapsed().Seconds(), "calls/s")
			})
		}
	}
}

// BenchmarkStart is one goroutine that keeps so many calls in flight; one
// operation is one call.
func BenchmarkStart(b *testing.B) {
	for _, network := range []string{"unix", "tcp"} {
		for _, inFlight := range benchInFlight {
			for _, size := range []int{128, 64 << 10} {
				b.Run(fmt.Sprintf("%s/inflight-%d/bytes-%d", network, inFlight, size), func(b *testing.B) {
					c := dial(b, serveOn(b, network, serving(echo)), Config{})
					body := make([]byte, size)
					slots := make(chan struct{}, inFlight)
					done := func(_ []byte, err error) {
						if err != nil {
							b.Error(err)
						}
						<-slots
					}
					b.ReportAllocs()
					b.SetBytes(int64(2 * len(body)))
					for b.Loop() {
						slots <- struct{}{}
						c.Start(body, done)
					}
					for range inFlight {
						slots <- struct{}{}
					}
					b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "calls/s")
				})
			}
		}
	}
}

// BenchmarkNotice sends notices of 128 bytes: there and back before the next
// one, and as a flood.
func BenchmarkNotice(b *testing.B) {
	for _, network := range []string{"unix", "tcp"} {
		b.Run(network+"/ping-pong", func(b *testing.B) {
			addr := serveOn(b, network, Config{NewHandler: func(c *Conn) (Handler, error) {
				return noticeFunc(func(body []byte) {
					if err := c.Notify(body); err != nil {
						b.Error(err)
					}
				}), nil
			}})
			back := make(chan struct{}, 1)
			c := dial(b, addr, serving(noticeFunc(func([]byte) { back <- struct{}{} })))
			body := make([]byte, 128)
			b.ReportAllocs()
			for b.Loop() {
				if err := c.Notify(body); err != nil {
					b.Fatal(err)
				}
				<-back
			}
		})
		b.Run(network+"/flood", func(b *testing.B) {
			c := dial(b, serveOn(b, network, serving(noticeFunc(func([]byte) {}))), Config{})
			body := make([]byte, 128)
			b.ReportAllocs()
			b.SetBytes(int64(len(body)))
			for b.Loop() {
				for c.Notify(body) != nil {
				}
			}
			if _, err := c.Call(b.Context(), nil); err != nil { // behind all of them
				b.Fatal(err)
			}
		})
	}
}

// BenchmarkBesideSlow is a connection's calls while another's take 50 ms each in the
// Handler, as lookups on a slow disk would.
func BenchmarkBesideSlow(b *testing.B) {
	const slow = 50 * time.Millisecond
	addr := serveOn(b, "unix", shared(serving(HandlerFunc(func(call *Call) {
		if len(call.Body()) > 0 {
			time.Sleep(slow)
		}
		call.Reply(nil)
	}))))
	disturber, quick := wireTo(b, addr), wireTo(b, addr)
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for id := uint64(1); ; id++ {
			select {
			case <-stop:
				return
			case <-time.After(slow): // half of the time it calls nothing
			}
			disturber.send(b, frame{id: id, kind: kindRequest, body: []byte("slow")})
			disturber.receive(b)
		}
	}()
	var took []time.Duration
	for b.Loop() {
		time.Sleep(time.Millisecond)
		began := time.Now()
		quick.send(b, frame{id: uint64(len(took)), kind: kindRequest})
		quick.receive(b)
		took = append(took, time.Since(began))
	}
	close(stop)
	<-stopped
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-us")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-us")
	b.ReportMetric(float64(took[len(took)-1].Microseconds()), "max-us")
}
