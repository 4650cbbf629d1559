package file

import (
	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/persist"
	"github.com/gearsfs/gearsfs/wire"
)

// InMemory says whether a stream's records are in memory: commands for them must
// not come here.
func (m *Machine) InMemory(ino gearsfs.Ino, key gearsfs.Key) bool {
	m.mu.RLock()
	if s, ok := m.streams.get(streamKey{ino, key}); ok {
		defer m.mu.RUnlock()
		return s.queue.State().Memory
	}
	m.mu.RUnlock()
	st := m.StreamState(ino, key)
	return st.state.Memory
}

// AnyInMemory says whether the volume has a stream whose records are in memory.
// It looks at every stream.
func (m *Machine) AnyInMemory() (any bool, err error) {
	r := m.read()
	defer r.close()
	lo, hi := persist.TableRange(persist.TableStream)
	err = scan(r.view, lo, hi, func(_, value []byte) error {
		var row wire.StreamRow
		if err := row.UnmarshalVTUnsafe(value); err != nil {
			return err
		}
		if any = row.Memory; any {
			return errStop
		}
		return nil
	})
	return any, err
}
