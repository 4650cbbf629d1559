package dgm

import (
	"context"
	"encoding/binary"
	"path/filepath"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs/transport"
	"github.com/gearsfs/gearsfs/wire"
)

// TestReplies: every answer is sent, whether guests gather it or not, and
// whoever else sends just then.
func TestReplies(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	var owner sync.WaitGroup
	r := new(replies)
	r.init(&owner, ctx)
	answer := func(call *transport.Call) {
		n := binary.BigEndian.Uint64(call.Body())
		if n%3 == 0 {
			r.push(reply{call: call, resp: &wire.Response{Index: n}})
			return
		}
		owner.Go(func() {
			r.Gather()
			r.push(reply{call: call, resp: &wire.Response{Index: n}})
			r.Deliver()
		})
	}
	address, err := transport.ParseAddr("unix:" + filepath.Join(t.TempDir(), "s"))
	require.NoError(t, err)
	l, err := transport.Listen(address)
	require.NoError(t, err)
	server, err := transport.Serve(l, transport.Config{NewHandler: func(*transport.Conn) (transport.Handler, error) {
		return transport.HandlerFunc(answer), nil
	}})
	require.NoError(t, err)
	var clients sync.WaitGroup
	for i := range 24 { // more than one guest delivers
		clients.Go(func() {
			conn, err := transport.Dial(t.Context(), address, transport.Config{})
			if err != nil {
				t.Error(err)
				return
			}
			for j := range uint64(500) {
				n := uint64(i)<<32 + j
				body, err := conn.Call(t.Context(), binary.BigEndian.AppendUint64(nil, n))
				resp := new(wire.Response)
				if err == nil {
					err = resp.UnmarshalVT(body)
				}
				if err != nil || resp.Index != n {
					t.Errorf("call %d: answer %d, %v", n, resp.Index, err)
					return
				}
			}
			if err := conn.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	clients.Wait()
	r.drain()
	require.NoError(t, server.Close())
	stop()
	owner.Wait()
}
