package persist

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/gearsfs/gearsfs"
)

// A segment is a file of fixed size that is filled with zeros, or with the
// records of an earlier life, before it is used: so a record that is written
// changes no metadata of the file, and fdatasync is one write to the disk. A
// segment begins with a head record and holds records to a seal record, or to
// the end of the log. Records are aligned to 8 bytes; numbers are little-endian.
//
//	 0        4        8                16       20   21   22       24               32               40
//	+--------+--------+----------------+--------+----+----+--------+----------------+----------------+-----------+-----+
//	| crc32c | length |   generation   | synced |kind|type|   0    |     index      |      term      |  payload  |  0  |
//	+--------+--------+----------------+--------+----+----+--------+----------------+----------------+-----------+-----+
//	          <----------------------------- under the checksum --------------------------------------------->    to 8
//
// The checksum begins with the record's offset in the segment, so that no copy
// of a record, in a payload for instance, is one. length is the payload's. synced is an offset in this segment: what is in
// front of it was on disk when this record was written. By it a torn end is
// told from damage: where a record is bad and a later one of the segment says
// that it had been on disk, or where a later segment exists, the file is
// damaged; else the log ends there.
//
//	kind   index, term         payload
//	head   entry before        see head; type: see typeFound
//	entry  its own             its data
//	hard   0                   the hard state, replaces the one before
//	front  last entry cut off  first segment still needed (8)
//	start  0                   none: a new generation begins
//	seal   0                   none: the log goes on in the next segment; type: as a head's
//	mark   0                   none: the log was closed here
//
// Invariants:
//
//  1. Generations rise by one with each head and each start record and never go
//     back. The record that begins a generation is on disk before another
//     record bears it. So whatever stands behind a segment's last record, be it
//     of an earlier life of the file or of a write that was torn, bears a lower
//     generation than what comes to stand before it, and is never joined to it.
//  2. Of two segments with following numbers the first is sealed and on disk
//     before the second has its name.
//  3. A file has a segment's name only when that segment's head is on disk in it.
//  4. A segment's file goes only after a front or a head record that says so is
//     on disk.
const (
	recordHeaderBytes = 40
	recordAlign       = 8
	payloadBytesMax   = 1 << 30
	sealBytes         = recordHeaderBytes // kept free at a segment's end
)

type recordKind uint8

const (
	kindHead recordKind = 1 + iota
	kindEntry
	kindHard
	kindFront
	kindStart
	kindSeal
	kindMark
)

// typeFound is the type of seals and heads that were written by who had opened the
// log and appended nothing yet. Like a start they say no more of the entries before
// them than that these are on disk, since opening synced them: not that what these
// refer to is there too (see Log.Sure). Older programs neither write nor read it.
const typeFound = 1

type record struct {
	generation uint64
	synced     uint32
	kind       recordKind
	typ        uint8
	index      uint64
	term       uint64
	payload    []byte
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// recordBytes is what a record with a payload of n bytes takes in a segment.
func recordBytes(n int) int64 {
	return (recordHeaderBytes + int64(n) + recordAlign - 1) &^ (recordAlign - 1)
}

// checksum is that of a record at off; b is the record behind its checksum.
func checksum(off int64, b []byte) uint32 { return crc32.Update(uint32(off), castagnoli, b) }

// appendRecord appends the record as it is to stand at off.
func appendRecord(dst []byte, off int64, r record) []byte {
	start := len(dst)
	dst = append(dst, 0, 0, 0, 0)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(r.payload)))
	dst = binary.LittleEndian.AppendUint64(dst, r.generation)
	dst = binary.LittleEndian.AppendUint32(dst, r.synced)
	dst = append(dst, byte(r.kind), r.typ, 0, 0)
	dst = binary.LittleEndian.AppendUint64(dst, r.index)
	dst = binary.LittleEndian.AppendUint64(dst, r.term)
	dst = append(dst, r.payload...)
	binary.LittleEndian.PutUint32(dst[start:], checksum(off, dst[start+4:]))
	for (len(dst)-start)%recordAlign != 0 {
		dst = append(dst, 0)
	}
	return dst
}

// parseRecordHeader reads a record's first 40 bytes. ok is false where they
// can't be a record's; the checksum is not looked at yet.
func parseRecordHeader(b []byte) (r record, length int, ok bool) {
	n := binary.LittleEndian.Uint32(b[4:])
	r = record{
		generation: binary.LittleEndian.Uint64(b[8:]),
		synced:     binary.LittleEndian.Uint32(b[16:]),
		kind:       recordKind(b[20]),
		typ:        b[21],
		index:      binary.LittleEndian.Uint64(b[24:]),
		term:       binary.LittleEndian.Uint64(b[32:]),
	}
	ok = r.kind >= kindHead && r.kind <= kindMark && b[22] == 0 && b[23] == 0 && n <= payloadBytesMax
	return r, int(n), ok
}

// parseRecord reads the record that b, the bytes at off, begins with; its
// payload is part of b.
func parseRecord(b []byte, off int64) (r record, ok bool) {
	if len(b) < recordHeaderBytes {
		return record{}, false
	}
	r, n, ok := parseRecordHeader(b)
	if !ok || n > len(b)-recordHeaderBytes {
		return record{}, false
	}
	end := recordHeaderBytes + n
	if checksum(off, b[4:end]) != binary.LittleEndian.Uint32(b) {
		return record{}, false
	}
	r.payload = b[recordHeaderBytes:end]
	return r, true
}

// segmentReader reads a segment's records through a buffer.
type segmentReader struct {
	f    vfs.File
	size int64
	buf  []byte // bytes of the file from off on
	off  int64
}

const segmentReadBytes = 256 << 10

// bytes returns n bytes from off on, or fewer at the end of the file. They are
// valid until the next call.
func (r *segmentReader) bytes(off int64, n int) ([]byte, error) {
	n = int(min(int64(n), max(r.size-off, 0)))
	if at := off - r.off; at >= 0 && at+int64(n) <= int64(len(r.buf)) {
		return r.buf[at : at+int64(n)], nil
	}
	want := int(min(int64(max(n, segmentReadBytes)), r.size-off))
	if cap(r.buf) < want {
		r.buf = make([]byte, want)
	}
	r.buf, r.off = r.buf[:want], off
	got, err := r.f.ReadAt(r.buf, off)
	r.buf = r.buf[:got]
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return r.buf[:min(n, got)], nil
}

// record reads the record at off. Its payload is valid until the next call.
func (r *segmentReader) record(off int64) (rec record, ok bool, err error) {
	b, err := r.bytes(off, recordHeaderBytes)
	if err != nil || len(b) < recordHeaderBytes {
		return record{}, false, err
	}
	_, n, ok := parseRecordHeader(b)
	if !ok || int64(n) > r.size-off-recordHeaderBytes {
		return record{}, false, nil
	}
	if b, err = r.bytes(off, recordHeaderBytes+n); err != nil {
		return record{}, false, err
	}
	rec, ok = parseRecord(b, off)
	return rec, ok, nil
}

// wasSynced reports whether a valid record behind off, of the given generation
// or a later one, says that what is at off was on disk.
func (r *segmentReader) wasSynced(off int64, generation uint64) (bool, error) {
	for at := off; at+recordHeaderBytes <= r.size; at += recordAlign {
		b, err := r.bytes(at, recordHeaderBytes)
		if err != nil {
			return false, err
		}
		if len(b) < recordHeaderBytes {
			return false, nil
		}
		h, n, ok := parseRecordHeader(b)
		if !ok || h.generation < generation || int64(h.synced) <= off || int64(n) > r.size-at-recordHeaderBytes {
			continue
		}
		if _, ok, err = r.record(at); err != nil || ok {
			return ok, err
		}
	}
	return false, nil
}

// head is the payload of a segment's first record: all that must be known to
// begin reading the log at this segment.
//
//	"gearslog" | version(4) | 0(4) | number(8) | first(8) | front index(8) | front term(8) | hard state
type head struct {
	number     uint64
	first      uint64 // number of the first segment that is needed
	frontIndex uint64 // the last entry that is cut off
	frontTerm  uint64
	lastIndex  uint64 // the entry before this segment; in the record's header
	lastTerm   uint64
	hard       []byte
}

const (
	headMagic = "gearslog"
	// segmentVersion is that of the segments, which are the same in all versions of
	// the format.
	segmentVersion = 1

	headBytes = len(headMagic) + 4 + 4 + 4*8
)

func (h head) record(generation uint64) record {
	p := make([]byte, 0, headBytes+len(h.hard))
	p = append(p, headMagic...)
	p = binary.LittleEndian.AppendUint32(p, segmentVersion)
	p = append(p, 0, 0, 0, 0)
	p = binary.LittleEndian.AppendUint64(p, h.number)
	p = binary.LittleEndian.AppendUint64(p, h.first)
	p = binary.LittleEndian.AppendUint64(p, h.frontIndex)
	p = binary.LittleEndian.AppendUint64(p, h.frontTerm)
	p = append(p, h.hard...)
	return record{generation: generation, kind: kindHead, index: h.lastIndex, term: h.lastTerm, payload: p}
}

// parseHead reads a head record. ok is false where it is none, or one of
// another segment.
func parseHead(r record, number uint64) (h head, ok bool) {
	p := r.payload
	if r.kind != kindHead || len(p) < headBytes || string(p[:len(headMagic)]) != headMagic {
		return head{}, false
	}
	p = p[len(headMagic):]
	h = head{
		number:     binary.LittleEndian.Uint64(p[8:]),
		first:      binary.LittleEndian.Uint64(p[16:]),
		frontIndex: binary.LittleEndian.Uint64(p[24:]),
		frontTerm:  binary.LittleEndian.Uint64(p[32:]),
		lastIndex:  r.index,
		lastTerm:   r.term,
		hard:       p[40:],
	}
	version := binary.LittleEndian.Uint32(p)
	return h, version == segmentVersion && h.number == number && h.first <= number
}

// follows reports whether a record can stand behind one of a generation in the
// same segment.
func (r *record) follows(generation uint64) bool {
	if r.kind == kindStart {
		generation++
	}
	return r.generation == generation
}

// parseFront returns the first segment that is needed by a front record.
func parseFront(r record) (first uint64, ok bool) {
	if r.kind != kindFront || len(r.payload) != 8 {
		return 0, false
	}
	return binary.LittleEndian.Uint64(r.payload), true
}

// damagedAt says where the log is damaged.
func damagedAt(path string, off int64, format string, args ...any) error {
	return gearsfs.ErrDamaged.Because("%s at byte %d: %s", path, off, fmt.Sprintf(format, args...))
}
