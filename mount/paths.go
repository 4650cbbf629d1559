package mount

import (
	"errors"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/gearsfs/gearsfs/gears"
)

// names remembers the name that the kernel was told last for each inode. What it
// says is checked before it is used.
type names struct {
	mu    sync.Mutex
	table map[gears.Ino]name
}

type name struct {
	dir  gears.Ino
	name string
}

// namesMax is how many are remembered of directories, and of everything else.
const namesMax = 1 << 15

func newNames() names { return names{table: map[gears.Ino]name{}} }

func (t *names) learn(ino, dir gears.Ino, in string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.table) >= namesMax {
		for old := range t.table { // in no order: a name that is missed costs little
			delete(t.table, old)
			break
		}
	}
	t.table[ino] = name{dir, in}
}

func (t *names) get(ino gears.Ino) (name, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n, ok := t.table[ino]
	return n, ok
}

// learn remembers a name that the kernel is about to be told.
func (s *server) learn(attr *gears.Attr, dir gears.Ino, name string) {
	if attr.Mode&unix.S_IFMT == unix.S_IFDIR {
		s.dirs.learn(attr.Ino, dir, name)
	} else {
		s.files.learn(attr.Ino, dir, name)
	}
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
	if n, ok := s.dirs.get(ino); ok {
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
				s.learn(&entries[i].Attr, parent, entries[i].Name)
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
