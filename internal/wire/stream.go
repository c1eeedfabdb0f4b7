package wire

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"sync"
)

// Stream is one operation: messages in both directions and four data channels
// each way. Messages, and each data channel, are for one sender and one
// receiver at a time.
type Stream struct {
	c      *Conn
	id     uint32
	side   side // what this side puts in its frames
	op     string
	ctx    context.Context
	cancel context.CancelFunc

	sending   sync.Mutex // one message at a time
	receiving sync.Mutex
	pending   []byte // of a message not yet whole; guarded by receiving
	opening   bool   // the next message is the body; guarded by receiving

	mu         sync.Mutex
	closed     bool  // by this side: unread data is dropped
	peerClosed bool  // unread data can still be read
	fault      error // of the connection
	recv       [channels]receiver
	send       [channels]sender
}

func newStream(c *Conn, id uint32, from side, op string) *Stream {
	s := &Stream{c: c, id: id, side: from, op: op, opening: from == fromAcceptor}
	s.ctx, s.cancel = context.WithCancel(c.ctx)
	for i := range channels {
		s.recv[i] = receiver{s: s, channel: uint8(i), credit: c.opts.Window}
		s.recv[i].arrived.L = &s.mu
		s.send[i] = sender{s: s, channel: uint8(i), credit: c.opts.Window}
		s.send[i].granted.L = &s.mu
	}
	return s
}

// Op is the operation that the stream was opened for.
func (s *Stream) Op() string { return s.op }

// Context ends when either side closes the stream or the connection ends.
func (s *Stream) Context() context.Context { return s.ctx }

// Reader is the incoming half of a data channel, 0 to 3. It ends with io.EOF
// where the peer ended the channel, and with an error where the stream ended
// before.
func (s *Stream) Reader(channel int) io.Reader { return &s.recv[:messageChannel][channel] }

// Writer is the outgoing half of a data channel, 0 to 3. A Write returns when
// the peer had credit for all of it. Close ends the channel.
func (s *Stream) Writer(channel int) io.WriteCloser { return &s.send[:messageChannel][channel] }

// Body decodes what the stream was opened with, once, at the accepting side.
// An unknown key is an error.
func (s *Stream) Body(v any) error {
	s.receiving.Lock()
	defer s.receiving.Unlock()
	if !s.opening {
		return fmt.Errorf("body of %s: already read", s.op)
	}
	if err := s.decode(s.ctx, v); err != nil {
		return fmt.Errorf("body of %s: %w", s.op, err)
	}
	return nil
}

// Recv decodes the peer's next message; an unknown key is an error. It is
// io.EOF after the peer closed the stream.
func (s *Stream) Recv(ctx context.Context, v any) error {
	s.receiving.Lock()
	defer s.receiving.Unlock()
	if s.opening {
		var ignored json.RawMessage
		if err := s.decode(ctx, &ignored); err != nil {
			return err
		}
	}
	return s.decode(ctx, v)
}

// Send sends v as one JSON message of at most [MaxMessage] bytes.
func (s *Stream) Send(ctx context.Context, v any) error {
	msg, err := encode(v)
	if err != nil {
		return err
	}
	s.sending.Lock()
	defer s.sending.Unlock()
	n, err := s.send[messageChannel].write(ctx, msg)
	if err != nil && n > 0 {
		s.Close() // half a message cannot be taken back
	}
	return err
}

// Close ends the stream in both directions; unread data is dropped. What was
// written before still reaches the peer. Closing twice is allowed.
func (s *Stream) Close() error {
	known := s.c.forget(s)
	s.mu.Lock()
	s.closed = true
	for i := range s.recv {
		s.recv[i].ring = nil
		s.recv[i].size = 0
	}
	s.mu.Unlock()
	s.end(nil)
	if !known {
		return nil
	}
	return s.c.write(context.Background(), header{stream: s.id, kind: frameClose, side: s.side}, nil)
}

// end wakes everyone who waits: the stream was closed, or the connection ended
// with fault.
func (s *Stream) end(fault error) {
	s.cancel()
	s.mu.Lock()
	defer s.mu.Unlock()
	if fault == nil {
		s.peerClosed = true // or closed is set, which comes first
	} else {
		s.fault = fault
	}
	for i := range channels {
		s.recv[i].arrived.Broadcast()
		s.send[i].granted.Broadcast()
	}
}

// ended is why nothing more can be sent or received; the stream is locked.
func (s *Stream) ended() error {
	switch {
	case s.closed:
		return ErrClosed
	case s.fault != nil:
		return fmt.Errorf("connection: %w", s.fault)
	case s.peerClosed:
		return ErrPeerClosed
	}
	return nil
}

// decode reads one message. A ctx that ends halfway loses nothing.
func (s *Stream) decode(ctx context.Context, v any) error {
	size := 4
	for {
		if len(s.pending) >= 4 {
			n := binary.LittleEndian.Uint32(s.pending)
			if n > MaxMessage {
				err := breach(fmt.Errorf("message of %d bytes is over the limit of %d", n, MaxMessage))
				s.c.fail(err)
				return err
			}
			size = 4 + int(n)
		}
		have := len(s.pending)
		if have == size {
			break
		}
		s.pending = slices.Grow(s.pending, min(size-have, maxData))
		n, err := s.recv[messageChannel].read(ctx, s.pending[have:min(size, have+maxData)])
		s.pending = s.pending[:have+n]
		if err == io.EOF && have > 0 {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return err
		}
	}
	s.opening = false
	msg := s.pending[4:]
	s.pending = nil
	dec := json.NewDecoder(bytes.NewReader(msg))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return fmt.Errorf("decode message: %.200s", err.Error()) // it may quote the peer at length
	}
	if len(bytes.TrimSpace(msg[dec.InputOffset():])) > 0 {
		return fmt.Errorf("decode message: bytes after its end")
	}
	return nil
}

// await waits for cond or the end of ctx; the stream is locked.
func (s *Stream) await(ctx context.Context, cond *sync.Cond) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	stop := context.AfterFunc(ctx, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		cond.Broadcast()
	})
	defer stop()
	cond.Wait()
	return nil
}
