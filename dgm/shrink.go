package dgm

import (
	"github.com/gearsfs/gearsfs/wire"
)

// shrink has the end of a stream removed, so that the operation, which was refused
// because it would remove too much at once and has changed nothing, finds less.
func (o *op) shrink(first *wire.Shrink) {
	o.ten.order(nil, shrinkCommand(first), func(_ *wire.Answer, err error) {
		if err != nil {
			o.settled()
			o.fail(err)
			return
		}
		o.relaunch()
	})
}

func shrinkCommand(what *wire.Shrink) *wire.Command {
	return &wire.Command{Checked: true, Op: &wire.Command_Shrink{Shrink: what}}
}

// removeDoomed has what large files have left behind removed, one step behind the
// other, so that all else comes between. It may be called while an entry is
// applied.
func (t *tenure) removeDoomed() {
	if t.vol.machine.Doomed() && t.removing.CompareAndSwap(false, true) {
		t.vol.spawn(t.removeStep)
	}
}

func (t *tenure) removeStep() {
	t.order(nil, shrinkCommand(&wire.Shrink{}), func(answer *wire.Answer, err error) {
		if err == nil && answer.Count != 0 {
			t.removeStep()
			return
		}
		t.removing.Store(false)
		if err == nil {
			t.removeDoomed()
		}
	})
}
