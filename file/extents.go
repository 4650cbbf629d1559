package file

import (
	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/stream"
	"github.com/gearsfs/gearsfs/wire"
)

// ExtentOf returns the extent of a message, which shares its bytes.
func ExtentOf(e *wire.Extent) gearsfs.Extent {
	return gearsfs.Extent{
		Origin: gearsfs.MemberID(e.Origin), Segment: e.Segment, At: e.At, Size: e.Size,
		Offset: e.Offset, Length: e.Length, Sums: e.Sums, Data: e.Data,
	}
}

// ExtentsOf returns the extents of messages, which share their bytes.
func ExtentsOf(list []*wire.Extent) []gearsfs.Extent {
	if len(list) == 0 {
		return nil
	}
	extents := make([]gearsfs.Extent, len(list))
	for i, e := range list {
		extents[i] = ExtentOf(e)
	}
	return extents
}

// ExtentsToWire makes messages of extents, which share their bytes.
func ExtentsToWire(extents []gearsfs.Extent) []*wire.Extent {
	if len(extents) == 0 {
		return nil
	}
	messages := make([]wire.Extent, len(extents))
	list := make([]*wire.Extent, len(extents))
	for i := range extents {
		fillExtent(&messages[i], &extents[i])
		list[i] = &messages[i]
	}
	return list
}

func fillExtent(m *wire.Extent, e *gearsfs.Extent) {
	m.Origin, m.Segment, m.At, m.Size = uint64(e.Origin), e.Segment, e.At, e.Size
	m.Offset, m.Length, m.Sums, m.Data = e.Offset, e.Length, e.Sums, e.Data
}

// cloneExtents copies messages with all that they refer to.
func cloneExtents(list []*wire.Extent) []*wire.Extent {
	return ExtentsToWire(stream.CloneExtents(ExtentsOf(list)))
}
