package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/cmd/internal/node"
	"github.com/gearsfs/gearsfs/cmd/internal/units"
	"github.com/gearsfs/gearsfs/dgm"
	"github.com/gearsfs/gearsfs/mount"
)

// target is what a FILE argument leads to: a path in the volume of a node.
type target struct {
	dgm.Manager
	node string // its address
	path string // absolute, in the volume
	arg  string // as it was written
}

func (t target) file() gearsfs.File { return gearsfs.At(t.path) }

// place is a FILE argument taken apart: a path in the volume of the node at
// addrs, or of the remote that this node knows by name.
type place struct {
	addrs  string
	remote string
	path   string
}

// open resolves a FILE argument and connects to its node. nodeFlag is --node.
func (a *app) open(ctx context.Context, arg, nodeFlag string) (target, error) {
	p, err := a.place(arg, nodeFlag, a.locate)
	if err != nil {
		return target{}, err
	}
	return a.connectTo(ctx, arg, p)
}

// answerWithin is how long a node may take to answer however short --wait is.
const answerWithin = time.Second

// openWithin is open for a command whose waits --wait bounds, the one for the
// node's answer too.
func (a *app) openWithin(ctx context.Context, wait units.Duration, arg, nodeFlag string) (target, error) {
	wait.Value = max(wait.Value, answerWithin)
	ctx, cancel := waitContext(ctx, wait, "no answer from the node")
	defer cancel()
	return a.open(ctx, arg, nodeFlag)
}

// openName is open for a name itself: where it is that of a symbolic link, the
// link is meant.
func (a *app) openName(ctx context.Context, arg, nodeFlag string) (target, error) {
	p, err := a.place(arg, nodeFlag, func(path string) (mount.Location, error) {
		dir, name := filepath.Split(strings.TrimRight(path, "/"))
		if name == "" || name == "." || name == ".." {
			return a.locate(path)
		}
		at, err := a.locate(filepath.Clean(dir))
		at.Path = filepath.Join(at.Path, name)
		return at, err
	})
	if err != nil {
		return target{}, err
	}
	return a.connectTo(ctx, arg, p)
}

func (a *app) connectTo(ctx context.Context, arg string, p place) (target, error) {
	m, err := a.manager(ctx, p.addrs)
	if err != nil {
		return target{}, err
	}
	if p.remote == "" {
		return target{m, p.addrs, p.path, arg}, nil
	}
	remotes, err := m.Remotes(ctx)
	if err != nil {
		return target{}, cause(ctx, err)
	}
	addrs, ok := remotes[p.remote]
	if !ok {
		return target{}, gearsfs.ErrNotFound.Because(
			"the node at %s knows no remote %q: gearsfs remote ls shows those that it does", p.addrs, p.remote)
	}
	if m, err = a.manager(ctx, addrs); err != nil {
		return target{}, err
	}
	return target{m, addrs, p.path, arg}, nil
}

// place reads a FILE argument. A plain path never depends on the environment:
// the mount that it lies under says which node it is.
func (a *app) place(arg, nodeFlag string, locate func(string) (mount.Location, error)) (place, error) {
	if arg == "" {
		return place{}, usagef("FILE is empty")
	}
	if strings.ContainsRune(arg, 0) {
		return place{}, usagef("FILE contains NUL")
	}
	if name, path, ok := splitRemote(arg); ok {
		return place{addrs: a.addrs(nodeFlag), remote: name, path: path}, nil
	}
	if rest, ok := strings.CutPrefix(arg, ":"); ok {
		if nodeFlag == "" && !strings.HasPrefix(rest, "/") {
			return place{}, usagef("%s: an absolute path follows the colon, as in :/jobs", arg)
		}
		return place{addrs: a.addrs(nodeFlag), path: absolute(rest)}, nil
	}
	if nodeFlag != "" {
		return place{addrs: nodeFlag, path: absolute(arg)}, nil
	}
	at, err := locate(arg)
	switch {
	case errors.Is(err, mount.ErrNotMounted):
		return place{}, usagef("%v: name a file under a mount, or :/PATH in the volume of a node", err)
	case err != nil:
		return place{}, err
	case at.Node == "":
		return place{}, gearsfs.ErrUnsupported.Because("%s: its mount names no node to ask", arg)
	}
	return place{addrs: at.Node, path: absolute(at.Path)}, nil
}

// here is the node that commands without a FILE are about: --node, else that
// of the current directory's mount, else the default.
func (a *app) here(ctx context.Context, nodeFlag string) (target, error) {
	addrs := a.hereAddrs(nodeFlag)
	m, err := a.manager(ctx, addrs)
	return target{m, addrs, "/", addrs}, err
}

func (a *app) hereAddrs(nodeFlag string) string {
	if nodeFlag != "" {
		return nodeFlag
	}
	if at, err := a.locate("."); err == nil && at.Node != "" {
		return at.Node
	}
	return a.addrs("")
}

// addrs is ADDR: --node, GEARSFS_NODE, or a socket in its usual place.
func (a *app) addrs(nodeFlag string) string {
	if nodeFlag != "" {
		return nodeFlag
	}
	if env := a.getenv("GEARSFS_NODE"); env != "" {
		return env
	}
	sockets := node.Sockets(a.getenv)
	for _, path := range sockets {
		if info, err := os.Stat(path); err == nil && info.Mode().Type() == os.ModeSocket {
			return "unix:" + path
		}
	}
	return "unix:" + sockets[0]
}

// splitRemote takes NAME:/PATH apart. A file whose name looks like that is
// written ./NAME:/PATH.
func splitRemote(arg string) (name, path string, ok bool) {
	name, path, ok = strings.Cut(arg, ":")
	if !ok || !strings.HasPrefix(path, "/") || checkRemoteName(name) != nil {
		return "", "", false
	}
	return name, path, true
}

// checkRemoteName returns a usage error where name can't name a remote.
func checkRemoteName(name string) error {
	bad := func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("._-", r))
	}
	if name == "" || len(name) > gearsfs.KeyBytesMax || name == "." || name == ".." || strings.ContainsFunc(name, bad) {
		return usagef("%q is not a remote's name: letters, digits, dots, dashes and underscores", name)
	}
	return nil
}

// isVolumePath reports whether arg is a path in the volume of the node at ADDR.
func isVolumePath(arg string) bool { return strings.HasPrefix(arg, ":/") }

func absolute(path string) string {
	if !strings.HasPrefix(path, "/") {
		return "/" + path
	}
	return path
}

// split returns the directory and the last name of a path in a volume.
func split(path string) (dir, name string, err error) {
	dir, name = filepath.Split(strings.TrimRight(path, "/"))
	if name == "" || name == "." || name == ".." {
		return "", "", gearsfs.ErrInvalid.Because("%s has no name of its own", path)
	}
	return dir, name, nil
}
