package file

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/persist"
	"github.com/gearsfs/gearsfs/stream"
	"github.com/gearsfs/gearsfs/wire"
)

// records returns the places, lengths and kinds of a data stream's rows.
type rowOf struct {
	pos, size uint64
	block     bool
}

func (r *rig) rows(ino gearsfs.Ino) []rowOf {
	var rows []rowOf
	view := r.data.State.View()
	defer view.Close()
	lo, hi := persist.StreamRange(persist.TableRecord, ino, gearsfs.DataKey)
	require.NoError(r.t, scan(view, lo, hi, func(key, value []byte) error {
		at, err := persist.ParsePlace(key)
		require.NoError(r.t, err)
		var row wire.RecordRow
		require.NoError(r.t, row.UnmarshalVT(value))
		rows = append(rows, rowOf{uint64(at.Pos), uint64(len(row.Data)) + stream.LengthOf(ExtentsOf(row.Extents)), row.Block})
		return nil
	}))
	return rows
}

func (r *rig) write(ino gearsfs.Ino, pos uint64, data string) error {
	_, err := r.try(root, &wire.Write{Ino: uint64(ino), Pos: pos, Data: []byte(data)})
	return err
}

func (r *rig) put(ino gearsfs.Ino, data ...string) {
	r.t.Helper()
	op := &wire.Put{Target: &wire.Target{Ino: uint64(ino)}, Key: "data"}
	for _, d := range data {
		op.Records = append(op.Records, &wire.NewRecord{Data: []byte(d)})
	}
	r.do(op)
}

func (r *rig) take(ino gearsfs.Ino, n uint32) {
	r.t.Helper()
	r.do(&wire.Take{Target: &wire.Target{Ino: uint64(ino)}, Keys: []string{"data"}, Max: n, Force: true})
}

const k = 1 << 10

// TestBlockRows: which rows a write makes.
func TestBlockRows(t *testing.T) {
	const k = blockBytes / 32
	zeros := func(n int) string { return string(make([]byte, n)) }
	for _, c := range []struct {
		name string
		do   func(r *rig, f gearsfs.Ino)
		want []rowOf
	}{
		{"aligned blocks", func(r *rig, f gearsfs.Ino) {
			require.NoError(t, r.write(f, 0, zeros(100*k)))
		}, []rowOf{{0, 32 * k, true}, {32 * k, 32 * k, true}, {64 * k, 32 * k, true}, {96 * k, 4 * k, true}}},
		{"small writes grow a row", func(r *rig, f gearsfs.Ino) {
			for i := range 9 {
				require.NoError(t, r.write(f, uint64(i*4*k), zeros(4*k)))
			}
		}, []rowOf{{0, 32 * k, true}, {32 * k, 4 * k, true}}},
		{"a gap begins at the block's start", func(r *rig, f gearsfs.Ino) {
			require.NoError(t, r.write(f, 70*k, "x"))
		}, []rowOf{{64 * k, 6*k + 1, true}}},
		{"a gap in the last block is filled", func(r *rig, f gearsfs.Ino) {
			require.NoError(t, r.write(f, 0, "x"))
			require.NoError(t, r.write(f, 10, "x"))
		}, []rowOf{{0, 11, true}}},
		{"behind a put record", func(r *rig, f gearsfs.Ino) {
			r.put(f, "hello")
			require.NoError(t, r.write(f, 8, "x"))
			require.NoError(t, r.write(f, 9, "x"))
		}, []rowOf{{0, 5, false}, {5, 5, true}}},
		{"across records keeps their boundaries", func(r *rig, f gearsfs.Ino) {
			r.put(f, "hello", "", "world")
			require.NoError(t, r.write(f, 3, "LOWORLD+"))
		}, []rowOf{{0, 5, false}, {5, 0, false}, {5, 5, false}, {10, 1, true}}},
		{"between records", func(r *rig, f gearsfs.Ino) {
			r.put(f, "hello")
			size := uint64(20)
			r.do(&wire.SetAttr{Ino: uint64(f), Size: &size})
			r.put(f, "world")
			require.NoError(t, r.write(f, 10, "x"))
			require.NoError(t, r.write(f, 12, zeros(10)))
		}, []rowOf{{0, 5, false}, {5, 15, true}, {20, 5, false}}},
		{"an empty record stops growth", func(r *rig, f gearsfs.Ino) {
			require.NoError(t, r.write(f, 0, "12345"))
			r.put(f, "")
			require.NoError(t, r.write(f, 5, "67890"))
		}, []rowOf{{0, 5, true}, {5, 0, false}, {5, 5, true}}},
		{"begins at the cursor", func(r *rig, f gearsfs.Ino) {
			r.put(f, "hello")
			r.take(f, 1)
			require.NoError(t, r.write(f, 10, "x"))
		}, []rowOf{{0, 5, false}, {5, 6, true}}},
		{"what was handed out does not grow", func(r *rig, f gearsfs.Ino) {
			require.NoError(t, r.write(f, 0, "12345"))
			r.entry(by(gearsfs.SessionID{Minted: rigStart}, as(root, &wire.Take{
				Target: &wire.Target{Ino: uint64(f)}, Keys: []string{"data"}, Lease: true, Force: true})))
			require.NoError(t, r.write(f, 3, "4567"))
		}, []rowOf{{0, 5, true}, {5, 2, true}}},
		{"punching removes whole blocks", func(r *rig, f gearsfs.Ino) {
			require.NoError(t, r.write(f, 0, zeros(128*k)))
			r.do(&wire.Allocate{Ino: uint64(f), Pos: 10 * k, Length: 100 * k, Mode: allocPunchHole | allocKeepSize})
		}, []rowOf{{0, 32 * k, true}, {96 * k, 32 * k, true}}},
		{"truncating cuts", func(r *rig, f gearsfs.Ino) {
			require.NoError(t, r.write(f, 0, zeros(128*k)))
			size := uint64(40 * k)
			r.do(&wire.SetAttr{Ino: uint64(f), Size: &size})
			require.NoError(t, r.write(f, 41*k, "x"))
		}, []rowOf{{0, 32 * k, true}, {32 * k, 9*k + 1, true}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t)
			f := r.create(1, "f", 0o644)
			c.do(r, f)
			require.Equal(t, c.want, r.rows(f))
			r.check()
		})
	}
}

func TestWhatWasTakenIsGone(t *testing.T) {
	r := newRig(t)
	f := r.create(1, "f", 0o644)
	r.put(f, "aaaa", "bbbb", "cccc", "dddd")
	lease := gearsfs.SessionID{Minted: rigStart}
	r.take(f, 1)
	a := r.entry(by(lease, as(root, &wire.Take{Target: &wire.Target{Ino: uint64(f)}, Keys: []string{"data"}, Lease: true})))[0]
	r.take(f, 1)
	require.EqualValues(t, 4, r.attr(f).Head)
	require.EqualValues(t, 12, r.attr(f).Size)
	require.True(t, r.attr(f).Taken)
	require.Equal(t, "\x00\x00\x00\x00bbbb\x00\x00\x00\x00dddd", string(r.read(f, 0, 99)))

	require.ErrorIs(t, r.write(f, 0, "x"), gearsfs.ErrIO, "before the head")
	require.ErrorIs(t, r.write(f, 6, "xxx"), gearsfs.ErrIO, "into a taken record")
	require.NoError(t, r.write(f, 6, "BB"), "into a leased one")
	require.NoError(t, r.write(f, 12, "DDDDEE"))
	require.Equal(t, "bbBB\x00\x00\x00\x00DDDDEE", string(r.read(f, 4, 99)))
	r.check()

	// Offsets of a handle that was opened at 0 go on meaning the same bytes.
	size, base := uint64(14), uint64(0)
	r.do(&wire.SetAttr{Ino: uint64(f), Size: &size, Base: &base})
	require.EqualValues(t, 10, r.attr(f).Size)
	require.Equal(t, "bbBB\x00\x00\x00\x00DD", string(r.read(f, 4, 99)))

	// Truncating to nothing ends the lease.
	size = 0
	r.do(&wire.SetAttr{Ino: uint64(f), Size: &size})
	require.Zero(t, r.attr(f).Size)
	rec := a.Records[0]
	settled := r.entry(by(lease, as(root, &wire.Settle{Receipts: []*wire.Receipt{
		{Ino: uint64(f), Key: "data", Pos: rec.Pos, Seq: rec.Seq, Fence: rec.Fence}}})))[0]
	require.ErrorIs(t, answerError(settled), gearsfs.ErrGone)
	r.check()
}

func TestSealedBytesStay(t *testing.T) {
	r := newRig(t)
	f := r.create(1, "f", 0o644)
	r.put(f, "aaaa")
	r.do(&wire.Put{Target: &wire.Target{Ino: uint64(f)}, Key: "data", Seal: true})
	size := uint64(0)
	for _, op := range []any{
		&wire.Write{Ino: uint64(f), Data: []byte("x")},
		&wire.SetAttr{Ino: uint64(f), Size: &size},
		&wire.Allocate{Ino: uint64(f), Length: 10},
	} {
		_, err := r.try(root, op)
		require.ErrorIs(t, err, gearsfs.ErrSealed)
	}
	require.Equal(t, "aaaa", string(r.read(f, 0, 10)))
}

func TestSeekAndSparse(t *testing.T) {
	r := newRig(t)
	f := r.create(1, "f", 0o644)
	seek := func(pos gearsfs.Pos, hole bool) any {
		at, err := r.m.Seek(f, pos, hole, root)
		if err != nil {
			require.ErrorIs(t, err, gearsfs.ErrRange)
			return "ENXIO"
		}
		return int(at)
	}
	require.Equal(t, "ENXIO", seek(0, false))
	size := uint64(200 * k)
	r.do(&wire.SetAttr{Ino: uint64(f), Size: &size})
	require.Equal(t, "ENXIO", seek(0, false))
	require.Equal(t, 0, seek(0, true))
	require.Zero(t, r.attr(f).Blocks)
	require.NoError(t, r.write(f, 64*k, string(bytes.Repeat([]byte("x"), 32*k))))
	require.EqualValues(t, 64, r.attr(f).Blocks)
	require.Equal(t, 64*k, seek(0, false))
	require.Equal(t, 65*k, seek(65*k, false))
	require.Equal(t, 96*k, seek(65*k, true))
	require.Equal(t, "ENXIO", seek(96*k, false))
	require.Equal(t, 97*k, seek(97*k, true))
	require.Equal(t, "ENXIO", seek(200*k, true))
	got := r.read(f, 60*k, 40*k)
	require.Equal(t, append(append(make([]byte, 4*k), bytes.Repeat([]byte("x"), 32*k)...), make([]byte, 4*k)...), got)

	g := r.create(1, "g", 0o644)
	require.NoError(t, r.write(g, 0, "hello"))
	at, err := r.m.Seek(g, 1, true, root)
	require.NoError(t, err)
	require.EqualValues(t, 5, at)
	r.do(&wire.Allocate{Ino: uint64(g), Pos: 3, Length: 4})
	require.Equal(t, "hello\x00\x00", string(r.read(g, 0, 10)))
	r.do(&wire.Allocate{Ino: uint64(g), Pos: 100, Length: 4, Mode: allocKeepSize})
	require.EqualValues(t, 7, r.attr(g).Size)
	r.do(&wire.Allocate{Ino: uint64(g), Pos: 1, Length: 8, Mode: allocZeroRange})
	require.Equal(t, "h\x00\x00\x00\x00\x00\x00\x00\x00", string(r.read(g, 0, 10)))
	r.check()
}

// TestBytesWakeTakers: what waits for a stream is told of written bytes.
func TestBytesWakeTakers(t *testing.T) {
	r := newRig(t)
	f := r.create(1, "f", 0o644)
	require.NoError(t, r.write(f, 0, "x"))
	require.Equal(t, []Touched{{Ino: f, Key: "data", Ready: true, Appended: true}}, r.seen.touched)
	v := r.attr(f).Version
	require.NoError(t, r.write(f, 0, "y"))
	require.Equal(t, []Touched{{Ino: f, Key: "data", Ready: true}}, r.seen.touched)
	require.Greater(t, r.attr(f).Version, v)
	require.Contains(t, r.seen.changed, Changed{Change: gearsfs.Change{Ino: f, Data: true}})
	size := uint64(0)
	r.do(&wire.SetAttr{Ino: uint64(f), Size: &size})
	require.Equal(t, []Touched{{Ino: f, Key: "data", Room: true}}, r.seen.touched)

	_, err := r.try(root, &wire.Take{Target: &wire.Target{Ino: uint64(f)}, Keys: []string{"data"}, Max: 1})
	require.ErrorIs(t, err, gearsfs.ErrEmpty)
	require.NoError(t, r.write(f, 0, "x"))
	_, err = r.try(root, &wire.Take{Target: &wire.Target{Ino: uint64(f)}, Keys: []string{"data"}, Max: 1})
	require.ErrorIs(t, err, gearsfs.ErrBlocks)
	r.do(&wire.SetAttr{Ino: uint64(f), Size: &size})
	r.put(f, "z")
	r.do(&wire.Take{Target: &wire.Target{Ino: uint64(f)}, Keys: []string{"data"}, Max: 1})
}

// TestVersionCountsCommands: a mount tells its own changes from others' by it.
func TestVersionCountsCommands(t *testing.T) {
	r := newRig(t)
	f := r.create(gearsfs.RootIno, "f", 0o644)
	version := r.attr(f).Version
	step := func(what string, op any) {
		r.do(op)
		require.Equal(t, version+1, r.attr(f).Version, what)
		version++
	}
	step("a write of several blocks", &wire.Write{Ino: uint64(f), Data: make([]byte, 5*blockBytes)})
	step("one over them", &wire.Write{Ino: uint64(f), Pos: 100, Data: make([]byte, 3*blockBytes)})
	size := uint64(blockBytes + 7)
	step("a truncation", &wire.SetAttr{Ino: uint64(f), Size: &size})
}
