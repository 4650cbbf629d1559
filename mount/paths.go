package mount

import (
	"errors"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/gearsfs/gearsfs/gears"
)

// paths remembers under which name directories were looked up, so that a
// directory's path can be told. What it says is checked before it is used.
type paths struct {
	mu    sync.Mutex
	table map[gears.Ino]name
}

type name struct {
	dir  gears.Ino
	name string
}

const pathsMax = 1 << 14 // directories

// learn takes note of a directory's name; other inodes may have several.
func (p *paths) learn(attr *gears.Attr, dir gears.Ino, in string) {
	if attr.Mode&unix.S_IFMT != unix.S_IFDIR {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.table) >= pathsMax {
		for ino := range p.table { // in no order: all of it can be found again
			delete(p.table, ino)
			break
		}
	}
	p.table[attr.Ino] = name{dir, in}
}

func (p *paths) get(ino gears.Ino) (name, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	n, ok := p.table[ino]
	return n, ok
}

// pathOf returns a directory's path in the volume, gears.ErrStale where it has
// none any more.
func (s *server) pathOf(dir gears.Ino) (string, error) {
	var names []string
	for ino := dir; ino != gears.RootIno; {
		n, err := s.nameOf(ino)
		if err != nil {
			return "", err
		}
		names = append(names, n.name)
		ino = n.dir
		if len(names) > gears.PathBytesMax/2 {
			return "", gears.ErrNameTooLong
		}
	}
	var b strings.Builder
	for i := len(names) - 1; i >= 0; i-- {
		b.WriteByte('/')
		b.WriteString(names[i])
	}
	if b.Len() == 0 {
		return "/", nil
	}
	return b.String(), nil
}

// nameOf returns a directory's name: the remembered one where it still is, else
// the one found by reading the directory above.
func (s *server) nameOf(ino gears.Ino) (name, error) {
	if n, ok := s.paths.get(ino); ok {
		attr, err := s.m.Lookup(s.ctx, n.dir, n.name)
		if err == nil && attr.Ino == ino {
			return n, nil
		}
		if err != nil && !errors.Is(err, gears.ErrNotFound) && !errors.Is(err, gears.ErrNotDir) && !errors.Is(err, gears.ErrStale) {
			return name{}, err
		}
	}
	parent, err := s.m.Parent(s.ctx, ino)
	if err != nil {
		return name{}, err
	}
	const page = 1024
	for after := ""; ; {
		entries, err := s.m.ReadDir(s.ctx, parent, after, page)
		if err != nil {
			return name{}, err
		}
		for i := range entries {
			if entries[i].Attr.Ino == ino {
				s.paths.learn(&entries[i].Attr, parent, entries[i].Name)
				return name{parent, entries[i].Name}, nil
			}
		}
		if len(entries) < page {
			return name{}, gears.ErrStale
		}
		after = entries[len(entries)-1].Name
	}
}

// join appends a name to a directory's path.
func join(dir, name string) string {
	if dir == "/" {
		return "/" + name
	}
	return dir + "/" + name
}
