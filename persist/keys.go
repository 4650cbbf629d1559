package persist

import (
	"bytes"
	"encoding/binary"

	"github.com/gearsfs/gearsfs/gears"
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
)

const (
	keyEnd      = 0x00 // ends a stream's key within a row's key
	inoBytes    = 1 + 8
	placeBytes  = 8 + 8
	mintedFlip  = 1 << 63 // turns a signed number into one whose bytes sort
	sessionSize = 1 + 8 + 8
)

// VolumeKey is the key of the one VolumeRow.
func VolumeKey() []byte { return []byte{byte(TableVolume)} }

// The short constructors return a key of its own memory; the Append ones
// append it to dst, for paths that must not allocate.

func InodeKey(ino gears.Ino) []byte { return AppendInodeKey(make([]byte, 0, inoBytes), ino) }

func AppendInodeKey(dst []byte, ino gears.Ino) []byte { return appendIno(dst, TableInode, ino) }

func DirentKey(dir gears.Ino, name string) []byte {
	return AppendDirentKey(make([]byte, 0, inoBytes+len(name)), dir, name)
}

func AppendDirentKey(dst []byte, dir gears.Ino, name string) []byte {
	return append(appendIno(dst, TableDirent, dir), name...)
}

func XattrKey(ino gears.Ino, name string) []byte {
	return AppendXattrKey(make([]byte, 0, inoBytes+len(name)), ino, name)
}

func AppendXattrKey(dst []byte, ino gears.Ino, name string) []byte {
	return append(appendIno(dst, TableXattr, ino), name...)
}

func StreamKey(ino gears.Ino, key gears.Key) []byte {
	return AppendStreamKey(make([]byte, 0, inoBytes+len(key)), ino, key)
}

func AppendStreamKey(dst []byte, ino gears.Ino, key gears.Key) []byte {
	return append(appendIno(dst, TableStream, ino), key...)
}

func RecordKey(ino gears.Ino, key gears.Key, place gears.Place) []byte {
	return AppendRecordKey(make([]byte, 0, inoBytes+len(key)+1+placeBytes), ino, key, place)
}

func AppendRecordKey(dst []byte, ino gears.Ino, key gears.Key, place gears.Place) []byte {
	return appendPlaced(dst, TableRecord, ino, key, place)
}

func OutKey(ino gears.Ino, key gears.Key, place gears.Place) []byte {
	return AppendOutKey(make([]byte, 0, inoBytes+len(key)+1+placeBytes), ino, key, place)
}

func AppendOutKey(dst []byte, ino gears.Ino, key gears.Key, place gears.Place) []byte {
	return appendPlaced(dst, TableOut, ino, key, place)
}

func SessionKey(id gears.SessionID) []byte {
	return AppendSessionKey(make([]byte, 0, sessionSize), id)
}

func AppendSessionKey(dst []byte, id gears.SessionID) []byte {
	dst = append(dst, byte(TableSession))
	dst = binary.BigEndian.AppendUint64(dst, uint64(id.Minted)^mintedFlip)
	return binary.BigEndian.AppendUint64(dst, id.Salt)
}

func OrphanKey(ino gears.Ino) []byte { return AppendOrphanKey(make([]byte, 0, inoBytes), ino) }

func AppendOrphanKey(dst []byte, ino gears.Ino) []byte { return appendIno(dst, TableOrphan, ino) }

func RemoteKey(name string) []byte {
	return AppendRemoteKey(make([]byte, 0, 1+len(name)), name)
}

func AppendRemoteKey(dst []byte, name string) []byte {
	return append(append(dst, byte(TableRemote)), name...)
}

func appendIno(dst []byte, table Table, ino gears.Ino) []byte {
	return binary.BigEndian.AppendUint64(append(dst, byte(table)), uint64(ino))
}

func appendPlaced(dst []byte, table Table, ino gears.Ino, key gears.Key, place gears.Place) []byte {
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
func FileRange(table Table, ino gears.Ino) (lo, hi []byte) {
	lo = appendIno(make([]byte, 0, inoBytes), table, ino)
	if ino == ^gears.Ino(0) {
		return lo, []byte{byte(table) + 1}
	}
	return lo, appendIno(make([]byte, 0, inoBytes), table, ino+1)
}

// StreamRange holds all rows of one stream in TableRecord or TableOut.
func StreamRange(table Table, ino gears.Ino, key gears.Key) (lo, hi []byte) {
	lo = append(appendIno(make([]byte, 0, inoBytes+len(key)+1), table, ino), key...)
	hi = append(bytes.Clone(lo), keyEnd+1)
	return append(lo, keyEnd), hi
}

// RecordRange holds the records of a stream in [from, to).
func RecordRange(ino gears.Ino, key gears.Key, from, to gears.Place) (lo, hi []byte) {
	return RecordKey(ino, key, from), RecordKey(ino, key, to)
}

// OutRange holds the out marks of a stream in [from, to).
func OutRange(ino gears.Ino, key gears.Key, from, to gears.Place) (lo, hi []byte) {
	return OutKey(ino, key, from), OutKey(ino, key, to)
}

// The parsers take a key apart that was read from the state. They return
// gears.ErrDamaged where it is not one that the constructor makes.

func ParseInodeKey(k []byte) (gears.Ino, error) { return parseIno(k, TableInode) }

func ParseOrphanKey(k []byte) (gears.Ino, error) { return parseIno(k, TableOrphan) }

func ParseDirentKey(k []byte) (dir gears.Ino, name string, err error) {
	return parseNamed(k, TableDirent)
}

func ParseXattrKey(k []byte) (ino gears.Ino, name string, err error) {
	return parseNamed(k, TableXattr)
}

func ParseStreamKey(k []byte) (gears.Ino, gears.Key, error) {
	ino, name, err := parseNamed(k, TableStream)
	if err == nil && !isStreamName([]byte(name)) {
		return 0, "", badKey(k)
	}
	return ino, gears.Key(name), err
}

func ParseRecordKey(k []byte) (gears.Ino, gears.Key, gears.Place, error) {
	return parsePlaced(k, TableRecord)
}

func ParseOutKey(k []byte) (gears.Ino, gears.Key, gears.Place, error) {
	return parsePlaced(k, TableOut)
}

// ParsePlace returns only the place of a record's or an out mark's key, and
// does not allocate.
func ParsePlace(k []byte) (gears.Place, error) {
	if len(k) < inoBytes+1+1+placeBytes || k[len(k)-placeBytes-1] != keyEnd {
		return gears.Place{}, badKey(k)
	}
	return placeOf(k), nil
}

func ParseSessionKey(k []byte) (gears.SessionID, error) {
	if len(k) != sessionSize || k[0] != byte(TableSession) {
		return gears.SessionID{}, badKey(k)
	}
	return gears.SessionID{
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

func parseIno(k []byte, table Table) (gears.Ino, error) {
	if len(k) != inoBytes || k[0] != byte(table) {
		return 0, badKey(k)
	}
	return gears.Ino(binary.BigEndian.Uint64(k[1:])), nil
}

func parseNamed(k []byte, table Table) (gears.Ino, string, error) {
	if len(k) <= inoBytes || k[0] != byte(table) {
		return 0, "", badKey(k)
	}
	return gears.Ino(binary.BigEndian.Uint64(k[1:])), string(k[inoBytes:]), nil
}

func parsePlaced(k []byte, table Table) (gears.Ino, gears.Key, gears.Place, error) {
	end := len(k) - placeBytes - 1
	if end <= inoBytes || k[0] != byte(table) || k[end] != keyEnd || !isStreamName(k[inoBytes:end]) {
		return 0, "", gears.Place{}, badKey(k)
	}
	return gears.Ino(binary.BigEndian.Uint64(k[1:])), gears.Key(k[inoBytes:end]), placeOf(k), nil
}

func placeOf(k []byte) gears.Place {
	n := len(k)
	return gears.Place{
		Pos: gears.Pos(binary.BigEndian.Uint64(k[n-16:])),
		Seq: gears.Seq(binary.BigEndian.Uint64(k[n-8:])),
	}
}

// isStreamName says whether name can be told from what follows it in a key;
// whether it is allowed is for gears.Key.Check.
func isStreamName(name []byte) bool {
	return len(name) <= gears.KeyBytesMax && bytes.IndexByte(name, keyEnd) < 0
}

func badKey(k []byte) error { return gears.ErrDamaged.Because("bad key %q in the state", k) }
