package file

import (
	"cmp"
	"slices"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/persist"
	"github.com/gearsfs/gearsfs/stream"
	"github.com/gearsfs/gearsfs/wire"
)

// leases is the index of the out table by session. Whoever holds many leases
// pays for them in memory, the records do not.
type leases map[gearsfs.SessionID]map[leaseKey]struct{}

type leaseKey struct {
	ino gearsfs.Ino
	key gearsfs.Key
	at  gearsfs.Place
}

func (a leaseKey) compare(b leaseKey) int {
	return cmp.Or(cmp.Compare(a.ino, b.ino), cmp.Compare(a.key, b.key), comparePlaces(a.at, b.at))
}

func (s *sessions) addLease(holder gearsfs.SessionID, l leaseKey) {
	if holder.IsZero() {
		return // it is held by its receipt
	}
	held := s.leases[holder]
	if held == nil {
		held = make(map[leaseKey]struct{})
		s.leases[holder] = held
	}
	held[l] = struct{}{}
}

func (s *sessions) removeLease(holder gearsfs.SessionID, l leaseKey) {
	held := s.leases[holder]
	delete(held, l)
	if len(held) == 0 {
		delete(s.leases, holder)
	}
}

// loadLeases rebuilds the index.
func (m *Machine) loadLeases() error {
	lo, hi := persist.TableRange(persist.TableOut)
	return scanOuts(m.store, lo, hi, func(k []byte, at gearsfs.Place, out stream.Out) error {
		if !out.Leased {
			return nil
		}
		ino, key, _, err := persist.ParseOutKey(k)
		if err == nil {
			m.sessions.addLease(out.Holder, leaseKey{ino, key, at})
		}
		return err
	})
}

// returnLeases gives back all records that a session has leased, in the order
// of inode, key and place.
func (m *Machine) returnLeases(c *context, id gearsfs.SessionID) error {
	held := make([]leaseKey, 0, len(m.sessions.leases[id]))
	for l := range m.sessions.leases[id] {
		held = append(held, l)
	}
	slices.SortFunc(held, leaseKey.compare)
	for _, l := range held {
		n, err := m.node(l.ino)
		if err != nil {
			return err
		}
		var s *openStream
		if n != nil {
			if s, err = m.stream(n, l.key); err != nil {
				return err
			}
		}
		if s == nil {
			return gearsfs.ErrDamaged.Because("inode %d, stream %q: records are leased but the stream is missing", l.ino, l.key)
		}
		if err := m.comeBack(c, s, l.at, 0, 0); err != nil {
			return err
		}
	}
	return nil
}

// Answered reports whether a command of a session was applied before, as of the
// last applied entry: applied again, it would change nothing and be answered as
// it was, or that it is late.
func (m *Machine) Answered(id gearsfs.SessionID, seq uint64) (bool, error) {
	m.mu.RLock()
	view := m.store.View()
	m.mu.RUnlock()
	defer view.Close() //nolint:errcheck // it was only read
	value, ok, err := view.Get(persist.AppendSessionKey(nil, id), nil)
	if err != nil || !ok {
		return false, err
	}
	var row wire.SessionRow
	if err := row.UnmarshalVT(value); err != nil {
		return false, damaged("session", err)
	}
	_, known := findAnswer(&row, seq)
	return known || isConfirmed(&row, seq), nil
}

// Sessions returns the sessions that the volume remembers and that are not
// closed, and those that hold a lease, a lock or an inode without a name.
func (m *Machine) Sessions() (map[gearsfs.SessionID]struct{}, error) {
	m.mu.RLock()
	found := make(map[gearsfs.SessionID]struct{}, len(m.sessions.leases))
	for id := range m.sessions.leases {
		found[id] = struct{}{}
	}
	for id := range m.locks.of {
		found[id] = struct{}{}
	}
	view := m.store.View()
	m.mu.RUnlock()
	defer view.Close()
	err := scanOrphans(view, func(_ gearsfs.Ino, holders []gearsfs.SessionID) {
		for _, id := range holders {
			found[id] = struct{}{}
		}
	})
	if err != nil {
		return nil, err
	}
	return found, scanSessions(view, func(id gearsfs.SessionID, row *wire.SessionRow) {
		if row.Closed == 0 {
			found[id] = struct{}{}
		}
	})
}

// scanSessions calls visit with every session's row, in order.
func scanSessions(r Reader, visit func(id gearsfs.SessionID, row *wire.SessionRow)) error {
	lo, hi := persist.TableRange(persist.TableSession)
	return scan(r, lo, hi, func(key, value []byte) error {
		id, err := persist.ParseSessionKey(key)
		var row wire.SessionRow
		if err == nil {
			err = row.UnmarshalVT(value)
		}
		if err != nil {
			return damaged("session", err)
		}
		visit(id, &row)
		return nil
	})
}
