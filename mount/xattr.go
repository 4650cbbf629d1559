package mount

import (
	"fmt"
	"os"
	"strings"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm"
)

// Attributes that tell what a path belongs to. They answer getxattr but are
// not listed, so that copying attributes between mounts leaves them alone.
const (
	xattrPrefix  = "user.gears."
	xattrNode    = xattrPrefix + "node"    // the address of a node that serves the volume
	xattrVolume  = xattrPrefix + "volume"  // the volume's name
	xattrPath    = xattrPrefix + "path"    // a directory's path in the volume
	xattrMount   = xattrPrefix + "mount"   // the processes of the mount: who keeps it, and who serves it
	xattrStreams = xattrPrefix + "streams" // a file's keys, one per line
)

func (s *server) GetXAttr(_ <-chan struct{}, in *fuse.InHeader, name string, dest []byte) (uint32, fuse.Status) {
	if isControl(in.NodeId) {
		return 0, fuse.ENODATA
	}
	ino := gearsfs.Ino(in.NodeId)
	if name == capabilityXattr && s.held.of(ino) && !s.mayHaveCaps(ino) {
		return 0, fuse.ENODATA // the kernel asks before each change of an owner
	}
	var value []byte
	err := s.settle(s.ctx, ino)
	switch {
	case err != nil:
	case strings.HasPrefix(name, xattrPrefix):
		value, err = s.ownXattr(ino, name)
	default:
		value, err = s.m.GetXattr(s.ctx, ino, name)
	}
	if err != nil {
		return 0, gone(err)
	}
	if len(dest) < len(value) {
		return uint32(len(value)), fuse.ERANGE
	}
	return uint32(copy(dest, value)), fuse.OK
}

func (s *server) ownXattr(ino gearsfs.Ino, name string) ([]byte, error) {
	switch name {
	case xattrNode:
		return []byte(s.o.Node), nil
	case xattrMount:
		return fmt.Appendf(nil, "%d %d", s.o.Supervisor, os.Getpid()), nil
	case xattrVolume:
		return []byte(s.o.Volume), nil
	case xattrPath:
		attr, err := s.m.GetAttr(s.ctx, ino)
		if err != nil {
			return nil, err
		}
		if attr.Mode&unix.S_IFMT != unix.S_IFDIR {
			return nil, gearsfs.ErrNoAttr
		}
		path, err := s.pathOf(ino)
		return []byte(path), err
	case xattrStreams:
		return s.keysOf(ino)
	}
	return nil, gearsfs.ErrNoAttr
}

// keysOf returns a file's keys, one per line, as many as an attribute holds.
func (s *server) keysOf(ino gearsfs.Ino) ([]byte, error) {
	const page = 256
	var text []byte
	for after := gearsfs.Key(""); ; {
		list, err := s.m.ListStreams(s.ctx, gearsfs.ByIno(ino), after, page)
		if err != nil {
			return nil, err
		}
		for _, stream := range list {
			if len(text)+len(stream.Key)+1 > gearsfs.XattrBytesMax {
				return text, nil
			}
			text = append(append(text, stream.Key...), '\n')
		}
		if len(list) < page {
			return text, nil
		}
		after = list[len(list)-1].Key
	}
}

func (s *server) ListXAttr(_ <-chan struct{}, in *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	if isControl(in.NodeId) {
		return 0, fuse.OK
	}
	names, err := s.m.ListXattr(s.ctx, gearsfs.Ino(in.NodeId))
	if err != nil {
		return 0, gone(err)
	}
	size := 0
	for _, name := range names {
		size += len(name) + 1
	}
	if len(dest) < size {
		return uint32(size), fuse.ERANGE
	}
	for _, name := range names {
		dest = dest[copy(dest, name):]
		dest[0] = 0
		dest = dest[1:]
	}
	return uint32(size), fuse.OK
}

func (s *server) SetXAttr(_ <-chan struct{}, in *fuse.SetXAttrIn, name string, value []byte) fuse.Status {
	if st := mayChangeXattr(in.NodeId, name); st != fuse.OK {
		return st
	}
	ino := gearsfs.Ino(in.NodeId)
	err := s.m.SetXattr(s.ctx, ino, name, value, in.Flags)
	if name == capabilityXattr {
		s.inodes.doubt(ino) // an error does not always say that it is not set
	}
	if err != nil {
		return gone(err)
	}
	if name == aclXattr && s.xattrFlags && in.SetXAttrFlags&fuse.SETXATTR_ACL_KILL_SGID != 0 {
		return gone(s.dropSetGID(ino))
	}
	return fuse.OK
}

const aclXattr = "system.posix_acl_access"

// dropSetGID is for an access list that somebody has set who is neither in the file's
// group nor privileged. It is what chmod(2) does then; the kernel, which knows the
// groups of who asks, leaves it to us.
func (s *server) dropSetGID(ino gearsfs.Ino) error {
	attr, err := s.m.GetAttr(s.ctx, ino)
	if err != nil || attr.Mode&unix.S_ISGID == 0 {
		return err
	}
	mode := attr.Mode & 0o7777 &^ unix.S_ISGID
	_, err = s.m.SetAttr(s.ctx, ino, dgm.SetAttr{Mode: &mode})
	return err
}

func (s *server) RemoveXAttr(_ <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	if st := mayChangeXattr(in.NodeId, name); st != fuse.OK {
		return st
	}
	return gone(s.m.RemoveXattr(s.ctx, gearsfs.Ino(in.NodeId), name))
}

func mayChangeXattr(node uint64, name string) fuse.Status {
	switch {
	case isControl(node), strings.HasPrefix(name, xattrPrefix):
		return fuse.EPERM
	}
	return fuse.OK
}
