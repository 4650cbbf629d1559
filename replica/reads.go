package replica

import (
	"bytes"
	"context"
	"encoding/binary"
	"slices"

	"go.etcd.io/raft/v3"

	"github.com/gearsfs/gearsfs"
)

// readRounds is how many ReadIndex rounds may be on their way before those who
// come wait for the next one.
const readRounds = 4

// read waits until it is known that this replica's state is fresh enough.
type read struct {
	certain bool   // that this node led is enough; else the state must be applied
	round   uint64 // the first that began after the call
	index   uint64 // its outcome, once known
	known   bool
	done    func(error)
}

// reading is what the loop knows of ReadIndex rounds. Their contexts differ
// also from those of an earlier life of this node, so that a late answer to an
// old question is none to a new one.
type reading struct {
	life      uint64
	began     uint64 // the last round
	confirmed uint64 // the last one that was answered
	waiting   []*read
}

// WhenCertain calls done once it is certain that what the caller has just read
// from the state was the newest and will stay. In a group of one that is when
// all that is applied now is on disk: at once, on the caller's goroutine, where
// it is already or syncing has failed. In a group of several it is when a
// majority has confirmed, after the call, that this node leads. Errors:
// gearsfs.ErrNotLeader, gearsfs.ErrClosed, gearsfs.ErrMaybe where syncing
// failed. Done must not block; it may be called on a goroutine of the Group.
func (g *Group) WhenCertain(done func(error)) { g.WhenVouched(Vouch{}, done) }

// WhenVouched is WhenCertain for a read that came through a member which has
// vouched for it: where that and this node are a majority, done is called at once.
func (g *Group) WhenVouched(v Vouch, done func(error)) {
	if g.sole.Load() {
		g.disk.whenSynced(done)
		return
	}
	g.mu.Lock()
	err := g.readRefusalLocked()
	if err == nil && !g.leading {
		err = gearsfs.ErrNotLeader
	}
	if err != nil || g.sufficesLocked(v) {
		g.mu.Unlock()
		done(err)
		return
	}
	g.arrivals.reads = append(g.arrivals.reads, &read{certain: true, done: done})
	g.unlockAndKick()
}

// Vouch is what a member says of itself when it sends a read to the leader, after
// the reader has called: that it is in the leader's term. So it had not voted in a
// later one then. If the leader, when it has read, still leads in that term, it has
// not either. Where the two are a majority, nobody led in a later term when the
// member spoke, so nothing was acknowledged by then that the leader has not applied:
// no other node has to be asked.
//
// That rests on the order in which a Group shows things: its term, and that it
// does not lead any more, before the first message leaves that could help another to
// lead. And on each set of voters being changed for one of which every majority has
// a member of every majority of the one before.
type Vouch struct {
	Member gearsfs.MemberID
	Term   uint64
}

// Vouch is that of this member now; the zero Vouch, which is worth nothing, where it
// leads or knows no leader.
func (g *Group) Vouch() Vouch {
	switch g.status.leader.Load() {
	case raft.None, g.cfg.ID:
		return Vouch{}
	}
	return Vouch{Member: gearsfs.MemberID(g.cfg.ID), Term: g.status.term.Load()}
}

// sufficesLocked says whether this node, which leads, and who vouches are a majority.
func (g *Group) sufficesLocked(v Vouch) bool {
	self := gearsfs.MemberID(g.cfg.ID)
	if v.Term == 0 || v.Term != g.status.term.Load() || v.Member == self {
		return false
	}
	sets := g.Quorums()
	for _, voters := range sets {
		if 2*2 <= len(voters) || !slices.Contains(voters, self) || !slices.Contains(voters, v.Member) {
			return false
		}
	}
	return len(sets) > 0
}

// Sync is WhenCertain in a group of one, for who waits: it may sync on the
// caller's goroutine. It must have returned when Close is called.
func (g *Group) Sync() error { return g.disk.await() }

func (g *Group) readRefusalLocked() error {
	if g.closing || g.err != nil {
		return gearsfs.ErrClosed
	}
	return nil
}

// Barrier returns when this replica has applied all that was acknowledged
// anywhere before the call, so that a read of the state that follows is
// linearizable. In a group of one that is always so. It waits until ctx ends,
// also where there is no leader; errors: ctx's and gearsfs.ErrClosed.
func (g *Group) Barrier(ctx context.Context) error {
	if g.alone.Load() && !g.broken.Load() {
		return nil
	}
	done := make(chan error, 1)
	g.whenFresh(func(err error) { done <- err })
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// whenFresh is Barrier without waiting.
func (g *Group) whenFresh(done func(error)) {
	g.mu.Lock()
	if err := g.readRefusalLocked(); err != nil {
		g.mu.Unlock()
		done(err)
		return
	}
	g.arrivals.reads = append(g.arrivals.reads, &read{done: done})
	g.unlockAndKick()
}

// beginReads has one round serve all of reads, and those that come while too
// many are on their way.
func (g *Group) beginReads(reads []*read) {
	l := &g.loop
	for _, r := range reads {
		if r.certain && !l.tenure {
			r.done(gearsfs.ErrNotLeader)
			continue
		}
		r.round = l.reads.began + 1
		l.reads.waiting = append(l.reads.waiting, r)
	}
	g.nextRound()
}

// nextRound begins a round where somebody waits for it, and reports that.
func (g *Group) nextRound() bool {
	r := &g.loop.reads
	if n := len(r.waiting); n == 0 || r.waiting[n-1].round <= r.began || r.began-r.confirmed >= readRounds {
		return false
	}
	g.round()
	return true
}

func (g *Group) round() {
	r := &g.loop.reads
	r.began++
	context := binary.BigEndian.AppendUint64(nil, r.life)
	g.loop.node.ReadIndex(binary.BigEndian.AppendUint64(context, r.began))
}

// repeatReads tries again for those who wait for an answer: it may be lost, and
// raft drops the question where it knows no leader.
func (g *Group) repeatReads() {
	for _, r := range g.loop.reads.waiting {
		if !r.known {
			g.loop.reads.confirmed = g.loop.reads.began // those on their way are lost, or late
			g.round()
			return
		}
	}
}

// readable notes the read indexes that a majority confirmed. A round confirms
// those before it.
func (g *Group) readable(states []raft.ReadState) {
	r := &g.loop.reads
	life := binary.BigEndian.AppendUint64(nil, r.life)
	for _, s := range states {
		context := s.RequestCtx
		if len(context) != 16 || !bytes.Equal(context[:8], life) {
			continue
		}
		round := binary.BigEndian.Uint64(context[8:])
		r.confirmed = max(r.confirmed, round)
		for _, w := range r.waiting {
			if w.round <= round && !w.known {
				w.index, w.known = s.Index, true
			}
		}
	}
}

// endReads answers the reads whose round was confirmed and, where they need it,
// whose index is applied. It reports whether raft was asked for another round.
func (g *Group) endReads() bool {
	r := &g.loop.reads
	if len(r.waiting) == 0 {
		return false
	}
	applied := g.status.applied.Load()
	r.waiting = slices.DeleteFunc(r.waiting, func(w *read) bool {
		if !w.known || !w.certain && w.index > applied {
			return false
		}
		w.done(nil)
		return true
	})
	return g.nextRound()
}

// refuseCertain answers those who relied on this node leading.
func (g *Group) refuseCertain(err error) {
	r := &g.loop.reads
	r.waiting = slices.DeleteFunc(r.waiting, func(w *read) bool {
		if w.certain {
			w.done(err)
		}
		return w.certain
	})
}
