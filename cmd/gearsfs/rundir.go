package main

import (
	"errors"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// runDirPrefix begins the names of the directories that runs get their inputs in.
const runDirPrefix = "gearsfs-each-"

// runDir is a directory of this process in TMPDIR, locked for as long as that
// lives: what is there unlocked was left by one that was killed.
type runDir struct {
	path string
	lock *os.File // the directory; closed with the process's last descriptor
}

// makeRunDir makes one; remove must be called.
func makeRunDir() (*runDir, error) {
	for {
		path, err := os.MkdirTemp("", runDirPrefix)
		if err == nil {
			path, err = filepath.Abs(path)
		}
		if err != nil {
			return nil, err
		}
		// Until it is locked it looks like one that was left.
		lock, there, err := lockDir(path, unix.LOCK_EX)
		switch {
		case there || lock != nil && err != nil: // nobody can lock anything in that file system
			return &runDir{path, lock}, nil
		case lock != nil:
			lock.Close()
		case err != nil && !errors.Is(err, os.ErrNotExist):
			os.Remove(path) //nolint:errcheck // nothing is in there
			return nil, err
		}
	}
}

// lockDir opens and locks a directory. locked is whether that was possible and it
// is still there. Where it could be opened it is to be closed.
func lockDir(path string, how int) (dir *os.File, locked bool, err error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, false, &os.PathError{Op: "open", Path: path, Err: err}
	}
	dir = os.NewFile(uintptr(fd), path)
	for err = unix.EINTR; errors.Is(err, unix.EINTR); {
		err = unix.Flock(fd, how)
	}
	if err != nil {
		return dir, false, err
	}
	var held, there unix.Stat_t
	if unix.Fstat(fd, &held) != nil || unix.Lstat(path, &there) != nil {
		return dir, false, nil
	}
	return dir, held.Dev == there.Dev && held.Ino == there.Ino, nil
}

func (d *runDir) remove() error {
	err := os.RemoveAll(d.path)
	d.lock.Close()
	return err
}

// sweepRunDirs removes what workers of this user's have left that were killed.
func sweepRunDirs() {
	left, err := filepath.Glob(filepath.Join(os.TempDir(), runDirPrefix+"*"))
	if err != nil {
		return // TMPDIR is a pattern that can't be read
	}
	for _, path := range left {
		var st unix.Stat_t
		if unix.Lstat(path, &st) != nil || int(st.Uid) != os.Geteuid() {
			continue
		}
		dir, locked, _ := lockDir(path, unix.LOCK_EX|unix.LOCK_NB)
		if locked {
			os.RemoveAll(path) //nolint:errcheck // the next one tries again
		}
		if dir != nil {
			dir.Close()
		}
	}
}
