package mount

import (
	"sync"
	"time"

	"github.com/gearsfs/gearsfs"
)

// told remembers which attributes of a file the kernel was told last. An OPEN
// that finds others must say so before it answers: the kernel reads only up to
// the size that it believes in, and the replica that a LOOKUP was answered from
// may have been behind.
type told struct {
	mu    sync.Mutex
	table map[gearsfs.Ino]stamp
}

// stamp tells one state of a file's attributes from another.
type stamp struct {
	version uint64
	ctime   time.Time
}

// toldMax is of how many files it is remembered. Of the others an OPEN says that
// they have changed.
const toldMax = 1 << 15

func newTold() told { return told{table: map[gearsfs.Ino]stamp{}} }

func stampOf(a *gearsfs.Attr) stamp { return stamp{a.Version, a.Ctime} }

func (t *told) note(a *gearsfs.Attr) {
	if !isFile(a) {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, ok := t.table[a.Ino]; !ok && len(t.table) >= toldMax {
		for old := range t.table { // in no order
			delete(t.table, old)
			break
		}
	}
	t.table[a.Ino] = stampOf(a)
}

// older reports whether the kernel may believe in other attributes than a.
func (t *told) older(a *gearsfs.Attr) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	was, ok := t.table[a.Ino]
	return !ok || was != stampOf(a)
}

func (t *told) forget(ino gearsfs.Ino) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.table, ino)
}
