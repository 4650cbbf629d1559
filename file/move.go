package file

import (
	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/stream"
	"github.com/gearsfs/gearsfs/wire"
)

// applyMove takes records from the head of a stream and puts them into another
// of the same file: as many as were asked for and fit into one entry and into the
// stream, at least one where there is any. They are new records there, put now.
func (m *Machine) applyMove(c *context, op *wire.Move) *wire.Answer {
	n, from, to, err := m.movedStreams(c, op)
	if err != nil {
		return m.refuse(err)
	}
	answer := &wire.Answer{Ino: uint64(n.ino)}
	if from == nil || from.queue.State().Ready == 0 {
		return answer
	}
	count, err := m.movable(from, stateOrNew(to), op.Max)
	if err == nil {
		_, to, err = m.openToPut(c, op.Target, op.To, 0, n, to)
	}
	if err == nil {
		err = m.moveRecords(c, from, to, count, answer)
	}
	if err != nil {
		return m.refuse(err)
	}
	return answer
}

// movedStreams returns the file and the streams that a move is about; a stream
// that is missing is nil.
func (m *Machine) movedStreams(c *context, op *wire.Move) (n *node, from, to *openStream, err error) {
	if err := gearsfs.Key(op.To).Check(); err != nil {
		return nil, nil, nil, err
	}
	if op.Key == op.To {
		return nil, nil, nil, gearsfs.ErrInvalid.Because("records can't be moved to the stream that they are in")
	}
	if n, from, err = m.streamOf(c, op.Target, gearsfs.Key(op.Key), mayRead|mayWrite); err != nil {
		return nil, nil, nil, err
	}
	if n == nil {
		return nil, nil, nil, gearsfs.ErrNotFound
	}
	if to, err = m.stream(n, gearsfs.Key(op.To)); err != nil {
		return nil, nil, nil, err
	}
	switch state := stateOrNew(from); {
	case state.Memory || stateOrNew(to).Memory:
		err = errMemory
	case op.Key == string(gearsfs.DataKey) && state.Blocks:
		err = gearsfs.ErrBlocks
	}
	return n, from, to, err
}

// movable returns how many records can be moved into a stream that is in a
// state, with an error where that is none.
func (m *Machine) movable(from *openStream, to *stream.State, max uint64) (n int, err error) {
	if max == 0 || max > gearsfs.BatchRecordsMax {
		max = gearsfs.BatchRecordsMax
	}
	state := *to
	var bytes uint64
	var stopped error
	err = from.queue.EachReady(func(_ gearsfs.Place, r *stream.Record) bool {
		size := uint64(r.Len())
		stopped = checkAppend(&state, []*wire.NewRecord{newRecordOf(r)})
		if stopped == nil {
			var full bool
			if full, stopped = isFull(&state, 1, size); full {
				stopped = gearsfs.ErrFull
			}
		}
		if stopped != nil || bytes+size > gearsfs.BatchBytesMax {
			return false
		}
		n++
		bytes += size
		state.Ready++
		state.Bytes += size
		state.Tail += gearsfs.Pos(size)
		return uint64(n) < max
	})
	if err == nil && n == 0 {
		err = stopped
	}
	return n, err
}

// moveRecords moves n records, which can be.
func (m *Machine) moveRecords(c *context, from, to *openStream, n int, answer *wire.Answer) (err error) {
	taken := m.sessions.taken[:0]
	if taken, err = from.queue.Take(taken, n, gearsfs.BatchBytesMax, true); err != nil {
		return err
	}
	m.sessions.taken = taken
	for i := range taken {
		was, place := &taken[i].Record, taken[i].Place
		if err := m.makeRoom(c, to, []*wire.NewRecord{newRecordOf(was)}); err != nil {
			return err
		}
		from.queue.Lose(place.Seq, place.Seq, gearsfs.FateMoved)
		at := to.queue.AppendRecord(stream.Record{Data: was.Data, Extents: was.Extents, Type: was.Type, Time: c.now})
		m.rowsOf(from).disown(place, was)
		from.queue.Forget(place, after(place))
		answer.LastSeq = uint64(at.Seq)
		if i == 0 {
			answer.FirstSeq = answer.LastSeq
		}
	}
	answer.Count = uint64(len(taken))
	clear(taken)
	m.dirtyStream(from)
	m.dirtyStream(to)
	m.consumed(c, from)
	touched := m.touch(to.node.ino, to.key)
	touched.Ready, touched.Appended = true, true
	m.dataChanged(c, to)
	return nil
}

// newRecordOf is a record as one that is to be put; it shares its bytes.
func newRecordOf(r *stream.Record) *wire.NewRecord {
	return &wire.NewRecord{Data: r.Data, Type: r.Type, Extents: ExtentsToWire(r.Extents)}
}
