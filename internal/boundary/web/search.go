package web

import (
	"io"
	"time"

	"creel/internal/boundary/scrub"
)

// idleRelease is how long bytes that may be the beginning of a value are held
// when nothing follows them, so that a peer that waits for an answer gets what
// it can be given.
const idleRelease = 20 * time.Millisecond

// filter changes a stream as it passes, and may hold bytes back.
type filter interface {
	Write(dst, p []byte) ([]byte, error)
	Pending() int
	Release(dst []byte) []byte // gives what an idle stream may be given
	Flush(dst []byte) []byte   // at the stream's end
}

// plain is the filter of a stream without structure.
type plain struct{ *scrub.Stream }

func (p plain) Write(dst, b []byte) ([]byte, error) { return p.Stream.Write(dst, b), nil }

// searched is a stream behind a filter. It reads ahead in the background only
// while bytes are held back. It is for one reader.
type searched struct {
	src    io.Reader
	filter filter

	buf      []byte // read from src
	ready    []byte // filtered, not yet given
	err      error  // of src or filter, given once ready is empty
	ahead    chan int
	released bool // what can be released of what is held was
}

func newSearched(src io.Reader, f filter) *searched {
	return &searched{src: src, filter: f, buf: make([]byte, 32<<10)}
}

func (s *searched) Read(p []byte) (int, error) {
	for len(s.ready) == 0 {
		if s.err != nil {
			return 0, s.err
		}
		s.fill()
	}
	n := copy(p, s.ready)
	s.ready = s.ready[n:]
	return n, nil
}

func (s *searched) fill() {
	n, idle := s.next()
	if idle {
		s.ready, s.released = s.filter.Release(s.ready[:0]), true
		return
	}
	s.released = false
	var err error
	s.ready, err = s.filter.Write(s.ready[:0], s.buf[:n])
	switch {
	case err != nil:
		s.ready, s.err = nil, err
	case s.err == io.EOF:
		s.ready = s.filter.Flush(s.ready)
	}
}

// next reads once. It reports idle instead where bytes are held back and none
// follow soon.
func (s *searched) next() (n int, idle bool) {
	if s.ahead == nil {
		if s.filter.Pending() == 0 {
			n, s.err = s.src.Read(s.buf)
			return n, false
		}
		s.ahead = make(chan int, 1)
		go func(ahead chan<- int) { // ends with the read; settle waits for it
			n, err := s.src.Read(s.buf)
			s.err = err
			ahead <- n
		}(s.ahead)
	}
	var timeout <-chan time.Time
	if !s.released {
		timer := time.NewTimer(idleRelease)
		defer timer.Stop()
		timeout = timer.C
	}
	select {
	case n = <-s.ahead:
		s.ahead = nil
		return n, false
	case <-timeout:
		return 0, true
	}
}

// settle waits for a read that is under way; src was closed.
func (s *searched) settle() {
	if s.ahead != nil {
		<-s.ahead
		s.ahead = nil
	}
}

// Search is what comes of a stream without structure, up to the first mark in
// it: reading then fails, and found is told.
func Search(src io.Reader, marks *scrub.Set, found func(names []string)) io.Reader {
	stream := marks.Stream()
	return newSearched(src, stopping{plain{stream}, stream, found})
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
