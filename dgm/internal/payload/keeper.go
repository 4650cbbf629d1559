package dgm

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
	"github.com/gearsfs/gearsfs/replica"
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

// blocks keeps large payloads outside of the log and the state of a volume.
//
//	who got the bytes        the other members
//	upload  Append ------------> Store         in parallel; a majority has them
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
//     when a node that is alone starts (intact).
//  2. Pages are given back when the entry after which no row refers to them is
//     on disk, so no crash brings back a row without its bytes.
//  3. Who reads finds the bytes, or by looking at the rows again that they have
//     changed meanwhile; else they are lost or damaged, and other members have them.
type blocks struct {
	vol   *Volume
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
	ways    map[gearsfs.MemberID]*blockWay
}

// freed are extents that no row refers to from the entry at index on.
type freed struct {
	index   uint64
	extents []gearsfs.Extent
}

func (b *blocks) open(v *Volume) error {
	b.vol = v
	b.ways = make(map[gearsfs.MemberID]*blockWay)
	b.heal.init(b)
	b.pending.init()
	b.upkeep.init(b)
	store, err := block.Open(v.cfg.Data.Blocks(), block.Options{Self: v.member, FS: v.cfg.BlockFS, Now: v.cfg.Clock})
	if err != nil {
		return fmt.Errorf("open the block store: %w", err)
	}
	b.store = store
	v.cfg.Data.BeforeFlush(store.Sync, store.Dirty)
	return nil
}

// close gives back what can be, and closes the store. Nobody uses it any more.
func (b *blocks) close() error {
	if b.store == nil {
		return nil
	}
	synced := b.store.Sync()
	b.vol.cfg.Data.BeforeFlush(nil, nil)
	b.mu.Lock()
	ready := b.ready
	b.ready = nil
	b.mu.Unlock()
	return errors.Join(synced, b.store.Free(ready), b.store.Close())
}

// blockLog is a node's log whose Sync tells what keeps invariant 2 of blocks.
type blockLog struct {
	replica.Log
	blocks *blocks
}

func (l blockLog) Sync() error {
	upTo := l.Last()
	if err := l.Log.Sync(); err != nil {
		return err
	}
	l.blocks.durable(upTo)
	return nil
}

// Freed implements file.Observer.
func (v *Volume) Freed(index uint64, extents []gearsfs.Extent) {
	b := &v.blocks
	b.mu.Lock()
	defer b.mu.Unlock()
	b.freed = append(b.freed, freed{index, slices.Clone(extents)})
	b.yieldLocked()
}

// durable says that the log is on disk up to an index.
func (b *blocks) durable(index uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.onDisk = max(b.onDisk, index)
	b.yieldLocked()
}

// yieldLocked gives back what invariant 2 allows.
func (b *blocks) yieldLocked() {
	n := 0
	for n < len(b.freed) && b.freed[n].index <= b.onDisk {
		b.ready = append(b.ready, b.freed[n].extents...)
		n++
	}
	b.freed = b.freed[n:]
	if len(b.freed) == 0 {
		b.freed = nil
	}
	b.freeLocked()
}

// drop gives back, here and at the other members, what an upload stored and no
// entry will ever refer to.
func (b *blocks) drop(extents []gearsfs.Extent) {
	b.pending.end(extents)
	b.mu.Lock()
	b.ready = append(b.ready, extents...)
	b.freeLocked()
	b.mu.Unlock()
	b.dropAway(extents)
}

// freeAfter is how long pages stay that nobody needs: for who has read a row
// that referred to them and is about to read them.
const freeAfter = time.Second

// freeLocked has pages given back on a goroutine of its own.
func (b *blocks) freeLocked() {
	if b.freeing || len(b.ready) == 0 {
		return
	}
	b.freeing = b.vol.spawn(func() {
		for {
			select {
			case <-time.After(freeAfter):
			case <-b.vol.root.Done():
				return // close does it
			}
			b.mu.Lock()
			batch := b.ready
			b.ready = nil
			b.freeing = len(batch) > 0
			b.mu.Unlock()
			if len(batch) == 0 {
				return
			}
			if err := b.store.Free(batch); err != nil {
				b.vol.log.Warn("pages of the block store that nobody needs are still there", "extents", len(batch), "error", err)
			}
		}
	})
}

// intact reports whether this node has all bytes that an entry refers to.
func (b *blocks) intact(e *wire.Entry) bool {
	buf := make([]byte, gearsfs.PageBytes)
	for _, cmd := range e.Commands {
		err := b.payloads(cmd, func(_ *[]byte, _ int, extents *[]*wire.Extent) error {
			for _, w := range *extents {
				if w.Origin == 0 {
					continue
				}
				e, err := extentFromWire(w)
				for off := uint64(0); err == nil && off < e.Length; off += uint64(len(buf)) {
					n := min(e.Length-off, uint64(len(buf)))
					err = b.store.Read(e, off, n, buf)
				}
				if err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			b.vol.log.Warn("the power was cut before a payload was on disk: what was not promised yet did not happen", "error", err)
			return false
		}
	}
	return true
}

// put stores a payload and returns its extents. Errors: gearsfs.ErrNoSpace, ctx's,
// gearsfs.ErrNoNode where no majority can be reached, and a broken store's, which
// is fatal.
func (b *blocks) put(ctx context.Context, payload []byte) ([]gearsfs.Extent, error) {
	if b.vol.space.full() {
		return nil, gearsfs.ErrNoSpace
	}
	extents, err := b.store.Append(payload)
	if err != nil {
		if !errors.Is(err, gearsfs.ErrNoSpace) {
			b.vol.fatal(fmt.Errorf("write to the block store: %w", err))
		}
		return nil, err
	}
	b.pending.begin(extents)
	if b.vol.alone() {
		return extents, nil
	}
	if err := b.spread(ctx, extents, payload); err != nil {
		b.drop(extents)
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
func (b *blocks) putPieces(ctx context.Context, payload []byte, pos uint64) ([]gearsfs.Extent, error) {
	head := uint64(0)
	if pos%gearsfs.PageBytes != 0 {
		head = rowBytes - pos%rowBytes
	}
	if head == 0 || head >= uint64(len(payload)) {
		return b.put(ctx, payload)
	}
	first, err := b.put(ctx, payload[:head])
	if err != nil {
		return nil, err
	}
	rest, err := b.put(ctx, payload[head:])
	if err != nil {
		b.drop(first)
		return nil, err
	}
	return append(first, rest...), nil
}

// payloads visits what a command would bring into the log: each payload, how
// many bytes it needs to go to the block store instead, and where its extents go.
func (b *blocks) payloads(cmd *wire.Command, visit func(data *[]byte, least int, extents *[]*wire.Extent) error) error {
	records := func(records []*wire.NewRecord) error {
		for _, r := range records {
			if err := visit(&r.Data, b.vol.cfg.BlockLeast, &r.Extents); err != nil {
				return err
			}
		}
		return nil
	}
	switch op := cmd.GetOp().(type) {
	case *wire.Command_Write:
		return visit(&op.Write.Data, b.leastOf(op.Write), &op.Write.Extents)
	case *wire.Command_Save:
		if w := op.Save.GetWrite(); w != nil {
			return visit(&w.Data, b.leastOf(w), &w.Extents)
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
func (b *blocks) leastOf(w *wire.Write) int {
	least := b.vol.cfg.BlockLeast
	if len(w.Data) < patchLeast || len(w.Data) >= least {
		return least
	}
	attr, err := b.vol.machine.GetAttr(gearsfs.Ino(w.Ino))
	if err == nil && attr.Size >= patchedLeast {
		return patchLeast
	}
	return least
}

// errFound ends a visit.
var errFound = errors.New("found")

// bulky reports whether upload has something to do.
func (b *blocks) bulky(cmd *wire.Command) bool {
	return b.payloads(cmd, func(data *[]byte, least int, _ *[]*wire.Extent) error {
		if len(*data) >= least {
			return errFound
		}
		return nil
	}) != nil
}

// refers reports whether a command names extents that are in the block store.
func (b *blocks) refers(cmd *wire.Command) bool {
	return b.payloads(cmd, func(_ *[]byte, _ int, extents *[]*wire.Extent) error {
		if len(*extents) > 0 {
			return errFound
		}
		return nil
	}) != nil
}

// upload brings the large payloads of a command to the block store and puts
// extents in their places. It returns them, to be dropped where the command is
// refused. With an error nothing of the command has changed.
func (b *blocks) upload(ctx context.Context, cmd *wire.Command) ([]gearsfs.Extent, error) {
	if !b.vol.enter() {
		return nil, gearsfs.ErrClosed
	}
	defer b.vol.leave()
	type change struct {
		data    *[]byte
		extents *[]*wire.Extent
		stored  []gearsfs.Extent
	}
	var changes []change
	var all []gearsfs.Extent
	err := b.payloads(cmd, func(data *[]byte, least int, extents *[]*wire.Extent) error {
		if len(*data) < least {
			return nil
		}
		stored, err := b.putPieces(ctx, *data, positionOf(cmd))
		if err != nil {
			return err
		}
		changes, all = append(changes, change{data, extents, stored}), append(all, stored...)
		return nil
	})
	if err != nil {
		b.drop(all)
		return nil, err
	}
	for _, c := range changes {
		*c.data, *c.extents = nil, file.ExtentsToWire(c.stored)
	}
	return all, nil
}

// unused takes the final answer of the command that extents were uploaded for:
// where that is an error they came to nothing. Where the command may have happened all the same, or may yet, the pages
// stay: they are swept where nothing comes to refer to them.
func (b *blocks) unused(extents []gearsfs.Extent, err error) {
	if len(extents) == 0 || err == nil {
		b.pending.end(extents)
		return
	}
	for _, open := range []error{
		gearsfs.ErrMaybe, gearsfs.ErrClosed, gearsfs.ErrNotLeader, gearsfs.ErrNoNode, gearsfs.ErrSession,
		gearsfs.ErrCancelled, context.Canceled, context.DeadlineExceeded,
	} {
		if errors.Is(err, open) {
			b.pending.end(extents)
			return
		}
	}
	b.drop(extents)
}

// read puts the bytes [off, off+len(dst)) of an extent of the store into dst. What this node
// lacks, or has damaged, comes from another one. Errors: gearsfs.ErrDamaged,
// block.ErrAbsent where nobody has it, and those of the disk.
func (b *blocks) read(ctx context.Context, e gearsfs.Extent, off uint64, dst []byte) error {
	n := uint64(len(dst))
	err := b.store.Read(e, off, n, dst)
	if err == nil || b.vol.alone() {
		return err
	}
	if !errors.Is(err, block.ErrAbsent) && !errors.Is(err, gearsfs.ErrDamaged) {
		return err
	}
	if fetchErr := b.fetch(ctx, e); fetchErr != nil {
		return fmt.Errorf("%w; %w", err, fetchErr)
	}
	return b.store.Read(e, off, n, dst)
}

// content reads bytes of a file, into buf where that has room for them.
func (b *blocks) content(ctx context.Context, who gearsfs.Caller, r *wire.Read, buf []byte) ([]byte, error) {
	var last error
	for range readTries {
		c, err := b.vol.machine.Read(gearsfs.Ino(r.Ino), gearsfs.Pos(r.Pos), int(r.Length), who, buf)
		if err != nil {
			return nil, err
		}
		if last = b.assemble(ctx, c); last == nil {
			return c.Data, nil
		}
	}
	return nil, b.lost(last, fmt.Sprintf("inode %d from byte %d on", r.Ino, r.Pos))
}

// readTries is how often rows are looked at for bytes that are not where they
// say: they may have changed meanwhile.
const readTries = 3

func (b *blocks) assemble(ctx context.Context, c file.Content) error {
	for i := range c.Parts {
		p := &c.Parts[i]
		if err := b.read(ctx, p.Extent, 0, c.Data[p.At:p.At+int(p.Extent.Length)]); err != nil {
			return err
		}
	}
	return nil
}

// lost makes an error that callers know of one of the store, and tells it.
func (b *blocks) lost(err error, what string) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, gearsfs.ErrClosed) {
		return err
	}
	b.damaged.Add(1)
	b.vol.log.Error("bytes can't be read", "of", what, "error", err)
	return gearsfs.ErrDamaged.Because("%s: %v", what, err)
}

// warnings are for the node's status.
func (b *blocks) warnings() (w []string) {
	if n := b.damaged.Load(); n > 0 {
		w = append(w, fmt.Sprintf("the bytes of large payloads are damaged or missing: %d reads failed since this node started", n))
	}
	if n := b.heal.lacking(); n > 0 {
		w = append(w, fmt.Sprintf("%d pieces of large payloads are missing here, and no node that was reached has them", n))
	}
	return append(w, b.upkeep.warnings()...)
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

// withBytes has done called with a response whose records have their bytes: at
// once where they do, else on another goroutine.
func (b *blocks) withBytes(resp *wire.Response, done func(*wire.Response)) {
	if !lacksBytes(resp.Answer) {
		done(resp)
		return
	}
	b.fill(resp, done)
}

// fill is withBytes for a response whose records lack some.
func (b *blocks) fill(resp *wire.Response, done func(*wire.Response)) {
	begun := b.vol.spawn(func() {
		b.vol.reads <- struct{}{}
		defer func() { <-b.vol.reads }()
		var failed error
		recordsOf(resp.Answer, func(r *wire.TakenRecord) {
			data, err := b.join(b.vol.root, r.Extents)
			if err != nil {
				failed = errors.Join(failed, b.lost(err, fmt.Sprintf("record %d of stream %q", r.Seq, r.Key)))
				return
			}
			r.Data, r.Extents = data, nil
		})
		if failed != nil {
			index := resp.Index
			resp = failure(failed)
			resp.Index = index
		}
		done(resp)
	})
	if !begun {
		done(failure(gearsfs.ErrClosed))
	}
}

// lacksBytes says whether bytes of an answer's records are in the block store.
func lacksBytes(a *wire.Answer) bool {
	return slices.ContainsFunc(a.GetRecords(), func(r *wire.TakenRecord) bool { return len(r.Extents) > 0 }) ||
		slices.ContainsFunc(a.GetSteps(), lacksBytes)
}

// join reads extents one behind the other.
func (b *blocks) join(ctx context.Context, wires []*wire.Extent) ([]byte, error) {
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
			err = b.read(ctx, e, 0, dst)
		}
		if err != nil {
			return nil, err
		}
	}
	return data, nil
}

// inline puts the bytes of a command's payloads back in the place of their
// extents: for who keeps them in memory.
func (b *blocks) inline(ctx context.Context, cmd *wire.Command) error {
	return b.payloads(cmd, func(data *[]byte, _ int, extents *[]*wire.Extent) error {
		if len(*extents) == 0 {
			return nil
		}
		bytes, err := b.join(ctx, *extents)
		if err == nil {
			*data, *extents = bytes, nil
		}
		return err
	})
}
