package replica

import (
	"context"

	"github.com/gearsfs/gearsfs"
)

// Peers carries messages to the other members of the group.
type Peers interface {
	// Send queues encoded messages for a member, in order. It may drop them, as
	// a network does, never blocks, and owns the slices.
	Send(to gearsfs.MemberID, messages [][]byte)
}

// SnapshotMeta says what a snapshot holds.
type SnapshotMeta struct {
	Index, Term uint64 // of the last entry in it
	Conf        []byte // what Machine.ConfState returns for it
	Data        any    // the maker's: from Make to Send and Drop
}

// Snapshots makes, sends and installs copies of the whole state.
type Snapshots interface {
	// Make begins to copy the state as it is now or a little later; done is
	// called once, from any goroutine.
	Make(done func(SnapshotMeta, error))
	// Send has a member fetch a snapshot. The message is for that member's
	// Group.Receive, once it has everything. Done is called once, from any
	// goroutine: with nil when the member has installed it.
	Send(to gearsfs.MemberID, message []byte, meta SnapshotMeta, done func(error))
	// Drop says that a snapshot that was made is not needed any more.
	Drop(meta SnapshotMeta)
	// Install replaces state and log by the snapshot that was fetched and whose
	// last entry is that one; hard is the hard state for the log. All of it is
	// on disk when it returns, and Machine.Applied is that entry. It is called
	// on the loop's goroutine.
	Install(index, term uint64, hard []byte) error
}

// Receive takes a raft message that a peer sent. It never blocks and owns the
// slice; what is no message, or too much at once, is dropped, since raft
// repeats what matters.
func (g *Group) Receive(message []byte) {}

// Unreachable says that what was last sent to a member may be lost.
func (g *Group) Unreachable(member gearsfs.MemberID) {}

// Died says that a member's process is known to be gone. If it led, the others
// need not wait until they miss it.
func (g *Group) Died(member gearsfs.MemberID) {}

// AddLearner adds a member; it becomes a voter by itself when it has caught up.
func (g *Group) AddLearner(ctx context.Context, id gearsfs.MemberID, change []byte) error {
	return gearsfs.ErrUnsupported
}

// RemoveMember removes a member.
func (g *Group) RemoveMember(ctx context.Context, id gearsfs.MemberID, change []byte) error {
	return gearsfs.ErrUnsupported
}

// Transfer makes another voter lead and returns when it does.
func (g *Group) Transfer(ctx context.Context, to gearsfs.MemberID) error {
	return gearsfs.ErrUnsupported
}
