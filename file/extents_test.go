package file

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/persist"
	"github.com/gearsfs/gearsfs/wire"
)

// newBlocksRig is a rig with a block store.
func newBlocksRig(t *testing.T) *rig {
	r := newRig(t)
	r.blocks = newFakeBlocks(t, rand.New(rand.NewPCG(1, 1)))
	return r
}

// one stores data as one extent that begins where its page does.
func (b *fakeBlocks) one(data []byte) []*wire.Extent {
	for {
		if e := b.extent(data); e.Offset == 0 {
			return ExtentsToWire([]gearsfs.Extent{e})
		}
	}
}

// sound checks the tables, and that what is gone from them was freed.
func (r *rig) sound() {
	r.t.Helper()
	r.check()
	r.blocks.follow(r.m, r.seen.freed)
	r.seen.freed = r.seen.freed[:0]
}

func letters(n int, seed byte) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = seed + byte(i/100%20)
	}
	return b
}

func (r *rig) extentsOf(ino gearsfs.Ino) (n int) {
	require.NoError(r.t, r.m.Live(func(gearsfs.Extent) error { n++; return nil }))
	return n
}

// TestFragmentedRow: a row that would have too many extents refuses a write and
// says what it is; rewritten, it takes it. Neither changes anything else.
func TestFragmentedRow(t *testing.T) {
	r := newBlocksRig(t)
	f := r.create(1, "f", 0o644)
	want := letters(128*k, 'a')
	r.do(&wire.Write{Ino: uint64(f), Extents: r.blocks.one(want)})
	var refused *wire.Answer
	var op *wire.Write
	for i := 0; refused == nil; i++ {
		require.Less(t, i, rowExtentsMax)
		op = &wire.Write{Ino: uint64(f), Pos: uint64(i*1000 + 10), Extents: r.blocks.one([]byte("overwritten"))}
		a, err := r.try(root, op)
		if err != nil {
			require.ErrorIs(t, err, gearsfs.ErrFragmented)
			refused = a
			break
		}
		copy(want[op.Pos:], "overwritten")
		r.sound()
	}
	require.Equal(t, string(want), string(r.read(f, 0, 1<<20)), "a refused write changed something")
	row := refused.Fragmented
	require.Equal(t, []uint64{uint64(f), 0}, []uint64{row.Ino, row.Pos})
	before := r.attr(f)

	rewrite := &wire.Rewrite{Ino: row.Ino, Key: row.Key, Pos: row.Pos, Seq: row.Seq, Was: row.Extents, Extents: r.blocks.one(want)}
	other := &wire.Rewrite{Ino: row.Ino, Key: row.Key, Pos: row.Pos, Seq: row.Seq, Was: row.Extents[1:], Extents: rewrite.Extents}
	_, err := r.try(root, other)
	require.ErrorIs(t, err, gearsfs.ErrGone)
	r.do(rewrite)
	require.Equal(t, before, r.attr(f))
	require.Equal(t, 1, r.extentsOf(f))
	_, err = r.try(root, rewrite)
	require.ErrorIs(t, err, gearsfs.ErrGone)

	r.do(op)
	copy(want[op.Pos:], "overwritten")
	require.Equal(t, string(want), string(r.read(f, 0, 1<<20)))
	r.sound()
}

// TestInlineBytesOfARow: small overwrites of a row in the block store stay with it
// up to a bound.
func TestInlineBytesOfARow(t *testing.T) {
	r := newBlocksRig(t)
	f := r.create(1, "f", 0o644)
	r.do(&wire.Write{Ino: uint64(f), Extents: r.blocks.one(letters(128*k, 'a'))})
	require.NoError(t, r.write(f, 5*k, string(make([]byte, 60*k))), "the first may be large")
	_, err := r.try(root, &wire.Write{Ino: uint64(f), Pos: 100 * k, Data: []byte("x")})
	require.ErrorIs(t, err, gearsfs.ErrFragmented)
	r.sound()
}

// TestWhatAnswersKeep: records in the block store that a stored answer tells of
// stay there until it is confirmed, whatever becomes of their stream.
func TestWhatAnswersKeep(t *testing.T) {
	for name, gone := range map[string]func(r *rig, f uint64) any{
		"truncated":  func(_ *rig, f uint64) any { return &wire.SetAttr{Ino: f, Size: ptr(uint64(0))} },
		"dropped":    func(r *rig, _ uint64) any { return r.unlink(1, "f", false) },
		"taken only": func(*rig, uint64) any { return &wire.Tick{} },
		"updated": func(_ *rig, f uint64) any {
			return &wire.Update{Target: &wire.Target{Ino: f}, Key: "data", Record: &wire.NewRecord{Data: []byte("new")}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newBlocksRig(t)
			f := uint64(r.create(1, "f", 0o644))
			var all [][]byte
			put := &wire.Put{Target: &wire.Target{Ino: f}, Key: "data"}
			for i := range 4 {
				all = append(all, letters(100*k, 'a'+byte(i)))
				put.Records = append(put.Records, &wire.NewRecord{Extents: r.blocks.append(all[i])})
			}
			r.do(put)
			c := r.client(1)
			// The first of them is leased, so that the others are pinned behind the head.
			c.must(&wire.Take{Target: &wire.Target{Ino: f}, Keys: []string{"data"}, Max: 1, Lease: true})
			take := c.command(&wire.Take{Target: &wire.Target{Ino: f}, Keys: []string{"data"}, Max: 2})
			look := c.command(tx(&wire.Look{Target: &wire.Target{Ino: f}, Key: "data", Max: 1}))
			taken := func() {
				a := r.entry(take)[0]
				r.blocks.fill(a)
				require.Len(t, a.Records, 2)
				for i, rec := range a.Records {
					require.True(t, bytes.Equal(all[1+i], rec.Data))
				}
			}
			taken()
			require.NoError(t, answerError(r.entry(look)[0]))
			r.do(gone(r, f))
			r.sound()
			taken()
			require.NotEmpty(t, r.blocks.live)

			r.reopen()
			taken()
			c.must(&wire.EndSession{SessionMinted: uint64(c.id.Minted), SessionSalt: c.id.Salt, Forget: true})
			r.sound()
			if name == "truncated" || name == "dropped" || name == "updated" {
				require.Empty(t, r.blocks.live)
				require.Zero(t, r.m.volume.Shared)
			}
		})
	}
}

// TestPinnedRunAcrossACut: a run of taken records that an answer tells of, of
// which a truncation removes the last only, goes into the answer as a whole.
func TestPinnedRunAcrossACut(t *testing.T) {
	r := newBlocksRig(t)
	f := uint64(r.create(1, "f", 0o644))
	put := &wire.Put{Target: &wire.Target{Ino: f}, Key: "data"}
	for i := range 5 {
		put.Records = append(put.Records, &wire.NewRecord{Extents: r.blocks.append(letters(10*k, 'a'+byte(i)))})
	}
	r.do(put)
	c := r.client(1)
	c.must(&wire.Take{Target: &wire.Target{Ino: f}, Keys: []string{"data"}, Max: 1, Lease: true})
	take := c.command(&wire.Take{Target: &wire.Target{Ino: f}, Keys: []string{"data"}, Max: 3})
	require.Len(t, r.entry(take)[0].Records, 3)
	r.do(&wire.SetAttr{Ino: f, Size: ptr(uint64(25 * k)), Base: ptr(uint64(0))})
	r.sound()
	a := r.entry(take)[0]
	r.blocks.fill(a)
	require.Len(t, a.Records, 3)
	r.do(r.unlink(1, "f", false))
	r.sound()
	c.must(&wire.EndSession{SessionMinted: uint64(c.id.Minted), SessionSalt: c.id.Salt, Forget: true})
	r.sound()
	require.Empty(t, r.blocks.live)
}

// TestForgottenRows: rows of records that are gone go when their answers are
// confirmed, in an entry that does nothing else to their stream.
func TestForgottenRows(t *testing.T) {
	r := newBlocksRig(t)
	f := uint64(r.create(1, "f", 0o644))
	for range 20 { // what is consumed is cleaned up in bulk
		r.do(&wire.Put{Target: &wire.Target{Ino: f}, Key: "q", Records: []*wire.NewRecord{{Extents: r.blocks.append(letters(1<<20, 'a'))}}})
	}
	c := r.client(1)
	c.must(&wire.Take{Target: &wire.Target{Ino: f}, Keys: []string{"q"}, Max: 10})
	r.sound()
	before := len(r.blocks.live)
	r.entry(by(c.id, &wire.Command{Seq: 100, Confirmed: 100, Op: &wire.Command_Confirm{Confirm: &wire.Confirm{}}}))
	r.sound()
	require.Less(t, len(r.blocks.live), before)
	r.reopen()
	r.sound()
}

// TestExtentsAreChecked: what can't be is refused.
func TestExtentsAreChecked(t *testing.T) {
	r := newBlocksRig(t)
	f := uint64(r.create(1, "f", 0o644))
	good := func() *wire.Extent { return r.blocks.one(letters(8*k, 'a'))[0] }
	for name, extents := range map[string][]*wire.Extent{
		"no sums":   {func() *wire.Extent { e := good(); e.Sums = nil; return e }()},
		"unaligned": {func() *wire.Extent { e := good(); e.At++; return e }()},
		"twice":     func() []*wire.Extent { e := good(); return []*wire.Extent{e, e} }(),
		"zeros":     {{Length: 9}},
		"huge":      {func() *wire.Extent { e := good(); e.Length = 1 << 63; return e }()},
	} {
		for _, op := range []any{
			&wire.Write{Ino: f, Extents: extents},
			&wire.Put{Target: &wire.Target{Ino: f}, Key: "q", Records: []*wire.NewRecord{{Extents: extents}}},
			&wire.Update{Target: &wire.Target{Ino: f}, Key: "q", Record: &wire.NewRecord{Extents: extents}},
			tx(&wire.Put{Target: &wire.Target{Ino: f}, Key: "q", Records: []*wire.NewRecord{{Extents: extents}}}),
		} {
			_, err := r.try(root, op)
			require.ErrorIs(t, err, gearsfs.ErrInvalid, name)
		}
	}
	_, err := r.try(root, &wire.Write{Ino: f, Data: []byte("x"), Extents: []*wire.Extent{good()}})
	require.ErrorIs(t, err, gearsfs.ErrInvalid)
	r.sound()
	require.Empty(t, r.blocks.live)
}

// TestFormatIsRaised: tables of version 1 become those of this one with the next
// entry; those of a later one are refused.
func TestFormatIsRaised(t *testing.T) {
	r := newRig(t)
	format := func(f uint32) {
		row := proto.CloneOf(&r.m.volume)
		row.Format = f
		value, err := row.MarshalVT()
		require.NoError(t, err)
		r.data.State.Set(persist.VolumeKey(), value)
		require.NoError(t, r.data.State.Commit())
	}
	format(1)
	r.reopen()
	r.do(&wire.Tick{})
	var row wire.VolumeRow
	_, err := readVolumeRow(r.data.State, &row)
	require.NoError(t, err)
	require.EqualValues(t, formatVersion, row.Format)
	format(formatVersion + 1)
	_, err = New(r.data.State, nil)
	require.ErrorIs(t, err, gearsfs.ErrFormat)
}

// TestRowIsFoundAgain: the row that a write found at the beginning of a block is
// remembered, and by the next write it may have become shorter, or another.
func TestRowIsFoundAgain(t *testing.T) {
	r := newBlocksRig(t)
	f := r.create(1, "f", 0o644)
	want := letters(128*k, 'a')
	write := func(pos int, data []byte) {
		r.do(&wire.Write{Ino: uint64(f), Pos: uint64(pos), Extents: r.blocks.one(data)})
		want = append(want, make([]byte, max(0, pos+len(data)-len(want)))...)
		copy(want[pos:], data)
		require.Equal(t, want, r.read(f, 0, len(want)+1))
		r.sound()
	}
	truncate := func(size int) {
		r.do(&wire.SetAttr{Ino: uint64(f), Size: ptr(uint64(size))})
		want = want[:size]
	}
	write(0, want)
	write(128*k, letters(128*k, 'z'))
	write(8*k, letters(4*k, 'b'))
	write(126*k, letters(4*k, 'y')) // over its end, into the next row
	truncate(10 * k)
	write(8*k, letters(4*k, 'c')) // over the end of the row
	write(9*k, letters(k, 'd'))
	truncate(0)
	write(64*k, letters(4*k, 'e')) // a row that begins elsewhere
	truncate(0)
	write(0, letters(128*k, 'f')) // another row at the same position
	write(8*k, letters(4*k, 'g'))
}
