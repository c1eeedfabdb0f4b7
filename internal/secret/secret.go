// Package secret is the vocabulary of credentials: a [Value] that hides itself,
// the [Binding] that says where and how it may be used, the [Grant] of one
// secret to one sandbox, and the [StandIn] that a sandbox may hold instead. The
// package must not print, log or encode a value but where its caller asks for
// that by name: [Value.Reveal] and [WriteGrants].
package secret

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"regexp"
	"strings"
)

// Bounds of a value, in bytes. A shorter one cannot be scrubbed from what a
// sandbox receives without taking out what only looks like it.
const (
	MinBytes = 8
	MaxBytes = 16 << 10
)

// hidden stands wherever a value is printed or encoded.
const hidden = "[secret]"

// Value is a secret's value. However it is printed or encoded, also deep in
// other values, [hidden] comes out. The zero Value is none.
type Value struct {
	// A function, because printers that walk through values, by way of
	// unexported fields and pointers too, stop at one.
	reveal func() string
}

// NewValue makes a value of MinBytes to MaxBytes bytes without a NUL.
func NewValue(s string) (Value, error) {
	switch {
	case len(s) < MinBytes:
		return Value{}, fmt.Errorf("a secret of %d bytes: want at least %d, since a shorter one cannot be taken out of responses without harm; use a longer one", len(s), MinBytes)
	case len(s) > MaxBytes:
		return Value{}, fmt.Errorf("a secret of more than %d bytes is not supported; use a shorter one", MaxBytes)
	case strings.Contains(s, "\x00"):
		return Value{}, errors.New("a secret with a NUL byte is not supported; give it in a text form, such as base64")
	}
	s = strings.Clone(s)
	return Value{func() string { return s }}, nil
}

// Reveal is the value itself, "" of the zero Value.
func (v Value) Reveal() string {
	if v.reveal == nil {
		return ""
	}
	return v.reveal()
}

// Equal reports whether both are the same value.
func (v Value) Equal(o Value) bool { return v.Reveal() == o.Reveal() }

// String hides the value.
func (v Value) String() string { return hidden }

// GoString hides the value.
func (v Value) GoString() string { return hidden }

// Format hides the value from every verb.
func (v Value) Format(f fmt.State, _ rune) { io.WriteString(f, hidden) }

// MarshalText hides the value.
func (v Value) MarshalText() ([]byte, error) { return []byte(hidden), nil }

// MarshalJSON hides the value.
func (v Value) MarshalJSON() ([]byte, error) { return []byte(`"` + hidden + `"`), nil }

// LogValue hides the value.
func (v Value) LogValue() slog.Value { return slog.StringValue(hidden) }

// errNotEncoded is of encodings that are made to be decoded again.
var errNotEncoded = errors.New("a secret is not encoded; only WriteGrants passes one on")

// MarshalBinary refuses.
func (v Value) MarshalBinary() ([]byte, error) { return nil, errNotEncoded }

// GobEncode refuses.
func (v Value) GobEncode() ([]byte, error) { return nil, errNotEncoded }

var namePattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$`)

// CheckName says what is wrong with a secret's name.
func CheckName(name string) error {
	if !namePattern.MatchString(name) {
		return fmt.Errorf("secret name %.80q: want a letter or digit, then up to 63 letters, digits, '_', '.' and '-'", name)
	}
	return nil
}
