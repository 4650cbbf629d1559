package file

import (
	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/persist"
	"github.com/gearsfs/gearsfs/stream"
	"github.com/gearsfs/gearsfs/wire"
)

// checkLease checks what a take asks for besides records.
func checkLease(c *context, op *wire.Take) error {
	switch {
	case !op.Lease && (op.LeaseFor != 0 || op.ByReceipt || op.Tries != 0):
		return gearsfs.ErrInvalid.Because("a take without a lease has no deadline, receipt or tries")
	case op.ByReceipt && op.LeaseFor == 0:
		return gearsfs.ErrInvalid.Because("a lease that is held by its receipt needs a deadline")
	case op.Lease && !op.ByReceipt && c.session.IsZero():
		return gearsfs.ErrInvalid.Because("a lease needs a session")
	}
	return nil
}

// grant is what a take hands its records out under; the caller takes the fences
// that are used.
func (m *Machine) grant(c *context, op *wire.Take) stream.Grant {
	g := stream.Grant{Holder: c.session, Fence: m.volume.NextFence, Tries: op.Tries}
	if op.ByReceipt {
		g.Holder = gearsfs.SessionID{}
	}
	if op.LeaseFor != 0 {
		g.Deadline, g.Jumped = later(c.now, op.LeaseFor), m.jumped()
	}
	return g
}

// heldBy reports whether a lease with that fence is on a record, which the
// session holds or its receipt, and when it ends.
func heldBy(s *openStream, at gearsfs.Place, session gearsfs.SessionID, fence uint64) (deadline uint64, held bool) {
	out, ok := s.queue.Out(at)
	if !ok || !isHeld(&out, session, fence) {
		return 0, false
	}
	return out.Deadline, true
}

func isHeld(out *stream.Out, session gearsfs.SessionID, fence uint64) bool {
	return out.Leased && out.Fence == fence && (out.Holder.IsZero() || out.Holder == session)
}

// Leased reports whether a lease with that fence is on a record, which the
// session holds or its receipt, after the last applied entry.
func (m *Machine) Leased(ino gearsfs.Ino, key gearsfs.Key, at gearsfs.Place, session gearsfs.SessionID, fence uint64) bool {
	m.mu.RLock()
	if s, ok := m.streams.get(streamKey{ino, key}); ok {
		defer m.mu.RUnlock()
		_, held := heldBy(s, at, session, fence)
		return held
	}
	r := m.readLocked()
	m.mu.RUnlock()
	defer r.close()
	value, ok, err := r.view.Get(persist.OutKey(ino, key, at), nil)
	if err != nil || !ok {
		return false
	}
	out, err := parseOut(value)
	return err == nil && isHeld(&out, session, fence)
}

// maySettle checks that a lease with that fence is on a record and that the
// command may end it: it is of its session, or, where it is held by its receipt,
// the caller may take from the file.
func (m *Machine) maySettle(c *context, s *openStream, at gearsfs.Place, fence uint64) error {
	if s == nil {
		return gearsfs.ErrGone
	}
	out, ok := s.queue.Out(at)
	if !ok || !isHeld(&out, c.session, fence) {
		return gearsfs.ErrGone
	}
	if out.Holder.IsZero() {
		return m.access(c, s.node, mayRead|mayWrite)
	}
	return nil
}

// checkSettle checks what a settlement asks for besides its receipts.
func checkSettle(op *wire.Settle) error {
	switch {
	case len(op.Receipts) == 0 || len(op.Receipts) > gearsfs.BatchRecordsMax:
		return gearsfs.ErrInvalid.Because("1 to %d receipts are settled at once", gearsfs.BatchRecordsMax)
	case op.Return && op.Extend != 0:
		return gearsfs.ErrInvalid.Because("a lease is returned or extended, not both")
	case !op.Return && (op.Delay != 0 || op.Tries != 0):
		return gearsfs.ErrInvalid.Because("a delay and tries are for what is returned")
	}
	return nil
}

// settle ends one lease, which is held, or extends it.
func (m *Machine) settle(c *context, s *openStream, at gearsfs.Place, op *wire.Settle) error {
	m.dirtyStream(s)
	switch {
	case op.Return:
		var until uint64
		if op.Delay != 0 {
			until = later(c.now, op.Delay)
		}
		return m.comeBack(c, s, at, op.Tries, until)
	case op.Extend != 0:
		if out, _ := s.queue.Out(at); out.Deadline != 0 {
			s.queue.Extend(at, later(c.now, op.Extend), m.jumped())
		}
		return nil
	}
	m.counts.records.Acked++
	return s.queue.Ack(at)
}
