package replica

import (
	"context"
	"errors"
	"fmt"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/gearsfs/gearsfs"
)

// receive steps messages of peers. What no honest member would send is dropped.
func (g *Group) receive(messages [][]byte) error {
	for _, b := range messages {
		m, err := decodeMessage(b)
		if err != nil || !g.acceptable(m) {
			g.cfg.Logger.Debug("a peer's message is dropped", "type", m.GetType(), "from", m.GetFrom())
			continue
		}
		switch m.GetType() {
		case raftpb.MsgSnap:
			g.renew(m)
		case raftpb.MsgVote, raftpb.MsgPreVote:
			if err := g.hearCommitted(m); err != nil {
				return err
			}
		}
		err = g.loop.node.Step(m)
		if err != nil && !errors.Is(err, raft.ErrStepPeerNotFound) && !errors.Is(err, raft.ErrProposalDropped) {
			return fmt.Errorf("raft: %w", err)
		}
	}
	return nil
}

// acceptable reports whether m may be given to raft. Whoever is alone in its
// group listens to nobody. Else a stranger is heard: it may be a member of whom
// this node does not know yet, and one that was removed has a log that nobody
// votes for.
func (g *Group) acceptable(m *raftpb.Message) bool {
	l := &g.loop
	from := m.GetFrom()
	if from == raft.None || from == g.cfg.ID || raft.IsLocalMsgTarget(from) || l.conf.sole(g.cfg.ID) {
		return false
	}
	if len(m.GetResponses()) > 0 {
		return false
	}
	switch m.GetType() {
	case raftpb.MsgApp:
		return m.GetTerm() > 0 && inOrder(m)
	case raftpb.MsgHeartbeat, raftpb.MsgHeartbeatResp:
		return m.GetTerm() > 0 && (len(m.GetContext()) == 0 || len(m.GetContext()) == 8)
	case raftpb.MsgAppResp, raftpb.MsgVote, raftpb.MsgVoteResp, raftpb.MsgPreVote, raftpb.MsgPreVoteResp,
		raftpb.MsgTimeoutNow:
		return m.GetTerm() > 0
	case raftpb.MsgSnap:
		return m.GetTerm() > 0 && !raft.IsEmptySnap(m.GetSnapshot())
	case raftpb.MsgReadIndex:
		return m.GetTerm() == 0 && len(m.GetEntries()) == 1
	case raftpb.MsgReadIndexResp:
		return m.GetTerm() > 0 && len(m.GetEntries()) == 1
	}
	return false
}

// inOrder reports whether the entries of an append follow on its index, their
// terms not falling, and none newer than the message's.
func inOrder(m *raftpb.Message) bool {
	index, term := m.GetIndex(), m.GetLogTerm()
	for _, e := range m.GetEntries() {
		index++
		if e.GetIndex() != index || e.GetTerm() < term || e.GetTerm() > m.GetTerm() {
			return false
		}
		term = e.GetTerm()
	}
	return true
}

// renew makes a snapshot that took longer to fetch than its sender led the
// present leader's: what is in it was committed, so all leaders agree on it.
func (g *Group) renew(m *raftpb.Message) {
	l := &g.loop
	if term := l.node.BasicStatus().GetTerm(); m.GetTerm() < term && l.lead != raft.None && l.lead != g.cfg.ID {
		m.Term, m.From = &term, new(l.lead)
	}
}

// Heard returns when all that Receive was given before has had its effect on this
// node, a snapshot's installation included. Errors: ctx's, and gearsfs.ErrClosed.
func (g *Group) Heard(ctx context.Context) error {
	for range 2 { // the first comes along with the messages, the second behind what they led to
		if err := g.ask(ctx, func(done func(error)) error { done(nil); return nil }); err != nil {
			return err
		}
	}
	return nil
}

// Unreachable says that what was last sent to a member may be lost.
func (g *Group) Unreachable(member gearsfs.MemberID) {
	g.order(order{do: func() error {
		g.loop.node.ReportUnreachable(uint64(member))
		return nil
	}})
}
