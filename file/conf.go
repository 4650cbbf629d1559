package file

import (
	"fmt"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/wire"
)

// ApplyConf is Apply for an entry of the log that changed which nodes replicate
// the volume; conf is the outcome, which the Machine keeps and does not read.
// What the change carried along is a wire.MemberChange, or nothing: the member
// table changes in the same batch. The Observer is told that the members
// changed.
func (m *Machine) ApplyConf(index, term uint64, conf, context []byte) error {
	applied, err := m.applyConfLocked(index, term, conf, context)
	if err != nil {
		return fmt.Errorf("apply entry %d: %w", index, err)
	}
	if applied && m.obs != nil {
		m.obs.MembersChanged()
	}
	return nil
}

func (m *Machine) applyConfLocked(index, term uint64, conf, context []byte) (applied bool, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.broken != nil {
		return false, m.broken
	}
	if index <= m.volume.AppliedIndex {
		return false, nil
	}
	var change wire.MemberChange
	if err := change.UnmarshalVT(context); err != nil {
		m.broken = gearsfs.ErrDamaged.Because("the member change: %v", err)
		return false, m.broken
	}
	if err := m.changeMembers(index, &change); err != nil {
		m.broken = err
		return false, err
	}
	m.volume.ConfState = conf
	m.volume.AppliedIndex, m.volume.AppliedTerm = index, term
	m.flushVolume()
	if m.broken == nil {
		m.broken = m.store.Commit()
	}
	return m.broken == nil, m.broken
}

// ConfState returns what ApplyConf was last given, nil on an empty volume. It
// must not be changed.
func (m *Machine) ConfState() []byte {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.volume.ConfState
}

// LogTime returns the time of the latest entry that was applied, in
// nanoseconds since the Unix epoch; 0 where there is none.
func (m *Machine) LogTime() uint64 {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.volume.LogTime
}
