package file

import (
	"math"
	"slices"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/persist"
	"github.com/gearsfs/gearsfs/stream"
	"github.com/gearsfs/gearsfs/wire"
)

// A stream remembers the ids of records that were put, so that each is put
// once within a window of log time and of IDsMax ids:
//
//	id table     id     -> seq, number, time
//	id order     number -> id     for the numbers in [NextID-IDs, NextID)
//
// Each put forgets what has left the window, oldest first, but not without
// bound. A stream has a timer while it remembers ids: it is due when the oldest
// leaves the window, or earlier, since it is not moved when that one is forgotten.
// An id that has left it and is not forgotten yet counts as unknown; put
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
	if row != nil && m.idExpired(s.queue.State(), row.Time) {
		row = nil
	}
	return row, err
}

// LacksID says of records that are to be put whether each has an id, and which
// id is the first that their stream does not know, as of the last applied entry;
// "" where it knows them all, so that putting them would change nothing.
func (m *Machine) LacksID(ino gearsfs.Ino, key gearsfs.Key, records []*wire.NewRecord) (lacks string, all bool) {
	if len(records) == 0 || slices.ContainsFunc(records, func(r *wire.NewRecord) bool { return r.Id == "" }) {
		return "", false
	}
	m.mu.RLock()
	r := m.readLocked()
	m.mu.RUnlock()
	defer r.close()
	state, ok, err := r.streamState(ino, key)
	if err != nil || !ok || state.IDs == 0 {
		return records[0].Id, true
	}
	m.mu.RLock()
	gone := m.ago(idWindow(&state))
	m.mu.RUnlock()
	for _, rec := range records {
		row, err := readIDRow(r.view, ino, key, rec.Id)
		if err != nil || row == nil || row.Time <= gone {
			return rec.Id, true
		}
	}
	return "", true
}

// KnownID returns the seq under which a record with an id was put that its stream
// remembers on disk, as of the last applied entry.
func (m *Machine) KnownID(ino gearsfs.Ino, key gearsfs.Key, id string) (seq uint64, known bool, err error) {
	m.mu.RLock()
	r := m.readLocked()
	m.mu.RUnlock()
	defer r.close()
	state, ok, err := r.streamState(ino, key)
	if err != nil || !ok || state.IDs == 0 {
		return 0, false, err
	}
	m.mu.RLock()
	gone := m.ago(idWindow(&state))
	m.mu.RUnlock()
	row, err := readIDRow(r.view, ino, key, id)
	if err != nil || row == nil || row.Time <= gone {
		return 0, false, err
	}
	return row.Seq, true, nil
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

// idExpired reports whether an id of that time has left the window of a stream.
func (m *Machine) idExpired(s *stream.State, time uint64) bool { return time <= m.ago(idWindow(s)) }

// idWindow is for how long a stream remembers ids.
func idWindow(s *stream.State) uint64 {
	if s.IDWindow == 0 {
		return uint64(gearsfs.IDWindowDefault)
	}
	return s.IDWindow
}

// rememberID notes that the record with an id, which is not known, was put.
func (m *Machine) rememberID(c *context, s *openStream, id string, seq gearsfs.Seq) {
	m.rememberIDOf(c.now, s, id, seq)
}

// rememberIDOf is rememberID of a record that was put at some time.
func (m *Machine) rememberIDOf(time uint64, s *openStream, id string, seq gearsfs.Seq) {
	state := s.queue.State()
	state.NextID = max(state.NextID, 1)
	row := wire.IdRow{Seq: uint64(seq), Number: state.NextID, Time: time}
	m.scratch.key = persist.AppendIDKey(m.scratch.key[:0], s.node.ino, s.key, id)
	m.set(m.scratch.key, &row)
	m.scratch.key = persist.AppendIDOrderKey(m.scratch.key[:0], s.node.ino, s.key, row.Number)
	m.store.Set(m.scratch.key, []byte(id))
	state.NextID++
	state.IDs++
}

// forgetIDs forgets up to limit of the oldest ids, if they have left the window,
// and returns how many.
func (m *Machine) forgetIDs(s *openStream, limit int) (n int, err error) {
	state := s.queue.State()
	for ; n < limit && state.IDs > 0; n++ {
		number := state.NextID - state.IDs
		young := state.IDs <= m.idsMax
		if young && s.oldest.number == number && !m.idExpired(state, s.oldest.time) {
			break // without looking
		}
		id, row, err := m.idNumber(s, number)
		if err != nil {
			return n, err
		}
		if row != nil {
			if young && !m.idExpired(state, row.Time) {
				s.oldest = idMark{number, row.Time}
				break
			}
			m.store.Delete(persist.IDKey(s.node.ino, s.key, id))
		}
		m.store.Delete(persist.IDOrderKey(s.node.ino, s.key, number))
		state.IDs--
	}
	return n, nil
}

// idNumber reads the id of a number, and its row where that is not of a later one.
func (m *Machine) idNumber(s *openStream, number uint64) (id string, row *wire.IdRow, err error) {
	value, ok, err := m.store.Get(persist.IDOrderKey(s.node.ino, s.key, number), nil)
	if err == nil && !ok {
		err = gearsfs.ErrDamaged.Because("inode %d, stream %q: id number %d is missing", s.node.ino, s.key, number)
	}
	if err != nil {
		return "", nil, err
	}
	id = string(value)
	if row, err = readIDRow(m.store, s.node.ino, s.key, id); row != nil && row.Number != number {
		row = nil
	}
	return id, row, err
}

// setIDTimer makes the timer of the stream's ids be due at that time, 0 for none.
func (m *Machine) setIDTimer(s *openStream, due uint64) {
	state := s.queue.State()
	if state.IDsDue == due {
		return
	}
	rows := m.rowsOf(s)
	m.removeTimer(rows.timer(state.IDsDue, persist.IDTimer))
	m.setTimer(rows.timer(due, persist.IDTimer))
	state.IDsDue = due
}

// watchIDs sees to the timer of the stream's ids at the end of an entry that has
// changed the stream.
func (m *Machine) watchIDs(s *openStream) error {
	state := s.queue.State()
	if state.IDs == 0 || state.IDsDue != 0 {
		return nil
	}
	number := state.NextID - state.IDs
	if s.oldest.number != number {
		_, row, err := m.idNumber(s, number)
		if err != nil {
			return err
		}
		s.oldest = idMark{number: number}
		if row != nil { // else its turn is over: it is forgotten by the next entry
			s.oldest.time = row.Time
		}
	}
	m.setIDTimer(s, m.since(s.oldest.time, idWindow(state)))
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
func (m *Machine) setRules(s *openStream, set *wire.Settings) {
	state := s.queue.State()
	if set.Type != nil {
		state.Type = string([]byte(*set.Type)) // not a part of the entry
	}
	if set.IdWindow != nil && *set.IdWindow != state.IDWindow {
		state.IDWindow = *set.IdWindow
		m.setIDTimer(s, 0) // watchIDs looks when the oldest leaves the window
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
