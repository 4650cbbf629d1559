package mount

import (
	"context"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm"
)

// putter is an open `put`. While its descriptor appends, each write is a
// record, committed by that write. Otherwise what is written until the opener
// closes a descriptor is one record, committed by that close:
//
//	          write                 flush by the opener
//	empty ─────────────► collecting ───────────────────► empty
//	                     │        │  flush by the opener,
//	     write past the  │        │  dying by a signal
//	     largest record  ▼        ▼
//	                   refused   dead
//
// A flush by another process, as of a child that inherited the descriptor,
// changes nothing. What is left at the last close, because a child wrote on
// after its opener was gone, is committed too.
type putter struct {
	at        place
	opener    uint32 // process; 0 where it can't be known
	owner     fuse.Owner
	appendMax int

	// A write, and a flush by the opener, has its turn until its entry is in the
	// journal: else one of the next record could be there before the commit of this
	// one, which done again would find the wrong bytes, or none.
	turn turn

	mu      sync.Mutex // not held over a call to the Manager
	round   uint64     // raised when what is in buf is committed or dropped
	buf     []byte
	begun   bool // a write came since the last commit
	refused bool // the record that is being written is too large
	dead    bool // the opener died by a signal: nothing more is committed
	dying   bool // whoever closed last died by a signal
}

var _ handle = (*putter)(nil)

// newPutter returns the handle of a `put` that in opens. The kernel cuts a
// large write into requests, and one that is not aligned in memory up to a
// page earlier: so an append that might be a part is refused, never split.
func newPutter(p place, in *fuse.OpenIn, writeMax int) *putter {
	return &putter{at: p, opener: processOf(in.Pid).id, owner: in.Owner, appendMax: writeMax - unix.Getpagesize(), turn: newTurn()}
}

func (p *putter) read(*server, <-chan struct{}, *fuse.ReadIn, []byte) ([]byte, fuse.Status) {
	return nil, fuse.EBADF
}

func (p *putter) write(s *server, cancel <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	ctx, stop := s.waiting(cancel)
	defer stop()
	noWait := in.Flags&unix.O_NONBLOCK != 0
	if in.Flags&unix.O_APPEND != 0 {
		if len(data) > p.appendMax {
			return 0, fuse.Status(syscall.EMSGSIZE)
		}
		if err := p.commit(ctx, s, data, noWait); err != nil {
			return 0, gone(err)
		}
		return uint32(len(data)), fuse.OK
	}
	p.mu.Lock()
	first := !p.begun
	p.mu.Unlock()
	if first {
		if err := p.awaitRoom(ctx, s, noWait); err != nil {
			return 0, gone(err)
		}
	}
	if err := p.turn.begin(ctx); err != nil {
		return 0, status(err)
	}
	defer s.endTurn(p.turn)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.begun = true
	if p.refused || len(p.buf)+len(data) > gearsfs.RecordBytesMax {
		p.refused, p.buf = true, nil
		s.effect(putterEffect(in.Fh, p, nil))
		return 0, fuse.Status(syscall.EMSGSIZE)
	}
	p.buf = append(p.buf, data...)
	s.effect(putterEffect(in.Fh, p, data))
	return uint32(len(data)), fuse.OK
}

// The pauses between two looks whether a full stream has room. Looking is all
// that can be done without putting: the record is not there yet.
const (
	roomPauseMin = 5 * time.Millisecond
	roomPauseMax = 200 * time.Millisecond
)

// awaitRoom waits until the stream has room for one record.
func (p *putter) awaitRoom(ctx context.Context, s *server, noWait bool) error {
	for pause := roomPauseMin; ; pause = min(2*pause, roomPauseMax) {
		info, err := s.streamAt(p.at)
		switch {
		case err != nil:
			return err
		case info.Sealed:
			return gearsfs.ErrSealed
		case !full(info):
			return nil
		case noWait:
			return gearsfs.ErrFull
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
	}
}

func full(info gearsfs.StreamInfo) bool {
	records, l := info.Records+info.Leased, info.Limits
	return records > 0 && (l.Records > 0 && records >= l.Records || l.Bytes > 0 && info.Bytes >= l.Bytes)
}

// commit puts one record, making the file where it is missing.
func (p *putter) commit(ctx context.Context, s *server, data []byte, noWait bool) error {
	f := gearsfs.ByIno(p.at.ino)
	if p.at.ino == 0 {
		attr, err := s.m.Make(s.ctx, p.at.dir, p.at.name, dgm.Make{
			Mode: unix.S_IFREG | 0o644, Open: true, UID: &p.owner.Uid, GID: &p.owner.Gid})
		if err != nil {
			return err
		}
		f = gearsfs.ByIno(attr.Ino)
		if s.call != nil {
			s.call.once.Repeatable() // the file is made or not, as the name says
		}
		s.believe.changedHere(gearsfs.Change{Ino: p.at.dir, Name: p.at.name})
	}
	_, err := s.m.Put(ctx, dgm.Put{File: f, Key: p.at.key, Records: []gearsfs.NewRecord{{Data: data}}, NoWait: noWait})
	if err == nil {
		s.touched(f.Ino, p.at.key)
	}
	return err
}

func (p *putter) flush(s *server, in *fuse.FlushIn) fuse.Status {
	p.mu.Lock()
	begun := p.begun
	p.mu.Unlock()
	if !begun {
		return fuse.OK // as the close in `exec >put` that follows the dup
	}
	by := processOf(in.Pid)
	if by.id != p.opener {
		p.closedBy(s, in.Fh, by)
		return fuse.OK
	}
	s, stop := s.closing(in.Pid)
	defer stop()
	if err := p.turn.begin(s.ctx); err != nil {
		return status(err)
	}
	defer s.endTurn(p.turn)
	p.mu.Lock()
	p.dying = by.dying
	p.dead = p.dead || by.dying
	data, ready, refused := p.takeLocked()
	s.effect(putterEffect(in.Fh, p, nil))
	p.mu.Unlock()
	switch {
	case refused:
		return fuse.Status(syscall.EMSGSIZE)
	case !ready:
		return fuse.OK
	}
	return gone(p.commit(s.ctx, s, data, true))
}

// closedBy notes a close by another process than the opener, as by a child that is
// executed. It waits for nobody's turn, so what it says in the journal is not of the
// record.
func (p *putter) closedBy(s *server, fh uint64, by process) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.dying = by.dying
	s.effect(lastEffect(fh, by.dying))
}

// takeLocked empties the handle. ready says that the record is to be committed.
func (p *putter) takeLocked() (data []byte, ready, refused bool) {
	data, ready, refused = p.buf, p.begun && !p.refused && !p.dead, p.refused
	p.buf, p.begun, p.refused = nil, false, false
	p.round++
	return data, ready, refused
}

func (p *putter) release(s *server) {
	s.bePatient()
	p.mu.Lock()
	dying := p.dying
	data, ready, _ := p.takeLocked()
	p.mu.Unlock()
	if !ready || dying {
		return
	}
	if err := p.commit(s.ctx, s, data, true); err != nil {
		s.log.Error("a record could not be put when its last writer closed it", "key", p.at.key, "bytes", len(data), "err", err)
	}
}
