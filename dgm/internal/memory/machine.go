package memory

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/file"
	"github.com/gearsfs/gearsfs/wire"
)

// Place is a stream.
type Place struct {
	Ino gearsfs.Ino
	Key gearsfs.Key
}

// Node is what a Machine asks of its node. Its methods must not wait.
type Node interface {
	// Now is the log's time.
	Now() uint64
	// InMemory says whether the records of a stream are in memory.
	InMemory(at Place) bool
	// Wake has what waits at streams tried again. The Machine holds no lock.
	Wake(at []Place)
	// Configure returns how a command that changes a stream's settings is sent on
	// its way, with what is to be called when it has been done or not; nil where
	// this node can't, as it does not lead.
	Configure() func(c *wire.Configure, then func())
	// Go runs f on a goroutine; not, and then it returns false, where the node is
	// closed.
	Go(f func()) bool
}

// Machine holds the streams of a volume whose records never touch the disk: those
// with the setting for it, in a volume that this node alone has. Their settings
// are in the state as all streams' are; what is put to them is here, and gone
// with the process.
//
// What would be proposed for one of them is pushed instead, and one goroutine does
// it, in order, as the log would; so waiting, order and fairness are those of all
// streams, and so are the answers to retries, which are kept until the session
// confirms them.
type Machine struct {
	state *file.Machine
	node  Node
	count atomic.Int32 // of streams, so that nothing is looked for in vain

	workMu sync.Mutex
	work   []func()
	runs   bool // a goroutine does the work

	// mu guards the rest. No lock is taken and nothing waited for while it is held.
	mu      sync.Mutex
	streams map[Place]*queue
	answers map[gearsfs.SessionID]*kept
	fence   uint64  // of the next lease
	touched []Place // where something has changed that nobody was woken for
	leaving map[Place]*leaving
}

// New returns a Machine without streams. Their settings are in state.
func New(state *file.Machine, node Node) *Machine {
	return &Machine{
		state: state, node: node,
		streams: make(map[Place]*queue), answers: make(map[gearsfs.SessionID]*kept),
		leaving: make(map[Place]*leaving),
	}
}

// Any says whether there are streams in memory.
func (m *Machine) Any() bool { return m.count.Load() > 0 }

// Push has something done, behind what was pushed before.
func (m *Machine) Push(do func()) {
	m.workMu.Lock()
	defer m.workMu.Unlock()
	m.work = append(m.work, do)
	if !m.runs {
		m.runs = m.node.Go(m.run)
	}
}

func (m *Machine) run() {
	for {
		m.workMu.Lock()
		todo := m.work
		m.work = nil
		m.runs = len(todo) > 0
		m.workMu.Unlock()
		if len(todo) == 0 {
			return
		}
		for _, do := range todo {
			do()
		}
	}
}

// State is the state of a stream that is in memory; ok is false for another one.
func (m *Machine) State(at Place) (state file.StreamState, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	q := m.streams[at]
	if q == nil {
		return state, false
	}
	return file.StreamStateOf(*q.State()), true
}

// streamLocked is the stream at a place, with its settings as of now.
func (m *Machine) streamLocked(at Place) *queue {
	st := m.state.StreamState(at.Ino, at.Key)
	rules := st.State()
	s := m.streams[at]
	if s == nil {
		now := max(m.node.Now(), uint64(rules.NextSeq)*uint64(time.Microsecond)) // seqs rise
		s = newQueue(at, now, rules.Version)
		m.streams[at] = s
		m.count.Store(int32(len(m.streams)))
	}
	state := s.State()
	if state.Sealed != rules.Sealed {
		s.SetSealed(rules.Sealed)
	}
	if state.Limits != rules.Limits {
		s.SetLimits(rules.Limits)
	}
	state.Full, state.Type, state.Tries, state.Age, state.AppendOnly, state.Memory = rules.Full, rules.Type, rules.Tries, rules.Age, rules.AppendOnly, true
	state.IDWindow, state.IDs = rules.IDWindow, rules.IDs // of ids on disk, from before
	return s
}

// currentLocked is a stream of which all is done that is due.
func (m *Machine) currentLocked(at Place) *queue {
	s := m.streamLocked(at)
	m.dueLocked(s)
	return s
}

// touchLocked notes that something of a stream has changed.
func (m *Machine) touchLocked(at Place) {
	if !slices.Contains(m.touched, at) {
		m.touched = append(m.touched, at)
	}
}

// Wake wakes who waits at the streams that have changed.
func (m *Machine) Wake() {
	m.mu.Lock()
	touched := m.touched
	m.touched = nil
	for _, at := range touched {
		if s := m.streams[at]; s != nil {
			m.armLocked(s)
		}
	}
	m.mu.Unlock()
	m.node.Wake(touched)
}

// Changed has a stream take over its settings, and who waits there woken.
func (m *Machine) Changed(at Place) {
	m.mu.Lock()
	if m.streams[at] != nil {
		m.currentLocked(at)
	}
	m.touchLocked(at)
	m.mu.Unlock()
	m.Wake()
}

// Clear empties a stream.
func (m *Machine) Clear(at Place) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if s := m.streams[at]; s != nil {
		if err := s.Clear(); err != nil {
			panic(err) // rows in memory are read without errors
		}
	}
}

// End gives back what a session that ends holds. Its answers stay for a retry
// until gearsfs.SessionTTL has passed, unless back then says that it is or it has
// ended once more since, or go now with forget.
func (m *Machine) End(id gearsfs.SessionID, forget bool, back func() bool) {
	if !m.MayKnow(id) && !m.Any() {
		return
	}
	m.Push(func() {
		m.mu.Lock()
		if k := m.answers[id]; forget {
			delete(m.answers, id)
		} else if k != nil {
			k.ends++
			ends := k.ends
			time.AfterFunc(gearsfs.SessionTTL, func() {
				if !back() {
					m.forget(id, k, ends)
				}
			})
		}
		for at, s := range m.streams {
			for record, out := range s.EachOut() {
				if out.Leased && out.Holder == id {
					m.comeBackLocked(s, record, 0, 0)
					m.touchLocked(at)
				}
			}
		}
		m.mu.Unlock()
		m.Wake()
	})
}

// forget forgets the answers of a session that has ended for that many times.
func (m *Machine) forget(id gearsfs.SessionID, k *kept, ends int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.answers[id] == k && k.ends == ends {
		delete(m.answers, id)
	}
}

// Drop forgets a stream, or with key "" all of a file.
func (m *Machine) Drop(at Place) {
	if !m.Any() {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for have := range m.streams {
		if have == at || at.Key == "" && have.Ino == at.Ino {
			delete(m.streams, have)
		}
	}
	m.count.Store(int32(len(m.streams)))
}
