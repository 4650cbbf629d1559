package replica

import (
	"fmt"
	"slices"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/wire"
)

// apply puts committed entries into the state machine and answers those that
// were proposed here.
func (g *Group) apply(m *raftpb.Message) error {
	var term uint64
	for _, e := range m.GetEntries() {
		if err := g.applyEntry(e); err != nil {
			return err
		}
		g.store.forget(e.GetIndex())
		g.loop.flush.applied(len(e.GetData()), &g.limits)
		term = e.GetTerm()
	}
	if l := &g.loop; l.leads && !l.tenure && term == l.term {
		g.beginTenure()
	}
	g.askFlush()
	return g.respond(m.GetResponses())
}

func (g *Group) applyEntry(e *raftpb.Entry) error {
	if own := g.own(e); own != nil {
		return g.applyOwn(own)
	}
	if e.GetType() != raftpb.EntryNormal {
		return g.applyConf(e)
	}
	// Copied out: what the state machine keeps of it would hold the whole of the
	// frame, or the piece of the log, that it came in.
	entry := new(wire.Entry)
	if err := entry.UnmarshalVT(e.GetData()); err != nil {
		return gearsfs.ErrDamaged.Because("entry %d: %v", e.GetIndex(), err)
	}
	if entry.Time > g.time.Load() {
		g.time.Store(entry.Time)
	}
	g.passTo(entry.Time)
	if _, err := g.cfg.Machine.Apply(e.GetIndex(), e.GetTerm(), entry); err != nil {
		return fmt.Errorf("state machine: %w", err)
	}
	g.status.applied.Store(e.GetIndex())
	return nil
}

// own returns the batch that became e. Batches whose place in the log another
// leader's entry took are answered: they were not applied there, but a copy of
// them may be underway in a peer's log.
func (g *Group) own(e *raftpb.Entry) *batch {
	l := &g.loop
	for len(l.inflight) > 0 && l.inflight[0].index <= e.GetIndex() {
		b := l.inflight[0]
		l.inflight = slices.Delete(l.inflight, 0, 1)
		l.flying -= len(b.items)
		if b.index == e.GetIndex() && b.term == e.GetTerm() {
			return b
		}
		b.refuse(gearsfs.ErrMaybe)
	}
	return nil
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
		g.loop.flying += len(b.items)
		return fmt.Errorf("state machine: %w", err)
	}
	g.passTo(b.entry.Time)
	g.status.applied.Store(b.index)
	g.loop.outbox.prompt = g.loop.outbox.prompt || b.prompt
	if g.broken.Load() {
		b.refuse(gearsfs.ErrMaybe)
		return nil
	}
	b.answer(false, nil)
	switch {
	case !b.durable:
	case !g.loop.conf.sole(g.cfg.ID): // it was synced before it was committed
		g.disk.done(b)
	case !g.disk.settle(b):
		b.answer(true, gearsfs.ErrMaybe)
	}
	return nil
}

// replay applies what is committed, and elects this node where it is the only
// voter: then all that the log holds is committed, and all of it is applied
// and on disk when replay returns.
func (g *Group) replay() error {
	l := &g.loop
	if err := g.pump(); err != nil {
		return err
	}
	if len(l.conf.voters) != 1 || l.conf.voters[0] != g.cfg.ID {
		return nil
	}
	if err := l.node.Campaign(); err != nil {
		return fmt.Errorf("raft: %w", err)
	}
	for {
		if err := g.pump(); err != nil {
			return err
		}
		g.disk.wantAll()
		if !g.disk.sync() {
			return g.failed()
		}
	}
}
