package file

import (
	"cmp"
	"maps"
	"slices"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/persist"
	"github.com/gearsfs/gearsfs/wire"
)

// Locks of flock(2) and fcntl(2) belong to a session, and within it to an owner
// that it names. They end with the session. The state machine knows only who has
// one: who waits is known to the node that leads.
//
// Invariants:
//
//  1. Of two locks of one kind on a file that overlap and have not the same owner,
//     none is for writing.
//  2. No two locks of one owner and kind overlap, and those that touch each other
//     are not alike.
//  3. A file's locks are in the order of compare.

const (
	lockNone = iota
	lockRead
	lockWrite
)

// Bounds of what is locked: all of it is in memory, a file's in one row.
const (
	locksPerFileMax    = 4 << 10
	locksPerSessionMax = 256 << 10
)

// lockOwner is who has a lock.
type lockOwner struct {
	session gearsfs.SessionID
	owner   uint64
	flock   bool
}

func (a lockOwner) compare(b lockOwner) int {
	return cmp.Or(cmp.Compare(a.session.Minted, b.session.Minted), cmp.Compare(a.session.Salt, b.session.Salt),
		cmp.Compare(a.owner, b.owner), compareBools(a.flock, b.flock))
}

func compareBools(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

type fileLock struct {
	by         lockOwner
	kind       uint32
	start, end uint64
	pid        uint32
}

func (a fileLock) compare(b fileLock) int {
	return cmp.Or(cmp.Compare(a.start, b.start), a.by.compare(b.by))
}

func (a *fileLock) overlaps(b *fileLock) bool { return a.start <= b.end && b.start <= a.end }

// minds reports whether both can't be had at once.
func (a *fileLock) minds(b *fileLock) bool {
	return a.by != b.by && a.by.flock == b.by.flock && a.overlaps(b) && (a.kind == lockWrite || b.kind == lockWrite)
}

func lockOf(session gearsfs.SessionID, l *wire.Lock) fileLock {
	return fileLock{by: lockOwner{session, l.Owner, l.Flock}, kind: l.Kind, start: l.Start, end: l.End, pid: l.Pid}
}

func (a *fileLock) wire() *wire.Lock {
	return &wire.Lock{Owner: a.by.owner, Flock: a.by.flock, Kind: a.kind, Start: a.start, End: a.end, Pid: a.pid}
}

// fileLocks are the locks on a file.
type fileLocks struct {
	ino   gearsfs.Ino
	list  []fileLock
	dirty bool // in locks.dirty
}

// locks are all of them.
type locks struct {
	files map[gearsfs.Ino]*fileLocks
	owned map[lockOwner]int
	of    map[gearsfs.SessionID]map[gearsfs.Ino]int
	count map[gearsfs.SessionID]int
	dirty []*fileLocks
}

func (l *locks) init() {
	*l = locks{
		files: make(map[gearsfs.Ino]*fileLocks), owned: make(map[lockOwner]int),
		of: make(map[gearsfs.SessionID]map[gearsfs.Ino]int), count: make(map[gearsfs.SessionID]int),
	}
}

// add counts a lock, or with -1 its end.
func (l *locks) add(ino gearsfs.Ino, by lockOwner, n int) {
	addTo(l.owned, by, n)
	addTo(l.count, by.session, n)
	files := l.of[by.session]
	if files == nil {
		files = make(map[gearsfs.Ino]int)
		l.of[by.session] = files
	}
	addTo(files, ino, n)
	if len(files) == 0 {
		delete(l.of, by.session)
	}
}

func addTo[K comparable](counts map[K]int, k K, n int) {
	if counts[k] += n; counts[k] == 0 {
		delete(counts, k)
	}
}

func (m *Machine) loadLocks() error {
	m.locks.init()
	return scanLocks(m.store, func(ino gearsfs.Ino, list []fileLock) {
		m.locks.files[ino] = &fileLocks{ino: ino, list: list}
		for i := range list {
			m.locks.add(ino, list[i].by, 1)
		}
	})
}

// scanLocks calls visit with the locks of each file that has some.
func scanLocks(r Reader, visit func(ino gearsfs.Ino, list []fileLock)) error {
	lo, hi := persist.TableRange(persist.TableLock)
	return scan(r, lo, hi, func(key, value []byte) error {
		ino, err := persist.ParseLockKey(key)
		if err != nil {
			return err
		}
		var row wire.LockRow
		if err := row.UnmarshalVT(value); err != nil {
			return damaged("lock", err)
		}
		list := make([]fileLock, len(row.Locks))
		for i, held := range row.Locks {
			if held.Lock == nil {
				return gearsfs.ErrDamaged.Because("lock row of inode %d: no lock", ino)
			}
			list[i] = lockOf(gearsfs.SessionID{Minted: int64(held.SessionMinted), Salt: held.SessionSalt}, held.Lock)
		}
		visit(ino, list)
		return nil
	})
}

func (m *Machine) dirtyLocks(f *fileLocks) {
	if !f.dirty {
		f.dirty = true
		m.locks.dirty = append(m.locks.dirty, f)
	}
}

func (m *Machine) flushLocks() {
	for i, f := range m.locks.dirty {
		m.locks.dirty[i] = nil
		f.dirty = false
		if len(f.list) == 0 {
			m.store.Delete(persist.LockKey(f.ino))
			if m.locks.files[f.ino] == f {
				delete(m.locks.files, f.ino)
			}
			continue
		}
		row := wire.LockRow{Locks: make([]*wire.HeldLock, len(f.list))}
		for i := range f.list {
			l := &f.list[i]
			row.Locks[i] = &wire.HeldLock{SessionMinted: uint64(l.by.session.Minted), SessionSalt: l.by.session.Salt, Lock: l.wire()}
		}
		m.set(persist.LockKey(f.ino), &row)
	}
	m.locks.dirty = m.locks.dirty[:0]
}

// applyLock lets an owner have a lock in the place of what it has in that range,
// or gives that up: gearsfs.ErrLocked where another's is in the way.
func (m *Machine) applyLock(c *context, op *wire.Lock) *wire.Answer {
	n, err := m.reach(gearsfs.Ino(op.Ino))
	switch {
	case err != nil:
	case n == nil:
		err = gearsfs.ErrStale
	case !isFile(n.row.Mode):
		err = gearsfs.ErrInvalid.Because("not a regular file: it can't be locked")
	case op.Kind > lockWrite || op.Start > op.End || op.End > gearsfs.LockEnd || c.session.IsZero():
		err = gearsfs.ErrInvalid
	case op.Kind != lockNone && op.Flock && (m.access(c, n, mayRead) == nil || m.access(c, n, mayWrite) == nil):
	case op.Kind == lockRead:
		err = m.access(c, n, mayRead)
	case op.Kind == lockWrite:
		err = m.access(c, n, mayWrite)
	}
	if err == nil {
		err = m.lock(n.ino, lockOf(c.session, op))
	}
	if err != nil {
		return m.refuse(err)
	}
	return &wire.Answer{}
}

func (m *Machine) lock(ino gearsfs.Ino, want fileLock) error {
	f := m.locks.files[ino]
	if want.kind != lockNone {
		switch {
		case f != nil && f.blocked(&want):
			return gearsfs.ErrLocked
		case f != nil && len(f.list) >= locksPerFileMax-2 || m.locks.count[want.by.session] >= locksPerSessionMax:
			return gearsfs.ErrLocks // it may become two more
		}
	}
	if f == nil {
		if want.kind == lockNone {
			return nil
		}
		f = &fileLocks{ino: ino}
		m.locks.files[ino] = f
	}
	m.setLock(f, want)
	return nil
}

func (f *fileLocks) blocked(want *fileLock) bool {
	return slices.ContainsFunc(f.list, func(l fileLock) bool { return l.minds(want) })
}

// setLock puts a lock in the place of what its owner has in its range.
func (m *Machine) setLock(f *fileLocks, want fileLock) {
	kept := f.list[:0:0]
	var mine []fileLock
	for _, l := range f.list {
		if l.by != want.by {
			kept = append(kept, l)
			continue
		}
		m.locks.add(f.ino, l.by, -1)
		if l.overlaps(&want) && l.kind > want.kind {
			m.touch(f.ino, "").Unlocked = true
		}
		mine = append(mine, l.without(want.start, want.end)...)
	}
	if want.kind != lockNone {
		mine = append(mine, want)
		slices.SortFunc(mine, fileLock.compare)
	}
	for _, l := range joined(mine) {
		m.locks.add(f.ino, l.by, 1)
		kept = append(kept, l)
	}
	slices.SortFunc(kept, fileLock.compare)
	f.list = kept
	m.dirtyLocks(f)
}

// without is what is left of a lock beside a range.
func (a fileLock) without(start, end uint64) (rest []fileLock) {
	if a.start < start {
		front := a
		front.end = min(a.end, start-1)
		rest = append(rest, front)
	}
	if a.end > end {
		back := a
		back.start = max(a.start, end+1)
		rest = append(rest, back)
	}
	return rest
}

// joined makes one of those of an owner's locks, in order, that touch each other
// and are alike.
func joined(list []fileLock) []fileLock {
	out := list[:0:0]
	for _, l := range list {
		if n := len(out); n > 0 && out[n-1].kind == l.kind && out[n-1].end+1 == l.start {
			out[n-1].end, out[n-1].pid = l.end, l.pid
			continue
		}
		out = append(out, l)
	}
	return out
}

// releaseLocks ends all locks of a session.
func (m *Machine) releaseLocks(id gearsfs.SessionID) {
	for _, ino := range slices.Sorted(maps.Keys(m.locks.of[id])) {
		m.endLocks(m.locks.files[ino], func(l *fileLock) bool { return l.by.session == id })
	}
}

// dropLocks ends all locks on a file that is deleted.
func (m *Machine) dropLocks(ino gearsfs.Ino) {
	if f := m.locks.files[ino]; f != nil {
		m.endLocks(f, func(*fileLock) bool { return true })
	}
}

func (m *Machine) endLocks(f *fileLocks, over func(*fileLock) bool) {
	kept := f.list[:0:0]
	for _, l := range f.list {
		if !over(&l) {
			kept = append(kept, l)
			continue
		}
		m.locks.add(f.ino, l.by, -1)
	}
	f.list = kept
	m.dirtyLocks(f)
	m.touch(f.ino, "").Unlocked = true
}

// Waiter is who waits for a lock.
type Waiter struct {
	Session gearsfs.SessionID
	Owner   uint64
	Flock   bool
}

// Minds reports whether two locks, each of its session, can't be had at once.
func Minds(a gearsfs.SessionID, l *wire.Lock, b gearsfs.SessionID, k *wire.Lock) bool {
	x, y := lockOf(a, l), lockOf(b, k)
	return x.minds(&y)
}

// LockedBy returns who has locks that keep a session from having one, as of the
// last applied entry; and whether its owner has any lock at all.
func (m *Machine) LockedBy(session gearsfs.SessionID, l *wire.Lock) (holders []Waiter, holds bool) {
	want := lockOf(session, l)
	m.mu.RLock()
	defer m.mu.RUnlock()
	if f := m.locks.files[gearsfs.Ino(l.Ino)]; f != nil {
		for i := range f.list {
			held := &f.list[i]
			w := Waiter{held.by.session, held.by.owner, held.by.flock}
			if held.minds(&want) && !slices.Contains(holders, w) {
				holders = append(holders, w)
			}
		}
	}
	return holders, m.locks.owned[want.by] > 0
}

// LockInTheWay returns the first lock that keeps a session from having one, nil
// where none does, and whether it is the session's own.
func (m *Machine) LockInTheWay(session gearsfs.SessionID, l *wire.Lock) (held *wire.Lock, mine bool) {
	want := lockOf(session, l)
	m.mu.RLock()
	defer m.mu.RUnlock()
	if f := m.locks.files[gearsfs.Ino(l.Ino)]; f != nil {
		for i := range f.list {
			if h := &f.list[i]; h.minds(&want) {
				return h.wire(), h.by.session == session
			}
		}
	}
	return nil, false
}
