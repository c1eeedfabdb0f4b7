package egress

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
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
	Reset          = "reset"
	Closed         = "closed" // in the middle
	UnknownSigner  = "unknown-authority"
	WrongName      = "certificate-of-another-name"
	Expired        = "certificate-expired"
	BadCertificate = "bad-certificate"
	TLSFailed      = "tls-failed"
	Failed         = "failed"
)

// explained are the classes that say that a destination could not be had, in
// words for people: what was wrong, and what to do about it.
var explained = map[string][2]string{
	NoSuchName:     {"the name has no address", "check the spelling of the name, and whether this machine can look it up"},
	ResolverFailed: {"the name could not be looked up: no nameserver of this machine answered", "check this machine's /etc/resolv.conf"},
	ProxyFailed:    {"the proxy could not be reached, or did not answer as one", "check HTTPS_PROXY of the creel that started the task"},
	ProxyRefused:   {"the proxy refused to connect to it", "ask who runs the proxy"},
	TimedOut:       {"it did not answer in time", ""},
	Refused:        {"it refused the connection: nothing listens there", "check the port"},
	Unreachable:    {"this machine has no way to it", "check this machine's network"},
	Reset:          {"it broke the connection off", ""},
	Closed:         {"it closed the connection before it had answered", ""},
	UnknownSigner: {"its certificate is of an authority that this machine does not trust",
		"name the authority in the rule, `upstream: {address: HOST:PORT, ca: FILE}`, or let this machine trust it"},
	WrongName:      {"its certificate is for another name", "check the name; somebody else may answer for it"},
	Expired:        {"its certificate has expired, or is not valid yet", "check this machine's clock, and tell who runs it"},
	BadCertificate: {"its certificate is not valid", "tell who runs it"},
	TLSFailed:      {"it does not speak TLS as it should", "check the port, or write `protocol: http` in the rule where it speaks plain HTTP"},
	Failed:         {"the connection failed", ""},
}

// Explain says in words what a class of [Class] means for a destination that is
// allowed, and what to do; "" where there is nothing to tell.
func Explain(class string) (reason, hint string) { return explained[class][0], explained[class][1] }

// tlsClass is the class of what went wrong with TLS, or "".
func tlsClass(err error) string {
	var signer x509.UnknownAuthorityError
	var name x509.HostnameError
	var invalid x509.CertificateInvalidError
	var certificate *tls.CertificateVerificationError
	var alert tls.AlertError
	var record tls.RecordHeaderError
	switch {
	case errors.As(err, &signer):
		return UnknownSigner
	case errors.As(err, &name):
		return WrongName
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return Expired
	case errors.As(err, &certificate), errors.As(err, &invalid):
		return BadCertificate
	case errors.As(err, &alert), errors.As(err, &record):
		return TLSFailed
	}
	return ""
}

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
	case tlsClass(err) != "":
		return tlsClass(err)
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return Reset
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return Closed
	}
	return Failed
}
