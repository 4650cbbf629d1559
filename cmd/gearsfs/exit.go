package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"

	"github.com/gearsfs/gearsfs"
)

// The exit statuses of every command. Scripts depend on them.
const (
	exitDone    = 0
	exitFailed  = 1 // nothing changed
	exitUsage   = 2
	exitNotNow  = 3 // empty, full, or --wait over
	exitEnded   = 4 // sealed on put; sealed and drained on take
	exitUnknown = 5 // the change may or may not have been made
	exitSignal  = 128
)

// usageError says that the command line itself is wrong.
type usageError struct{ reason string }

func (e *usageError) Error() string { return e.reason }

func usagef(format string, args ...any) error {
	return &usageError{reason: fmt.Sprintf(format, args...)}
}

// signalError is the cause of a context that a signal ended.
type signalError struct{ signal syscall.Signal }

func (e *signalError) Error() string { return e.signal.String() }

// toldError is a failure that another process, started by this one, has told
// already.
type toldError struct{ status int }

func (e *toldError) Error() string { return fmt.Sprintf("status %d", e.status) }

// statusError is a failure with an exit status of its own.
type statusError struct {
	error
	status int
}

func (e *statusError) Unwrap() error { return e.error }

// waitError is what --wait ends a wait with.
type waitError struct {
	what string
	hint string // why that may be; or ""
}

func (e *waitError) Error() string {
	if e.hint != "" {
		return e.what + " within --wait: " + e.hint
	}
	return e.what + " within --wait"
}

// exitStatus maps what a command returned to the process's exit status.
func exitStatus(err error) int {
	if err == nil {
		return exitDone
	}
	if s, ok := errors.AsType[*signalError](err); ok {
		return exitSignal + int(s.signal)
	}
	if _, ok := errors.AsType[*usageError](err); ok {
		return exitUsage
	}
	if t, ok := errors.AsType[*toldError](err); ok {
		return t.status
	}
	if e, ok := errors.AsType[*statusError](err); ok {
		return e.status
	}
	if _, ok := errors.AsType[*waitError](err); ok {
		return exitNotNow
	}
	switch {
	case errors.Is(err, gearsfs.ErrMaybe):
		return exitUnknown
	case errors.Is(err, gearsfs.ErrEmpty), errors.Is(err, gearsfs.ErrFull), errors.Is(err, gearsfs.ErrUnmet):
		return exitNotNow
	case errors.Is(err, gearsfs.ErrSealed), errors.Is(err, gearsfs.ErrEnd):
		return exitEnded
	case errors.Is(err, gearsfs.ErrKey):
		return exitUsage
	}
	return exitFailed
}

// advice says what to do about errors whose cure is always the same.
func advice(err error) string {
	switch {
	case errors.Is(err, gearsfs.ErrNoNode):
		return "the node is unreachable; start one with gearsfsd or gearsfs mount, or name another with --node or GEARSFS_NODE"
	case errors.Is(err, syscall.ENOTCONN):
		return "the mount there is dead: detach it with gearsfs umount"
	case errors.Is(err, gearsfs.ErrVersion), errors.Is(err, gearsfs.ErrProtocol):
		return "check the address, and gearsfs version on both sides"
	case errors.Is(err, gearsfs.ErrNotLeader):
		return "nobody leads the volume now: a majority of its nodes must run and reach each other, gearsfs nodes shows which do"
	case errors.Is(err, gearsfs.ErrNotMember):
		return "gearsfs nodes shows which nodes the volume has"
	case errors.Is(err, gearsfs.ErrMaybe):
		return "the change may have been made: look before repeating it, or give puts an --id"
	case errors.Is(err, gearsfs.ErrQuota):
		return "gearsfs quota DIR shows it and changes it"
	case errors.Is(err, gearsfs.ErrBlocks):
		return "--force takes from it all the same"
	case errors.Is(err, gearsfs.ErrInUse):
		return "stop the other process or use another data directory"
	case errors.Is(err, gearsfs.ErrForeign):
		return "name an empty directory or one that GearsFS made"
	}
	return ""
}

// errorLine is the one line that is written to standard error.
func errorLine(command string, err error) string {
	line := command + ": " + err.Error()
	if a := advice(err); a != "" {
		line += ": " + a
	}
	if _, ok := errors.AsType[*usageError](err); ok {
		line += " (see " + command + " --help)"
	}
	return oneLine(line)
}

// oneLine makes a line of a message, which may name files: any name.
func oneLine(message string) string {
	return harmless(strings.Join(strings.FieldsFunc(message, func(r rune) bool { return r == '\n' || r == '\r' }), "; "))
}

// quiet reports whether err needs no words: whoever closed the pipe knows.
func quiet(err error) bool {
	for err != nil {
		switch e := err.(type) {
		case *signalError:
			return e.signal == syscall.SIGPIPE
		case *toldError:
			return true
		}
		err = errors.Unwrap(err) // not into joined errors: the other one needs them
	}
	return false
}

// cause replaces the error of a context that ended by the reason it ended for.
func cause(ctx context.Context, err error) error {
	if err == nil || ctx.Err() == nil || !errors.Is(err, ctx.Err()) {
		return err
	}
	return context.Cause(ctx)
}

// outputError is what a failed write to standard output becomes: as if the
// signal that is sent for a broken pipe had ended the process.
func outputError(err error) error {
	if errors.Is(err, syscall.EPIPE) {
		return &signalError{signal: syscall.SIGPIPE}
	}
	return fmt.Errorf("standard output: %w", err)
}
