package transport

import (
	"bytes"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
)

// TestUnannounced: ends that do not tell the scheduler of their system calls say
// the same as others, wait where the other end is slow, and see how it ends.
func TestUnannounced(t *testing.T) {
	quiet := Config{Unannounced: true}
	for _, network := range []string{"tcp", "unix"} {
		var kept *Call
		arrived := make(chan struct{})
		served := serving(HandlerFunc(func(call *Call) {
			if string(call.Body()) == "keep" {
				kept = call
				close(arrived)
				return
			}
			call.Reply(call.Body())
		}))
		served.Unannounced = true
		addr := serveOn(t, network, served)
		c := dial(t, addr, quiet)
		var wait sync.WaitGroup
		for i, size := range []int{0, 1, 300, 60_000, rawBytesMax - 1, rawBytesMax + 1, 5 << 20, 20 << 20} {
			wait.Go(func() {
				for range 5 {
					body := bytes.Repeat([]byte{byte(i + 1)}, size)
					answer, err := c.Call(t.Context(), body)
					if err != nil || !bytes.Equal(body, answer) {
						t.Errorf("%d bytes: %d came back, %v", size, len(answer), err)
					}
				}
			})
		}
		wait.Wait()
		other := dial(t, addr, quiet)
		require.NoError(t, other.Close())
		require.ErrorIs(t, other.Err(), gearsfs.ErrClosed)
		ends := make(chan error, 1)
		c.Start([]byte("keep"), func(_ []byte, err error) { ends <- err })
		<-arrived
		kept.Conn().closeSock() // as if that process was killed
		require.ErrorIs(t, <-ends, ErrLost)
		<-c.Done()
		require.ErrorIs(t, c.Err(), gearsfs.ErrNoNode)
	}
}
