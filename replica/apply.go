package replica

import (
	"fmt"
	"slices"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/wire"
)

// apply puts committed entries into the state machine and answers those that
// were proposed here.
func (g *Group) apply(m *raftpb.Message) error {
	for _, e := range m.GetEntries() {
		if err := g.applyEntry(e); err != nil {
			return err
		}
		g.store.forget(e.GetIndex())
		g.loop.flush.applied(len(e.GetData()))
	}
	g.askFlush()
	return g.respond(m.GetResponses())
}

func (g *Group) applyEntry(e *raftpb.Entry) error {
	own, err := g.own(e)
	if err != nil {
		return err
	}
	switch {
	case own != nil:
		return g.applyOwn(own)
	case e.GetType() != raftpb.EntryNormal:
		return g.applyConf(e)
	}
	entry := new(wire.Entry)
	if err := entry.UnmarshalVTUnsafe(e.GetData()); err != nil {
		return gearsfs.ErrDamaged.Because("entry %d: %v", e.GetIndex(), err)
	}
	if entry.Time > g.time.Load() {
		g.time.Store(entry.Time)
	}
	if _, err := g.cfg.Machine.Apply(e.GetIndex(), e.GetTerm(), entry); err != nil {
		return fmt.Errorf("state machine: %w", err)
	}
	g.status.applied.Store(e.GetIndex())
	return nil
}

// own returns the batch that became e. Batches whose place in the log another
// leader's entry took are answered: they were not applied there, but a copy of
// them may be underway in a peer's log.
func (g *Group) own(e *raftpb.Entry) (*batch, error) {
	l := &g.loop
	for len(l.inflight) > 0 && l.inflight[0].index <= e.GetIndex() {
		b := l.inflight[0]
		l.inflight = slices.Delete(l.inflight, 0, 1)
		if b.index == e.GetIndex() && b.term == e.GetTerm() {
			return b, nil
		}
		b.refuse(gearsfs.ErrMaybe)
	}
	return nil, nil
}

// applyOwn applies an entry without decoding it, and answers: what need not be
// durable now, the rest when the disk says so.
func (g *Group) applyOwn(b *batch) error {
	var err error
	b.answers, err = g.cfg.Machine.Apply(b.index, b.term, &b.entry)
	if err == nil {
		err = b.checkAnswers()
	}
	if err != nil {
		g.loop.inflight = append(g.loop.inflight, b) // for abandon
		return fmt.Errorf("state machine: %w", err)
	}
	g.status.applied.Store(b.index)
	if g.broken.Load() {
		b.refuse(gearsfs.ErrMaybe)
		return nil
	}
	b.answer(false, nil)
	switch {
	case !b.durable:
	case g.loop.voters > 1: // a majority synced it before it was committed
		b.answer(true, nil)
	case !g.disk.settle(b):
		b.answer(true, gearsfs.ErrMaybe)
	}
	return nil
}

// applyConf changes who is in the group. What a single voter called committed
// may be unsynced, so it is synced before others count on it.
func (g *Group) applyConf(e *raftpb.Entry) error {
	change, err := decodeConf(e)
	if err != nil {
		return gearsfs.ErrDamaged.Because("entry %d: %v", e.GetIndex(), err)
	}
	if g.loop.voters == 1 {
		if err := g.cfg.Log.Sync(); err != nil {
			return fmt.Errorf("sync the log: %w", err)
		}
	}
	conf := g.loop.node.ApplyConfChange(change)
	g.confChanged(conf)
	data, err := proto.MarshalOptions{Deterministic: true}.Marshal(conf)
	if err != nil {
		return fmt.Errorf("encode conf state: %w", err)
	}
	if err := g.cfg.Machine.ApplyConf(e.GetIndex(), e.GetTerm(), data, change.AsV2().GetContext()); err != nil {
		return fmt.Errorf("state machine: %w", err)
	}
	g.status.applied.Store(e.GetIndex())
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

// confChanged notes how many voters there are; ticks are for several.
func (g *Group) confChanged(conf *raftpb.ConfState) {
	l := &g.loop
	voters := map[uint64]bool{}
	for _, id := range append(conf.GetVoters(), conf.GetVotersOutgoing()...) {
		voters[id] = true
	}
	l.voters = len(voters)
	switch {
	case l.voters > 1 && l.ticks == nil:
		l.ticks = g.world.after(tick)
	case l.voters == 1:
		l.ticks = nil
	}
	g.leads(l.node.BasicStatus().RaftState == raft.StateLeader)
}

// leads notes whether this node leads.
func (g *Group) leads(leads bool) { g.alone.Store(leads && g.loop.voters == 1) }

// replay applies what is committed, and elects this node where it is the only
// voter: then all that the log holds is committed, and all of it is applied
// and on disk when replay returns.
func (g *Group) replay() error {
	l := &g.loop
	if err := g.pump(); err != nil {
		return err
	}
	if l.voters != 1 {
		return nil
	}
	if err := l.node.Campaign(); err != nil {
		return fmt.Errorf("raft: %w", err)
	}
	if err := g.pump(); err != nil {
		return err
	}
	if !g.alone.Load() {
		return gearsfs.ErrForeign.Because("this node, %x, is no voter of its own log", g.cfg.ID)
	}
	g.disk.wantAll()
	g.disk.sync()
	return g.failed()
}
