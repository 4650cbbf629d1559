package mount

import (
	"slices"
	"sync"
	"time"

	"github.com/gearsfs/gearsfs"
)

// dentries remembers which names the kernel may believe to lead to which file,
// until it is told otherwise: an OPEN says an inode, and not by which name the
// kernel found it. A name leads to one inode, an inode may have several names.
// (A FORGET is no sign that it has none: one lookup of many may be given back.)
type dentries struct {
	mu    sync.Mutex
	count uint64
	leads map[name]lead
	names map[gearsfs.Ino][]name
}

// lead is where a name leads.
type lead struct {
	ino   gearsfs.Ino
	count uint64 // of what the kernel was told when it was told this last
	// since is when the kernel was told to forget it; zero where it was not.
	since time.Time
}

// underway is how long after the kernel was told to forget a name an OPEN may
// come that has followed it before.
const underway = time.Second

// dentriesMax is how many names are remembered, but for those that the kernel
// was told to forget just now.
const dentriesMax = 1 << 16

func newDentries() dentries {
	return dentries{leads: map[name]lead{}, names: map[gearsfs.Ino][]name{}}
}

// learn takes note of a name that the kernel is about to be told. Where there are
// too many it returns one that the kernel must be told to forget.
func (d *dentries) learn(ino gearsfs.Ino, n name) (old name, full bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.learnLocked(ino, n)
	tries := 16
	for old := range d.leads { // in no order: it will be looked up once more
		if tries--; tries < 0 || len(d.leads) <= dentriesMax {
			break
		}
		switch {
		case old == n:
		case d.overLocked(old):
			d.dropLocked(old)
		case d.leads[old].since.IsZero():
			return old, true
		}
	}
	return name{}, false
}

// overLocked says whether the kernel was told to forget a name so long ago that no
// OPEN by it comes any more.
func (d *dentries) overLocked(n name) bool {
	since := d.leads[n].since
	return !since.IsZero() && time.Since(since) > underway
}

func (d *dentries) learnLocked(ino gearsfs.Ino, n name) {
	d.count++
	if was, ok := d.leads[n]; !ok || was.ino != ino {
		d.dropLocked(n)
		d.names[ino] = append(d.names[ino], n)
	}
	d.leads[n] = lead{ino: ino, count: d.count}
}

// drop forgets a name that the kernel does not believe in any more.
func (d *dentries) drop(n name) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.dropLocked(n)
}

// told calls notify, which has the kernel forget a name, and will forget it too, if
// the kernel is not told of it anew meanwhile.
func (d *dentries) told(n name, notify func()) {
	d.mu.Lock()
	before := d.leads[n]
	d.mu.Unlock()
	notify()
	d.mu.Lock()
	defer d.mu.Unlock()
	now, ok := d.leads[n]
	switch {
	case !ok || now != before:
	case now.since.IsZero():
		now.since = time.Now()
		d.leads[n] = now
	default:
		d.dropLocked(n)
	}
}

func (d *dentries) dropLocked(n name) {
	l, ok := d.leads[n]
	if !ok {
		return
	}
	delete(d.leads, n)
	left := slices.DeleteFunc(d.names[l.ino], func(o name) bool { return o == n })
	if len(left) == 0 {
		delete(d.names, l.ino)
	} else {
		d.names[l.ino] = left
	}
}

// move follows a rename that the kernel has done itself.
func (d *dentries) move(from, to name, exchange bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	moved, known := d.leads[from]
	other, both := d.leads[to]
	d.dropLocked(from)
	d.dropLocked(to)
	if known {
		d.learnLocked(moved.ino, to)
	}
	if both && exchange {
		d.learnLocked(other.ino, from)
	}
}

// leadsTo returns where a name leads, as far as it is remembered.
func (d *dentries) leadsTo(n name) (ino gearsfs.Ino, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	l, ok := d.leads[n]
	return l.ino, ok
}

// of returns the names of an inode, none where they are not remembered.
func (d *dentries) of(ino gearsfs.Ino) []name {
	d.mu.Lock()
	defer d.mu.Unlock()
	names := slices.Clone(d.names[ino])
	return slices.DeleteFunc(names, func(n name) bool {
		over := d.overLocked(n)
		if over {
			d.dropLocked(n)
		}
		return over
	})
}
