package dgm

import (
	"fmt"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/file"
	"github.com/gearsfs/gearsfs/wire"
)

// rewritesMax bounds how often rows are joined for one command: a write of a
// MiB touches at most nine.
const rewritesMax = 16

// rewrite joins the extents of a row that has too many, so that the operation,
// which was refused for it and has changed nothing, can be done after all. A row
// that has changed meanwhile is looked at again.
func (o *op) rewrite(row *wire.FragmentedRow) {
	o.rewrites++
	t, b := o.ten, &o.ten.vol.blocks
	if !t.vol.spawn(func() {
		joined, err := b.rejoin(row)
		if err != nil {
			o.settled()
			o.failCertain(err)
			return
		}
		t.order(nil, &wire.Command{Checked: true, Op: &wire.Command_Rewrite{Rewrite: &wire.Rewrite{
			Ino: row.Ino, Key: row.Key, Pos: row.Pos, Seq: row.Seq, Was: row.Extents, Extents: file.ExtentsToWire(joined),
		}}}, func(answer *wire.Answer, err error) {
			if err == nil {
				err = answerError(answer)
			}
			b.unused(joined, err)
			o.relaunch()
		})
	}) {
		o.fail(gearsfs.ErrClosed)
	}
}

// rejoin stores the bytes of a row in one piece.
func (b *blocks) rejoin(row *wire.FragmentedRow) ([]gearsfs.Extent, error) {
	ctx := b.vol.busy
	data, err := b.join(ctx, row.Extents)
	if err != nil {
		return nil, b.lost(err, fmt.Sprintf("inode %d at byte %d of stream %q", row.Ino, row.Pos, row.Key))
	}
	return b.put(ctx, data)
}
