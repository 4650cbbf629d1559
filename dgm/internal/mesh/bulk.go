package mesh

import (
	"context"
	"sync"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/transport"
	"github.com/gearsfs/gearsfs/wire"
)

// bulkWays are this node's connections to the others for large payloads: those for
// raft's messages must not wait for them. The zero value has none.
type bulkWays struct {
	mu  sync.Mutex // not held over I/O
	all map[gearsfs.MemberID]*bulkWay
}

// bulkWay is the connection to a member that payloads go over, made when needed.
type bulkWay struct {
	to gearsfs.MemberID

	dialling sync.Mutex // held while it is made; taken before mu
	mu       sync.Mutex
	conn     *transport.Conn
}

// to returns the way to a member.
func (b *bulkWays) to(id gearsfs.MemberID) *bulkWay {
	b.mu.Lock()
	defer b.mu.Unlock()
	w := b.all[id]
	if w == nil {
		if b.all == nil {
			b.all = make(map[gearsfs.MemberID]*bulkWay)
		}
		w = &bulkWay{to: id}
		b.all[id] = w
	}
	return w
}

// end closes the connections.
func (b *bulkWays) end() {
	b.mu.Lock()
	all := b.all
	b.all = nil
	b.mu.Unlock()
	for _, w := range all {
		if conn := w.current(); conn != nil {
			conn.Close() //nolint:errcheck // nothing is left that matters
		}
	}
}

func (w *bulkWay) current() *transport.Conn {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.conn != nil && w.conn.Err() != nil {
		w.conn = nil
	}
	return w.conn
}

// open returns the connection, dialled where there is none.
func (w *bulkWay) open(ctx context.Context, m *Mesh) (*transport.Conn, error) {
	if conn := w.current(); conn != nil {
		return conn, nil
	}
	w.dialling.Lock()
	defer w.dialling.Unlock()
	if conn := w.current(); conn != nil {
		return conn, nil
	}
	link := m.link(w.to)
	if link == nil {
		return nil, gearsfs.ErrNotMember.Because("%x is not a member", uint64(w.to))
	}
	conn, err := m.dial(ctx, link.who(), true)
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	w.conn = conn
	w.mu.Unlock()
	return conn, nil
}

// Carry has another member answer the request that start begins on a connection to
// it, one for what is large. It waits for the answer, or until ctx ends.
func (m *Mesh) Carry(ctx context.Context, to gearsfs.MemberID, start func(*transport.Conn, func([]byte, error)) *transport.Pending) (*wire.Response, error) {
	conn, err := m.bulk.to(to).open(ctx, m)
	if err != nil {
		return nil, err
	}
	return await(ctx, conn, start)
}
