package mount

import (
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm"
)

// reserved is the one name that every directory has and none lists.
const reserved = ".gears"

func (s *server) Lookup(_ <-chan struct{}, in *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	if isControl(in.NodeId) || name == reserved {
		return s.lookupControl(in, name, out)
	}
	at := s.believe.now()
	dir := gearsfs.Ino(in.NodeId)
	attr, retried, err := s.lookupAgain(in.Pid, dir, name)
	if !retried {
		attr, err = s.m.Lookup(s.ctx, dir, name)
	}
	if err == nil && s.held.of(attr.Ino) {
		if err = s.settle(s.ctx, attr.Ino); err == nil {
			attr, err = s.m.GetAttr(s.ctx, attr.Ino)
		}
	}
	if err == nil {
		s.entry(out, attr, dir, name, at)
	}
	// That a name is missing is not for the kernel to keep: it would not ask
	// when it opens what others have made and closed meanwhile.
	return status(err)
}

func (s *server) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	if isControl(in.NodeId) {
		return s.controlAttr(in.NodeId, &out.Attr)
	}
	at := s.believe.now()
	attr, err := s.m.GetAttr(s.ctx, gearsfs.Ino(in.NodeId))
	switch errno(err) {
	case 0:
	case syscall.ENOENT, syscall.ESTALE:
		if attr, ok := s.removed.get(gearsfs.Ino(in.NodeId)); ok {
			fillAttr(&out.Attr, &attr)
			return fuse.OK
		}
		return s.staleAttr(in.Pid, gearsfs.Ino(in.NodeId))
	default:
		return status(err)
	}
	s.tell(&out.Attr, attr)
	out.SetTimeout(s.attrValid(at))
	return fuse.OK
}

// gone maps the error of a request on an inode that the kernel knows: where the
// inode is not there any more it must look the name up again.
func gone(err error) fuse.Status {
	if n := errno(err); n != syscall.ENOENT {
		return fuse.Status(n)
	}
	return fuse.Status(syscall.ESTALE)
}

func (s *server) SetAttr(_ <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	if isControl(in.NodeId) {
		return s.setControlAttr(in, out)
	}
	at := s.believe.now()
	ino := gearsfs.Ino(in.NodeId)
	set := dgm.SetAttr{Atime: setTime(in.Valid, fuse.FATTR_ATIME, fuse.FATTR_ATIME_NOW, in.Atime, in.Atimensec),
		Mtime: setTime(in.Valid, fuse.FATTR_MTIME, fuse.FATTR_MTIME_NOW, in.Mtime, in.Mtimensec)}
	if mode, ok := in.GetMode(); ok {
		set.Mode = &mode
	}
	if uid, ok := in.GetUID(); ok {
		set.UID = &uid
	}
	if gid, ok := in.GetGID(); ok {
		set.GID = &gid
	}
	if size, ok := in.GetSize(); ok {
		set.Size = &size
		set.Base = s.inodes.baseOf(ino)
		if fh, ok := in.GetFh(); ok {
			if f, ok := s.handles.get(fh).(*file); ok {
				set.Base = &f.base
			}
		}
	}
	if attr, ok := s.holdAttr(ino, &set); ok {
		s.inodes.shift(&attr)
		fillAttr(&out.Attr, &attr)
		out.SetTimeout(0) // the next stat asks, and gets what is
		return fuse.OK
	}
	if err := s.settle(s.ctx, ino); err != nil {
		return gone(err)
	}
	if in.Valid&fuse.FATTR_KILL_SUIDGID != 0 && set.Mode == nil {
		if err := s.killPrivileges(ino, &set); err != nil {
			return gone(err)
		}
	}
	attr, err := s.m.SetAttr(s.ctx, ino, set)
	if err != nil {
		return gone(err)
	}
	if set.Size != nil {
		s.inodes.wrote(&attr)
	}
	if set.Size != nil || set.UID != nil || set.GID != nil {
		if err := s.dropPrivileges(&attr, false); err != nil {
			return gone(err)
		}
	}
	s.told.note(&attr)
	s.inodes.set(&attr)
	s.inodes.shift(&attr)
	fillAttr(&out.Attr, &attr)
	out.SetTimeout(s.attrValid(at))
	return fuse.OK
}

// setTime returns the time that a SETATTR sets, the zero Time for now, or nil.
func setTime(valid, set, now uint32, sec uint64, nsec uint32) *time.Time {
	switch {
	case valid&now != 0:
		return &time.Time{}
	case valid&set != 0:
		t := time.Unix(int64(sec), int64(nsec))
		return &t
	}
	return nil
}

// make makes an inode for the process that in is from.
func (s *server) make(in *fuse.InHeader, name string, m dgm.Make) (gearsfs.Attr, fuse.Status) {
	if isControl(in.NodeId) {
		return gearsfs.Attr{}, fuse.EPERM
	}
	m.UID, m.GID = &in.Uid, &in.Gid
	attr, err := s.m.Make(s.ctx, gearsfs.Ino(in.NodeId), name, m)
	return attr, status(err)
}

// create makes a regular file for the process that in is from and opens it. made is
// its inode, also where it could not be opened.
func (s *server) create(in *fuse.CreateIn, name string) (attr gearsfs.Attr, made gearsfs.Ino, st fuse.Status) {
	if isControl(in.NodeId) {
		return gearsfs.Attr{}, 0, fuse.EPERM
	}
	m := dgm.Make{Mode: unix.S_IFREG | in.Mode&0o7777, Umask: in.Umask, UID: &in.Uid, GID: &in.Gid}
	attr, err := s.m.Create(s.ctx, gearsfs.Ino(in.NodeId), name, m)
	if attr.Ino != 0 {
		return attr, attr.Ino, gone(err)
	}
	return attr, 0, status(err)
}

// made answers a request that made a name.
func (s *server) made(attr gearsfs.Attr, st fuse.Status, dir uint64, name string, at moment, out *fuse.EntryOut) fuse.Status {
	if st == fuse.OK {
		s.entry(out, attr, gearsfs.Ino(dir), name, at)
	}
	return st
}

func (s *server) Mknod(_ <-chan struct{}, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	at := s.believe.now()
	attr, st := s.make(&in.InHeader, name, dgm.Make{Mode: in.Mode, Rdev: in.Rdev, Umask: in.Umask})
	return s.made(attr, st, in.NodeId, name, at, out)
}

func (s *server) Mkdir(_ <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	at := s.believe.now()
	attr, st := s.make(&in.InHeader, name, dgm.Make{Mode: unix.S_IFDIR | in.Mode&0o7777, Umask: in.Umask})
	return s.made(attr, st, in.NodeId, name, at, out)
}

func (s *server) Symlink(_ <-chan struct{}, in *fuse.InHeader, target, name string, out *fuse.EntryOut) fuse.Status {
	at := s.believe.now()
	attr, st := s.make(in, name, dgm.Make{Mode: unix.S_IFLNK | 0o777, Target: target})
	return s.made(attr, st, in.NodeId, name, at, out)
}

func (s *server) Readlink(_ <-chan struct{}, in *fuse.InHeader) ([]byte, fuse.Status) {
	ino := gearsfs.Ino(in.NodeId)
	if isControl(in.NodeId) {
		n, ok := s.control.get(in.NodeId)
		if !ok || n.kind != kindLink {
			return nil, fuse.EINVAL
		}
		ino = n.ino
	}
	target, st := s.readlink(in.Pid, ino)
	return []byte(target), st
}

func (s *server) Link(_ <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	if isControl(in.NodeId) || isControl(in.Oldnodeid) || name == reserved {
		return fuse.EPERM
	}
	at := s.believe.now()
	if err := s.settle(s.ctx, gearsfs.Ino(in.Oldnodeid)); err != nil {
		return status(err)
	}
	attr, err := s.m.Link(s.ctx, gearsfs.Ino(in.Oldnodeid), gearsfs.Ino(in.NodeId), name)
	return s.made(attr, status(err), in.NodeId, name, at, out)
}

func (s *server) Unlink(_ <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	if isControl(in.NodeId) || name == reserved {
		return fuse.EPERM
	}
	err := s.settleNamed(gearsfs.Ino(in.NodeId), name)
	if err == nil {
		err = s.m.Unlink(s.ctx, gearsfs.Ino(in.NodeId), name)
	}
	if err == nil {
		s.unlinked(gearsfs.Ino(in.NodeId), name)
	}
	return status(err)
}

func (s *server) Rmdir(_ <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	if isControl(in.NodeId) || name == reserved {
		return fuse.EPERM
	}
	dir := gearsfs.Ino(in.NodeId)
	attr, lookErr := s.m.Lookup(s.ctx, dir, name)
	err := s.m.Rmdir(s.ctx, dir, name)
	if err == nil && lookErr == nil {
		s.removed.note(attr)
	}
	return status(err)
}

func (s *server) Rename(_ <-chan struct{}, in *fuse.RenameIn, name, newName string) fuse.Status {
	if isControl(in.NodeId) || isControl(in.Newdir) || name == reserved || newName == reserved {
		return fuse.EPERM
	}
	rename := dgm.Rename{
		Dir: gearsfs.Ino(in.NodeId), Name: name,
		NewDir: gearsfs.Ino(in.Newdir), NewName: newName, Flags: in.Flags,
	}
	err := s.settleNamed(rename.Dir, name)
	if err == nil {
		err = s.settleNamed(rename.NewDir, newName)
	}
	if err == nil {
		err = s.m.Rename(s.ctx, rename)
	}
	if err == nil {
		s.renamed(rename)
	}
	return status(err)
}

// Create makes a file and opens it. Where the name exists by now, ESTALE makes
// the kernel look it up and check the permissions of what it finds.
func (s *server) Create(_ <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	at := s.believe.now()
	s.unkeep(s.takeRetry(in.Pid)) // what the thread was told ESTALE about is gone
	asOf := s.inodes.asOf()
	attr, _, st := s.create(in, name)
	switch {
	case st == fuse.Status(syscall.EEXIST) && in.Flags&unix.O_EXCL == 0:
		return fuse.Status(syscall.ESTALE)
	case st != fuse.OK:
		return st
	}
	s.handle(&attr, in.Flags, true, &out.OpenOut)
	s.inodes.hasNoCaps(attr.Ino, asOf)
	s.entry(&out.EntryOut, attr, gearsfs.Ino(in.NodeId), name, at)
	return fuse.OK
}

// Tmpfile makes a file without a name (O_TMPFILE): it has one until it is open.
func (s *server) Tmpfile(_ <-chan struct{}, in *fuse.CreateIn, out *fuse.CreateOut) fuse.Status {
	at := s.believe.now()
	name := ".gears-tmpfile-" + s.uniqueName()
	dir := gearsfs.Ino(in.NodeId)
	attr, made, st := s.create(in, name)
	switch {
	case st != fuse.OK && made != 0:
		return fuse.Status(firstErrno(syscall.Errno(st), s.m.Unlink(s.ctx, dir, name)))
	case st != fuse.OK:
		return st
	}
	s.handle(&attr, in.Flags, true, &out.OpenOut)
	if err := s.m.Unlink(s.ctx, dir, name); err != nil {
		s.release(out.Fh)
		return status(err)
	}
	attr.Nlink = 0
	s.entry(&out.EntryOut, attr, dir, name, at)
	return fuse.OK
}

func firstErrno(first syscall.Errno, err error) syscall.Errno {
	if first != 0 {
		return first
	}
	return errno(err)
}
