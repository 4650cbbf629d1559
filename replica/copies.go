package replica

import (
	"fmt"
	"slices"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/gearsfs/gearsfs"
)

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

// When the copies that nobody fetches are dropped, and when a copy that failed
// is tried again.
const (
	unusedTicks = 100
	retryTicks  = 10
)

// copies are the snapshots for members that need what is cut off the log. As
// long as they are fetched, the log behind them is kept.
type copies struct {
	making bool
	floor  uint64 // applied when the making began
	all    []*stateCopy
	pause  int // ticks until another may be made or sent
}

// stateCopy is a snapshot that was made.
type stateCopy struct {
	meta     SnapshotMeta
	snapshot *raftpb.Snapshot
	conf     membership // as of the snapshot
	sends    int
	unused   int // ticks
}

// snapshot gives raft the newest snapshot from which the log goes on, or begins
// to make one; then raft asks again with the next heartbeat. A snapshot from
// before a member was added is none for it: raft refuses to install one of a
// group that the receiver is not in.
func (g *Group) snapshot() (*raftpb.Snapshot, error) {
	c := &g.loop.copies
	if g.cfg.Snapshots == nil || c.making || c.pause > 0 {
		return nil, raft.ErrSnapshotTemporarilyUnavailable
	}
	if n := len(c.all); n > 0 {
		if s := c.all[n-1]; s.meta.Index+1 >= g.cfg.Log.First() && s.conf.hasAll(&g.loop.conf) {
			return s.snapshot, nil
		}
	}
	c.making, c.floor = true, g.status.applied.Load()
	g.cfg.Snapshots.Make(func(meta SnapshotMeta, err error) {
		g.order(order{
			do: func() error { return g.copyMade(meta, err) },
			drop: func() {
				if err == nil {
					g.cfg.Snapshots.Drop(meta)
				}
			},
		})
	})
	return nil, raft.ErrSnapshotTemporarilyUnavailable
}

func (g *Group) copyMade(meta SnapshotMeta, err error) error {
	c := &g.loop.copies
	c.making = false
	if err != nil {
		g.cfg.Logger.Warn("a snapshot for a member can't be made", "error", err)
		c.pause = retryTicks
		return nil
	}
	conf := new(raftpb.ConfState)
	if err := proto.Unmarshal(meta.Conf, conf); err != nil {
		return gearsfs.ErrDamaged.Because("conf state of a snapshot: %v", err)
	}
	s := &stateCopy{meta: meta, snapshot: &raftpb.Snapshot{
		Metadata: &raftpb.SnapshotMetadata{ConfState: conf, Index: &meta.Index, Term: &meta.Term},
	}}
	s.conf.set(conf)
	c.all = append(c.all, s)
	return nil
}

// sendCopy has the member that m goes to fetch the snapshot in it.
func (g *Group) sendCopy(m *raftpb.Message) error {
	c := &g.loop.copies
	to, index := m.GetTo(), m.GetSnapshot().GetMetadata().GetIndex()
	i := slices.IndexFunc(c.all, func(s *stateCopy) bool { return s.meta.Index == index })
	if i < 0 {
		g.loop.node.ReportSnapshot(to, raft.SnapshotFailure)
		return nil
	}
	message, err := proto.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode message: %w", err)
	}
	s := c.all[i]
	s.sends++
	g.cfg.Logger.Info("a member fetches a snapshot", "member", to, "index", index)
	g.cfg.Snapshots.Send(gearsfs.MemberID(to), message, s.meta, func(err error) {
		g.order(order{do: func() error { g.copySent(to, s, err); return nil }})
	})
	return nil
}

func (g *Group) copySent(to uint64, s *stateCopy, err error) {
	c := &g.loop.copies
	s.sends--
	status := raft.SnapshotFinish
	if err != nil {
		g.cfg.Logger.Warn("a member could not have a snapshot", "member", to, "index", s.meta.Index, "error", err)
		status = raft.SnapshotFailure
		c.pause = retryTicks
	}
	g.loop.node.ReportSnapshot(to, status)
	if err == nil && s.sends == 0 {
		g.drop(s)
	}
}

// tickCopies drops what nobody fetches.
func (g *Group) tickCopies() {
	c := &g.loop.copies
	c.pause = max(0, c.pause-1)
	for _, s := range slices.Clone(c.all) {
		if s.unused++; s.sends > 0 {
			s.unused = 0
		}
		if s.unused >= unusedTicks {
			g.drop(s)
		}
	}
}

// drop gives s back, once.
func (g *Group) drop(s *stateCopy) {
	c := &g.loop.copies
	if i := slices.Index(c.all, s); i >= 0 {
		c.all = slices.Delete(c.all, i, i+1)
		g.cfg.Snapshots.Drop(s.meta)
	}
}

func (g *Group) dropCopies() {
	for _, s := range g.loop.copies.all {
		g.cfg.Snapshots.Drop(s.meta)
	}
	g.loop.copies.all = nil
}

// keptFrom is the index of the last entry that no copy of the state needs.
func (c *copies) keptFrom(applied uint64) uint64 {
	if c.making {
		applied = min(applied, c.floor)
	}
	for _, s := range c.all {
		applied = min(applied, s.meta.Index)
	}
	return applied
}

// install replaces state and log by the snapshot in m, which is on disk then.
func (g *Group) install(m *raftpb.Message) error {
	l := &g.loop
	meta := m.GetSnapshot().GetMetadata()
	index, term := meta.GetIndex(), meta.GetTerm()
	if g.cfg.Snapshots == nil {
		return gearsfs.ErrUnsupported.Because("a snapshot was sent to a node that takes none")
	}
	if m.Term != nil {
		l.hardTerm, l.hardVote = m.GetTerm(), m.GetVote()
	}
	l.hardCommit = index
	hard, err := encodeHard(l.hardTerm, l.hardVote, index)
	if err != nil {
		return err
	}
	if err := g.cfg.Snapshots.Install(index, term, hard); err != nil {
		return fmt.Errorf("install a snapshot: %w", err)
	}
	if i, t := g.cfg.Machine.Applied(); i != index || t != term || g.cfg.Log.Last() != index || g.cfg.Log.First() != index+1 {
		return gearsfs.ErrDamaged.Because("the snapshot of entry %d made a state of %d and a log that ends at %d",
			index, i, g.cfg.Log.Last())
	}
	g.disk.installed(index)
	g.store.forget(index)
	g.store.recent = nil
	g.time.Store(max(g.time.Load(), g.cfg.Machine.LogTime()))
	g.passTo(g.cfg.Machine.LogTime())
	g.status.applied.Store(index)
	l.flush.bytes, l.flush.mark = 0, 0
	g.confChanged(meta.GetConfState())
	return nil
}
