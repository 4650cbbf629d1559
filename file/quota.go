package file

import (
	"maps"
	"slices"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/persist"
	"github.com/gearsfs/gearsfs/wire"
)

// A quota bounds a directory with all below it. Each inode names the innermost
// quota that it counts under, so that a change of its bytes finds all of them
// with a step for each:
//
//	inode.quota -> quota -> outer -> outer -> 0
//
// Invariants, while no quota is being counted:
//
//  1. A directory counts under its own quota where it has one, else under that of
//     its parent. Anything else got the quota of the directory that it was made
//     in, or moved to; names in other directories, which it can only have from
//     before there was a quota, do not matter.
//  2. The use of a quota is the sum of the inodes, and of the bytes of all their
//     streams, that count under it or under one that it is around.
//  3. A quota that was removed has no limits, and goes when nothing counts under
//     it: files may have a name outside of it.
//
// To set a quota on a directory, or to take it away, the inodes below it are
// counted anew, in steps of countMax names, one per command. The count table has
// the directories whose names are still to be visited; a directory counts where it
// will before it stands there, so what is made in it or moved to it meanwhile does,
// too. One quota is counted at a time. It is enforced as far as it is counted.
//
// What has names can't leave its quota for another but alone: renaming a directory
// with something in it, or a file with several names, or making a second name,
// gives gearsfs.ErrCross, as project quotas of other file systems do. A directory
// with a quota of its own moves with all that it has.

const (
	countMax  = 1000
	quotasMax = 10_000
)

type quota struct {
	dir   gearsfs.Ino
	row   wire.QuotaRow
	dirty bool // in Machine.dirtyQuotas
	gone  bool
}

type quotas struct {
	all   map[gearsfs.Ino]*quota
	dirty []*quota
}

func (m *Machine) loadQuotas() error {
	m.quotas = quotas{all: make(map[gearsfs.Ino]*quota)}
	return scanQuotas(m.store, func(dir gearsfs.Ino, row *wire.QuotaRow) error {
		q := &quota{dir: dir}
		q.row.Outer, q.row.LimitBytes, q.row.LimitInodes = row.Outer, row.LimitBytes, row.LimitInodes
		q.row.Bytes, q.row.Inodes, q.row.Removed = row.Bytes, row.Inodes, row.Removed
		m.quotas.all[dir] = q
		return nil
	})
}

func scanQuotas(r Reader, visit func(dir gearsfs.Ino, row *wire.QuotaRow) error) error {
	lo, hi := persist.TableRange(persist.TableQuota)
	return scan(r, lo, hi, func(key, value []byte) error {
		dir, err := persist.ParseQuotaKey(key)
		if err != nil {
			return err
		}
		var row wire.QuotaRow
		if err := row.UnmarshalVT(value); err != nil {
			return damaged("quota", err)
		}
		return visit(dir, &row)
	})
}

func (m *Machine) dirtyQuota(q *quota) {
	if !q.dirty {
		q.dirty = true
		m.quotas.dirty = append(m.quotas.dirty, q)
	}
}

func (m *Machine) flushQuotas() {
	for _, q := range m.quotas.dirty {
		q.dirty = false
		if q.gone {
			m.store.Delete(persist.QuotaKey(q.dir))
		} else {
			m.set(persist.QuotaKey(q.dir), &q.row)
		}
	}
	clear(m.quotas.dirty)
	m.quotas.dirty = m.quotas.dirty[:0]
}

// ownQuota returns the quota that is set on a directory, nil where none is.
func (m *Machine) ownQuota(n *node) *quota {
	if n.row.Quota != uint64(n.ino) {
		return nil
	}
	return m.quotas.all[n.ino]
}

// charge adds to the use of a quota and all around it; to take away, add the
// number's negative.
func (m *Machine) charge(under, bytes, inodes uint64) {
	for under != 0 {
		q := m.quotas.all[gearsfs.Ino(under)]
		if q == nil {
			m.refuse(gearsfs.ErrDamaged.Because("the quota of inode %d does not exist", under))
			return
		}
		q.row.Bytes += bytes
		q.row.Inodes += inodes
		m.dirtyQuota(q)
		m.tidyQuota(q)
		under = q.row.Outer
	}
}

// tidyQuota forgets a quota that was removed and that nothing counts under.
func (m *Machine) tidyQuota(q *quota) {
	if q.row.Removed && q.row.Inodes == 0 && m.volume.Counting != uint64(q.dir) {
		q.gone = true
		delete(m.quotas.all, q.dir)
		m.dirtyQuota(q)
	}
}

// around reports whether a quota is under or around it.
func (m *Machine) around(q *quota, under uint64) bool {
	for under != 0 {
		inner := m.quotas.all[gearsfs.Ino(under)]
		if inner == q || inner == nil {
			return inner != nil
		}
		under = inner.row.Outer
	}
	return false
}

// room checks whether what counts under a quota may grow: gearsfs.ErrQuota.
func (m *Machine) room(under, bytes, inodes uint64) error {
	return m.roomBeside(under, 0, bytes, inodes)
}

// roomBeside is room for what has counted under another quota so far.
func (m *Machine) roomBeside(under, before, bytes, inodes uint64) error {
	for under != 0 {
		q := m.quotas.all[gearsfs.Ino(under)]
		if q == nil || before != 0 && m.around(q, before) {
			return nil
		}
		if err := q.fits(bytes, inodes); err != nil {
			return err
		}
		under = q.row.Outer
	}
	return nil
}

func (q *quota) fits(bytes, inodes uint64) error {
	row := &q.row
	switch {
	case bytes > 0 && row.LimitBytes != 0 && bytes > left(row.LimitBytes, row.Bytes):
		return gearsfs.ErrQuota.Because("the quota of %d bytes on the directory with inode %d is used up: takes, removals and truncation still work",
			row.LimitBytes, q.dir)
	case inodes > 0 && row.LimitInodes != 0 && inodes > left(row.LimitInodes, row.Inodes):
		return gearsfs.ErrQuota.Because("the quota of %d inodes on the directory with inode %d is used up: writing and removing still work",
			row.LimitInodes, q.dir)
	}
	return nil
}

func left(limit, used uint64) uint64 { return limit - min(limit, used) }

// recharge lets an inode count under another quota than before.
func (m *Machine) recharge(n *node, under uint64) {
	if n.row.Quota == under {
		return
	}
	m.countBytes()
	was := n.row.Quota
	n.row.Quota = under
	m.dirtyNode(n)
	m.charge(under, n.row.Bytes, 1)
	m.charge(was, -n.row.Bytes, ^uint64(0))
}

// surround makes outer the next quota around q.
func (m *Machine) surround(q *quota, outer uint64) {
	if q.row.Outer == outer {
		return
	}
	m.countBytes()
	was := q.row.Outer
	q.row.Outer = outer
	m.dirtyQuota(q)
	m.charge(outer, q.row.Bytes, q.row.Inodes)
	m.charge(was, -q.row.Bytes, -q.row.Inodes)
}

var errCounting = gearsfs.ErrBusy.Because("another quota is being counted: try again when that is done")

// applySetQuota sets, changes or removes the quota of a directory. Only the
// volume's owner may, who is the root directory's. The answer's count is not 0
// where CountQuota is to follow.
func (m *Machine) applySetQuota(c *context, op *wire.SetQuota) *wire.Answer {
	n, err := m.node(gearsfs.Ino(op.Dir))
	var root *node
	if err == nil {
		root, err = m.node(gearsfs.RootIno)
	}
	switch {
	case err != nil:
	case n == nil:
		err = gearsfs.ErrStale
	case !isDir(n.row.Mode):
		err = gearsfs.ErrNotDir
	case n.row.Nlink == 0:
		err = gearsfs.ErrNotFound
	case !c.privileged() && c.caller.UID != root.row.Uid:
		err = gearsfs.ErrPermission.Because("only the volume's owner may set quotas")
	default:
		err = m.setQuota(n, op)
	}
	if err != nil {
		return m.refuse(err)
	}
	return &wire.Answer{Ino: op.Dir, Count: m.volume.Counting}
}

func (m *Machine) setQuota(n *node, op *wire.SetQuota) error {
	q := m.ownQuota(n)
	counts := op.Remove || q == nil
	switch {
	case op.Remove && q == nil:
		return gearsfs.ErrNotFound.Because("no quota is set on the directory")
	case counts && m.volume.Counting != 0:
		return errCounting
	case q == nil && len(m.quotas.all) >= quotasMax:
		return gearsfs.ErrTooBig.Because("a volume has at most %d quotas", quotasMax)
	case op.Remove:
		m.removeQuota(n, q)
	case q == nil:
		var err error
		if q, err = m.addQuota(n); err != nil {
			return err
		}
	}
	if op.Bytes != nil {
		q.row.LimitBytes = *op.Bytes
	}
	if op.Inodes != nil {
		q.row.LimitInodes = *op.Inodes
	}
	m.dirtyQuota(q)
	if !counts {
		return nil
	}
	m.volume.Counting = uint64(n.ino)
	m.set(persist.CountKey(n.ino), &wire.CountRow{})
	return m.countNames()
}

// addQuota makes the quota of a directory, as the outer one of those that are
// set on directories in it.
func (m *Machine) addQuota(n *node) (*quota, error) {
	outer := n.row.Quota
	var inner []*quota
	for _, dir := range slices.Sorted(maps.Keys(m.quotas.all)) {
		q := m.quotas.all[dir]
		if q.row.Outer != outer || q.row.Removed {
			continue
		}
		d, err := m.node(dir)
		if err == nil && d == nil {
			err = gearsfs.ErrDamaged.Because("inode %d has a quota and does not exist", dir)
		}
		if err != nil {
			return nil, err
		}
		if inside, err := m.isInside(d, n); err != nil {
			return nil, err
		} else if inside {
			inner = append(inner, q)
		}
	}
	q := m.quotas.all[n.ino]
	if q == nil {
		q = &quota{dir: n.ino}
		q.row.Outer = outer
		m.quotas.all[n.ino] = q
	}
	q.row.Removed = false
	m.surround(q, outer)
	for _, i := range inner {
		m.surround(i, uint64(n.ino))
	}
	m.recharge(n, uint64(n.ino))
	return q, nil
}

// removeQuota takes the limits of a directory's quota away; what counts under it
// is still to be counted anew.
func (m *Machine) removeQuota(n *node, q *quota) {
	outer := q.row.Outer
	for _, dir := range slices.Sorted(maps.Keys(m.quotas.all)) {
		if inner := m.quotas.all[dir]; inner.row.Outer == uint64(q.dir) {
			m.surround(inner, outer)
		}
	}
	q.row.LimitBytes, q.row.LimitInodes = 0, 0
	m.recharge(n, outer)
	q.row.Removed = true
	m.dirtyQuota(q)
}

// dropQuota is for a directory that has lost its name.
func (m *Machine) dropQuota(n *node) {
	if m.volume.Counting != 0 {
		m.store.Delete(persist.CountKey(n.ino))
	}
	q := m.ownQuota(n)
	if q != nil {
		m.removeQuota(n, q)
	}
	if m.volume.Counting == uint64(n.ino) { // it is empty, so nothing is left to visit
		m.endCount()
	} else if q != nil {
		m.tidyQuota(q)
	}
}

func (m *Machine) endCount() {
	q := m.quotas.all[gearsfs.Ino(m.volume.Counting)]
	m.volume.Counting = 0
	if q != nil {
		m.tidyQuota(q)
	}
}

// applyCountQuota does one more step of the count.
func (m *Machine) applyCountQuota() *wire.Answer {
	if err := m.countNames(); err != nil {
		return m.refuse(err)
	}
	return &wire.Answer{Count: m.volume.Counting}
}

// countNames visits the next names in directories that are to be counted.
func (m *Machine) countNames() error {
	if m.volume.Counting == 0 {
		return nil
	}
	q := m.quotas.all[gearsfs.Ino(m.volume.Counting)]
	if q == nil {
		return gearsfs.ErrDamaged.Because("the quota of inode %d is counted and does not exist", m.volume.Counting)
	}
	from, to := q.row.Outer, uint64(q.dir)
	if q.row.Removed {
		from, to = to, from
	}
	for limit := m.countMax; limit > 0; {
		dir, after, err := m.toCount()
		if err != nil {
			return err
		}
		if dir == 0 {
			m.endCount()
			return nil
		}
		names, err := dirents(m.store, dir, after, limit)
		if err != nil {
			return err
		}
		if len(names) < limit {
			m.store.Delete(persist.CountKey(dir))
		} else {
			m.set(persist.CountKey(dir), &wire.CountRow{After: names[limit-1].key.name})
		}
		for i := range names {
			if err := m.countInode(names[i].to.ino, from, to); err != nil {
				return err
			}
		}
		limit -= max(len(names), 1)
	}
	return nil
}

// toCount returns the first directory that is to be visited, 0 where none is.
func (m *Machine) toCount() (dir gearsfs.Ino, after string, err error) {
	lo, hi := persist.TableRange(persist.TableCount)
	err = scan(m.store, lo, hi, func(key, value []byte) error {
		var row wire.CountRow
		if err := row.UnmarshalVT(value); err != nil {
			return damaged("count", err)
		}
		var err error
		if dir, err = persist.ParseCountKey(key); err != nil {
			return err
		}
		after = row.After
		return errStop
	})
	return dir, after, err
}

// countInode lets an inode that was found count under another quota.
func (m *Machine) countInode(ino gearsfs.Ino, from, to uint64) error {
	n, err := m.node(ino)
	if err == nil && n == nil {
		err = gearsfs.ErrDamaged.Because("a name leads to inode %d, which does not exist", ino)
	}
	if err != nil || n.row.Quota != from {
		return err
	}
	m.recharge(n, to)
	if isDir(n.row.Mode) {
		m.set(persist.CountKey(ino), &wire.CountRow{})
	}
	return nil
}

// mayCross checks whether n may leave one directory for another, where they
// count under different quotas.
func (m *Machine) mayCross(n, from, to *node, flags uint32) error {
	before, under := from.row.Quota, to.row.Quota
	if before == under {
		return nil
	}
	if flags == renameExchange {
		return gearsfs.ErrCross
	}
	m.countBytes()
	if q := m.ownQuota(n); q != nil {
		if m.volume.Counting == uint64(n.ino) {
			return errCounting
		}
		return m.roomBeside(under, before, q.row.Bytes, q.row.Inodes)
	}
	if isDir(n.row.Mode) && n.row.Entries > 0 || n.row.Quota != under && !isDir(n.row.Mode) && n.row.Nlink > 1 {
		return gearsfs.ErrCross
	}
	return m.roomBeside(under, n.row.Quota, n.row.Bytes, 1)
}

// cross lets n count where it is now, as mayCross has allowed.
func (m *Machine) cross(n, from, to *node) {
	if from.row.Quota == to.row.Quota {
		return
	}
	if q := m.ownQuota(n); q != nil {
		m.surround(q, to.row.Quota)
		return
	}
	m.recharge(n, to.row.Quota)
	if isDir(n.row.Mode) && m.volume.Counting != 0 {
		m.store.Delete(persist.CountKey(n.ino)) // it is empty
	}
}

// mayLink checks whether a file may have one more name, in that directory.
func (m *Machine) mayLink(n, dir *node) error {
	switch {
	case n.row.Quota == dir.row.Quota:
		return nil
	case n.row.Nlink > 0:
		return gearsfs.ErrCross
	}
	m.countBytes()
	return m.roomBeside(dir.row.Quota, n.row.Quota, n.row.Bytes, 1)
}
