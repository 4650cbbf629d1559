package gearsfs

import (
	"bytes"
	"encoding/binary"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
)

// storedExtent is the extent of an append of size bytes at a page, with the
// page's number in the place of its checksum.
func storedExtent(page, size uint64) Extent {
	e := Extent{Origin: 3, Segment: 7, At: page * PageBytes, Size: size, Length: size}
	for i := range pagesOf(size) {
		e.Sums = binary.LittleEndian.AppendUint32(e.Sums, uint32(page+i))
	}
	return e
}

func TestExtentCheck(t *testing.T) {
	whole := storedExtent(5, 3*PageBytes+100)
	require.NoError(t, whole.Check())
	require.NoError(t, storedExtent(0, 1).Check())
	require.NoError(t, storedExtent(0, RecordBytesMax).Check())
	require.NoError(t, storedExtent(SegmentBytesMax/PageBytes-1, PageBytes).Check())
	require.NoError(t, InlineExtent([]byte("x")).Check())

	for name, change := range map[string]func(*Extent){
		"no segment":          func(e *Extent) { e.Segment = 0 },
		"data":                func(e *Extent) { e.Data = []byte("x") },
		"inline":              func(e *Extent) { e.Origin = 0 },
		"not at a page":       func(e *Extent) { e.At++ },
		"empty":               func(e *Extent) { e.Length = 0 },
		"no pages":            func(e *Extent) { e.Size, e.Length, e.Sums = 0, 0, nil },
		"longer than stored":  func(e *Extent) { e.Length++ },
		"offset and length":   func(e *Extent) { e.Offset++ },
		"length wraps":        func(e *Extent) { e.Offset, e.Length = 2, math.MaxUint64 },
		"place wraps":         func(e *Extent) { e.At = math.MaxUint64 - PageBytes + 1 },
		"behind the segment":  func(e *Extent) { e.At = SegmentBytesMax - PageBytes },
		"first page unused":   func(e *Extent) { e.Offset, e.Length = PageBytes, PageBytes },
		"last page unused":    func(e *Extent) { e.Length = 3 * PageBytes },
		"sums short":          func(e *Extent) { e.Sums = e.Sums[1:] },
		"sums long":           func(e *Extent) { e.Sums = append(e.Sums, 0) },
		"size claims the sky": func(e *Extent) { e.Size, e.Length = math.MaxUint64, math.MaxUint64 },
		"too big": func(e *Extent) {
			*e = storedExtent(0, RecordBytesMax+1)
		},
	} {
		e := storedExtent(5, 3*PageBytes+100)
		change(&e)
		require.ErrorIs(t, e.Check(), ErrInvalid, name)
	}
	for name, e := range map[string]Extent{
		"zero":     {},
		"length":   {Length: 2, Data: []byte("x")},
		"empty":    InlineExtent([]byte{}),
		"segment":  {Segment: 1, Length: 1, Data: []byte("x")},
		"at":       {At: PageBytes, Length: 1, Data: []byte("x")},
		"size":     {Size: 1, Length: 1, Data: []byte("x")},
		"offset":   {Offset: 1, Length: 1, Data: []byte("x")},
		"sums":     {Sums: []byte{1}, Length: 1, Data: []byte("x")},
		"too long": InlineExtent(make([]byte, RecordBytesMax+1)),
	} {
		require.ErrorIs(t, e.Check(), ErrInvalid, name)
	}
}

func TestExtentCut(t *testing.T) {
	e := storedExtent(5, 3*PageBytes+100)
	require.Equal(t, e, e.Cut(0, e.Length))
	require.Equal(t, Extent{}, e.Cut(e.Length, 0))

	c := e.Cut(PageBytes+1, 10)
	require.Equal(t, Extent{
		Origin: 3, Segment: 7, At: 6 * PageBytes, Size: PageBytes, Offset: 1, Length: 10, Sums: []byte{6, 0, 0, 0},
	}, c)
	require.Equal(t, uint64(1), c.Pages())
	tail := e.Cut(3*PageBytes, 1)
	require.Equal(t, uint64(100), tail.Size, "the checksum of the last page covers what the append had")
	require.Equal(t, uint64(1), tail.Pages())

	in := InlineExtent([]byte("abcdef")).Cut(1, 3)
	require.Equal(t, InlineExtent([]byte("bcd")), in)
	require.Equal(t, 3, cap(in.Data), "what is appended to a cut must not reach its neighbour")
	require.Equal(t, 4, cap(c.Sums))

	require.Panics(t, func() { e.Cut(0, e.Length+1) })
	require.Panics(t, func() { e.Cut(e.Length+1, 0) })
	require.Panics(t, func() { e.Cut(1, math.MaxUint64) })
	require.Panics(t, func() { InlineExtent([]byte("x")).Cut(0, 2) })
}

// bytesOf reads an extent from its segment, whose page n is filled by n's
// digits, and fails where a page's checksum is another page's.
func bytesOf(t *testing.T, e Extent, segment []byte) []byte {
	require.NoError(t, e.Check())
	if e.Inline() {
		return e.Data
	}
	for i := range e.Pages() {
		require.Equal(t, uint32(e.At/PageBytes+i), binary.LittleEndian.Uint32(e.Sums[4*i:]))
	}
	return segment[e.At+e.Offset : e.At+e.Offset+e.Length]
}

// TestExtentCutsOfCuts cuts cuts: their bytes must be those of cutting bytes.
func TestExtentCutsOfCuts(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	segment := make([]byte, 16*PageBytes)
	for i := range segment {
		segment[i] = byte(rng.Uint32())
	}
	for range 2000 {
		page := rng.Uint64N(8)
		e := storedExtent(page, 1+rng.Uint64N(8*PageBytes))
		if rng.IntN(5) == 0 {
			e = InlineExtent(segment[:1+rng.IntN(100)])
		}
		want := bytesOf(t, e, segment)
		for e.Length > 1 {
			off := rng.Uint64N(e.Length)
			n := 1 + rng.Uint64N(e.Length-off)
			if n == e.Length {
				break
			}
			e, want = e.Cut(off, n), want[off:off+n]
			require.True(t, bytes.Equal(want, bytesOf(t, e, segment)))
		}
	}
}

// FuzzExtent takes an extent from the wire: what Check lets pass can be cut
// anywhere, and its cuts pass too.
func FuzzExtent(f *testing.F) {
	f.Add(uint64(1), uint64(1), uint64(0), uint64(5000), uint64(3), uint64(4500), []byte("12345678"), []byte(nil), uint64(100), uint64(4000))
	f.Add(uint64(0), uint64(0), uint64(0), uint64(0), uint64(0), uint64(3), []byte(nil), []byte("abc"), uint64(1), uint64(1))
	f.Add(uint64(1), uint64(1), uint64(math.MaxUint64-4095), uint64(8192), uint64(1), uint64(math.MaxUint64), []byte("12345678"), []byte(nil), uint64(1), uint64(1))
	f.Fuzz(func(t *testing.T, origin, segment, at, size, offset, length uint64, sums, data []byte, off, n uint64) {
		e := Extent{MemberID(origin), segment, at, size, offset, length, sums, data}
		if e.Check() != nil {
			return
		}
		off %= e.Length
		n = 1 + n%(e.Length-off)
		c := e.Cut(off, n)
		require.NoError(t, c.Check())
		require.Equal(t, n, c.Length)
		if !e.Inline() {
			require.Equal(t, e.At+e.Offset+off, c.At+c.Offset)
			require.LessOrEqual(t, c.At+c.Size, e.At+e.Size)
		}
	})
}
