package engine

import (
	"fmt"

	"github.com/containerd/errdefs"
)

// Errors about what was asked for have a class of containerd/errdefs, by which a
// front door chooses an exit code or a status:
//
//	ErrNotFound            there is no such sandbox
//	ErrAlreadyExists       the name is in use
//	ErrInvalidArgument     what was asked for is malformed, or fits several
//	ErrFailedPrecondition  the sandbox is in another state, or damaged
//	ErrUnavailable         somebody else is at it: try again
//	ErrPermissionDenied    it was refused: see [Refused]

// classed is an error in its own words.
type classed struct {
	error
	class error
}

func (c classed) Unwrap() []error { return []error{c.error, c.class} }

// errorf is an error of a class.
func errorf(class error, format string, args ...any) error {
	return classed{fmt.Errorf(format, args...), class}
}

// NoSuch is the error of a reference that fits no sandbox.
func NoSuch(ref string) error {
	return errorf(errdefs.ErrNotFound, "no such sandbox: %s; `creel ps -a` lists them", ref)
}

// Unwrap is the class of the error.
func (r *Refused) Unwrap() error { return errdefs.ErrPermissionDenied }
