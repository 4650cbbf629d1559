package persist

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
)

// logState is what a log holds, as plainly as can be.
type logState struct {
	base, baseTerm uint64     // of the last Reset
	front          uint64     // the last entry cut off
	entries        []LogEntry // all since the last Reset, those cut off at the front too
	hard           []byte
}

func (s logState) clone() logState {
	s.entries = slices.Clone(s.entries)
	return s
}

func (s *logState) last() uint64 { return s.base + uint64(len(s.entries)) }

func (s *logState) term(index uint64) uint64 {
	if index == s.base {
		return s.baseTerm
	}
	return s.entries[index-s.base-1].Term
}

func (s *logState) add(e LogEntry) {
	s.entries = append(s.entries[:e.Index-s.base-1:e.Index-s.base-1], e)
}

// logModel follows a log through operations and crashes. After a crash the log
// is in one of the possible states: the first is what was synced, and each
// record that was written since makes another.
type logModel struct {
	now      logState
	possible []logState
	written  int // possible states up to here were reached: kill -9 loses none
}

func newLogModel(now logState) *logModel {
	return &logModel{now: now, possible: []logState{now.clone()}}
}

// append tells of an Append that begins; done must follow when it succeeds.
func (m *logModel) append(entries []LogEntry, hard []byte) (done func()) {
	next := m.now.clone()
	for _, e := range entries {
		next.add(e)
		m.possible = append(m.possible, next.clone())
	}
	if hard != nil {
		next.hard = hard
		m.possible = append(m.possible, next.clone())
	}
	return func() { m.now, m.written = next, len(m.possible)-1 }
}

// reset tells of a Reset that begins; done must follow when it takes effect.
func (m *logModel) reset(index, term uint64) (done func()) {
	next := logState{base: index, baseTerm: term, front: index, hard: m.now.hard}
	m.possible = append(m.possible, next)
	return func() { m.now = next }
}

// front tells of a TruncateFront. It loses nothing that a crash may bring back.
func (m *logModel) front(index uint64) { m.now.front = max(m.now.front, index) }

// synced tells that all that was done is on disk.
func (m *logModel) synced() {
	m.possible = []logState{m.now.clone()}
	m.written = 0
}

// checkRunning compares a log with what it must hold while it runs.
func (m *logModel) checkRunning(l *Log, rng *rand.Rand) error {
	if l.First() != m.now.front+1 {
		return fmt.Errorf("first is %d, not %d", l.First(), m.now.front+1)
	}
	return sameLog(l, &m.now, rng)
}

// checkRecovered compares a log with what it may hold after a crash, and
// returns which state that is. A crash of the process alone loses nothing.
func (m *logModel) checkRecovered(l *Log, processOnly bool, rng *rand.Rand) (logState, error) {
	oldest := 0
	if processOnly {
		oldest = m.written
	}
	var err error
	for i := len(m.possible) - 1; i >= oldest; i-- {
		if l.First() > m.now.front+1 && l.First() != m.possible[i].base+1 {
			err = fmt.Errorf("first is %d, the front is %d", l.First(), m.now.front)
			continue
		}
		if err = sameLog(l, &m.possible[i], rng); err == nil {
			s := m.possible[i].clone()
			s.front = l.First() - 1
			return s, nil
		}
	}
	return logState{}, fmt.Errorf("the log is in none of the %d possible states; of the oldest: %w", len(m.possible)-oldest, err)
}

// sameLog compares all of a log from its own first entry on.
func sameLog(l *Log, s *logState, rng *rand.Rand) error {
	first := l.First()
	if first <= s.base || l.Last() != s.last() {
		return fmt.Errorf("the log goes from %d to %d, not from %d to %d", first, l.Last(), s.base+1, s.last())
	}
	if !bytes.Equal(l.HardState(), s.hard) {
		return fmt.Errorf("the hard state is %q, not %q", l.HardState(), s.hard)
	}
	for i := first - 1; i <= s.last(); i++ {
		if term, err := l.Term(i); err != nil || term != s.term(i) {
			return fmt.Errorf("the term of %d is %d, %w, not %d", i, term, err, s.term(i))
		}
	}
	for lo := first; lo <= s.last(); {
		hi := lo + 1 + rng.Uint64N(s.last()+1-lo)
		bytesMax := uint64(rng.IntN(10000))
		got, err := l.Entries(lo, hi, bytesMax)
		if err != nil {
			return fmt.Errorf("entries %d to %d: %w", lo, hi, err)
		}
		if err := sameEntries(got, s.entries[lo-s.base-1:hi-s.base-1], bytesMax); err != nil {
			return err
		}
		lo += uint64(len(got))
	}
	return nil
}

// sameEntries checks that got is the longest start of want that fits.
func sameEntries(got, want []LogEntry, bytesMax uint64) error {
	fit, total := 0, uint64(0)
	for _, e := range want {
		if total += uint64(len(e.Data)); total > bytesMax && fit > 0 {
			break
		}
		fit++
	}
	if len(got) != fit {
		return fmt.Errorf("%d entries from %d on, not %d", len(got), want[0].Index, fit)
	}
	for i, e := range got {
		w := want[i]
		if e.Index != w.Index || e.Term != w.Term || e.Type != w.Type || !bytes.Equal(e.Data, w.Data) {
			return fmt.Errorf("entry %d of term %d and %d bytes is not entry %d of term %d and %d bytes",
				e.Index, e.Term, len(e.Data), w.Index, w.Term, len(w.Data))
		}
	}
	return nil
}

// logDriver drives a log and its model by random operations.
type logDriver struct {
	log   *Log
	model *logModel
	rng   *rand.Rand
	term  uint64
	count int // makes every entry another one
}

var smallLog = Options{SegmentBytes: 24 << 10, LogCacheBytes: 2000}

const logDir = "log"

// createLogDir makes an empty log on a file system, durably.
func createLogDir(fsys FS) error {
	if err := fsys.MkdirAll(logDir, 0o700); err != nil {
		return err
	}
	if err := syncDir(fsys, ""); err != nil {
		return err
	}
	return createLog(fsys, logDir, smallLog.withDefaults())
}

func openLogDir(fsys FS) (*Log, error) {
	l, r, err := readLog(fsys, logDir, smallLog.withDefaults())
	if err != nil {
		return nil, err
	}
	if err := r.repair(); err != nil {
		return nil, err
	}
	return l, nil
}

// step does one random operation. The operation's error comes back when it had
// one; then nothing has changed.
func (d *logDriver) step() error {
	m, rng := d.model, d.rng
	switch n := rng.IntN(100); {
	case n < 62:
		entries, hard := d.randomAppend()
		done := m.append(entries, hard)
		if err := d.log.Append(entries, hard); err != nil {
			return err
		}
		done()
		if rng.IntN(3) == 0 {
			d.log.Hasten() // which changes nothing
		}
	case n < 85:
		if err := d.log.Sync(); err != nil {
			return err
		}
		m.synced()
	case n < 97:
		if m.now.last() == m.now.front {
			return nil
		}
		index := m.now.front + 1 + rng.Uint64N(m.now.last()-m.now.front)
		before := m.now.front
		m.front(index)
		if err := d.log.TruncateFront(index); err != nil {
			if d.log.First() == before+1 {
				m.now.front = before
			}
			return err
		}
	case n < 99:
		index, term := m.now.last()+rng.Uint64N(5), d.term
		if rng.IntN(3) == 0 {
			index = rng.Uint64N(m.now.last() + 1)
		}
		done := m.reset(index, term)
		if err := d.log.Reset(index, term); err != nil {
			t, _ := d.log.Term(index)
			if d.log.First() == index+1 && d.log.Last() == index && t == term { // it failed in cleaning up
				done()
			}
			return err
		}
		done()
		m.synced()
	default:
		d.term++
	}
	return nil
}

func (d *logDriver) randomAppend() (entries []LogEntry, hard []byte) {
	rng, now := d.rng, &d.model.now
	next := now.last() + 1
	if rng.IntN(8) == 0 && now.last() > now.front {
		next -= rng.Uint64N(min(now.last()-now.front, 20)) + 1
		next = max(next, now.front+1)
		d.term++
	}
	for range rng.IntN(6) {
		d.count++
		size := rng.IntN(200)
		switch rng.IntN(40) {
		case 0:
			size = rng.IntN(9000)
		case 1:
			size = 0
		}
		if rng.IntN(2000) == 0 {
			size = 30000 // more than a segment holds
		}
		data := make([]byte, size)
		for i := range data {
			data[i] = byte(d.count>>(8*(i%4))) ^ byte(i/4)
		}
		entries = append(entries, LogEntry{Index: next, Term: d.term, Type: uint8(d.count), Data: data})
		next++
	}
	if rng.IntN(4) == 0 || len(entries) == 0 {
		hard = fmt.Appendf(nil, "hard %d", rng.IntN(1000))
	}
	return entries, hard
}
