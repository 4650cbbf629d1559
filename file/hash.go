package file

import (
	gocontext "context"
	"crypto/sha256"
	"encoding/binary"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/persist"
	"github.com/gearsfs/gearsfs/wire"
)

// hashPieceBytes is how much HashState reads between two calls of pace.
const hashPieceBytes = 256 << 10

// HashState returns the SHA-256 of all rows of all tables in the order of their
// keys: of each the length of the key and the key, the length of the value and
// the value, lengths as 8 bytes, big-endian. Replicas that applied the same
// entries have the same.
//
// It calls pace, where that is not nil, with the bytes read since the last
// call: pace may wait, and its error, as that of ctx, ends HashState.
func HashState(ctx gocontext.Context, r Reader, pace func(bytes int) error) ([]byte, error) {
	sum := sha256.New()
	var length [8]byte
	read := 0
	piece := func() error {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := read
		read = 0
		if pace == nil || n == 0 {
			return nil
		}
		return pace(n)
	}
	err := scan(r, []byte{0}, []byte{0xff}, func(key, value []byte) error {
		for _, b := range [][]byte{key, value} {
			binary.BigEndian.PutUint64(length[:], uint64(len(b)))
			sum.Write(length[:])
			sum.Write(b)
			read += len(length) + len(b)
		}
		if read < hashPieceBytes {
			return nil
		}
		return piece()
	})
	if err == nil {
		err = piece()
	}
	if err != nil {
		return nil, err
	}
	return sum.Sum(nil), nil
}

// VolumeInfo is what the tables say of their volume as a whole.
type VolumeInfo struct {
	ID                   []byte
	Name                 string
	Index, Term, LogTime uint64 // of the last entry in the tables
	Conf                 []byte // raft's
}

// ReadVolume reads the volume row of any tables. Errors: gearsfs.ErrDamaged,
// also where there is no such row; gearsfs.ErrFormat.
func ReadVolume(r Reader) (VolumeInfo, error) {
	var row wire.VolumeRow
	ok, err := readVolumeRow(r, &row)
	if err == nil && !ok {
		err = gearsfs.ErrDamaged.Because("the state has no volume row")
	}
	if err != nil {
		return VolumeInfo{}, err
	}
	return VolumeInfo{ID: row.Id, Name: row.Name, Index: row.AppliedIndex, Term: row.AppliedTerm,
		LogTime: row.LogTime, Conf: row.ConfState}, nil
}

// readVolumeRow reads the volume row into row; ok is false where there is none.
func readVolumeRow(r Reader, row *wire.VolumeRow) (ok bool, err error) {
	value, ok, err := r.Get(persist.VolumeKey(), nil)
	if err != nil || !ok {
		return false, err
	}
	if err := row.UnmarshalVT(value); err != nil {
		return false, damaged("volume", err)
	}
	if f := row.Format; f != 0 && (f < formatOldest || f > formatVersion) {
		return false, gearsfs.ErrFormat.Because("the state has format version %d, this program knows %d to %d", f, formatOldest, formatVersion)
	}
	return true, nil
}
