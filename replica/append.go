package replica

import (
	"errors"
	"fmt"
	"slices"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// followBytes is up to how much a follower writes and syncs before anything else.
const followBytes = 64 << 10

// lonely is up to how many proposals the last entries had on average where they
// count as lone ones. What this goroutine writes and syncs then it has Log.Hasten
// between: the disk works while the entry is applied, and one caller alone waits for
// exactly that. To begin a write and to wait for it are two ways through the kernel
// that cost more processor time than one, so where others have something to do
// meanwhile, or another goroutine syncs at once, it is not done.
const lonely = 2

// ack are raft's answers to an append, for itself and for peers, due when
// append seq is on disk.
type ack struct {
	seq       uint64
	responses []*raftpb.Message
}

// append writes entries and hard state. Where this node is the only member,
// what is written is committed; else raft, and with it the peers, hear of it
// when it is on disk. A commit index alone is not worth a write: it is learned
// again from the log or the leader.
func (g *Group) append(m *raftpb.Message) error {
	l := &g.loop
	if !raft.IsEmptySnap(m.GetSnapshot()) {
		if err := g.install(m); err != nil {
			return err
		}
	}
	hard, err := g.hardState(m)
	if err != nil {
		return err
	}
	if len(m.GetEntries()) == 0 && hard == nil {
		if n := len(l.acks); n > 0 {
			l.acks[n-1].responses = append(slices.Clip(l.acks[n-1].responses), m.GetResponses()...)
			return nil
		}
		return g.respond(m.GetResponses())
	}
	clear(l.entries)
	l.entries = l.entries[:0]
	size := 0
	for _, e := range m.GetEntries() {
		size += len(e.GetData())
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
	syncBeforeAck := !l.conf.sole(g.cfg.ID) || len(l.acks) > 0
	want := syncBeforeAck || g.awaited(m.GetEntries())
	here := want && g.unhurried(size)
	if here && !syncBeforeAck && l.crowd < lonely {
		g.cfg.Log.Hasten() // while the entry is applied
	}
	seq := g.disk.wrote(g.cfg.Log.Last(), want, here)
	if syncBeforeAck {
		if here {
			g.syncHere()
		}
		l.acks = append(l.acks, ack{seq: seq, responses: m.GetResponses()})
		return g.release()
	}
	l.syncDue = l.syncDue || here
	return g.respond(m.GetResponses())
}

// unhurried reports whether the loop may sync the log itself, to which so many
// bytes were written: it takes little time, and nothing waits for the loop
// meanwhile. For who follows, the next thing to do is to write and sync what
// comes next, which can't begin before: what has come by then shares that, and no
// other goroutine was woken for either. Only to apply what is large is better done
// beside a sync.
func (g *Group) unhurried(size int) bool {
	l := &g.loop
	if l.lead != raft.None && l.lead != g.cfg.ID && size <= followBytes {
		return len(l.acks) == 0 && len(l.inflight) <= 1 && g.disk.quick(g.limits.followSync)
	}
	return g.disk.quick(g.limits.quickSync) && g.idle()
}

// idle reports whether nothing waits for the loop but what it has just written.
func (g *Group) idle() bool {
	if len(g.loop.acks) > 0 || len(g.loop.inflight) > 1 {
		return false
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.pending) == 0 && g.arrivals.empty()
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
	l.hardTerm, l.hardVote, l.hardCommit = m.GetTerm(), m.GetVote(), m.GetCommit()
	return encodeHard(m.GetTerm(), m.GetVote(), m.GetCommit())
}

func encodeHard(term, vote, commit uint64) ([]byte, error) {
	hard, err := proto.Marshal(&raftpb.HardState{Term: &term, Vote: &vote, Commit: &commit})
	if err != nil {
		return nil, fmt.Errorf("encode hard state: %w", err)
	}
	return hard, nil
}

// release gives out the answers whose appends are on disk.
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

// respond hands raft its own messages back, in order, and sends the others.
func (g *Group) respond(responses []*raftpb.Message) error {
	for _, m := range responses {
		if m.GetTo() != g.cfg.ID {
			continue
		}
		if err := g.loop.node.Step(m); err != nil && !errors.Is(err, raft.ErrStepPeerNotFound) {
			return fmt.Errorf("raft: %w", err)
		}
	}
	return g.send(responses)
}
