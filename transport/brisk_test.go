package transport

import (
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// briskly calls over w until the poller's reader waits in the kernel, and returns the
// poller and the number of the next call.
func briskly(t *testing.T, w *wirePeer, id int) (*poller, int) {
	for {
		w.send(t, request(id, "quick"))
		requireEcho(t, w, id, "quick")
		pollers.mu.Lock()
		p := pollers.p
		pollers.mu.Unlock()
		id++
		if p.brisk.apart.Load() {
			return p, id
		}
	}
}

func batching() slowHandler {
	return slowHandler{&slowBatch{waits: make(chan struct{}), release: make(chan struct{})}}
}

// TestBrisk: behind calls that follow each other within moments Go's runtime is not
// told of what comes, whoever has the turn; a pause ends that, and behind it calls are
// served as before. A connection that is made meanwhile is, too.
func TestBrisk(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			h := batching()
			addr := serveOn(t, network, shared(serving(h)))
			first, id := wireTo(t, addr), 1
			for range 3 {
				var p *poller
				p, id = briskly(t, first, id)
				other := wireTo(t, addr)
				other.send(t, request(1, "quick"))
				requireEcho(t, other, 1, "quick")

				briskly(t, first, id)
				other.send(t, request(2, "slow")) // its reader waits, another has the turn
				<-h.waits
				_, id = briskly(t, first, id+1<<20)
				h.release <- struct{}{}
				requireEcho(t, other, 2, "slow")

				for p.brisk.apart.Load() {
					runtime.Gosched()
				}
				other.send(t, request(3, "quick"))
				requireEcho(t, other, 3, "quick")
			}
		})
	}
}

// TestBriskServesOnly: a poller that serves nobody in batches parks for each wait.
func TestBriskServesOnly(t *testing.T) {
	w := wireTo(t, serveOn(t, "unix", shared(serving(echo))))
	for id := 1; id <= 10*briskWaits; id++ {
		w.send(t, request(id, "quick"))
		requireEcho(t, w, id, "quick")
		pollers.mu.Lock()
		p := pollers.p
		pollers.mu.Unlock()
		require.False(t, p.brisk.apart.Load())
	}
}

// TestBriskEnd: a poller whose last connection ends while its reader waits in the
// kernel ends, and gives its descriptors back.
func TestBriskEnd(t *testing.T) {
	before := descriptors(t)
	for range 20 {
		t.Run("", func(t *testing.T) {
			w := wireTo(t, serveOn(t, "unix", shared(serving(batching()))))
			p, _ := briskly(t, w, 1)
			require.NoError(t, w.Close())
			p.running.Wait()
		})
	}
	require.Eventually(t, func() bool { return descriptors(t) <= before }, time.Minute, time.Millisecond)
}
