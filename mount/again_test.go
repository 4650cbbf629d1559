package mount

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm"
	"github.com/gearsfs/gearsfs/mount/journal"
	"github.com/gearsfs/gearsfs/persist"
)

// mortal are processes that serve a mount one after another, each with the node in it.
type mortal struct {
	worker
	t   *testing.T
	dir string
	vol *dgm.Volume
}

func newMortal(t *testing.T) *mortal {
	p := &mortal{t: t, dir: filepath.Join(t.TempDir(), "data")}
	f, err := journal.Create("test")
	require.NoError(t, err)
	t.Cleanup(func() { f.Close() })
	s, err := Succeed(f, nil)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.keeper.journal.Close()) })
	s.keeper.failed = func(err error) { t.Error(err) }
	p.worker = newWorker(t, p.open(s.Lasting()), s.keeper)
	return p
}

// open opens the volume and begins, or goes on with, the mount's session.
func (p *mortal) open(l *dgm.Lasting) dgm.Manager {
	data, err := persist.Open(p.dir, persist.Options{Create: true, Name: "test"})
	require.NoError(p.t, err)
	p.vol, err = dgm.OpenVolume(p.t.Context(), dgm.VolumeConfig{Data: data, Root: gearsfs.Root,
		Fatal: func(err error) { p.t.Errorf("fatal: %v", err) }})
	require.NoError(p.t, err)
	vol := p.vol
	p.t.Cleanup(func() { require.NoError(p.t, vol.Close()) })
	m, err := vol.LocalWith(dgm.RemoteOptions{Client: dgm.Client{Caller: gearsfs.Root}, Lasting: l})
	require.NoError(p.t, err)
	p.t.Cleanup(func() { require.NoError(p.t, m.Close()) })
	return m
}

// dies has the next process go on.
func (p *mortal) dies() {
	require.NoError(p.t, p.vol.Close())
	l := legacyOf(p.t, p.keeper)
	l.heirs++
	p.keeper.heir(l.heirs)
	p.worker = p.worker.next(p.t, p.open(l.lasting(p.keeper)))
}

func (p *mortal) other() dgm.Manager {
	m, err := p.vol.Local(dgm.Client{Caller: gearsfs.Root})
	require.NoError(p.t, err)
	p.t.Cleanup(func() { require.NoError(p.t, m.Close()) })
	return m
}

func (p *mortal) put(data string) {
	_, err := p.m.Put(p.t.Context(), dgm.Put{File: gearsfs.At("/q"), Key: "k", Records: []gearsfs.NewRecord{{Data: []byte(data)}}})
	require.NoError(p.t, err)
}

func (p *mortal) in(unique uint64) *fuse.ReadIn {
	return &fuse.ReadIn{InHeader: p.header(unique, os.Getpid()), Fh: p.fh, Size: 100}
}

func (p *mortal) read(unique uint64, cancel <-chan struct{}) (string, fuse.Status) {
	result, st := p.Read(cancel, p.in(unique), nil)
	if st != fuse.OK {
		return "", st
	}
	data, st := result.Bytes(make([]byte, 100))
	return string(data), st
}

// A read that has leased a record when its process dies is sent again; but another
// read of the descriptor comes first. The record is not lost, and nothing fails.
func TestReadAgainFindsAnother(t *testing.T) {
	const first, second = 4, 6
	begin := func(t *testing.T) *mortal {
		p := newMortal(t)
		attr, err := p.m.Make(t.Context(), gearsfs.RootIno, "q", dgm.Make{Mode: unix.S_IFREG | 0o644})
		require.NoError(t, err)
		p.put("record")
		h := newTaker(place{kind: kindTake, ino: attr.Ino, key: "k"}, true)
		p.opened(2, h)
		c := p.beginOnce(&fuse.InHeader{Unique: first}, nil, nil)
		_, st := h.read(&c.server, nil, p.in(first), nil)
		require.Equal(t, fuse.OK, st)
		p.dies()
		return p
	}
	take := dgm.Take{File: gearsfs.At("/q"), Keys: []gearsfs.Key{"k"}, Max: 1, NoWait: true, Lease: true}

	t.Run("that waits for a record", func(t *testing.T) {
		p := begin(t)
		got := make(chan string, 1)
		go func() {
			data, _ := p.read(second, nil)
			got <- data
		}()
		awaitWait(t, p.other())
		cancelled := make(chan struct{})
		close(cancelled)
		data, st := p.read(first|resent, cancelled)
		assert.Contains(t, []fuse.Status{fuse.EINTR, fuse.OK}, st, "it waits no more, or the other is done")
		assert.Empty(t, data)
		assert.Equal(t, "record", <-got)
	})
	t.Run("that has got one", func(t *testing.T) {
		p := begin(t)
		p.put("next")
		data, st := p.read(second, nil)
		require.Equal(t, fuse.OK, st)
		require.Equal(t, "next", data)
		data, st = p.read(first|resent, nil)
		require.Equal(t, fuse.OK, st)
		require.Empty(t, data, "the end of the other's")
		records, err := p.other().Take(t.Context(), take)
		require.NoError(t, err, "it is back in its place")
		require.Equal(t, "record", string(records[0].Data))
	})
	t.Run("and dies once more", func(t *testing.T) {
		p := begin(t)
		p.put("next")
		_, st := p.read(second, nil)
		require.Equal(t, fuse.OK, st)
		c := p.beginOnce(&fuse.InHeader{Unique: first | resent}, nil, nil)
		_, st = p.handles.get(p.fh).read(&c.server, nil, p.in(first), nil)
		require.Equal(t, fuse.OK, st)
		p.dies()
		data, st := p.read(first|resent, nil)
		require.Equal(t, fuse.OK, st)
		require.Empty(t, data)
		records, err := p.other().Take(t.Context(), take)
		require.NoError(t, err)
		require.Equal(t, "record", string(records[0].Data))
	})
}

// awaitWait returns when somebody waits for a record.
func awaitWait(t *testing.T, m dgm.Manager) {
	t.Helper()
	require.Eventually(t, func() bool {
		waits, err := m.Waits(context.Background())
		return err == nil && len(waits) == 1
	}, time.Minute, 2*time.Millisecond)
}
