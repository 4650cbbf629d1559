package replica

import (
	"fmt"
	"sort"
	"sync/atomic"
	"time"
)

// keepLogBytes is how much log is kept for members that are behind, where
// Config does not say.
const keepLogBytes = 256 << 20

// entryOverhead is what an entry takes in the log beside its data, about.
const entryOverhead = 32

// replayEntries is about how many entries a restart replays at most, where they
// are small: that takes a second or two, and no leader can serve before.
const replayEntries = 40_000

// flushing follows the log that a restart would replay: it is cut off behind
// what is flushed to the state's own files.
type flushing struct {
	bytes uint64 // of applied log above the last flush that is done, and for each entry what its replay takes

	done  <-chan error // of the flush that runs; nil: none does
	cut   <-chan error // of the log being cut after that; nil: it is not
	index uint64       // applied when the flush began
	mark  uint64       // bytes then

	retry <-chan time.Time // a flush failed: not before this

	freed uint64      // of Config.Freed, given back by the last flush that began
	full  atomic.Bool // somebody waits for space
}

func (f *flushing) applied(dataBytes int, l *limits) {
	f.bytes += uint64(dataBytes) + entryOverhead + l.flushBytes/replayEntries
}

func (f *flushing) running() bool { return f.done != nil || f.cut != nil }

// askFlush begins a flush when the log has grown enough since the last, or the
// state could give back as much space; where somebody waits for space, any.
func (g *Group) askFlush() {
	f := &g.loop.flush
	if f.running() || f.retry != nil {
		return
	}
	freed := uint64(0)
	if g.cfg.Freed != nil {
		freed = g.cfg.Freed()
	}
	if f.bytes < g.limits.flushBytes && freed-f.freed < g.limits.freedBytes && !(f.full.Load() && freed > f.freed) {
		return
	}
	f.full.Store(false)
	f.freed = freed
	f.index, f.mark = g.status.applied.Load(), f.bytes
	f.done = g.cfg.Flush()
}

// stalled reports that the state's flush can't keep up with the log, so that
// proposals have to wait for it.
func (g *Group) stalled() bool {
	f := &g.loop.flush
	return f.bytes >= g.limits.replayBytes && (f.running() || f.retry != nil)
}

// flushed cuts the log behind a flush that is done, on a goroutine that cut
// tells of, because it may wait for the disk.
func (g *Group) flushed(err error) {
	f := &g.loop.flush
	f.done = nil
	if err != nil {
		f.mark = 0
		f.retry = g.world.after(g.limits.flushRetry)
		g.cfg.Logger.Warn("flushing the state failed, the log can't be cut yet", "error", err)
		return
	}
	cut := make(chan error, 1)
	f.cut = cut
	index := g.cutIndex(f.index)
	g.world.spawn(func() { cut <- g.cut(index) })
}

// cut cuts the log up to index. It may wait for the disk.
func (g *Group) cut(index uint64) error {
	if index < g.cfg.Log.First() {
		return nil
	}
	return g.cfg.Log.TruncateFront(index)
}

// cutIndex returns up to where the log may be cut when the state's files have
// all up to flushed. Other members may need what is behind: the leader knows
// what, the others may lead next. But they get no more than KeepLogBytes; who
// is further behind gets a snapshot.
func (g *Group) cutIndex(flushed uint64) uint64 {
	l := &g.loop
	if l.conf.sole(g.cfg.ID) {
		return flushed
	}
	needed := uint64(0)
	if l.tenure {
		needed = l.copies.keptFrom(flushed)
		g.eachMember(func(m member) {
			if m.id != g.cfg.ID {
				needed = min(needed, max(m.match, m.pending))
			}
		})
	}
	if needed >= flushed {
		return flushed
	}
	// The least index behind which there is not more than may be kept.
	kept := sort.Search(int(flushed-needed), func(i int) bool {
		return g.cfg.Log.BytesFrom(needed+uint64(i)) <= g.cfg.KeepLogBytes
	})
	return needed + uint64(kept)
}

// isCut notes that the log ends a replay earlier.
func (g *Group) isCut(err error) error {
	f := &g.loop.flush
	f.cut = nil
	if err != nil {
		return fmt.Errorf("cut the log: %w", err)
	}
	f.bytes -= f.mark
	f.mark = 0
	g.askFlush()
	return nil
}

func (g *Group) retryFlush() {
	g.loop.flush.retry = nil
	g.askFlush()
}

// endCut waits for the goroutine that cuts the log.
func (g *Group) endCut() error {
	f := &g.loop.flush
	if f.cut == nil {
		return nil
	}
	err := <-f.cut
	f.cut = nil
	if err != nil {
		return fmt.Errorf("cut the log: %w", err)
	}
	return nil
}

// lastFlush flushes all that is applied and cuts the log behind it.
func (g *Group) lastFlush() error {
	f := &g.loop.flush
	if f.done != nil {
		// Its outcome does not matter: the next one covers it.
		<-f.done
	}
	if err := <-g.cfg.Flush(); err != nil {
		return fmt.Errorf("flush the state: %w", err)
	}
	if err := g.cut(g.cutIndex(g.status.applied.Load())); err != nil {
		return fmt.Errorf("cut the log: %w", err)
	}
	return nil
}
