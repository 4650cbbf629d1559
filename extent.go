package gearsfs

// PageBytes is the unit in which the block store keeps, checks and frees bytes.
const PageBytes = 4096

// SegmentBytesMax is the most that a segment of the block store holds.
const SegmentBytesMax = 64 << 20

// sumBytes is the length of a page's checksum in Extent.Sums.
const sumBytes = 4

// An Extent is a piece of a payload: bytes that stand in a segment of the block
// store, or where Origin is 0 the bytes themselves. Every replica has an
// extent's bytes at the same place of its copy of the segment, or lacks them.
//
//	At          At+Offset                  At+Offset+Length  At+Size
//	|...........|==================================|............|
//	| first page     | page            | page           | last page (maybe shorter)
//	  Sums[0:4]        Sums[4:8]         …
//
// Invariants, which Check tells of one that came from elsewhere:
//
//  1. At is a multiple of PageBytes, Size and Length are not 0, At+Size is
//     at most SegmentBytesMax, and Size at most RecordBytesMax.
//  2. Offset+Length <= Size, and each page of Size has bytes that are used: the
//     first is as Offset < PageBytes, and the last too.
//  3. Sums has one checksum of four bytes for each page of Size.
//  4. An inline extent has Data of Length bytes, at most RecordBytesMax, and
//     nothing else; one in a segment has no Data.
//
// Sums and Data are never changed once an extent has them, so that copies and
// cuts of an extent share them.
type Extent struct {
	Origin  MemberID // whose segment it is
	Segment uint64   // its number, from 1 on
	At      uint64   // where the extent's first page begins in the segment
	Size    uint64   // bytes from At on that Sums covers: whole pages, but for the last one of an append
	Offset  uint64   // the first of these that is used
	Length  uint64   // bytes that are used
	Sums    []byte   // CRC-32C of each page of Size, little-endian
	Data    []byte   // the bytes, where Origin is 0
}

// InlineExtent returns the extent whose bytes are data, which it keeps.
func InlineExtent(data []byte) Extent {
	return Extent{Length: uint64(len(data)), Data: data}
}

// Inline reports whether e has its bytes with it.
func (e Extent) Inline() bool { return e.Origin == 0 }

// Pages is the number of pages that e has in its segment, whole ones where the
// last one has less than PageBytes of Size.
func (e Extent) Pages() uint64 { return pagesOf(e.Size) }

func pagesOf(n uint64) uint64 { return n/PageBytes + min(n%PageBytes, 1) }

// Check returns ErrInvalid, with the reason, where e breaks an invariant.
func (e Extent) Check() error {
	if e.Inline() {
		return e.checkInline()
	}
	switch {
	case e.Segment == 0:
		return ErrInvalid.Because("an extent of no segment")
	case len(e.Data) > 0:
		return ErrInvalid.Because("an extent in a segment has data with it")
	case e.At%PageBytes != 0:
		return ErrInvalid.Because("an extent begins at byte %d of its segment, not at a page", e.At)
	case e.Size == 0 || e.Length == 0:
		return ErrInvalid.Because("an extent of %d bytes, %d of them used", e.Size, e.Length)
	case e.Size > RecordBytesMax || e.At > SegmentBytesMax || e.At+e.Size > SegmentBytesMax:
		return ErrInvalid.Because("an extent of %d bytes at byte %d of its segment", e.Size, e.At)
	case e.Offset >= PageBytes || e.Length > e.Size || e.Offset+e.Length > e.Size:
		return ErrInvalid.Because("an extent uses %d bytes from %d on of %d", e.Length, e.Offset, e.Size)
	case pagesOf(e.Offset+e.Length) != e.Pages():
		return ErrInvalid.Because("an extent of %d pages uses %d", e.Pages(), pagesOf(e.Offset+e.Length))
	case uint64(len(e.Sums)) != sumBytes*e.Pages():
		return ErrInvalid.Because("an extent of %d pages has %d bytes of checksums", e.Pages(), len(e.Sums))
	}
	return nil
}

func (e Extent) checkInline() error {
	switch {
	case e.Segment != 0 || e.At != 0 || e.Size != 0 || e.Offset != 0 || len(e.Sums) != 0:
		return ErrInvalid.Because("an inline extent says where it stands in a segment")
	case e.Length == 0 || e.Length > RecordBytesMax || e.Length != uint64(len(e.Data)):
		return ErrInvalid.Because("an inline extent of %d bytes has %d", e.Length, len(e.Data))
	}
	return nil
}

// Cut returns the extent of the n bytes of e from off on, off+n <= e.Length,
// without the pages that these don't touch. It shares Sums and Data with e. The
// cut of no bytes is the zero Extent. Cut panics where off and n lie outside.
func (e Extent) Cut(off, n uint64) Extent {
	if off > e.Length || n > e.Length-off {
		panic("gearsfs: a cut outside of its extent")
	}
	if n == 0 {
		return Extent{}
	}
	if e.Inline() {
		return InlineExtent(e.Data[off : off+n : off+n])
	}
	off += e.Offset
	first, end := off/PageBytes, pagesOf(off+n)
	c := e
	c.At += first * PageBytes
	c.Size = min(end*PageBytes, e.Size) - first*PageBytes
	c.Offset = off % PageBytes
	c.Length = n
	c.Sums = e.Sums[first*sumBytes : end*sumBytes : end*sumBytes]
	return c
}
