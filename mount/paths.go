package mount

import (
	"errors"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm"
)

// names remembers the name that the kernel was told last for each directory.
// What it says is checked before it is used.
type names struct {
	mu    sync.Mutex
	table map[gearsfs.Ino]name
}

type name struct {
	dir  gearsfs.Ino
	name string
}

// namesMax is how many are remembered.
const namesMax = 1 << 15

func newNames() names { return names{table: map[gearsfs.Ino]name{}} }

func (t *names) learn(ino, dir gearsfs.Ino, in string) {
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

func (t *names) get(ino gearsfs.Ino) (name, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n, ok := t.table[ino]
	return n, ok
}

// learn remembers a name that the kernel is about to be told.
func (s *server) learn(attr *gearsfs.Attr, dir gearsfs.Ino, in string) {
	if attr.Mode&unix.S_IFMT == unix.S_IFDIR {
		s.dirs.learn(attr.Ino, dir, in)
		return
	}
	if old, full := s.files.learn(attr.Ino, name{dir, in}); full {
		s.believe.names.push(gearsfs.Change{Ino: old.dir, Name: old.name})
	}
}

// unlinked and renamed follow what the kernel has done to its names itself.
func (s *server) unlinked(dir gearsfs.Ino, in string) { s.files.drop(name{dir, in}) }

func (s *server) renamed(r dgm.Rename) {
	s.files.move(name{r.Dir, r.Name}, name{r.NewDir, r.NewName}, r.Flags&unix.RENAME_EXCHANGE != 0)
}

// pathOf returns a directory's path in the volume, gearsfs.ErrStale where it has
// none any more.
func (s *server) pathOf(dir gearsfs.Ino) (string, error) {
	var names []string
	for ino := dir; ino != gearsfs.RootIno; {
		n, err := s.nameOf(ino)
		if err != nil {
			return "", err
		}
		names = append(names, n.name)
		ino = n.dir
		if len(names) > gearsfs.PathBytesMax/2 {
			return "", gearsfs.ErrNameTooLong
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
func (s *server) nameOf(ino gearsfs.Ino) (name, error) {
	if n, ok := s.dirs.get(ino); ok {
		attr, err := s.m.Lookup(s.ctx, n.dir, n.name)
		if err == nil && attr.Ino == ino {
			return n, nil
		}
		if err != nil && !errors.Is(err, gearsfs.ErrNotFound) && !errors.Is(err, gearsfs.ErrNotDir) && !errors.Is(err, gearsfs.ErrStale) {
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
			return name{}, gearsfs.ErrStale
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
