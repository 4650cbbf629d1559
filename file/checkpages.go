package file

import (
	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/persist"
	"github.com/gearsfs/gearsfs/stream"
	"github.com/gearsfs/gearsfs/wire"
)

// pageCheck counts the rows that refer to each page of the block store. It holds
// a bit per page in memory, and a number per page that is shared.
type pageCheck struct {
	owned  map[segmentID][]uint64 // bits of pages that one row refers to
	shared map[segmentID][]*checkedRange
	order  []*checkedRange
}

type segmentID struct {
	origin gearsfs.MemberID
	number uint64
}

// checkedRange is a shared range and how many rows were found for its pages.
type checkedRange struct {
	sharedRange
	found []uint64
}

func (c *check) readShared() error {
	c.pages = pageCheck{owned: make(map[segmentID][]uint64), shared: make(map[segmentID][]*checkedRange)}
	err := c.table(persist.TableShared, func(key, value []byte) error {
		r, err := parseShared(key, value)
		if err != nil {
			return err
		}
		if r.end > gearsfs.SegmentBytesMax/gearsfs.PageBytes {
			return gearsfs.ErrDamaged.Because("shared row: pages %d to %d of a segment", r.first, r.end)
		}
		id := segmentID{r.origin, r.segment}
		ranges := c.pages.shared[id]
		if n := len(ranges); n > 0 && ranges[n-1].end > r.first {
			c.bad("shared pages from %d on of segment %d of member %x are in two rows", r.first, r.segment, uint64(r.origin))
		}
		checked := &checkedRange{r, make([]uint64, r.end-r.first)}
		c.pages.shared[id] = append(ranges, checked)
		c.pages.order = append(c.pages.order, checked)
		return nil
	})
	if n := uint64(len(c.pages.order)); err == nil && n != c.volume.Shared {
		c.bad("the volume counts %d shared ranges, found %d", c.volume.Shared, n)
	}
	return err
}

// extents counts a row's pages, and says what is wrong with its extents.
func (p *pageCheck) extents(extents []gearsfs.Extent) (wrong string) {
	if len(extents) > rowExtentsMax {
		return "it has too many extents"
	}
	for i := range extents {
		if stream.Zeros(&extents[i]) && extents[i].Length > 0 {
			continue
		}
		if err := extents[i].Check(); err != nil {
			return err.Error()
		}
	}
	for _, run := range tidyRuns(appendRuns(nil, extents)) {
		for page := run.first; page < run.end; page++ {
			if p.page(segmentID{run.origin, run.segment}, page) {
				wrong = "a page of its extents is another row's"
			}
		}
	}
	return wrong
}

// page counts a page; it reports whether another row has it to itself.
func (p *pageCheck) page(id segmentID, page uint64) (twice bool) {
	for _, r := range p.shared[id] {
		if r.first <= page && page < r.end {
			r.found[page-r.first]++
			return false
		}
	}
	bits := p.owned[id]
	if bits == nil {
		bits = make([]uint64, gearsfs.SegmentBytesMax/gearsfs.PageBytes/64)
		p.owned[id] = bits
	}
	twice = bits[page/64]&(1<<(page%64)) != 0
	bits[page/64] |= 1 << (page % 64)
	return twice
}

// readKept counts the pages of the rows that answers keep.
func (c *check) readKept() error {
	return scanSessions(c.view, func(id gearsfs.SessionID, row *wire.SessionRow) {
		for _, a := range row.Answers {
			for _, ref := range references(a) {
				for _, kept := range ref.Kept {
					if wrong := c.pages.extents(ExtentsOf(kept.Row.GetExtents())); wrong != "" {
						c.bad("session %v, record %d of answer %d: %s", id, kept.Seq, a.Seq, wrong)
					}
				}
			}
		}
	})
}

func (c *check) compareShared() {
	for _, r := range c.pages.order {
		for i, found := range r.found {
			if found != r.refs {
				c.bad("page %d of segment %d of member %x: %d rows refer to it, counted are %d",
					r.first+uint64(i), r.segment, uint64(r.origin), found, r.refs)
				break
			}
		}
	}
}
