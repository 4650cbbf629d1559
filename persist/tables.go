package persist

import (
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"
	"github.com/gearsfs/gearsfs"
)

// tables is one Pebble in a directory. A State has one that is current; one
// that was replaced lives on until nothing uses it:
//
//	openTables -> current -> replace -> retired -> the last release -> discard
//
// uses and retired are guarded by the State's mu.
type tables struct {
	db     *pebble.DB
	fs     FS
	dir    string
	faults *faults

	uses    int
	retired bool
}

// openTables opens the tables in dir, or makes some there, where create says so.
// What is there is first looked at without writing: where it is damaged nothing
// has changed.
func openTables(fsys FS, dir string, create bool, opts Options) (*tables, error) {
	cache := pebble.NewCache(opts.CacheBytes)
	defer cache.Unref()
	if !create {
		if err := checkState(fsys, dir, cache, opts); err != nil {
			return nil, stateError(dir, err)
		}
	}
	faults := newFaults(opts.Fatal)
	po := pebbleOptions(fsys, cache, faults, opts)
	po.ErrorIfExists, po.ErrorIfNotExists = create, !create
	db, err := openPebble(dir, po, faults)
	if err != nil {
		return nil, stateError(dir, err)
	}
	return &tables{db: db, fs: fsys, dir: dir, faults: faults}, nil
}

// close waits for what runs in the background. After a fatal error that may
// never end: then nothing is closed.
func (t *tables) close() error {
	done := make(chan error, 1)
	if t.faults.fatal() == nil {
		go func() { done <- t.db.Close() }()
	}
	select {
	case err := <-done:
		return err
	case <-t.faults.dead:
		return fmt.Errorf("close the state: %w", t.faults.fatal())
	}
}

// discard closes tables that nobody needs and removes them. What it can't
// remove the next Open does, so its errors are nobody's.
func (t *tables) discard() {
	if t.close() == nil {
		t.fs.RemoveAll(t.dir)
	}
}

// acquire returns the current tables, which stay open until release.
func (s *State) acquire() *tables {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tables.uses++
	return s.tables
}

// acquireWhole is acquire of tables that hold all that is committed, as far as
// there is no error. They are to be released in any case.
func (s *State) acquireWhole() (*tables, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tables.uses++
	return s.tables, s.moveLocked()
}

func (s *State) release(t *tables) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.releaseLocked(t)
}

func (s *State) releaseLocked(t *tables) {
	t.uses--
	if t.retired && t.uses == 0 {
		s.work.Go(t.discard)
	}
}

// replace makes t the current tables. Those before are removed when their last
// user lets go; their faults are nobody's any more. The open batch is empty.
// Only the applying goroutine calls it.
func (s *State) replace(t *tables) error {
	err := s.batch.Close()
	s.batch = t.db.NewIndexedBatch()
	s.mu.Lock()
	s.passLocked()
	s.overlay.clear()
	old := s.tables
	s.tables = t
	old.retired = true
	old.uses++ // for release
	s.mu.Unlock()
	old.faults.ignore()
	s.release(old)
	return err
}

// readTables opens a Pebble in dir to read it; closing the View closes it.
// Nothing is written, but for Pebble's lock.
func readTables(fsys FS, dir string, opts Options) (View, error) {
	cache := pebble.NewCache(readCacheBytes)
	defer cache.Unref()
	faults := newFaults(nil)
	po := pebbleOptions(fsys, cache, faults, opts)
	po.ReadOnly = true
	db, err := openPebble(dir, po, faults)
	if err != nil {
		return nil, stateError(dir, err)
	}
	return wholeView{snapshotReader{db.NewSnapshot()}, db}, nil
}

// wholeView is a View of tables that end with it.
type wholeView struct {
	snapshotReader
	db *pebble.DB
}

func (v wholeView) Close() error { return errors.Join(v.snap.Close(), v.db.Close()) }

// readCacheBytes is for tables that are read once.
const readCacheBytes = 1 << 20

// empty reports whether nothing waits for a Commit.
func (s *State) empty() error {
	if s.err != nil {
		return s.err
	}
	s.mu.Lock()
	open := len(s.overlay.open) > 0
	s.mu.Unlock()
	if open || !s.batch.Empty() {
		return gearsfs.ErrInvalid.Because("changes of the state are not committed")
	}
	return nil
}
