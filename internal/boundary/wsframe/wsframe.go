// Package wsframe changes the payload of one direction of a WebSocket while its
// frames keep their headers, their masks and their lengths (RFC 6455). A
// [Filter] walks over the frames as their bytes come; a [Scrubber] sees the
// payload of all data frames as one stream and gives back as many bytes, which
// may be others and may come later. No extension can have been negotiated.
//
// The package must not know what is looked for, must not buffer frames beyond
// what the scrubber holds back, and must not keep a clock.
package wsframe

import (
	"encoding/binary"
	"errors"
	"math/bits"
	"slices"
)

// Direction says who has sent the frames: a client masks, a server must not.
type Direction uint8

// The directions.
const (
	FromClient Direction = iota
	FromServer
)

// Scrubber changes a stream. What it gives back, over all calls, is in order and
// as long as what it was given, or shorter where it has ended the stream.
type Scrubber interface {
	Write(dst, p []byte) []byte // appends what can go out once p has come
	Pending() int               // bytes held back
	Release(dst []byte) []byte  // appends what an idle stream may be given
	Flush(dst []byte) []byte    // appends the rest, at the stream's end
}

// Bounds, in bytes.
const (
	maxHeader  = 14
	maxControl = 125 // payload of a control frame
	maxLength  = 1 << 62
	// maxQueued is of the headers and control frames that wait behind payload
	// which is held back. It is enough for a value of ten thousand bytes that is
	// typed byte by byte.
	maxQueued = 64 << 10
)

// Filter is for one direction of one WebSocket and one goroutine. It begins
// behind the handshake.
type Filter struct {
	masked  bool
	payload Scrubber
	text    func([]byte) []byte
	err     error // the fault, once there is one

	// Where the walk over what comes in is.
	header     []byte // of a frame, as far as it has come
	left       uint64 // payload bytes of the frame that are to come
	mask       mask   // of the next of them
	control    []byte // the control frame that they belong to, as far as it has come; else empty
	fragmented bool   // a message has begun and not ended

	// What has come and has not gone out.
	pieces fifo[piece]
	heads  fifo[byte] // of the pieces, one behind the other

	plain, freed []byte // scratch
}

// piece is what goes out as a whole: head bytes as they are, then payload.
type piece struct {
	head int
	body uint64 // payload bytes that have not gone out
	mask mask   // of the next of them
}

// New makes a Filter. Control frames, which may come in the middle of a
// message, are no part of the stream: text changes the whole payload of each, and
// must return as many bytes as it is given; it may change them in place.
func New(d Direction, payload Scrubber, text func([]byte) []byte) *Filter {
	return &Filter{masked: d == FromClient, payload: payload, text: text,
		header: make([]byte, 0, maxHeader), control: make([]byte, 0, maxHeader+maxControl)}
}

// Write appends to dst what can go out once p has come, and returns it. p is not
// changed and must not overlap dst. After a fault there is no going on: the
// bytes before it are in what is returned, or held back for good.
func (f *Filter) Write(dst, p []byte) ([]byte, error) {
	for len(p) > 0 && f.err == nil {
		var n int
		switch {
		case f.left == 0:
			n = f.readHeader(p)
		case len(f.control) > 0:
			n = f.gather(p)
		default:
			n = int(min(f.left, uint64(len(p))))
			f.left -= uint64(n)
			f.plain = f.mask.apply(f.plain[:0], p[:n])
			f.freed = f.payload.Write(f.freed[:0], f.plain)
		}
		p = p[n:]
		dst = f.emit(dst)
	}
	return dst, f.err
}

// Pending is how many bytes of payload are held back.
func (f *Filter) Pending() int { return f.payload.Pending() }

// Release appends what an idle stream may be given.
func (f *Filter) Release(dst []byte) []byte {
	f.freed = f.payload.Release(f.freed[:0])
	return f.emit(dst)
}

// Flush appends what is held back, at the stream's end. A frame that has come
// in part ends with its last whole byte; a header or a control frame that has
// come in part is left out.
func (f *Filter) Flush(dst []byte) []byte {
	f.freed = f.payload.Flush(f.freed[:0])
	return f.emit(dst)
}

// emit appends the payload that was freed, and the heads that are due.
func (f *Filter) emit(dst []byte) []byte {
	freed := f.freed
	f.freed = f.freed[:0]
	for len(f.pieces.waiting()) > 0 {
		first := &f.pieces.waiting()[0]
		dst = append(dst, f.heads.waiting()[:first.head]...)
		f.heads.drop(first.head)
		first.head = 0
		n := min(first.body, uint64(len(freed)))
		dst = first.mask.apply(dst, freed[:n])
		freed, first.body = freed[n:], first.body-n
		if first.body > 0 {
			break
		}
		f.pieces.drop(1)
	}
	if len(freed) > 0 && f.err == nil {
		f.err = errors.New("change WebSocket payload: more came out than went in")
	}
	return dst
}

// enqueue puts a piece behind those that wait.
func (f *Filter) enqueue(head []byte, body uint64) {
	if len(f.heads.waiting())+len(head) > maxQueued {
		f.fault("more frames than can wait for payload that is held back")
		return
	}
	f.heads.all = append(f.heads.all, head...)
	f.pieces.all = append(f.pieces.all, piece{len(head), body, f.mask})
}

func (f *Filter) fault(reason string) {
	f.err = errors.New("read WebSocket frame: " + reason)
}

// readHeader takes what belongs to a frame's header.
func (f *Filter) readHeader(p []byte) (n int) {
	for n < len(p) {
		f.header = append(f.header, p[n])
		n++
		if want := headerSize(f.header); len(f.header) < want {
			continue
		}
		if f.judge(f.header); f.err == nil {
			f.begin(f.header)
		}
		f.header = f.header[:0]
		break
	}
	return n
}

// headerSize is as long as the bytes so far say.
func headerSize(h []byte) int {
	if len(h) < 2 {
		return 2
	}
	size := 2
	switch h[1] & 0x7f {
	case 126:
		size += 2
	case 127:
		size += 8
	}
	if h[1]&0x80 != 0 {
		size += 4
	}
	return size
}

// Opcodes of RFC 6455, section 5.2; those of control frames begin with close.
const (
	opContinuation = 0
	opBinary       = 2
	opClose        = 8
	opPong         = 10
)

// judge holds a whole header against the rules, section 5.
func (f *Filter) judge(h []byte) {
	final, opcode, size := h[0]&0x80 != 0, h[0]&0x0f, frameSize(h)
	control, short := opcode >= opClose, h[1]&0x7f
	switch {
	case h[0]&0x70 != 0:
		f.fault("a reserved bit is set, though no extension was agreed on")
	case opcode > opBinary && !control || opcode > opPong:
		f.fault("a reserved opcode")
	case (h[1]&0x80 != 0) != f.masked:
		f.fault("a client must mask and a server must not")
	case short == 126 && size < 126 || short == 127 && size <= 0xffff:
		f.fault("a length that could be shorter")
	case size > maxLength:
		f.fault("a length that is too large")
	case control && !final:
		f.fault("a control frame in fragments")
	case control && size > maxControl:
		f.fault("a control frame that is too long")
	case control:
	case opcode == opContinuation && !f.fragmented:
		f.fault("a continuation of no message")
	case opcode != opContinuation && f.fragmented:
		f.fault("a message in the middle of another")
	default:
		f.fragmented = !final
	}
}

func frameSize(h []byte) uint64 {
	switch short := h[1] & 0x7f; short {
	case 126:
		return uint64(binary.BigEndian.Uint16(h[2:]))
	case 127:
		return binary.BigEndian.Uint64(h[2:])
	default:
		return uint64(short)
	}
}

// begin is behind a header.
func (f *Filter) begin(h []byte) {
	f.left = frameSize(h)
	if f.masked {
		f.mask = mask(binary.LittleEndian.Uint32(h[len(h)-4:]))
	}
	if h[0]&0x0f < opClose {
		f.enqueue(h, f.left)
		return
	}
	f.control = append(f.control, h...)
	if f.left == 0 {
		f.endControl()
	}
}

// gather takes what belongs to a control frame.
func (f *Filter) gather(p []byte) int {
	n := int(min(f.left, uint64(len(p))))
	f.control = append(f.control, p[:n]...)
	if f.left -= uint64(n); f.left == 0 {
		f.endControl()
	}
	return n
}

func (f *Filter) endControl() {
	head := headerSize(f.control)
	again := f.mask
	f.plain = f.mask.apply(f.plain[:0], f.control[head:])
	changed := f.text(f.plain)
	if len(changed) != len(f.control)-head {
		f.err = errors.New("change WebSocket control frame: its length would not be the same")
		return
	}
	f.enqueue(again.apply(f.control[:head], changed), 0)
	f.control = f.control[:0]
}

// mask is the key of a frame, turned so that its lowest byte is of the next
// payload byte. Zero masks nothing.
type mask uint32

// apply appends p, masked or unmasked, and turns the key on.
func (m *mask) apply(dst, p []byte) []byte {
	at := len(dst)
	dst = append(dst, p...)
	if *m == 0 {
		return dst
	}
	b, double := dst[at:], uint64(*m)<<32|uint64(*m)
	for ; len(b) >= 8; b = b[8:] {
		binary.LittleEndian.PutUint64(b, binary.LittleEndian.Uint64(b)^double)
	}
	for i := range b {
		b[i] ^= byte(double >> (8 * i))
	}
	*m = mask(bits.RotateLeft32(uint32(*m), -8*(len(p)%4)))
	return dst
}

// fifo is a queue that uses its room again.
type fifo[T any] struct {
	all  []T
	gone int // of all
}

func (q *fifo[T]) waiting() []T { return q.all[q.gone:] }

func (q *fifo[T]) drop(n int) {
	q.gone += n
	if q.gone > len(q.all)/2 {
		q.all = slices.Delete(q.all, 0, q.gone)
		q.gone = 0
	}
}
