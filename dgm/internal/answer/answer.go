// Package answer says an error in the answer to a request, and reads it out of one:
// the same error at both ends.
package answer

import (
	"fmt"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/wire"
)

// Of is the answer that carries err and nothing else.
func Of(err error) *wire.Answer {
	return &wire.Answer{Code: uint32(gearsfs.CodeOf(err)), Reason: err.Error()}
}

// Failure is the response that carries err and nothing else.
func Failure(err error) *wire.Response { return &wire.Response{Answer: Of(err)} }

// ErrorOf is the error that a response carries, or nil.
func ErrorOf(r *wire.Response) error {
	if r.Answer == nil {
		return nil
	}
	return Error(r.Answer)
}

// Error is the error that an answer carries, or nil.
func Error(a *wire.Answer) error {
	reason := a.Reason
	if a.FailedStep != 0 {
		reason = fmt.Sprintf("step %d: %s", a.FailedStep, reason)
	}
	return gearsfs.FromCode(gearsfs.Code(a.Code), reason)
}
