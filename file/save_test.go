package file

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/wire"
)

// save is a write and attributes of the file that it is to.
func (p *player) save() op {
	o := p.writeBytes()
	write, ok := o.op.(*wire.Write)
	if !ok {
		return o
	}
	n := p.model.inodes[gearsfs.Ino(write.Ino)]
	mode, uid, mtime := uint32(p.rng.IntN(0o1000)), p.rng.Uint32N(5), 1+p.rng.Uint64N(3)
	written := o.done
	o.op = &wire.Save{Write: write, Set: &wire.SetAttr{Ino: write.Ino, Mode: &mode, Uid: &uid, Mtime: &mtime}}
	if written != nil {
		o.done = func(a *wire.Answer) {
			written(a)
			n.mode, n.uid, n.mtime = n.mode&modeType|mode, uid, mtime
		}
	}
	return o
}

// TestSave: bytes and attributes, or neither.
func TestSave(t *testing.T) {
	r := newRig(t)
	f, other := r.create(1, "f", 0o644), r.create(1, "other", 0o644)
	r.do(&wire.Write{Ino: uint64(f), Data: []byte("before")})
	mode, mtime, size := uint32(0o4750), uint64(7), uint64(1)
	write := func(data string) *wire.Write { return &wire.Write{Ino: uint64(f), Data: []byte(data)} }
	set := &wire.SetAttr{Ino: uint64(f), Mode: &mode, Mtime: &mtime}

	before := r.attr(f)
	for _, refused := range []struct {
		name string
		by   gearsfs.Caller
		op   *wire.Save
		want error
	}{
		{"the attributes are another's to set", bob, &wire.Save{Write: write("x"), Set: set}, gearsfs.ErrPermission},
		{"the write is too far", root, &wire.Save{Write: &wire.Write{Ino: uint64(f), Pos: 1<<63 - 1, Data: []byte("x")}, Set: set}, gearsfs.ErrTooBig},
		{"of two files", root, &wire.Save{Write: &wire.Write{Ino: uint64(other), Data: []byte("x")}, Set: set}, gearsfs.ErrInvalid},
		{"with a size", root, &wire.Save{Write: write("x"), Set: &wire.SetAttr{Ino: uint64(f), Size: &size}}, gearsfs.ErrInvalid},
		{"no write", root, &wire.Save{Set: set}, gearsfs.ErrInvalid},
		{"no attributes", root, &wire.Save{Write: write("x")}, gearsfs.ErrStale},
		{"empty", root, &wire.Save{}, gearsfs.ErrStale},
	} {
		_, err := r.try(refused.by, refused.op)
		require.ErrorIs(t, err, refused.want, refused.name)
		require.Equal(t, before, r.attr(f), refused.name)
		require.Equal(t, "before", string(r.read(f, 0, 100)), refused.name)
		require.Zero(t, r.attr(other).Size, refused.name)
	}
	r.do(&wire.Save{Write: write("after!!"), Set: set})
	require.Equal(t, "after!!", string(r.read(f, 0, 100)))
	a := r.attr(f)
	require.EqualValues(t, modeFile|0o4750, a.Mode, "set behind the write, that would have taken it away")
	require.EqualValues(t, 7, a.Mtime.UnixNano())
	require.Equal(t, before.Version+1, a.Version)
	r.check()
}
