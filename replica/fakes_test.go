package replica

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/wire"
)

var errDisk = errors.New("disk broken")

// memLog is a Log in memory that knows what of it is synced, can lose the
// rest, and fails when told to.
type memLog struct {
	mu       sync.Mutex
	front    LogEntry // before the first: index and term
	entries  []LogEntry
	hard     []byte
	synced   uint64 // last index that is on disk
	syncHard []byte

	appends, syncs, cuts int
	hastened             int // syncs that were announced by Hasten
	hasty                bool
	failAppend, failSync int           // fail the n-th from now; 0: never
	syncGate             chan struct{} // not nil: each Sync waits for a value
	syncBegan            chan struct{} // not nil: told when a Sync begins
}

var _ Log = (*memLog)(nil)

func (l *memLog) Append(entries []LogEntry, hard []byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.appends++
	if l.failAppend > 0 {
		if l.failAppend--; l.failAppend == 0 {
			return errDisk
		}
	}
	if len(entries) > 0 {
		first := entries[0].Index
		if first <= l.front.Index || first > l.last()+1 {
			return fmt.Errorf("append at %d to a log of (%d, %d]", first, l.front.Index, l.last())
		}
		l.entries = append(l.entries[:first-l.front.Index-1], entries...)
		l.synced = min(l.synced, first-1)
	}
	if hard != nil {
		l.hard = hard
	}
	return nil
}

func (l *memLog) Hasten() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.hasty = true
}

func (l *memLog) Sync() error {
	l.mu.Lock()
	target, hard := l.last(), l.hard
	l.syncs++
	if l.hasty {
		l.hasty = false
		l.hastened++
	}
	fail := false
	if l.failSync > 0 {
		l.failSync--
		fail = l.failSync == 0
	}
	began, gate := l.syncBegan, l.syncGate
	l.mu.Unlock()
	if began != nil {
		began <- struct{}{}
	}
	if gate != nil {
		<-gate
	}
	if fail {
		return errDisk
	}
	l.mu.Lock()
	l.synced, l.syncHard = max(l.synced, target), hard
	l.mu.Unlock()
	return nil
}

func (l *memLog) Entries(lo, hi, bytesMax uint64) ([]LogEntry, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if lo <= l.front.Index || hi > l.last()+1 || lo >= hi {
		return nil, fmt.Errorf("entries [%d, %d) of (%d, %d]", lo, hi, l.front.Index, l.last())
	}
	out, size := []LogEntry(nil), uint64(0)
	for _, e := range l.entries[lo-l.front.Index-1 : hi-l.front.Index-1] {
		size += uint64(len(e.Data))
		if len(out) > 0 && size > bytesMax {
			break
		}
		out = append(out, e)
	}
	return out, nil
}

func (l *memLog) Term(index uint64) (uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case index == l.front.Index:
		return l.front.Term, nil
	case index < l.front.Index || index > l.last():
		return 0, fmt.Errorf("term of %d in (%d, %d]", index, l.front.Index, l.last())
	}
	return l.entries[index-l.front.Index-1].Term, nil
}

func (l *memLog) last() uint64 { return l.front.Index + uint64(len(l.entries)) }

func (l *memLog) First() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.front.Index + 1
}

func (l *memLog) Last() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.last()
}

func (l *memLog) HardState() []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.hard
}

func (l *memLog) Bytes() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for _, e := range l.entries {
		n += len(e.Data)
	}
	return uint64(n)
}

func (l *memLog) BytesFrom(index uint64) uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for _, e := range l.entries[min(max(index, l.front.Index)-l.front.Index, uint64(len(l.entries))):] {
		n += len(e.Data)
	}
	return uint64(n)
}

func (l *memLog) TruncateFront(index uint64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cuts++
	index -= index % 32 // as if a segment held so many
	if index <= l.front.Index {
		return nil
	}
	n := index - l.front.Index
	l.front = LogEntry{Index: index, Term: l.entries[n-1].Term}
	l.entries = append([]LogEntry(nil), l.entries[n:]...)
	return nil
}

func (l *memLog) Reset(index, term uint64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.front, l.entries, l.synced = LogEntry{Index: index, Term: term}, nil, index
	return nil
}

// crash returns the log as a power cut leaves it when `kept` of the entries
// that were not synced happened to reach the disk.
func (l *memLog) crash(kept uint64) *memLog {
	l.mu.Lock()
	defer l.mu.Unlock()
	last := min(max(l.synced, l.front.Index)+kept, l.last())
	hard := l.syncHard
	if kept > 0 {
		hard = l.hard
	}
	return &memLog{
		front: l.front, hard: hard, synced: last,
		entries: append([]LogEntry(nil), l.entries[:last-l.front.Index]...),
	}
}

func (l *memLog) syncedIndex() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.synced
}

// memMachine is a state machine that remembers what it was told: the records of
// all puts in order, by their data.
type memMachine struct {
	mu       sync.Mutex
	state    machineState
	saved    machineState // as of the last flush
	jump     uint64       // of the last entry
	fail     bool
	flushes  int
	contexts []string            // of ApplyConf
	flushed  func() <-chan error // nil: at once
	hold     chan struct{}       // not nil: a flush is told done when it is closed
}

type machineState struct {
	index, term uint64
	time        uint64
	conf        []byte
	records     []string
	sizes       []int // commands of each entry that has any
}

var _ Machine = (*memMachine)(nil)

func (m *memMachine) Applied() (index, term uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.state.index, m.state.term
}

func (m *memMachine) Apply(index, term uint64, e *wire.Entry) ([]*wire.Answer, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail {
		return nil, errDisk
	}
	if index <= m.state.index {
		return nil, nil
	}
	if index != m.state.index+1 {
		return nil, fmt.Errorf("applied %d, then %d", m.state.index, index)
	}
	if len(e.Commands) > 0 {
		if e.Time <= 0 || e.Time < m.state.time {
			return nil, fmt.Errorf("log time went from %d to %d", m.state.time, e.Time)
		}
		m.state.time = e.Time
		m.jump = e.Jump
		m.state.sizes = append(m.state.sizes, len(e.Commands))
	}
	m.state.index, m.state.term = index, term
	answers := make([]*wire.Answer, len(e.Commands))
	for i, c := range e.Commands {
		m.state.records = append(m.state.records, string(c.GetPut().Records[0].Data))
		answers[i] = &wire.Answer{Ino: index, FirstSeq: uint64(len(m.state.records))}
	}
	return answers, nil
}

func (m *memMachine) ApplyConf(index, term uint64, conf, context []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if index != m.state.index+1 {
		return fmt.Errorf("applied %d, then %d", m.state.index, index)
	}
	m.state.index, m.state.term, m.state.conf = index, term, conf
	m.contexts = append(m.contexts, string(context))
	return nil
}

// given returns the contexts of ApplyConf.
func (m *memMachine) given() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]string(nil), m.contexts...)
}

func (m *memMachine) ConfState() []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.state.conf
}

func (m *memMachine) LogTime() uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.state.time
}

func (m *memMachine) records() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]string(nil), m.state.records...)
}

// flush saves the state as it is.
func (m *memMachine) flush() <-chan error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.flushes++
	if m.flushed != nil {
		return m.flushed()
	}
	m.saved = m.state
	done := make(chan error, 1)
	if hold := m.hold; hold != nil {
		go func() {
			<-hold
			done <- nil
		}()
	} else {
		done <- nil
	}
	return done
}

// restart returns the machine as a crash leaves it.
func (m *memMachine) restart() *memMachine {
	m.mu.Lock()
	defer m.mu.Unlock()
	saved := m.saved
	saved.records = append([]string(nil), saved.records...)
	return &memMachine{state: saved, saved: saved}
}

// fixture is a Group with its fakes.
type fixture struct {
	*Group
	log     *memLog
	machine *memMachine
	fatal   chan error
}

func testConfig(log Log, machine *memMachine, fatal chan error) Config {
	return Config{
		ID: 7, Log: log, Machine: machine, Flush: machine.flush, Clock: time.Now,
		Fatal: func(err error) { fatal <- err },
	}
}

func openTest(t testing.TB, log *memLog, machine *memMachine, change func(*Config, *limits)) *fixture {
	t.Helper()
	f := openOn(t, log, machine, change)
	f.log = log
	return f
}

func openOn(t testing.TB, log Log, machine *memMachine, change func(*Config, *limits)) *fixture {
	t.Helper()
	f := &fixture{machine: machine, fatal: make(chan error, 1)}
	cfg, limits := testConfig(log, machine, f.fatal), defaultLimits
	limits.quickSync = 0 // tests hold syncs back
	if change != nil {
		change(&cfg, &limits)
	}
	g, err := open(cfg, limits)
	require.NoError(t, err)
	f.Group = g
	return f
}

func put(data string) *wire.Command {
	return &wire.Command{Op: &wire.Command_Put{Put: &wire.Put{
		Target: &wire.Target{Ino: 2}, Key: "data", Records: []*wire.NewRecord{{Data: []byte(data)}},
	}}}
}

// outcome is what Done was called with.
type outcome struct {
	answer *wire.Answer
	err    error
}

// propose proposes data and waits for the outcome.
func (f *fixture) put(data string, durable bool) outcome {
	return <-f.start(data, durable)
}

func (f *fixture) start(data string, durable bool) <-chan outcome {
	out := make(chan outcome, 2) // a second call would show
	f.Propose(&Proposal{Command: put(data), Durable: durable, Done: func(a *wire.Answer, err error) {
		out <- outcome{a, err}
	}})
	return out
}

func wantCode(t testing.TB, want, got error) {
	t.Helper()
	require.Equal(t, gearsfs.CodeOf(want), gearsfs.CodeOf(got), "%v", got)
}
