package replica

import (
	"errors"
	"fmt"
	"slices"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
)

// Raft's changes of members take effect when they are applied, so a member whose
// leader ended behind sending it a change, and before saying that the change is
// committed, goes on in the old group: it may have been given a vote, have the
// longest log, vote for nobody else therefore, and not be a candidate itself. So who
// asks for votes also says what it knows to be committed, in two fields of the
// message that raft does not use there; a program that does not know of it ignores
// them. Whoever has the entry of that index and term has all up to it as it was
// committed.

// tellCommitted adds to m, a request for a vote, what is known to be committed.
func (g *Group) tellCommitted(m *raftpb.Message) {
	index := g.status.commit.Load()
	if term, err := g.store.Term(index); err == nil && index > 0 {
		m.Commit, m.RejectHint = &index, &term
	}
}

// hearCommitted takes over from m, a request for a vote, what is committed, as a
// follower hears it from its leader: raft is given such a message. It is in the name
// of the sender of m, who has the entry, so that raft's answer is no lie to anybody;
// raft forgets it as a leader again. A voter who has another leader hears of all that
// from it. Nobody hears of what changes no members: raft then waits for its leader
// anew, and who has the longest log is to be a candidate soon.
func (g *Group) hearCommitted(m *raftpb.Message) error {
	l := &g.loop
	index, term := m.GetCommit(), m.GetRejectHint()
	if index <= g.status.commit.Load() || term == 0 || index > g.cfg.Log.Last() {
		return nil
	}
	if have, err := g.store.Term(index); err != nil || have != term {
		return nil //nolint:nilerr // what is not in the log is of no use
	}
	status := l.node.BasicStatus()
	led := status.Lead != raft.None && status.Lead != m.GetFrom()
	if status.RaftState != raft.StateFollower || status.GetTerm() < term || led && l.conf.votes(g.cfg.ID) {
		return nil
	}
	changes, err := g.changesMembers(g.status.commit.Load(), index)
	if err != nil || !changes {
		return err
	}
	err = l.node.Step(&raftpb.Message{
		Type: raftpb.MsgApp.Enum(), From: m.From, To: &g.cfg.ID, Term: new(status.GetTerm()),
		Index: &index, LogTerm: &term, Commit: &index,
	})
	if err == nil && status.Lead != m.GetFrom() {
		err = l.node.ForgetLeader()
	}
	if err != nil {
		return fmt.Errorf("raft: %w", err)
	}
	return nil
}

// changesMembers says whether one of the entries behind index after, to upTo, is a
// change of members.
func (g *Group) changesMembers(after, upTo uint64) (bool, error) {
	const bytesMax = 1 << 20 // read at once
	for after < upTo {
		entries, err := g.store.Entries(after+1, upTo+1, bytesMax)
		switch {
		case errors.Is(err, raft.ErrCompacted): // it may have been there
			return true, nil
		case err != nil:
			return false, fmt.Errorf("look for changes of members: %w", err)
		}
		if slices.ContainsFunc(entries, func(e *raftpb.Entry) bool { return e.GetType() != raftpb.EntryNormal }) {
			return true, nil
		}
		after += uint64(len(entries))
	}
	return false, nil
}
