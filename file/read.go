package file

import (
	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/persist"
)

// readable returns a file's data stream for a reader that may read it.
func (r *reading) readable(ino gearsfs.Ino, caller gearsfs.Caller) (dataStat, error) {
	n, err := r.inode(ino)
	switch {
	case err != nil:
		return dataStat{}, err
	case isDir(n.attr.Mode):
		return dataStat{}, gearsfs.ErrIsDir
	case !isFile(n.attr.Mode):
		return dataStat{}, gearsfs.ErrInvalid.Because("not a regular file")
	case !n.guard().permits(caller, mayRead):
		return dataStat{}, gearsfs.ErrAccess
	}
	return n.data, nil
}

// Seek finds the next data, or with hole the next hole, at or behind pos; the
// tail counts as a hole. gearsfs.ErrRange, for ENXIO, at or behind the tail and
// where no data follows. Other errors as Read.
func (m *Machine) Seek(ino gearsfs.Ino, pos gearsfs.Pos, hole bool, caller gearsfs.Caller) (gearsfs.Pos, error) {
	r := m.read()
	defer r.close()
	data, err := r.readable(ino, caller)
	if err != nil {
		return 0, err
	}
	tail := gearsfs.Pos(data.tail)
	if pos >= tail {
		return 0, gearsfs.ErrRange
	}
	if data.bytes == data.tail-data.head && uint64(pos) >= data.head { // it has no hole
		if hole {
			return tail, nil
		}
		return pos, nil
	}
	found := hole
	at := pos
	err = r.records(ino, &data, pos, tail, func(p *piece) bool {
		if p.size == 0 || p.end() <= pos {
			return true
		}
		if hole {
			if p.at.Pos > at {
				return false
			}
			at = p.end()
			return true
		}
		at, found = max(p.at.Pos, pos), true
		return false
	})
	if err == nil && !found {
		err = gearsfs.ErrRange.Because("no data follows")
	}
	return at, err
}

// records calls visit with the records of a data stream that live and overlap
// [pos, end), and may call it with some in front, until it returns false.
// What it is given is valid during the call.
func (r *reading) records(ino gearsfs.Ino, data *dataStat, pos, end gearsfs.Pos, visit func(*piece) bool) error {
	lo, hi := persist.RecordRange(ino, gearsfs.DataKey, gearsfs.Place{}, gearsfs.Place{Pos: end})
	it, err := r.view.Scan(lo, hi)
	if err != nil {
		return err
	}
	var key []byte
	for ok := seekRecord(it, &key, ino, pos, data.extents > 0); ok; ok = it.Next() {
		var p piece
		if p.at, p.rec, err = parseRecord(it); err != nil {
			break
		}
		if p.at.Less(data.cursor) {
			out := false
			if data.outs > 0 {
				key = persist.AppendOutKey(key[:0], ino, gearsfs.DataKey, p.at)
				if r.buf, out, err = r.view.Get(key, r.buf[:0]); err != nil {
					break
				}
			}
			if !out {
				continue
			}
		}
		p.size = p.rec.Len()
		if !visit(&p) || p.end() >= end {
			break
		}
	}
	if closed := it.Close(); err == nil {
		err = closed
	}
	return err
}
