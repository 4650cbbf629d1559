package mount

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm"
)

// capable is a Manager with one file, which may have capabilities.
type capable struct {
	dgm.Manager
	caps  bool
	ctime time.Time
	asked int
	gate  chan struct{} // answers wait for this; nil for at once
}

func (m *capable) Write(context.Context, gearsfs.Ino, gearsfs.Pos, []byte) (gearsfs.Attr, error) {
	m.ctime = m.ctime.Add(time.Second)
	return gearsfs.Attr{Ino: lockedIno, Ctime: m.ctime}, nil
}

func (m *capable) GetXattr(context.Context, gearsfs.Ino, string) ([]byte, error) {
	m.asked++
	caps := m.caps
	if m.gate != nil {
		<-m.gate
	}
	if !caps {
		return nil, gearsfs.ErrNoAttr
	}
	return []byte("some"), nil
}

func (m *capable) RemoveXattr(context.Context, gearsfs.Ino, string) error {
	m.caps = false
	return nil
}

// What a mount remembers of a file's capabilities ends with whatever may have given it
// some: else a write would leave them to a file with other bytes.
func TestCapabilitiesAreRemembered(t *testing.T) {
	begin := func(t *testing.T) (*capable, worker, func()) {
		m := &capable{ctime: time.Unix(1000, 0)}
		w := newWorker(t, m, newKeeper(t))
		w.inodes.open(&gearsfs.Attr{Ino: lockedIno, Ctime: m.ctime}, false)
		w.opened(2, &file{ino: lockedIno})
		write := func() {
			in := &fuse.WriteIn{InHeader: fuse.InHeader{Unique: 4, NodeId: lockedIno}, Fh: w.fh}
			_, st := w.Write(nil, in, []byte("x"))
			require.Equal(t, fuse.OK, st)
		}
		return m, w, write
	}
	for name, give := range map[string]func(*worker, *capable){
		"by others":                          func(w *worker, _ *capable) { w.changed([]gearsfs.Change{{Ino: lockedIno}}) },
		"by others, of whom nobody has told": func(w *worker, _ *capable) { w.changedAll() },
		"by others, and then it is opened": func(w *worker, m *capable) {
			w.inodes.open(&gearsfs.Attr{Ino: lockedIno, Ctime: m.ctime.Add(time.Nanosecond)}, false)
		},
	} {
		t.Run(name, func(t *testing.T) {
			m, w, write := begin(t)
			write()
			write()
			require.Equal(t, 1, m.asked, "it is remembered")
			w.inodes.open(&gearsfs.Attr{Ino: lockedIno, Ctime: m.ctime}, false)
			w.changed([]gearsfs.Change{{Ino: lockedIno + 1}, {Ino: lockedIno, Data: true}})
			write()
			require.Equal(t, 1, m.asked, "so it is where nothing was given")
			m.caps = true
			give(&w, m)
			write()
			assert.False(t, m.caps)
		})
	}
	t.Run("while the volume is asked", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			m, w, write := begin(t)
			m.gate = make(chan struct{})
			go write()
			synctest.Wait()
			m.caps = true
			w.changed([]gearsfs.Change{{Ino: lockedIno}})
			close(m.gate)
			synctest.Wait()
			write()
			assert.False(t, m.caps)
		})
	})
}
