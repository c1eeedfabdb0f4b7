package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Sizes of the format, in bytes.
const (
	headerSize = 12
	maxData    = 32 << 10 // what this side puts in one frame; one write to a virtio port takes no more
	maxPayload = 64 << 10 // what a peer may put in one frame
	maxOp      = 64

	// MaxMessage is the largest JSON message.
	MaxMessage = 1 << 20

	defaultWindow  = 256 << 10
	defaultStreams = 256
)

// Channels of a stream: 0 to 3 are the caller's, the last carries messages,
// each behind its length as four bytes, so that they have credit too.
const (
	messageChannel = 4
	channels       = 5
)

type frameType uint8

const (
	frameOpen   frameType = 1 + iota // payload: name of the operation
	frameData                        // payload: bytes of one channel
	frameEOF                         // no more data on one channel
	frameCredit                      // payload: uint32, bytes that may be sent beyond those granted before
	frameClose                       // the sender has forgotten the stream
)

// side says which of the two id spaces a stream is in.
type side uint8

const (
	fromOpener side = iota
	fromAcceptor
)

// header is what precedes each payload; all numbers are little-endian.
//
//	0  uint32 length of the payload
//	4  uint32 stream
//	8  uint8  type
//	9  uint8  channel, 0 where the type has none
//	10 uint8  side
//	11 uint8  0
type header struct {
	length  uint32
	stream  uint32
	kind    frameType
	channel uint8
	side    side
}

func (h header) append(b []byte) []byte {
	b = binary.LittleEndian.AppendUint32(b, h.length)
	b = binary.LittleEndian.AppendUint32(b, h.stream)
	return append(b, byte(h.kind), h.channel, byte(h.side), 0)
}

// parseHeader accepts only what the format allows; b has headerSize bytes.
func parseHeader(b []byte) (header, error) {
	h := header{
		length:  binary.LittleEndian.Uint32(b),
		stream:  binary.LittleEndian.Uint32(b[4:]),
		kind:    frameType(b[8]),
		channel: b[9],
		side:    side(b[10]),
	}
	least, most, channelled := uint32(0), uint32(0), false
	switch h.kind {
	case frameOpen:
		least, most = 1, maxOp
	case frameData:
		least, most, channelled = 1, maxPayload, true
	case frameEOF:
		channelled = true
	case frameCredit:
		least, most, channelled = 4, 4, true
	case frameClose:
	default:
		return h, fmt.Errorf("frame type %d is not known", h.kind)
	}
	switch {
	case h.length < least || h.length > most:
		return h, fmt.Errorf("frame type %d has %d bytes, want %d to %d", h.kind, h.length, least, most)
	case b[11] != 0 || h.side > fromAcceptor || (h.kind == frameOpen && h.side != fromOpener):
		return h, errors.New("reserved bits of a frame are set")
	case h.channel != 0 && !channelled || h.channel >= channels:
		return h, fmt.Errorf("frame type %d names channel %d", h.kind, h.channel)
	case h.stream == 0:
		return h, errors.New("stream number is 0")
	}
	return h, nil
}
