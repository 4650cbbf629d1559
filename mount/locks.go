package mount

import (
	"context"
	"errors"
	"maps"
	"slices"
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
//     close(2) should have ended lasts until the descriptors that its owner has
//     asked by are closed.
//  4. While all that an owner has is given up nobody asks for more in its name, until
//     that is in the journal (see giving). What it had asked for before, without an
//     answer yet, it may get after: that stays noted.
//  5. A RELEASE comes some time after its close(2), and then the kernel may already
//     call another open file by the same name. So it ends only what nobody has asked
//     for by another handle.
type locks struct {
	mu    sync.Mutex
	table map[gearsfs.Ino]map[owner]*holder
}

// owner is what the kernel calls who has a lock.
type owner struct {
	id    uint64
	flock bool
}

// holder is what is known of an owner.
type holder struct {
	asked  map[uint64]int // by the handles that it asked by: requests that have no answer yet
	giving *giving        // who gives up all that it has; nil where nobody does
}

func newLocks() locks { return locks{table: map[gearsfs.Ino]map[owner]*holder{}} }

// note notes that an owner has asked by a handle. A lock of flock(2) is one open
// file's, so where its owner has another handle now those before are closed.
func (t *locks) note(ino gearsfs.Ino, o owner, fh uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.noteLocked(ino, o, fh)
}

func (t *locks) noteLocked(ino gearsfs.Ino, o owner, fh uint64) *holder {
	owners := t.table[ino]
	if owners == nil {
		owners = make(map[owner]*holder)
		t.table[ino] = owners
	}
	h := owners[o]
	if h == nil {
		h = &holder{asked: make(map[uint64]int)}
		owners[o] = h
	}
	n := h.asked[fh]
	if o.flock {
		clear(h.asked)
	}
	h.asked[fh] = n
	return h
}

// ask notes that an owner asks for a lock by a handle, until answered is called,
// and reports whether it may have had one before. It waits while all that the owner
// has is given up, or until ctx ends.
func (t *locks) ask(ctx context.Context, ino gearsfs.Ino, o owner, fh uint64) (had bool, err error) {
	for {
		t.mu.Lock()
		h := t.table[ino][o]
		if h == nil || h.giving == nil {
			t.noteLocked(ino, o, fh).asked[fh]++
			t.mu.Unlock()
			return h != nil, nil
		}
		gone := h.giving.gone
		t.mu.Unlock()
		select {
		case <-gone:
		case <-ctx.Done():
			return false, ctx.Err()
		}
	}
}

// answered says that a request that asked has its answer.
func (t *locks) answered(ino gearsfs.Ino, o owner, fh uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if h := t.table[ino][o]; h != nil && h.asked[fh] > 0 {
		h.asked[fh]--
	}
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

// forget forgets an owner.
func (t *locks) forget(ino gearsfs.Ino, o owner) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.forgetLocked(ino, o)
}

func (t *locks) forgetLocked(ino gearsfs.Ino, o owner) {
	delete(t.table[ino], o)
	if len(t.table[ino]) == 0 {
		delete(t.table, ino)
	}
}

// askedBy returns the owners that have asked by a handle.
func (t *locks) askedBy(ino gearsfs.Ino, fh uint64) (owners []owner) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for o, h := range t.table[ino] {
		if _, asked := h.asked[fh]; asked {
			owners = append(owners, o)
		}
	}
	return owners
}

// giving is a request that gives up all that an owner has. It lasts until its entry
// is in the journal, so that one of a lock that the owner gets after stands behind it.
type giving struct {
	locks *locks
	ino   gearsfs.Ino
	by    owner
	kept  []uint64 // the handles by which the owner may yet have something
	gone  chan struct{}
}

// give begins to give up what an owner has, nil where that is nothing. It waits for
// who does so already, or until ctx ends.
func (t *locks) give(ctx context.Context, ino gearsfs.Ino, o owner) (*giving, error) {
	for {
		t.mu.Lock()
		h := t.table[ino][o]
		if h == nil {
			t.mu.Unlock()
			return nil, nil
		}
		if h.giving == nil {
			g := &giving{locks: t, ino: ino, by: o, gone: make(chan struct{})}
			for fh, waiting := range h.asked {
				if waiting > 0 {
					g.kept = append(g.kept, fh)
				}
			}
			h.giving = g
			t.mu.Unlock()
			return g, nil
		}
		gone := h.giving.gone
		t.mu.Unlock()
		select {
		case <-gone:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// keep has the owner keep what it may have by all of its handles, but for one;
// 0 for none. It reports whether that is anything.
func (g *giving) keep(but uint64) bool {
	g.locks.mu.Lock()
	defer g.locks.mu.Unlock()
	g.kept = g.kept[:0]
	for fh := range g.locks.table[g.ino][g.by].asked {
		if fh != but {
			g.kept = append(g.kept, fh)
		}
	}
	return len(g.kept) > 0
}

// end ends it.
func (g *giving) end() {
	t := g.locks
	t.mu.Lock()
	defer t.mu.Unlock()
	h := t.table[g.ino][g.by]
	maps.DeleteFunc(h.asked, func(fh uint64, _ int) bool { return !slices.Contains(g.kept, fh) })
	h.giving = nil
	if len(h.asked) == 0 {
		t.forgetLocked(g.ino, g.by)
	}
	close(g.gone)
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
	had, err := s.locks.ask(s.ctx, ino, by, in.Fh)
	if err != nil {
		return gone(err)
	}
	defer s.locks.answered(ino, by, in.Fh)
	if s.keeper != nil { // at once: the lock may be there before the request has its answer
		s.keeper.add(answeredEntry(noRequest, 0, nil), lockEffect(ino, by, in.Fh))
	}
	err = s.lock(cancel, ino, l, wait, l.Flock && had)
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
		if err == nil {
			s.told.dropped(&attr)
		}
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
	if g, err := s.locks.give(s.ctx, ino, owner{id: id}); err == nil && g != nil {
		s.unlockAll(g)
	}
}

// unlockHandle ends the locks that were asked for by a handle that nobody has any
// more.
func (s *server) unlockHandle(ino gearsfs.Ino, fh uint64) {
	for _, by := range s.locks.askedBy(ino, fh) {
		s.bePatient()
		g, err := s.locks.give(s.ctx, ino, by)
		switch {
		case err != nil || g == nil:
		case g.keep(fh):
			s.gave(g)
		default:
			s.unlockAll(g)
		}
	}
}

// unlockAll gives up all locks of an owner; nobody is left to be told of an error.
// What it may still have then is given up when another of its descriptors is closed.
func (s *server) unlockAll(g *giving) {
	all := gearsfs.FileLock{Owner: g.by.id, Flock: g.by.flock, End: gearsfs.LockEnd}
	err := s.m.Unlock(s.ctx, g.ino, all)
	if err != nil && !errors.Is(err, gearsfs.ErrStale) {
		g.keep(0)
		if !errors.Is(err, gearsfs.ErrClosed) && !errors.Is(err, context.Canceled) {
			s.log.Warn("unlock", "ino", g.ino, "err", err)
		}
	}
	s.gave(g)
}

// gave notes what a giving has left, and ends it with the request.
func (s *server) gave(g *giving) {
	s.effect(unlockEffect(g.ino, g.by))
	for _, fh := range g.kept {
		s.effect(lockEffect(g.ino, g.by, fh))
	}
	s.endTurn(g)
}
