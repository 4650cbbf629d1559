package replica

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/gearsfs/gearsfs"
)

// loop is what the goroutine run alone may touch.
type loop struct {
	node     *raft.RawNode
	voters   int      // of both halves of a joint configuration
	inflight []*batch // proposed to raft and not applied, by rising index
	acks     []ack    // raft's answers that wait for a sync, by rising seq
	reads    []*barrier
	readSeq  uint64           // of the last ReadIndex attempt
	ticks    <-chan time.Time // nil in a group of one
	flush    flushing

	hardTerm, hardVote uint64          // as last written
	proposal           *raftpb.Message // used again for each
	entries            []LogEntry      // likewise
	buf                []byte          // likewise
}

// ack are raft's answers to an append, due when append seq is on disk.
type ack struct {
	seq       uint64
	responses []*raftpb.Message
}

// barrier is a Barrier call.
type barrier struct {
	context uint64 // of its ReadIndex attempt
	index   uint64 // its outcome, once known
	done    chan error
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

// guard turns raft's panic about an error of the log back into that error.
func (g *Group) guard(f func() error) (err error) {
	defer func() {
		if g.store.err == nil {
			return
		}
		if r := recover(); r != nil {
			err = g.store.err
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
		if !g.doze() {
			continue
		}
		if err := g.handleEvent(g.await()); err != nil {
			return err
		}
	}
}

type loopState int

const (
	busy loopState = iota
	idle
	stopped
)

// next takes what waits and fits one entry.
func (g *Group) next() ([]waiting, []*barrier, loopState) {
	stalled := g.stalled()
	g.mu.Lock()
	defer g.mu.Unlock()
	state := g.stateLocked(stalled)
	if state != busy {
		return nil, nil, state
	}
	barriers := g.barriers
	g.barriers = nil
	n := 0
	if !stalled {
		n = g.fitLocked()
	}
	items := slices.Clone(g.pending[:n])
	left := copy(g.pending, g.pending[n:])
	clear(g.pending[left:])
	g.pending = g.pending[:left]
	return items, barriers, busy
}

// stateLocked reports what there is to do for a loop that may be stalled.
func (g *Group) stateLocked(stalled bool) loopState {
	switch {
	case g.err != nil:
		return stopped
	case len(g.pending) > 0 && !stalled, len(g.barriers) > 0:
		return busy
	case g.closing && len(g.pending) == 0 && len(g.loop.inflight) == 0:
		return stopped
	}
	return idle
}

// doze has the next proposal or barrier wake the loop, where there is none.
func (g *Group) doze() bool {
	stalled := g.stalled()
	g.mu.Lock()
	defer g.mu.Unlock()
	g.asleep = g.stateLocked(stalled) == idle
	return g.asleep
}

// fitLocked returns how many of the pending proposals go into the next entry:
// whole calls only, and at least one.
func (g *Group) fitLocked() int {
	n, bytes := 0, 0
	for end := 0; end < len(g.pending); end++ {
		bytes += g.pending[end].bytes
		if n > 0 && (bytes > g.limits.entryBytes || end >= g.limits.entryCommands) {
			break
		}
		if g.pending[end].last {
			n = end + 1
		}
	}
	return n
}

// event is something that came in while the loop worked or slept.
type event struct {
	kind eventKind
	err  error
}

type eventKind int

const (
	woken eventKind = iota // something under mu or a sync changed
	flushDone
	cutDone
	retryDue
	ticked
)

// poll takes one event that is there, always the first of this order.
func (g *Group) poll() (event, bool) {
	l := &g.loop
	select {
	case <-g.wake:
		return event{kind: woken}, true
	default:
	}
	if l.ticks == nil && !l.flush.running() && l.flush.retry == nil {
		return event{}, false
	}
	select {
	case err := <-l.flush.done:
		return event{flushDone, err}, true
	default:
	}
	select {
	case err := <-l.flush.cut:
		return event{cutDone, err}, true
	default:
	}
	select {
	case <-l.flush.retry:
		return event{kind: retryDue}, true
	default:
	}
	select {
	case <-l.ticks:
		return event{kind: ticked}, true
	default:
	}
	return event{}, false
}

// await waits for an event.
func (g *Group) await() event {
	l := &g.loop
	select {
	case <-g.wake:
		return event{kind: woken}
	case err := <-l.flush.done:
		return event{flushDone, err}
	case err := <-l.flush.cut:
		return event{cutDone, err}
	case <-l.flush.retry:
		return event{kind: retryDue}
	case <-l.ticks:
		return event{kind: ticked}
	}
}

func (g *Group) handleEvent(e event) error {
	switch e.kind {
	case flushDone:
		g.flushed(e.err)
	case cutDone:
		if err := g.isCut(e.err); err != nil {
			return err
		}
	case retryDue:
		g.retryFlush()
	case ticked:
		g.tick()
	}
	return g.pump()
}

// propose makes b an entry of the log. In a group of one it is applied when
// pump returns.
func (g *Group) propose(b *batch) error {
	l := &g.loop
	l.inflight = append(l.inflight, b)
	b.entry.Time = g.Time()
	data, err := b.marshal(l.buf)
	if err != nil {
		return err
	}
	// Raft copies the entry, so message and buffer serve again, unless it is large.
	if l.buf = data[:0]; cap(data) > 2*g.limits.entryBytes {
		l.buf = nil
	}
	l.proposal.Entries[0].Data = data
	err = l.node.Step(l.proposal)
	if errors.Is(err, raft.ErrProposalDropped) {
		l.inflight = l.inflight[:len(l.inflight)-1]
		b.refuse(gearsfs.ErrOverload)
		return nil
	}
	if err != nil {
		return fmt.Errorf("propose: %w", err)
	}
	g.time.Store(b.entry.Time)
	// Nothing came between, so it is the last of the new entries.
	ready := l.node.Ready()
	last := ready.Entries[len(ready.Entries)-1]
	b.index, b.term = last.GetIndex(), last.GetTerm()
	return g.handleReady(ready)
}

// pump does what raft asks for until it asks for nothing.
func (g *Group) pump() error {
	if err := g.release(); err != nil {
		return err
	}
	for g.loop.node.HasReady() {
		if err := g.handleReady(g.loop.node.Ready()); err != nil {
			return err
		}
	}
	g.endBarriers()
	return nil
}

func (g *Group) handleReady(ready raft.Ready) error {
	if ready.SoftState != nil {
		g.status.leader.Store(ready.SoftState.Lead)
		g.leads(ready.SoftState.RaftState == raft.StateLeader)
	}
	if !raft.IsEmptyHardState(ready.HardState) {
		g.status.term.Store(ready.HardState.GetTerm())
		g.status.commit.Store(ready.HardState.GetCommit())
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

// append writes entries and hard state. In a group of one what is written is
// committed; with more voters raft hears of it when it is on disk. A commit
// index alone is not worth a write: it is learned again from the log.
func (g *Group) append(m *raftpb.Message) error {
	l := &g.loop
	hard, err := g.hardState(m)
	if err != nil {
		return err
	}
	syncBeforeAck := l.voters > 1
	if len(m.GetEntries()) > 0 || hard != nil {
		clear(l.entries)
		l.entries = l.entries[:0]
		for _, e := range m.GetEntries() {
			l.entries = append(l.entries, LogEntry{
				Index: e.GetIndex(), Term: e.GetTerm(), Type: uint8(e.GetType()), Data: e.GetData(),
			})
		}
		if err := g.cfg.Log.Append(l.entries, hard); err != nil {
			return fmt.Errorf("write the log: %w", err)
		}
		if len(m.GetEntries()) > 0 {
			g.store.appended(m.GetEntries())
		}
		seq := g.disk.wrote(g.cfg.Log.Last(), syncBeforeAck || g.awaited(m.GetEntries()))
		if syncBeforeAck {
			l.acks = append(l.acks, ack{seq: seq, responses: m.GetResponses()})
			return g.release()
		}
	} else if n := len(l.acks); n > 0 {
		l.acks[n-1].responses = append(slices.Clip(l.acks[n-1].responses), m.GetResponses()...)
		return nil
	}
	return g.respond(m.GetResponses())
}

// awaited reports whether one of entries holds a durable proposal of ours.
func (g *Group) awaited(entries []*raftpb.Entry) bool {
	if len(entries) == 0 {
		return false
	}
	first := entries[0].GetIndex()
	for i := len(g.loop.inflight) - 1; i >= 0; i-- {
		b := g.loop.inflight[i]
		if b.index < first {
			break
		}
		if b.durable {
			return true
		}
	}
	return false
}

// hardState returns the encoding of m's hard state where its term or vote is
// new, else nil.
func (g *Group) hardState(m *raftpb.Message) ([]byte, error) {
	l := &g.loop
	if m.Term == nil || m.GetTerm() == l.hardTerm && m.GetVote() == l.hardVote {
		return nil, nil
	}
	l.hardTerm, l.hardVote = m.GetTerm(), m.GetVote()
	hard, err := proto.Marshal(&raftpb.HardState{Term: m.Term, Vote: m.Vote, Commit: m.Commit})
	if err != nil {
		return nil, fmt.Errorf("encode hard state: %w", err)
	}
	return hard, nil
}

// release gives raft the answers whose appends are on disk.
func (g *Group) release() error {
	l := &g.loop
	for len(l.acks) > 0 && g.disk.isSynced(l.acks[0].seq, true) {
		responses := l.acks[0].responses
		l.acks = slices.Delete(l.acks, 0, 1)
		if err := g.respond(responses); err != nil {
			return err
		}
	}
	return nil
}

// respond hands raft its own messages back, in order.
func (g *Group) respond(responses []*raftpb.Message) error {
	for _, m := range responses {
		if m.GetTo() != g.cfg.ID {
			continue // a group of one has no peers to send to
		}
		if err := g.loop.node.Step(m); err != nil {
			return fmt.Errorf("raft: %w", err)
		}
	}
	return nil
}

// read begins one ReadIndex attempt for all barriers.
func (g *Group) read(barriers []*barrier) {
	l := &g.loop
	l.readSeq++
	for _, b := range barriers {
		b.context = l.readSeq
	}
	l.reads = append(l.reads, barriers...)
	l.node.ReadIndex(binary.BigEndian.AppendUint64(nil, l.readSeq))
}

// readable notes the read indexes that a quorum confirmed; an attempt confirms
// those before it.
func (g *Group) readable(states []raft.ReadState) {
	for _, s := range states {
		context := binary.BigEndian.Uint64(s.RequestCtx)
		for _, b := range g.loop.reads {
			if b.context <= context && b.index == 0 {
				b.index = s.Index
			}
		}
	}
}

// endBarriers ends the barriers whose read index is applied.
func (g *Group) endBarriers() {
	if len(g.loop.reads) == 0 {
		return
	}
	applied := g.status.applied.Load()
	g.loop.reads = slices.DeleteFunc(g.loop.reads, func(b *barrier) bool {
		if b.index == 0 || b.index > applied {
			return false
		}
		b.done <- nil
		return true
	})
}

// abandon answers all that the loop has not: nothing of the pending was
// written, and of what is in flight nobody knows.
func (g *Group) abandon() {
	g.mu.Lock()
	err := g.err
	pending, barriers := g.pending, g.barriers
	g.pending, g.barriers = nil, nil
	g.mu.Unlock()
	for _, b := range g.loop.inflight {
		b.refuse(gearsfs.ErrMaybe.Because("outcome unknown: %v", err))
	}
	g.loop.inflight = nil
	for i := range pending {
		pending[i].Done(nil, gearsfs.ErrClosed.Because("the replica has failed: %v", err))
	}
	for _, b := range append(barriers, g.loop.reads...) {
		b.done <- gearsfs.ErrClosed
	}
}
