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
	table map[gearsfs.Ino]attributes
	shown map[gearsfs.Ino]stamp // what an OPEN has shown that dropped what was believed
	// Of one file at a time is the kernel being told that it has changed: an OPEN that
	// shows it has to wait for the end of that, else the notice came behind its answer.
	noticed gearsfs.Ino
	sent    chan struct{} // closed when it was told
	// several says whether the volume is on several nodes, and what was asked of a
	// replica may be older than what is known of it here; nil where that is not known.
	several func() bool
}

// attributes are what the kernel was told last of a file.
type attributes struct {
	stamp
	// mixed says that it was told others before, and may believe in those: of two
	// answers that are under way at once it ignores the one that it takes up last.
	mixed bool
}

// stamp tells one state of a file's attributes from another.
type stamp struct {
	version uint64
	ctime   time.Time
}

// toldMax is of how many files it is remembered. Of the others an OPEN says that
// they have changed.
const toldMax = 1 << 15

// noticeWait is how long an OPEN waits for the end of a notice. The kernel waits for
// a page that is being read, but mostly for nothing.
const noticeWait = time.Second

// shownMax is of how many files it is remembered what an OPEN has shown.
const shownMax = 1 << 12

func newTold(several func() bool) told {
	return told{table: map[gearsfs.Ino]attributes{}, shown: map[gearsfs.Ino]stamp{}, several: several}
}

func stampOf(a *gearsfs.Attr) stamp { return stamp{a.Version, a.Ctime} }

func (t *told) note(a *gearsfs.Attr) {
	if !isFile(a) {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	was, ok := t.table[a.Ino]
	if !ok && len(t.table) >= toldMax {
		for old := range t.table { // in no order
			delete(t.table, old)
			break
		}
	}
	now := stampOf(a)
	t.table[a.Ino] = attributes{now, ok && (was.mixed || was.stamp != now)}
}

// dropped takes note that the kernel was made to forget a file's attributes when they
// were a: it believes in none that are older, as those that it was sent it ignores.
func (t *told) dropped(a *gearsfs.Attr) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, ok := t.table[a.Ino]; ok {
		t.table[a.Ino] = attributes{stamp: stampOf(a)}
	}
}

// older reports whether the kernel may believe in other attributes than a.
func (t *told) older(a *gearsfs.Attr) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	was, ok := t.table[a.Ino]
	return !ok || was.stamp != stampOf(a) || was.mixed && (t.several == nil || t.several())
}

// show is for an OPEN that shows a and has the kernel forget the attributes that it
// believes in: from then on it takes none that are older, as no request that it
// sends now is answered with those, and it ignores the answers to earlier ones. Nor
// has it older pages, once the file is open through its cache.
func (t *told) show(a *gearsfs.Attr) {
	t.mu.Lock()
	var sent chan struct{}
	if t.noticed == a.Ino {
		sent = t.sent
	}
	t.showLocked(a)
	t.mu.Unlock()
	if sent != nil {
		timer := time.NewTimer(noticeWait)
		defer timer.Stop()
		select {
		case <-sent:
		case <-timer.C:
		}
	}
}

func (t *told) showLocked(a *gearsfs.Attr) {
	if _, ok := t.shown[a.Ino]; !ok && len(t.shown) >= shownMax {
		for old := range t.shown { // in no order
			delete(t.shown, old)
			break
		}
	}
	t.shown[a.Ino] = stampOf(a)
}

// notice sends a notice that a file has changed, unless an OPEN has shown what the
// file is now, which current tells. It is called by one goroutine.
func (t *told) notice(ino gearsfs.Ino, current func() (gearsfs.Attr, error), send func()) {
	t.mu.Lock()
	if _, ok := t.shown[ino]; ok {
		t.mu.Unlock()
		a, err := current()
		t.mu.Lock()
		if err == nil && t.shown[ino] == stampOf(&a) {
			t.mu.Unlock()
			return
		}
		delete(t.shown, ino) // the file has changed since
	}
	t.noticed, t.sent = ino, make(chan struct{})
	t.mu.Unlock()
	send()
	t.mu.Lock()
	close(t.sent)
	t.noticed, t.sent = 0, nil
	t.mu.Unlock()
}

// unshow forgets all that OPENs have shown.
func (t *told) unshow() {
	t.mu.Lock()
	defer t.mu.Unlock()
	clear(t.shown)
}

func (t *told) forget(ino gearsfs.Ino) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.table, ino)
	delete(t.shown, ino)
}
