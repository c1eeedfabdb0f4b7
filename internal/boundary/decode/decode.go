// Package decode opens the content codings of HTTP. [Budget.Open] wraps a body;
// the reader that it returns decodes while it is read, gives out what a sender
// has flushed before more arrives, and holds for each coding its window and its
// tables, whatever the body claims: there is no bomb for it but for a reader who
// keeps all that he reads. A few bytes can ask for a window of 16 MiB, so that
// all decoders of one [Budget] share its memory: a decoder that would exceed it
// is not made. The package must not read ahead of its caller, save for one
// buffer a coding, and must not guess at codings that were not named.
package decode

import (
	"bufio"
	"compress/flate"
	"compress/gzip"
	"compress/zlib"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/andybalholm/brotli"
	"golang.org/x/sync/semaphore"
)

// MaxCodings is how many codings may lie on one another. Only one of them may be
// brotli.
const MaxCodings = 3

// What a decoder holds at most, in bytes, with the buffer before it. Brotli's
// tables are 256 trees for each of its three alphabets.
const (
	flateCost       = 64 << 10
	brotliTables    = 3<<20 + 128<<10
	maxBrotliWindow = 24 // bits; RFC 7932, section 9.1
	brotliCost      = 1<<maxBrotliWindow + brotliTables
)

var (
	// ErrUnknown is what New returns, wrapped, for codings that it cannot open.
	ErrUnknown = errors.New("unknown content coding")
	// ErrBudget is what it returns, wrapped, where other decoders did not give
	// enough memory back in time.
	ErrBudget = errors.New("the memory for decoders is used up")
	// ErrClosed is what Read returns after Close.
	ErrClosed = errors.New("read a closed body")
)

// Budget is memory that any number of decoders share. It is safe for use by
// several goroutines.
type Budget struct {
	size   int64
	memory *semaphore.Weighted
}

// NewBudget makes a budget of so many bytes. A body may need some 20 MiB.
func NewBudget(bytes int64) *Budget { return &Budget{bytes, semaphore.NewWeighted(bytes)} }

// Codings are the names in values of Content-Encoding, as they were applied,
// without identity.
func Codings(encoding string) (names []string) {
	for name := range strings.SplitSeq(encoding, ",") {
		switch name = strings.ToLower(strings.Trim(name, " \t")); name {
		case "", "identity":
		default:
			names = append(names, name)
		}
	}
	return names
}

// Open makes a reader of body as it was before the codings in encoding, the value
// of Content-Encoding, where several values are joined by commas, were applied:
// gzip, x-gzip, deflate (with its zlib header or, as many servers send it,
// without), br and identity. It reads nothing, and waits until ctx ends for the
// memory that the decoders may need. Close closes body, at most once, may be
// called from another goroutine and ends a Read that decodes without end. The
// caller closes what Open returns: the end of the body and Close both give the
// memory back.
//
// Without any coding Open returns body itself. A body of no bytes is decoded to
// one of no bytes.
func (b *Budget) Open(ctx context.Context, encoding string, body io.ReadCloser) (io.ReadCloser, error) {
	l := &lease{budget: b}
	var openers []func(*bufio.Reader) (io.Reader, error)
	brotlis := 0
	for _, name := range Codings(encoding) {
		switch name {
		case "gzip", "x-gzip":
			openers = append(openers, openGzip)
			l.held += flateCost
		case "deflate":
			openers = append(openers, openDeflate)
			l.held += flateCost
		case "br":
			openers = append(openers, l.openBrotli)
			l.held += brotliCost
			brotlis++
		default:
			return nil, fmt.Errorf("decode body: %w %q", ErrUnknown, name)
		}
	}
	switch {
	case len(openers) == 0:
		return body, nil
	case len(openers) > MaxCodings || brotlis > 1:
		return nil, fmt.Errorf("decode body: %w: %d codings, %d of them br; at most %d and 1 are opened", ErrUnknown, len(openers), brotlis, MaxCodings)
	}
	if b.memory.Acquire(ctx, l.held) != nil {
		return nil, fmt.Errorf("decode body: %w: %d bytes are needed, and all may have %d", ErrBudget, l.held, b.size)
	}
	d := &decoded{body: body, lease: l}
	d.top = &source{r: body, closed: &d.closed}
	for _, open := range slices.Backward(openers) { // the last was applied last
		layer := &layer{open: open, from: bufio.NewReader(d.top)}
		d.top = &source{r: layer, closed: &d.closed}
	}
	return d, nil
}

// lease is what the decoders of one body have of a budget. It is taken for the
// largest window, and what is too much is given back once the window is known.
type lease struct {
	budget *Budget
	held   int64
}

func (l *lease) give(n int64) {
	l.held -= n
	l.budget.memory.Release(n)
}

// decoded is a body with its decoders.
type decoded struct {
	body   io.Closer
	closed atomic.Bool

	mu    sync.Mutex // held while it is read
	top   io.Reader  // nil: the decoders are gone
	err   error      // then
	lease *lease
}

func (d *decoded) Read(p []byte) (n int, err error) {
	d.mu.Lock()
	defer func() {
		d.mu.Unlock()
		if d.closed.Load() { // Close may have found it locked
			d.mu.Lock()
			d.drop(ErrClosed)
			d.mu.Unlock()
		}
	}()
	if d.top == nil {
		return 0, d.err
	}
	if n, err = d.top.Read(p); err != nil {
		d.drop(err)
	}
	return n, err
}

// drop lets the decoders go, with mu held.
func (d *decoded) drop(why error) {
	if d.top != nil {
		d.top, d.err = nil, why
		d.lease.give(d.lease.held)
	}
}

func (d *decoded) Close() error {
	if d.closed.Swap(true) {
		return nil
	}
	err := d.body.Close()
	if d.mu.TryLock() { // else Read does it
		d.drop(ErrClosed)
		d.mu.Unlock()
	}
	return err
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

func (l *lease) openBrotli(r *bufio.Reader) (io.Reader, error) {
	first, err := r.Peek(1)
	if err != nil {
		return nil, err
	}
	l.give(1<<maxBrotliWindow - 1<<brotliWindow(first[0]))
	return brotli.NewReader(r), nil
}

// brotliWindow is the size of the window that a stream begins with, in bits; RFC
// 7932, section 9.1. What is no size there is refused by the decoder.
func brotliWindow(first byte) int {
	switch {
	case first&1 == 0:
		return 16
	case first>>1&7 != 0:
		return 17 + int(first>>1&7)
	case first>>4&7 > 1:
		return 8 + int(first>>4&7)
	default:
		return 17
	}
}

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
