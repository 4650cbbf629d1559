package mount

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/gearsfs/gearsfs"
)

// Location is what a path under a mount stands for.
type Location struct {
	Node   string // the address of a node that serves the volume; empty where only the mount does
	Volume string
	Path   string // in the volume, absolute
}

// ErrNotMounted says that a path is not under a GearsFS mount.
var ErrNotMounted = errors.New("not in a mounted GearsFS directory")

// Locate asks the mount that path is under where it leads, through symbolic
// links and bind mounts of directories. What path names need not exist. It
// blocks as long as the mount does.
func Locate(path string) (Location, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return Location{}, fmt.Errorf("%s: %w", path, err)
	}
	dir, rest, err := resolve(abs, 0)
	if err != nil {
		return Location{}, fmt.Errorf("%s: %w", path, aboutDead(err))
	}
	var l Location
	for _, ask := range []struct {
		name string
		into *string
	}{{xattrPath, &l.Path}, {xattrVolume, &l.Volume}, {xattrNode, &l.Node}} {
		if *ask.into, err = getXattr(dir, ask.name); err != nil {
			return Location{}, fmt.Errorf("%s: %w", path, err)
		}
	}
	l.Path = filepath.Join(l.Path, rest)
	return l, nil
}

// Processes asks a mount which process keeps it, 0 for none, and which serves
// it. It blocks as long as the mount does.
func Processes(dir string) (supervisor, worker int, err error) {
	text, err := getXattr(dir, xattrMount)
	if err != nil {
		return 0, 0, err
	}
	if _, err := fmt.Sscan(text, &supervisor, &worker); err != nil {
		return 0, 0, fmt.Errorf("ask the mount of %s for its processes: %q", dir, text)
	}
	return supervisor, worker, nil
}

// linksMax is how many symbolic links a path may lead through, as in
// path_resolution(7).
const linksMax = 40

// resolve splits a path into the nearest directory that exists and the rest.
// Links are followed, also one at the end that leads to nothing yet.
func resolve(path string, links int) (dir, rest string, err error) {
	if links > linksMax {
		return "", "", unix.ELOOP
	}
	info, err := os.Lstat(path)
	switch {
	case err == nil && info.Mode().Type() == fs.ModeSymlink:
		target, err := os.Readlink(path)
		if err != nil {
			return "", "", err
		}
		if !filepath.IsAbs(target) {
			parent, err := filepath.EvalSymlinks(filepath.Dir(path))
			if err != nil {
				return "", "", err
			}
			target = filepath.Join(parent, target)
		}
		return resolve(target, links+1)
	case err == nil && info.IsDir():
		dir, err = filepath.EvalSymlinks(path)
		return dir, "", err
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return "", "", err
	}
	// A file, or nothing: its directory tells.
	dir, rest, err = resolve(filepath.Dir(path), links)
	return dir, filepath.Join(rest, filepath.Base(path)), err
}

// getXattr reads one of the attributes that a mount answers.
func getXattr(dir, name string) (string, error) {
	buf := make([]byte, gearsfs.PathBytesMax)
	n, err := unix.Getxattr(dir, name, buf)
	switch {
	case errors.Is(err, unix.ENODATA), errors.Is(err, unix.EOPNOTSUPP):
		return "", ErrNotMounted
	case err != nil:
		return "", fmt.Errorf("ask the mount of %s: %w", dir, aboutDead(err))
	}
	return string(buf[:n]), nil
}

// aboutDead says what to do about a mount whose process is gone.
func aboutDead(err error) error {
	if errors.Is(err, unix.ENOTCONN) {
		return fmt.Errorf("the mount there is dead (%w); unmount it with gearsfs umount", err)
	}
	return err
}
