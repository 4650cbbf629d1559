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
func (g *Group) WhenCertain(done func(error)) {
	if g.sole.Load() {
		g.disk.whenSynced(done)
		return
	}
	g.mu.Lock()
	if err := g.readRefusalLocked(); err != nil || !g.leading {
		g.mu.Unlock()
		if err == nil {
			err = gearsfs.ErrNotLeader
		}
		done(err)
		return
	}
	g.arrivals.reads = append(g.arrivals.reads, &read{certain: true, done: done})
	g.unlockAndKick()
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
