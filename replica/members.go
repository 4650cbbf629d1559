package replica

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"go.etcd.io/raft/v3/tracker"
	"google.golang.org/protobuf/proto"

	"github.com/gearsfs/gearsfs"
)

// membership is who is in the group.
type membership struct {
	voters   []uint64 // of both halves of a joint configuration
	learners []uint64
	joint    bool
	quorums  [][]uint64 // the voters, or both halves of them
}

func (c *membership) votes(id uint64) bool { return slices.Contains(c.voters, id) }
func (c *membership) has(id uint64) bool   { return c.votes(id) || slices.Contains(c.learners, id) }

// hasAll reports whether all members of other are among those of c.
func (c *membership) hasAll(other *membership) bool {
	lacks := func(id uint64) bool { return !c.has(id) }
	return !slices.ContainsFunc(other.voters, lacks) && !slices.ContainsFunc(other.learners, lacks)
}

// sole reports whether id is the only member.
func (c *membership) sole(id uint64) bool {
	return len(c.voters) == 1 && c.voters[0] == id && len(c.learners) == 0
}

// set makes conf the membership.
func (c *membership) set(conf *raftpb.ConfState) {
	c.voters = append(slices.Clone(conf.GetVoters()), conf.GetVotersOutgoing()...)
	slices.Sort(c.voters)
	c.voters = slices.Compact(c.voters)
	c.learners = append(slices.Clone(conf.GetLearners()), conf.GetLearnersNext()...)
	c.joint = len(conf.GetVotersOutgoing()) > 0
	c.quorums = [][]uint64{conf.GetVoters()}
	if c.joint {
		c.quorums = append(c.quorums, conf.GetVotersOutgoing())
	}
}

// change is a change of the membership that is on its way.
type change struct {
	index, term uint64
	done        func(error) // nil: nobody waits
}

// AddLearner adds a member that has no vote; it becomes a voter by itself when
// it has caught up. Machine.ApplyConf is given the change. It returns when the
// change is applied here, at once where the member is there already, and waits
// until ctx ends. Errors: gearsfs.ErrNotLeader, gearsfs.ErrBusy while another
// change is on its way, gearsfs.ErrMaybe where this node ceased to lead
// meanwhile; ctx's, and gearsfs.ErrClosed.
func (g *Group) AddLearner(ctx context.Context, id gearsfs.MemberID, change []byte) error {
	return g.ask(ctx, func(done func(error)) error { return g.beginAdd(uint64(id), change, done) })
}

// RemoveMember removes a member, voter or not. It is like AddLearner; a member
// that is not there is removed already. A node does not remove itself, and not
// a member without which the rest, as far as they were heard of lately, would
// be no majority: gearsfs.ErrBusy.
func (g *Group) RemoveMember(ctx context.Context, id gearsfs.MemberID, change []byte) error {
	return g.ask(ctx, func(done func(error)) error { return g.beginRemove(uint64(id), change, done) })
}

func (g *Group) beginAdd(id uint64, context []byte, done func(error)) error {
	switch {
	case !g.loop.tenure:
		done(gearsfs.ErrNotLeader)
	case id == 0 || raft.IsLocalMsgTarget(id):
		done(gearsfs.ErrInvalid.Because("member id %d", id))
	case g.loop.conf.has(id):
		done(nil)
	default:
		return g.changeGroup(raftpb.ConfChangeAddLearnerNode, id, context, done)
	}
	return nil
}

func (g *Group) beginRemove(id uint64, context []byte, done func(error)) error {
	switch {
	case !g.loop.tenure:
		done(gearsfs.ErrNotLeader)
	case id == g.cfg.ID:
		done(gearsfs.ErrBusy.Because("a node that leads can't be removed: transfer the lead first"))
	case !g.loop.conf.has(id):
		done(nil)
	case !g.enoughWithout(id):
		done(gearsfs.ErrBusy.Because("without this member the group had no majority that can be reached"))
	default:
		return g.changeGroup(raftpb.ConfChangeRemoveNode, id, context, done)
	}
	return nil
}

// enoughWithout reports whether the voters but id that were heard of lately are
// a majority of them.
func (g *Group) enoughWithout(id uint64) bool {
	voters, active := 0, 0
	g.eachMember(func(m member) {
		if m.learner || m.id == id {
			return
		}
		voters++
		if m.active || m.id == g.cfg.ID {
			active++
		}
	})
	return active > voters/2
}

// changeGroup proposes to change the place of one member; done is told when that
// is applied.
func (g *Group) changeGroup(kind raftpb.ConfChangeType, id uint64, context []byte, done func(error)) error {
	l := &g.loop
	if l.conf.joint || l.change.done != nil {
		done(gearsfs.ErrBusy.Because("another change of the group is on its way"))
		return nil
	}
	proposal := &raftpb.ConfChangeV2{
		Changes: []*raftpb.ConfChangeSingle{{Type: kind.Enum(), NodeId: &id}},
		Context: context,
	}
	if kind == raftpb.ConfChangeAddNode {
		proposal.Transition = raftpb.ConfChangeTransitionJointImplicit.Enum()
	}
	err := l.node.ProposeConfChange(proposal)
	if errors.Is(err, raft.ErrProposalDropped) {
		done(g.dropped())
		return nil
	}
	if err != nil {
		done(gearsfs.ErrIO.Because("change the group: %v", err))
		return fmt.Errorf("change the group: %w", err)
	}
	ready := l.node.Ready()
	last := ready.Entries[len(ready.Entries)-1]
	if last.GetType() == raftpb.EntryNormal { // what raft makes of a change that comes too early
		done(gearsfs.ErrBusy.Because("another change of the group is on its way"))
	} else {
		l.change = change{index: last.GetIndex(), term: last.GetTerm(), done: done}
	}
	return g.handleReady(ready)
}

// endChange tells whoever waits for a change of the membership.
func (g *Group) endChange(err error) {
	if done := g.loop.change.done; done != nil {
		g.loop.change = change{}
		done(err)
	}
}

// promote gives a vote to a learner that has caught up: it has all that was
// committed a tick ago. One at a time, by joint consensus.
func (g *Group) promote() error {
	l := &g.loop
	mark := l.commitMark
	l.commitMark = g.status.commit.Load()
	if !l.tenure || l.conf.joint || l.change.done != nil || l.transfer.done != nil || len(l.conf.learners) == 0 {
		return nil
	}
	var ready uint64
	g.eachMember(func(m member) {
		if m.learner && m.active && m.replicates && m.match >= mark {
			ready = m.id
		}
	})
	if ready == raft.None || g.cfg.Fit != nil && !g.cfg.Fit(ready) {
		return nil
	}
	g.cfg.Logger.Info("a member has caught up and gets a vote", "member", gearsfs.MemberID(ready).Hex())
	return g.changeGroup(raftpb.ConfChangeAddNode, ready, nil, func(error) {})
}

// member is what a leader knows of a member, itself included.
type member struct {
	id          uint64
	learner     bool
	active      bool // was heard of since the last or last but one election timeout
	replicates  bool // entries flow
	snapshot    bool // it needs a snapshot, or one is on its way
	match, next uint64
	pending     uint64 // index of the snapshot that is on its way
}

func (g *Group) eachMember(visit func(member)) {
	g.loop.node.WithProgress(func(id uint64, kind raft.ProgressType, p tracker.Progress) {
		visit(member{
			id: id, learner: kind == raft.ProgressTypeLearner, active: p.RecentActive,
			replicates: p.State == tracker.StateReplicate, snapshot: p.State == tracker.StateSnapshot,
			match: p.Match, next: p.Next, pending: p.PendingSnapshot,
		})
	})
}

// applyConf changes who is in the group. Before that takes effect the log is
// synced up to the change, and says that it is committed: what a single member
// called committed was not on disk so far, and a node that forgot the change in
// a crash would count majorities of a group that is not there any more.
func (g *Group) applyConf(e *raftpb.Entry) error {
	l := &g.loop
	change, err := decodeConf(e)
	if err != nil {
		return gearsfs.ErrDamaged.Because("entry %d: %v", e.GetIndex(), err)
	}
	if err := g.keepCommit(e.GetIndex()); err != nil {
		return err
	}
	conf := l.node.ApplyConfChange(change)
	data, err := proto.MarshalOptions{Deterministic: true}.Marshal(conf)
	if err != nil {
		return fmt.Errorf("encode conf state: %w", err)
	}
	g.confChanged(conf) // so that Status is right when the state machine tells of it
	if err := g.cfg.Machine.ApplyConf(e.GetIndex(), e.GetTerm(), data, change.AsV2().GetContext()); err != nil {
		return fmt.Errorf("state machine: %w", err)
	}
	g.status.applied.Store(e.GetIndex())
	if l.change.index == e.GetIndex() && l.change.term == e.GetTerm() {
		g.endChange(nil)
	}
	return nil
}

// keepCommit has the disk know that the log is committed up to index.
func (g *Group) keepCommit(index uint64) error {
	l := &g.loop
	if l.hardCommit < index {
		hard, err := encodeHard(l.hardTerm, l.hardVote, index)
		if err != nil {
			return err
		}
		if err := g.cfg.Log.Append(nil, hard); err != nil {
			return fmt.Errorf("write the log: %w", err)
		}
		l.hardCommit = index
	}
	if err := g.cfg.Log.Sync(); err != nil {
		return fmt.Errorf("sync the log: %w", err)
	}
	return nil
}

func decodeConf(e *raftpb.Entry) (raftpb.ConfChangeI, error) {
	if e.GetType() == raftpb.EntryConfChange {
		change := new(raftpb.ConfChange)
		return change, proto.Unmarshal(e.GetData(), change)
	}
	change := new(raftpb.ConfChangeV2)
	return change, proto.Unmarshal(e.GetData(), change)
}

// confChanged notes who is in the group.
func (g *Group) confChanged(conf *raftpb.ConfState) {
	l := &g.loop
	l.conf.set(conf)
	sole := l.conf.sole(g.cfg.ID)
	g.sole.Store(sole)
	g.needTicks()
	if sole {
		g.dropCopies() // nobody fetches them
	}
	g.updateAlone()
	g.publish()
}

// Sole reports whether this node is the only member of its group.
func (g *Group) Sole() bool { return g.sole.Load() }

// needTicks has time pass for raft, but for a sole member that leads and owes
// nobody anything. One that does not lead yet, because the others left it as a
// follower, is elected by its ticks, and what was asked before is repeated by
// them.
func (g *Group) needTicks() {
	l := &g.loop
	switch {
	case g.sole.Load() && l.leads && len(l.reads.waiting) == 0 && l.transfer.done == nil:
		l.ticks = nil
	case l.ticks == nil:
		l.ticks = g.world.after(tick)
	}
}

// updateAlone notes whether this node leads and is the only member.
func (g *Group) updateAlone() { g.alone.Store(g.loop.tenure && g.sole.Load()) }
