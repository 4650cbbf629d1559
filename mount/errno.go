package mount

import (
	"context"
	"errors"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/gearsfs/gearsfs"
)

// errnos is the one table from the volume's errors to those of POSIX.
var errnos = map[gearsfs.Code]syscall.Errno{
	gearsfs.ErrNotFound.Code:    syscall.ENOENT,
	gearsfs.ErrExists.Code:      syscall.EEXIST,
	gearsfs.ErrNotDir.Code:      syscall.ENOTDIR,
	gearsfs.ErrIsDir.Code:       syscall.EISDIR,
	gearsfs.ErrNotEmpty.Code:    syscall.ENOTEMPTY,
	gearsfs.ErrInvalid.Code:     syscall.EINVAL,
	gearsfs.ErrNameTooLong.Code: syscall.ENAMETOOLONG,
	gearsfs.ErrPermission.Code:  syscall.EPERM,
	gearsfs.ErrAccess.Code:      syscall.EACCES,
	gearsfs.ErrNoSpace.Code:     syscall.ENOSPC,
	gearsfs.ErrTooBig.Code:      syscall.EFBIG,
	gearsfs.ErrLoop.Code:        syscall.ELOOP,
	gearsfs.ErrNoAttr.Code:      syscall.ENODATA,
	gearsfs.ErrRange.Code:       syscall.ENXIO, // of SEEK_DATA and SEEK_HOLE
	gearsfs.ErrLinks.Code:       syscall.EMLINK,
	gearsfs.ErrIO.Code:          syscall.EIO,
	gearsfs.ErrStale.Code:       syscall.ESTALE,
	gearsfs.ErrUnsupported.Code: syscall.EOPNOTSUPP,
	gearsfs.ErrBusy.Code:        syscall.EBUSY,
	gearsfs.ErrQuota.Code:       syscall.EDQUOT,
	gearsfs.ErrCross.Code:       syscall.EXDEV,
	gearsfs.ErrLocked.Code:      syscall.EAGAIN,
	gearsfs.ErrDeadlock.Code:    syscall.EDEADLK,
	gearsfs.ErrLocks.Code:       syscall.ENOLCK,

	gearsfs.ErrKey.Code:     syscall.EINVAL,
	gearsfs.ErrEmpty.Code:   syscall.EAGAIN,
	gearsfs.ErrFull.Code:    syscall.EAGAIN,
	gearsfs.ErrSealed.Code:  syscall.EPERM, // as writing to a sealed memfd
	gearsfs.ErrEnd.Code:     syscall.ENODATA,
	gearsfs.ErrGone.Code:    syscall.ESTALE,
	gearsfs.ErrRemoved.Code: syscall.ENOENT,
	gearsfs.ErrBlocks.Code:  syscall.EPERM,
	gearsfs.ErrUnmet.Code:   syscall.EAGAIN,
	gearsfs.ErrType.Code:    syscall.EINVAL,

	gearsfs.ErrNoNode.Code:    syscall.ETIMEDOUT,
	gearsfs.ErrClosed.Code:    syscall.ENOTCONN,
	gearsfs.ErrOverload.Code:  syscall.EBUSY,
	gearsfs.ErrUnknownOp.Code: syscall.EOPNOTSUPP, // ENOSYS would turn the operation off for good
	gearsfs.ErrCancelled.Code: syscall.EINTR,
	gearsfs.ErrNotLeader.Code: syscall.EHOSTUNREACH,
	gearsfs.ErrNotMember.Code: syscall.EHOSTUNREACH,
}

// errno maps an error of the Manager. What has no entry, as gearsfs.ErrMaybe or
// damaged data, is EIO.
func errno(err error) syscall.Errno {
	if err == nil {
		return 0
	}
	if e, ok := errors.AsType[*gearsfs.Error](err); ok {
		if n, ok := errnos[e.Code]; ok {
			return n
		}
		return syscall.EIO
	}
	if n, ok := errors.AsType[syscall.Errno](err); ok {
		return n
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return syscall.EINTR
	}
	return syscall.EIO
}

func status(err error) fuse.Status { return fuse.Status(errno(err)) }
