package file

import (
	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/stream"
)

// A block row with extents that gets zeros is cut where they are many. Bytes that no
// row covers read as zeros, too, and nobody counts them: neither quotas nor st_blocks.
// Rows of bytes are not cut, they are small.

// holeBytesMin is the shortest run of zeros that a row is cut for: as on other file
// systems a page.
const holeBytesMin = gearsfs.PageBytes

// island is a part of a row that is no hole.
type island struct {
	pos     gearsfs.Pos
	extents []gearsfs.Extent
}

// islands are the parts of a row that begins at pos and would have those extents,
// which they share.
func islands(pos gearsfs.Pos, extents []gearsfs.Extent) (list []island) {
	begin, at := 0, pos // of the one in hand
	for i := 0; i < len(extents); {
		zeros, next := uint64(0), i
		for ; next < len(extents) && stream.Zeros(&extents[next]); next++ {
			zeros += extents[next].Length
		}
		switch {
		case zeros >= holeBytesMin:
			if begin < i {
				list = append(list, island{at, extents[begin:i]})
			}
			pos += gearsfs.Pos(zeros)
			begin, at, i = next, pos, next
		case zeros > 0:
			pos += gearsfs.Pos(zeros)
			i = next
		default:
			pos += gearsfs.Pos(extents[i].Length)
			i++
		}
	}
	if begin < len(extents) {
		list = append(list, island{at, extents[begin:]})
	}
	return list
}

// cutHoles makes a piece what splicing zeros into it has found, without the holes
// where it may be cut.
func (m *Machine) cutHoles(s *openStream, p *piece) error {
	if !p.rec.Block || p.at.Less(s.queue.State().Cursor) {
		s.queue.Replace(p.at, p.size, p.rec.Extents, &p.next.rec)
		return nil
	}
	rest := islands(p.at.Pos, p.next.rec.Extents)
	stays := len(rest) > 0 && rest[0].pos == p.at.Pos
	moved := rest
	if stays {
		moved = rest[1:]
	}
	// Before the row lets go of them: what nobody refers to is free.
	for _, part := range moved {
		for _, run := range tidyRuns(appendRuns(nil, part.extents)) {
			if err := m.addRefs(run); err != nil {
				return err
			}
		}
	}
	if stays {
		s.queue.Replace(p.at, p.size, p.rec.Extents, p.part(rest[0]))
	} else if err := s.queue.Remove(p.at, p.size); err != nil {
		return err
	}
	for _, part := range moved {
		s.queue.Insert(part.pos, p.part(part))
	}
	return nil
}

// part is the row of an island of the piece.
func (p *piece) part(i island) *stream.Record {
	rec := p.rowOf(i.pos, i.extents)
	return &rec
}
