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

// retries are the threads whose OPEN or READLINK was answered with ESTALE. The
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

	link   gearsfs.Ino // a symbolic link that was looked up since; 0 for none
	target string
}

const retriesMax = 1 << 10

// stale answers a thread's OPEN or READLINK of an inode with ESTALE.
func (s *server) stale(thread uint32, ino gearsfs.Ino) fuse.Status {
	t := &s.retries
	t.mu.Lock()
	dropped := []retry{t.table[thread]}
	if len(t.table) >= retriesMax { // most are of threads that found nothing to open
		dropped = slices.Collect(maps.Values(t.table))
		clear(t.table)
	}
	t.table[thread] = retry{told: ino}
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
func (s *server) lookupAgain(thread uint32, dir gearsfs.Ino, name string) (attr gearsfs.Attr, ok bool, err error) {
	t := &s.retries
	t.mu.Lock()
	old, ok := t.table[thread]
	t.mu.Unlock()
	if !ok {
		return attr, false, nil
	}
	for {
		if attr, err = s.m.Lookup(s.ctx, dir, name); err != nil {
			return attr, true, err
		}
		now := retry{told: old.told}
		switch attr.Mode & unix.S_IFMT {
		case unix.S_IFREG:
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
			t.mu.Unlock()
			s.unkeep(old)
			return attr, true, nil
		case syscall.ENOENT, syscall.ESTALE: // replaced just now: somebody makes progress
		default:
			return attr, true, err
		}
	}
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

// take ends a thread's retry: it opens something now.
func (t *retries) take(thread uint32) retry {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := t.table[thread]
	delete(t.table, thread)
	return r
}

// openCurrent opens an inode in the Manager for a request that names what the
// kernel looked up some time ago. It answers ESTALE where the inode is gone or
// its name leads elsewhere by now.
func (s *server) openCurrent(ino gearsfs.Ino, thread uint32) (gearsfs.Attr, fuse.Status) {
	r := s.retries.take(thread)
	defer s.unkeep(r)
	attr, err := s.m.Open(s.ctx, ino)
	switch errno(err) {
	case 0:
	case syscall.ENOENT, syscall.ESTALE:
		return attr, s.stale(thread, ino)
	default:
		return attr, status(err)
	}
	if r.told == ino || r.kept == ino {
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

// current reports whether the name under which the kernel knows an inode still
// leads to it. One that is not remembered is believed.
func (s *server) current(attr *gearsfs.Attr) (bool, error) {
	if attr.Nlink == 0 {
		return false, nil
	}
	n, ok := s.files.get(attr.Ino)
	if !ok {
		return true, nil
	}
	now, err := s.m.Lookup(s.ctx, n.dir, n.name)
	switch errno(err) {
	case 0:
		return now.Ino == attr.Ino, nil
	case syscall.ENOENT, syscall.ESTALE, syscall.ENOTDIR:
		return false, nil
	}
	return false, err
}
