package gearsfs

import (
	"errors"
	"fmt"
)

// Code is the kind of an error, as it travels over a socket and is stored with
// a session's answers. Codes are never renumbered.
type Code uint32

// Error is what GearsFS's operations return where a caller can react. Two
// Errors are the same for errors.Is when their Codes are, so the sentinel
// comes out of the far end of a socket whatever the reason says.
type Error struct {
	Code   Code
	Reason string
}

func (e *Error) Error() string { return e.Reason }

// Is reports whether target is an Error of the same Code.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Code == e.Code
}

// Because returns an error of e's Code with a reason of its own.
func (e *Error) Because(format string, args ...any) *Error {
	return &Error{Code: e.Code, Reason: fmt.Sprintf(format, args...)}
}

// The errors that operations on a volume return. Each is matched with
// errors.Is; mount/ maps them to errno and cmd/gearsfs to an exit status.
var (
	ErrNotFound    = &Error{1, "no such file or directory"}
	ErrExists      = &Error{2, "exists already"}
	ErrNotDir      = &Error{3, "not a directory"}
	ErrIsDir       = &Error{4, "is a directory"}
	ErrNotEmpty    = &Error{5, "directory not empty"}
	ErrInvalid     = &Error{6, "invalid argument"}
	ErrNameTooLong = &Error{7, "name too long"}
	ErrPermission  = &Error{8, "operation not permitted"} // EPERM
	ErrAccess      = &Error{9, "permission denied"}       // EACCES
	ErrNoSpace     = &Error{10, "no space left: puts are refused until some is free, takes still work"}
	ErrTooBig      = &Error{11, "too large"}
	ErrLoop        = &Error{12, "too many symbolic links"}
	ErrNoAttr      = &Error{13, "no such attribute"}
	ErrRange       = &Error{14, "out of range"}
	ErrLinks       = &Error{15, "too many links"}
	ErrIO          = &Error{16, "input/output error"}
	ErrStale       = &Error{17, "the file is gone"}
	ErrUnsupported = &Error{18, "not supported"}
	ErrBusy        = &Error{19, "busy"}
	ErrQuota       = &Error{20, "the quota is used up: puts are refused until some of it is free, takes still work"}
	ErrCross       = &Error{21, "under another quota: copy it there instead"} // EXDEV
	ErrLocked      = &Error{22, "locked by another"}
	ErrDeadlock    = &Error{23, "waiting for the lock would never end"}
	ErrLocks       = &Error{24, "too many locks"} // ENOLCK

	ErrKey     = &Error{32, "bad key"}
	ErrEmpty   = &Error{33, "the stream is empty"}            // take or peek that does not wait
	ErrFull    = &Error{34, "the stream is full"}             // put that does not wait
	ErrSealed  = &Error{35, "the stream is sealed"}           // put
	ErrEnd     = &Error{36, "the stream is sealed and empty"} // take, peek
	ErrGone    = &Error{37, "the lease is gone"}
	ErrRemoved = &Error{38, "the file was removed while waiting"}
	ErrBlocks  = &Error{39, "the file was written as blocks, not put as records"}
	ErrUnmet   = &Error{40, "a condition is not met"}
	ErrType    = &Error{41, "records of another type"} // put

	ErrSession   = &Error{48, "the session has ended"}
	ErrMaybe     = &Error{49, "outcome unknown"} // may or may not have been applied
	ErrVersion   = &Error{50, "the peer speaks another version"}
	ErrProtocol  = &Error{51, "the peer does not speak the GearsFS protocol"}
	ErrNoNode    = &Error{52, "node unreachable"}
	ErrClosed    = &Error{53, "closed"}
	ErrOverload  = &Error{54, "too many requests"}
	ErrUnknownOp = &Error{55, "the node does not know this operation"}
	ErrCancelled = &Error{56, "cancelled"}
	ErrNotLeader = &Error{57, "another node leads the volume"}
	ErrNotMember = &Error{58, "the node is not a member of the volume"}

	ErrDamaged = &Error{64, "damaged data"}
	ErrForeign = &Error{65, "not GearsFS data"}
	ErrFormat  = &Error{66, "data of another format version"}
	ErrInUse   = &Error{67, "in use by another process"}

	// Between the state machine and its node: who asked does not see it.
	ErrFragmented = &Error{80, "a row would have too many extents"}
	ErrOversize   = &Error{81, "more is to be removed than one step may"}
)

// CodeOf returns the code of the first Error in err's chain, 0 for nil and
// that of ErrIO for an error of another kind.
func CodeOf(err error) Code {
	if err == nil {
		return 0
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Code
	}
	return ErrIO.Code
}

// FromCode rebuilds the error that was sent as code and reason; code 0 is nil.
func FromCode(code Code, reason string) error {
	if code == 0 {
		return nil
	}
	return &Error{Code: code, Reason: reason}
}
