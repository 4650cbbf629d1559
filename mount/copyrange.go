package mount

import (
	"math"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm"
)

// copiedMax bounds what one request answers with; the kernel asks for the rest.
const copiedMax = math.MaxInt32 &^ (gearsfs.PageBytes - 1)

func (s *server) CopyFileRange(_ <-chan struct{}, in *fuse.CopyFileRangeIn) (uint32, fuse.Status) {
	from, st := s.openFile(in.FhIn)
	if st != fuse.OK {
		return 0, st
	}
	to, st := s.openFile(in.FhOut)
	if st != fuse.OK {
		return 0, st
	}
	if err := s.settle(s.ctx, to.ino); err != nil { // settleFor did the other
		return 0, gone(err)
	}
	n, attr, err := s.m.CopyRange(s.ctx, dgm.CopyRange{
		From: from.ino, FromPos: from.base + gearsfs.Pos(in.OffIn),
		To: to.ino, ToPos: to.base + gearsfs.Pos(in.OffOut), Length: min(in.Len, copiedMax),
	})
	if err != nil {
		return 0, gone(err)
	}
	if n > 0 {
		s.inodes.wrote(&attr)
	}
	return uint32(n), fuse.OK
}
