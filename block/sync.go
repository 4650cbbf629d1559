package block

import (
	"errors"
	"sync"
	"sync/atomic"

	"github.com/gearsfs/gearsfs"
)

// syncsAtOnce bounds the segments that one Sync has the disk work on together.
const syncsAtOnce = 8

// syncs has concurrent calls of Sync share their work: a call that finds one
// under way joins the round that comes after it, which began after the call.
type syncs struct {
	turn sync.Mutex // held over each round

	mu   sync.Mutex // guards next; after turn
	next *round     // has not begun

	broken atomic.Pointer[error]
}

type round struct { // guarded by turn
	done bool
	err  error
}

// run returns when a round of flush has ended that began after the call.
func (y *syncs) run(flush func() error) error {
	y.mu.Lock()
	if y.next == nil {
		y.next = &round{}
	}
	r := y.next
	y.mu.Unlock()

	y.turn.Lock()
	defer y.turn.Unlock()
	if r.done {
		return r.err
	}
	y.mu.Lock()
	y.next = nil
	y.mu.Unlock()
	r.done, r.err = true, flush()
	return r.err
}

// failed returns the error after which nothing more is written.
func (y *syncs) failed() error {
	if err := y.broken.Load(); err != nil {
		return *err
	}
	return nil
}

// fail has err be the end: the kernel may have dropped what it could not
// write, and says so once.
func (y *syncs) fail(err error) error {
	y.broken.CompareAndSwap(nil, &err)
	return err
}

// Sync returns when all that was appended or stored before survives a power
// cut. Concurrent calls share the work. An error is final: all later calls of
// Append, Store and Sync return it.
func (s *Store) Sync() error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.running.RUnlock()
	return s.syncs.run(s.flush)
}

// Dirty reports whether Sync would wait for the disk. It does not wait itself.
func (s *Store) Dirty() bool {
	s.dirtyMu.Lock()
	defer s.dirtyMu.Unlock()
	return len(s.dirty) > 0 || s.syncing > 0
}

// touch notes that pages of the segment were written, also where that failed
// half way.
func (s *Store) touch(seg *segment, e gearsfs.Extent) {
	if s.freed != nil {
		s.freed.clear(seg.id, e.At, e.Pages()*pageBytes)
	}
	s.dirtyMu.Lock()
	defer s.dirtyMu.Unlock()
	if !seg.dirty {
		seg.dirty = true
		seg.refs.Add(1)
		s.dirty = append(s.dirty, seg)
	}
}

// relieve syncs where so many segments are dirty that too many files are open.
func (s *Store) relieve() error {
	s.dirtyMu.Lock()
	n := len(s.dirty)
	s.dirtyMu.Unlock()
	if n < dirtyMax {
		return nil
	}
	return s.syncs.run(s.flush)
}

// flush syncs the segments that are dirty.
func (s *Store) flush() error {
	s.dirtyMu.Lock()
	dirty := s.dirty
	s.dirty = nil
	s.syncing++
	for _, seg := range dirty {
		seg.dirty = false
		s.written[seg.id] = s.now()
	}
	s.dirtyMu.Unlock()
	defer func() {
		s.dirtyMu.Lock()
		s.syncing--
		s.dirtyMu.Unlock()
		for _, seg := range dirty {
			s.table.release(seg)
		}
	}()
	if err := s.syncs.failed(); err != nil {
		return err
	}
	if err := syncFiles(dirty); err != nil {
		return s.syncs.fail(err)
	}
	return nil
}

func syncFiles(segs []*segment) error {
	if len(segs) == 1 {
		return segs[0].file.Sync()
	}
	var (
		wg   sync.WaitGroup
		next atomic.Int64
		mu   sync.Mutex
		all  error
	)
	for range min(len(segs), syncsAtOnce) {
		wg.Go(func() {
			for i := next.Add(1) - 1; i < int64(len(segs)); i = next.Add(1) - 1 {
				if err := segs[i].file.Sync(); err != nil {
					mu.Lock()
					all = errors.Join(all, err)
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	return all
}
