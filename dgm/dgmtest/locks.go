package dgmtest

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm"
)

// reads and writes are locks of fcntl(2).
func reads(owner, start, end uint64) gearsfs.FileLock {
	return gearsfs.FileLock{Owner: owner, Start: start, End: end}
}

func writes(owner, start, end uint64) gearsfs.FileLock {
	return gearsfs.FileLock{Owner: owner, Write: true, Start: start, End: end}
}

// flocks is a lock of flock(2).
func flocks(owner uint64, write bool) gearsfs.FileLock {
	return gearsfs.FileLock{Owner: owner, Flock: true, Write: write, End: gearsfs.LockEnd}
}

func (s *suite) lock(m dgm.Manager, ino gearsfs.Ino, l gearsfs.FileLock) {
	s.t.Helper()
	require.NoError(s.t, m.Lock(s.ctx, ino, l, true))
}

func (s *suite) unlock(m dgm.Manager, ino gearsfs.Ino, l gearsfs.FileLock) {
	s.t.Helper()
	require.NoError(s.t, m.Unlock(s.ctx, ino, l))
}

func (s *suite) locked(m dgm.Manager, ino gearsfs.Ino, l gearsfs.FileLock) {
	s.t.Helper()
	require.ErrorIs(s.t, m.Lock(s.ctx, ino, l, true), gearsfs.ErrLocked)
}

// lockLater begins to lock and returns when that waits.
func (s *suite) lockLater(ctx context.Context, m dgm.Manager, ino gearsfs.Ino, l gearsfs.FileLock) <-chan outcome {
	s.t.Helper()
	before := s.waiting()
	out := make(chan outcome, 1)
	go func() { out <- outcome{err: m.Lock(ctx, ino, l, false)} }()
	s.untilWaiting(before + 1)
	return out
}

func locksExclude(t *testing.T, s *suite) {
	f, other := s.make(gearsfs.RootIno, "f", fileMode).Ino, s.open(t)
	defer other.Close()
	s.lock(s.m, f, writes(1, 10, 19))
	s.locked(other, f, writes(1, 19, 19))
	s.locked(other, f, reads(1, 0, gearsfs.LockEnd))
	s.locked(s.m, f, reads(2, 10, 10))
	s.lock(other, f, writes(1, 0, 9))
	s.lock(other, f, reads(1, 20, 29))
	s.lock(s.m, f, reads(3, 25, 40))
	held, err := other.LockInTheWay(s.ctx, f, writes(1, 12, 50))
	require.NoError(t, err)
	require.Equal(t, &gearsfs.FileLock{Owner: 1, Write: true, Start: 10, End: 19}, held)
	held, err = s.m.LockInTheWay(s.ctx, f, writes(3, 12, 50))
	require.NoError(t, err)
	require.Equal(t, &gearsfs.FileLock{Owner: 1, Write: true, Start: 10, End: 19, Mine: true}, held)
	held, err = other.LockInTheWay(s.ctx, f, reads(1, 0, 9))
	require.NoError(t, err)
	require.Nil(t, held)

	s.lock(other, f, flocks(9, true)) // they do not mind each other
	s.locked(s.m, f, flocks(9, false))
	s.unlock(other, f, flocks(9, false))
	s.lock(s.m, f, flocks(9, false))
	s.lock(other, f, flocks(9, false))
	s.locked(other, f, flocks(9, true))
	s.unlock(s.m, f, flocks(9, false))
	s.lock(other, f, flocks(9, true))

	require.ErrorIs(t, s.m.Lock(s.ctx, f, writes(1, 5, 4), true), gearsfs.ErrInvalid)
	require.ErrorIs(t, s.m.Lock(s.ctx, gearsfs.RootIno, writes(1, 0, 4), true), gearsfs.ErrInvalid)
	require.ErrorIs(t, s.m.Lock(s.ctx, 999, writes(1, 0, 4), true), gearsfs.ErrStale)
}

func locksOfAnOwner(t *testing.T, s *suite) {
	f, other := s.make(gearsfs.RootIno, "f", fileMode).Ino, s.open(t)
	defer other.Close()
	s.lock(s.m, f, writes(1, 0, 99))
	s.lock(s.m, f, reads(1, 40, 59))
	s.lock(other, f, reads(1, 40, 59))
	s.locked(other, f, reads(1, 39, 39))
	s.locked(other, f, reads(1, 60, 60))
	s.locked(s.m, f, writes(1, 50, 50))
	s.unlock(other, f, reads(1, 50, 50))
	s.lock(s.m, f, writes(1, 50, 50))
	s.locked(other, f, reads(1, 50, 50))
	s.unlock(s.m, f, reads(1, 0, 49))
	s.lock(other, f, writes(1, 0, 49))
	held, err := other.LockInTheWay(s.ctx, f, writes(1, 0, gearsfs.LockEnd))
	require.NoError(t, err)
	require.Equal(t, &gearsfs.FileLock{Owner: 1, Write: true, Start: 50, End: 50}, held)
	s.unlock(s.m, f, reads(1, 0, gearsfs.LockEnd))
	s.lock(other, f, writes(1, 0, gearsfs.LockEnd))
}

func lockWaits(t *testing.T, s *suite) {
	f, other := s.make(gearsfs.RootIno, "f", fileMode).Ino, s.open(t)
	defer other.Close()
	s.lock(s.m, f, writes(1, 0, 9))
	out := s.lockLater(s.ctx, other, f, reads(1, 5, 14))
	waits, err := s.m.Waits(s.ctx)
	require.NoError(t, err)
	require.Equal(t, []string{"lock"}, []string{waits[0].Op})
	require.Equal(t, f, waits[0].Ino)
	s.unlock(s.m, f, writes(1, 0, 4))
	s.lock(s.m, f, reads(1, 5, 9)) // others may have such as well
	require.NoError(t, s.outcome(out).err)

	ctx, cancel := context.WithCancel(s.ctx)
	out = s.lockLater(ctx, s.m, f, writes(1, 0, 20))
	cancel()
	require.ErrorIs(t, s.outcome(out).err, context.Canceled)
	s.untilWaiting(0)
	s.lock(other, f, writes(1, 10, 20)) // who was cancelled holds nothing
	s.lock(other, f, reads(1, 5, 9))
	s.locked(other, f, writes(1, 5, 9)) // but for what it had
}

func locksAreFair(t *testing.T, s *suite) {
	f, other, third := s.make(gearsfs.RootIno, "f", fileMode).Ino, s.open(t), s.open(t)
	defer other.Close()
	defer third.Close()
	s.lock(s.m, f, flocks(1, false))
	writer := s.lockLater(s.ctx, other, f, flocks(1, true))
	reader := s.lockLater(s.ctx, third, f, flocks(1, false)) // would do beside the first, but not beside the writer
	s.unlock(s.m, f, flocks(1, false))
	require.NoError(t, s.outcome(writer).err)
	require.Equal(t, 1, s.waiting())
	s.unlock(other, f, flocks(1, false))
	require.NoError(t, s.outcome(reader).err)

	writer = s.lockLater(s.ctx, other, f, flocks(1, true))
	ctx, cancel := context.WithCancel(s.ctx)
	gone := s.lockLater(ctx, s.m, f, flocks(1, true))
	reader = s.lockLater(s.ctx, s.m, f, flocks(2, false))
	cancel()
	require.ErrorIs(t, s.outcome(gone).err, context.Canceled)
	s.unlock(third, f, flocks(1, false))
	require.NoError(t, s.outcome(writer).err)
	s.unlock(other, f, flocks(1, false))
	require.NoError(t, s.outcome(reader).err)
}

func lockDeadlock(t *testing.T, s *suite) {
	f, g := s.make(gearsfs.RootIno, "f", fileMode).Ino, s.make(gearsfs.RootIno, "g", fileMode).Ino
	h, other := s.make(gearsfs.RootIno, "h", fileMode).Ino, s.open(t)
	defer other.Close()
	s.lock(s.m, f, writes(1, 0, 9))
	s.lock(other, g, writes(2, 0, 9))
	s.lock(other, h, writes(3, 0, 9))
	first := s.lockLater(s.ctx, s.m, g, writes(1, 5, 5))
	second := s.lockLater(s.ctx, other, h, reads(2, 5, 5))
	require.ErrorIs(t, other.Lock(s.ctx, f, reads(3, 0, 0), false), gearsfs.ErrDeadlock)
	require.Equal(t, 2, s.waiting())
	s.unlock(other, h, reads(3, 0, 9))
	require.NoError(t, s.outcome(second).err)
	s.unlock(other, g, reads(2, 0, 9))
	require.NoError(t, s.outcome(first).err)

	s.lock(other, f, writes(2, 10, 19)) // the same on one file
	first = s.lockLater(s.ctx, s.m, f, writes(1, 10, 19))
	require.ErrorIs(t, other.Lock(s.ctx, f, writes(2, 0, 9), false), gearsfs.ErrDeadlock)
	s.unlock(other, f, reads(2, 0, 19))
	require.NoError(t, s.outcome(first).err)
}

func lockEndsWithSession(t *testing.T, s *suite) {
	f, other := s.make(gearsfs.RootIno, "f", fileMode).Ino, s.open(t)
	s.lock(other, f, writes(1, 0, 9))
	s.lock(other, f, flocks(1, true))
	record := s.lockLater(s.ctx, s.m, f, reads(1, 0, 9))
	whole := s.lockLater(s.ctx, s.m, f, flocks(1, true))
	require.NoError(t, other.Close())
	require.NoError(t, s.outcome(record).err)
	require.NoError(t, s.outcome(whole).err)

	other = s.open(t)
	waiter := s.lockLater(s.ctx, other, f, flocks(1, true))
	require.NoError(t, other.Close())
	require.Error(t, s.outcome(waiter).err)
	s.untilWaiting(0)
}

// lockOfTheUnnamed locks a file that lost its name while it was open.
func lockOfTheUnnamed(t *testing.T, s *suite) {
	f, other := s.make(gearsfs.RootIno, "f", fileMode).Ino, s.open(t)
	defer other.Close()
	for _, m := range []dgm.Manager{s.m, other} {
		_, err := m.Open(s.ctx, f)
		require.NoError(t, err)
	}
	s.lock(s.m, f, flocks(1, true))
	out := s.lockLater(s.ctx, other, f, flocks(1, true))
	require.NoError(t, s.m.Unlink(s.ctx, gearsfs.RootIno, "f"))
	require.Equal(t, 1, s.waiting())
	s.unlock(s.m, f, flocks(1, false))
	require.NoError(t, s.outcome(out).err)
	require.NoError(t, s.m.Release(s.ctx, f))
	require.NoError(t, other.Release(s.ctx, f))
	require.ErrorIs(t, s.m.Lock(s.ctx, f, flocks(1, true), true), gearsfs.ErrStale)
}
