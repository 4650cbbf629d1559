package mount

import (
	"crypto/rand"
	"errors"
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm"
)

// file is an open regular file.
type file struct {
	ino  gearsfs.Ino
	base gearsfs.Pos // offset 0: where the data stream began when it was opened

	mu     sync.Mutex
	writes bool  // through the kernel's cache: what it writes may be held
	taken  bool  // over from a process before, and not written to since: writes is not known
	direct bool  // past the kernel's cache, and no page of it was mapped
	failed error // what became of something held; nobody has been told
}

var _ handle = (*file)(nil)

func (s *server) Open(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	if isControl(in.NodeId) {
		return s.openControl(in, out)
	}
	_, st := s.open(gearsfs.Ino(in.NodeId), in.Flags, &in.InHeader, out)
	return st
}

// open opens a file that a request names by an inode which the kernel looked up some
// time ago, and fills in its handle: ESTALE makes the kernel look again where the
// name does not lead there any more.
func (s *server) open(ino gearsfs.Ino, flags uint32, by *fuse.InHeader, out *fuse.OpenOut) (gearsfs.Attr, fuse.Status) {
	attr, st := s.openCurrent(ino, by.Pid)
	if st != fuse.OK {
		return attr, st
	}
	older := s.told.older(&attr)
	if older {
		s.believe.dropAttr(ino)
		s.told.dropped(&attr)
	}
	s.handle(&attr, flags, false, out)
	if older && out.OpenFlags&fuse.FOPEN_DIRECT_IO == 0 { // else the kernel keeps older pages
		s.told.show(&attr)
	}
	return attr, fuse.OK
}

// handle makes the handle of a file that is open in the Manager; made says that the
// same request has made the file.
func (s *server) handle(attr *gearsfs.Attr, flags uint32, made bool, out *fuse.OpenOut) {
	f := &file{ino: attr.Ino, base: attr.Head}
	direct, keep := s.inodes.open(attr, flags&unix.O_APPEND != 0)
	f.direct = direct
	if f.writes = !direct && flags&unix.O_ACCMODE != unix.O_RDONLY && s.held.on; f.writes {
		s.held.open(attr.Ino, made)
	}
	if flags&unix.O_ACCMODE == unix.O_RDONLY && !s.locks.any(attr.Ino) {
		out.OpenFlags = fuse.FOPEN_NOFLUSH
	}
	switch {
	case direct:
		out.OpenFlags |= fuse.FOPEN_DIRECT_IO
	case keep:
		out.OpenFlags |= fuse.FOPEN_KEEP_CACHE
	}
	out.Fh = s.handles.add(f)
}

func (s *server) Read(cancel <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	h := s.handles.get(in.Fh)
	if h == nil {
		return nil, fuse.EBADF
	}
	data, st := h.read(s, cancel, in, buf)
	if st != fuse.OK {
		return nil, st
	}
	return fuse.ReadResultData(data), fuse.OK
}

// maps takes note of a READ that fills a page: the kernel names the lock owner
// in all that a program reads past the cache, and in no other. It reports
// whether the file's pages may be those of this handle.
func (f *file) maps(s *server, in *fuse.ReadIn) bool {
	if in.ReadFlags&fuse.READ_LOCKOWNER != 0 {
		return true
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.direct {
		f.direct = !s.inodes.mapped(f.ino, f.base)
	}
	return !f.direct
}

func (f *file) read(s *server, _ <-chan struct{}, in *fuse.ReadIn, buf []byte) ([]byte, fuse.Status) {
	if !f.maps(s, in) {
		return nil, fuse.EIO
	}
	data, err := s.m.Read(s.ctx, f.ino, f.base+gearsfs.Pos(in.Offset), int(in.Size), buf)
	return data, gone(err)
}

func (s *server) Write(cancel <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	h := s.handles.get(in.Fh)
	if h == nil {
		return 0, fuse.EBADF
	}
	return h.write(s, cancel, in, data)
}

// write is one Put where the descriptor appends at this moment: the kernel's
// offset comes from a size that others may have changed since.
func (f *file) write(s *server, cancel <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	appends := in.Flags&unix.O_APPEND != 0 && in.WriteFlags&fuse.WRITE_CACHE == 0
	if !appends && s.holdWrite(f, in, data) {
		return uint32(len(data)), fuse.OK
	}
	var attr gearsfs.Attr
	err := s.settle(s.ctx, f.ino)
	switch {
	case err != nil:
	case appends:
		ctx, stop := s.waiting(cancel)
		attr, err = s.m.Append(ctx, f.ino, data)
		stop()
	default:
		base := f.base
		if in.WriteFlags&fuse.WRITE_CACHE != 0 { // a page: the handle is any of those that are mapped
			if shared := s.inodes.baseOf(f.ino); shared != nil {
				base = *shared
			}
		}
		attr, err = s.m.Write(s.ctx, f.ino, base+gearsfs.Pos(in.Offset), data)
	}
	if err != nil {
		return 0, gone(err)
	}
	s.inodes.wrote(&attr)
	if err := s.dropPrivileges(&attr, in.WriteFlags&fuse.WRITE_KILL_SUIDGID != 0); err != nil {
		return 0, gone(err)
	}
	s.held.trust(f.ino, true)
	return uint32(len(data)), fuse.OK
}

const capabilityXattr = "security.capability"

// dropPrivileges does what a write must do beside writing, since the kernel
// leaves it to us (FUSE_HANDLE_KILLPRIV_V2) and so need not ask for the file's
// capabilities before every write.
func (s *server) dropPrivileges(attr *gearsfs.Attr, modeToo bool) error {
	if modeToo && attr.Mode&(unix.S_ISUID|unix.S_ISGID) != 0 {
		if mode := unprivileged(attr.Mode); mode != attr.Mode {
			mode &= 0o7777
			if _, err := s.m.SetAttr(s.ctx, attr.Ino, dgm.SetAttr{Mode: &mode}); err != nil {
				return err
			}
			s.believe.pages.push(gearsfs.Change{Ino: attr.Ino})
		}
	}
	if !s.inodes.mayHaveCaps(attr.Ino) {
		return nil
	}
	asOf := s.inodes.asOf()
	_, err := s.m.GetXattr(s.ctx, attr.Ino, capabilityXattr)
	if err == nil {
		err = s.m.RemoveXattr(s.ctx, attr.Ino, capabilityXattr)
	}
	if err != nil && !errors.Is(err, gearsfs.ErrNoAttr) {
		return err
	}
	s.inodes.hasNoCaps(attr.Ino, asOf)
	return nil
}

// mayHaveCaps is that of inodes, but asks the volume where that is in doubt: for a
// request that can't be held otherwise.
func (s *server) mayHaveCaps(ino gearsfs.Ino) bool {
	if !s.inodes.mayHaveCaps(ino) {
		return false
	}
	if !s.inodes.inDoubt(ino) {
		return true
	}
	asOf := s.inodes.asOf()
	if _, err := s.m.GetXattr(s.ctx, ino, capabilityXattr); !errors.Is(err, gearsfs.ErrNoAttr) {
		return true
	}
	s.inodes.hasNoCaps(ino, asOf)
	return s.inodes.mayHaveCaps(ino)
}

// unprivileged is a mode after a write by someone unprivileged: set-user-id
// goes, and set-group-id where it is not a mark for mandatory locking.
func unprivileged(mode uint32) uint32 {
	mode &^= unix.S_ISUID
	if mode&unix.S_IXGRP != 0 {
		mode &^= unix.S_ISGID
	}
	return mode
}

// killPrivileges adds to a SETATTR that truncates or gives the file away what
// it must do to the mode.
func (s *server) killPrivileges(ino gearsfs.Ino, set *dgm.SetAttr) error {
	attr, err := s.m.GetAttr(s.ctx, ino)
	if err != nil {
		return err
	}
	if mode := unprivileged(attr.Mode); isFile(&attr) && mode != attr.Mode {
		mode &= 0o7777
		set.Mode = &mode
	}
	return nil
}

func (s *server) Flush(_ <-chan struct{}, in *fuse.FlushIn) fuse.Status {
	if h := s.handles.get(in.Fh); h != nil {
		return h.flush(s, in)
	}
	return fuse.EBADF
}

// flush has nothing to do for the bytes: they went with each write, or before
// the request was handled (settleFor).
func (f *file) flush(s *server, in *fuse.FlushIn) fuse.Status {
	s.closed(f.ino, in.LockOwner)
	if s.call != nil && s.call.unsent != nil {
		return gone(s.call.unsent)
	}
	err := f.takeFailed()
	if err != nil {
		s.effect(encode(start(effectTold), in.Fh))
	}
	return gone(err)
}

func (s *server) Release(_ <-chan struct{}, in *fuse.ReleaseIn) { s.release(in.Fh) }

func (s *server) release(fh uint64) {
	h := s.handles.remove(fh)
	if f, ok := h.(*file); ok {
		s.unlockHandle(f.ino, fh)
	}
	if h != nil {
		h.release(s)
	}
}

func (f *file) release(s *server) {
	f.mu.Lock()
	direct, writes := f.direct, f.writes
	f.mu.Unlock()
	if writes {
		if err := s.settle(s.life, f.ino); err != nil {
			s.log.Warn("the mount ends before what was written to a file is sent", "ino", f.ino, "err", err)
		}
		s.held.close(f.ino)
	}
	s.inodes.close(f.ino, direct)
	s.unopened(f.ino, s.m.LetGo(s.ctx, f.ino))
}

// unopen ends an open in the Manager of which the kernel has no handle.
func (s *server) unopen(ino gearsfs.Ino) { s.unopened(ino, s.m.Release(s.ctx, ino)) }

// unopened is the end of an open; nobody is left to be told of an error.
func (s *server) unopened(ino gearsfs.Ino, err error) {
	if err != nil && !errors.Is(err, gearsfs.ErrClosed) {
		s.log.Warn("release", "ino", ino, "err", err)
	}
}

func (s *server) Fsync(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	if isControl(in.NodeId) {
		return fuse.OK // what a control file answered is on disk
	}
	if s.call != nil && s.call.unsent != nil { // Sync need not look at the context
		return gone(s.call.unsent)
	}
	if f, ok := s.handles.get(in.Fh).(*file); ok {
		if err := f.takeFailed(); err != nil {
			return gone(err)
		}
	}
	return status(s.m.Sync(s.ctx))
}

func (s *server) FsyncDir(cancel <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	return s.Fsync(cancel, in)
}

// openFile returns the open regular file that a request names.
func (s *server) openFile(fh uint64) (*file, fuse.Status) {
	f, ok := s.handles.get(fh).(*file)
	if !ok {
		return nil, fuse.EINVAL
	}
	return f, fuse.OK
}

func (s *server) Lseek(_ <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	f, st := s.openFile(in.Fh)
	if st != fuse.OK {
		return st
	}
	if in.Whence != unix.SEEK_DATA && in.Whence != unix.SEEK_HOLE {
		return fuse.EINVAL
	}
	pos, err := s.m.Seek(s.ctx, f.ino, f.base+gearsfs.Pos(in.Offset), in.Whence == unix.SEEK_HOLE)
	if err != nil {
		return gone(err)
	}
	out.Offset = uint64(pos - f.base)
	return fuse.OK
}

func (s *server) Fallocate(_ <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	f, st := s.openFile(in.Fh)
	if st != fuse.OK {
		return st
	}
	if err := s.m.Allocate(s.ctx, f.ino, f.base+gearsfs.Pos(in.Offset), in.Length, in.Mode); err != nil {
		return gone(err)
	}
	attr, err := s.m.GetAttr(s.ctx, f.ino)
	if err != nil {
		return gone(err)
	}
	s.inodes.wrote(&attr)
	return fuse.OK
}

// randomName returns letters and digits that no other name has.
func randomName() string { return rand.Text() }
