package payload

import (
	"sync"
	"sync/atomic"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/file"
	"github.com/gearsfs/gearsfs/transport"
	"github.com/gearsfs/gearsfs/wire"
)

// cargo is a block on its way to the other members: one request for all of them, with
// a copy of the bytes, which who gave them may change when a majority has them. Its
// memory is that of an earlier one, because fresh memory costs as much as the copy;
// it is given back when nobody sends it any more.
type cargo struct {
	body []byte
	sums transport.Sums
	refs atomic.Int32
	kept atomic.Bool // somebody may look at the body even then: it is not used again
}

// cargoBytesMax is up to how large a body's memory is kept. Smaller ones than half of it
// have memory of their own: many of them may be on their way at once.
const cargoBytesMax = 1<<20 + 64<<10

var cargoMemory = sync.Pool{New: func() any { b := make([]byte, 0, cargoBytesMax); return &b }}

// newCargo packs what extents store; whoever gets it releases it.
func newCargo(extents []gearsfs.Extent, payload []byte) (*cargo, error) {
	req := &wire.Request{Kind: &wire.Request_Blocks{Blocks: &wire.Blocks{Store: file.ExtentsToWire(extents), Data: payload}}}
	c := &cargo{sums: transport.Sums{Last: len(payload), Each: extents[0].Sums}}
	for _, e := range extents[1:] { // all but the last are of whole pages
		c.sums.Each = append(c.sums.Each[:len(c.sums.Each):len(c.sums.Each)], e.Sums...)
	}
	c.refs.Store(1)
	size := req.SizeVT()
	if size < cargoBytesMax/2 || size > cargoBytesMax {
		c.body = make([]byte, size)
	} else {
		c.body = (*cargoMemory.Get().(*[]byte))[:size]
	}
	if _, err := req.MarshalToSizedBufferVT(c.body); err != nil { // the data last, as their field's number has it
		return nil, err
	}
	return c, nil
}

// start sends it over a connection.
func (c *cargo) start(conn *transport.Conn, done func(answer []byte, err error)) *transport.Pending {
	c.refs.Add(1)
	return conn.StartSummed(c.body, c.sums, func(answer []byte, err error) {
		if err != nil {
			c.kept.Store(true) // the connection's end may come while somebody writes to it
		}
		c.release()
		done(answer, err)
	})
}

func (c *cargo) release() {
	if c.refs.Add(-1) == 0 && !c.kept.Load() && cap(c.body) == cargoBytesMax {
		body := c.body[:0]
		cargoMemory.Put(&body)
	}
}
