package mount

import (
	"sync"

	"github.com/gearsfs/gearsfs"
)

// removed are directories that were removed through this mount and that somebody may
// still have open or work in. The volume has nothing of them any more; as on a disk
// they can be looked at, and have no name.
type removed struct {
	mu    sync.Mutex
	table map[gearsfs.Ino]gearsfs.Attr // until the kernel forgets them
}

// removedMax is how many are remembered. Who looks at another sees that it is gone.
const removedMax = 1 << 12

func (t *removed) note(attr gearsfs.Attr) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.table) >= removedMax {
		for old := range t.table { // in no order
			delete(t.table, old)
			break
		}
	}
	attr.Nlink = 0
	t.table[attr.Ino] = attr
}

func (t *removed) get(ino gearsfs.Ino) (attr gearsfs.Attr, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	attr, ok = t.table[ino]
	return attr, ok
}

func (t *removed) forget(ino gearsfs.Ino) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.table, ino)
}
