package file

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/wire"
)

// TestHolesInRows: what is punched out of rows with extents does not count, to the
// byte, and the block store gets its pages back.
func TestHolesInRows(t *testing.T) {
	r := newBlocksRig(t)
	f := r.create(1, "f", 0o644)
	want := letters(256*k, 'a')
	r.do(&wire.Write{Ino: uint64(f), Extents: r.blocks.one(want)})
	r.sound()
	counts := uint64(len(want))
	require.Equal(t, []rowOf{{0, 128 * k, true}, {128 * k, 128 * k, true}}, r.rows(f))
	for _, hole := range []struct {
		name               string
		pos, length, frees uint64
	}{
		{"less than a page", 100, 1000, 0},
		{"within a row", 10_000, 20_000, 20_000},
		{"beside a short one", 1100, 3096, 4096},
		{"all of what is in front", 0, 100, 100},
		{"the same again", 10_000, 20_000, 0},
		{"over the end of a row", 120 * k, 16 * k, 16 * k},
		{"the end of a row", 250 * k, 6 * k, 6 * k},
		{"a page amid bytes that are beside a hole", 32_768, 4096, 4096},
	} {
		live := len(r.blocks.live)
		r.do(&wire.Allocate{Ino: uint64(f), Pos: hole.pos, Length: hole.length, Mode: allocPunchHole | allocKeepSize})
		clear(want[hole.pos:][:hole.length])
		counts -= hole.frees
		r.sound()
		require.Equal(t, string(want), string(r.read(f, 0, 1<<20)), hole.name)
		a := r.attr(f)
		require.EqualValues(t, len(want), a.Size, hole.name)
		require.Equal(t, (counts+511)/512, a.Blocks, hole.name)
		require.LessOrEqual(t, len(r.blocks.live), live, hole.name)
	}
	require.EqualValues(t, 4196, r.rows(f)[0].pos)

	for _, pos := range []uint64{0, 12_000, 32_000, 34_000, 125 * k, 255 * k} {
		require.NoError(t, r.write(f, pos, "written"))
		copy(want[pos:], "written")
		r.sound()
	}
	r.do(&wire.Write{Ino: uint64(f), Pos: 9000, Extents: r.blocks.one(letters(130*k, 'k'))})
	copy(want[9000:], letters(130*k, 'k'))
	r.sound()
	require.Equal(t, string(want), string(r.read(f, 0, 1<<20)))
	r.do(&wire.Allocate{Ino: uint64(f), Length: 1 << 20, Mode: allocPunchHole | allocKeepSize})
	r.sound()
	require.Zero(t, r.attr(f).Blocks)
	require.Empty(t, r.blocks.live)
}

// TestNoHolesInWhatWasTaken: what was handed out keeps its length.
func TestNoHolesInWhatWasTaken(t *testing.T) {
	r := newBlocksRig(t)
	f := r.create(1, "f", 0o644)
	r.do(&wire.Write{Ino: uint64(f), Extents: r.blocks.one(letters(128*k, 'a'))})
	r.entry(by(gearsfs.SessionID{Minted: rigStart}, as(root, &wire.Take{
		Target: &wire.Target{Ino: uint64(f)}, Keys: []string{"data"}, Lease: true, Force: true})))
	before := r.attr(f).Blocks
	r.do(&wire.Allocate{Ino: uint64(f), Pos: 10 * k, Length: 100 * k, Mode: allocPunchHole | allocKeepSize})
	require.Equal(t, []rowOf{{0, 128 * k, true}}, r.rows(f))
	require.Equal(t, before, r.attr(f).Blocks)
	r.sound()
}
