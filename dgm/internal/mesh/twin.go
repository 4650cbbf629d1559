package mesh

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/transport"
)

// A member is one process. Another one that runs with a copy of its data would
// vote a second time and say of entries that it has them, which the group then
// counts as the member's. So a process that says it is a member is not let in
// while one that was let in before it still answers.

// twinTimeout is how long the process that was let in before has to answer.
const twinTimeout = time.Second

// twin is a process that came while another of its member was connected.
type twin struct {
	life  uint64 // its incarnation
	found bool   // the other one has answered; false while it is being asked
}

// checkTwin refuses a process of a member while an earlier one runs:
// gearsfs.ErrInUse; gearsfs.ErrNoNode while that is being found out. It waits for
// nothing.
func (m *Mesh) checkTwin(id gearsfs.MemberID, life uint64) error {
	l := m.link(id)
	if l == nil {
		return nil
	}
	conn, err := l.current()
	m.mu.Lock()
	defer m.mu.Unlock()
	before := m.lives[id]
	if err != nil || life == 0 || before == 0 || before == life || m.closed {
		delete(m.twins, id)
		return nil
	}
	t, asked := m.twins[id]
	if asked && t.life == life && t.found {
		who := l.who()
		return gearsfs.ErrInUse.Because("%s runs already, at %s: was its data copied? "+
			"A node more joins with new data and a --name of its own", who.Name, who.Addrs)
	}
	if !asked || t.found {
		m.twins[id] = twin{life: life}
		m.owned.Go(func() { m.seekTwin(l, conn, before, life) })
	}
	return gearsfs.ErrNoNode.Because("it is being asked whether the process that was connected before still runs")
}

// isTwin returns the answer of a member that would not have this process for another
// one that runs as the same node, or nil where err, of dial, holds none.
func isTwin(err error) error {
	u, ok := errors.AsType[*unreached](err)
	if !ok {
		return nil
	}
	i := slices.IndexFunc(u.errs, func(err error) bool { return errors.Is(err, gearsfs.ErrInUse) })
	if i < 0 {
		return nil
	}
	return u.errs[i]
}

// seekTwin asks the process at the far end of a link whether it is still the one
// that was let in, before another one came. A link to one that doesn't answer is over.
func (m *Mesh) seekTwin(l *peerLink, conn *transport.Conn, before, life uint64) {
	ctx, cancel := context.WithTimeout(m.ctx, twinTimeout)
	defer cancel()
	resp, err := call(ctx, conn, m.greeting(l.id, false))
	alive := err == nil && resp.GetJoined().GetIncarnation() == before
	m.mu.Lock()
	if alive {
		m.twins[l.id] = twin{life, true}
	} else {
		delete(m.twins, l.id)
	}
	m.mu.Unlock()
	switch {
	case m.ctx.Err() != nil: // as much as nothing was asked
	case alive:
		m.cfg.log.Error("a second process runs with the data of a node, and is refused", "node", l.who().Name)
	case err != nil:
		conn.Close() //nolint:errcheck // whoever is there now is dialled
	default:
		m.met(l.id, resp.GetJoined().GetIncarnation())
	}
}

// checkArrived refuses to talk to a process of a member while another one of it is
// connected to this node.
func (m *Mesh) checkArrived(id gearsfs.MemberID, life uint64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	a := m.arrived[id]
	if a == nil || a.life == 0 || life == 0 || a.life == life || a.peer.Conn.Err() != nil {
		return nil
	}
	return gearsfs.ErrNoNode.Because("another process of %s is connected to this node", a.self.Name)
}
