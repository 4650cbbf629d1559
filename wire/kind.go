package wire

import (
	"reflect"
	"sync"

	"google.golang.org/protobuf/reflect/protoreflect"
)

var commandOps = sync.OnceValue(func() protoreflect.OneofDescriptor {
	return (*Command)(nil).ProtoReflect().Descriptor().Oneofs().ByName("op")
})

// CommandKinds returns the names of what a command may do, by what Kind returns;
// "" where there is none.
func CommandKinds() (names []string) {
	ops := commandOps().Fields()
	for i := range ops.Len() {
		op := ops.Get(i)
		for int(op.Number()) >= len(names) {
			names = append(names, "")
		}
		names[op.Number()] = string(op.Name())
	}
	return names
}

// Kind is the number of what the command does; 0 where this version does not
// know it.
func (c *Command) Kind() int { return commandKinds()[reflect.TypeOf(c.Op)] }

// commandKinds are Kind's answers. A search by type takes a tenth of what
// protoreflect does.
var commandKinds = sync.OnceValue(func() map[reflect.Type]int {
	kinds := make(map[reflect.Type]int)
	ops := commandOps().Fields()
	for i := range ops.Len() {
		cmd := new(Command)
		m := cmd.ProtoReflect()
		m.Set(ops.Get(i), m.NewField(ops.Get(i)))
		kinds[reflect.TypeOf(cmd.Op)] = int(ops.Get(i).Number())
	}
	return kinds
})
