package persist

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/gearsfs/gearsfs"
)

// Iterator and View are what file.Store's methods return. They are aliases, so
// that State implements file.Store and neither package imports the other for it.
type Iterator = interface {
	First() bool
	Last() bool
	SeekGE(key []byte) bool
	SeekLT(key []byte) bool
	Next() bool
	Prev() bool
	Key() []byte
	Value() []byte
	Close() error
}

// View is a reader of the committed state at one moment.
type View = interface {
	Get(key, buf []byte) (value []byte, ok bool, err error)
	Scan(lo, hi []byte) (Iterator, error)
	Close() error
}

// State is the tables of a volume in a Pebble of their own, which writes no
// log: what was committed since the last flush is lost with the process, and
// comes back by applying the node's log again from the applied index that was
// committed with it. A crash leaves the state as it was after some Commit.
//
// What was committed is at first in an overlay, and moves into Pebble when that
// is full, or a reader needs all rows in order. An entry that does not fit, or
// scans tables of which rows have changed or deletes ranges of rows after changes
// of its own, has its changes in an indexed batch of Pebble's from there on:
//
//	Set, Add, Delete -> overlay, open -> Commit -> overlay, committed -> moveLocked -> Pebble
//	                        settle -> batch -> Commit -> Pebble
//
// State implements file.Store. View, Flush, Bytes and Checkpoint are safe for
// concurrent use with everything but Close; the other methods are for the one
// goroutine that applies entries. Data.Install, on that goroutine too, replaces
// the tables by others: what reads the old ones goes on doing so.
type State struct {
	batch *pebble.Batch // what is open and not in overlay, indexed; owned by the applying goroutine
	err   error         // first error of the open batch

	mu      sync.Mutex // guards what follows, and the uses of all tables
	tables  *tables    // the applying goroutine, which alone replaces them, reads this without mu
	overlay overlay    // empty where batch is not
	moment  *moment    // of the tables as they are; nil where nobody has looked since they changed

	work    sync.WaitGroup // goroutines of Flush, and those that close replaced tables
	closing chan struct{}
	once    sync.Once
	closed  error
}

// How Pebble is set up; docs/architecture.md says what was measured.
const (
	stateL0Compaction = 4    // half of it is how many sublevels start a compaction
	stateL0Files      = 8    // files that do
	stateL0Stop       = 1000 // sublevels that stop writes: never, compaction catches up
	stateBloomBits    = 10
	stateMemTables    = 4    // of Options.MemTableBytes; one more stops writes
	stateValueBytes   = 2048 // larger values go to files of their own, not through each compaction

	// stateFlushBlockBytes is the size of blocks in what a flush writes, the
	// files of values too, which a take from a long stream reads one behind the
	// other. What is looked up by itself is in smaller ones once it is compacted.
	stateFlushBlockBytes = 32 << 10
)

// openState opens the state in dir, as openTables does.
func openState(fsys FS, dir string, create bool, opts Options) (*State, error) {
	t, err := openTables(fsys, dir, create, opts)
	if err != nil {
		return nil, err
	}
	return &State{tables: t, batch: t.db.NewIndexedBatch(), closing: make(chan struct{})}, nil
}

func pebbleOptions(fsys FS, cache *pebble.Cache, faults *faults, opts Options) *pebble.Options {
	po := &pebble.Options{
		FS:                          markerFS{fsys},
		Cache:                       cache,
		DisableWAL:                  true,
		FormatMajorVersion:          pebble.FormatNewest,
		MemTableSize:                opts.MemTableBytes,
		MemTableStopWritesThreshold: stateMemTables,
		L0CompactionThreshold:       stateL0Compaction,
		L0CompactionFileThreshold:   stateL0Files,
		L0StopWritesThreshold:       stateL0Stop,
		Logger:                      faults,
		// Pebble 2.1.7 panics where it is closed by an open that fails while it
		// still collects the tables' statistics, by which it finds what deletions
		// left. Injected file systems fail at will; on a disk that ends the process.
		DisableTableStats: vfs.Root(fsys) != vfs.Default,
		EventListener: &pebble.EventListener{
			BackgroundError: faults.background,
			// Pebble holds its own lock meanwhile: all changes wait, so that no row
			// is in a file before what it refers to.
			FlushBegin: func(pebble.FlushInfo) {
				if err := opts.before.run(); err != nil {
					faults.Fatalf("sync what it refers to: %w", err)
				}
			},
			// By default that is fatal; here it is the error of the read that met it.
			DataCorruption: func(info pebble.DataCorruptionInfo) { faults.background(info.Details) },
		},
	}
	for i := range po.Levels {
		po.Levels[i].FilterPolicy = bloom.FilterPolicy(stateBloomBits)
	}
	po.Levels[0].BlockSize = stateFlushBlockBytes
	po.Experimental.ValueSeparationPolicy = valueSeparation
	po.Experimental.SpanPolicyFunc = recordsApart
	return po
}

// recordsApart has Pebble end a file in front of the records' table and behind
// it. New records lie behind those that are there, but the rows of streams and
// sessions, which each flush has too, lie everywhere: in one file with these,
// each compaction of them would write the rows of all records that are there
// again. So a file of records that overlaps no other moves down as it is.
func recordsApart(from []byte) (policy pebble.SpanPolicy, end []byte, err error) {
	switch t := byte(TableRecord); {
	case len(from) == 0 || from[0] < t:
		end = []byte{t}
	case from[0] == t:
		end = []byte{t + 1}
	}
	return policy, end, nil
}

// markerFS makes the names of other files durable before that of a marker.
// Pebble says by a marker file's name which manifest counts, and syncs the
// directory once for both: a file system that does not keep the order of names
// could keep the marker and lose the manifest.
type markerFS struct{ FS }

func (m markerFS) Create(name string, category vfs.DiskWriteCategory) (vfs.File, error) {
	if strings.HasPrefix(m.PathBase(name), "marker.") {
		if err := syncDir(m.FS, m.PathDir(name)); err != nil {
			return nil, err
		}
	}
	return m.FS.Create(name, category)
}

func (m markerFS) Unwrap() FS { return m.FS }

// checkState opens the state read-only, which finds a damaged manifest and
// missing tables, and looks for missing files of values, which Pebble does not.
func checkState(fsys FS, dir string, cache *pebble.Cache, opts Options) error {
	names, err := fsys.List(dir)
	if err != nil {
		return err
	}
	faults := newFaults(nil)
	po := pebbleOptions(fsys, cache, faults, opts)
	po.ReadOnly = true
	db, err := openPebble(dir, po, faults)
	if err != nil {
		return err
	}
	want := db.Metrics().BlobFiles.LiveCount
	if err := db.Close(); err != nil {
		return err
	}
	have := uint64(0)
	for _, name := range names {
		if strings.HasSuffix(name, ".blob") {
			have++
		}
	}
	if have < want {
		return gearsfs.ErrDamaged.Because("%d of %d files of values are missing in %s", want-have, want, dir)
	}
	return nil
}

// openPebble opens Pebble in a goroutine of its own, since what goes wrong in
// the background of that makes it try again for ever, and what is fatal ends
// the goroutine.
func openPebble(dir string, po *pebble.Options, faults *faults) (*pebble.DB, error) {
	type opened struct {
		db  *pebble.DB
		err error
	}
	done := make(chan opened, 1)
	failed := faults.next()
	compactions := newCompactions()
	po.Experimental.CompactionScheduler = compactions
	go func() {
		defer close(done)
		defer func() { // Pebble panics where it can't sync its directory
			if r := recover(); r != nil {
				done <- opened{err: fmt.Errorf("%v", r)}
			}
		}()
		db, err := pebble.Open(dir, po)
		done <- opened{db, err}
	}()
	select {
	case o, ok := <-done:
		if ok {
			if o.err == nil {
				compactions.opened()
			}
			return o.db, o.err
		}
	case <-failed:
	}
	go func() { // should it yet succeed, give it up
		if o, ok := <-done; ok && o.err == nil {
			faults.background(o.db.Close())
		}
	}()
	return nil, faults.last()
}

// valueSeparation keeps payloads out of the way of compactions of the many
// small rows around them. Pebble 2.1.7 panics where it can't finish a file of
// separated values, as on a disk that is quite full: then the process ends as
// by a fatal error, and the log brings back what was committed.
func valueSeparation() pebble.ValueSeparationPolicy {
	return pebble.ValueSeparationPolicy{
		Enabled:               true,
		MinimumSize:           stateValueBytes,
		MaxBlobReferenceDepth: 10,
		TargetGarbageRatio:    0.3,
	}
}

// Get appends the value of key, as the open batch leaves it, to buf.
func (s *State) Get(key, buf []byte) ([]byte, bool, error) {
	if !s.batch.Empty() {
		return get(s.batch, key, buf)
	}
	s.mu.Lock()
	value, kind := s.overlay.get(key)
	if kind != unchanged {
		buf = append(buf, value...)
	}
	s.mu.Unlock()
	if kind != unchanged {
		return buf, kind == set, nil
	}
	return get(s.tables.db, key, buf)
}

// Scan iterates over [lo, hi) of the state with the open batch as of the call.
// The iterator must be closed before Commit.
func (s *State) Scan(lo, hi []byte) (Iterator, error) {
	s.mu.Lock()
	whole := !s.overlay.mayTouch(lo, hi)
	s.mu.Unlock()
	if !whole {
		if err := s.settle(); err != nil {
			return nil, err
		}
	}
	if s.batch.Empty() {
		return scan(s.tables.db, lo, hi)
	}
	return scan(s.batch, lo, hi)
}

// Set adds a row to the open batch, replacing one of the same key.
func (s *State) Set(key, value []byte) { s.change(key, set, value) }

// Add is Set of a row that the state with the open batch does not have: if it is
// deleted soon Pebble never hears of it.
func (s *State) Add(key, value []byte) { s.change(key, added, value) }

// Delete removes a row in the open batch.
func (s *State) Delete(key []byte) { s.change(key, deleted, nil) }

// change changes a row in the overlay, or, where that is full or the batch has
// changes already, in the batch.
func (s *State) change(key []byte, kind changeKind, value []byte) {
	if s.batch.Empty() {
		s.mu.Lock()
		done := s.overlay.change(key, kind, value)
		s.mu.Unlock()
		if done {
			return
		}
		s.err = errors.Join(s.err, s.settle())
	}
	if kind == deleted {
		s.err = errors.Join(s.err, s.batch.Delete(key, nil))
	} else {
		s.err = errors.Join(s.err, s.batch.Set(key, value, nil))
	}
}

// DeleteRange removes the rows in [lo, hi) in the open batch.
func (s *State) DeleteRange(lo, hi []byte) {
	if bytes.Compare(lo, hi) >= 0 {
		return
	}
	s.err = errors.Join(s.err, s.settle(), s.batch.DeleteRange(overlapping(lo), hi, nil))
}

// overlapping returns a key in front of lo, but behind all others that a row in
// front of lo can have; where lo is not the place of a record, lo. A stream is consumed
// range by range, each of which begins where the one before it ended: so they
// overlap. Pebble merges what is in L0 with what lies below where it overlaps:
// deletions that did not would lie there for ever, and beneath them what they
// delete.
func overlapping(lo []byte) []byte {
	ino, key, at, err := ParseRecordKey(lo)
	if err != nil || at.Seq == 0 {
		return lo
	}
	at.Seq--
	return append(RecordKey(ino, key, at), 0)
}

// settle empties the overlay: what is committed goes to Pebble, what is open
// into the batch.
func (s *State) settle() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.overlay.empty() {
		return nil
	}
	if err := s.moveLocked(); err != nil {
		return err
	}
	if err := s.overlay.putOpen(s.batch); err != nil {
		return err
	}
	s.overlay.clear()
	return nil
}

// moveLocked moves what is committed in the overlay to Pebble, in one batch; after
// an error all of it is where it was.
func (s *State) moveLocked() error {
	if s.overlay.empty() {
		return nil
	}
	if err := s.tables.faults.fatal(); err != nil {
		return err
	}
	s.passLocked()
	b := s.tables.db.NewBatch()
	err := s.overlay.putCommitted(b)
	if err == nil {
		err = s.tables.db.Apply(b, pebble.NoSync)
	}
	if err == nil {
		s.overlay.moved()
	}
	return errors.Join(err, b.Close())
}

// Commit applies the open batch atomically and begins a new one. It does not
// wait for the disk, but for memory where four memtables wait to be flushed, as
// all other methods may that move rows into Pebble. After an error the state
// must not be used any more, only closed.
func (s *State) Commit() error {
	err := errors.Join(s.err, s.tables.faults.fatal())
	changed := !s.batch.Empty() // Pebble empties a large one
	if err == nil && changed {
		err = s.tables.db.Apply(s.batch, pebble.NoSync)
	}
	if err != nil {
		return fmt.Errorf("commit to the state: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if changed {
		s.passLocked()
	}
	s.batch.Reset()
	s.overlay.commit()
	return nil
}

func get(r pebble.Reader, key, buf []byte) ([]byte, bool, error) {
	value, closer, err := r.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return buf, false, nil
	}
	if err != nil {
		return buf, false, readError(err)
	}
	buf = append(buf, value...)
	if err := closer.Close(); err != nil {
		return buf, false, readError(err)
	}
	return buf, true, nil
}

func scan(r pebble.Reader, lo, hi []byte) (Iterator, error) {
	if bytes.Compare(lo, hi) > 0 {
		hi = lo // Pebble has no empty ranges but these
	}
	it, err := r.NewIter(&pebble.IterOptions{LowerBound: lo, UpperBound: hi})
	if err != nil {
		return nil, readError(err)
	}
	return iterator{it}, nil
}

// iterator names the kind of error that ends an iteration.
type iterator struct{ *pebble.Iterator }

func (it iterator) Close() error { return readError(it.Iterator.Close()) }

// Flush writes what is committed now to disk. It returns at once; the channel
// yields nil when all of it is there, so that the log may be cut up to the
// index that was applied before the call, or an error where the disk failed:
// then Pebble keeps trying, and a later Flush may succeed. It yields
// gearsfs.ErrClosed where the state is closed meanwhile.
func (s *State) Flush() <-chan error {
	t, err := s.acquireWhole()
	defer s.release(t)
	if err != nil {
		return failed(err)
	}
	return s.flush(t)
}

func failed(err error) <-chan error {
	done := make(chan error, 1)
	done <- fmt.Errorf("flush the state: %w", err)
	return done
}

// flush is Flush of tables that the caller has acquired.
func (s *State) flush(t *tables) <-chan error {
	done := make(chan error, 1)
	failed := t.faults.next()
	flushed, err := t.db.AsyncFlush()
	if err != nil {
		done <- fmt.Errorf("flush the state: %w", err)
		return done
	}
	s.mu.Lock()
	t.uses++
	s.mu.Unlock()
	s.work.Go(func() {
		defer s.release(t)
		select {
		case <-flushed:
			done <- nil
		case <-failed:
			done <- fmt.Errorf("flush the state: %w", t.faults.last())
		case <-s.closing:
			done <- gearsfs.ErrClosed
		}
	})
	return done
}

// Checkpoint flushes and makes a copy of the state, without any log, in dir,
// which must not exist: it is as after some Commit since the call, or the last
// one before. Files are linked where the file system can.
func (s *State) Checkpoint(dir string) error {
	t, err := s.acquireWhole()
	defer s.release(t)
	if err != nil {
		return err
	}
	if err := <-s.flush(t); err != nil {
		return err
	}
	if err := t.db.Checkpoint(dir); err != nil {
		return fmt.Errorf("checkpoint the state: %w", noSpace(err))
	}
	return nil
}

// Bytes is how much disk the state takes.
func (s *State) Bytes() uint64 {
	t := s.acquire()
	defer s.release(t)
	return t.db.Metrics().DiskSpaceUsage()
}

// close flushes what is committed and waits for what runs in the background.
// What is in the open batch is dropped. After a fatal error a goroutine of
// Pebble's is gone that the others would wait for, so it is left as it is, with
// its files and its lock. It is idempotent.
func (s *State) close() error {
	s.once.Do(func() {
		t := s.tables
		var flushed error
		if t.faults.fatal() == nil {
			flushed = <-s.Flush()
		}
		close(s.closing)
		s.pass()
		s.work.Wait()
		if t.faults.fatal() == nil {
			flushed = errors.Join(flushed, s.batch.Close())
		}
		s.closed = errors.Join(flushed, t.close())
	})
	return s.closed
}

// readError marks an error of Pebble's that comes of bytes that are not what
// was written, so that errors.Is(err, gearsfs.ErrDamaged).
func readError(err error) error {
	if err == nil {
		return nil
	}
	if pebble.IsCorruptionError(err) || isNotExist(err) {
		return gearsfs.ErrDamaged.Because("state: %v", err)
	}
	return fmt.Errorf("read the state: %w", err)
}

// stateError says why the state in dir can't be opened.
func stateError(dir string, err error) error {
	if pebble.IsCorruptionError(err) || errors.Is(err, pebble.ErrDBDoesNotExist) ||
		errors.Is(err, pebble.ErrDBNotPristine) || isNotExist(err) {
		return gearsfs.ErrDamaged.Because("%s: %v", dir, err)
	}
	return fmt.Errorf("open the state in %s: %w", dir, noSpace(err))
}
