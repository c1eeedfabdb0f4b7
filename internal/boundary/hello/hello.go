// Package hello reads the TLS ClientHello at the beginning of a connection, in
// order to know which server the client names before the connection is spliced
// to it. The main type is [Hello]; [Read] gives back every byte that it took.
// The package must not write to the connection, and must not import anything of
// ours. It reads the first ClientHello only: a second one, which a server may
// ask for by a HelloRetryRequest, goes through the splice unread, as does all
// that is encrypted.
package hello

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
)

const (
	// MaxHello is the longest ClientHello that is read, in bytes without the
	// record headers. Usual ones have less than 2 KiB.
	MaxHello = 64 << 10
	// MaxBytes is the most that [Read] takes from a connection: the hello and
	// the headers of its records, however small a client makes them.
	MaxBytes = 128 << 10
)

var (
	// ErrNotTLS says that the first bytes begin no TLS connection; SSL 2 is
	// none.
	ErrNotTLS = errors.New("the connection does not begin with a TLS handshake")
	// ErrMalformed says that the connection begins like TLS, and breaks its
	// rules.
	ErrMalformed = errors.New("the TLS ClientHello is malformed")
	// ErrTooLong says that the ClientHello is over [MaxHello] or [MaxBytes].
	ErrTooLong = errors.New("the TLS ClientHello is too long")
)

// Hello is what a ClientHello says in the clear.
type Hello struct {
	// ServerName is the name as sent, "" where there is none: visible ASCII,
	// but not always a host name, nor in one form.
	ServerName string
	ALPN       []string // protocols offered, in order; each any 1 to 255 bytes
	// ECH says that a ClientHello may be hidden inside, with another server
	// name: the extension encrypted_client_hello or its forerunner is present.
	// Browsers also send it with random content (GREASE), on purpose
	// indistinguishable.
	ECH bool
}

const (
	headerSize    = 5       // content type, version, length
	recordMax     = 1 << 14 // RFC 8446 section 5.1
	typeHandshake = 22
	clientHello   = 1
)

// Read reads one ClientHello and no byte beyond the record that it ends in. It
// returns all that was read, in order, also along with an error. Errors are
// [ErrNotTLS], [ErrMalformed], [ErrTooLong] or, wrapped, that of r; an end of
// the stream is io.EOF before the first byte, else io.ErrUnexpectedEOF. How
// long it waits is a matter of the caller's read deadline.
func Read(r io.Reader) (Hello, []byte, error) {
	in := input{r: r}
	message, err := in.message()
	if err != nil {
		return Hello{}, in.taken, err
	}
	h, ok := parse(message)
	if !ok {
		return Hello{}, in.taken, ErrMalformed
	}
	return h, in.taken, nil
}

// input is a stream, and what was read of it.
type input struct {
	r     io.Reader
	taken []byte
}

// next reads exactly n bytes.
func (in *input) next(n int) ([]byte, error) {
	begin := len(in.taken)
	if begin+n > MaxBytes {
		return nil, ErrTooLong
	}
	in.taken = slices.Grow(in.taken, n)
	got, err := io.ReadFull(in.r, in.taken[begin:begin+n])
	in.taken = in.taken[:begin+got]
	if err == io.EOF && begin > 0 {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return nil, fmt.Errorf("read ClientHello: %w", err)
	}
	return in.taken[begin:], nil
}

// message joins the fragments of the first handshake message, a ClientHello,
// and gives its body. The message must end where a record does: a client has
// nothing to add before it is answered.
func (in *input) message() ([]byte, error) {
	var message []byte
	for {
		fragment, err := in.record()
		if err != nil {
			return nil, err
		}
		message = append(message, fragment...)
		if message[0] != clientHello {
			return nil, ErrMalformed
		}
		if len(message) < 4 {
			continue
		}
		end := 4 + int(message[1])<<16 + int(message[2])<<8 + int(message[3])
		switch {
		case end > MaxHello:
			return nil, ErrTooLong
		case len(message) > end:
			return nil, ErrMalformed
		case len(message) == end:
			return message[4:], nil
		}
	}
}

// record reads one record of handshake data, which is never empty (RFC 8446
// section 5.1). The first byte is looked at before there are others: what is
// not TLS may not have five.
func (in *input) record() ([]byte, error) {
	fault := ErrMalformed
	if len(in.taken) == 0 {
		fault = ErrNotTLS
	}
	kind, err := in.next(1)
	if err != nil {
		return nil, err
	}
	if kind[0] != typeHandshake {
		return nil, fault
	}
	rest, err := in.next(headerSize - 1)
	if err != nil {
		return nil, err
	}
	if rest[0] != 3 { // the major version, of TLS and of SSL 3
		return nil, fault
	}
	length := int(binary.BigEndian.Uint16(rest[2:]))
	if length == 0 || length > recordMax {
		return nil, ErrMalformed
	}
	return in.next(length)
}

// visible reports whether b is one or more characters of ASCII that leave a
// mark.
func visible(b []byte) bool {
	return len(b) > 0 && !bytes.ContainsFunc(b, func(c rune) bool { return c <= ' ' || c >= 0x7f })
}
