package egress

import (
	"context"
	"errors"
	"net"
	"syscall"

	"creel/internal/policy"
)

// Denied is the error where the policy says no.
type Denied struct{ Decision policy.Decision }

func (e *Denied) Error() string { return "denied: " + e.Decision.Reason() }

// The words of [Class], short and stable: they go on record.
const (
	DeniedByPolicy = "denied"
	Unrecorded     = "unrecorded" // the witness failed, nothing was done
	NoSuchName     = "no-such-name"
	ResolverFailed = "resolver-failed"
	ProxyFailed    = "proxy-failed" // the proxy cannot be reached, or does not answer as one
	ProxyRefused   = "proxy-refused"
	TimedOut       = "timed-out"
	Canceled       = "canceled"
	Refused        = "refused"
	Unreachable    = "unreachable"
	Failed         = "failed"
)

// failure is an error whose class its cause does not tell.
type failure struct {
	class string
	err   error
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

// Class is a word for an error of [Dialer.Dial], and "" for nil.
func Class(err error) string {
	var denied *Denied
	var f *failure
	var timeout net.Error
	switch {
	case err == nil:
		return ""
	case errors.As(err, &denied):
		return DeniedByPolicy
	case errors.Is(err, context.Canceled):
		return Canceled
	case errors.As(err, &f):
		return f.class
	case errors.As(err, &timeout) && timeout.Timeout():
		return TimedOut
	case errors.Is(err, syscall.ECONNREFUSED):
		return Refused
	case errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.EADDRNOTAVAIL):
		return Unreachable
	}
	return Failed
}
