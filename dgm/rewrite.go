package dgm

import (
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
	t, payloads := o.ten, &o.ten.vol.payloads
	if !t.vol.spawn(func() {
		joined, err := payloads.Rejoin(row)
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
			payloads.Unused(joined, err)
			o.relaunch()
		})
	}) {
		o.fail(gearsfs.ErrClosed)
	}
}
