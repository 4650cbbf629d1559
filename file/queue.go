package file

import (
	"github.com/gearsfs/gearsfs/gears"
	"github.com/gearsfs/gearsfs/wire"
)

func (m *Machine) applyPut(c *context, cmd *wire.Command, op *wire.Put) *wire.Answer {
	return m.refuse(gears.ErrUnsupported)
}

func (m *Machine) applyTake(c *context, cmd *wire.Command, op *wire.Take) *wire.Answer {
	return m.refuse(gears.ErrUnsupported)
}

func (m *Machine) applySettle(c *context, cmd *wire.Command, op *wire.Settle) *wire.Answer {
	return m.refuse(gears.ErrUnsupported)
}

func (m *Machine) applyConfigure(c *context, cmd *wire.Command, op *wire.Configure) *wire.Answer {
	return m.refuse(gears.ErrUnsupported)
}
