// Package decode opens the content codings of HTTP. [New] wraps a body; the
// reader that it returns decodes while it is read, gives out what a sender has
// flushed before more arrives, and holds for each coding its window (32 KiB, for
// brotli up to 16 MiB) and little else, whatever the body claims: there is no
// bomb for it but for a reader who keeps all that he reads. The package must not
// read ahead of its caller, save for one buffer a coding, and must not guess at
// codings that were not named.
package decode

import (
	"bufio"
	"compress/flate"
	"compress/gzip"
	"compress/zlib"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync/atomic"

	"github.com/andybalholm/brotli"
)

// MaxCodings is how many codings may lie on one another.
const MaxCodings = 3

var (
	// ErrUnknown is what New returns, wrapped, for codings that it cannot open.
	ErrUnknown = errors.New("unknown content coding")
	// ErrClosed is what Read returns after Close.
	ErrClosed = errors.New("read a closed body")
)

// New makes a reader of body as it was before the codings in encoding, the value
// of Content-Encoding, where several values are joined by commas, were applied:
// gzip, x-gzip, deflate (with its zlib header or, as many servers send it,
// without), br and identity. New reads nothing. Close closes body, at most once,
// may be called from another goroutine and ends a Read that decodes without end.
//
// Without any coding New returns body itself. A body of no bytes is decoded to
// one of no bytes.
func New(encoding string, body io.ReadCloser) (io.ReadCloser, error) {
	var openers []func(*bufio.Reader) (io.Reader, error)
	for name := range strings.SplitSeq(encoding, ",") {
		switch strings.ToLower(strings.Trim(name, " \t")) {
		case "", "identity":
		case "gzip", "x-gzip":
			openers = append(openers, openGzip)
		case "deflate":
			openers = append(openers, openDeflate)
		case "br":
			openers = append(openers, openBrotli)
		default:
			return nil, fmt.Errorf("decode body: %w %q", ErrUnknown, name)
		}
	}
	switch {
	case len(openers) == 0:
		return body, nil
	case len(openers) > MaxCodings:
		return nil, fmt.Errorf("decode body: %w: %d codings and at most %d are opened", ErrUnknown, len(openers), MaxCodings)
	}
	b := &decoded{body: body}
	b.top = &source{r: body, closed: &b.closed}
	for i := len(openers) - 1; i >= 0; i-- { // the last was applied last
		l := &layer{open: openers[i], from: bufio.NewReader(b.top)}
		b.top = &source{r: l, closed: &b.closed}
	}
	return b, nil
}

// decoded is a body with its decoders.
type decoded struct {
	body   io.Closer
	top    io.Reader
	closed atomic.Bool
}

func (d *decoded) Read(p []byte) (int, error) { return d.top.Read(p) }

func (d *decoded) Close() error {
	if d.closed.Swap(true) {
		return nil
	}
	return d.body.Close()
}

// source is what a decoder reads from. A few bytes can stand for gigabytes that
// the next decoder turns into nothing; here such a run ends when the body is
// closed.
type source struct {
	r      io.Reader
	closed *atomic.Bool
}

func (s *source) Read(p []byte) (int, error) {
	if s.closed.Load() {
		return 0, ErrClosed
	}
	return s.r.Read(p)
}

// layer is one coding; its decoder is made when it is read first.
type layer struct {
	open func(*bufio.Reader) (io.Reader, error)
	from *bufio.Reader
	r    io.Reader
	err  error // for good
}

func (l *layer) Read(p []byte) (n int, err error) {
	if l.err != nil || len(p) == 0 {
		return 0, l.err
	}
	// The brotli decoder is a translation of one that relied on C; a fault
	// in it must be the end of this body alone.
	defer func() {
		if fault := recover(); fault != nil {
			n, err = 0, fmt.Errorf("decode body: decoder failed: %v", fault)
		}
		l.err = err
	}()
	if l.r == nil {
		if _, err := l.from.Peek(1); err != nil {
			return 0, err
		}
		if l.r, err = l.open(l.from); err != nil {
			return 0, unexpected(err)
		}
	}
	return l.r.Read(p)
}

// unexpected is for what is not empty, and ends in a header.
func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

func openGzip(r *bufio.Reader) (io.Reader, error) { return gzip.NewReader(r) }

func openBrotli(r *bufio.Reader) (io.Reader, error) { return brotli.NewReader(r), nil }

func openDeflate(r *bufio.Reader) (io.Reader, error) {
	header, err := r.Peek(2)
	if err != nil {
		return nil, err
	}
	// RFC 1950, section 2.2: method 8, a window of at most 32 KiB, a multiple of 31.
	if header[0]&0xF == 8 && header[0]>>4 <= 7 && (int(header[0])<<8|int(header[1]))%31 == 0 {
		return zlib.NewReader(r)
	}
	return flate.NewReader(r), nil
}
