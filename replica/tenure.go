package replica

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"time"

	cryptorand "crypto/rand"

	"go.etcd.io/raft/v3"

	"github.com/gearsfs/gearsfs"
)

// How long Close works for a majority that may not be there, each for what is
// in flight and for handing its place to another.
const endingTimeout = time.Second

// campaigning is the hurry after the leader's process died, or after an election that
// may have been split.
type campaigning struct {
	due   <-chan time.Time
	tries int
}

// campaignTries bounds the hurried elections; then the usual timeout decides.
const campaignTries = 6

// Who may have been one of several candidates waits as if it had tried before: 20 to
// 100 ms where it has lost, and 80 to 400 while votes may still come, which other
// nodes' disks and links delay.
const (
	lostTries = 2
	openTries = 4
)

// transfer is the handing over of the lead that is on its way.
type transfer struct {
	to    uint64
	ticks int
	done  func(error)
}

// ending is what is left to do before a Close.
type ending struct {
	due     <-chan time.Time
	late    bool
	handing bool // another node is asked to take over
}

// seed makes the Group's own random choices.
func (g *Group) seed() error {
	seed := uint64(g.cfg.Seed)
	var b [16]byte
	if _, err := cryptorand.Read(b[:]); err != nil {
		return fmt.Errorf("seed: %w", err)
	}
	if seed == 0 {
		seed = binary.BigEndian.Uint64(b[:8])
	}
	g.loop.rand = rand.New(rand.NewPCG(seed, g.cfg.ID))
	g.loop.reads.life = binary.BigEndian.Uint64(b[8:])
	return nil
}

// leaderChanged notes who leads. A tenure ends here; it begins in beginTenure.
func (g *Group) leaderChanged(s *raft.SoftState) {
	l := &g.loop
	leads := s.RaftState == raft.StateLeader
	if l.tenure && !leads {
		g.endTenure(gearsfs.ErrMaybe.Because("outcome unknown: another node leads the volume now"))
	}
	if s.Lead != l.lead {
		l.lead = s.Lead
		g.status.leader.Store(s.Lead)
		now := g.cfg.Clock()
		g.status.since.Store(&now)
		if g.cfg.LeaderChanged != nil {
			g.cfg.LeaderChanged()
		}
		if l.lead != raft.None {
			g.repeatReads() // the old one did not answer
		}
	}
	contended := l.contends
	l.leads, l.contends = leads, leads || s.RaftState == raft.StateCandidate
	// A candidate has heard from a majority. Where it is not elected, or has to let go
	// of what it won, another asked at the same time. Raft's timeouts are whole ticks,
	// so that two nodes that began together might do so again and again.
	switch c := &l.campaign; {
	case l.lead != raft.None:
		*c = campaigning{}
	case s.RaftState == raft.StateCandidate && c.due == nil:
		c.due = g.world.after(g.hurry(max(c.tries, openTries)))
	case s.RaftState == raft.StateFollower && contended:
		c.due = g.world.after(g.hurry(max(c.tries, lostTries)))
	}
	if l.transfer.done != nil && l.lead == l.transfer.to {
		g.endTransfer(nil)
	}
}

// beginTenure begins to take proposals, once the first entry of this node's own
// term is applied: from then on the state has all that was ever acknowledged,
// and log time is not behind any entry.
func (g *Group) beginTenure() {
	l := &g.loop
	l.tenure = true
	wall, elapsed := max(g.cfg.Clock().UnixNano(), int64(g.time.Load())), g.world.elapsed()
	g.ahead.Store(wall - int64(elapsed))
	l.passed.jumpTo(uint64(max(wall, 0)), elapsed)
	g.mu.Lock()
	g.leading = true
	g.mu.Unlock()
	g.updateAlone()
	g.publish()
	l.ledTerm = l.term
	if g.cfg.Leads != nil {
		g.cfg.Leads(true, l.ledTerm)
	}
}

// passed is what this node knows of the time since the last entry that the state
// machine has seen.
type passed struct {
	time uint64        // log time of that, 0 before the first
	at   time.Duration // world.elapsed when it was applied here
	jump uint64        // in a tenure, before its first entry: see wire.Entry
}

// passTo notes that an entry of that time is applied.
func (g *Group) passTo(time uint64) {
	if p := &g.loop.passed; time > p.time {
		p.time, p.at = time, g.world.elapsed()
	}
}

// jumpTo begins a tenure at that log time. What this node has seen pass since
// the last entry is no part of the jump, so the lead may change as often as it
// likes and a lease still ends.
func (p *passed) jumpTo(time uint64, elapsed time.Duration) {
	p.jump = 0
	if seen := p.time + uint64(elapsed-p.at); p.time != 0 && time > seen {
		p.jump = time - seen
	}
}

// endTenure takes no more proposals and answers what is on its way: nobody
// knows what becomes of what is in flight, the rest was not written.
func (g *Group) endTenure(inFlight error) {
	l := &g.loop
	if !l.tenure {
		return
	}
	l.tenure = false
	g.mu.Lock()
	g.leading = false
	g.mu.Unlock()
	g.updateAlone()
	g.ahead.Store(0)
	batches := l.inflight
	l.inflight, l.flying = nil, 0
	for _, b := range batches {
		b.refuse(inFlight)
	}
	g.refusePending(gearsfs.ErrNotLeader)
	g.refuseCertain(gearsfs.ErrNotLeader)
	g.endChange(gearsfs.ErrMaybe.Because("outcome unknown: another node leads the volume now"))
	g.publish()
	if g.cfg.Leads != nil {
		g.cfg.Leads(false, l.ledTerm)
	}
}

// Died says that a member's process is known to be gone. If it led, this node
// does not wait for an election timeout to miss it.
func (g *Group) Died(member gearsfs.MemberID) {
	g.order(order{do: func() error {
		l := &g.loop
		l.node.ReportUnreachable(uint64(member))
		if l.lead != uint64(member) || l.lead == g.cfg.ID {
			return nil
		}
		// Followers do not vote against a leader that they believe in, not even
		// in the hurry below, so each of them must hear of it by itself.
		if err := l.node.ForgetLeader(); err != nil {
			return fmt.Errorf("raft: %w", err)
		}
		l.campaign = campaigning{due: g.world.after(g.hurry(0))}
		return nil
	}})
}

// hurry is how long to wait before another try, so that two nodes rarely try at
// once: 5 to 25 ms at first.
func (g *Group) hurry(tries int) time.Duration {
	return (5*time.Millisecond + time.Duration(g.loop.rand.Int64N(int64(20*time.Millisecond)))) << tries
}

// campaignAgain tries to be elected while there is no leader.
func (g *Group) campaignAgain() error {
	l := &g.loop
	l.campaign.due = nil
	if l.lead != raft.None || l.campaign.tries >= campaignTries {
		return nil
	}
	if err := l.node.Campaign(); err != nil {
		return fmt.Errorf("raft: %w", err)
	}
	l.campaign.tries++
	l.campaign.due = g.world.after(g.hurry(l.campaign.tries))
	return nil
}

// Transfer makes the voter to lead and returns when it does. It waits until ctx
// ends. Errors: gearsfs.ErrNotLeader where this node does not lead,
// gearsfs.ErrNotMember where to is no voter, gearsfs.ErrBusy where another
// transfer is on its way or to did not take over in time; ctx's, and
// gearsfs.ErrClosed.
func (g *Group) Transfer(ctx context.Context, to gearsfs.MemberID) error {
	return g.ask(ctx, func(done func(error)) error { return g.beginTransfer(uint64(to), done) })
}

func (g *Group) beginTransfer(to uint64, done func(error)) error {
	l := &g.loop
	switch {
	case !l.tenure:
		done(gearsfs.ErrNotLeader)
	case to == g.cfg.ID:
		done(nil)
	case !l.conf.votes(to):
		done(gearsfs.ErrNotMember.Because("member %x has no vote", to))
	case l.transfer.done != nil:
		done(gearsfs.ErrBusy.Because("the volume is being handed to member %x", l.transfer.to))
	default:
		l.transfer = transfer{to: to, done: done}
		l.node.TransferLeader(to)
	}
	return nil
}

// watchTransfer ends a transfer that raft gave up, or that another node won.
func (g *Group) watchTransfer() {
	l := &g.loop
	if l.transfer.done == nil {
		return
	}
	l.transfer.ticks++
	if l.leads && l.node.BasicStatus().LeadTransferee == raft.None || l.transfer.ticks > 3*electionTicks {
		g.endTransfer(gearsfs.ErrBusy.Because("member %x did not take over in time", l.transfer.to))
	}
}

func (g *Group) endTransfer(err error) {
	if done := g.loop.transfer.done; done != nil {
		g.loop.transfer = transfer{}
		done(err)
	}
}

// mayStop reports whether a closing Group that is idle has nothing left to do. A
// leader of several finishes what is in flight, and then has another node lead,
// so that nobody has to miss it first; both only for a while.
func (g *Group) mayStop() (bool, error) {
	l := &g.loop
	e := &l.ending
	waiting := len(l.inflight) > 0 || g.waiting()
	switch {
	case !waiting && (!l.tenure || l.conf.sole(g.cfg.ID)), e.late:
		return true, nil
	case l.conf.sole(g.cfg.ID): // the state's flush is behind
		return false, nil
	case e.due == nil:
		e.due = g.world.after(endingTimeout)
	}
	if waiting || e.handing || l.transfer.done != nil {
		return false, nil
	}
	to := g.heir()
	if to == raft.None {
		return true, nil
	}
	e.handing = true
	e.due = g.world.after(endingTimeout)
	l.node.TransferLeader(to)
	return false, g.pump()
}

func (g *Group) waiting() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.pending) > 0
}

// heir is the voter that knows most of the log, of those that were heard of
// lately.
func (g *Group) heir() uint64 {
	var best, match uint64
	g.eachMember(func(m member) {
		if m.id != g.cfg.ID && !m.learner && m.active && m.match > match {
			best, match = m.id, m.match
		}
	})
	return best
}
