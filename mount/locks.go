package mount

import (
	"context"
	"errors"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/gearsfs/gearsfs"
)

// locks knows who of this mount may have locks, so that only files that were
// locked have something to give up when they are closed. What it knows may be more
// than what is so, never less:
//
//  1. An owner is noted before its lock is asked for.
//  2. A lock of fcntl(2) is its process's: closing any descriptor of the file ends
//     it, which FLUSH says. One of flock(2), or an open file description lock, is
//     the open file's and ends with the last descriptor, which RELEASE says.
//  3. A file that is opened to be read, and that nobody has locked by then, is closed
//     without a FLUSH: it would cost each file that is read a request, and all that
//     it could say is the end of a lock that somebody took since. So what its
//     close(2) should have ended lasts until the descriptor that it was taken by is
//     closed.
type locks struct {
	mu    sync.Mutex
	table map[gearsfs.Ino]map[owner]map[uint64]struct{} // by the handles that they were asked for by
}

// owner is what the kernel calls who has a lock.
type owner struct {
	id    uint64
	flock bool
}

func (t *locks) note(ino gearsfs.Ino, o owner, fh uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	owners := t.table[ino]
	if owners == nil {
		owners = make(map[owner]map[uint64]struct{})
		t.table[ino] = owners
	}
	if owners[o] == nil {
		owners[o] = make(map[uint64]struct{})
	}
	owners[o][fh] = struct{}{}
}

// any reports whether somebody may have a lock on a file.
func (t *locks) any(ino gearsfs.Ino) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.table[ino] != nil
}

// has reports whether an owner may have a lock on a file.
func (t *locks) has(ino gearsfs.Ino, o owner) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.table[ino][o] != nil
}

// forget forgets an owner, and reports whether it may have had a lock.
func (t *locks) forget(ino gearsfs.Ino, o owner) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	known := t.table[ino][o] != nil
	t.forgetLocked(ino, o)
	return known
}

func (t *locks) forgetLocked(ino gearsfs.Ino, o owner) {
	delete(t.table[ino], o)
	if len(t.table[ino]) == 0 {
		delete(t.table, ino)
	}
}

// forgetHandle forgets and returns the owners that asked by a handle.
func (t *locks) forgetHandle(ino gearsfs.Ino, fh uint64) (owners []owner) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for o, handles := range t.table[ino] {
		if _, asked := handles[fh]; asked {
			owners = append(owners, o)
		}
	}
	for _, o := range owners {
		t.forgetLocked(ino, o)
	}
	return owners
}

// lockOf is the lock that a request is about, and its file.
func (s *server) lockOf(in *fuse.LkIn) (ino gearsfs.Ino, l gearsfs.FileLock, st fuse.Status) {
	f, ok := s.handles.get(in.Fh).(*file)
	if !ok {
		return 0, l, fuse.Status(syscall.EOPNOTSUPP)
	}
	return f.ino, gearsfs.FileLock{
		Owner: in.Owner, Flock: in.LkFlags&fuse.LK_FLOCK != 0, Write: in.Lk.Typ == unix.F_WRLCK,
		Start: in.Lk.Start, End: min(in.Lk.End, gearsfs.LockEnd), PID: in.Lk.Pid,
	}, fuse.OK
}

func (s *server) GetLk(_ <-chan struct{}, in *fuse.LkIn, out *fuse.LkOut) fuse.Status {
	ino, l, st := s.lockOf(in)
	if st != fuse.OK {
		return st
	}
	held, err := s.m.LockInTheWay(s.ctx, ino, l)
	switch {
	case err != nil:
		return gone(err)
	case held == nil:
		out.Lk = fuse.FileLock{Start: in.Lk.Start, End: in.Lk.End, Typ: unix.F_UNLCK}
		return fuse.OK
	}
	out.Lk = fuse.FileLock{Start: held.Start, End: held.End, Typ: unix.F_RDLCK}
	if held.Write {
		out.Lk.Typ = unix.F_WRLCK
	}
	if held.Mine {
		out.Lk.Pid = held.PID // another mount's processes are none of this machine's
	}
	return fuse.OK
}

func (s *server) SetLk(cancel <-chan struct{}, in *fuse.LkIn) fuse.Status {
	return s.setLock(cancel, in, false)
}

func (s *server) SetLkw(cancel <-chan struct{}, in *fuse.LkIn) fuse.Status {
	return s.setLock(cancel, in, true)
}

func (s *server) setLock(cancel <-chan struct{}, in *fuse.LkIn, wait bool) fuse.Status {
	ino, l, st := s.lockOf(in)
	if st != fuse.OK {
		return st
	}
	by := owner{l.Owner, l.Flock}
	if in.Lk.Typ == unix.F_UNLCK {
		if !s.locks.has(ino, by) {
			return fuse.OK
		}
		return gone(s.m.Unlock(s.ctx, ino, l))
	}
	converts := l.Flock && s.locks.has(ino, by)
	s.locks.note(ino, by, in.Fh)
	if s.keeper != nil { // at once: the lock may be there before the request has its answer
		s.keeper.add(answeredEntry(noRequest, 0, nil), lockEffect(ino, by, in.Fh))
	}
	err := s.lock(cancel, ino, l, wait, converts)
	if err == nil {
		s.refresh(ino)
	}
	return gone(err)
}

// lock asks for a lock; converts says that its owner may have one already.
func (s *server) lock(cancel <-chan struct{}, ino gearsfs.Ino, l gearsfs.FileLock, wait, converts bool) error {
	if !wait || converts {
		err := s.m.Lock(s.ctx, ino, l, true)
		if !errors.Is(err, gearsfs.ErrLocked) || !wait && !l.Flock {
			return err
		}
	}
	ctx, stop := s.waiting(cancel)
	defer stop()
	if !wait {
		return s.lockSoon(ctx, ino, l)
	}
	if converts { // flock(2) gives up what it has, so that two who convert theirs do not wait for each other
		if err := s.m.Unlock(s.ctx, ino, l); err != nil {
			return err
		}
		if s.call != nil {
			s.call.once.Repeatable() // who is interrupted has nothing, and asks again
		}
	}
	return s.m.Lock(ctx, ino, l, false)
}

// refresh is for a file that was locked: who has the lock sees all that was written
// before the last one gave it up, as by an open.
func (s *server) refresh(ino gearsfs.Ino) {
	attr, err := s.m.GetAttr(s.ctx, ino)
	if err != nil || s.told.older(&attr) {
		s.believe.dropAttr(ino)
	}
	if err != nil || s.inodes.observe(&attr) {
		s.believe.dropPages(ino)
	}
}

// releaseTime is for a RELEASE to come that the kernel has sent, but not waited for.
const releaseTime = 10 * time.Millisecond

// lockSoon is for a lock of flock(2) that can't be had and does not wait. A process
// of this machine whose last descriptor of the file is closed has given up its
// lock, and who comes after must not be told otherwise: but the kernel does not wait
// for us to hear of it. So where this mount has the lock it is waited for a little.
func (s *server) lockSoon(ctx context.Context, ino gearsfs.Ino, l gearsfs.FileLock) error {
	held, err := s.m.LockInTheWay(ctx, ino, l)
	if err != nil || held != nil && !held.Mine {
		return gearsfs.ErrLocked
	}
	ctx, stop := context.WithTimeout(ctx, releaseTime)
	defer stop()
	if err := s.m.Lock(ctx, ino, l, false); !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return gearsfs.ErrLocked
}

// closed ends the locks of fcntl(2) of a process that closes a file.
func (s *server) closed(ino gearsfs.Ino, id uint64) {
	if by := (owner{id: id}); s.locks.forget(ino, by) {
		s.unlockAll(ino, by)
		s.effect(unlockEffect(ino, by))
	}
}

// unlockHandle ends the locks that were asked for by a handle that nobody has any
// more.
func (s *server) unlockHandle(ino gearsfs.Ino, fh uint64) {
	for _, by := range s.locks.forgetHandle(ino, fh) {
		s.unlockAll(ino, by)
		s.effect(unlockEffect(ino, by))
	}
}

// unlockAll gives up all locks of an owner; nobody is left to be told of an error.
func (s *server) unlockAll(ino gearsfs.Ino, by owner) {
	all := gearsfs.FileLock{Owner: by.id, Flock: by.flock, End: gearsfs.LockEnd}
	err := s.m.Unlock(s.ctx, ino, all)
	if err != nil && !errors.Is(err, gearsfs.ErrClosed) && !errors.Is(err, context.Canceled) {
		s.log.Warn("unlock", "ino", ino, "err", err)
	}
}
