package payload

import (
	"context"
	"sync"
	"time"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/wire"
)

// healer brings the bytes here that this node's state refers to and its block
// store lacks: this node was not reached when they were spread, or was away, or
// has its state from a snapshot, or something has damaged them.
//
//	         lacks                 all fetched
//	whole -----------> fetching ----------------> whole
//	  |                   ^  | some can't be had
//	  | rescan            |  v
//	  +--------------> scanning <-- healPause
//
// Nothing runs in a group of one: nobody has more than this node.
type healer struct {
	keeper *Keeper
	wake   chan struct{} // of capacity 1

	mu    sync.Mutex
	wants []gearsfs.Extent // not here when an entry named them
	scan  bool             // look at all rows
	left  int              // that could not be had at the last try
	whole chan struct{}    // closed while nothing is known to be missing
}

// How a healer goes on where bytes can't be had.
const (
	healDelay    = 200 * time.Millisecond
	healPauseMin = time.Second
	healPauseMax = time.Minute
	healWantsMax = 64 << 10 // extents to remember; beyond, all rows are looked at
)

func (h *healer) init(k *Keeper) {
	h.keeper = k
	h.wake = make(chan struct{}, 1)
	h.whole = make(chan struct{})
	h.scan = true
}

// run heals until the volume begins to close.
func (h *healer) run() {
	cfg := &h.keeper.cfg
	pause := healPauseMin
	for {
		if !cfg.Members.Alone() {
			if h.round(cfg.Busy) {
				pause = healPauseMin
			} else {
				select {
				case <-time.After(pause):
					pause = min(2*pause, healPauseMax)
					h.rescan()
				case <-cfg.Busy.Done():
					return
				}
				continue
			}
		}
		select {
		case <-h.wake:
		case <-cfg.Busy.Done():
			return
		}
		select { // what is being spread arrives meanwhile
		case <-time.After(healDelay):
		case <-cfg.Busy.Done():
			return
		}
	}
}

// Grown is told that the node may not be alone any more.
func (k *Keeper) Grown() { k.heal.look() }

// Rescan has all rows looked at for what is missing here: the state is another one.
func (k *Keeper) Rescan() { k.heal.rescan() }

// Whole returns when nothing is known to be missing here.
func (k *Keeper) Whole(ctx context.Context) error { return k.heal.wait(ctx) }

// Lacking is how many extents could not be had from any node at the last try.
func (k *Keeper) Lacking() int { return k.heal.lacking() }

// look has the healer look whether there is something to do.
func (h *healer) look() {
	select {
	case h.wake <- struct{}{}:
	default:
	}
}

// rescan has all rows looked at.
func (h *healer) rescan() {
	h.mu.Lock()
	h.scan = true
	h.mendLocked()
	h.mu.Unlock()
}

// mendLocked marks that something may be missing.
func (h *healer) mendLocked() {
	select {
	case <-h.whole:
		h.whole = make(chan struct{})
	default:
	}
	select {
	case h.wake <- struct{}{}:
	default:
	}
}

// Named is told of the commands of an entry that was applied.
func (k *Keeper) Named(commands []*wire.Command) {
	if k.cfg.Members.Alone() {
		return
	}
	for _, cmd := range commands {
		k.payloads(cmd, func(_ *[]byte, _ int, extents *[]*wire.Extent) error { //nolint:errcheck // it returns none
			for _, w := range *extents {
				if e, err := extentFromWire(w); err == nil && !e.Inline() && !k.store.Has(e) {
					k.heal.lack(e)
				}
			}
			return nil
		})
	}
}

func (h *healer) lack(e gearsfs.Extent) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.wants) < healWantsMax {
		h.wants = append(h.wants, e)
	} else {
		h.scan = true
	}
	h.mendLocked()
}

// round fetches what is missing, and reports whether nothing is any more.
func (h *healer) round(ctx context.Context) bool {
	h.mu.Lock()
	wants, scan := h.wants, h.scan
	h.wants, h.scan = nil, false
	h.mu.Unlock()
	left := 0
	mend := func(e gearsfs.Extent) {
		if !h.keeper.store.Has(e) && h.keeper.fetch(ctx, e) != nil {
			left++
		}
	}
	for _, e := range wants {
		mend(e)
	}
	if scan {
		err := h.keeper.cfg.Machine.Live(func(e gearsfs.Extent) error {
			mend(e)
			return ctx.Err()
		})
		if err != nil && ctx.Err() == nil {
			left++
			h.keeper.cfg.Log.Warn("the rows can't be read for what is missing in the block store", "error", err)
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.left = left
	if left == 0 && ctx.Err() == nil && len(h.wants) == 0 && !h.scan {
		select {
		case <-h.whole:
		default:
			close(h.whole)
		}
	}
	return left == 0
}

// lacking is how many extents could not be had.
func (h *healer) lacking() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.left
}

// wait returns when nothing is known to be missing.
func (h *healer) wait(ctx context.Context) error {
	for {
		h.mu.Lock()
		whole := h.whole
		h.mu.Unlock()
		select {
		case <-whole:
			return nil
		case <-time.After(healPauseMin): // another channel may have taken its place
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
