package replica

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/gearsfs/gearsfs"
)

// loop is what the goroutine run alone may touch.
type loop struct {
	node     *raft.RawNode
	conf     membership
	leads    bool   // for raft; a tenure begins a little later
	contends bool   // leads, or is a candidate
	term     uint64 // of the hard state
	lead     uint64 // who leads, as raft says
	tenure   bool
	ledTerm  uint64   // of the last tenure
	inflight []*batch // proposed to raft and not applied, by rising index
	flying   int      // proposals in inflight
	acks     []ack    // raft's answers that wait for a sync, by rising seq
	reads    reading
	change   change
	transfer transfer
	ending   ending
	passed   passed
	flush    flushing
	copies   copies
	ticks    <-chan time.Time // nil where this node is the only member, and leads
	campaign campaigning
	rand     *rand.Rand

	hardTerm, hardVote, hardCommit uint64          // as last written
	commitMark                     uint64          // commit index at the last tick
	proposal                       *raftpb.Message // used again for each
	entries                        []LogEntry      // likewise
	buf                            []byte          // likewise
	outbox                         outbox
	crowd                          float64 // proposals in an entry, as of late
	syncDue                        bool    // the loop is to sync the log itself, soon
	visited                        bool    // who has the baton is a visitor
}

// run is the goroutine that owns raft, the log's end and the state machine.
func (g *Group) run() {
	defer close(g.ended)
	g.finish(g.guard(g.serve))
}

// finish ends the Group after the last turn, because of err where it is not nil.
func (g *Group) finish(err error) {
	if err != nil {
		g.fail(err)
	}
	g.loop.outbox.late.timer.Stop()
	g.disk.close()
	g.alone.Store(false)
	g.abandon()
	err = g.endCut()
	if g.failed() == nil && err == nil {
		err = g.lastFlush()
	}
	g.mu.Lock()
	g.closeErr = err
	g.mu.Unlock()
}

// raftPanic is what raft panics with where an invariant of its own is broken.
type raftPanic string

// guard turns a panic of raft into an error: the log's, where that made it
// panic, else gearsfs.ErrDamaged, because a member's log is not what it said.
func (g *Group) guard(f func() error) (err error) {
	defer func() {
		r := recover()
		if r == nil {
			return
		}
		said, ok := r.(raftPanic)
		switch {
		case g.store.err != nil:
			err = g.store.err
		case ok:
			err = gearsfs.ErrDamaged.Because("the log is not the one that the group counts on; remove this node "+
				"from the group and let it join with empty data (raft: %s)", string(said))
		default:
			panic(r)
		}
	}()
	return f()
}

// serve works until the Group is closed and all that was taken is answered,
// or has failed.
func (g *Group) serve() error {
	for {
		state, err := g.turn()
		if err != nil || state == stopped {
			return err
		}
		// Who is ready to run may be about to propose: what comes now shares an
		// entry and wakes nobody. With 16 clients that is four times as many a
		// second; alone it costs nothing.
		runtime.Gosched()
		events := g.loop.events()
		if !g.doze() {
			continue
		}
		e := g.wait(events)
		if err := g.resume(); err != nil {
			return err
		}
		if err := g.handleEvent(e); err != nil {
			return err
		}
	}
}

// turn does all that is ready, without waiting for more.
func (g *Group) turn() (loopState, error) {
	for {
		items, got, state := g.next()
		if state == stopped {
			return stopped, nil
		}
		if state == busy {
			if err := g.pass(items, got); err != nil {
				return stopped, err
			}
		}
		e, ok := g.poll()
		if ok {
			if err := g.handleEvent(e); err != nil {
				return stopped, err
			}
		}
		if state == busy || ok {
			continue
		}
		if o := &g.loop.outbox; o.held && o.prompt {
			if err := g.post(true); err != nil {
				return stopped, err
			}
		}
		if state == closing {
			if stop, err := g.mayStop(); stop || err != nil {
				return stopped, err
			}
		}
		return idle, nil
	}
}

// pass gives raft what arrived and makes items an entry, so that all of it
// shares messages, a write and a sync.
func (g *Group) pass(items []waiting, got arrivals) error {
	if err := g.receive(got.messages); err != nil {
		return err
	}
	for _, o := range got.orders { // after messages, which the dead may have sent before
		if err := o.do(); err != nil {
			return err
		}
	}
	g.beginReads(got.reads)
	if len(items) > 0 {
		g.loop.crowd += (float64(len(items)) - g.loop.crowd) / 4
		if err := g.propose(newBatch(items, &g.held)); err != nil {
			return err
		}
	}
	if err := g.pump(); err != nil {
		return err
	}
	if g.loop.syncDue { // what it answers is applied by now
		g.loop.syncDue = false
		g.syncHere()
	}
	return nil
}

// propose makes b an entry of the log. In a group of one it is applied when
// pump returns.
func (g *Group) propose(b *batch) error {
	l := &g.loop
	if !l.tenure {
		b.refuse(gearsfs.ErrNotLeader)
		return nil
	}
	b.entry.Time, b.entry.Jump = g.Time(), l.passed.jump
	data, err := b.marshal(l.buf)
	if err != nil {
		b.refuse(gearsfs.ErrIO.Because("%v", err))
		return err
	}
	// Raft copies the entry, so message and buffer serve again, unless it is large.
	if l.buf = data[:0]; cap(data) > 2*g.limits.entryBytes {
		l.buf = nil
	}
	l.proposal.Entries[0].Data = data
	b.begun = g.world.elapsed()
	err = l.node.Step(l.proposal)
	if errors.Is(err, raft.ErrProposalDropped) {
		// What came behind it is refused too: it may depend on the order, and the
		// next one might be taken.
		why := g.dropped()
		b.refuse(why)
		g.refusePending(why)
		return nil
	}
	l.inflight = append(l.inflight, b)
	l.flying += len(b.items)
	if err != nil {
		return fmt.Errorf("propose: %w", err)
	}
	g.time.Store(b.entry.Time)
	l.passed.jump = 0
	// Nothing came between, so it is the last of the new entries.
	ready := l.node.Ready()
	last := ready.Entries[len(ready.Entries)-1]
	b.index, b.term = last.GetIndex(), last.GetTerm()
	return g.handleReady(ready)
}

// refusePending answers the proposals that wait in line: they were not written.
func (g *Group) refusePending(why error) {
	g.mu.Lock()
	pending := g.pending
	g.pending = nil
	g.mu.Unlock()
	if len(pending) > 0 {
		newBatch(pending, &g.held).refuse(why)
	}
}

// dropped returns why raft dropped a proposal.
func (g *Group) dropped() error {
	switch s := g.loop.node.BasicStatus(); {
	case s.RaftState != raft.StateLeader:
		return gearsfs.ErrNotLeader
	case s.LeadTransferee != raft.None:
		return gearsfs.ErrNotLeader.Because("another node is taking over the volume")
	}
	return gearsfs.ErrOverload
}

// pump does what raft asks for until it asks for nothing.
func (g *Group) pump() error {
	if err := g.release(); err != nil {
		return err
	}
	for {
		for g.loop.node.HasReady() {
			if err := g.handleReady(g.loop.node.Ready()); err != nil {
				return err
			}
		}
		if !g.endReads() {
			return nil
		}
	}
}

// handleReady does what raft asks for. Messages to peers leave before the log
// is written, so that their disks work beside ours: raft gives those that must
// wait for the disk along with the write.
func (g *Group) handleReady(ready raft.Ready) error {
	if ready.SoftState != nil {
		g.leaderChanged(ready.SoftState)
	}
	if !raft.IsEmptyHardState(ready.HardState) {
		g.loop.term = ready.HardState.GetTerm()
		g.status.term.Store(ready.HardState.GetTerm())
		g.status.commit.Store(ready.HardState.GetCommit())
	}
	if err := g.send(ready.Messages); err != nil {
		return err
	}
	for _, m := range ready.Messages {
		var err error
		switch m.GetTo() {
		case raft.LocalAppendThread:
			err = g.append(m)
		case raft.LocalApplyThread:
			err = g.apply(m)
		}
		if err != nil {
			return err
		}
	}
	g.readable(ready.ReadStates)
	return nil
}

// tick is a tenth of a second of raft's time, and the time to look after what
// is repeated or given up.
func (g *Group) tick() error {
	g.loop.ticks = nil
	g.needTicks()
	g.loop.node.Tick()
	g.repeatReads()
	g.watchTransfer()
	g.tickCopies()
	g.publish()
	return g.promote()
}

// abandon answers all that the loop has not: nothing of the pending was
// written, and of what is in flight nobody knows.
func (g *Group) abandon() {
	g.mu.Lock()
	g.over = true
	pending, got := g.pending, g.arrivals
	g.pending, g.arrivals = nil, arrivals{}
	closed := error(gearsfs.ErrClosed)
	if g.err != nil {
		closed = gearsfs.ErrClosed.Because("the replica has failed: %v", g.err)
	}
	g.mu.Unlock()
	for _, o := range got.orders {
		if o.drop != nil {
			o.drop()
		}
	}
	g.endTenure(gearsfs.ErrMaybe.Because("outcome unknown: %v", closed))
	if len(pending) > 0 {
		newBatch(pending, &g.held).refuse(closed)
	}
	for _, r := range append(got.reads, g.loop.reads.waiting...) {
		r.done(gearsfs.ErrClosed)
	}
	g.loop.reads.waiting = nil
	g.endChange(gearsfs.ErrClosed)
	g.endTransfer(gearsfs.ErrClosed)
	g.dropCopies()
}
