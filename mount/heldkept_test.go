package mount

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm"
)

// Runs are what was written, whatever came in which order.
func TestRuns(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	for range 200 {
		var r, other runs
		want, written := make([]byte, 3000), make([]bool, 3000)
		grown := 0
		for i := range 60 {
			data := bytes.Repeat([]byte{byte(i)}, 1+rng.IntN(150))
			pos := rng.IntN(len(want) - len(data))
			n, ok := r.add(gearsfs.Pos(pos), data)
			if !ok {
				var alone runs
				_, fits := alone.add(gearsfs.Pos(pos), data)
				require.True(t, fits)
				require.True(t, r.overlap(alone) && alone.overlap(r), "only what several runs have is refused")
				continue
			}
			grown += n
			copy(want[pos:], data)
			for j := range data {
				written[pos+j] = true
			}
		}
		end := 0
		for i, one := range r {
			require.GreaterOrEqual(t, int(one.pos), end, "in order, and apart")
			for j := end; j < int(one.pos); j++ {
				require.False(t, written[j])
			}
			require.Equal(t, want[one.pos:one.end()], one.data)
			if end = int(one.end()); i%2 == 0 {
				_, ok := other.add(one.end(), make([]byte, 1))
				require.True(t, ok)
			}
		}
		require.Equal(t, gearsfs.Pos(end), r.end())
		require.Equal(t, grown, r.bytes())
		for _, one := range other {
			require.Equal(t, int(one.pos) < len(written) && written[one.pos], runs{one}.overlap(r))
		}
	}
}

// made makes a file and opens it.
func (p *mortal) made(unique uint64, in string) gearsfs.Ino {
	p.t.Helper()
	var out fuse.CreateOut
	h := p.header(unique, os.Getpid())
	h.NodeId = uint64(gearsfs.RootIno)
	st := p.Create(nil, &fuse.CreateIn{InHeader: h, Flags: unix.O_RDWR | unix.O_CREAT | unix.O_EXCL, Mode: unix.S_IFREG | 0o600}, in, &out)
	require.Equal(p.t, fuse.OK, st)
	p.fh = out.Fh
	return gearsfs.Ino(out.NodeId)
}

func (p *mortal) of(unique uint64, ino gearsfs.Ino, opcode uint32) fuse.InHeader {
	h := p.header(unique, os.Getpid())
	h.NodeId, h.Opcode = uint64(ino), opcode
	return h
}

func (p *mortal) writeTo(unique uint64, ino gearsfs.Ino, off uint64, data string) fuse.Status {
	n, st := p.Write(nil, &fuse.WriteIn{InHeader: p.of(unique, ino, opWrite), Fh: p.fh, Offset: off}, []byte(data))
	if st == fuse.OK {
		require.EqualValues(p.t, len(data), n)
	}
	return st
}

func (p *mortal) chmod(unique uint64, ino gearsfs.Ino, mode uint32) {
	p.t.Helper()
	var out fuse.AttrOut
	in := fuse.SetAttrInCommon{InHeader: p.of(unique, ino, opSetAttr), Valid: fuse.FATTR_MODE, Mode: mode}
	require.Equal(p.t, fuse.OK, p.SetAttr(nil, &fuse.SetAttrIn{SetAttrInCommon: in}, &out))
	require.Equal(p.t, mode, out.Mode&0o7777)
}

func (p *mortal) closes(unique uint64, ino gearsfs.Ino) fuse.Status {
	return p.Flush(nil, &fuse.FlushIn{InHeader: p.of(unique, ino, opFlush), Fh: p.fh})
}

// has is what the volume has of a file.
func (p *mortal) has(ino gearsfs.Ino) string {
	data, err := p.other().Read(p.t.Context(), ino, 0, 1<<20, nil)
	require.NoError(p.t, err)
	return string(data)
}

// What a process held is sent by the next, however often its journal is compacted and
// however many die.
func TestHeldIsHandedOn(t *testing.T) {
	for name, compact := range map[string]bool{"as it is": false, "compacted": true} {
		t.Run(name, func(t *testing.T) {
			p := newMortal(t)
			ino := p.made(2, "f")
			for unique, at := range []uint64{3, 0, 6, 4} {
				require.Equal(t, fuse.OK, p.writeTo(10+uint64(unique), ino, at, fmt.Sprint(at, "-")))
			}
			p.chmod(20, ino, 0o640)
			require.Empty(t, p.has(ino))
			if compact {
				p.keeper.mu.Lock()
				require.NoError(t, p.keeper.compactLocked())
				p.keeper.mu.Unlock()
			}
			p.dies()
			require.Equal(t, fuse.OK, p.writeTo(13|resent, ino, 4, "4-"), "its answer was lost")
			require.Equal(t, fuse.OK, p.closes(22, ino))
			require.Equal(t, "0-\x0034-6-", p.has(ino))
			attr, err := p.other().GetAttr(t.Context(), ino)
			require.NoError(t, err)
			require.EqualValues(t, 0o640, attr.Mode&0o7777)
			require.Empty(t, legacyOf(t, p.keeper).flights)
			require.Empty(t, p.held.files)

			_, err = p.other().Write(t.Context(), ino, 0, []byte("another"))
			require.NoError(t, err)
			p.dies()
			require.NoError(t, p.settleAll(t.Context()))
			require.Equal(t, "another", p.has(ino)[:7], "it is not sent again")
		})
	}
}

// What is written by a handle that a process before has opened is held, from the second
// write on: the first shows whether the file takes writes.
func TestHeldByInheritedHandle(t *testing.T) {
	p := newMortal(t)
	ino := p.made(2, "f")
	require.Equal(t, fuse.OK, p.writeTo(4, ino, 0, "0"))
	for life := range 3 {
		p.dies()
		at, u := uint64(1+3*life), uint64(100*(1+life))
		require.Equal(t, fuse.OK, p.writeTo(u, ino, at, "a"))
		sent := p.has(ino)
		require.Len(t, sent, int(at)+1, "the first goes through")
		require.Equal(t, fuse.OK, p.writeTo(u+2, ino, at+1, "b"))
		require.Equal(t, fuse.OK, p.writeTo(u+4, ino, at+2, "c"))
		require.Equal(t, sent, p.has(ino), "what follows is held")
	}
	require.Equal(t, fuse.OK, p.closes(1000, ino))
	require.Equal(t, "0abcabcabc", p.has(ino))
	p.Release(nil, &fuse.ReleaseIn{InHeader: p.of(1002, ino, opRelease), Fh: p.fh})
	require.Empty(t, p.held.files)
}

// A write that the process before may have sent is sent again under the number that it
// had, and not held: what another has written since stays.
func TestHeldIsNotSentTwice(t *testing.T) {
	p := newMortal(t)
	ino := p.made(2, "f")
	p.dies()
	require.Equal(t, fuse.OK, p.writeTo(4, ino, 0, "first"))
	c := p.beginOnce(&fuse.InHeader{Unique: 6}, nil, nil)
	_, err := c.m.Write(c.ctx, ino, 0, []byte("second"))
	require.NoError(t, err) // and it dies before it answers
	_, err = p.other().Write(t.Context(), ino, 0, []byte("SECOND"))
	require.NoError(t, err)
	p.dies()
	require.Equal(t, fuse.OK, p.writeTo(8, ino, 6, "-"), "so that it may hold")
	require.Equal(t, fuse.OK, p.writeTo(6|resent, ino, 0, "second"))
	require.Equal(t, fuse.OK, p.closes(10, ino))
	require.Equal(t, "SECOND-", p.has(ino))
}

// cutOff is a Manager that makes the writes to one place alone, and whose answer comes
// too late.
type cutOff struct {
	dgm.Manager
	made gearsfs.Pos
}

func (c cutOff) Write(ctx context.Context, ino gearsfs.Ino, pos gearsfs.Pos, data []byte) (gearsfs.Attr, error) {
	if pos == c.made {
		if _, err := c.Manager.Write(context.WithoutCancel(ctx), ino, pos, data); err != nil {
			return gearsfs.Attr{}, err
		}
	}
	return gearsfs.Attr{}, gearsfs.ErrClosed
}

// Each run of a flight that was under way when its process died is made once, whichever
// of them had been: what another has written since stays.
func TestHeldIsMadeOnce(t *testing.T) {
	for name, c := range map[string]struct {
		made        gearsfs.Pos
		before      string
		other, then string
	}{
		"the first run":  {0, "first", "FIRST", "FIRST\x00\x00\x00\x00\x00second"},
		"the second run": {10, "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00second", "SECOND", "first\x00\x00\x00\x00\x00SECOND"},
	} {
		t.Run(name, func(t *testing.T) {
			p := newMortal(t)
			ino := p.made(2, "f")
			require.Equal(t, fuse.OK, p.writeTo(4, ino, 10, "second"))
			require.Equal(t, fuse.OK, p.writeTo(6, ino, 0, "first"))
			p.m = cutOff{p.m, c.made}
			require.NoError(t, p.settleAll(t.Context()))
			require.Equal(t, c.before, p.has(ino), "the other is to come")
			_, err := p.other().Write(t.Context(), ino, c.made, []byte(c.other))
			require.NoError(t, err)
			p.dies()
			require.NoError(t, p.settleAll(t.Context()))
			require.Equal(t, c.then, p.has(ino))
			l := legacyOf(t, p.keeper)
			require.Empty(t, l.flights)
			for unique := range l.requests {
				require.False(t, isFlight(unique), "it is forgotten")
			}
		})
	}
}

// noRoom is a Manager that takes no writes any more.
type noRoom struct{ dgm.Manager }

func (noRoom) Write(context.Context, gearsfs.Ino, gearsfs.Pos, []byte) (gearsfs.Attr, error) {
	return gearsfs.Attr{}, gearsfs.ErrNoSpace
}

// What became of a flight is told by the next close, once, though by another process.
func TestHeldFailureIsHandedOn(t *testing.T) {
	p := newMortal(t)
	ino := p.made(2, "f")
	require.Equal(t, fuse.OK, p.writeTo(4, ino, 0, "lost"))
	p.m = noRoom{p.m}
	require.NoError(t, p.settleAll(t.Context()))
	for range 2 {
		p.dies()
		p.keeper.mu.Lock()
		require.NoError(t, p.keeper.compactLocked())
		p.keeper.mu.Unlock()
	}
	require.Equal(t, fuse.Status(unix.ENOSPC), p.closes(6, ino))
	p.dies()
	require.Equal(t, fuse.OK, p.closes(8, ino))
	require.Empty(t, p.has(ino))
}

// scarce is a Manager whose volume is nearly full.
type scarce struct{ dgm.Manager }

func (scarce) StatFS(context.Context, gearsfs.Ino) (gearsfs.Usage, error) {
	return gearsfs.Usage{BytesAvail: roomMin - 1}, nil
}

// Where there is little room each write is told at once of what is wrong.
func TestHeldWhereThereIsRoom(t *testing.T) {
	p := newMortal(t)
	p.m = scarce{p.m}
	ino := p.made(2, "f")
	require.Equal(t, fuse.OK, p.writeTo(4, ino, 0, "sent"))
	require.Equal(t, "sent", p.has(ino))
}
