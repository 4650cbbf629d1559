package file

import (
	"encoding/binary"
	"hash/crc32"
	"math/rand/v2"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/stream"
	"github.com/gearsfs/gearsfs/wire"
)

// fakeBlocks is a block store as a map of pages. It follows what the Machine says
// of them: what is freed is gone, and must have been there.
type fakeBlocks struct {
	t     require.TestingT
	rng   *rand.Rand
	pages map[pageID][]byte
	next  [2]uint64 // page of each origin's segment
	live  map[pageID]bool
}

type pageID struct {
	origin        gearsfs.MemberID
	segment, page uint64
}

func newFakeBlocks(t require.TestingT, rng *rand.Rand) *fakeBlocks {
	return &fakeBlocks{t: t, rng: rng, pages: make(map[pageID][]byte), live: make(map[pageID]bool)}
}

// append stores data in one to three extents, of which some do not begin where
// their page does.
func (b *fakeBlocks) append(data []byte) []*wire.Extent {
	var extents []gearsfs.Extent
	for len(data) > 0 {
		n := len(data)
		if b.rng.IntN(3) == 0 && len(extents) < 2 {
			n = 1 + b.rng.IntN(n)
		}
		extents = append(extents, b.extent(data[:n]))
		data = data[n:]
	}
	return ExtentsToWire(extents)
}

func (b *fakeBlocks) extent(data []byte) gearsfs.Extent {
	const segmentPages = gearsfs.SegmentBytesMax / gearsfs.PageBytes
	junk := 0
	if b.rng.IntN(2) == 0 {
		junk = b.rng.IntN(2 * gearsfs.PageBytes)
	}
	stored := append(make([]byte, junk), data...)
	o := b.rng.IntN(2)
	pages := uint64(len(stored)+gearsfs.PageBytes-1) / gearsfs.PageBytes
	if b.next[o]%segmentPages+pages > segmentPages {
		b.next[o] += segmentPages - b.next[o]%segmentPages
	}
	first := b.next[o]
	b.next[o] += pages
	e := gearsfs.Extent{Origin: gearsfs.MemberID(o + 1), Segment: 1 + first/segmentPages, At: first % segmentPages * gearsfs.PageBytes,
		Size: uint64(len(stored)), Length: uint64(len(stored))}
	for i := range pages {
		page := stored[i*gearsfs.PageBytes : min((i+1)*gearsfs.PageBytes, uint64(len(stored)))]
		e.Sums = binary.LittleEndian.AppendUint32(e.Sums, crc32.Checksum(page, crc32.MakeTable(crc32.Castagnoli)))
		b.pages[pageID{e.Origin, e.Segment, e.At/gearsfs.PageBytes + i}] = page
	}
	return e.Cut(uint64(junk), uint64(len(data)))
}

// read returns an extent's bytes.
func (b *fakeBlocks) read(e *gearsfs.Extent) []byte {
	if stream.Zeros(e) {
		return make([]byte, e.Length)
	}
	require.NoError(b.t, e.Check())
	if e.Inline() {
		return e.Data
	}
	var stored []byte
	for i := range e.Pages() {
		page, ok := b.pages[pageID{e.Origin, e.Segment, e.At/gearsfs.PageBytes + i}]
		require.True(b.t, ok, "page %d of %v is gone", i, e)
		require.Equal(b.t, binary.LittleEndian.Uint32(e.Sums[4*i:]), crc32.Checksum(page, crc32.MakeTable(crc32.Castagnoli)), "page %d of %v", i, e)
		stored = append(stored, page...)
	}
	return stored[e.Offset : e.Offset+e.Length]
}

func (b *fakeBlocks) readAll(extents []*wire.Extent) (data []byte) {
	for _, e := range ExtentsOf(extents) {
		data = append(data, b.read(&e)...)
	}
	return data
}

// fill puts bytes in the place of the extents of an answer's records.
func (b *fakeBlocks) fill(a *wire.Answer) {
	for _, r := range a.Records {
		if len(r.Extents) > 0 {
			r.Data, r.Extents = b.readAll(r.Extents), nil
		}
	}
	for _, step := range a.Steps {
		b.fill(step)
	}
}

// content assembles what a read found.
func (b *fakeBlocks) content(c *Content) []byte {
	for i := range c.Parts {
		p := &c.Parts[i]
		data := b.read(&p.Extent)
		require.Equal(b.t, len(data), copy(c.Data[p.At:], data))
	}
	return c.Data
}

// follow compares what an entry has freed with what the tables refer to now.
func (b *fakeBlocks) follow(m *Machine, freed []gearsfs.Extent) {
	live := make(map[pageID]bool)
	each := func(e gearsfs.Extent, visit func(pageID)) {
		for i := range e.Pages() {
			visit(pageID{e.Origin, e.Segment, e.At/gearsfs.PageBytes + i})
		}
	}
	require.NoError(b.t, m.Live(func(e gearsfs.Extent) error {
		each(e, func(id pageID) { live[id] = true })
		return e.Check()
	}))
	for _, e := range freed {
		each(e, func(id pageID) {
			require.False(b.t, live[id], "page %v is freed and referred to", id)
			require.Contains(b.t, b.pages, id, "page %v is freed twice, or was never there", id)
			delete(b.pages, id)
			delete(b.live, id)
		})
	}
	for id := range b.live {
		require.True(b.t, live[id], "page %v was let go of and not freed", id)
	}
	b.live = live
}
