package framing

import "bytes"

// Bounds. What is longer is a fault.
const (
	maxHead      = 64 << 10 // bytes of a request line and its fields
	maxFields    = 200      // lines
	maxTrailer   = 2 << 10  // bytes; net/http reads up to 4 KiB
	maxChunkLine = 64       // bytes; a size has at most 16 digits
	maxMethod    = 32
	maxHost      = 255
	maxLength    = 1 << 62 // of a body or a chunk
)

type state uint8

const (
	requestLine state = iota
	field
	body // of a known length
	chunkSize
	chunkData
	chunkEnd // the line end behind a chunk
	trailer
)

// scanner follows requests, one behind the other.
type scanner struct {
	state state
	head  head
	line  []byte // the beginning of the line that has not ended
	room  int    // bytes that the block of lines may still have
	left  int64  // bytes of the body or chunk that are to come
}

func newScanner() scanner { return scanner{room: maxHead} }

// scan goes over the next bytes and says how many of them may pass: all, or
// those before the line with the first fault. After a fault it must not be called.
func (s *scanner) scan(p []byte) (n int, fault *Fault) {
	for n < len(p) {
		if s.state == body || s.state == chunkData {
			n += s.skip(len(p) - n)
			continue
		}
		part := p[n:]
		end := bytes.IndexByte(part, '\n')
		if end >= 0 {
			part = part[:end]
		}
		reason := s.take(part, end >= 0)
		if reason != "" {
			return n, &Fault{reason}
		}
		n += len(part)
		if end >= 0 {
			n++
		}
	}
	return n, nil
}

// skip passes over at most n bytes of a body.
func (s *scanner) skip(n int) int {
	n = int(min(int64(n), s.left))
	s.left -= int64(n)
	switch {
	case s.left > 0:
	case s.state == chunkData:
		s.enter(chunkEnd, len("\r"))
	default:
		s.next()
	}
	return n
}

// next is behind a request.
func (s *scanner) next() {
	s.head = head{}
	s.enter(requestLine, maxHead)
}

func (s *scanner) enter(to state, room int) { s.state, s.room = to, room }

// take adds to the line, and judges it where it has ended.
func (s *scanner) take(part []byte, ended bool) (reason string) {
	size := len(s.line) + len(part)
	switch {
	case s.state == requestLine && len(s.line) == 0 && len(part) > 0 && part[0] != '\r' && !tokenByte[part[0]]:
		return "no HTTP request" // TLS, say: its line may never end
	case size > s.room:
		return s.tooLong()
	}
	line := part
	if len(s.line) > 0 || !ended {
		s.line = append(s.line, part...)
		line = s.line
	}
	if !ended {
		return ""
	}
	s.line = s.line[:0]
	s.room -= size + 1 // below zero, nothing more fits
	line, ok := bytes.CutSuffix(line, []byte("\r"))
	switch {
	case !ok:
		return "a line that does not end in CR LF"
	case bytes.IndexByte(line, '\r') >= 0:
		return "a CR inside of a line"
	}
	return s.judge(line)
}

func (s *scanner) tooLong() string {
	switch s.state {
	case chunkSize:
		return "a chunk size that is too long"
	case chunkEnd:
		return "a chunk that does not end where it should"
	case trailer:
		return "trailers that are too long"
	}
	return "a header that is too long"
}

// judge is given a whole line.
func (s *scanner) judge(line []byte) (reason string) {
	switch s.state {
	case requestLine:
		s.state = field
		return s.head.request(line)
	case field:
		if len(line) > 0 {
			return s.head.field(line)
		}
		if reason := s.head.end(); reason != "" {
			return reason
		}
		s.begin()
	case chunkSize:
		size, reason := parseChunkSize(line)
		if reason != "" {
			return reason
		}
		s.left = size
		if size == 0 {
			s.enter(trailer, maxTrailer)
		} else {
			s.enter(chunkData, 0)
		}
	case chunkEnd:
		if len(line) > 0 {
			return "a chunk that does not end where it should"
		}
		s.enter(chunkSize, maxChunkLine)
	case trailer:
		if len(line) > 0 {
			return s.head.trailer(line)
		}
		s.next()
	}
	return ""
}

// begin is behind a head.
func (s *scanner) begin() {
	switch {
	case s.head.chunked:
		s.enter(chunkSize, maxChunkLine)
	case s.head.length > 0:
		s.left = s.head.length
		s.enter(body, 0)
	default:
		s.next()
	}
}

// parseChunkSize takes 1 to 16 hexadecimal digits. Extensions are refused: no
// client has any use for them, and servers differ in where they end.
func parseChunkSize(line []byte) (size int64, reason string) {
	if bytes.IndexByte(line, ';') >= 0 {
		return 0, "a chunk with an extension"
	}
	if len(line) == 0 || len(line) > 16 {
		return 0, "a chunk size that is no size"
	}
	var n uint64
	for _, c := range line {
		d := hexDigit(c)
		if d < 0 {
			return 0, "a chunk size that is no size"
		}
		n = n<<4 | uint64(d)
	}
	if n > maxLength {
		return 0, "a chunk size that is too large"
	}
	return int64(n), ""
}

func hexDigit(c byte) int {
	switch {
	case c >= '0' && c <= '9':
		return int(c - '0')
	case c >= 'a' && c <= 'f':
		return int(c-'a') + 10
	case c >= 'A' && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}
