package file

import (
	"cmp"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/stream"
)

// deadSuffix makes of a stream's key that of the stream for the records that
// were handed out too often.
const deadSuffix = ".dead"

// comeBack ends the lease on a record without an acknowledgement: the record is
// ready again at once, or at the time until where that is not 0. One that was
// handed out tries times moves to the dead stream; 0 tries are those of the
// lease or of the stream's settings.
func (m *Machine) comeBack(c *context, s *openStream, at gearsfs.Place, tries uint32, until uint64) error {
	m.dirtyStream(s)
	out, _ := s.queue.Out(at)
	tries = cmp.Or(tries, out.Tries, s.queue.State().Tries)
	if tries != 0 && out.Deliveries >= tries {
		dead, err := m.deadStream(s, out.Bytes)
		if err != nil {
			return err
		}
		if dead != nil {
			return m.bury(c, s, dead, at, out, tries)
		}
	}
	m.counts.records.Returned++
	if until != 0 {
		s.queue.Delay(at, until)
		return nil
	}
	s.queue.Return(at)
	m.touch(s.node.ino, s.key).Ready = true
	return nil
}

// deadStream returns the stream for the dead records of another, made where it
// is missing; nil where there can be none or it is full of bytes.
func (m *Machine) deadStream(s *openStream, bytes uint64) (*openStream, error) {
	key := s.key + deadSuffix
	if key.Check() != nil {
		return nil, nil
	}
	dead, err := m.stream(s.node, key)
	switch {
	case err != nil:
		return nil, err
	case dead == nil:
		return m.makeStream(s.node, key), nil
	}
	if state := dead.queue.State(); state.Memory || uint64(state.Tail)+bytes > gearsfs.FileBytesMax {
		return nil, nil
	}
	return dead, nil
}

// bury moves a leased record to a dead stream, whose limits and type do not
// matter. What is too much for one entry stays leased, by nobody, until the next.
func (m *Machine) bury(c *context, s, dead *openStream, at gearsfs.Place, out stream.Out, tries uint32) error {
	if m.buried != 0 && m.buried+out.Bytes > gearsfs.BatchBytesMax {
		s.queue.Relet(at, stream.Grant{Fence: m.volume.NextFence, Deadline: c.now, Jumped: m.jumped(), Tries: tries})
		m.volume.NextFence++
		return nil
	}
	m.buried += out.Bytes
	rec, err := m.rowsOf(s).Get(at)
	if err != nil {
		return err
	}
	dead.queue.AppendRecord(stream.Record{Data: rec.Data, Extents: rec.Extents, Type: rec.Type, Time: c.now})
	m.rowsOf(s).disown(at, &rec)
	m.dirtyStream(dead)
	t := m.touch(dead.node.ino, dead.key)
	t.Ready, t.Appended = true, true
	m.counts.records.Dead++
	s.queue.Lose(at.Seq, at.Seq, gearsfs.FateDead)
	if err := s.queue.Ack(at); err != nil {
		return err
	}
	m.consumed(c, s)
	return nil
}
