package mesh

import (
	"context"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm/internal/answer"
	"github.com/gearsfs/gearsfs/transport"
	"github.com/gearsfs/gearsfs/wire"
)

// outcome is how a call has ended.
type outcome struct {
	resp *wire.Response
	err  error
}

// call has the far end of a connection answer a request.
func call(ctx context.Context, conn *transport.Conn, req *wire.Request) (*wire.Response, error) {
	body, err := req.MarshalVT()
	if err != nil {
		return nil, gearsfs.ErrInvalid.Because("the request can't be encoded: %v", err)
	}
	return await(ctx, conn, func(conn *transport.Conn, done func([]byte, error)) *transport.Pending {
		return conn.Start(body, done)
	})
}

// await begins a call and waits for its answer, or until ctx ends. The response
// comes also with the error that it carries.
func await(ctx context.Context, conn *transport.Conn, start func(*transport.Conn, func([]byte, error)) *transport.Pending) (*wire.Response, error) {
	out := make(chan outcome, 1)
	pending := start(conn, func(body []byte, err error) { out <- decode(body, err) })
	select {
	case o := <-out:
		return o.resp, o.err
	case <-ctx.Done():
		pending.Cancel()
		return nil, ctx.Err()
	}
}

func decode(body []byte, err error) outcome {
	if err != nil {
		return outcome{nil, err}
	}
	resp := new(wire.Response)
	if err := resp.UnmarshalVT(body); err != nil {
		return outcome{nil, gearsfs.ErrProtocol.Because("an answer can't be decoded: %v", err)}
	}
	return outcome{resp, answer.ErrorOf(resp)}
}
