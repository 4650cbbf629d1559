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
	Data  []byte // the whole range; what Parts are of is still to be read into it
	Parts []Part // in order
}

// Part is the bytes of a Content from its byte At on that are all those of
// Extent, which is in the block store.
type Part struct {
	At     int
	Extent gearsfs.Extent
}

// Read returns the n bytes from pos on: fewer only at the tail, none at or
// behind it. What was taken and gaps read as zeros. They are in buf where it
// has room for them, else in memory of their own. Errors: gearsfs.ErrStale,
// ErrIsDir, ErrInvalid (not a regular file), ErrAccess.
//
// What is in the block store may be freed by a later entry while the caller
// reads it there: then it lacks those pages or finds other sums, and reads
// again what the file has by then.
func (m *Machine) Read(ino gearsfs.Ino, pos gearsfs.Pos, n int, caller gearsfs.Caller, buf []byte) (Content, error) {
	r := m.read()
	defer r.close()
	data, err := r.readable(ino, caller)
	if err != nil || uint64(pos) >= data.tail || n <= 0 {
		return Content{}, err
	}
	n = int(min(uint64(n), data.tail-uint64(pos)))
	if cap(buf) < n {
		buf = make([]byte, n)
	}
	c := filling{Content: Content{Data: buf[:n]}}
	end := pos + gearsfs.Pos(n)
	err = r.records(ino, &data, pos, end, func(p *piece) bool {
		from, to := max(p.at.Pos, pos), min(p.end(), end)
		switch {
		case from >= to:
		case len(p.rec.Extents) > 0:
			c.addExtents(int(from-pos), stream.AppendCut(nil, p.rec.Extents, uint64(from-p.at.Pos), uint64(to-from)))
		default:
			c.add(int(from-pos), p.rec.Data[from-p.at.Pos:to-p.at.Pos])
		}
		return true
	})
	c.skip(n)
	return c.Content, err
}

// filling is a Content of which the bytes in front of done are there, or are
// those of parts.
type filling struct {
	Content
	done int
}

// skip makes zeros of what is in front of a byte and nothing was found for.
func (c *filling) skip(to int) {
	if c.done < to {
		clear(c.Data[c.done:to])
		c.done = to
	}
}

// add adds bytes at a place behind all others.
func (c *filling) add(at int, data []byte) {
	c.skip(at)
	c.done = at + copy(c.Data[at:], data)
}

// addExtents adds what extents hold at a place behind all others.
func (c *filling) addExtents(at int, extents []gearsfs.Extent) {
	extents = stream.CloneExtents(extents)
	for i := range extents {
		e := &extents[i]
		switch {
		case stream.Zeros(e):
		case e.Inline():
			c.add(at, e.Data)
		default:
			c.skip(at)
			c.Parts = append(c.Parts, Part{At: at, Extent: *e})
			c.done = at + int(e.Length)
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
