package mount

import (
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Operations, as in include/uapi/linux/fuse.h.
const (
	opLookup      = 1
	opForget      = 2
	opGetAttr     = 3
	opSetAttr     = 4
	opReadlink    = 5
	opSymlink     = 6
	opMknod       = 8
	opMkdir       = 9
	opUnlink      = 10
	opRmdir       = 11
	opRename      = 12
	opLink        = 13
	opOpen        = 14
	opRead        = 15
	opWrite       = 16
	opStatFS      = 17
	opRelease     = 18
	opFsync       = 20
	opSetXattr    = 21
	opGetXattr    = 22
	opListXattr   = 23
	opRemoveXattr = 24
	opFlush       = 25
	opOpenDir     = 27
	opReadDir     = 28
	opReleaseDir  = 29
	opFsyncDir    = 30
	opCreate      = 35
	opInterrupt   = 36
	opBatchForget = 42
	opReadDirPlus = 44
	opRename2     = 45
	opLseek       = 46
)

func isForget(in *fuse.InHeader) bool { return in.Opcode == opForget || in.Opcode == opBatchForget }

// isBrief reports whether the handler of a request waits for no other request: not
// those of the control tree, of locks and of appends, which wait for what others do,
// and of what takes as long as it is large.
func isBrief(in *fuse.InHeader) bool {
	if isControl(in.NodeId) {
		return false
	}
	switch in.Opcode {
	case opRead:
		return (*fuse.ReadIn)(unsafe.Pointer(in)).Size <= briefBytes
	case opWrite:
		w := (*fuse.WriteIn)(unsafe.Pointer(in))
		return w.Size <= briefBytes && w.Flags&unix.O_APPEND == 0
	case opLookup, opGetAttr, opSetAttr, opReadlink, opSymlink, opMknod, opMkdir, opUnlink, opRmdir,
		opRename, opRename2, opLink, opOpen, opCreate, opStatFS, opFlush, opRelease, opFsync, opFsyncDir,
		opSetXattr, opGetXattr, opListXattr, opRemoveXattr, opOpenDir, opReadDir, opReadDirPlus, opReleaseDir, opLseek:
		return true
	}
	return false
}
