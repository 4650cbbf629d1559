package mount

import (
	"context"
	"maps"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm"
)

// lockTable is a Manager that has one file and knows who has locked it. Its answers
// may be held back when what was asked is done, and its locks before.
type lockTable struct {
	dgm.Manager
	held    map[owner]bool
	refuse  error         // what the next Unlock says
	answers chan struct{} // of Unlock wait for this; nil for at once
	locks   chan struct{} // wait for this; nil for at once
}

func (m *lockTable) Lock(_ context.Context, _ gearsfs.Ino, l gearsfs.FileLock, _ bool) error {
	if m.locks != nil {
		<-m.locks
	}
	m.held[owner{l.Owner, l.Flock}] = true
	return nil
}

func (m *lockTable) Unlock(_ context.Context, _ gearsfs.Ino, l gearsfs.FileLock) error {
	if err := m.refuse; err != nil {
		m.refuse = nil
		return err
	}
	delete(m.held, owner{l.Owner, l.Flock})
	if m.answers != nil {
		<-m.answers
	}
	return nil
}

func (m *lockTable) GetAttr(context.Context, gearsfs.Ino) (gearsfs.Attr, error) {
	return gearsfs.Attr{Ino: lockedIno}, nil
}

func (m *lockTable) Release(context.Context, gearsfs.Ino) error { return nil }
func (m *lockTable) LetGo(context.Context, gearsfs.Ino) error   { return nil }

func (m *lockTable) owners() []owner { return slices.Collect(maps.Keys(m.held)) }

const lockedIno = 5

// locking is a worker whose program has a file open twice.
type locking struct {
	worker
	uniques *atomic.Uint64
	fhs     [2]uint64
}

func newLocking(t *testing.T, m dgm.Manager) *locking {
	w := &locking{worker: newWorker(t, m, newKeeper(t)), uniques: new(atomic.Uint64)}
	for i := range w.fhs {
		w.inodes.open(&gearsfs.Attr{Ino: lockedIno}, false)
		w.opened(w.unique(), &file{ino: lockedIno})
		w.fhs[i] = w.fh
	}
	return w
}

func (w *locking) unique() uint64 { return 2 * w.uniques.Add(1) }

// set locks, or unlocks, by the i-th handle.
func (w *locking) set(i int, by owner, kind uint32) fuse.Status {
	in := &fuse.LkIn{InHeader: fuse.InHeader{Unique: w.unique()}, Fh: w.fhs[i], Owner: by.id, Lk: fuse.FileLock{Typ: kind, End: 9}}
	if by.flock {
		in.LkFlags = fuse.LK_FLOCK
	}
	return w.SetLk(nil, in)
}

func (w *locking) flush(i int, by owner) fuse.Status {
	return w.Flush(nil, &fuse.FlushIn{InHeader: fuse.InHeader{Unique: w.unique()}, Fh: w.fhs[i], LockOwner: by.id})
}

func (w *locking) release(i int) {
	w.Release(nil, &fuse.ReleaseIn{InHeader: fuse.InHeader{Unique: w.unique()}, Fh: w.fhs[i]})
}

// heir is who goes on when the process dies now.
func (w *locking) heir(t *testing.T, m dgm.Manager) *locking {
	return &locking{w.next(t, m), w.uniques, w.fhs}
}

// A thread closes a descriptor, which ends the locks of its process, and another one
// sets a lock meanwhile. Whoever comes first: a lock that the volume has is known to
// the mount, and to the process that takes it over, so that it ends when it should.
func TestLockBesideClose(t *testing.T) {
	const id = 7
	by := owner{id: id}
	for name, begin := range map[string]func(m *lockTable, w *locking){
		"set behind": func(m *lockTable, w *locking) {
			m.answers = make(chan struct{})
			go w.flush(0, by)
			synctest.Wait()
			go w.set(1, by, unix.F_WRLCK)
			synctest.Wait()
			close(m.answers)
		},
		"set before, given behind": func(m *lockTable, w *locking) {
			m.locks = make(chan struct{})
			go w.set(1, by, unix.F_WRLCK)
			synctest.Wait()
			w.flush(0, by)
			close(m.locks)
		},
		"set before, given and answered meanwhile": func(m *lockTable, w *locking) {
			m.locks, m.answers = make(chan struct{}), make(chan struct{})
			go w.set(1, by, unix.F_WRLCK)
			synctest.Wait()
			go w.flush(0, by)
			synctest.Wait()
			close(m.locks)
			synctest.Wait()
			close(m.answers)
		},
		"two closes": func(m *lockTable, w *locking) {
			m.answers = make(chan struct{})
			go w.flush(0, by)
			go w.flush(1, by)
			synctest.Wait()
			close(m.answers)
			synctest.Wait()
			w.set(1, by, unix.F_WRLCK)
		},
	} {
		for who, heir := range map[string]bool{"the same process": false, "the next": true} {
			t.Run(name+", "+who, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					m := &lockTable{held: map[owner]bool{}}
					w := newLocking(t, m)
					require.Equal(t, fuse.OK, w.set(0, by, unix.F_WRLCK))
					begin(m, w)
					synctest.Wait()
					require.Equal(t, []owner{by}, m.owners(), "the lock came last")
					m.answers, m.locks = nil, nil
					if heir {
						w = w.heir(t, m)
					}
					w.release(0) // of what was closed
					assert.Equal(t, []owner{by}, m.owners(), "it is the other's")
					require.Equal(t, fuse.OK, w.set(1, by, unix.F_UNLCK))
					assert.Empty(t, m.owners(), "an unlock reaches the volume")
				})
			})
		}
	}
}

// What a close could not give up, as it was interrupted while the node was away, is
// given up when the last descriptor is closed.
func TestInterruptedUnlock(t *testing.T) {
	m := &lockTable{held: map[owner]bool{}}
	w := newLocking(t, m)
	by := owner{id: 7}
	require.Equal(t, fuse.OK, w.set(0, by, unix.F_WRLCK))
	m.refuse = context.Canceled
	w.flush(0, by)
	require.Equal(t, []owner{by}, m.owners())
	w = w.heir(t, m)
	w.release(0)
	assert.Empty(t, m.owners())
	assert.Empty(t, legacyOf(t, w.keeper).locks.table)
}

// The kernel tells of the last close when it likes to, and may call the next open file
// by the same name then: what that has locked stays.
func TestLateRelease(t *testing.T) {
	for name, by := range map[string]owner{
		"flock": {id: 7, flock: true}, "fcntl": {id: 7},
	} {
		t.Run(name, func(t *testing.T) {
			m := &lockTable{held: map[owner]bool{}}
			w := newLocking(t, m)
			require.Equal(t, fuse.OK, w.set(0, by, unix.F_WRLCK))
			require.Equal(t, fuse.OK, w.set(1, by, unix.F_WRLCK))
			w.release(0)
			assert.Equal(t, []owner{by}, m.owners())
			w = w.heir(t, m)
			w.release(1)
			assert.Empty(t, m.owners())
			assert.Empty(t, legacyOf(t, w.keeper).locks.table)
		})
	}
}

// So it is where the last close is told of just before.
func TestReleaseBesideLock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &lockTable{held: map[owner]bool{}, answers: make(chan struct{})}
		w := newLocking(t, m)
		by := owner{id: 7, flock: true}
		require.Equal(t, fuse.OK, w.set(0, by, unix.F_WRLCK))
		go w.release(0)
		synctest.Wait()
		done := false
		go func() { w.set(1, by, unix.F_WRLCK); done = true }()
		synctest.Wait()
		require.False(t, done, "it would be given up")
		close(m.answers)
		synctest.Wait()
		require.True(t, done)
		assert.Equal(t, []owner{by}, m.owners())
		w = w.heir(t, m)
		w.release(1)
		assert.Empty(t, m.owners())
	})
}
