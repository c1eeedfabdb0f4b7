package web

import (
	"io"
	"time"

	"creel/internal/boundary/scrub"
)

// Bytes that may be the beginning of a value are held when nothing follows
// them, so that a peer that waits for an answer gets what it can be given. One or
// two bytes are the beginning of a value by chance, and soon let go; more
// hardly ever are, and wait as long as a network may take for the rest.
const (
	chance       = 2
	chanceHold   = 20 * time.Millisecond
	suspectsHold = 2 * time.Second
)

// hold is how long held bytes wait for more.
func hold(pending int) time.Duration {
	if pending <= chance {
		return chanceHold
	}
	return suspectsHold
}

// filter changes a stream as it passes, and may hold bytes back.
type filter interface {
	Write(dst, p []byte) ([]byte, error)
	Pending() int
	Release(dst []byte) []byte // gives what an idle stream may be given
	Flush(dst []byte) []byte   // at the stream's end
}

// inPlace is a filter that needs no second buffer while it holds nothing back.
type inPlace interface{ Filter(p []byte) []byte }

// plain is the filter of a stream without structure. It is inPlace, too.
type plain struct{ *scrub.Stream }

func (p plain) Write(dst, b []byte) ([]byte, error) { return p.Stream.Write(dst, b), nil }

// searched is a stream behind a filter. It reads ahead in the background only
// while bytes are held back. It is for one reader.
type searched struct {
	src    io.Reader
	filter filter
	link   *link // waits for what reads ahead; nil: the caller closes src

	buffers  *buffers
	buf, out []byte // read from src, and filtered; nil before the beginning and behind the end
	ready    []byte // of out, not yet given
	err      error  // of src or filter, given once ready is empty
	ahead    chan readAhead
	released bool // what can be released of what is held was
}

// readAhead is what a read in the background came to.
type readAhead struct {
	n   int
	err error
}

func newSearched(src io.Reader, f filter, l *link) *searched {
	return &searched{src: src, filter: f, link: l, buffers: l.buffers}
}

func (s *searched) Read(p []byte) (int, error) {
	for len(s.ready) == 0 {
		if s.err != nil {
			s.free()
			return 0, s.err
		}
		if f, ok := s.filter.(inPlace); ok && len(p) >= bufferSize && s.ahead == nil && s.filter.Pending() == 0 {
			if n := s.direct(f, p); n > 0 {
				return n, nil
			}
			continue
		}
		if s.buf == nil {
			s.buf, s.out = s.buffers.Get(), s.buffers.Get()
		}
		s.fill()
	}
	n := copy(p, s.ready)
	s.ready = s.ready[n:]
	return n, nil
}

// direct reads once into p, which saves two copies of everything.
func (s *searched) direct(f inPlace, p []byte) (n int) {
	n, s.err = s.src.Read(p)
	n = len(f.Filter(p[:n]))
	if s.err == io.EOF {
		s.ready = s.filter.Flush(nil)
	}
	return n
}

func (s *searched) fill() {
	n, idle := s.next()
	if idle {
		s.out, s.released = s.filter.Release(s.out[:0]), true
		s.ready = s.out
		return
	}
	s.released = false
	var err error
	s.out, err = s.filter.Write(s.out[:0], s.buf[:n])
	switch {
	case err != nil:
		s.out, s.err = s.out[:0], err
	case s.err == io.EOF:
		s.out = s.filter.Flush(s.out)
	}
	s.ready = s.out
}

// free gives the buffers back. Nothing reads ahead once there is an error.
func (s *searched) free() {
	if s.buf != nil {
		s.buffers.Put(s.buf)
		s.buffers.Put(s.out)
		s.buf, s.out, s.ready = nil, nil, nil
	}
}

// next reads once. It reports idle instead where bytes are held back and none
// follow soon.
func (s *searched) next() (n int, idle bool) {
	if s.ahead == nil && (s.filter.Pending() == 0 || !s.readAhead()) {
		n, s.err = s.src.Read(s.buf)
		return n, false
	}
	var timeout <-chan time.Time
	if !s.released {
		timer := time.NewTimer(hold(s.filter.Pending()))
		defer timer.Stop()
		timeout = timer.C
	}
	select {
	case got := <-s.ahead:
		s.ahead, s.err = nil, got.err
		return got.n, false
	case <-timeout:
		return 0, true
	}
}

// readAhead reads in the background, unless the connection has ended. The read
// ends with src, at the latest with the connection, which waits for it.
func (s *searched) readAhead() bool {
	if s.link != nil && !s.link.begin() {
		return false
	}
	ahead := make(chan readAhead, 1)
	s.ahead = ahead
	go func() {
		if s.link != nil {
			defer s.link.work.Done()
		}
		n, err := s.src.Read(s.buf)
		ahead <- readAhead{n, err}
	}()
	return true
}

// Search is what comes of a stream without structure, up to the first mark in
// it: reading then fails, and found is told. One read of src may go on when the
// caller has stopped reading, and ends with src.
func Search(src io.Reader, marks *scrub.Set, found func(names []string)) io.Reader {
	stream := marks.Detector()
	return &searched{src: src, filter: stopping{plain{stream}, stream, found}, buffers: new(buffers)}
}

// stopping lets nothing pass behind a match.
type stopping struct {
	filter
	stream *scrub.Stream
	found  func(names []string)
}

func (s stopping) Write(dst, p []byte) ([]byte, error) {
	out, err := s.filter.Write(dst, p)
	if s.stream.Found() > 0 {
		s.found(s.stream.Names())
		return nil, errMark
	}
	return out, err
}
