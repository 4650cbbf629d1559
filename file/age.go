package file

import (
	"github.com/gearsfs/gearsfs/persist"
)

// A stream whose settings name an age has a timer while it has records that can
// be taken: it is due when the first of them is too old, or earlier, since it
// is not moved when that one is taken. Age counts from the put.

// setAgeTimer makes the stream's age timer be due at that time, 0 for none.
func (m *Machine) setAgeTimer(s *openStream, due uint64) {
	state := s.queue.State()
	if state.AgeDue == due {
		return
	}
	rows := m.rowsOf(s)
	m.removeTimer(rows.timer(state.AgeDue, persist.AgeTimer))
	m.setTimer(rows.timer(due, persist.AgeTimer))
	state.AgeDue = due
}

// watchAge sees to the stream's age timer at the end of an entry that has
// changed the stream.
func (m *Machine) watchAge(s *openStream) error {
	older := s.queue.Older()
	state := s.queue.State()
	if state.Age == 0 || state.Ready == 0 || state.AgeDue != 0 && !older {
		return nil
	}
	time, err := s.queue.Front()
	if err != nil {
		return err
	}
	if due := m.since(time, state.Age); state.AgeDue == 0 || due < state.AgeDue {
		m.setAgeTimer(s, due)
	}
	return nil
}

// discardOld removes up to limit records that are too old, and returns how many.
func (m *Machine) discardOld(c *context, s *openStream, limit int) (n int, err error) {
	m.setAgeTimer(s, 0) // watchAge sets it again
	state := s.queue.State()
	if state.Age == 0 {
		return 0, nil
	}
	if n, err = s.queue.DiscardOlder(m.ago(state.Age), limit); n > 0 && err == nil {
		m.counts.records.Discarded += uint64(n)
		m.consumed(c, s)
	}
	return n, err
}
