package file

import (
	"errors"
	"strings"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/wire"
)

// linksFollowedMax is how many symbolic links one path may lead through.
const linksFollowedMax = 40

// Resolve follows a path from the root; the last component's symbolic link
// only where follow is set. Errors as Lookup and gearsfs.ErrLoop.
func (m *Machine) Resolve(path string, follow bool, caller gearsfs.Caller) (gearsfs.Attr, error) {
	w, err := m.walk(path, follow, caller)
	if err == nil && w.at.attr.Ino == 0 {
		err = gearsfs.ErrNotFound
	}
	return w.at.attr, err
}

// ResolveTarget is Resolve, following links, for a command that may make what
// it names: a last name that does not exist is no error. Then ino is 0, and
// name in dir is what the path and the links at its end lead to. dir is 0
// where the path ends in no name, as "/" or "a/..".
func (m *Machine) ResolveTarget(path string, caller gearsfs.Caller) (dir gearsfs.Ino, name string, ino gearsfs.Ino, err error) {
	w, err := m.walk(path, true, caller)
	return w.dir, w.name, w.at.attr.Ino, err
}

// Names is a number that rises before anything changes by which a path that
// leads to an inode may lead elsewhere or may not be followed any more: names,
// and modes, owners and lists of directories. So what ResolveTarget found, with
// an ino, is right for the same caller as long as Names is what it was before. A
// path that leads to a missing file is not covered: a put may make that.
//
// Applying raises it for each command but those of keepsNames, which is of no
// consequence where nothing changes, and Replace raises it.
func (m *Machine) Names() uint64 { return m.names.Load() }

// keepsNames tells the commands that change no name that leads somewhere and
// nobody's way through a directory: they are about streams and their bytes, and
// make files at most.
func keepsNames(cmd *wire.Command) bool {
	switch cmd.Op.(type) {
	case *wire.Command_Put, *wire.Command_Take, *wire.Command_Update, *wire.Command_Transact, *wire.Command_Move,
		*wire.Command_Settle, *wire.Command_Configure, *wire.Command_Confirm, *wire.Command_Tick, *wire.Command_Lock,
		*wire.Command_Inherit, *wire.Command_Write, *wire.Command_Allocate:
		return true
	}
	return false
}

func (m *Machine) walk(path string, follow bool, caller gearsfs.Caller) (walk, error) {
	w := walk{m: m, caller: caller}
	if len(path) > gearsfs.PathBytesMax {
		return w, gearsfs.ErrNameTooLong
	}
	if strings.ContainsRune(path, 0) {
		return w, gearsfs.ErrInvalid.Because("a path must not contain NUL")
	}
	err := w.enter(gearsfs.RootIno)
	if err == nil {
		err = w.follow(path, follow)
	}
	return w, err
}

// walk is a path being followed.
type walk struct {
	m      *Machine
	caller gearsfs.Caller
	at     inode // where it stands; attr.Ino 0: at a name that does not exist
	dir    gearsfs.Ino
	name   string
	links  int
}

// follow goes on from w.at, a directory.
func (w *walk) follow(path string, last bool) error {
	if strings.HasPrefix(path, "/") {
		if err := w.enter(gearsfs.RootIno); err != nil {
			return err
		}
	}
	for path != "" {
		name, rest, more := strings.Cut(path, "/")
		path = strings.TrimLeft(rest, "/")
		if name == "" {
			continue
		}
		if err := w.step(name, more || last); err != nil {
			return err
		}
		switch {
		case w.at.attr.Ino == 0 && path != "":
			return gearsfs.ErrNotFound
		case more && w.at.attr.Ino != 0 && !isDir(w.at.attr.Mode):
			return gearsfs.ErrNotDir
		case more && w.at.attr.Ino == 0: // "name/" can't be made as a file
			return gearsfs.ErrNotFound
		}
	}
	return nil
}

// enter makes the walk stand in a directory that it did not come to by a name.
func (w *walk) enter(ino gearsfs.Ino) (err error) {
	w.dir, w.name = 0, ""
	w.at, err = w.m.inode(ino)
	return err
}

// step goes to name in the directory where the walk stands.
func (w *walk) step(name string, follow bool) error {
	dir := w.at
	if err := dir.checkDirectory(w.caller, mayExec); err != nil {
		return err
	}
	switch name {
	case ".":
		w.dir, w.name = 0, ""
		return nil
	case "..":
		return w.enter(dir.parent)
	}
	n, err := w.m.lookupInode(dir.attr.Ino, name, w.caller)
	if errors.Is(err, gearsfs.ErrNotFound) {
		w.at, w.dir, w.name = inode{}, dir.attr.Ino, name
		return nil
	}
	if err != nil {
		return err
	}
	if n.attr.Mode&modeType != modeLink || !follow {
		w.at, w.dir, w.name = n, dir.attr.Ino, name
		return nil
	}
	if w.links++; w.links > linksFollowedMax {
		return gearsfs.ErrLoop
	}
	return w.follow(n.target, true)
}
