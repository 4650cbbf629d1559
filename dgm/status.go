package dgm

import (
	"context"
	"crypto/tls"
	"fmt"
	"slices"
	"time"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/replica"
	"github.com/gearsfs/gearsfs/wire"
)

// Roles of a node.
const (
	roleLeader  = "leader"
	roleVoter   = "voter"
	roleLearner = "learner"
	roleRemoved = "removed"
)

// self is what this node says of itself.
func (v *Volume) self() *wire.Member {
	id := v.cfg.Data.Identity()
	return &wire.Member{Id: uint64(v.member), Name: id.Name, NodeId: id.Node[:], Addrs: v.cfg.Addrs}
}

// asMember is what a Local says of itself to a leader on another node, and how
// it gets there.
func (v *Volume) asMember() (member gearsfs.MemberID, volume []byte, tlsConfig *tls.Config) {
	id := v.cfg.Data.Identity()
	return v.member, id.Volume[:], v.cfg.TLS
}

// nodeAddrs are the addresses of the volume's nodes, one text for each.
func (v *Volume) nodeAddrs() []string {
	members, err := v.machine.Members()
	if err != nil {
		return nil // the client keeps to the addresses that it has
	}
	var addrs []string
	for _, m := range members {
		if m.Addrs != "" {
			addrs = append(addrs, m.Addrs)
		}
	}
	return addrs
}

// nodeStatus gathers what Status shows.
func (v *Volume) nodeStatus() gearsfs.NodeStatus {
	g := v.group.Status()
	s := gearsfs.NodeStatus{
		Name: v.cfg.Data.Identity().Name, Volume: v.machine.VolumeName(), Version: v.cfg.Version,
		Role: roleOf(v.member, gearsfs.MemberID(g.Leader), g.Voters), Member: v.member,
		Term: g.Term, LeaderSince: g.LeaderSince,
		Commit: g.Commit, Applied: g.Applied, Durable: g.Durable, Last: g.Last,
		LogBytes: g.LogBytes, StateBytes: v.cfg.Data.State.Bytes(),
		Usage: v.usage(), Started: v.started, Voters: uint32(len(g.Voters)), Learners: uint32(len(g.Learners)),
	}
	if row, ok := v.machine.MemberRow(gearsfs.MemberID(g.Leader)); ok {
		s.Leader = row.Name
	}
	if t := v.tenure.Load(); t != nil {
		s.Sessions, s.Waits = t.counts()
	}
	if g.Removed {
		s.Role, s.Member = roleRemoved, 0
	}
	s.Warnings = v.warnings(g)
	return s
}

func roleOf(id, leader gearsfs.MemberID, voters []gearsfs.MemberID) string {
	switch {
	case id == leader:
		return roleLeader
	case slices.Contains(voters, id):
		return roleVoter
	}
	return roleLearner
}

// counts are the sessions with a client and what they wait for.
func (t *tenure) counts() (sessions, waits uint32) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return uint32(len(t.sessions) - len(t.absent)), uint32(t.waits.len())
}

// warnings are what somebody should do something about, the worst first.
func (v *Volume) warnings(g replica.Status) []string {
	var w []string
	w = append(w, v.mesh.Warnings()...)
	w = append(w, v.payloads.Warnings()...)
	if voters := len(g.Voters); g.Leader == 0 && voters > 0 {
		w = append(w, fmt.Sprintf("no node leads the volume: changes wait until %d of its %d voters reach each other", voters/2+1, voters))
	}
	if v.space.full() {
		w = append(w, gearsfs.ErrNoSpace.Reason)
	}
	if len(g.Voters) == 2 {
		w = append(w, "two voters: losing one stops the volume: add a third")
	}
	return w
}

// WaitVoter returns when this node has a vote in its volume's group, and knows that
// the group needs no old majority besides the new one any more: from then on any
// minority may die. It tells progress, where that is not nil, about once a second
// how far it is. Errors: gearsfs.ErrNotMember where the node was removed, ctx's, and
// gearsfs.ErrClosed.
func (v *Volume) WaitVoter(ctx context.Context, progress func(gearsfs.NodeStatus)) error {
	again := time.NewTicker(time.Second)
	defer again.Stop()
	for {
		v.mu.Lock()
		noted := v.membersNoted
		v.mu.Unlock()
		if !v.enter() {
			return gearsfs.ErrClosed
		}
		group := v.group.Status()
		row, ok := v.machine.MemberRow(v.member)
		var s gearsfs.NodeStatus
		if progress != nil {
			s = v.nodeStatus()
		}
		v.leave()
		switch {
		case slices.Contains(group.Voters, v.member) && !group.Joint:
			return nil
		case ok && row.Removed:
			return gearsfs.ErrNotMember.Because("%s was removed from the volume", row.Name)
		}
		if progress != nil {
			progress(s)
		}
		select {
		case <-noted:
		case <-again.C:
		case <-ctx.Done():
			return ctx.Err()
		case <-v.busy.Done():
			return gearsfs.ErrClosed
		}
	}
}
