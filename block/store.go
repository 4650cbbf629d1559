package block

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"path/filepath"
	"sync"
	"time"

	"github.com/gearsfs/gearsfs"
	"golang.org/x/sys/unix"
)

// ErrAbsent is returned for bytes that this store does not have: their pages
// are holes, or the segment is not here.
var ErrAbsent = errors.New("the block is not here")

const (
	pageBytes = gearsfs.PageBytes
	sumBytes  = 4

	// openFilesDefault bounds the files that are kept open.
	openFilesDefault = 256
	// dirtyMax bounds the segments that were written to since the last Sync:
	// they stay open.
	dirtyMax = 64
	// syncedMax bounds the segments that Open syncs one by one. Where there are
	// more it syncs the file system, which may have to write much of others.
	syncedMax = 256
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Options say how a store works. The zero value is what a node uses.
type Options struct {
	// Self is the node's own member id, whose segments Append fills; 0 where
	// the node does not have one yet, see SetSelf.
	Self gearsfs.MemberID
	// FS is where the segments are; nil is OS.
	FS FS
	// Now tells the time of day; nil is time.Now.
	Now func() time.Time
	// OpenFilesMax bounds the files that are kept open while nobody uses
	// them; 0 is 256.
	OpenFilesMax int
	// SegmentBytes is about how long a segment gets; 0 is
	// gearsfs.SegmentBytesMax, which is the most.
	SegmentBytes int64
	// FreeRate bounds the bytes that Free gives back in a second; 0 is no
	// bound.
	FreeRate int64
}

// Store keeps blocks in the segments below one directory. Its methods are safe
// for concurrent use. After Close they return gearsfs.ErrClosed.
type Store struct {
	table  table
	now    func() time.Time
	length uint64 // of a segment that is full
	sparse bool   // the file system knows holes and makes them
	freed  *freedPages
	pace   *pace // of Free

	closing context.Context // ends when Close begins
	close   context.CancelFunc

	// running is held shared by each operation, over its I/O too, and whole by
	// Close.
	running sync.RWMutex
	closed  bool

	// tail is where the next append goes. Its mutex is held over the making of
	// a segment, which all that append wait for, and over no other I/O. Who
	// holds it waits for the life of the tail's own segment only, which nobody
	// holds whole; so it may come behind the life of any segment.
	tail struct {
		sync.Mutex
		self gearsfs.MemberID
		seg  *segment // nil where the next append begins a new one
		next uint64
	}

	// dirtyMu guards what was written since the last Sync took it, and the
	// times of the last Sync of segments.
	dirtyMu sync.Mutex
	dirty   []*segment
	syncing int // flushes under way
	written map[segmentID]time.Time

	syncs syncs
}

// Open opens the store in dir, which is made where it is missing; its parent
// must be there. What is in dir survives a power cut from then on, also what a
// process that was killed had not synced. No two stores may have one directory
// open.
func Open(dir string, opts Options) (*Store, error) {
	if opts.FS == nil {
		opts.FS = OS
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	if opts.OpenFilesMax == 0 {
		opts.OpenFilesMax = openFilesDefault
	}
	if opts.SegmentBytes <= 0 || opts.SegmentBytes > gearsfs.SegmentBytesMax {
		opts.SegmentBytes = gearsfs.SegmentBytesMax
	}
	s := &Store{
		now:     opts.Now,
		length:  uint64(opts.SegmentBytes),
		pace:    newPace(opts.FreeRate),
		written: map[segmentID]time.Time{},
		table: table{
			fs: opts.FS, dir: dir, openMax: opts.OpenFilesMax,
			open: map[segmentID]*segment{}, newest: map[gearsfs.MemberID]uint64{},
		},
	}
	s.table.fatal = s.syncs.fail
	s.tail.self = opts.Self
	if err := s.begin(); err != nil {
		return nil, fmt.Errorf("open blocks: %w", err)
	}
	s.closing, s.close = context.WithCancel(context.Background())
	return s, nil
}

func (s *Store) begin() error {
	t := &s.table
	switch err := t.fs.MakeDir(t.dir); {
	case err == nil:
		if err := t.fs.SyncDir(filepath.Dir(t.dir)); err != nil {
			return err
		}
	case !errors.Is(err, fs.ErrExist):
		return err
	}
	if err := s.probe(); err != nil {
		return err
	}
	if !s.sparse {
		s.freed = newFreedPages()
	}
	ids, err := t.list()
	if err != nil {
		return err
	}
	for _, id := range ids {
		t.know(id)
	}
	t.passedBy() // Sweep looks at the old ones
	return t.syncAll(ids)
}

// probe finds out whether the file system makes holes and can tell them from
// what was written. Where the disk is too full to try, it is taken not to.
func (s *Store) probe() error {
	const off = 1 << 20 // more than the block of any file system
	t := &s.table
	path := filepath.Join(t.dir, "probe")
	if err := t.fs.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := t.fs.Create(path)
	if errors.Is(noSpace(err), gearsfs.ErrNoSpace) {
		return nil
	}
	if err != nil {
		return err
	}
	_, err = f.WriteAt([]byte{1}, off)
	if err == nil {
		var start int64
		start, _, err = f.Data(0)
		s.sparse = start > 0
	}
	if err == nil && s.sparse {
		if err = f.Punch(off, pageBytes); err == nil {
			_, _, err = f.Data(0)
			s.sparse = errors.Is(err, io.EOF)
		}
	}
	if unsupported(err) || errors.Is(noSpace(err), gearsfs.ErrNoSpace) {
		s.sparse, err = false, nil
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return errors.Join(err, f.Close(), t.fs.Remove(path))
}

// unsupported reports whether a file system says that it can't do something.
func unsupported(err error) bool {
	return errors.Is(err, errors.ErrUnsupported) || errors.Is(err, unix.EINVAL)
}

// noSpace has a full disk be gearsfs.ErrNoSpace.
func noSpace(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return gearsfs.ErrNoSpace.Because("%v", err)
	}
	return err
}

// enter begins an operation. Where it returns nil, s.running.RUnlock ends it.
func (s *Store) enter() error {
	s.running.RLock()
	if s.closed {
		s.running.RUnlock()
		return gearsfs.ErrClosed
	}
	return nil
}

// Close waits for the operations under way, syncs and closes all files. Only
// the first call does; its error is that of the sync or of an earlier one.
func (s *Store) Close() error {
	s.close()
	s.running.Lock()
	defer s.running.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	s.tail.Lock()
	s.leaveTailLocked()
	s.tail.Unlock()
	err := s.syncs.run(s.flush)
	return errors.Join(err, s.table.close())
}

// SetSelf says which member the node is from now on. What is appended later
// goes to segments of that member.
func (s *Store) SetSelf(self gearsfs.MemberID) {
	s.tail.Lock()
	defer s.tail.Unlock()
	if self == s.tail.self {
		return
	}
	s.tail.self = self
	s.leaveTailLocked()
}

// Append keeps data, which is not used after it returns, and says where: in one
// extent for each gearsfs.RecordBytesMax of it. What it wrote can be read at
// once, and survives a power cut when a Sync that began later has returned.
// Where it fails nothing is kept. Errors: gearsfs.ErrInvalid, there is no data,
// or the node has no member id; gearsfs.ErrNoSpace; that of a Sync before.
func (s *Store) Append(data []byte) ([]gearsfs.Extent, error) {
	if err := s.enter(); err != nil {
		return nil, err
	}
	defer s.running.RUnlock()
	if len(data) == 0 {
		return nil, gearsfs.ErrInvalid.Because("an append of no bytes")
	}
	extents := make([]gearsfs.Extent, 0, (len(data)+gearsfs.RecordBytesMax-1)/gearsfs.RecordBytesMax)
	for len(data) > 0 {
		n := min(len(data), gearsfs.RecordBytesMax)
		e, err := s.append(data[:n])
		if err != nil {
			if len(extents) > 0 {
				err = errors.Join(err, s.free(extents))
			}
			return nil, err
		}
		extents, data = append(extents, e), data[n:]
	}
	if err := s.relieve(); err != nil {
		return nil, err
	}
	return extents, nil
}

func (s *Store) append(data []byte) (gearsfs.Extent, error) {
	size := uint64(len(data))
	e := gearsfs.Extent{Size: size, Length: size, Sums: sums(data)}
	seg, at, err := s.reserve(e.Pages() * pageBytes)
	if err != nil {
		return gearsfs.Extent{}, err
	}
	defer s.table.release(seg)
	defer seg.life.RUnlock()
	e.Origin, e.Segment, e.At = seg.id.origin, seg.id.number, at
	_, err = seg.file.WriteAt(data, int64(at))
	s.touch(seg, e)
	if err != nil {
		return gearsfs.Extent{}, errors.Join(noSpace(err), s.unreserve(seg, e))
	}
	return e, nil
}

// reserve takes n bytes, whole pages, at the end of the segment that is being
// filled. It returns the segment to be released, with life held shared.
func (s *Store) reserve(n uint64) (*segment, uint64, error) {
	s.tail.Lock()
	defer s.tail.Unlock()
	if err := s.syncs.failed(); err != nil {
		return nil, 0, err
	}
	if s.tail.seg == nil || s.tail.next > 0 && s.tail.next+n > s.length {
		if err := s.beginSegmentLocked(); err != nil {
			return nil, 0, noSpace(err)
		}
	}
	seg, at := s.tail.seg, s.tail.next
	s.tail.next += n
	seg.refs.Add(1)
	seg.life.RLock() // waits for nobody: the newest segment of a member never goes
	return seg, at, nil
}

// beginSegmentLocked has the tail be a segment of its own number, higher than
// all before also where the clock went back.
func (s *Store) beginSegmentLocked() error {
	self := s.tail.self
	if self == 0 {
		return gearsfs.ErrInvalid.Because("a node that is no member yet has no segments")
	}
	number := max(s.table.newestOf(self)+1, uint64(max(s.now().UnixMilli(), 1)))
	seg, err := s.table.get(segmentID{self, number}, makeNew)
	if err != nil {
		return err
	}
	s.leaveTailLocked()
	s.tail.seg, s.tail.next = seg, 0
	return nil
}

// leaveTailLocked has the next append begin a new segment.
func (s *Store) leaveTailLocked() {
	if s.tail.seg != nil {
		s.table.release(s.tail.seg)
		s.tail.seg = nil
	}
}

// unreserve gives back the pages of an append that failed, so that a full disk
// does not use up segments.
func (s *Store) unreserve(seg *segment, e gearsfs.Extent) error {
	n := e.Pages() * pageBytes
	err := s.punch(seg, e.At, n)
	s.tail.Lock()
	defer s.tail.Unlock()
	if err == nil && s.tail.seg == seg && s.tail.next == e.At+n {
		s.tail.next = e.At
	}
	return err
}

// Store takes in another member's block: data are the e.Size bytes that e's
// checksums are of. Its place is written again where it was there before. As
// to durability, and errors, it is like Append; gearsfs.ErrDamaged: data are
// others than e says.
func (s *Store) Store(e gearsfs.Extent, data []byte) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.running.RUnlock()
	if err := s.storable(e, data); err != nil {
		return err
	}
	seg, err := s.getToWrite(idOf(e))
	if err != nil {
		return noSpace(err)
	}
	_, err = seg.file.WriteAt(data, int64(e.At))
	s.touch(seg, e)
	seg.life.RUnlock()
	s.table.release(seg)
	if err != nil {
		return noSpace(err)
	}
	return s.relieve()
}

// storable returns why data can't be stored as e.
func (s *Store) storable(e gearsfs.Extent, data []byte) error {
	if err := e.Check(); err != nil {
		return err
	}
	if e.Inline() || e.Size != uint64(len(data)) {
		return gearsfs.ErrInvalid.Because("%d bytes for an extent of %d", len(data), e.Size)
	}
	if page, ok := firstBad(e.Sums, data); !ok {
		return gearsfs.ErrDamaged.Because("a block was damaged on its way, at byte %d", page*pageBytes)
	}
	if err := s.syncs.failed(); err != nil {
		return err
	}
	s.tail.Lock()
	defer s.tail.Unlock()
	switch t := &s.tail; {
	case t.seg == nil || t.seg.id.origin != e.Origin || t.seg.id.number > e.Segment:
	case t.seg.id.number < e.Segment: // a block of a life of this node that it does not remember
		s.table.know(idOf(e))
		s.leaveTailLocked()
	case e.At+e.Pages()*pageBytes > t.next:
		return gearsfs.ErrInvalid.Because("a block where the node's next ones go")
	}
	return nil
}

// getToWrite returns a segment whose file is there, with life held shared.
func (s *Store) getToWrite(id segmentID) (*segment, error) {
	for {
		seg, err := s.table.get(id, openOrMake)
		if err != nil {
			return nil, err
		}
		seg.life.RLock()
		if !seg.removed {
			return seg, nil
		}
		seg.life.RUnlock()
		s.table.release(seg)
	}
}

// sums returns the checksums of data's pages.
func sums(data []byte) []byte {
	out := make([]byte, 0, (len(data)+pageBytes-1)/pageBytes*sumBytes)
	for len(data) > 0 {
		n := min(len(data), pageBytes)
		out = binary.LittleEndian.AppendUint32(out, crc32.Checksum(data[:n], castagnoli))
		data = data[n:]
	}
	return out
}

// firstBad returns the first page of data that does not have its checksum; ok
// is true where each has.
func firstBad(sums, data []byte) (page uint64, ok bool) {
	for ; len(data) > 0; page++ {
		n := min(len(data), pageBytes)
		if binary.LittleEndian.Uint32(sums[page*sumBytes:]) != crc32.Checksum(data[:n], castagnoli) {
			return page, false
		}
		data = data[n:]
	}
	return 0, true
}
