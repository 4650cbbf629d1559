package file

import (
	"math"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/persist"
	"github.com/gearsfs/gearsfs/wire"
)

// A stream remembers the ids of records that were put, so that each is put
// once within a window of log time and of IDsMax ids:
//
//	id table     id     -> seq, number, time
//	id order     number -> id     for the numbers in [NextID-IDs, NextID)
//
// Each put forgets what has left the window, oldest first, but not without
// bound. An id that has left it and is not forgotten yet counts as unknown; put
// again it gets a new number, and its old one stands for nothing until its turn
// to be forgotten comes. Ids outlive their records; they go with their stream.

// forgetMax is how many ids a put forgets beyond as many as it adds.
const forgetMax = 100

// unknown returns those of the records of a put that are to be put: whose ids
// the stream, nil where it is missing, does not know. seq is that of the last
// one that it knows. seen are ids that are put before these in the same command
// and takes in theirs; nil where there is no other put.
func (m *Machine) unknown(s *openStream, records []*wire.NewRecord, seen map[string]struct{}) (fresh []*wire.NewRecord, seq uint64, err error) {
	fresh = records
	for i, r := range records {
		known := false
		if r.Id != "" {
			if seen == nil {
				seen = make(map[string]struct{})
			}
			_, known = seen[r.Id]
			seen[r.Id] = struct{}{}
			if s != nil && !known {
				row, err := m.knownID(s, r.Id)
				if err != nil {
					return nil, 0, err
				}
				if row != nil {
					known, seq = true, row.Seq
				}
			}
		}
		switch {
		case known && len(fresh) == len(records): // the first one: the others move into a list of their own
			fresh = append(make([]*wire.NewRecord, 0, len(records)-1), records[:i]...)
		case !known && len(fresh) < len(records):
			fresh = append(fresh, r)
		}
	}
	return fresh, seq, nil
}

// knownID returns what a stream remembers of an id within its window, nil where
// that is nothing.
func (m *Machine) knownID(s *openStream, id string) (*wire.IdRow, error) {
	if s.queue.State().IDs == 0 {
		return nil, nil
	}
	row, err := readIDRow(m.store, s.node.ino, s.key, id)
	if row != nil && m.idExpired(s, row.Time) {
		row = nil
	}
	return row, err
}

// readIDRow reads an id's row, nil where there is none.
func readIDRow(r Reader, ino gearsfs.Ino, key gearsfs.Key, id string) (*wire.IdRow, error) {
	value, ok, err := r.Get(persist.IDKey(ino, key, id), nil)
	if err != nil || !ok {
		return nil, err
	}
	row := new(wire.IdRow)
	if err := row.UnmarshalVT(value); err != nil {
		return nil, damaged("id", err)
	}
	return row, nil
}

// idMark is an id by its number.
type idMark struct{ number, time uint64 }

func (m *Machine) idExpired(s *openStream, time uint64) bool {
	window := s.queue.State().IDWindow
	if window == 0 {
		window = uint64(gearsfs.IDWindowDefault)
	}
	return time <= m.ago(window)
}

// rememberID notes that the record with an id, which is not known, was put.
func (m *Machine) rememberID(c *context, s *openStream, id string, seq gearsfs.Seq) {
	state := s.queue.State()
	state.NextID = max(state.NextID, 1)
	row := wire.IdRow{Seq: uint64(seq), Number: state.NextID, Time: c.now}
	m.scratch.key = persist.AppendIDKey(m.scratch.key[:0], s.node.ino, s.key, id)
	m.set(m.scratch.key, &row)
	m.scratch.key = persist.AppendIDOrderKey(m.scratch.key[:0], s.node.ino, s.key, row.Number)
	m.store.Set(m.scratch.key, []byte(id))
	state.NextID++
	state.IDs++
}

// forgetIDs forgets the oldest ids that have left the window, after some were
// added.
func (m *Machine) forgetIDs(s *openStream, added int) error {
	state := s.queue.State()
	for range added + forgetMax {
		if state.IDs == 0 {
			break
		}
		number := state.NextID - state.IDs
		young := state.IDs <= m.idsMax
		if young && s.oldest.number == number && !m.idExpired(s, s.oldest.time) {
			break // without looking
		}
		order := persist.IDOrderKey(s.node.ino, s.key, number)
		id, ok, err := m.store.Get(order, nil)
		if err != nil {
			return err
		}
		if !ok {
			return gearsfs.ErrDamaged.Because("inode %d, stream %q: id number %d is missing", s.node.ino, s.key, number)
		}
		row, err := readIDRow(m.store, s.node.ino, s.key, string(id))
		if err != nil {
			return err
		}
		if row != nil && row.Number == number {
			if young && !m.idExpired(s, row.Time) {
				s.oldest = idMark{number, row.Time}
				break
			}
			m.store.Delete(persist.IDKey(s.node.ino, s.key, string(id)))
		}
		m.store.Delete(order)
		state.IDs--
	}
	return nil
}

// dropIDs forgets all ids of a stream that is dropped.
func (m *Machine) dropIDs(s *openStream) error {
	if s.queue.State().IDs == 0 {
		return nil
	}
	for _, table := range []persist.Table{persist.TableID, persist.TableIDOrder} {
		if err := m.deleteRows(persist.StreamRange(table, s.node.ino, s.key)); err != nil {
			return err
		}
	}
	s.queue.State().IDs = 0
	return nil
}

// setRules changes the settings of a stream that say what may be put into it.
func setRules(s *openStream, set *wire.Settings) {
	state := s.queue.State()
	if set.Type != nil {
		state.Type = string([]byte(*set.Type)) // not a part of the entry
	}
	if set.IdWindow != nil {
		state.IDWindow = *set.IdWindow
	}
	if set.AppendOnly != nil {
		state.AppendOnly = *set.AppendOnly
	}
}

// checkRules checks what setRules is to set.
func checkRules(set *wire.Settings) error {
	if len(set.GetType()) > gearsfs.KeyBytesMax {
		return gearsfs.ErrInvalid.Because("a type has at most %d bytes", gearsfs.KeyBytesMax)
	}
	if set.GetIdWindow() > math.MaxInt64 {
		return gearsfs.ErrInvalid.Because("the window of ids is too long")
	}
	return nil
}
