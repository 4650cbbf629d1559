package replica

import (
	"errors"
	"iter"
	"slices"
	"time"

	"go.etcd.io/raft/v3"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/file"
	"github.com/gearsfs/gearsfs/wire"
)

// simFile is the inode of the one file that has the streams.
const simFile = 2

var errCrashed = errors.New("crashed")

// simNode is a node of the group: what is on its disks, and while it is up a
// Group over it that the simulation steps.
type simNode struct {
	s       *sim
	id      gearsfs.MemberID
	joined  bool // was added to the group, not there from the beginning
	removed bool // from the group, as the operator knows
	log     *simLog
	store   *simStore
	fetched map[[2]uint64]simFetched // snapshots, by index and term

	life     int // rises with each crash and each start
	lives    int
	installs int // of snapshots
	up       bool
	paused   bool
	inbox    []simEvent // what came while it was paused
	machine  *simMachine
	group    *Group
	syncing  func()     // ends the sync that runs; nil: none does
	stop     func()     // gives it up
	working  []*simWork // what runs beside the Group
	closing  bool
	hurry    bool  // its disk has nothing else to do
	dying    error // why its process is about to end

	wall       time.Duration // by how much its clock is wrong
	drift      int64         // of its clock, in millionths
	slow       bool          // its disk
	failSync   bool          // the next one
	appliedMax uint64        // the highest index that it ever applied
	front      *simFront
	answered   map[*wire.Answer]uint64 // the index that gave each
	jammed     bool                    // the Group's turn is to come
	calls      int                     // that the Group has not answered
}

// simFetched is a snapshot on the receiver's disk, and who is told that it is
// installed.
type simFetched struct {
	tree      *simTree
	installed func()
}

// simWork is something that runs beside a Group and ends by itself.
type simWork struct {
	do   func()
	done bool
}

// simMachine is the state machine of one life of a node, watched.
type simMachine struct {
	*file.Machine
	n *simNode
}

var (
	_ Machine       = (*simMachine)(nil)
	_ Snapshots     = simSnapshots{}
	_ Peers         = simPeers{}
	_ file.Observer = (*simFront)(nil)
)

func (m *simMachine) next(index uint64) {
	if at, _ := m.Applied(); index != at+1 {
		m.n.s.fail("node %d applies entry %d on %d", m.n.id, index, at)
	}
	m.n.appliedMax = max(m.n.appliedMax, index)
}

func (m *simMachine) Apply(index, term uint64, e *wire.Entry) ([]*wire.Answer, error) {
	m.next(index)
	answers, err := m.Machine.Apply(index, term, e)
	if err == nil {
		for _, a := range answers {
			m.n.answered[a] = index
		}
		m.n.s.history.applied(m.n, index, term, e, answers)
	}
	return answers, err
}

func (m *simMachine) ApplyConf(index, term uint64, conf, context []byte) error {
	m.next(index)
	err := m.Machine.ApplyConf(index, term, conf, context)
	if err == nil {
		m.n.s.history.changed(m.n, index, term, conf, context)
	}
	return err
}

// event lets something happen to the node, unless it has died since it was to.
func (n *simNode) event(e simEvent) {
	switch {
	case e.life != n.life || !n.up:
	case n.paused:
		n.inbox = append(n.inbox, e)
	default:
		e.do()
		n.turnSoon()
	}
}

// turnSoon is a turn now, or after more has happened.
func (n *simNode) turnSoon() {
	switch {
	case n.jammed:
	case n.s.chance(n.s.plan.jam):
		n.jammed = true
		n.soon(n.s.between(0, 2*time.Millisecond), func() {
			n.jammed = false
			n.turn()
		})
	default:
		n.turn()
	}
}

// soon lets something happen to this life of the node.
func (n *simNode) soon(d time.Duration, do func()) {
	n.s.push(simEvent{at: n.s.now + d, node: n, life: n.life, do: do})
}

// once counts a call that the Group is to answer once in this life of the node,
// and returns what its answer is told to.
func (n *simNode) once(what string) (answered func()) {
	life, over := n.life, false
	n.calls++
	return func() {
		switch {
		case over:
			n.s.fail("node %d: %s was answered twice", n.id, what)
		case life == n.life:
			n.calls--
		}
		over = true
	}
}

// turn lets the Group do what is ready, and its disk sync.
func (n *simNode) turn() {
	if !n.up || n.s.failure != nil {
		return
	}
	var state loopState
	err := n.dying
	if err == nil {
		err = n.group.guard(func() (err error) {
			state, err = n.group.turn()
			return err
		})
	}
	if state == stopped && err == nil && n.closing {
		n.closed()
		return
	}
	if err != nil || state == stopped {
		n.died(errors.Join(err, n.dying, n.group.failed()))
		return
	}
	if status := n.group.loop.node.BasicStatus(); status.RaftState == raft.StateLeader {
		n.s.history.lead(n.id, status.GetTerm())
	}
	n.sync()
}

// beside lets something go on beside the Group, which takes a while.
func (n *simNode) beside(d time.Duration, do func()) {
	w := &simWork{do: do}
	n.working = append(n.working, w)
	n.soon(d, w.run)
}

func (w *simWork) run() {
	if !w.done {
		w.done = true
		w.do()
	}
}

// close ends the process in good order, and another one comes.
func (n *simNode) close() {
	n.s.note("node %d is to close", n.id)
	n.closing = true
	n.group.beginClose()
	n.turn()
}

// closed is the end of a Group that has nothing more to do.
func (n *simNode) closed() {
	if n.syncing != nil {
		n.syncing()
	}
	n.hurry = true
	for len(n.working) > 0 {
		w := n.working[0]
		n.working = n.working[1:]
		w.run()
	}
	n.group.finish(nil)
	if err := n.group.outcome(); err != nil {
		n.died(err)
		return
	}
	if n.log.synced() != n.log.last() || len(n.store.commits) > 1 {
		n.s.fail("node %d was closed and has not all on disk", n.id)
	}
	n.s.note("node %d is closed", n.id)
	n.log.broken = nil // nobody has met it
	n.ended()
	n.s.restart(n, n.s.between(0, time.Second))
}

// died ends a process whose Group has failed: with an error of its disk that
// is as it should be.
func (n *simNode) died(err error) {
	n.s.note("node %d ends: %v", n.id, err)
	if !errors.Is(err, errDisk) {
		n.s.fail("node %d ends: %w", n.id, err)
		return
	}
	n.crash()
	n.s.restart(n, n.s.between(10*time.Millisecond, time.Second))
}

// sync begins a sync of the log where the Group wants one and none runs. What
// is written while it runs is for the next.
func (n *simNode) sync() {
	d := n.group.disk
	d.mu.Lock()
	wanted := d.err == nil && d.wanted > d.synced.seq
	d.mu.Unlock()
	if !wanted || n.syncing != nil {
		return
	}
	log, fails := n.log, n.failSync
	n.failSync = false
	// The syncer is a coroutine, which stands in Log.Sync while the disk works.
	resume, stop := iter.Pull(func(yield func(struct{}) bool) {
		log.sync = func() error {
			log.sync = nil
			switch {
			case !yield(struct{}{}):
				return errCrashed
			case fails:
				return errDisk
			}
			return nil
		}
		d.sync()
		log.sync = nil
	})
	if _, ok := resume(); !ok {
		return
	}
	n.stop = stop
	n.syncing = func() {
		n.syncing, n.stop = nil, nil
		resume()
	}
	n.soon(n.diskTime(), func() { n.syncing() })
}

// diskTime is what a sync takes.
func (n *simNode) diskTime() time.Duration {
	if n.slow {
		return n.s.between(20*time.Millisecond, 800*time.Millisecond)
	}
	return n.s.between(100*time.Microsecond, 3*time.Millisecond)
}

func (n *simNode) drifted(d time.Duration) time.Duration {
	return d - d*time.Duration(n.drift)/1_000_000
}

// elapsed is the node's monotonic time.
func (n *simNode) elapsed() time.Duration {
	return n.s.now + n.s.now*time.Duration(n.drift)/1_000_000
}

func (n *simNode) clock() time.Time {
	return time.Unix(0, int64(simStart+n.elapsed()+n.wall))
}

// start begins a life on what is on disk.
func (n *simNode) start() {
	if n.up || n.s.failure != nil {
		return
	}
	n.life++
	n.lives++
	n.up, n.dying, n.closing, n.hurry, n.working = true, nil, false, false, nil
	n.answered, n.calls, n.jammed = map[*wire.Answer]uint64{}, 0, false
	n.front = newSimFront(n)
	machine, err := file.New(n.store, n.front)
	if err != nil {
		n.s.fail("node %d: open the state: %w", n.id, err)
		return
	}
	n.machine = &simMachine{machine, n}
	life := n.life
	applied, _ := machine.Applied()
	n.s.note("node %d starts: log (%d, %d], state at %d", n.id, n.log.front.Index, n.log.last(), applied)
	n.group, err = prepare(Config{
		ID: uint64(n.id), Log: n.log, Machine: n.machine, Flush: n.flush, Clock: n.clock,
		Fatal: func(err error) {
			if n.life == life {
				n.dying = err
			}
		},
		Joined: n.joined, Peers: simPeers{n}, Snapshots: simSnapshots{n}, Leads: n.front.leading,
		KeepLogBytes: n.s.plan.keepLogBytes, Seed: n.s.rng.Int64(),
	}, n.s.plan.limits, simWorld{n, n.life})
	if err != nil {
		n.s.fail("node %d: open the replica: %w", n.id, err)
		return
	}
	n.turn()
}

// flush writes the state to disk, which takes a while.
func (n *simNode) flush() <-chan error {
	done, out := n.store.flush(), make(chan error, 1)
	fails := n.s.chance(5) && !n.hurry
	write := func() {
		if fails {
			out <- errDisk
			return
		}
		done()
		out <- nil
	}
	if n.hurry {
		write()
	} else {
		n.beside(2*n.diskTime(), write)
	}
	return out
}

// crash ends a life: what was not synced is lost, or not.
func (n *simNode) crash() {
	if !n.up {
		return
	}
	if n.group.sole.Load() {
		n.s.history.lossFrom = min(n.s.history.lossFrom, n.log.synced()+1)
	}
	applied, _ := n.machine.Applied()
	was := n.log.last()
	n.log, n.store = n.log.crash(n.s.rng), n.store.crash(n.s.rng)
	n.s.note("node %d crashes at entry %d; its log ended at %d, and ends at %d", n.id, applied, was, n.log.last())
	n.s.mark(uint64(n.id), applied, was, n.log.last())
	n.ended()
}

// ended is the end of a process, of which others may hear.
func (n *simNode) ended() {
	n.up, n.paused, n.inbox = false, false, nil
	n.life++
	if n.stop != nil {
		n.stop()
		n.syncing, n.stop = nil, nil
	}
	n.front.gone()
	for _, other := range n.s.nodes {
		if other != n && other.up && n.s.chance(80) {
			other.hearOf(n)
		}
	}
}

// hearOf lets a node notice that another one's process is gone, as far as the
// network lets it.
func (n *simNode) hearOf(dead *simNode) {
	n.soon(n.s.between(time.Millisecond, 20*time.Millisecond), func() {
		if l := n.s.link(dead.id, n.id); l.cut {
			n.group.Unreachable(dead.id)
			return
		}
		n.group.Died(dead.id)
	})
}

// pause stops a node for a while, as SIGSTOP does.
func (n *simNode) pause(d time.Duration) {
	if !n.up || n.paused {
		return
	}
	n.paused = true
	n.s.note("node %d pauses for %v", n.id, d)
	life := n.life
	n.s.after(d, func() {
		if n.life == life {
			n.wake()
		}
	})
}

func (n *simNode) wake() {
	if !n.paused {
		return
	}
	n.paused = false
	n.s.note("node %d goes on", n.id)
	n.look() // before it hears of anything
	late := n.inbox
	n.inbox = nil
	for _, e := range late {
		n.event(e) // it may pause or die again
	}
}

// simPeers is the network as a node's Group sees it.
type simPeers struct{ n *simNode }

func (p simPeers) Send(to gearsfs.MemberID, messages [][]byte) {
	n := p.n
	l := n.s.link(n.id, to)
	for _, m := range messages {
		n.s.mark(uint64(n.id), uint64(to), uint64(len(m)))
		at, ok := n.s.arrival(l)
		if !ok {
			if n.s.chance(20) {
				n.soon(n.s.between(0, 50*time.Millisecond), func() { n.group.Unreachable(to) })
			}
			continue
		}
		n.s.deliver(at, n, to, m)
		if n.s.chance(l.dup) {
			n.s.deliver(at+n.s.between(0, 50*time.Millisecond), n, to, append([]byte(nil), m...))
		}
	}
}

func (s *sim) deliver(at time.Duration, from *simNode, to gearsfs.MemberID, m []byte) {
	life := from.life
	s.push(simEvent{at: at, do: func() {
		n := s.node(to)
		if n == nil || !n.up {
			if n != nil && from.life == life && from.up && s.chance(20) {
				from.hearOf(n)
			}
			return
		}
		n.event(simEvent{node: n, life: n.life, do: func() { n.group.Receive(m) }})
	}})
}

func (s *sim) node(id gearsfs.MemberID) *simNode {
	for _, n := range s.nodes {
		if n.id == id {
			return n
		}
	}
	return nil
}

// simSnapshots copies the states of nodes.
type simSnapshots struct{ n *simNode }

// Make copies the state as it is a little later.
func (p simSnapshots) Make(done func(SnapshotMeta, error)) {
	n := p.n
	n.soon(n.diskTime(), func() {
		if !n.s.calm && n.s.chance(10) {
			done(SnapshotMeta{}, errDisk)
			return
		}
		index, term := n.machine.Applied()
		done(SnapshotMeta{Index: index, Term: term, Conf: n.machine.ConfState(), Data: n.store.committed()}, nil)
	})
}

// Send carries the copy over and then raft's message; both may be lost.
func (p simSnapshots) Send(to gearsfs.MemberID, message []byte, meta SnapshotMeta, done func(error)) {
	n := p.n
	over := false
	end := func(err error) {
		if !over {
			over = true
			n.s.note("node %d: snapshot %d for node %d: %v", n.id, meta.Index, to, err)
			done(err)
		}
	}
	n.s.note("node %d sends snapshot %d to node %d", n.id, meta.Index, to)
	n.soon(n.s.between(5*time.Millisecond, n.s.plan.copying), func() {
		target := n.s.node(to)
		if target == nil || !target.up || target.paused || n.s.link(n.id, to).cut || n.s.link(to, n.id).cut {
			end(errCrashed)
			return
		}
		life := n.life
		target.fetched[[2]uint64{meta.Index, meta.Term}] = simFetched{meta.Data.(*simTree), func() {
			if at, ok := n.s.arrival(n.s.link(to, n.id)); ok {
				n.s.push(simEvent{at: at, node: n, life: life, do: func() { end(nil) }})
			}
		}}
		target.event(simEvent{node: target, life: target.life, do: func() { target.group.Receive(message) }})
	})
	n.soon(2*time.Second, func() { end(errCrashed) })
}

func (p simSnapshots) Drop(SnapshotMeta) {}

func (p simSnapshots) Install(index, term uint64, hard []byte) error {
	n := p.n
	snapshot, ok := n.fetched[[2]uint64{index, term}]
	if !ok {
		return gearsfs.ErrInvalid.Because("snapshot %d of term %d was not fetched", index, term)
	}
	n.s.note("node %d installs snapshot %d", n.id, index)
	n.s.mark(uint64(n.id), index, term)
	err := n.machine.Replace(func() error { // as a whole or not at all
		if n.log.broken != nil {
			return n.log.broken
		}
		n.log.hard = slices.Clone(hard)
		return errors.Join(n.store.install(snapshot.tree), n.log.Reset(index, term))
	})
	if err != nil {
		return err
	}
	clear(n.fetched)
	n.installs++
	n.appliedMax = max(n.appliedMax, index)
	snapshot.installed()
	return nil
}

// show reads what there is of a stream.
func (n *simNode) show(key string) (streamAt, error) {
	index, _ := n.machine.Applied()
	at := streamAt{index: index}
	info, err := n.machine.Stream(simFile, gearsfs.Key(key), gearsfs.Root)
	if err != nil {
		return at, err
	}
	at.ready, at.leased, at.next = info.Records, info.Leased, uint64(info.Tail.Seq)
	records, err := n.machine.Peek(simFile, gearsfs.Key(key), file.PeekWhat{Max: 1}, gearsfs.Root)
	if len(records) > 0 {
		at.first = records[0].Seq
	}
	if gearsfs.CodeOf(err) == gearsfs.ErrEmpty.Code {
		err = nil
	}
	return at, err
}
