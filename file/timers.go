package file

import (
	"slices"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/persist"
)

// What is due at a log time has a row in the timer table: the end of a lease or
// of a delay, beside the record's row in the out table, and the age of a
// stream's records and ids. Each entry begins with what is due by its own time, in the
// order of the table.

// timersMax bounds what one entry does of that, in timers and records; the next
// one goes on.
const timersMax = 1000

// timers are the dues of all rows of the timer table, so that the first is
// known without a walk over the rows that are gone. It costs 8 bytes a timer.
type timers struct {
	dues dueHeap
	gone dueHeap // of dues; its first is not that of dues, once it is tidy
}

func (t *timers) add(due uint64) { t.dues.push(due) }

func (t *timers) remove(due uint64) {
	t.gone.push(due)
	if len(t.gone) > 64 && len(t.gone) > len(t.dues)/2 {
		t.compact()
	}
}

// tidy makes dues[0] the first due that is not gone.
func (t *timers) tidy() {
	for len(t.gone) > 0 && t.gone[0] == t.dues[0] {
		t.gone.pop()
		t.dues.pop()
	}
}

// compact removes what is gone. What is sorted is a heap, too.
func (t *timers) compact() {
	slices.Sort(t.dues)
	slices.Sort(t.gone)
	kept, gone := t.dues[:0], t.gone
	for _, due := range t.dues {
		if len(gone) > 0 && gone[0] == due {
			gone = gone[1:]
			continue
		}
		kept = append(kept, due)
	}
	t.dues, t.gone = kept, t.gone[:0]
	if cap(t.dues) > 1024 && len(t.dues) < cap(t.dues)/4 {
		t.dues, t.gone = slices.Clone(t.dues), nil
	}
}

// dueHeap is a heap: no due is less than that at half its index.
type dueHeap []uint64

func (h *dueHeap) push(due uint64) {
	*h = append(*h, due)
	s := *h
	for i := len(s) - 1; i > 0; {
		up := (i - 1) / 2
		if s[up] <= s[i] {
			break
		}
		s[up], s[i] = s[i], s[up]
		i = up
	}
}

// pop removes the first.
func (h *dueHeap) pop() {
	s := *h
	n := len(s) - 1
	s[0] = s[n]
	s = s[:n]
	*h = s
	for i := 0; ; {
		down := 2*i + 1
		if down >= n {
			return
		}
		if down+1 < n && s[down+1] < s[down] {
			down++
		}
		if s[i] <= s[down] {
			return
		}
		s[i], s[down] = s[down], s[i]
		i = down
	}
}

// loadTimers rebuilds the index.
func (m *Machine) loadTimers() error {
	lo, hi := persist.TableRange(persist.TableTimer)
	return scan(m.store, lo, hi, func(key, _ []byte) error {
		t, err := persist.ParseTimerKey(key)
		m.timers.add(t.Due) // they come in order
		return err
	})
}

// NextDue returns the log time at which the next thing is due, which may be
// over; ok is false where nothing is. An entry of that time or later does it.
func (m *Machine) NextDue() (time uint64, ok bool) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if len(m.timers.dues) == 0 {
		return 0, false
	}
	return m.timers.dues[0], true
}

func (r *streamRows) timer(due uint64, at gearsfs.Place) persist.Timer {
	return persist.Timer{Due: due, Ino: r.ino, Key: r.key, Place: at}
}

// setTimer makes a timer's row; one that is due at 0 is none.
func (m *Machine) setTimer(t persist.Timer) {
	if t.Due == 0 {
		return
	}
	m.scratch.key = persist.AppendTimerKey(m.scratch.key[:0], t)
	m.store.Add(m.scratch.key, nil)
	m.timers.add(t.Due)
}

func (m *Machine) removeTimer(t persist.Timer) {
	if t.Due == 0 {
		return
	}
	m.scratch.key = persist.AppendTimerKey(m.scratch.key[:0], t)
	m.store.Delete(m.scratch.key)
	m.timers.remove(t.Due)
}

// runTimers does what is due.
func (m *Machine) runTimers(index uint64) {
	m.buried = 0
	c := &context{index: index, now: m.volume.LogTime, caller: gearsfs.Root}
	if len(m.timers.dues) == 0 || m.timers.dues[0] > c.now {
		return
	}
	due, err := m.dueTimers(c.now)
	for left := timersMax; left > 0 && len(due) > 0 && err == nil; due = due[1:] {
		var did int
		did, err = m.runTimer(c, &due[0], left)
		left -= max(did, 1)
	}
	if err != nil {
		m.refuse(err)
	}
}

// dueTimers returns the first timers of those that are due.
func (m *Machine) dueTimers(now uint64) ([]persist.Timer, error) {
	var due []persist.Timer
	lo, hi := persist.TimerRange(m.timers.dues[0], now)
	err := scan(m.store, lo, hi, func(key, _ []byte) error {
		t, err := persist.ParseTimerKey(key)
		if err != nil {
			return err
		}
		due = append(due, t)
		if len(due) == timersMax {
			return errStop
		}
		return nil
	})
	return due, err
}

// runTimer does what one timer is for, in at most limit steps, and returns how
// many these were.
func (m *Machine) runTimer(c *context, t *persist.Timer, limit int) (did int, err error) {
	n, err := m.node(t.Ino)
	if err != nil {
		return 0, err
	}
	var s *openStream
	if n != nil {
		if s, err = m.stream(n, t.Key); err != nil {
			return 0, err
		}
	}
	if s == nil {
		return 0, gearsfs.ErrDamaged.Because("inode %d, stream %q: it has a timer but does not exist", t.Ino, t.Key)
	}
	m.dirtyStream(s)
	if t.Place == persist.AgeTimer {
		return m.discardOld(c, s, limit)
	}
	if t.Place == persist.IDTimer {
		m.setIDTimer(s, 0) // watchIDs sets it again
		return m.forgetIDs(s, limit)
	}
	out, ok := s.queue.Out(t.Place)
	switch {
	case !ok || out.Deadline != t.Due:
		return 0, gearsfs.ErrDamaged.Because("inode %d, stream %q: the record at %v has a timer for another time", t.Ino, t.Key, t.Place)
	case out.Leased && out.Jumped < m.jumped():
		s.queue.Extend(t.Place, later(t.Due, m.jumped()-out.Jumped), m.jumped())
		return 1, nil
	case out.Leased:
		return 1, m.comeBack(c, s, t.Place, 0, 0)
	}
	s.queue.Due(t.Place)
	m.touch(t.Ino, t.Key).Ready = true
	return 1, nil
}
