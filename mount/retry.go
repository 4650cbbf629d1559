package mount

import (
	"maps"
	"slices"
	"sync"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/gearsfs/gearsfs"
)

// retries are the threads whose OPEN, READLINK or GETATTR was answered with ESTALE. The
// kernel looks the whole path up again and uses what it finds, but tells the
// program of a second ESTALE: so what the thread has looked up since is kept
// for it, even where its name leads elsewhere by then.
type retries struct {
	mu    sync.Mutex
	table map[uint32]retry // by thread
}

type retry struct {
	told gearsfs.Ino // was answered with ESTALE; comes again where there is no name to look up
	kept gearsfs.Ino // a file that was looked up since and is open in the Manager; 0 for none

	weak bool        // it was a GETATTR, which need not be of an open(2): nothing is kept open
	seen gearsfs.Ino // then what was looked up since; 0 for none
	at   name        // by this name; another is no part of the retry

	link   gearsfs.Ino // a symbolic link that was looked up since; 0 for none
	target string
}

const retriesMax = 1 << 10

// stale answers a thread's OPEN or READLINK of an inode with ESTALE.
func (s *server) stale(thread uint32, ino gearsfs.Ino) fuse.Status {
	return s.staleRetry(thread, retry{told: ino})
}

// staleAttr answers a thread's GETATTR of an inode with ESTALE.
func (s *server) staleAttr(thread uint32, ino gearsfs.Ino) fuse.Status {
	return s.staleRetry(thread, retry{told: ino, weak: true})
}

func (s *server) staleRetry(thread uint32, r retry) fuse.Status {
	t := &s.retries
	t.mu.Lock()
	dropped := []retry{t.table[thread]}
	if len(t.table) >= retriesMax { // most are of threads that found nothing to open
		dropped = slices.Collect(maps.Values(t.table))
		for other := range t.table {
			s.effect(retriedEffect(other))
		}
		clear(t.table)
	}
	t.table[thread] = r
	s.effect(retryEffect(thread, r))
	t.mu.Unlock()
	for _, r := range dropped {
		s.unkeep(r)
	}
	return fuse.Status(syscall.ESTALE)
}

// unkeep lets go of what was kept for a retry.
func (s *server) unkeep(r retry) {
	if r.kept != 0 {
		s.unopen(r.kept)
	}
}

// lookupAgain looks a name up for a thread that was told ESTALE and keeps what
// it finds; ok is false where the thread was not told.
func (s *server) lookupAgain(thread uint32, dir gearsfs.Ino, in string) (attr gearsfs.Attr, ok bool, err error) {
	t := &s.retries
	t.mu.Lock()
	old, ok := t.table[thread]
	t.mu.Unlock()
	if !ok {
		return attr, false, nil
	}
	if old.seen != 0 && old.at != (name{dir, in}) {
		s.takeRetry(thread)
		return attr, false, nil
	}
	for {
		if attr, err = s.m.Lookup(s.ctx, dir, in); err != nil {
			s.unkeep(s.takeRetry(thread)) // the path leads nowhere
			return attr, true, err
		}
		now := retry{told: old.told, weak: old.weak}
		switch attr.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			now.told = 0
			if old.weak {
				now.seen, now.at = attr.Ino, name{dir, in}
				attr, err = s.lookupCertain(attr.Ino, dir, in)
				break
			}
			now.kept = attr.Ino
			attr, err = s.m.Open(s.ctx, attr.Ino)
		case unix.S_IFLNK:
			now.link = attr.Ino
			now.target, err = s.m.Readlink(s.ctx, attr.Ino)
		default:
			return attr, true, nil
		}
		switch errno(err) {
		case 0:
			t.mu.Lock()
			old = t.table[thread]
			t.table[thread] = now
			s.effect(retryEffect(thread, now))
			t.mu.Unlock()
			s.unkeep(old)
			return attr, true, nil
		case syscall.ENOENT, syscall.ESTALE: // replaced just now: somebody makes progress
		default:
			return attr, true, err
		}
	}
}

// lookupCertain is for a name that the replica, which may lag, says to lead to
// ino: gearsfs.ErrStale where it does not any more. What an OPEN was answered
// makes the replica catch up; a GETATTR does not.
func (s *server) lookupCertain(ino, dir gearsfs.Ino, name string) (gearsfs.Attr, error) {
	if _, err := s.m.Open(s.ctx, ino); err != nil {
		return gearsfs.Attr{}, err
	}
	defer s.unopen(ino)
	attr, err := s.m.Lookup(s.ctx, dir, name)
	if err == nil && attr.Ino != ino {
		err = gearsfs.ErrStale
	}
	return attr, err
}

// readlink reads a link for a request of thread.
func (s *server) readlink(thread uint32, ino gearsfs.Ino) (string, fuse.Status) {
	target, err := s.m.Readlink(s.ctx, ino)
	if n := errno(err); n != syscall.ENOENT && n != syscall.ESTALE {
		return target, fuse.Status(n)
	}
	t := &s.retries
	t.mu.Lock()
	r := t.table[thread]
	t.mu.Unlock()
	if r.link == ino {
		return r.target, fuse.OK
	}
	return "", s.stale(thread, ino)
}

// takeRetry ends a thread's retry: it opens something now.
func (s *server) takeRetry(thread uint32) retry {
	t := &s.retries
	t.mu.Lock()
	defer t.mu.Unlock()
	r, ok := t.table[thread]
	if ok {
		delete(t.table, thread)
		s.effect(retriedEffect(thread))
	}
	return r
}

// openCurrent opens an inode in the Manager for a request that names what the
// kernel looked up some time ago. It answers ESTALE where the inode is gone or
// its name leads elsewhere by now.
func (s *server) openCurrent(ino gearsfs.Ino, thread uint32) (gearsfs.Attr, fuse.Status) {
	r := s.takeRetry(thread)
	defer s.unkeep(r)
	attr, err := s.m.Open(s.ctx, ino)
	switch errno(err) {
	case 0:
	case syscall.ENOENT, syscall.ESTALE:
		return attr, s.stale(thread, ino)
	default:
		return attr, status(err)
	}
	if r.told == ino || r.kept == ino || r.seen == ino {
		return attr, fuse.OK
	}
	current, err := s.current(&attr)
	if err != nil || !current {
		s.unopen(ino)
	}
	switch {
	case err != nil:
		return attr, status(err)
	case !current:
		return attr, s.stale(thread, ino)
	}
	return attr, fuse.OK
}

// currentNamesMax is how many names of a file an OPEN looks up before it has the
// kernel look up the one that it means.
const currentNamesMax = 4

// current reports whether every name under which the kernel may know an inode
// still leads to it: which of them an OPEN came by is not said. Where none is
// remembered the kernel has been told of a change since it looked the name up,
// maybe in a replica that did not have the change yet.
func (s *server) current(attr *gearsfs.Attr) (bool, error) {
	names := s.files.of(attr.Ino)
	if attr.Nlink == 0 || len(names) == 0 || len(names) > currentNamesMax {
		return false, nil
	}
	for _, n := range names {
		now, err := s.m.Lookup(s.ctx, n.dir, n.name)
		switch errno(err) {
		case 0:
			if now.Ino != attr.Ino {
				return false, nil
			}
		case syscall.ENOENT, syscall.ESTALE, syscall.ENOTDIR:
			return false, nil
		default:
			return false, err
		}
	}
	return true, nil
}
