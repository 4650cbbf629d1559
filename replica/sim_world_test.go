package replica

import (
	cryptorand "crypto/rand"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"time"

	"github.com/gearsfs/gearsfs"
)

// sim is a world in which whole groups run on one goroutine: nodes with
// simulated disks, clocks and a network between them, and clients. Nothing in
// it depends on anything but the seed.
//
// The state machine (package file) and the glue (this package) are the real
// ones; the stores under them are simTree and simLog, the sockets above them
// simLink and simConn, and what package dgm does between a socket and a Group
// is in simFront, as little of it as the promises need.
type sim struct {
	seed uint64
	rng  *rand.Rand
	plan simPlan

	now   time.Duration
	queue simQueue
	order uint64 // of the last event
	trace uint32 // of all that happened
	say   func(format string, args ...any)

	nodes   []*simNode // also those that were removed
	links   map[[2]gearsfs.MemberID]*simLink
	clients []*simClient
	history *simHistory
	calm    bool // no faults any more
	quiet   bool // nor anything else that goes on by itself
	failure error
}

// simStart is what the true clock shows when a simulation begins.
const simStart = 1_700_000_000 * time.Second

// simEvent is something that happens at a time; to a node, where it names one,
// that has not died since.
type simEvent struct {
	at    time.Duration
	order uint64
	node  *simNode
	life  int
	do    func()
}

// simQueue is a heap of events: the next one is in front.
type simQueue []simEvent

func (q simQueue) before(i, j int) bool {
	return q[i].at < q[j].at || q[i].at == q[j].at && q[i].order < q[j].order
}

func (q *simQueue) push(e simEvent) {
	*q = append(*q, e)
	h := *q
	for i := len(h) - 1; i > 0; {
		up := (i - 1) / 2
		if h.before(up, i) {
			break
		}
		h[i], h[up] = h[up], h[i]
		i = up
	}
}

func (q *simQueue) pop() simEvent {
	h := *q
	e, last := h[0], len(h)-1
	h[0], h[last] = h[last], simEvent{}
	h = h[:last]
	for i := 0; ; {
		next := 2*i + 1
		if next+1 < last && h.before(next+1, next) {
			next++
		}
		if next >= last || h.before(i, next) {
			break
		}
		h[i], h[next] = h[next], h[i]
		i = next
	}
	*q = h
	return e
}

func newSim(seed uint64, say func(string, ...any)) *sim {
	s := &sim{
		seed: seed, rng: rand.New(rand.NewPCG(seed, 0x6765617273)), say: say,
		links: map[[2]gearsfs.MemberID]*simLink{},
	}
	s.history = newSimHistory(s)
	return s
}

// after lets something happen that much later.
func (s *sim) after(d time.Duration, do func()) { s.push(simEvent{at: s.now + d, do: do}) }

func (s *sim) push(e simEvent) {
	s.order++
	e.order = s.order
	s.queue.push(e)
}

// run lets time pass until a moment, or until something is wrong.
func (s *sim) run(until time.Duration) {
	for s.failure == nil && len(s.queue) > 0 && s.queue[0].at <= until {
		e := s.queue.pop()
		s.now = e.at
		if e.node == nil {
			e.do()
		} else {
			e.node.event(e)
		}
	}
	s.now = max(s.now, until)
}

// runUntil lets time pass until something is so, at most for a while.
func (s *sim) runUntil(bound time.Duration, so func() bool) bool {
	for end := s.now + bound; s.failure == nil && !so(); {
		if len(s.queue) == 0 || s.queue[0].at > end {
			return false
		}
		s.run(s.queue[0].at)
	}
	return s.failure == nil
}

// fail notes the first thing that is wrong, which ends the simulation.
func (s *sim) fail(format string, args ...any) {
	if s.failure == nil {
		s.failure = fmt.Errorf("at %v: %w", s.now, fmt.Errorf(format, args...))
		s.note("FAILED: %v", s.failure)
	}
}

// note says what happens, to a reader and in the trace: two runs of a seed have
// the same.
func (s *sim) note(format string, args ...any) {
	if s.say != nil {
		s.say("%12v "+format, append([]any{s.now}, args...)...)
	}
}

// mark puts figures of what happens into the trace.
func (s *sim) mark(figures ...uint64) {
	var b [8]byte
	for _, f := range append(figures, uint64(s.now)) {
		binary.LittleEndian.PutUint64(b[:], f)
		s.trace = crc32.Update(s.trace, castagnoli, b[:])
	}
}

// between draws a time between two.
func (s *sim) between(lo, hi time.Duration) time.Duration {
	if hi <= lo {
		return lo
	}
	return lo + time.Duration(s.rng.Int64N(int64(hi-lo)))
}

// chance is true so many times of a hundred.
func (s *sim) chance(percent int) bool { return s.rng.IntN(100) < percent }

// Read makes a sim the source of raft's election timeouts.
func (s *sim) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(s.rng.Uint32())
	}
	return len(p), nil
}

// seeded lets raft draw from the simulation while f runs.
func (s *sim) seeded(f func()) {
	was := cryptorand.Reader
	cryptorand.Reader = s
	defer func() { cryptorand.Reader = was }()
	f()
}

// simLink is one direction of the network between two nodes.
type simLink struct {
	cut       bool
	loss, dup int // of a hundred messages
	min, max  time.Duration
	reorder   bool
	last      time.Duration // when the last message arrives
}

// link is the way from one node to another.
func (s *sim) link(from, to gearsfs.MemberID) *simLink {
	l := s.links[[2]gearsfs.MemberID{from, to}]
	if l == nil {
		l = &simLink{min: 50 * time.Microsecond, max: 400 * time.Microsecond}
		s.links[[2]gearsfs.MemberID{from, to}] = l
	}
	return l
}

// arrival says when a message that is sent now arrives; false: it never does.
func (s *sim) arrival(l *simLink) (time.Duration, bool) {
	if l.cut || s.chance(l.loss) {
		return 0, false
	}
	at := s.now + s.between(l.min, l.max)
	if !l.reorder {
		at = max(at, l.last)
		l.last = at
	}
	return at, true
}

// simWorld is the world of one life of a node.
type simWorld struct {
	n    *simNode
	life int
}

var _ world = simWorld{}

// after also serves the Group's ticks. A node's timers run as its clock drifts.
func (w simWorld) after(d time.Duration) <-chan time.Time {
	due := make(chan time.Time, 1)
	w.event(d, func() { due <- time.Time{} })
	return due
}

func (w simWorld) event(d time.Duration, do func()) {
	w.n.s.push(simEvent{at: w.n.s.now + w.n.drifted(d), node: w.n, life: w.life, do: do})
}

func (w simWorld) spawn(f func())         { w.n.beside(w.n.s.between(0, 2*time.Millisecond), f) }
func (w simWorld) elapsed() time.Duration { return w.n.elapsed() }
func (w simWorld) timer(f func()) timer   { return &simTimer{w: w, f: f} }

type simTimer struct {
	w   simWorld
	f   func()
	set int // how often it was set or stopped
	due bool
}

func (t *simTimer) Reset(d time.Duration) bool {
	was := t.Stop()
	set := t.set
	t.due = true
	t.w.event(d, func() {
		if t.set == set {
			t.due = false
			t.f()
		}
	})
	return was
}

func (t *simTimer) Stop() bool {
	was := t.due
	t.due = false
	t.set++
	return was
}
