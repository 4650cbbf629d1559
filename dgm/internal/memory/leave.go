package memory

import (
	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/file"
	"github.com/gearsfs/gearsfs/wire"
)

// A stream goes from memory to the disk by a command, which is decided on here
// and applied later. Between the two nothing may be put to it: that would be
// acknowledged, and dropped with the stream. So what would add to a stream that
// leaves is held back, and asked for anew when it has left or stays.

// leaving is a stream of which commands are on their way that take it out of
// memory.
type leaving struct {
	commands int
	held     []func() // have what is held back asked for anew
}

// Leave says whether a stream has no records, and then holds back what would add
// some until Left is called. It is called by what was pushed.
func (m *Machine) Leave(at Place) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if s := m.streams[at]; s != nil {
		if st := file.StreamStateOf(*s.State()); st.Left() > 0 {
			return false
		}
	}
	l := m.leaving[at]
	if l == nil {
		l = &leaving{}
		m.leaving[at] = l
	}
	l.commands++
	return true
}

// Left is for a stream that has left, or stays, after a Leave that returned true.
func (m *Machine) Left(at Place) {
	m.mu.Lock()
	l := m.leaving[at]
	if l.commands--; l.commands > 0 {
		m.mu.Unlock()
		return
	}
	delete(m.leaving, at)
	m.mu.Unlock()
	for _, again := range l.held {
		again()
	}
}

// Heritage is what a stream that leaves has to be known by on disk: the ids that it
// remembers, and the seq of the next record; 0 where none was put here.
func (m *Machine) Heritage(at Place) (next gearsfs.Seq, ids []*wire.InheritedId) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.streams[at]
	if s == nil || s.newest() == 0 {
		return 0, nil
	}
	s.ids.forget(m.node.Now(), s.idWindow())
	for _, id := range s.ids.order {
		if s.ids.last[id.id] == id {
			ids = append(ids, &wire.InheritedId{Id: id.id, Seq: id.seq, Time: id.time})
		}
	}
	return s.State().NextSeq, ids
}

// adds says whether a request is to add records.
func (r *Request) adds() bool { return r.Command.GetPut() != nil || r.Command.GetUpdate() != nil }
