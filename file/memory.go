package file

import (
	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/persist"
	"github.com/gearsfs/gearsfs/stream"
	"github.com/gearsfs/gearsfs/wire"
)

// What a command for a stream in memory must keep to is the same as for all.

// CheckAppend checks whether records may be put to a stream that is in a state,
// now or, with delayed, for later, but for a limit that makes a put wait.
func CheckAppend(state *stream.State, records []*wire.NewRecord, delayed bool) error {
	err := checkAppend(state, records)
	for _, r := range records {
		if err == nil && len(r.Extents) > 0 {
			err = errMemoryExtents
		}
	}
	if err == nil && delayed && state.Delayed+uint64(len(records)) > delayedMax {
		err = errDelayedMax
	}
	if err == nil {
		_, err = isFull(state, uint64(len(records)), bytesOf(records))
	}
	return err
}

// errMemoryExtents: the node keeps what is in memory to itself.
var errMemoryExtents = gearsfs.ErrUnsupported.Because("a stream in memory has no extents")

// CheckLease checks what a take of a session asks for besides records.
func CheckLease(op *wire.Take, session gearsfs.SessionID) error {
	return checkLease(&context{session: session}, op)
}

// CheckSettle checks what a settlement asks for besides its leases.
func CheckSettle(op *wire.Settle) error { return checkSettle(op) }

// InMemory says whether a stream's records are in memory: commands for them must
// not come here.
func (m *Machine) InMemory(ino gearsfs.Ino, key gearsfs.Key) bool {
	m.mu.RLock()
	if s, ok := m.streams.get(streamKey{ino, key}); ok {
		defer m.mu.RUnlock()
		return s.queue.State().Memory
	}
	m.mu.RUnlock()
	st := m.StreamState(ino, key)
	return st.state.Memory
}

// AnyInMemory says whether the volume has a stream whose records are in memory.
// It looks at every stream.
func (m *Machine) AnyInMemory() (any bool, err error) {
	r := m.read()
	defer r.close()
	lo, hi := persist.TableRange(persist.TableStream)
	err = scan(r.view, lo, hi, func(_, value []byte) error {
		var row wire.StreamRow
		if err := row.UnmarshalVTUnsafe(value); err != nil {
			return err
		}
		if any = row.Memory; any {
			return errStop
		}
		return nil
	})
	return any, err
}

// applyInherit gives a stream that leaves memory the ids that it remembers, and has
// its seqs go on above those that it gave there.
func (m *Machine) applyInherit(c *context, op *wire.Inherit) *wire.Answer {
	_, s, err := m.streamOf(c, op.Target, gearsfs.Key(op.Key), 0)
	if err == nil && (s == nil || !s.queue.State().Memory || !s.queue.State().Drained()) {
		err = gearsfs.ErrInvalid.Because("the stream does not leave memory")
	}
	if err != nil {
		return m.refuse(err)
	}
	s.queue.SkipTo(gearsfs.Seq(op.NextSeq))
	m.dirtyStream(s)
	m.touch(s.node.ino, s.key)
	for _, id := range op.Ids {
		if id.Id == "" || len(id.Id) > gearsfs.KeyBytesMax || gearsfs.Seq(id.Seq) >= s.queue.State().NextSeq {
			continue
		}
		known, err := m.knownID(s, id.Id)
		if err != nil {
			return m.refuse(err)
		}
		if known == nil {
			m.rememberIDOf(min(id.Time, c.now), s, id.Id, gearsfs.Seq(id.Seq))
		}
	}
	if _, err := m.forgetIDs(s, len(op.Ids)+forgetMax); err != nil {
		return m.refuse(err)
	}
	return &wire.Answer{}
}
