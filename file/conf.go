package file

import "fmt"

// ApplyConf is Apply for an entry of the log that changed which nodes replicate
// the volume; conf is the outcome, which the Machine keeps and does not read.
func (m *Machine) ApplyConf(index, term uint64, conf []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.broken != nil {
		return fmt.Errorf("apply entry %d: %w", index, m.broken)
	}
	if index <= m.volume.AppliedIndex {
		return nil
	}
	m.volume.ConfState = conf
	m.volume.AppliedIndex, m.volume.AppliedTerm = index, term
	m.flushVolume()
	if m.broken == nil {
		m.broken = m.store.Commit()
	}
	if m.broken != nil {
		return fmt.Errorf("apply entry %d: %w", index, m.broken)
	}
	return nil
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
