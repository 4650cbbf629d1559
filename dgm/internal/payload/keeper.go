package payload

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/block"
	"github.com/gearsfs/gearsfs/wire"
)

// Keeper keeps large payloads outside of the log and the state of a volume, for one
// node. All methods are safe for concurrent use but Open, Begin and Close.
//
//	who got the bytes        the other members
//	Upload  Append ------------> Store         in parallel; a majority has them
//	   |                           |           on disk before
//	   v                           v
//	command with extents ------> applied       has it not got them? heal
//	   |
//	row goes, entry on disk ---> free
//
// Invariants:
//
//  1. What an entry of the log or a row of the state refers to is on this node's
//     disk, as far as the node has it at all, when a sync of the log or a flush of
//     the state that covers it has returned (persist.Data.BeforeFlush). An entry
//     that came to the disk before it, of which nothing was promised, is taken back
//     when a node that is alone starts (Intact).
//  2. Pages are given back when the entry after which no row refers to them is
//     on disk (Durable), so no crash brings back a row without its bytes; and when
//     the log says so itself (persist.Log.MakeSure), or an entry that referred to
//     them would look to Intact like one whose bytes the power cut took.
//  3. Who reads finds the bytes, or by looking at the rows again that they have
//     changed meanwhile; else they are lost or damaged, and other members have them.
type Keeper struct {
	cfg   Config
	store *block.Store
	heal  healer

	shipping shipping
	pending  pending
	upkeep   upkeep

	damaged atomic.Uint64 // reads that found damage which nobody could mend

	mu      sync.Mutex // not held over I/O
	freed   []freed    // by rising index
	onDisk  uint64     // the log's last index that is
	freeing bool       // a goroutine gives pages back
	ready   []gearsfs.Extent
}

// freed are extents that no row refers to from the entry at index on.
type freed struct {
	index   uint64
	extents []gearsfs.Extent
}

// Open opens the block store, and has it on the disk before the state is.
func (k *Keeper) Open(cfg Config) error {
	k.cfg = cfg
	k.heal.init(k)
	k.pending.init()
	k.upkeep.init(k)
	store, err := block.Open(cfg.Data.Blocks(), block.Options{Self: cfg.Self, FS: cfg.FS, Now: cfg.Clock})
	if err != nil {
		return fmt.Errorf("open the block store: %w", err)
	}
	k.store = store
	cfg.Data.BeforeFlush(store.Sync, store.Dirty)
	return nil
}

// Begin looks after the payloads until the node begins to close: what is missing
// here is fetched from other nodes, what nobody needs is swept.
func (k *Keeper) Begin() {
	k.cfg.Node.Spawn(k.heal.run)
	k.upkeep.begin()
}

// Close gives back what can be, and closes the store. Nobody uses it any more.
func (k *Keeper) Close() error {
	if k.store == nil {
		return nil
	}
	synced := k.store.Sync()
	k.cfg.Data.BeforeFlush(nil, nil)
	k.mu.Lock()
	ready := k.ready
	k.ready = nil
	k.mu.Unlock()
	return errors.Join(synced, k.free(ready), k.store.Close())
}

// free gives back the pages of extents that no row refers to.
func (k *Keeper) free(extents []gearsfs.Extent) error {
	if len(extents) == 0 {
		return nil
	}
	if err := k.cfg.Data.Log.MakeSure(); err != nil {
		return err
	}
	return k.store.Free(extents)
}

// Freed is told, as a file.Observer, that no row refers to extents any more from
// the entry at index on.
func (k *Keeper) Freed(index uint64, extents []gearsfs.Extent) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.freed = append(k.freed, freed{index, slices.Clone(extents)})
	k.yieldLocked()
}

// Durable says that the log is on disk up to an index.
func (k *Keeper) Durable(index uint64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.onDisk = max(k.onDisk, index)
	k.yieldLocked()
}

// yieldLocked gives back what invariant 2 allows.
func (k *Keeper) yieldLocked() {
	n := 0
	for n < len(k.freed) && k.freed[n].index <= k.onDisk {
		k.ready = append(k.ready, k.freed[n].extents...)
		n++
	}
	k.freed = k.freed[n:]
	if len(k.freed) == 0 {
		k.freed = nil
	}
	k.freeLocked()
}

// drop gives back, here and at the other members, what an upload stored and no
// entry will ever refer to.
func (k *Keeper) drop(extents []gearsfs.Extent) {
	k.pending.end(extents)
	k.mu.Lock()
	k.ready = append(k.ready, extents...)
	k.freeLocked()
	k.mu.Unlock()
	k.dropAway(extents)
}

// freeAfter is how long pages stay that nobody needs: for who has read a row
// that referred to them and is about to read them.
const freeAfter = time.Second

// freeLocked has pages given back on a goroutine of its own.
func (k *Keeper) freeLocked() {
	if k.freeing || len(k.ready) == 0 {
		return
	}
	k.freeing = k.cfg.Node.Spawn(func() {
		for {
			select {
			case <-time.After(freeAfter):
			case <-k.cfg.Root.Done():
				return // close does it
			}
			k.mu.Lock()
			batch := k.ready
			k.ready = nil
			k.freeing = len(batch) > 0
			k.mu.Unlock()
			if len(batch) == 0 {
				return
			}
			err := k.free(batch)
			if errors.Is(err, gearsfs.ErrNoSpace) { // not even for the log to say so: tried again
				k.mu.Lock()
				k.ready = append(k.ready, batch...)
				k.mu.Unlock()
			}
			if err != nil {
				k.cfg.Log.Warn("pages of the block store that nobody needs are still there", "extents", len(batch), "error", err)
			}
		}
	})
}

// Intact reports whether this node has all bytes that an entry refers to.
func (k *Keeper) Intact(e *wire.Entry) bool {
	buf := make([]byte, gearsfs.PageBytes)
	for _, cmd := range e.Commands {
		err := k.payloads(cmd, func(_ *[]byte, _ int, extents *[]*wire.Extent) error {
			for _, w := range *extents {
				if w.Origin == 0 {
					continue
				}
				e, err := extentFromWire(w)
				for off := uint64(0); err == nil && off < e.Length; off += uint64(len(buf)) {
					n := min(e.Length-off, uint64(len(buf)))
					err = k.store.Read(e, off, n, buf)
				}
				if err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			k.cfg.Log.Warn("the power was cut before a payload was on disk: what was not promised yet did not happen", "error", err)
			return false
		}
	}
	return true
}

// Warnings are for the node's status.
func (k *Keeper) Warnings() (w []string) {
	if n := k.damaged.Load(); n > 0 {
		w = append(w, fmt.Sprintf("the bytes of large payloads are damaged or missing: %d reads failed since this node started", n))
	}
	if n := k.heal.lacking(); n > 0 {
		w = append(w, fmt.Sprintf("%d pieces of large payloads are missing here, and no node that was reached has them", n))
	}
	return append(w, k.upkeep.warnings()...)
}
