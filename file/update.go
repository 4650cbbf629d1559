package file

import (
	"strings"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/stream"
	"github.com/gearsfs/gearsfs/wire"
)

var (
	errAppendOnly = gearsfs.ErrPermission.Because("the stream is append-only")
	errMemory     = gearsfs.ErrUnsupported.Because("the stream is in memory")
)

// applyUpdate makes a record the only one of its stream: used as a register,
// which is never empty in between.
func (m *Machine) applyUpdate(c *context, op *wire.Update) *wire.Answer {
	n, s, err := m.streamOf(c, op.Target, gearsfs.Key(op.Key), mayWrite)
	if err == nil && n == nil {
		err = m.mayMakeFile(c, op.Target)
	}
	var fresh []*wire.NewRecord
	var known uint64
	if err == nil {
		fresh, known, err = m.checkUpdate(s, stateOrNew(s), op, nil)
	}
	if err == nil {
		err = m.roomToUpdate(op.Target, n, s, fresh)
	}
	if err == nil && s != nil && len(fresh) > 0 {
		err = m.checkRemoval(s, 0)
	}
	if err == nil {
		n, s, err = m.openToPut(c, op.Target, op.Key, op.Mode, n, s)
	}
	if err != nil {
		return m.refuse(err)
	}
	answer := &wire.Answer{Ino: uint64(n.ino), FirstSeq: known, LastSeq: known}
	if len(fresh) > 0 {
		err = m.update(c, s, op.Record, answer)
	}
	if err != nil {
		return m.refuse(err)
	}
	return answer
}

// stateOrNew returns the state of a stream, or that of one that is missing.
func stateOrNew(s *openStream) *stream.State {
	if s != nil {
		return s.queue.State()
	}
	state := stream.NewState()
	return &state
}

// openToPut makes the file and the stream of a command where they are missing,
// after all its checks: n and s are nil then.
func (m *Machine) openToPut(c *context, t *wire.Target, key string, mode uint32, n *node, s *openStream) (*node, *openStream, error) {
	if n == nil {
		if mode == 0 {
			mode = newFilePermits
		}
		var err error
		if n, err = m.makeFile(c, t, mode); err != nil {
			return nil, nil, err
		}
	}
	if s == nil {
		s = m.makeStream(n, gearsfs.Key(strings.Clone(key)))
	}
	return n, s, nil
}

// checkUpdate checks an update of a stream that is in a state. fresh is empty
// where its record's id is known, under seq known; seen as in unknown.
func (m *Machine) checkUpdate(s *openStream, state *stream.State, op *wire.Update, seen map[string]struct{}) (fresh []*wire.NewRecord, known uint64, err error) {
	if op.Record == nil {
		return nil, 0, gearsfs.ErrInvalid.Because("an update has one record")
	}
	record := []*wire.NewRecord{op.Record}
	if err := CheckRecords(record); err != nil {
		return nil, 0, err
	}
	if fresh, known, err = m.unknown(s, record, seen); err != nil || len(fresh) == 0 {
		return nil, known, err
	}
	if err := checkAppend(state, fresh); err != nil {
		return nil, 0, err
	}
	switch {
	case state.AppendOnly:
		err = errAppendOnly
	case op.IfSeq != nil && *op.IfSeq != uint64(state.Newest()):
		err = gearsfs.ErrUnmet.Because("the newest seq is %d, not %d", state.Newest(), *op.IfSeq)
	}
	return fresh, 0, err
}

// checkAppend checks whether records may be put into a stream that is in a
// state, but for its limits.
func checkAppend(state *stream.State, records []*wire.NewRecord) error {
	if state.Sealed {
		return gearsfs.ErrSealed
	}
	if uint64(state.Tail)+bytesOf(records) > gearsfs.FileBytesMax {
		return gearsfs.ErrTooBig.Because("a stream ends at offset %d", gearsfs.FileBytesMax)
	}
	if state.Type == "" {
		return nil
	}
	for _, r := range records {
		if r.Type != state.Type {
			return gearsfs.ErrType.Because("the stream is of type %q, the record of type %q", state.Type, r.Type)
		}
	}
	return nil
}

// lengthOf is the length of a record that is to be put.
func lengthOf(r *wire.NewRecord) (n uint64) {
	if len(r.Extents) == 0 {
		return uint64(len(r.Data))
	}
	for _, e := range r.Extents {
		n += e.Length
	}
	return n
}

func bytesOf(records []*wire.NewRecord) (bytes uint64) {
	for _, r := range records {
		bytes += lengthOf(r)
	}
	return bytes
}

// update replaces what a stream holds by a record; leases on that end. However
// many records went, the version rises by one.
func (m *Machine) update(c *context, s *openStream, r *wire.NewRecord, answer *wire.Answer) error {
	version := s.queue.State().Version
	if err := s.queue.Clear(); err != nil {
		return err
	}
	at := s.queue.AppendRecord(recordToPut(r, c.now))
	m.counts.records.Put++
	s.queue.State().Version = version + 1
	answer.FirstSeq, answer.LastSeq = uint64(at.Seq), uint64(at.Seq)
	m.dirtyStream(s)
	touched := m.touch(s.node.ino, s.key)
	touched.Ready, touched.Appended, touched.Room = true, true, true
	m.dataChanged(c, s)
	if r.Id == "" {
		return nil
	}
	m.rememberID(c, s, r.Id, at.Seq)
	_, err := m.forgetIDs(s, 1+forgetMax)
	return err
}
