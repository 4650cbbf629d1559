package dgm

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/persist"
	"github.com/gearsfs/gearsfs/wire"
)

const (
	askTimeout    = time.Second            // for another node's status
	changeTimeout = 10 * time.Second       // for the group to take or lose a member
	busyPause     = 100 * time.Millisecond // while another change of the group is on its way
	handOverLimit = 5 * time.Second        // for another node to lead
)

// nodeOp answers what is asked about the node or the cluster, not of a session:
// status and nodes by any node for anybody, the rest by the one that leads, for
// the volume's owner, root, and the far end where it is trusted. done is called
// exactly once, maybe before nodeOp returns.
func (v *Volume) nodeOp(trusted bool, who gearsfs.Caller, op *wire.NodeOp, done func(*wire.Response)) {
	if !v.enter() {
		done(failure(gearsfs.ErrClosed))
		return
	}
	v.owned.Go(func() {
		defer v.leave()
		resp, err := v.answerNode(trusted, who, op)
		if err != nil {
			if errors.Is(err, gearsfs.ErrMaybe) {
				err = errNotLeader // it is asked again, and does nothing twice
			}
			resp = failure(err)
			if errors.Is(err, gearsfs.ErrNotLeader) {
				resp.Leader = v.leaderAddrs()
			}
		}
		resp.Index = v.progress.index.Load()
		done(resp)
	})
}

func (v *Volume) answerNode(trusted bool, who gearsfs.Caller, op *wire.NodeOp) (*wire.Response, error) {
	ctx := v.busy
	switch kind := op.Op.(type) {
	case *wire.NodeOp_Status:
		return &wire.Response{Status: statusToWire(v.nodeStatus())}, nil
	case *wire.NodeOp_Nodes:
		v.reads <- struct{}{} // it is bounded, and costs every node something
		defer func() { <-v.reads }()
		return v.nodes(ctx)
	case *wire.NodeOp_Whole:
		if !trusted {
			return nil, errUntrusted
		}
		return v.answerWhole(ctx)
	case *wire.NodeOp_StateHash, *wire.NodeOp_Verdict:
		if !trusted {
			return nil, errUntrusted
		}
		return v.mesh.AnswerVerify(ctx, op)
	case *wire.NodeOp_Join:
		if !trusted {
			return nil, errUntrusted
		}
		return v.admitNode(ctx, kind.Join)
	}
	if err := v.mayManage(trusted, who); err != nil {
		return nil, err
	}
	switch kind := op.Op.(type) {
	case *wire.NodeOp_Remove:
		return &wire.Response{}, v.removeNode(ctx, kind.Remove)
	case *wire.NodeOp_Transfer:
		return &wire.Response{}, v.transferLead(ctx, kind.Transfer)
	case *wire.NodeOp_Fsck:
		if kind.Fsck.Progress {
			return &wire.Response{Fsck: fsckToWire(v.payloads.Progress())}, nil
		}
	case *wire.NodeOp_Verify:
		if v.tenure.Load() == nil {
			return nil, errNotLeader
		}
		return &wire.Response{}, v.mesh.Compare(ctx)
	}
	return nil, gearsfs.ErrUnknownOp
}

// mayManage lets those change the cluster who may name the volume's remotes.
func (v *Volume) mayManage(trusted bool, who gearsfs.Caller) error {
	if trusted || who.UID == 0 {
		return nil
	}
	root, err := v.machine.GetAttr(gearsfs.RootIno)
	if err == nil && who.UID != root.UID {
		err = gearsfs.ErrPermission.Because("only the volume's owner may change its nodes")
	}
	return err
}

// reserved and above are ids that raft needs itself.
const reserved gearsfs.MemberID = math.MaxUint64 - 1

// memberID is the id of the member that a node with that data becomes.
func memberID(node persist.ID) gearsfs.MemberID {
	return gearsfs.MemberID(binary.BigEndian.Uint64(node[:8]))
}

// admitNode adds a node to the volume, as one that has no vote until it has
// caught up. A node that is a member already is told the same again: its answer
// may have been lost.
func (v *Volume) admitNode(ctx context.Context, join *wire.Join) (*wire.Response, error) {
	if v.tenure.Load() == nil {
		return nil, errNotLeader
	}
	v.joining.Lock()
	defer v.joining.Unlock()
	self := join.GetSelf()
	if any, err := v.machine.AnyInMemory(); err != nil || any {
		if err == nil {
			err = gearsfs.ErrUnsupported.Because("the volume has streams in memory: no node can be added while it has (gearsfs set --store disk)")
		}
		return nil, err
	}
	known, err := v.checkJoin(join)
	if err != nil {
		return nil, err
	}
	if !known {
		change, err := (&wire.MemberChange{Add: self}).MarshalVT()
		if err != nil {
			return nil, gearsfs.ErrInvalid.Because("%v", err)
		}
		err = v.changeGroup(ctx, func(ctx context.Context) error {
			return v.group.AddLearner(ctx, gearsfs.MemberID(self.Id), change)
		})
		if err != nil {
			return nil, err
		}
		v.log.Info("a node joins the volume", "node", self.Name, "addrs", self.Addrs)
	}
	members, err := v.machine.Members()
	if err != nil {
		return nil, err
	}
	joined := &wire.Joined{
		VolumeId: v.machine.VolumeID(), Volume: v.machine.VolumeName(), Member: self.Id, Format: persist.FormatVersion,
	}
	for _, m := range members {
		joined.Members = append(joined.Members, memberToWire(m))
	}
	return &wire.Response{Joined: joined}, nil
}

// checkJoin says whether a node that wants to join is a member already, or why
// it can't be one.
func (v *Volume) checkJoin(join *wire.Join) (known bool, err error) {
	self := join.GetSelf()
	var node persist.ID
	if len(self.GetNodeId()) != len(node) || self.GetName() == "" || self.GetAddrs() == "" {
		return false, gearsfs.ErrInvalid.Because("a node that joins says its name, its id and its addresses")
	}
	copy(node[:], self.NodeId)
	id := gearsfs.MemberID(self.Id)
	switch {
	case join.Format != 0 && join.Format != persist.FormatVersion:
		return false, gearsfs.ErrFormat.Because("the data of %s is of format version %d, this volume's of %d", self.Name, join.Format, persist.FormatVersion)
	case len(join.VolumeId) > 0 && !slices.Equal(join.VolumeId, v.machine.VolumeID()):
		return false, gearsfs.ErrForeign.Because("%s has data of another volume: let it join with new data", self.Name)
	}
	switch row, ok := v.machine.MemberRow(id); {
	case ok && row.Removed:
		return false, gearsfs.ErrNotMember.Because("%s was removed from the volume: let it join with new data", self.Name)
	case ok && !slices.Equal(row.NodeId, self.NodeId):
		return false, gearsfs.ErrForeign.Because("member %x has other data", uint64(id))
	case ok:
		known = true
	case id != memberID(node) || id <= founder || id >= reserved:
		return false, gearsfs.ErrInvalid.Because("the id of %s is no member's: let it join with new data", self.Name)
	}
	members, err := v.machine.Members()
	if err != nil {
		return false, err
	}
	for _, m := range members {
		if m.Name == self.Name && m.ID != id {
			return false, gearsfs.ErrExists.Because("the volume has a node with the name %s already (%s at %s, not %s at %s): "+
				"if its data is lost, remove it first with \"gearsfs nodes remove %s\"; else use another name",
				m.Name, persist.ID(m.NodeID), m.Addrs, node, self.Addrs, m.Name)
		}
	}
	return known, nil
}

// changeGroup has the group change who is in it, after other changes that are
// on their way.
func (v *Volume) changeGroup(ctx context.Context, change func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, changeTimeout)
	defer cancel()
	for {
		err := change(ctx)
		if errors.Is(err, context.DeadlineExceeded) {
			return gearsfs.ErrBusy.Because("the nodes did not agree on it within %v: is a majority of them running?", changeTimeout)
		}
		if !errors.Is(err, gearsfs.ErrBusy) {
			return err
		}
		select {
		case <-time.After(busyPause):
		case <-ctx.Done():
			return err
		}
	}
}

// removeNode removes a member for ever.
func (v *Volume) removeNode(ctx context.Context, name string) error {
	if v.tenure.Load() == nil {
		return errNotLeader
	}
	v.joining.Lock()
	defer v.joining.Unlock()
	m, err := v.memberNamed(name)
	if err != nil {
		return err
	}
	if m.ID == v.member {
		return gearsfs.ErrBusy.Because("%s leads the volume: let another lead first, with \"gearsfs nodes transfer NAME\"", name)
	}
	change, err := (&wire.MemberChange{Remove: uint64(m.ID)}).MarshalVT()
	if err != nil {
		return gearsfs.ErrInvalid.Because("%v", err)
	}
	err = v.changeGroup(ctx, func(ctx context.Context) error { return v.group.RemoveMember(ctx, m.ID, change) })
	if err == nil {
		v.log.Info("a node was removed from the volume", "node", name)
	}
	return err
}

// transferLead lets another member lead.
func (v *Volume) transferLead(ctx context.Context, name string) error {
	if v.tenure.Load() == nil {
		return errNotLeader
	}
	m, err := v.memberNamed(name)
	if err != nil || m.ID == v.member {
		return err
	}
	if !slices.Contains(v.group.Status().Voters, m.ID) {
		return gearsfs.ErrBusy.Because("%s has no vote yet: it is catching up", name)
	}
	ctx, cancel := context.WithTimeout(ctx, handOverLimit)
	defer cancel()
	err = v.group.Transfer(ctx, m.ID)
	if errors.Is(err, context.DeadlineExceeded) {
		return gearsfs.ErrNoNode.Because("%s did not take over within %v", name, handOverLimit)
	}
	return err
}

func (v *Volume) memberNamed(name string) (gearsfs.Member, error) {
	members, err := v.machine.Members()
	if err != nil {
		return gearsfs.Member{}, err
	}
	for _, m := range members {
		if m.Name == name {
			return m, nil
		}
	}
	return gearsfs.Member{}, gearsfs.ErrNotFound.Because("the volume has no node with the name %s", name)
}

// checkMember refuses who is not a member, or not any more.
func (v *Volume) checkMember(id gearsfs.MemberID) error {
	row, ok := v.machine.MemberRow(id)
	switch {
	case !ok:
		return gearsfs.ErrNotMember
	case row.Removed:
		return gearsfs.ErrNotMember.Because("%s was removed from the volume", row.Name)
	}
	return nil
}

// nodes asks every member how it is. Who they are is no older than what any that
// answers has committed, unless this replica is more than askTimeout behind.
func (v *Volume) nodes(ctx context.Context) (*wire.Response, error) {
	members, err := v.machine.Members()
	if err != nil {
		return nil, err
	}
	infos := v.askNodes(ctx, members)
	if v.awaitNewest(ctx, infos) == nil {
		now, err := v.machine.Members()
		if err != nil {
			return nil, err
		}
		if !reflect.DeepEqual(members, now) {
			infos = v.askNodes(ctx, now)
		}
	}
	v.judge(infos)
	return &wire.Response{Nodes: infos}, nil
}

func (v *Volume) askNodes(ctx context.Context, members []gearsfs.Member) []*wire.NodeInfo {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	infos := make([]*wire.NodeInfo, len(members))
	var all sync.WaitGroup
	for i, m := range members {
		all.Go(func() { infos[i] = v.askNode(ctx, m) })
	}
	all.Wait()
	return infos
}

// awaitNewest returns when this replica has applied what the nodes have committed.
func (v *Volume) awaitNewest(ctx context.Context, nodes []*wire.NodeInfo) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	return v.progress.await(ctx, commitOf(nodes))
}

// commitOf is the newest index that nodes have committed.
func commitOf(nodes []*wire.NodeInfo) (commit uint64) {
	for _, n := range nodes {
		commit = max(commit, n.Commit)
	}
	return commit
}

// askNode asks one member how it is.
func (v *Volume) askNode(ctx context.Context, m gearsfs.Member) *wire.NodeInfo {
	info := &wire.NodeInfo{Member: memberToWire(m)}
	var s *wire.NodeStatus
	if m.ID == v.member {
		s = statusToWire(v.nodeStatus())
	} else {
		resp, err := v.mesh.Ask(ctx, m.ID, &wire.NodeOp{Op: &wire.NodeOp_Status{Status: true}})
		if errors.Is(err, context.DeadlineExceeded) {
			err = fmt.Errorf("no answer within %v", askTimeout)
		}
		if err == nil && resp.Status == nil {
			err = gearsfs.ErrProtocol
		}
		if err != nil {
			info.Trouble = err.Error()
			return info
		}
		s = resp.Status
	}
	info.Reachable = true
	info.Role, info.Version, info.Term = s.Role, s.Version, s.Term
	info.Commit, info.Applied, info.Last = s.Commit, s.Applied, s.Last
	info.LogBytes, info.StateBytes = s.LogBytes, s.StateBytes
	if len(s.Warnings) > 0 {
		info.Trouble = s.Warnings[0]
	}
	return info
}

// judge says how far the nodes are behind, and what those are that did not
// answer.
func (v *Volume) judge(infos []*wire.NodeInfo) {
	g, commit := v.group.Status(), commitOf(infos)
	for _, n := range infos {
		if n.Role == "" {
			n.Role = roleLearner
			if slices.Contains(g.Voters, gearsfs.MemberID(n.Member.Id)) {
				n.Role = roleVoter
			}
			continue
		}
		if n.Applied < commit {
			n.LagEntries = commit - n.Applied
			n.LagBytes = v.cfg.Data.Log.BytesFrom(n.Applied)
		}
	}
}

func memberToWire(m gearsfs.Member) *wire.Member {
	return &wire.Member{Id: uint64(m.ID), Name: m.Name, NodeId: m.NodeID[:], Addrs: m.Addrs}
}

// noteMembers has the member table say of the members what they say of
// themselves: a node may come back at other addresses. Only the leader does it.
func (v *Volume) noteMembers() {
	t := v.tenure.Load()
	if t == nil {
		return
	}
	for _, self := range v.mesh.Said() {
		row, ok := v.machine.MemberRow(gearsfs.MemberID(self.Id))
		if !ok || row.Removed || row.Name == self.Name && row.Addrs == self.Addrs {
			continue
		}
		t.order(nil, &wire.Command{Checked: true, Op: &wire.Command_SetMember{
			SetMember: &wire.SetMember{Member: self},
		}}, nil)
	}
}
