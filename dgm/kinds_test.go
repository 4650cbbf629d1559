package dgm

import (
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/gearsfs/gearsfs/wire"
)

// A change that is sent again is told from others of its request by what a process
// before has called it.
func TestKinds(t *testing.T) {
	assert.Zero(t, kindOf(&wire.Command{}))
	fields := new(wire.Command).ProtoReflect().Descriptor().Oneofs().ByName("op").Fields()
	for i := range fields.Len() {
		var c wire.Command
		m, field := c.ProtoReflect(), fields.Get(i)
		m.Set(field, m.NewField(field))
		assert.EqualValues(t, field.Number(), kindOf(&c), field.Name())
	}
	assert.NotEqual(t, kindOf(&wire.Command{Op: &wire.Command_Write{}}), kindOf(&wire.Command{Op: &wire.Command_Take{}}))
}
