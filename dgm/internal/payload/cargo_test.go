package payload

import (
	"bytes"
	"hash/crc32"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/block"
	"github.com/gearsfs/gearsfs/wire"
)

// TestCargo: the bytes are the last of the request, those that the checksums are of,
// and stay when who gave them changes them, and when others are packed.
func TestCargo(t *testing.T) {
	store, err := block.Open(t.TempDir()+"/blocks", block.Options{Self: 7})
	require.NoError(t, err)
	defer func() { require.NoError(t, store.Close()) }()
	castagnoli := crc32.MakeTable(crc32.Castagnoli)
	for range 2 { // the second time in memory that was in use
		var packed []*cargo
		var bodies [][]byte
		for _, size := range []int{1, 64 << 10, 1 << 20, 1 << 20, 3<<20 + 5, gearsfs.RecordBytesMax + 4097} {
			payload := make([]byte, size)
			for i := range payload {
				payload[i] = byte(rand.Uint32())
			}
			extents, err := store.Append(payload)
			require.NoError(t, err)
			had := slices.Clone(extents[0].Sums)
			c, err := newCargo(extents, payload)
			require.NoError(t, err)
			require.Equal(t, had, extents[0].Sums)

			require.True(t, bytes.HasSuffix(c.body, payload))
			require.Equal(t, size, c.sums.Last)
			var sums []byte
			for page := range slices.Chunk(payload, gearsfs.PageBytes) {
				n := crc32.Checksum(page, castagnoli)
				sums = append(sums, byte(n), byte(n>>8), byte(n>>16), byte(n>>24))
			}
			require.True(t, bytes.Equal(sums, c.sums.Each))
			req := new(wire.Request)
			require.NoError(t, req.UnmarshalVT(c.body))
			require.Len(t, req.GetBlocks().Store, len(extents))
			require.True(t, bytes.Equal(payload, req.GetBlocks().Data))

			bodies = append(bodies, bytes.Clone(c.body))
			clear(payload)
			packed = append(packed, c)
		}
		for i, c := range packed {
			require.True(t, bytes.Equal(bodies[i], c.body))
		}
		for _, c := range packed {
			c.release()
		}
	}
}
