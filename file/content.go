package file

import (
	"slices"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/persist"
	"github.com/gearsfs/gearsfs/stream"
	"github.com/gearsfs/gearsfs/wire"
)

// Content is a range of a file's bytes, as of one moment: what the Machine has,
// and where in the block store the rest is.
type Content struct {
	Bytes int    // how long the range is
	Parts []Part // in order; bytes that none of them has are zeros
}

// Part is some of the bytes of a Content, from its byte At on: Data, or
// where that is nil all bytes of Extent, which is in the block store.
type Part struct {
	At     int
	Data   []byte
	Extent gearsfs.Extent
}

// Inline returns all bytes, which are the caller's, where none of them is in the
// block store.
func (c *Content) Inline() (data []byte, ok bool) {
	if len(c.Parts) == 1 && c.Parts[0].Data != nil && c.Parts[0].At == 0 && cap(c.Parts[0].Data) >= c.Bytes {
		return c.Parts[0].Data[:c.Bytes], true // zeros follow, see addInline
	}
	for i := range c.Parts {
		if c.Parts[i].Data == nil {
			return nil, false
		}
	}
	if c.Bytes == 0 {
		return nil, true
	}
	data = make([]byte, c.Bytes)
	for i := range c.Parts {
		copy(data[c.Parts[i].At:], c.Parts[i].Data)
	}
	return data, true
}

// addInline adds bytes at a place behind all others. Behind inline bytes they go
// on in the same slice, which has only zeros behind its length: nearly all reads
// are one part.
func (c *Content) addInline(at int, data []byte, room int) {
	if n := len(c.Parts); n > 0 && c.Parts[n-1].Data != nil {
		last := &c.Parts[n-1]
		if at+len(data)-last.At <= cap(last.Data) {
			last.Data = last.Data[:at+len(data)-last.At]
			copy(last.Data[at-last.At:], data)
			return
		}
	}
	part := Part{At: at, Data: make([]byte, len(data), max(room, len(data)))}
	copy(part.Data, data)
	c.Parts = append(c.Parts, part)
}

// Read returns the n bytes from pos on: fewer only at the tail, none at or
// behind it. What was taken and gaps read as zeros. Errors: gearsfs.ErrStale,
// ErrIsDir, ErrInvalid (not a regular file), ErrAccess.
//
// What is in the block store may be freed by a later entry while the caller
// reads it there: then it lacks those pages or finds other sums, and reads
// again what the file has by then.
func (m *Machine) Read(ino gearsfs.Ino, pos gearsfs.Pos, n int, caller gearsfs.Caller) (Content, error) {
	r := m.read()
	defer r.close()
	data, err := r.readable(ino, caller)
	if err != nil || uint64(pos) >= data.tail || n <= 0 {
		return Content{}, err
	}
	c := Content{Bytes: int(min(uint64(n), data.tail-uint64(pos)))}
	end := pos + gearsfs.Pos(c.Bytes)
	err = r.records(ino, &data, pos, end, func(p *piece) bool {
		from, to := max(p.at.Pos, pos), min(p.end(), end)
		switch {
		case from >= to:
		case len(p.rec.Extents) > 0:
			c.addExtents(int(from-pos), stream.AppendCut(nil, p.rec.Extents, uint64(from-p.at.Pos), uint64(to-from)))
		case data.extents > 0:
			c.addInline(int(from-pos), p.rec.Data[from-p.at.Pos:to-p.at.Pos], 0)
		default:
			c.addInline(int(from-pos), p.rec.Data[from-p.at.Pos:to-p.at.Pos], c.Bytes-int(from-pos))
		}
		return true
	})
	return c, err
}

// addExtents adds what extents hold at a place behind all others.
func (c *Content) addExtents(at int, extents []gearsfs.Extent) {
	extents = stream.CloneExtents(extents)
	for i := range extents {
		e := &extents[i]
		switch {
		case stream.Zeros(e):
		case e.Inline():
			c.Parts = append(c.Parts, Part{At: at, Data: e.Data})
		default:
			c.Parts = append(c.Parts, Part{At: at, Extent: *e})
		}
		at += int(e.Length)
	}
}

// Live calls yield with every extent of the block store that the tables refer
// to, until it returns an error, which Live returns. One that several rows share
// comes more than once. It takes time for all rows, and holds nothing in memory.
func Live(r Reader, yield func(gearsfs.Extent) error) error {
	lo, hi := persist.TableRange(persist.TableRecord)
	var row wire.RecordRow
	err := scan(r, lo, hi, func(_, value []byte) error {
		row.Reset()
		if err := row.UnmarshalVTUnsafe(value); err != nil {
			return damaged("record", err)
		}
		return yieldStored(row.Extents, yield)
	})
	if err != nil {
		return err
	}
	return liveKept(r, yield)
}

// liveKept is Live of the rows that answers keep.
func liveKept(r Reader, yield func(gearsfs.Extent) error) error {
	var failed error
	err := scanSessions(r, func(_ gearsfs.SessionID, row *wire.SessionRow) {
		for _, a := range row.Answers {
			for _, ref := range references(a) {
				for _, kept := range ref.Kept {
					if failed == nil {
						failed = yieldStored(kept.Row.GetExtents(), yield)
					}
				}
			}
		}
	})
	if failed != nil {
		return failed
	}
	return err
}

func yieldStored(rows []*wire.Extent, yield func(gearsfs.Extent) error) error {
	for _, e := range rows {
		if e.Origin == 0 {
			continue
		}
		found := ExtentOf(e)
		found.Sums = slices.Clone(found.Sums)
		if err := yield(found); err != nil {
			return err
		}
	}
	return nil
}

// Live is Live of the tables as of now. It may run beside everything else.
func (m *Machine) Live(yield func(gearsfs.Extent) error) error {
	r := m.read()
	defer r.close()
	return Live(r.view, yield)
}
