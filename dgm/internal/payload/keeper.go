package payload

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/block"
	"github.com/gearsfs/gearsfs/file"
	"github.com/gearsfs/gearsfs/wire"
)

// Which payloads go to the block store beside those of at least BlockLeast, below
// which the way through the log is shorter: there is one file to sync.
const (
	// patchLeast is the least length of a write into a file of at least patchedLeast: its rows
	// are extents, and writing a whole one anew for each small piece is dearer.
	patchLeast   = 4 << 10
	patchedLeast = 1 << 20
	// rowBytes is where a row of extents that was written in place ends at the
	// latest, as package file has it.
	rowBytes = 128 << 10
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
//     on disk (Durable), so no crash brings back a row without its bytes.
//  3. Who reads finds the bytes, or by looking at the rows again that they have
//     changed meanwhile; else they are lost or damaged, and other members have them.
type Keeper struct {
	cfg   Config
	store *block.Store
	heal  healer

	pending pending
	upkeep  upkeep

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
	return errors.Join(synced, k.store.Free(ready), k.store.Close())
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
			if err := k.store.Free(batch); err != nil {
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

// put stores a payload and returns its extents. Errors: gearsfs.ErrNoSpace, ctx's,
// gearsfs.ErrNoNode where no majority can be reached, and a broken store's, which
// is fatal.
func (k *Keeper) put(ctx context.Context, payload []byte) ([]gearsfs.Extent, error) {
	if k.cfg.Node.Full() {
		return nil, gearsfs.ErrNoSpace
	}
	extents, err := k.store.Append(payload)
	if err != nil {
		if !errors.Is(err, gearsfs.ErrNoSpace) {
			k.cfg.Node.Fatal(fmt.Errorf("write to the block store: %w", err))
		}
		return nil, err
	}
	k.pending.begin(extents)
	if k.cfg.Members.Alone() {
		return extents, nil
	}
	if err := k.spread(ctx, extents, payload); err != nil {
		k.drop(extents)
		return nil, err
	}
	return extents, nil
}

// positionOf is where a command's payload lies in the file, where that matters.
func positionOf(cmd *wire.Command) uint64 {
	if save := cmd.GetSave(); save != nil {
		return save.GetWrite().GetPos()
	}
	return cmd.GetWrite().GetPos()
}

// putPieces is put of what lies at a position of the file, so that no page has
// bytes of two rows: what is in front of the first end of a row is by itself.
func (k *Keeper) putPieces(ctx context.Context, payload []byte, pos uint64) ([]gearsfs.Extent, error) {
	head := uint64(0)
	if pos%gearsfs.PageBytes != 0 {
		head = rowBytes - pos%rowBytes
	}
	if head == 0 || head >= uint64(len(payload)) {
		return k.put(ctx, payload)
	}
	first, err := k.put(ctx, payload[:head])
	if err != nil {
		return nil, err
	}
	rest, err := k.put(ctx, payload[head:])
	if err != nil {
		k.drop(first)
		return nil, err
	}
	return append(first, rest...), nil
}

// payloads visits what a command would bring into the log: each payload, how
// many bytes it needs to go to the block store instead, and where its extents go.
func (k *Keeper) payloads(cmd *wire.Command, visit func(data *[]byte, least int, extents *[]*wire.Extent) error) error {
	records := func(records []*wire.NewRecord) error {
		for _, r := range records {
			if err := visit(&r.Data, k.cfg.Least, &r.Extents); err != nil {
				return err
			}
		}
		return nil
	}
	switch op := cmd.GetOp().(type) {
	case *wire.Command_Write:
		return visit(&op.Write.Data, k.leastOf(op.Write), &op.Write.Extents)
	case *wire.Command_Save:
		if w := op.Save.GetWrite(); w != nil {
			return visit(&w.Data, k.leastOf(w), &w.Extents)
		}
	case *wire.Command_Put:
		return records(op.Put.Records)
	case *wire.Command_Update:
		return records([]*wire.NewRecord{op.Update.Record})
	case *wire.Command_Transact:
		for _, step := range op.Transact.Steps {
			var err error
			switch {
			case step.GetPut() != nil:
				err = records(step.GetPut().Records)
			case step.GetUpdate() != nil:
				err = records([]*wire.NewRecord{step.GetUpdate().Record})
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// leastOf is the length from which on a write goes to the block store.
func (k *Keeper) leastOf(w *wire.Write) int {
	least := k.cfg.Least
	if len(w.Data) < patchLeast || len(w.Data) >= least {
		return least
	}
	attr, err := k.cfg.Machine.GetAttr(gearsfs.Ino(w.Ino))
	if err == nil && attr.Size >= patchedLeast {
		return patchLeast
	}
	return least
}

// errFound ends a visit.
var errFound = errors.New("found")

// Bulky reports whether upload has something to do.
func (k *Keeper) Bulky(cmd *wire.Command) bool {
	return k.payloads(cmd, func(data *[]byte, least int, _ *[]*wire.Extent) error {
		if len(*data) >= least {
			return errFound
		}
		return nil
	}) != nil
}

// Refers reports whether a command names extents that are in the block store.
func (k *Keeper) Refers(cmd *wire.Command) bool {
	return k.payloads(cmd, func(_ *[]byte, _ int, extents *[]*wire.Extent) error {
		if len(*extents) > 0 {
			return errFound
		}
		return nil
	}) != nil
}

// Upload brings the large payloads of a command to the block store and puts
// extents in their places. It returns them, to be dropped where the command is
// refused. With an error nothing of the command has changed.
func (k *Keeper) Upload(ctx context.Context, cmd *wire.Command) ([]gearsfs.Extent, error) {
	type change struct {
		data    *[]byte
		extents *[]*wire.Extent
		stored  []gearsfs.Extent
	}
	var changes []change
	var all []gearsfs.Extent
	err := k.payloads(cmd, func(data *[]byte, least int, extents *[]*wire.Extent) error {
		if len(*data) < least {
			return nil
		}
		stored, err := k.putPieces(ctx, *data, positionOf(cmd))
		if err != nil {
			return err
		}
		changes, all = append(changes, change{data, extents, stored}), append(all, stored...)
		return nil
	})
	if err != nil {
		k.drop(all)
		return nil, err
	}
	for _, c := range changes {
		*c.data, *c.extents = nil, file.ExtentsToWire(c.stored)
	}
	return all, nil
}

// Unused takes the final answer of the command that extents were uploaded for:
// where that is an error they came to nothing. Where the command may have happened all the same, or may yet, the pages
// stay: they are swept where nothing comes to refer to them.
func (k *Keeper) Unused(extents []gearsfs.Extent, err error) {
	if len(extents) == 0 || err == nil {
		k.pending.end(extents)
		return
	}
	for _, open := range []error{
		gearsfs.ErrMaybe, gearsfs.ErrClosed, gearsfs.ErrNotLeader, gearsfs.ErrNoNode, gearsfs.ErrSession,
		gearsfs.ErrCancelled, context.Canceled, context.DeadlineExceeded,
	} {
		if errors.Is(err, open) {
			k.pending.end(extents)
			return
		}
	}
	k.drop(extents)
}

// read puts the bytes [off, off+len(dst)) of an extent of the store into dst. What this node
// lacks, or has damaged, comes from another one. Errors: gearsfs.ErrDamaged,
// block.ErrAbsent where nobody has it, and those of the disk.
func (k *Keeper) read(ctx context.Context, e gearsfs.Extent, off uint64, dst []byte) error {
	n := uint64(len(dst))
	err := k.store.Read(e, off, n, dst)
	if err == nil || k.cfg.Members.Alone() {
		return err
	}
	if !errors.Is(err, block.ErrAbsent) && !errors.Is(err, gearsfs.ErrDamaged) {
		return err
	}
	if fetchErr := k.fetch(ctx, e); fetchErr != nil {
		return fmt.Errorf("%w; %w", err, fetchErr)
	}
	return k.store.Read(e, off, n, dst)
}

// Content reads bytes of a file, into buf where that has room for them.
func (k *Keeper) Content(ctx context.Context, who gearsfs.Caller, r *wire.Read, buf []byte) ([]byte, error) {
	var last error
	for range readTries {
		c, err := k.cfg.Machine.Read(gearsfs.Ino(r.Ino), gearsfs.Pos(r.Pos), int(r.Length), who, buf)
		if err != nil {
			return nil, err
		}
		if last = k.assemble(ctx, c); last == nil {
			return c.Data, nil
		}
	}
	return nil, k.lost(last, fmt.Sprintf("inode %d from byte %d on", r.Ino, r.Pos))
}

// readTries is how often rows are looked at for bytes that are not where they
// say: they may have changed meanwhile.
const readTries = 3

func (k *Keeper) assemble(ctx context.Context, c file.Content) error {
	for i := range c.Parts {
		p := &c.Parts[i]
		if err := k.read(ctx, p.Extent, 0, c.Data[p.At:p.At+int(p.Extent.Length)]); err != nil {
			return err
		}
	}
	return nil
}

// lost makes an error that callers know of one of the store, and tells it.
func (k *Keeper) lost(err error, what string) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, gearsfs.ErrClosed) {
		return err
	}
	k.damaged.Add(1)
	k.cfg.Log.Error("bytes can't be read", "of", what, "error", err)
	return gearsfs.ErrDamaged.Because("%s: %v", what, err)
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

// recordsOf visits the records of an answer whose bytes are in the block store.
func recordsOf(a *wire.Answer, visit func(*wire.TakenRecord)) {
	for _, r := range a.GetRecords() {
		if len(r.Extents) > 0 {
			visit(r)
		}
	}
	for _, step := range a.GetSteps() {
		recordsOf(step, visit)
	}
}

// Fill has done called with a response whose records lack bytes (LacksBytes) when
// they have them, on another goroutine, or with an error.
func (k *Keeper) Fill(resp *wire.Response, done func(*wire.Response, error)) {
	begun := k.cfg.Node.Spawn(func() {
		k.cfg.Reads <- struct{}{}
		defer func() { <-k.cfg.Reads }()
		var failed error
		recordsOf(resp.Answer, func(r *wire.TakenRecord) {
			data, err := k.join(k.cfg.Root, r.Extents)
			if err != nil {
				failed = errors.Join(failed, k.lost(err, fmt.Sprintf("record %d of stream %q", r.Seq, r.Key)))
				return
			}
			r.Data, r.Extents = data, nil
		})
		done(resp, failed)
	})
	if !begun {
		done(nil, gearsfs.ErrClosed)
	}
}

// LacksBytes says whether bytes of an answer's records are in the block store.
func LacksBytes(a *wire.Answer) bool {
	return slices.ContainsFunc(a.GetRecords(), func(r *wire.TakenRecord) bool { return len(r.Extents) > 0 }) ||
		slices.ContainsFunc(a.GetSteps(), LacksBytes)
}

// join reads extents one behind the other.
func (k *Keeper) join(ctx context.Context, wires []*wire.Extent) ([]byte, error) {
	n := uint64(0)
	for _, w := range wires {
		if n += w.Length; n > gearsfs.RecordBytesMax {
			return nil, gearsfs.ErrDamaged.Because("a record of more than %d bytes", gearsfs.RecordBytesMax)
		}
	}
	data := make([]byte, n)
	at := uint64(0)
	for _, w := range wires {
		dst := data[at : at+w.Length]
		at += w.Length
		if w.Origin == 0 {
			copy(dst, w.Data) // none are zeros
			continue
		}
		e, err := extentFromWire(w)
		if err == nil {
			err = k.read(ctx, e, 0, dst)
		}
		if err != nil {
			return nil, err
		}
	}
	return data, nil
}

// Inline puts the bytes of a command's payloads back in the place of their
// extents: for who keeps them in memory.
func (k *Keeper) Inline(ctx context.Context, cmd *wire.Command) error {
	return k.payloads(cmd, func(data *[]byte, _ int, extents *[]*wire.Extent) error {
		if len(*extents) == 0 {
			return nil
		}
		bytes, err := k.join(ctx, *extents)
		if err != nil {
			return k.lost(err, "what was to be put")
		}
		*data, *extents = bytes, nil
		return nil
	})
}

// Rejoin stores the bytes of a row in one piece.
func (k *Keeper) Rejoin(row *wire.FragmentedRow) ([]gearsfs.Extent, error) {
	ctx := k.cfg.Busy
	data, err := k.join(ctx, row.Extents)
	if err != nil {
		return nil, k.lost(err, fmt.Sprintf("inode %d at byte %d of stream %q", row.Ino, row.Pos, row.Key))
	}
	return k.put(ctx, data)
}
