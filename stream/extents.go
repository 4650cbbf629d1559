package stream

import (
	"slices"

	"github.com/gearsfs/gearsfs"
)

// A record's bytes may be a list of extents. A queue hands such a record out and
// cuts it as any other; it never looks at the bytes.

// Len is the record's length in bytes.
func (r *Record) Len() int {
	if len(r.Extents) == 0 {
		return len(r.Data)
	}
	return int(LengthOf(r.Extents))
}

// cut leaves the first n bytes of the record.
func (r *Record) cut(n int) {
	if len(r.Extents) == 0 {
		r.Data = r.Data[:n]
		return
	}
	r.Extents = AppendCut(nil, r.Extents, 0, uint64(n))
}

// kept is how much memory the record takes besides itself.
func (r *Record) kept() int {
	n := len(r.Data)
	for i := range r.Extents {
		n += extentCost + len(r.Extents[i].Sums) + len(r.Extents[i].Data)
	}
	return n
}

// extentCost is about what an extent takes beside its slices.
const extentCost = 112

// LengthOf is the length of what extents are the bytes of.
func LengthOf(extents []gearsfs.Extent) (n uint64) {
	for i := range extents {
		n += extents[i].Length
	}
	return n
}

// CloneExtents copies extents with all that they refer to.
func CloneExtents(extents []gearsfs.Extent) []gearsfs.Extent {
	if len(extents) == 0 {
		return nil
	}
	n := 0
	for i := range extents {
		n += len(extents[i].Sums) + len(extents[i].Data)
	}
	bytes := make([]byte, 0, n)
	keep := func(b []byte) []byte {
		if b == nil {
			return nil
		}
		bytes = append(bytes, b...)
		return bytes[len(bytes)-len(b) : len(bytes) : len(bytes)]
	}
	kept := slices.Clone(extents)
	for i := range kept {
		kept[i].Sums, kept[i].Data = keep(kept[i].Sums), keep(kept[i].Data)
	}
	return kept
}

// Zeros reports whether an extent is that of bytes that are all 0 and stand
// nowhere: inline, without data.
func Zeros(e *gearsfs.Extent) bool { return e.Inline() && len(e.Data) == 0 }

// AppendCut appends the n bytes from off on of what a list of extents holds to
// another list. Where extents follow on each other they become one.
func AppendCut(dst, extents []gearsfs.Extent, off, n uint64) []gearsfs.Extent {
	for i := 0; i < len(extents) && n > 0; i++ {
		e := &extents[i]
		if off >= e.Length {
			off -= e.Length
			continue
		}
		part := min(n, e.Length-off)
		switch {
		case part == e.Length:
			dst = appendExtent(dst, *e)
		case Zeros(e):
			dst = appendExtent(dst, gearsfs.Extent{Length: part})
		default:
			dst = appendExtent(dst, e.Cut(off, part))
		}
		n -= part
		off = 0
	}
	return dst
}

// appendExtent appends an extent, joined with the last one where that is
// followed by it.
func appendExtent(dst []gearsfs.Extent, e gearsfs.Extent) []gearsfs.Extent {
	if len(dst) == 0 {
		return append(dst, e)
	}
	last := &dst[len(dst)-1]
	switch {
	case Zeros(last) && Zeros(&e):
		last.Length += e.Length
	case Zeros(last) || Zeros(&e):
		return append(dst, e)
	case last.Inline() && e.Inline():
		*last = gearsfs.InlineExtent(slices.Concat(last.Data, e.Data))
	case follows(last, &e):
		joinStored(last, &e)
	default:
		return append(dst, e)
	}
	return dst
}

// follows reports whether b is of the bytes right behind those of a, which is in
// the block store.
func follows(a, b *gearsfs.Extent) bool {
	return a.Origin == b.Origin && a.Segment == b.Segment && a.At+a.Offset+a.Length == b.At+b.Offset &&
		b.At+b.Size-a.At <= gearsfs.RecordBytesMax
}

// joinStored makes one extent of a and b, which follows it. They may have a page
// in common: the one in which a ends and b begins.
func joinStored(a, b *gearsfs.Extent) {
	pages := (b.At - a.At) / gearsfs.PageBytes
	const sum = 4
	a.Sums = slices.Concat(a.Sums[:pages*sum], b.Sums)
	a.Size = b.At + b.Size - a.At
	a.Length += b.Length
}
