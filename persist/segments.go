package persist

import (
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// logWrites is the category under which Pebble's file systems count the log's
// writes.
const logWrites vfs.DiskWriteCategory = "gearsfs-log"

// A spare is a file that was a segment, or is filled with zeros, and waits to
// become one.
type spare struct {
	name string
	size int64
}

const (
	segmentSuffix   = ".seg"
	sparePrefix     = "spare-"
	sparesMax       = 8
	segmentBytesMin = 1 << 20  // where the disk is nearly full
	segmentBytesMax = 1 << 30  // offsets in records have 32 bits
	zerosBytes      = 64 << 10 // written at once to fill a new file; see fillZeros
)

func segmentName(number uint64) string { return fmt.Sprintf("%08d%s", number, segmentSuffix) }
func spareName(number uint64) string   { return fmt.Sprintf("%s%08d", sparePrefix, number) }

// parseSegmentName returns the number of a segment's file.
func parseSegmentName(name string) (uint64, bool) {
	digits, ok := strings.CutSuffix(name, segmentSuffix)
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseUint(digits, 10, 64)
	return n, err == nil && segmentName(n) == name
}

func (l *Log) path(name string) string { return l.fs.PathJoin(l.dir, name) }

// headNow is the head of a segment that goes on with the log as it is. Needs
// appending.
func (l *Log) headNow() head {
	l.mu.Lock()
	defer l.mu.Unlock()
	x := &l.index
	return head{
		first:      l.first,
		frontIndex: x.frontIndex, frontTerm: x.frontTerm,
		lastIndex: x.last, lastTerm: x.term(x.last),
		hard: l.hard,
	}
}

// rotate seals the tail and makes a new one that takes size bytes behind its
// head. The steps are in this order:
//
//	have a spare of the size        may fail for want of room: nothing has changed
//	seal the tail, sync it          now a new segment may follow (invariant 2)
//	write the head, sync it         still a spare, whatever was in it before
//	name the file as a segment      now it is the next one (invariant 3)
//	sync the directory              now its generation has begun (invariant 1)
//
// Where a step fails the tail stays the tail, sealed or not, and the next
// rotation begins again. Needs appending.
func (l *Log) rotate(size int64, h head) error {
	h.number = l.number + 1
	file, err := l.haveSpare(spareBytes(size, h), h.number)
	if err != nil {
		return err
	}
	if err := l.seal(); err != nil {
		return err
	}
	seg, err := l.activate(file, h)
	if err != nil {
		return err
	}
	l.number, l.first, l.restart = h.number, h.first, false
	l.mu.Lock()
	defer l.mu.Unlock()
	l.generation++
	l.segs = append(l.segs, seg)
	return nil
}

// spareBytes is what a segment must hold for size bytes behind its head.
func spareBytes(size int64, h head) int64 {
	return size + recordBytes(headBytes+len(h.hard)) + sealBytes
}

// seal ends the tail, unless it is, and syncs it.
func (l *Log) seal() error {
	l.mu.Lock()
	none := len(l.segs) == 0
	l.mu.Unlock()
	if none {
		return nil
	}
	tail, off, r := l.tail()
	if !tail.sealed {
		r.kind, r.typ = kindSeal, l.foundType()
		if err := l.write(tail, appendRecord(l.buf[:0], off, r)); err != nil {
			return err
		}
	}
	if err := l.syncFile(tail); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if !tail.sealed {
		tail.sealed = true
		tail.used += recordHeaderBytes
	}
	tail.synced = tail.used
	return nil
}

// activate makes a spare file the segment that h describes.
func (l *Log) activate(file spare, h head) (*segment, error) {
	f, err := l.fs.OpenReadWrite(l.path(file.name), logWrites)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	generation := l.generation + 1
	l.mu.Unlock()
	r := h.record(generation)
	r.typ = l.foundType()
	buf := appendRecord(l.buf[:0], 0, r)
	end := int64(len(buf))
	seg := &segment{number: h.number, path: l.path(segmentName(h.number)), f: f, size: file.size, used: end, synced: end}
	if _, err = f.WriteAt(buf, 0); err != nil {
		return nil, errors.Join(noSpace(err), f.Close())
	}
	if err = l.syncFile(seg); err == nil {
		err = l.fs.Rename(l.path(file.name), seg.path)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	l.spares = without(l.spares, file)
	if err = l.syncDir(); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return seg, nil
}

func (l *Log) syncDir() error {
	if err := l.dirFile.Sync(); err != nil {
		return l.breakBy(fmt.Errorf("sync %s: %w", l.dir, err))
	}
	return nil
}

// haveSpare returns a spare file of at least size bytes, making one where there
// is none.
func (l *Log) haveSpare(size int64, number uint64) (spare, error) {
	for _, s := range l.spares {
		if s.size >= size {
			return s, nil
		}
	}
	s := spare{name: spareName(number), size: max(size, l.segmentBytes())}
	l.spares = without(l.spares, s)
	f, err := l.fs.Create(l.path(s.name), logWrites)
	if err != nil {
		return spare{}, noSpace(err)
	}
	err = fillZeros(f, s.size)
	if err = errors.Join(err, f.Close()); err != nil {
		// What was written so far must not fill the disk.
		return spare{}, errors.Join(noSpace(err), l.fs.Remove(l.path(s.name)))
	}
	l.spares = append(l.spares, s)
	return s, nil
}

// fillZeros writes what records will be written over: so their writes need no
// block to be allocated, and can't fail for want of one. It does so in small
// pieces, because the page cache keeps the file in units as large as it was
// written in, and for each later write, however short, ext4 goes through all
// blocks of the unit: after pieces of 1 MiB that doubles what such a write costs.
func fillZeros(f vfs.File, size int64) error {
	zeros := make([]byte, min(size, zerosBytes))
	for size > 0 {
		n, err := f.Write(zeros[:min(size, zerosBytes)])
		if err != nil {
			return err
		}
		size -= int64(n)
	}
	return nil
}

// segmentBytes is the size of a new segment: less than usual on a disk that is
// nearly full.
func (l *Log) segmentBytes() int64 {
	size := l.limit.SegmentBytes
	usage, err := l.fs.GetDiskUsage(l.dir)
	if err != nil { // not every file system tells
		return size
	}
	return min(size, max(segmentBytesMin, int64(usage.AvailBytes/64)))
}

// recycleBefore makes the segments before number first spares, or removes
// them. That they are not needed must be on disk. Needs appending.
func (l *Log) recycleBefore(first uint64) error {
	l.mu.Lock()
	var old []*segment
	for len(l.segs) > 1 && l.segs[0].number < first {
		seg := l.segs[0]
		seg.gone = seg.pins > 0 // then whoever reads it closes it
		old = append(old, seg)
		l.segs = l.segs[1:]
	}
	l.mu.Unlock()
	var err error
	for _, seg := range old {
		if seg.gone { // the reader must not see what the file is used for next
			err = errors.Join(err, l.fs.Remove(seg.path))
			continue
		}
		err = errors.Join(err, seg.f.Close(), l.retire(seg.number, seg.size))
	}
	if err != nil {
		return fmt.Errorf("recycle log segments: %w", err)
	}
	return nil
}

// retire makes a segment's file a spare where one can be used, else removes it.
func (l *Log) retire(number uint64, size int64) error {
	path := l.path(segmentName(number))
	if len(l.spares) >= sparesMax || size != l.limit.SegmentBytes {
		return l.fs.Remove(path)
	}
	s := spare{name: spareName(number), size: size}
	if err := l.fs.Rename(path, l.path(s.name)); err != nil {
		return err
	}
	l.spares = append(without(l.spares, s), s)
	return nil
}

func without(spares []spare, s spare) []spare {
	var out []spare
	for _, t := range spares {
		if t.name != s.name {
			out = append(out, t)
		}
	}
	return out
}

// exists reports whether there is a file of that name.
func exists(fsys FS, path string) (bool, error) {
	_, err := fsys.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}
