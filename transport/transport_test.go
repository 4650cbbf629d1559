package transport

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// echo answers every call with its request.
var echo = HandlerFunc(func(call *Call) { call.Reply(call.Body()) })

// serving is a Config whose calls h serves.
func serving(h Handler) Config {
	return Config{NewHandler: func(*Conn) (Handler, error) { return h, nil }}
}

// serveOn serves with cfg on a new listener of the network until the test ends.
func serveOn(t testing.TB, network string, cfg Config) Addr {
	addr := Addr{Network: "tcp", Address: "127.0.0.1:0"}
	if network == "unix" {
		addr = Addr{Network: "unix", Address: filepath.Join(t.TempDir(), "s")}
	}
	ln, err := Listen(addr)
	require.NoError(t, err)
	s, err := Serve(ln, cfg)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	return ln.Address()
}

func dial(t testing.TB, addr Addr, cfg Config) *Conn {
	c, err := Dial(t.Context(), addr, cfg)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Close()) })
	return c
}

// pair connects two ends over sockets that exist in memory only.
func pair(t testing.TB, one, two Config) (*Conn, *Conn) {
	a, b := net.Pipe()
	return connect(t, a, b, one, two)
}

func connect(t testing.TB, a, b net.Conn, one, two Config) (caller, called *Conn) {
	var wait sync.WaitGroup
	var err error
	wait.Go(func() { called, err = Accept(context.Background(), b, two) })
	caller, cerr := Connect(context.Background(), a, one)
	wait.Wait()
	require.NoError(t, err)
	require.NoError(t, cerr)
	return caller, called
}

func TestEcho(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			c := dial(t, serveOn(t, network, serving(echo)), Config{})
			var wait sync.WaitGroup
			for i := range 16 {
				wait.Go(func() {
					for j := range 200 {
						body := fmt.Appendf(nil, "call %d of %d", j, i)
						answer, err := c.Call(t.Context(), body)
						if err != nil || string(answer) != string(body) {
							t.Errorf("%q: answer %q, %v", body, answer, err)
						}
					}
				})
			}
			wait.Wait()
		})
	}
}

// TestReplyAll: answers that are given together reach the calls that they are
// for, whichever connections those came by, also where one does not read.
func TestReplyAll(t *testing.T) {
	const each, conns, large = 4, 3, 1 << 20
	arrived := make(chan *Call, each*conns)
	addr := serveOn(t, "unix", serving(HandlerFunc(func(call *Call) { arrived <- call })))
	var wait sync.WaitGroup
	for i := range conns {
		c := dial(t, addr, Config{})
		for j := range each {
			wait.Go(func() {
				body := fmt.Appendf(nil, "call %d of %d", j, i)
				answer, err := c.Call(t.Context(), body)
				if err != nil || len(answer) < large || string(answer[large:]) != string(body) {
					t.Errorf("%q: %d bytes, %v", body, len(answer), err)
				}
			})
		}
	}
	var calls []*Call
	var bodies [][]byte
	for range each * conns {
		call := <-arrived
		calls = append(calls, call)
		bodies = append(bodies, append(make([]byte, large), call.Body()...)) // more than a socket takes at once
	}
	ReplyAll(calls, bodies)
	wait.Wait()
}

// The connection of the last call is written to first: what others woke stands last.
func TestReplyAllTheLastFirst(t *testing.T) {
	const conns = 3
	arrived := make(chan *Call, conns)
	addr := serveOn(t, "unix", serving(HandlerFunc(func(call *Call) { arrived <- call })))
	var calls []*Call
	var wait sync.WaitGroup
	for range conns {
		c := dial(t, addr, Config{})
		wait.Go(func() {
			_, err := c.Call(t.Context(), nil)
			assert.NoError(t, err)
		})
		calls = append(calls, <-arrived)
	}
	var order []int
	for i, call := range calls {
		w := &call.conn.out
		write := w.write
		w.write = func(fd uintptr, b []byte) (int, error) {
			order = append(order, i)
			return write(fd, b)
		}
	}
	ReplyAll(calls, make([][]byte, conns))
	require.Equal(t, []int{2, 1, 0}, order)
	wait.Wait()
}
