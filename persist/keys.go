package persist

import (
	"bytes"
	"encoding/binary"
	"math"

	"github.com/gearsfs/gearsfs"
)

// Table is the first byte of a key of the state: it names the table that the
// row is in.
type Table byte

// The tables of the state; the package comment draws their keys.
const (
	TableVolume  Table = 'v'
	TableInode   Table = 'i'
	TableDirent  Table = 'd'
	TableXattr   Table = 'x'
	TableStream  Table = 's'
	TableRecord  Table = 'r'
	TableOut     Table = 'o'
	TableSession Table = 'c'
	TableOrphan  Table = 'u'
	TableRemote  Table = 'n'
	TableMember  Table = 'm'
	TableID      Table = 'k'
	TableIDOrder Table = 'j'
	TableTimer   Table = 't'
	TableShared  Table = 'b'
	TableQuota   Table = 'q'
	TableCount   Table = 'w'
	TableLock    Table = 'l'
)

const (
	keyEnd      = 0x00 // ends a stream's key within a row's key
	inoBytes    = 1 + 8
	placeBytes  = 8 + 8
	mintedFlip  = 1 << 63 // turns a signed number into one whose bytes sort
	sessionSize = 1 + 8 + 8
	memberSize  = 1 + 8
	numberBytes = 8
	dueBytes    = 8
	sharedSize  = 1 + 8 + 8 + 8
)

// VolumeKey is the key of the one VolumeRow.
func VolumeKey() []byte { return []byte{byte(TableVolume)} }

// The short constructors return a key of its own memory; the Append ones
// append it to dst, for paths that must not allocate.

func InodeKey(ino gearsfs.Ino) []byte { return AppendInodeKey(make([]byte, 0, inoBytes), ino) }

func AppendInodeKey(dst []byte, ino gearsfs.Ino) []byte { return appendIno(dst, TableInode, ino) }

func DirentKey(dir gearsfs.Ino, name string) []byte {
	return AppendDirentKey(make([]byte, 0, inoBytes+len(name)), dir, name)
}

func AppendDirentKey(dst []byte, dir gearsfs.Ino, name string) []byte {
	return append(appendIno(dst, TableDirent, dir), name...)
}

func XattrKey(ino gearsfs.Ino, name string) []byte {
	return AppendXattrKey(make([]byte, 0, inoBytes+len(name)), ino, name)
}

func AppendXattrKey(dst []byte, ino gearsfs.Ino, name string) []byte {
	return append(appendIno(dst, TableXattr, ino), name...)
}

func StreamKey(ino gearsfs.Ino, key gearsfs.Key) []byte {
	return AppendStreamKey(make([]byte, 0, inoBytes+len(key)), ino, key)
}

func AppendStreamKey(dst []byte, ino gearsfs.Ino, key gearsfs.Key) []byte {
	return append(appendIno(dst, TableStream, ino), key...)
}

func RecordKey(ino gearsfs.Ino, key gearsfs.Key, place gearsfs.Place) []byte {
	return AppendRecordKey(make([]byte, 0, inoBytes+len(key)+1+placeBytes), ino, key, place)
}

func AppendRecordKey(dst []byte, ino gearsfs.Ino, key gearsfs.Key, place gearsfs.Place) []byte {
	return appendPlaced(dst, TableRecord, ino, key, place)
}

func OutKey(ino gearsfs.Ino, key gearsfs.Key, place gearsfs.Place) []byte {
	return AppendOutKey(make([]byte, 0, inoBytes+len(key)+1+placeBytes), ino, key, place)
}

func AppendOutKey(dst []byte, ino gearsfs.Ino, key gearsfs.Key, place gearsfs.Place) []byte {
	return appendPlaced(dst, TableOut, ino, key, place)
}

func SessionKey(id gearsfs.SessionID) []byte {
	return AppendSessionKey(make([]byte, 0, sessionSize), id)
}

func AppendSessionKey(dst []byte, id gearsfs.SessionID) []byte {
	dst = append(dst, byte(TableSession))
	dst = binary.BigEndian.AppendUint64(dst, uint64(id.Minted)^mintedFlip)
	return binary.BigEndian.AppendUint64(dst, id.Salt)
}

func OrphanKey(ino gearsfs.Ino) []byte { return AppendOrphanKey(make([]byte, 0, inoBytes), ino) }

func AppendOrphanKey(dst []byte, ino gearsfs.Ino) []byte { return appendIno(dst, TableOrphan, ino) }

func QuotaKey(dir gearsfs.Ino) []byte {
	return appendIno(make([]byte, 0, inoBytes), TableQuota, dir)
}

func LockKey(ino gearsfs.Ino) []byte { return appendIno(make([]byte, 0, inoBytes), TableLock, ino) }

func CountKey(dir gearsfs.Ino) []byte {
	return appendIno(make([]byte, 0, inoBytes), TableCount, dir)
}

func RemoteKey(name string) []byte {
	return AppendRemoteKey(make([]byte, 0, 1+len(name)), name)
}

func AppendRemoteKey(dst []byte, name string) []byte {
	return append(append(dst, byte(TableRemote)), name...)
}

func MemberKey(id gearsfs.MemberID) []byte {
	return AppendMemberKey(make([]byte, 0, memberSize), id)
}

func AppendMemberKey(dst []byte, id gearsfs.MemberID) []byte {
	return binary.BigEndian.AppendUint64(append(dst, byte(TableMember)), uint64(id))
}

// IDKey is the key of what a stream remembers of a record's id.
func IDKey(ino gearsfs.Ino, key gearsfs.Key, id string) []byte {
	return AppendIDKey(make([]byte, 0, inoBytes+len(key)+1+len(id)), ino, key, id)
}

func AppendIDKey(dst []byte, ino gearsfs.Ino, key gearsfs.Key, id string) []byte {
	dst = append(appendIno(dst, TableID, ino), key...)
	return append(append(dst, keyEnd), id...)
}

// IDOrderKey is the key of an id by the number by which it is forgotten.
func IDOrderKey(ino gearsfs.Ino, key gearsfs.Key, number uint64) []byte {
	return AppendIDOrderKey(make([]byte, 0, inoBytes+len(key)+1+numberBytes), ino, key, number)
}

func AppendIDOrderKey(dst []byte, ino gearsfs.Ino, key gearsfs.Key, number uint64) []byte {
	dst = append(appendIno(dst, TableIDOrder, ino), key...)
	return binary.BigEndian.AppendUint64(append(dst, keyEnd), number)
}

// Timer is what is due at a log time: the end of a lease or of a delay, or,
// where Place is that of AgeTimer or IDTimer, the age of a stream's records or ids.
type Timer struct {
	Due   uint64
	Ino   gearsfs.Ino
	Key   gearsfs.Key
	Place gearsfs.Place
}

// AgeTimer is the place of a stream's age timer: behind every record.
var AgeTimer = gearsfs.Place{Pos: math.MaxUint64, Seq: math.MaxUint64}

// IDTimer is the place of the timer of a stream's ids.
var IDTimer = gearsfs.Place{Pos: math.MaxUint64, Seq: math.MaxUint64 - 1}

func TimerKey(t Timer) []byte {
	return AppendTimerKey(make([]byte, 0, dueBytes+inoBytes+len(t.Key)+1+placeBytes), t)
}

func AppendTimerKey(dst []byte, t Timer) []byte {
	dst = binary.BigEndian.AppendUint64(append(dst, byte(TableTimer)), t.Due)
	dst = binary.BigEndian.AppendUint64(dst, uint64(t.Ino))
	dst = append(append(dst, t.Key...), keyEnd)
	dst = binary.BigEndian.AppendUint64(dst, uint64(t.Place.Pos))
	return binary.BigEndian.AppendUint64(dst, uint64(t.Place.Seq))
}

// SharedKey is the key of a range of a segment that several rows refer to: whose
// segment, its number, and where the range begins.
func SharedKey(origin gearsfs.MemberID, segment, at uint64) []byte {
	return AppendSharedKey(make([]byte, 0, sharedSize), origin, segment, at)
}

func AppendSharedKey(dst []byte, origin gearsfs.MemberID, segment, at uint64) []byte {
	dst = binary.BigEndian.AppendUint64(append(dst, byte(TableShared)), uint64(origin))
	dst = binary.BigEndian.AppendUint64(dst, segment)
	return binary.BigEndian.AppendUint64(dst, at)
}

// TimerRange holds the timers that are due at from or later and at to at the
// latest.
func TimerRange(from, to uint64) (lo, hi []byte) {
	lo = binary.BigEndian.AppendUint64([]byte{byte(TableTimer)}, from)
	if to == math.MaxUint64 {
		return lo, []byte{byte(TableTimer) + 1}
	}
	return lo, binary.BigEndian.AppendUint64([]byte{byte(TableTimer)}, to+1)
}

func appendIno(dst []byte, table Table, ino gearsfs.Ino) []byte {
	return binary.BigEndian.AppendUint64(append(dst, byte(table)), uint64(ino))
}

func appendPlaced(dst []byte, table Table, ino gearsfs.Ino, key gearsfs.Key, place gearsfs.Place) []byte {
	dst = append(appendIno(dst, table, ino), key...)
	dst = append(dst, keyEnd)
	dst = binary.BigEndian.AppendUint64(dst, uint64(place.Pos))
	return binary.BigEndian.AppendUint64(dst, uint64(place.Seq))
}

// TableRange holds all rows of a table: [lo, hi).
func TableRange(table Table) (lo, hi []byte) {
	return []byte{byte(table)}, []byte{byte(table) + 1}
}

// FileRange holds all rows of an inode in one of the tables whose keys begin
// with an inode number: the names in a directory, the attributes, streams,
// records or out marks of a file.
func FileRange(table Table, ino gearsfs.Ino) (lo, hi []byte) {
	lo = appendIno(make([]byte, 0, inoBytes), table, ino)
	if ino == ^gearsfs.Ino(0) {
		return lo, []byte{byte(table) + 1}
	}
	return lo, appendIno(make([]byte, 0, inoBytes), table, ino+1)
}

// StreamRange holds all rows of one stream in TableRecord, TableOut, TableID
// or TableIDOrder.
func StreamRange(table Table, ino gearsfs.Ino, key gearsfs.Key) (lo, hi []byte) {
	lo = append(appendIno(make([]byte, 0, inoBytes+len(key)+1), table, ino), key...)
	hi = append(bytes.Clone(lo), keyEnd+1)
	return append(lo, keyEnd), hi
}

// RecordRange holds the records of a stream in [from, to).
func RecordRange(ino gearsfs.Ino, key gearsfs.Key, from, to gearsfs.Place) (lo, hi []byte) {
	return RecordKey(ino, key, from), RecordKey(ino, key, to)
}

// OutRange holds the out marks of a stream in [from, to).
func OutRange(ino gearsfs.Ino, key gearsfs.Key, from, to gearsfs.Place) (lo, hi []byte) {
	return OutKey(ino, key, from), OutKey(ino, key, to)
}

// The parsers take a key apart that was read from the state. They return
// gearsfs.ErrDamaged where it is not one that the constructor makes.

func ParseInodeKey(k []byte) (gearsfs.Ino, error) { return parseIno(k, TableInode) }

func ParseOrphanKey(k []byte) (gearsfs.Ino, error) { return parseIno(k, TableOrphan) }

func ParseQuotaKey(k []byte) (gearsfs.Ino, error) { return parseIno(k, TableQuota) }

func ParseLockKey(k []byte) (gearsfs.Ino, error) { return parseIno(k, TableLock) }

func ParseCountKey(k []byte) (gearsfs.Ino, error) { return parseIno(k, TableCount) }

func ParseDirentKey(k []byte) (dir gearsfs.Ino, name string, err error) {
	return parseNamed(k, TableDirent)
}

func ParseXattrKey(k []byte) (ino gearsfs.Ino, name string, err error) {
	return parseNamed(k, TableXattr)
}

func ParseStreamKey(k []byte) (gearsfs.Ino, gearsfs.Key, error) {
	ino, name, err := parseNamed(k, TableStream)
	if err == nil && !isStreamName([]byte(name)) {
		return 0, "", badKey(k)
	}
	return ino, gearsfs.Key(name), err
}

func ParseRecordKey(k []byte) (gearsfs.Ino, gearsfs.Key, gearsfs.Place, error) {
	return parsePlaced(k, TableRecord)
}

func ParseOutKey(k []byte) (gearsfs.Ino, gearsfs.Key, gearsfs.Place, error) {
	return parsePlaced(k, TableOut)
}

// ParsePlace returns only the place of a record's or an out mark's key, and
// does not allocate.
func ParsePlace(k []byte) (gearsfs.Place, error) {
	if len(k) < inoBytes+1+1+placeBytes || k[len(k)-placeBytes-1] != keyEnd {
		return gearsfs.Place{}, badKey(k)
	}
	return placeOf(k), nil
}

func ParseSessionKey(k []byte) (gearsfs.SessionID, error) {
	if len(k) != sessionSize || k[0] != byte(TableSession) {
		return gearsfs.SessionID{}, badKey(k)
	}
	return gearsfs.SessionID{
		Minted: int64(binary.BigEndian.Uint64(k[1:]) ^ mintedFlip),
		Salt:   binary.BigEndian.Uint64(k[9:]),
	}, nil
}

func ParseRemoteKey(k []byte) (name string, err error) {
	if len(k) < 2 || k[0] != byte(TableRemote) {
		return "", badKey(k)
	}
	return string(k[1:]), nil
}

func ParseMemberKey(k []byte) (gearsfs.MemberID, error) {
	if len(k) != memberSize || k[0] != byte(TableMember) {
		return 0, badKey(k)
	}
	return gearsfs.MemberID(binary.BigEndian.Uint64(k[1:])), nil
}

func ParseIDKey(k []byte) (ino gearsfs.Ino, key gearsfs.Key, id string, err error) {
	if len(k) <= inoBytes || k[0] != byte(TableID) {
		return 0, "", "", badKey(k)
	}
	name, rest, ended := bytes.Cut(k[inoBytes:], []byte{keyEnd})
	if !ended || len(name) == 0 || len(name) > gearsfs.KeyBytesMax || len(rest) == 0 {
		return 0, "", "", badKey(k)
	}
	return gearsfs.Ino(binary.BigEndian.Uint64(k[1:])), gearsfs.Key(name), string(rest), nil
}

func ParseIDOrderKey(k []byte) (ino gearsfs.Ino, key gearsfs.Key, number uint64, err error) {
	end := len(k) - numberBytes - 1
	if end <= inoBytes || k[0] != byte(TableIDOrder) || k[end] != keyEnd || !isStreamName(k[inoBytes:end]) {
		return 0, "", 0, badKey(k)
	}
	return gearsfs.Ino(binary.BigEndian.Uint64(k[1:])), gearsfs.Key(k[inoBytes:end]), binary.BigEndian.Uint64(k[end+1:]), nil
}

func ParseTimerKey(k []byte) (Timer, error) {
	end := len(k) - placeBytes - 1
	if end <= dueBytes+inoBytes || k[0] != byte(TableTimer) || k[end] != keyEnd || !isStreamName(k[dueBytes+inoBytes:end]) {
		return Timer{}, badKey(k)
	}
	return Timer{
		Due:   binary.BigEndian.Uint64(k[1:]),
		Ino:   gearsfs.Ino(binary.BigEndian.Uint64(k[1+dueBytes:])),
		Key:   gearsfs.Key(k[dueBytes+inoBytes : end]),
		Place: placeOf(k),
	}, nil
}

func ParseSharedKey(k []byte) (origin gearsfs.MemberID, segment, at uint64, err error) {
	if len(k) != sharedSize || k[0] != byte(TableShared) {
		return 0, 0, 0, badKey(k)
	}
	return gearsfs.MemberID(binary.BigEndian.Uint64(k[1:])), binary.BigEndian.Uint64(k[9:]), binary.BigEndian.Uint64(k[17:]), nil
}

func parseIno(k []byte, table Table) (gearsfs.Ino, error) {
	if len(k) != inoBytes || k[0] != byte(table) {
		return 0, badKey(k)
	}
	return gearsfs.Ino(binary.BigEndian.Uint64(k[1:])), nil
}

func parseNamed(k []byte, table Table) (gearsfs.Ino, string, error) {
	if len(k) <= inoBytes || k[0] != byte(table) {
		return 0, "", badKey(k)
	}
	return gearsfs.Ino(binary.BigEndian.Uint64(k[1:])), string(k[inoBytes:]), nil
}

func parsePlaced(k []byte, table Table) (gearsfs.Ino, gearsfs.Key, gearsfs.Place, error) {
	end := len(k) - placeBytes - 1
	if end <= inoBytes || k[0] != byte(table) || k[end] != keyEnd || !isStreamName(k[inoBytes:end]) {
		return 0, "", gearsfs.Place{}, badKey(k)
	}
	return gearsfs.Ino(binary.BigEndian.Uint64(k[1:])), gearsfs.Key(k[inoBytes:end]), placeOf(k), nil
}

func placeOf(k []byte) gearsfs.Place {
	n := len(k)
	return gearsfs.Place{
		Pos: gearsfs.Pos(binary.BigEndian.Uint64(k[n-16:])),
		Seq: gearsfs.Seq(binary.BigEndian.Uint64(k[n-8:])),
	}
}

// isStreamName says whether name can be told from what follows it in a key;
// whether it is allowed is for gearsfs.Key.Check.
func isStreamName(name []byte) bool {
	return len(name) <= gearsfs.KeyBytesMax && bytes.IndexByte(name, keyEnd) < 0
}

func badKey(k []byte) error { return gearsfs.ErrDamaged.Because("bad key %q in the state", k) }
