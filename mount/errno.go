package mount

import (
	"context"
	"errors"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/gearsfs/gearsfs/gears"
)

// errnos is the one table from the volume's errors to those of POSIX.
var errnos = map[gears.Code]syscall.Errno{
	gears.ErrNotFound.Code:    syscall.ENOENT,
	gears.ErrExists.Code:      syscall.EEXIST,
	gears.ErrNotDir.Code:      syscall.ENOTDIR,
	gears.ErrIsDir.Code:       syscall.EISDIR,
	gears.ErrNotEmpty.Code:    syscall.ENOTEMPTY,
	gears.ErrInvalid.Code:     syscall.EINVAL,
	gears.ErrNameTooLong.Code: syscall.ENAMETOOLONG,
	gears.ErrPermission.Code:  syscall.EPERM,
	gears.ErrAccess.Code:      syscall.EACCES,
	gears.ErrNoSpace.Code:     syscall.ENOSPC,
	gears.ErrTooBig.Code:      syscall.EFBIG,
	gears.ErrLoop.Code:        syscall.ELOOP,
	gears.ErrNoAttr.Code:      syscall.ENODATA,
	gears.ErrRange.Code:       syscall.ENXIO, // of SEEK_DATA and SEEK_HOLE
	gears.ErrLinks.Code:       syscall.EMLINK,
	gears.ErrIO.Code:          syscall.EIO,
	gears.ErrStale.Code:       syscall.ESTALE,
	gears.ErrUnsupported.Code: syscall.EOPNOTSUPP,
	gears.ErrBusy.Code:        syscall.EBUSY,

	gears.ErrKey.Code:     syscall.EINVAL,
	gears.ErrEmpty.Code:   syscall.EAGAIN,
	gears.ErrFull.Code:    syscall.EAGAIN,
	gears.ErrSealed.Code:  syscall.EPERM, // as writing to a sealed memfd
	gears.ErrEnd.Code:     syscall.ENODATA,
	gears.ErrGone.Code:    syscall.ESTALE,
	gears.ErrRemoved.Code: syscall.ENOENT,
	gears.ErrBlocks.Code:  syscall.EPERM,

	gears.ErrNoNode.Code:    syscall.EHOSTUNREACH,
	gears.ErrClosed.Code:    syscall.ENOTCONN,
	gears.ErrOverload.Code:  syscall.EBUSY,
	gears.ErrUnknownOp.Code: syscall.EOPNOTSUPP, // ENOSYS would turn the operation off for good
	gears.ErrCancelled.Code: syscall.EINTR,
}

// errno maps an error of the Manager. What has no entry, as gears.ErrMaybe or
// damaged data, is EIO.
func errno(err error) syscall.Errno {
	if err == nil {
		return 0
	}
	if e, ok := errors.AsType[*gears.Error](err); ok {
		if n, ok := errnos[e.Code]; ok {
			return n
		}
		return syscall.EIO
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return syscall.EINTR
	}
	return syscall.EIO
}

func status(err error) fuse.Status { return fuse.Status(errno(err)) }
