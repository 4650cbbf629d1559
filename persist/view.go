package persist

import (
	"fmt"

	"github.com/cockroachdb/pebble/v2"
)

// moment is the tables between two changes: the Views of that time share its
// snapshot. To end a snapshot has Pebble look for something to compact, which
// takes longer than a Get. One behind which nothing was written keeps nothing
// from being removed, so the last may stay as long as nobody changes anything.
//
//	View -> current -> passLocked -> the last View's Close -> its snapshot ends
type moment struct {
	snap   *pebble.Snapshot
	tables *tables
	uses   int // Views, and one while it is current; guarded by the State's mu
}

// View returns the committed state as of now; it must be closed before the
// State is.
func (s *State) View() View {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.moveLocked(); err != nil {
		return noView{fmt.Errorf("read the state: %w", err)}
	}
	if s.moment == nil {
		s.tables.uses++
		s.moment = &moment{snap: s.tables.db.NewSnapshot(), tables: s.tables, uses: 1}
	}
	s.moment.uses++
	return view{snapshotReader{s.moment.snap}, s, s.moment}
}

// passLocked says that the tables change: who looks from now on is shown another
// moment.
func (s *State) passLocked() {
	if m := s.moment; m != nil {
		s.moment = nil
		s.unviewLocked(m) //nolint:errcheck // a snapshot has nothing to lose
	}
}

func (s *State) pass() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.passLocked()
}

// unviewLocked takes back a use of a moment.
func (s *State) unviewLocked(m *moment) error {
	m.uses--
	if m.uses > 0 {
		return nil
	}
	defer s.releaseLocked(m.tables)
	return m.snap.Close()
}

// noView is what there is instead of a View when Pebble takes no more rows.
type noView struct{ err error }

func (v noView) Get(_, buf []byte) ([]byte, bool, error) { return buf, false, v.err }
func (v noView) Scan(_, _ []byte) (Iterator, error)      { return nil, v.err }
func (v noView) Close() error                            { return nil }

// view is a View of a moment.
type view struct {
	snapshotReader
	state  *State
	moment *moment
}

func (v view) Close() error {
	v.state.mu.Lock()
	defer v.state.mu.Unlock()
	return v.state.unviewLocked(v.moment)
}

// snapshotReader reads the tables as a snapshot of them shows them.
type snapshotReader struct{ snap *pebble.Snapshot }

func (r snapshotReader) Get(key, buf []byte) ([]byte, bool, error) { return get(r.snap, key, buf) }
func (r snapshotReader) Scan(lo, hi []byte) (Iterator, error)      { return scan(r.snap, lo, hi) }
