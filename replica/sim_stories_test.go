package replica

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/wire"
)

// What simulations have found, told without their noise: a seed shows something
// else as soon as the code or the simulation changes.

// tellStory founds a group without clients or faults, and lets a story happen
// to it.
func tellStory(t *testing.T, founders int, story func(s *sim)) {
	t.Helper()
	tellStoryOf(t, 1, founders, story)
}

// tellStoryOf is tellStory with what chance does by a seed.
func tellStoryOf(t *testing.T, seed uint64, founders int, story func(s *sim)) {
	t.Helper()
	s := newSim(seed, nil)
	s.makePlan()
	s.plan = simPlan{founders: founders, limits: defaultLimits, keepLogBytes: 1, grace: time.Second}
	s.plan.limits.entryCommands = 1
	s.calm = true
	s.seeded(func() {
		s.found()
		story(s)
	})
	require.NoError(t, s.failure)
}

// await lets time pass until something is so.
func (s *sim) await(t *testing.T, what string, so func() bool) {
	t.Helper()
	require.True(t, s.runUntil(10*time.Second, so), "%s: %v%s", what, s.failure, s.standing())
}

func (s *sim) leader(t *testing.T) (leader *simNode) {
	t.Helper()
	s.await(t, "somebody leads", func() bool { leader = s.choose(isLeading); return leader != nil })
	s.run(s.now + time.Second)
	return leader
}

// propose proposes a put at a node, which has its turn later, and notes what
// came of it.
func (n *simNode) propose(data string, outcomes map[string]error) {
	n.group.Propose(&Proposal{
		Command: &wire.Command{Op: &wire.Command_Put{Put: &wire.Put{
			Target: &wire.Target{Ino: simFile}, Key: "a", Records: []*wire.NewRecord{{Data: []byte(data)}},
		}}},
		Done: func(_ *wire.Answer, err error) { outcomes[data] = err },
	})
}

// remove asks a leader to remove a member; what is asked is on its way when it
// returns.
func (s *sim) remove(leader, n *simNode) {
	g := leader.group
	s.ask(leader, func(done func(error)) error { return g.beginRemove(uint64(n.id), nil, done) })
}

// Two nodes that begin together ask for votes at the same tick one time in ten. Then
// neither is elected, and they must not wait for the next timeouts, which may be the
// same ones again.
func TestSplitVotes(t *testing.T) {
	for seed := range uint64(3000) {
		tellStoryOf(t, seed+1, 2, func(s *sim) {
			leads := func() bool { return s.choose(isLeading) != nil }
			require.True(t, s.runUntil(2*electionTicks*tick+500*time.Millisecond, leads), "seed %d: %s", seed+1, s.standing())
		})
	}
}

// A leader that removes itself from a group of two, because that was its
// predecessor's will, leaves a follower alone: it must lead.
func TestTheLastMemberLeads(t *testing.T) {
	tellStory(t, 2, func(s *sim) {
		leader := s.leader(t)
		other := s.choose(func(n *simNode) bool { return n != leader })
		s.link(other.id, leader.id).cut = true
		s.remove(leader, other)
		s.run(s.now + 100*time.Millisecond)
		require.Equal(t, leader.log.last(), other.log.last())

		leader.crash()
		s.heal()
		leader.start()
		other.group.Died(leader.id)
		other.turn()
		s.await(t, "the other one is removed", func() bool { return other.removed })
		s.await(t, "the last one leads", func() bool { return leader.front.leads })
	})
}

// A member that is added while another one fetches a snapshot needs one of its
// own: the first one's group is without it.
func TestASnapshotForEachMember(t *testing.T) {
	tellStory(t, 3, func(s *sim) {
		leader := s.leader(t)
		add := func() *simNode {
			n := s.addNode(gearsfs.MemberID(len(s.nodes)+1), simImage{})
			n.start()
			s.ask(leader, func(done func(error)) error { return leader.group.beginAdd(uint64(n.id), nil, done) })
			return n
		}
		unreachable := add()
		s.run(s.now + 50*time.Millisecond)
		unreachable.crash()
		s.await(t, "a snapshot is made", func() bool { return len(leader.group.loop.copies.all) > 0 })
		next := add()
		s.await(t, "the next member has a vote", func() bool { return next.group.loop.conf.votes(uint64(next.id)) })
	})
}

// A read that began before a member was removed is answered when the one that
// reads is the only one left.
func TestAReadOfTheLastMember(t *testing.T) {
	tellStory(t, 2, func(s *sim) {
		leader := s.leader(t)
		other := s.choose(func(n *simNode) bool { return n != leader })
		s.link(other.id, leader.id).cut = true
		s.remove(leader, other)
		s.await(t, "nobody leads", func() bool { return !leader.front.leads })
		s.run(s.now + 3*time.Second)

		answered := false
		leader.group.whenFresh(func(err error) { answered = err == nil })
		s.heal()
		s.ask(leader, func(done func(error)) error {
			done(nil)
			return leader.group.loop.node.Campaign()
		})
		s.await(t, "one is left, and leads", func() bool { return leader.group.alone.Load() })
		s.await(t, "the read is answered", func() bool { return answered })
	})
}

// Of what was proposed while the lead was being handed over, nothing is taken
// behind something that was refused: a session's puts would change places.
func TestRefusedInOrder(t *testing.T) {
	tellStory(t, 3, func(s *sim) {
		leader := s.leader(t)
		heir := s.choose(func(n *simNode) bool { return n != leader })
		s.link(leader.id, heir.id).cut = true
		g := leader.group
		s.ask(leader, func(done func(error)) error { return g.beginTransfer(uint64(heir.id), done) })
		// The tick that gives it up is due in the turn in which they are proposed.
		s.await(t, "all but one tick", func() bool { return g.loop.transfer.ticks == electionTicks-1 })
		leader.jammed = true
		s.await(t, "the last tick", func() bool { return len(g.loop.ticks) == 1 })
		outcomes := map[string]error{}
		for i := range 5 {
			leader.propose(fmt.Sprint(i), outcomes)
		}
		leader.jammed = false
		leader.turn()
		s.run(s.now + time.Second)
		require.Len(t, outcomes, 5)
		refused := false
		for i := range 5 {
			err := outcomes[fmt.Sprint(i)]
			require.False(t, refused && err == nil, "put %d is taken, and one before it was refused: %v", i, outcomes)
			refused = refused || err != nil
		}
		require.True(t, refused)
		require.True(t, leader.front.leads, "it leads again")
	})
}

// A leader sends the entry that gives a member its vote, and one more, and loses its
// power before that one is on its disk and before the member has heard that the first
// is committed. Then the member has the longest log and does not know that it may
// lead: it learns it from who asks for its vote.
func TestAVoteNotHeardOf(t *testing.T) {
	tellStory(t, 1, func(s *sim) {
		leader := s.leader(t)
		member := s.addNode(2, simImage{})
		member.start()
		s.ask(leader, func(done func(error)) error { return leader.group.beginAdd(2, nil, done) })
		s.await(t, "the leader gives it a vote", func() bool { return leader.group.loop.conf.votes(2) })
		require.False(t, member.group.loop.conf.votes(2))
		leader.crash()
		member.crash()
		s.run(s.now + time.Second) // nothing is on its way any more

		entries, err := leader.log.Entries(member.log.last()+1, leader.log.last()+1, 1<<20)
		require.NoError(t, err)
		last := entries[len(entries)-1]
		entries = append(entries, LogEntry{Index: last.Index + 1, Term: last.Term})
		require.NoError(t, member.log.Append(entries, nil))
		require.NoError(t, member.log.Sync())
		member.start()
		leader.start()
		s.await(t, "somebody leads", func() bool { return s.choose(isLeading) != nil })
		require.True(t, member.front.leads, "it has the longest log")
		s.await(t, "both have a vote", func() bool {
			return member.group.loop.conf.votes(2) && leader.group.loop.conf.votes(2) && !leader.group.loop.conf.joint
		})
	})
}
