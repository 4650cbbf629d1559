package payload

import (
	"context"
	"errors"
	"fmt"

	"github.com/gearsfs/gearsfs"
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

// put stores a payload and returns its extents. Errors: gearsfs.ErrNoSpace, ctx's,
// gearsfs.ErrNoNode where no majority can be reached, and a broken store's, which
// is fatal.
func (k *Keeper) put(ctx context.Context, payload []byte) ([]gearsfs.Extent, error) {
	alone := k.cfg.Members.Alone()
	if len(payload) <= parcelMax && !alone {
		return k.ship(ctx, payload)
	}
	extents, err := k.append(payload)
	if err != nil {
		return nil, err
	}
	k.pending.begin(extents)
	if alone {
		return extents, nil
	}
	if err := k.spread(ctx, extents, payload); err != nil {
		k.drop(extents)
		return nil, err
	}
	return extents, nil
}

// append stores a payload here.
func (k *Keeper) append(payload []byte) ([]gearsfs.Extent, error) {
	if k.cfg.Node.Full() {
		return nil, gearsfs.ErrNoSpace
	}
	extents, err := k.store.Append(payload)
	if err != nil && !errors.Is(err, gearsfs.ErrNoSpace) {
		k.cfg.Node.Fatal(fmt.Errorf("write to the block store: %w", err))
	}
	return extents, err
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
