package payload

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/block"
	"github.com/gearsfs/gearsfs/file"
	"github.com/gearsfs/gearsfs/wire"
)

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
