package file

import (
	"errors"
	"slices"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/persist"
	"github.com/gearsfs/gearsfs/wire"
)

// An orphan is an inode without a name that sessions have open. Its row in the
// orphan table lists them; when the last lets go, the inode is deleted.

// sessionIDs reads the ids that a command or row lists, minted and salt in turn.
func sessionIDs(list []uint64) []gearsfs.SessionID {
	ids := make([]gearsfs.SessionID, 0, len(list)/2)
	for i := 0; i+1 < len(list); i += 2 {
		ids = append(ids, gearsfs.SessionID{Minted: int64(list[i]), Salt: list[i+1]})
	}
	return ids
}

func (m *Machine) setOrphan(n *node, holders []gearsfs.SessionID) {
	row := wire.OrphanRow{Holders: make([]uint64, 0, 2*len(holders))}
	for _, id := range holders {
		row.Holders = append(row.Holders, uint64(id.Minted), id.Salt)
	}
	m.set(persist.OrphanKey(n.ino), &row)
	if !n.row.Orphan {
		n.row.Orphan = true
		m.dirtyNode(n)
	}
}

// clearOrphan is for an orphan that gets a name again.
func (m *Machine) clearOrphan(n *node) {
	m.store.Delete(persist.OrphanKey(n.ino))
	n.row.Orphan = false
	m.dirtyNode(n)
}

// letGo takes one holder from an orphan, and deletes it with the last.
func (m *Machine) letGo(n *node, id gearsfs.SessionID) error {
	value, ok, err := m.get(persist.OrphanKey(n.ino))
	if err != nil {
		return err
	}
	var row wire.OrphanRow
	if ok {
		if err := row.UnmarshalVT(value); err != nil {
			return damaged("orphan", err)
		}
	}
	holders := sessionIDs(row.Holders)
	left := slices.DeleteFunc(slices.Clone(holders), func(h gearsfs.SessionID) bool { return h == id })
	switch len(left) {
	case 0:
		return m.deleteNode(n)
	case len(holders):
	default:
		m.setOrphan(n, left)
	}
	return nil
}

func (m *Machine) applyRelease(c *context, op *wire.Release) *wire.Answer {
	n, err := m.reach(gearsfs.Ino(op.Ino))
	if err == nil && n != nil && n.row.Orphan {
		err = m.letGo(n, c.session)
	}
	if err != nil {
		return m.refuse(err)
	}
	return &wire.Answer{}
}

// releaseOrphans lets go of every orphan that a session has open.
func (m *Machine) releaseOrphans(id gearsfs.SessionID) error {
	var held []gearsfs.Ino
	err := scanOrphans(m.store, func(ino gearsfs.Ino, holders []gearsfs.SessionID) {
		if slices.Contains(holders, id) {
			held = append(held, ino)
		}
	})
	if err != nil {
		return err
	}
	for _, ino := range held {
		n, err := m.node(ino)
		if err == nil && n == nil {
			err = gearsfs.ErrDamaged.Because("orphan %d does not exist", ino)
		}
		if err == nil {
			err = m.letGo(n, id)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// scanOrphans calls visit with every orphan and the sessions that hold it.
func scanOrphans(r Reader, visit func(ino gearsfs.Ino, holders []gearsfs.SessionID)) error {
	lo, hi := persist.TableRange(persist.TableOrphan)
	return scan(r, lo, hi, func(key, value []byte) error {
		ino, err := persist.ParseOrphanKey(key)
		if err != nil {
			return err
		}
		var row wire.OrphanRow
		if err := row.UnmarshalVT(value); err != nil {
			return damaged("orphan", err)
		}
		visit(ino, sessionIDs(row.Holders))
		return nil
	})
}

// errStop ends a scan without an error.
var errStop = errors.New("stop")

// scan calls visit with each row in [lo, hi) until it returns an error, which
// comes out, or errStop.
func scan(r Reader, lo, hi []byte, visit func(key, value []byte) error) error {
	it, err := r.Scan(lo, hi)
	if err != nil {
		return err
	}
	for ok := it.First(); ok; ok = it.Next() {
		if err = visit(it.Key(), it.Value()); err != nil {
			break
		}
	}
	if closed := it.Close(); err == nil || err == errStop {
		err = closed
	}
	return err
}

// deleteNode deletes an inode with everything that it has, or dooms it where that
// is too much for one entry.
func (m *Machine) deleteNode(n *node) error {
	if n.row.Streams > 0 {
		more, err := m.dropStreams(n)
		if err != nil {
			return err
		}
		if more {
			m.doom(n)
			return nil
		}
	}
	if n.row.Xattrs > 0 {
		m.store.DeleteRange(persist.FileRange(persist.TableXattr, n.ino))
	}
	if n.row.Orphan {
		m.store.Delete(persist.OrphanKey(n.ino))
	}
	if n.row.Doomed {
		m.volume.Doomed--
	}
	m.dropLocks(n.ino)
	m.charge(n.row.Quota, 0, ^uint64(0)) // its bytes went with its streams
	m.store.Delete(persist.InodeKey(n.ino))
	m.nodes.drop(n.ino)
	n.gone = true
	m.volume.Inodes--
	return nil
}
