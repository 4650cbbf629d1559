package persist

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"syscall"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/gearsfs/gearsfs"
	"golang.org/x/sys/unix"
)

// LogEntry is one entry of the log. Type and Data mean nothing to the log.
type LogEntry struct {
	Index, Term uint64
	Type        uint8
	Data        []byte
}

// Log is a node's log: entries with rising indexes and one hard state, in
// segment files (see segment.go).
//
// Append puts entries into the file with one write(2): they survive the end of
// the process from then on, and a power cut once a Sync that began later has
// returned. After a crash the log holds everything that was synced and of the
// rest what was written up to some point, whole records only.
//
// All methods are safe for concurrent use; Append, TruncateFront and Reset take
// turns, Sync and the readers run beside them. An error of a write, as of a
// full disk, has changed nothing: the same may be tried again. An error of a
// sync is for good, since the kernel may have dropped what it could not write:
// every later change returns it, and only opening the log again tells what is
// on disk.
type Log struct {
	fs    FS
	dir   string
	limit Options

	appending sync.Mutex // held by whoever changes files; taken before syncing and mu
	dirFile   vfs.File
	spares    []spare
	number    uint64 // of the newest segment
	first     uint64 // of the oldest segment that is needed
	restart   bool   // what is behind the last record is unknown: begin a generation
	found     bool   // nothing was appended since the log was opened
	buf       []byte // where records are put together

	syncing sync.Mutex // held by Sync; taken before mu

	mu         sync.Mutex // guards what follows; never held over I/O
	segs       []*segment // by rising number, the last is appended to
	index      logIndex
	recent     recentEntries
	sure       uint64 // see Sure
	hard       []byte // replaced, never changed
	generation uint64
	broken     error // of a sync
	closed     bool
}

// segment is an open segment file. Its fields but used, synced, sealed and
// those behind do not change; those are guarded by Log.mu, and used is changed
// by the holder of Log.appending only.
type segment struct {
	number uint64
	path   string
	f      vfs.File
	size   int64

	used   int64 // end of the last record
	synced int64 // up to here all is on disk
	sealed bool
	pins   int  // readers and syncs that use f now
	gone   bool // f is to be closed by the last of them
}

// bufBytesMax bounds the memory that is kept for putting records together.
const bufBytesMax = 4 << 20

// First is the index of the oldest entry, Last that of the newest one; Last is
// First-1 where the log is empty.
func (l *Log) First() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.index.frontIndex + 1
}

// Last is the index of the newest entry.
func (l *Log) Last() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.index.last
}

// HardState is what was last given to Append; nil where nothing was. It must
// not be changed.
func (l *Log) HardState() []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.hard
}

// Bytes is how much of the log would be read when it is opened.
func (l *Log) Bytes() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	var n int64
	for _, seg := range l.segs {
		n += seg.used
	}
	return uint64(n)
}

// BytesFrom is about how much of the log lies behind entry index, up to Last:
// what it takes to send it to who has all up to index.
func (l *Log) BytesFrom(index uint64) uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	index = max(index, l.index.frontIndex)
	if index >= l.index.last {
		return 0
	}
	run, point := l.index.find(index + 1)
	n := run.seg.used - point.off
	for _, seg := range l.segs {
		if seg.number > run.seg.number {
			n += seg.used
		}
	}
	return uint64(n)
}

// Term returns the term of an entry, or of the one before First. Other indexes
// give gearsfs.ErrRange.
func (l *Log) Term(index uint64) (uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if index < l.index.frontIndex || index > l.index.last {
		return 0, l.rangeErrorLocked(index)
	}
	return l.index.term(index), nil
}

func (l *Log) rangeErrorLocked(index uint64) error {
	return gearsfs.ErrRange.Because("no entry %d in the log from %d to %d", index, l.index.frontIndex+1, l.index.last)
}

// Append adds entries, whose indexes follow each other, and replaces the hard
// state where hard is not nil (an empty one is none). The first index is at most Last()+1 and behind
// what was truncated at the front; a lower one removes the entries from there
// on first. All of it is in the file, though not synced, when Append returns
// without an error. The log keeps the entries' Data: it must not be changed
// any more.
//
// gearsfs.ErrNoSpace: no room for another segment; nothing has changed, and
// Append works again when there is. gearsfs.ErrTooBig: more than 1 GiB at once.
func (l *Log) Append(entries []LogEntry, hard []byte) error {
	if len(entries) == 0 && hard == nil {
		return nil
	}
	l.appending.Lock()
	defer l.appending.Unlock()
	return l.append(entries, hard)
}

// append is Append. Needs appending.
func (l *Log) append(entries []LogEntry, hard []byte) error {
	size, err := l.check(entries, hard)
	if err != nil {
		return err
	}
	if err := l.makeRoom(size); err != nil {
		return fmt.Errorf("append to the log: %w", err)
	}
	tail, start, next := l.tail()
	buf := slices.Grow(l.buf[:0], int(size))
	for i := range entries {
		e := &entries[i]
		r := next
		r.kind, r.typ, r.index, r.term, r.payload = kindEntry, e.Type, e.Index, e.Term, e.Data
		buf = appendRecord(buf, start+int64(len(buf)), r)
	}
	if hard != nil {
		r := next
		r.kind, r.payload = kindHard, hard
		buf = appendRecord(buf, start+int64(len(buf)), r)
	}
	if err := l.write(tail, buf); err != nil {
		return fmt.Errorf("append to the log: %w", err)
	}
	l.found = false

	l.mu.Lock()
	defer l.mu.Unlock()
	off := start
	for i := range entries {
		e := &entries[i]
		l.index.add(tail, off, e.Index, e.Term)
		l.recent.add(*e)
		off += recordBytes(len(e.Data))
	}
	if hard != nil {
		l.hard = cloneHard(hard)
	}
	tail.used += int64(len(buf))
	return nil
}

// cloneHard copies a hard state; an empty one is none.
func cloneHard(hard []byte) []byte {
	if len(hard) == 0 {
		return nil
	}
	return slices.Clone(hard)
}

// check says how many bytes an Append takes, or why it can't be.
func (l *Log) check(entries []LogEntry, hard []byte) (size int64, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.usableLocked(); err != nil {
		return 0, err
	}
	for i := range entries {
		if entries[i].Index != entries[0].Index+uint64(i) {
			return 0, gearsfs.ErrInvalid.Because("log entry %d follows entry %d", entries[i].Index, entries[0].Index+uint64(i)-1)
		}
		size += recordBytes(len(entries[i].Data))
	}
	if hard != nil {
		size += recordBytes(len(hard))
	}
	if size > payloadBytesMax {
		return 0, gearsfs.ErrTooBig.Because("%d bytes at once are too many for the log", size)
	}
	if len(entries) == 0 {
		return size, nil
	}
	if i := entries[0].Index; i <= l.index.frontIndex || i > l.index.last+1 {
		return 0, gearsfs.ErrInvalid.Because("entry %d can't be added to the log from %d to %d",
			i, l.index.frontIndex+1, l.index.last)
	}
	return size, nil
}

func (l *Log) usableLocked() error {
	if l.closed {
		return gearsfs.ErrClosed
	}
	return l.broken
}

// tail returns the segment that is appended to, where its next record goes and
// what that record's header has in any case. Needs appending.
func (l *Log) tail() (seg *segment, off int64, r record) {
	l.mu.Lock()
	defer l.mu.Unlock()
	seg = l.segs[len(l.segs)-1]
	return seg, seg.used, record{generation: l.generation, synced: uint32(seg.synced)}
}

// write puts records behind the last one, with one write(2). Needs appending.
func (l *Log) write(seg *segment, buf []byte) error {
	if cap(buf) <= bufBytesMax {
		l.buf = buf
	}
	if _, err := seg.f.WriteAt(buf, seg.used); err != nil {
		l.restart = true // some of it may be there
		return noSpace(err)
	}
	return nil
}

// makeRoom sees to it that the tail takes size bytes more, in a generation that
// nothing behind its last record bears. Needs appending.
func (l *Log) makeRoom(size int64) error {
	tail, off, r := l.tail()
	if l.restart {
		size += recordHeaderBytes
	}
	if tail.sealed || off+size+sealBytes > tail.size {
		return l.rotate(size, l.headNow())
	}
	if !l.restart {
		return nil
	}
	r.kind, r.generation = kindStart, r.generation+1
	if err := l.write(tail, appendRecord(l.buf[:0], off, r)); err != nil {
		return err
	}
	if err := l.syncFile(tail); err != nil {
		return err
	}
	l.restart = false
	l.mu.Lock()
	defer l.mu.Unlock()
	l.generation = r.generation
	tail.used += recordHeaderBytes
	tail.synced = tail.used
	return nil
}

// syncFile syncs a segment; where that fails the log is broken.
func (l *Log) syncFile(seg *segment) error {
	before, err := l.limit.before.beside(seg.f.SyncData)
	if before != nil {
		return l.breakBy(before)
	}
	if err != nil {
		return l.breakBy(fmt.Errorf("sync %s: %w", seg.path, err))
	}
	return nil
}

// breakBy makes err the answer to every later change.
func (l *Log) breakBy(err error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.broken == nil {
		l.broken = err
	}
	return l.broken
}

// Hasten has the kernel begin to write what is not on disk yet, and does not
// wait for it: a Sync that follows after other work then takes less. It promises
// nothing, and an error of the disk comes out of that Sync.
func (l *Log) Hasten() {
	l.mu.Lock()
	tail := l.segs[len(l.segs)-1]
	begin, end := tail.synced, tail.used
	if l.usableLocked() != nil || begin >= end {
		l.mu.Unlock()
		return
	}
	tail.pins++
	l.mu.Unlock()
	if fd := tail.f.Fd(); fd != vfs.InvalidFd {
		// Without SYNC_FILE_RANGE_WAIT_*, which would take note of errors that
		// fdatasync(2) is to tell of.
		unix.SyncFileRange(int(fd), begin, end-begin, unix.SYNC_FILE_RANGE_WRITE) //nolint:errcheck // only a hint
	}
	l.unpin(tail) //nolint:errcheck // it closes only what is gone
}

// Sync returns when all that was appended before the call is on disk. It may
// run beside Append. After an error the log takes no changes any more.
func (l *Log) Sync() error {
	l.syncing.Lock()
	defer l.syncing.Unlock()
	l.mu.Lock()
	if err := l.usableLocked(); err != nil {
		l.mu.Unlock()
		return err
	}
	// Older segments are on disk since the tail is the tail.
	tail := l.segs[len(l.segs)-1]
	used := tail.used
	if tail.synced >= used {
		l.mu.Unlock()
		return nil
	}
	tail.pins++
	l.mu.Unlock()

	err := l.syncFile(tail)

	l.mu.Lock()
	if err == nil {
		tail.synced = max(tail.synced, used)
	}
	l.mu.Unlock()
	return errors.Join(err, l.unpin(tail))
}

// unpin ends a use of a segment's file that was begun by adding to its pins.
func (l *Log) unpin(seg *segment) error {
	l.mu.Lock()
	seg.pins--
	last := seg.gone && seg.pins == 0
	l.mu.Unlock()
	if last {
		return seg.f.Close()
	}
	return nil
}

// TruncateFront says that the entries up to index, at most Last(), are not
// needed any more. It frees whole segments; entries in the segments that stay
// can't be read any more, but come back when the log is opened again. It waits
// for the disk where it frees something.
func (l *Log) TruncateFront(index uint64) error {
	first, err := l.cutFront(index)
	if err != nil || first == 0 {
		return err
	}
	if err := l.Sync(); err != nil {
		return fmt.Errorf("truncate the log: %w", err)
	}
	l.appending.Lock()
	defer l.appending.Unlock()
	return l.recycleBefore(first)
}

// cutFront moves the front and writes down the first segment that is still
// needed; that is 0 where none can go.
func (l *Log) cutFront(index uint64) (first uint64, err error) {
	l.appending.Lock()
	defer l.appending.Unlock()
	l.mu.Lock()
	if err := l.usableLocked(); err != nil {
		l.mu.Unlock()
		return 0, err
	}
	if index > l.index.last {
		err := l.rangeErrorLocked(index)
		l.mu.Unlock()
		return 0, err
	}
	if index <= l.index.frontIndex {
		l.mu.Unlock()
		return 0, nil
	}
	term := l.index.term(index)
	tail := l.segs[len(l.segs)-1]
	first = l.index.firstNeeded(index, tail)
	oldest := l.segs[0].number
	l.mu.Unlock()

	if first > oldest {
		size := recordBytes(8)
		if err := l.makeRoom(size); err != nil {
			return 0, fmt.Errorf("truncate the log: %w", err)
		}
		tail, off, r := l.tail()
		r.kind, r.index, r.term = kindFront, index, term
		r.payload = binary.LittleEndian.AppendUint64(nil, first)
		if err := l.write(tail, appendRecord(l.buf[:0], off, r)); err != nil {
			return 0, fmt.Errorf("truncate the log: %w", err)
		}
		l.first, l.found = first, false
		l.mu.Lock()
		tail.used += size
		l.mu.Unlock()
	} else {
		first = 0
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.index.front(index, term)
	l.recent.front(index)
	return first, nil
}

// Reset empties the log: the next entry is index+1, behind an entry of term.
// The hard state stays. It is on disk when Reset returns without an error.
func (l *Log) Reset(index, term uint64) error {
	_, err := l.reset(index, term, l.HardState(), nil)
	return err
}

// reset is Reset with a hard state. Where begin is not nil it is called when
// nothing has changed and nothing but a broken disk is in the way any more:
// its error ends the reset; what fails after it, before done, breaks the log.
func (l *Log) reset(index, term uint64, hard []byte, begin func() error) (done bool, err error) {
	l.appending.Lock()
	defer l.appending.Unlock()
	l.mu.Lock()
	err = l.usableLocked()
	l.mu.Unlock()
	if err != nil {
		return false, err
	}
	h := head{
		first:      l.number + 1,
		frontIndex: index, frontTerm: term,
		lastIndex: index, lastTerm: term,
		hard: cloneHard(hard),
	}
	if begin != nil {
		_, err = l.haveSpare(spareBytes(0, h), h.first)
		if err == nil {
			err = begin()
		}
	}
	if err == nil {
		if err = l.rotate(0, h); err != nil && begin != nil {
			l.breakBy(err)
		}
	}
	if err != nil {
		return false, fmt.Errorf("reset the log: %w", err)
	}
	l.mu.Lock()
	l.index.reset(index, term)
	l.recent.cut(0)
	l.hard = h.hard
	l.mu.Unlock()
	return true, l.recycleBefore(h.first)
}

// Close syncs what was appended and closes the files. It is idempotent, and
// must not run beside other methods.
func (l *Log) Close() error {
	l.appending.Lock()
	defer l.appending.Unlock()
	l.mu.Lock()
	done, broken := l.closed, l.broken
	l.mu.Unlock()
	if done {
		return nil
	}
	err := broken
	if err == nil {
		err = l.mark()
	}
	l.mu.Lock()
	l.closed = true
	segs := l.segs
	l.mu.Unlock()
	for _, seg := range segs {
		err = errors.Join(err, seg.f.Close())
	}
	return errors.Join(err, l.dirFile.Close())
}

// mark syncs, and notes behind the last record that all before is on disk, so
// that damage to what was synced last is told from a torn end.
func (l *Log) mark() error {
	if err := l.Sync(); err != nil {
		return err
	}
	tail, off, r := l.tail()
	if l.restart || tail.sealed || off+recordHeaderBytes+sealBytes > tail.size {
		return nil
	}
	r.kind = kindMark
	if err := l.write(tail, appendRecord(l.buf[:0], off, r)); err != nil {
		return err
	}
	l.mu.Lock()
	tail.used += recordHeaderBytes
	l.mu.Unlock()
	return l.Sync()
}

// noSpace makes a full disk's error one that callers know.
func noSpace(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return gearsfs.ErrNoSpace.Because("%v", err)
	}
	return err
}
