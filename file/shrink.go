package file

import (
	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/persist"
	"github.com/gearsfs/gearsfs/wire"
)

// Removing what is large
//
// Each row with extents lets go of its pages, so to remove a file's bytes takes
// time for each 128 KiB of them, in which nothing else is applied. Therefore an
// entry removes at most shrinkMax such rows:
//
//   - An inode without names and holders that has more is doomed: an orphan that
//     nobody holds and no command or reader reaches any more. The leader has it
//     removed by Shrink commands, one behind the other, so that all else comes
//     between. Its bytes count until they are gone.
//   - What would remove more of a file that is still there (truncating it, clearing
//     or dropping a stream) is refused with *oversize. The node that asked has
//     the end removed by a Shrink, and asks again: meanwhile others see the
//     stream get shorter.

// shrinkMax rows take some 10 ms to let go of, where others share their pages four times that.
const shrinkMax = 1024

// oversize is gearsfs.ErrOversize of a command before which another is to come.
type oversize struct{ first *wire.Shrink }

func (o *oversize) Error() string { return gearsfs.ErrOversize.Reason }
func (o *oversize) Unwrap() error { return gearsfs.ErrOversize }

// reach is node for commands that name an inode: nil also where it is doomed.
func (m *Machine) reach(ino gearsfs.Ino) (*node, error) {
	n, err := m.node(ino)
	if n != nil && n.row.Doomed {
		n = nil
	}
	return n, err
}

// Doomed reports whether there are inodes for Shrink to remove.
func (m *Machine) Doomed() bool { return m.doomed.Load() }

// doom makes an inode that is without names and holders unreachable.
func (m *Machine) doom(n *node) {
	if n.row.Doomed {
		return
	}
	m.setOrphan(n, nil)
	m.dropLocks(n.ino)
	n.row.Doomed = true
	m.volume.Doomed++
	m.dirtyNode(n)
}

// checkRemoval returns *oversize where what a stream has at tail and behind it is
// too much for one entry.
func (m *Machine) checkRemoval(s *openStream, tail gearsfs.Pos) error {
	end, more, err := m.end(s, max(tail, s.queue.State().Head.Pos), m.shrinkMax)
	if err != nil || !more {
		return err
	}
	return &oversize{&wire.Shrink{Ino: uint64(s.node.ino), Key: string(s.key), Tail: uint64(end)}}
}

// end returns where the last rows of a stream begin, as many as limit says, and
// whether it has more of them behind tail. Empty records at the very end do not
// count: they hold no pages, and with the end where they are nothing would go.
func (m *Machine) end(s *openStream, tail gearsfs.Pos, limit uint64) (from gearsfs.Pos, more bool, err error) {
	if s.extents <= limit {
		return 0, false, nil
	}
	lo, hi := m.rowsOf(s).recordRange(gearsfs.Place{}, gearsfs.Place{Pos: s.queue.State().Tail})
	it, err := m.store.Scan(lo, hi)
	if err != nil {
		return 0, false, err
	}
	n := uint64(0)
	for ok := it.Last(); ok && err == nil; ok = it.Prev() {
		var at gearsfs.Place
		if at, err = persist.ParsePlace(it.Key()); err != nil || at.Pos < tail {
			break
		}
		if n++; n > limit {
			more = true
			break
		}
		from = at.Pos
	}
	if closed := it.Close(); err == nil {
		err = closed
	}
	return from, more, err
}

// dropEnd removes the last rows of a stream, where it has more than limit.
func (m *Machine) dropEnd(s *openStream, limit uint64) (more bool, err error) {
	from, more, err := m.end(s, s.queue.State().Head.Pos, limit)
	if err == nil && more {
		m.dirtyStream(s)
		err = s.queue.SetTail(from)
	}
	return more, err
}

func (m *Machine) applyShrink(c *context, op *wire.Shrink) *wire.Answer {
	var err error
	if op.Ino == 0 {
		err = m.removeDoomed()
	} else {
		err = m.shrink(c, op)
	}
	if err != nil {
		return m.refuse(err)
	}
	return &wire.Answer{Count: m.volume.Doomed}
}

// shrink removes the end of a stream.
func (m *Machine) shrink(c *context, op *wire.Shrink) error {
	n, err := m.reach(gearsfs.Ino(op.Ino))
	if err != nil || n == nil || !isFile(n.row.Mode) {
		return err
	}
	s, err := m.stream(n, gearsfs.Key(op.Key))
	if err != nil || s == nil || gearsfs.Pos(op.Tail) >= s.queue.State().Tail {
		return err
	}
	if err := s.queue.SetTail(gearsfs.Pos(op.Tail)); err != nil {
		return err
	}
	m.dirtyStream(s)
	m.touch(n.ino, s.key).Room = true
	m.dataChanged(c, s)
	return nil
}

// removeDoomed goes on removing the first inode that is doomed.
func (m *Machine) removeDoomed() error {
	if m.volume.Doomed == 0 {
		return nil
	}
	var first gearsfs.Ino
	err := scanOrphans(m.store, func(ino gearsfs.Ino, holders []gearsfs.SessionID) {
		if first == 0 && len(holders) == 0 {
			first = ino
		}
	})
	if err != nil {
		return err
	}
	n, err := m.node(first)
	if err == nil && n == nil {
		err = gearsfs.ErrDamaged.Because("%d inodes are doomed, and inode %d does not exist", m.volume.Doomed, first)
	}
	if err != nil {
		return err
	}
	return m.deleteNode(n)
}
