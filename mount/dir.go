package mount

import (
	"context"
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/gearsfs/gearsfs"
)

// directory is an open directory. A cookie is 1 for ".", 2 for "..", and then
// counts the names that this handle has shown; it names the place behind its
// entry. The cookie of a name stays the name's until the handle is rewound,
// so that seeking back and forth in a directory that changes repeats nothing:
// a name that appears in a part that was shown is left out, as POSIX allows.
type directory struct {
	ino, parent gearsfs.Ino
	list        lister

	mu    sync.Mutex
	shown []string
}

// lister returns up to max entries in the order of their names, beginning after
// the name after. Where it looks up, its entries' attributes may be told.
type lister func(ctx context.Context, after string, max int) (entries []gearsfs.Entry, err error)

var _ handle = (*directory)(nil)

func (d *directory) read(*server, <-chan struct{}, *fuse.ReadIn, []byte) ([]byte, fuse.Status) {
	return nil, fuse.EISDIR
}

func (d *directory) write(*server, <-chan struct{}, *fuse.WriteIn, []byte) (uint32, fuse.Status) {
	return 0, fuse.EISDIR
}

func (d *directory) flush(*server, *fuse.FlushIn) fuse.Status { return fuse.OK }

func (d *directory) release(*server) {}

func (s *server) OpenDir(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	if isControl(in.NodeId) {
		return s.openControlDir(in, out)
	}
	ino := gearsfs.Ino(in.NodeId)
	parent, err := s.m.Parent(s.ctx, ino)
	if err != nil {
		return gone(err)
	}
	out.Fh = s.handles.add(&directory{ino: ino, parent: parent, list: s.listerOf(ino)})
	return fuse.OK
}

// listerOf lists any directory.
func (s *server) listerOf(dir gearsfs.Ino) lister {
	if isControl(uint64(dir)) {
		p, _ := s.control.get(uint64(dir))
		return s.placeLister(p)
	}
	m := s.m
	return func(ctx context.Context, after string, max int) ([]gearsfs.Entry, error) {
		return m.ReadDir(ctx, dir, after, max)
	}
}

func (s *server) ReleaseDir(in *fuse.ReleaseIn) { s.release(in.Fh) }

func (s *server) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	const header = 24
	return s.readDir(in, header, func(e gearsfs.Entry, off uint64, _ moment) bool {
		return out.AddDirEntry(fuse.DirEntry{Name: e.Name, Ino: uint64(e.Attr.Ino), Mode: e.Attr.Mode, Off: off})
	})
}

func (s *server) ReadDirPlus(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	const header = 24 + 128
	looksUp := !isControl(in.NodeId)
	return s.readDir(in, header, func(e gearsfs.Entry, off uint64, at moment) bool {
		entry := out.AddDirLookupEntry(fuse.DirEntry{Name: e.Name, Ino: uint64(e.Attr.Ino), Mode: e.Attr.Mode, Off: off})
		if entry == nil {
			return false
		}
		// An entry that is left zero is one that the kernel looks up itself.
		if off > 2 && looksUp {
			s.entry(entry, e.Attr, gearsfs.Ino(in.NodeId), e.Name, at)
		}
		return true
	})
}

// readDir adds entries from the cookie in.Offset on until add refuses one;
// entryBytes is the least that one takes of in.Size bytes.
func (s *server) readDir(in *fuse.ReadIn, entryBytes int, add func(gearsfs.Entry, uint64, moment) bool) fuse.Status {
	d, ok := s.handles.get(in.Fh).(*directory)
	if !ok {
		return fuse.EBADF
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	before := len(d.shown)
	if in.Offset == 0 {
		before = 0
	}
	defer func() {
		if len(d.shown) > before || in.Offset == 0 {
			s.effect(shownEffect(in.Fh, before, d.shown[before:]))
		}
	}()
	at := s.believe.now()
	off := in.Offset
	for ; off < 2; off++ {
		dot := gearsfs.Entry{Name: "..", Attr: gearsfs.Attr{Ino: d.parent, Mode: unix.S_IFDIR}}
		if off == 0 {
			d.shown = nil
			dot = gearsfs.Entry{Name: ".", Attr: gearsfs.Attr{Ino: d.ino, Mode: unix.S_IFDIR}}
		}
		if !add(dot, off+1, at) {
			return fuse.OK
		}
	}
	next := int(off - 2)
	if next > len(d.shown) {
		return fuse.EINVAL
	}
	after := ""
	if next > 0 {
		after = d.shown[next-1]
	}
	// Attributes must be as of this request, so nothing is read ahead of it;
	// names take 24 bytes or so.
	for room := int(in.Size); room > 0; {
		limit := max(room/(entryBytes+24), 8)
		entries, err := d.list(s.ctx, after, limit)
		if err != nil {
			return status(err)
		}
		for _, e := range entries {
			after = e.Name
			for next < len(d.shown) && d.shown[next] < e.Name {
				next++ // it is gone, its cookie stays its
			}
			if next < len(d.shown) && d.shown[next] > e.Name {
				continue
			}
			if !add(e, uint64(next)+3, at) {
				return fuse.OK
			}
			if next == len(d.shown) {
				d.shown = append(d.shown, e.Name)
			}
			next++
			room -= entryBytes + len(e.Name)
		}
		if len(entries) < limit {
			break
		}
	}
	return fuse.OK
}
