package wire

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
)

const firstRing = 4 << 10 // bytes; a ring doubles from here to the window

// receiver is the incoming half of a channel: a ring of at most the window,
// which the read loop fills and one reader empties. Guarded by the stream's
// lock, except for the ring's free bytes, which are the read loop's.
type receiver struct {
	s       *Stream
	channel uint8
	arrived sync.Cond
	ring    []byte
	start   int // of the data in ring
	size    int // of the data in ring
	credit  int // what the peer may still send
	owed    int // read, and not yet granted again
	eof     bool
}

// Read is for data channels; see [Stream.Reader].
func (r *receiver) Read(p []byte) (int, error) { return r.read(context.Background(), p) }

func (r *receiver) read(ctx context.Context, p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	r.s.mu.Lock()
	for r.size == 0 {
		if err := r.end(); err != nil {
			r.s.mu.Unlock()
			return 0, err
		}
		if err := r.s.await(ctx, &r.arrived); err != nil {
			r.s.mu.Unlock()
			return 0, err
		}
	}
	n := copy(p, r.ring[r.start:min(r.start+r.size, len(r.ring))])
	n += copy(p[n:], r.ring[:max(0, min(r.size-n, r.start+r.size-len(r.ring)))])
	r.start = (r.start + n) % len(r.ring)
	r.size -= n
	r.owed += n
	grant := 0
	// Credit goes back in halves of the window: few frames, and the peer
	// can go on while they travel.
	if r.owed >= r.s.c.opts.Window/2 && !r.eof && r.s.ended() == nil {
		grant, r.owed = r.owed, 0
		r.credit += grant
	}
	r.s.mu.Unlock()
	if grant > 0 {
		var b [4]byte
		binary.LittleEndian.PutUint32(b[:], uint32(grant))
		h := header{length: 4, stream: r.s.id, kind: frameCredit, channel: r.channel, side: r.s.side}
		r.s.c.write(r.s.ctx, h, b[:]) // an error is the connection's end: the next read has it
	}
	return n, nil
}

// end is what a reader of an empty ring gets, nil while more may come.
func (r *receiver) end() error {
	if r.eof && !r.s.closed {
		return io.EOF
	}
	err := r.s.ended()
	if err == ErrPeerClosed && r.channel == messageChannel {
		return io.EOF
	}
	return err
}

// fill reads n bytes from the peer into the ring. It does not hold the lock
// while it reads.
func (r *receiver) fill(br *bufio.Reader, n int) error {
	r.s.mu.Lock()
	switch {
	case r.eof:
		r.s.mu.Unlock()
		return breach(fmt.Errorf("data after the end of channel %d", r.channel))
	case n > r.credit:
		r.s.mu.Unlock()
		return breach(fmt.Errorf("%d bytes on channel %d with credit for %d", n, r.channel, r.credit))
	}
	r.credit -= n
	if r.s.closed {
		r.s.mu.Unlock()
		return discard(br, n)
	}
	r.grow(r.size + n)
	ring := r.ring
	at := (r.start + r.size) % len(ring)
	r.s.mu.Unlock()

	first := min(n, len(ring)-at)
	_, err := io.ReadFull(br, ring[at:at+first])
	if err == nil {
		_, err = io.ReadFull(br, ring[:n-first])
	}
	if err != nil {
		return fmt.Errorf("read from the peer: %w", unexpected(err))
	}
	r.s.mu.Lock()
	if !r.s.closed {
		r.size += n
	}
	r.arrived.Broadcast()
	r.s.mu.Unlock()
	return nil
}

// grow makes room for want bytes, which credit keeps within the window.
func (r *receiver) grow(want int) {
	if want <= len(r.ring) {
		return
	}
	size := max(len(r.ring), min(firstRing, r.s.c.opts.Window))
	for size < want {
		size *= 2
	}
	ring := make([]byte, min(size, r.s.c.opts.Window))
	n := copy(ring, r.ring[r.start:min(r.start+r.size, len(r.ring))])
	copy(ring[n:], r.ring[:r.size-n])
	r.ring, r.start = ring, 0
}

func (r *receiver) finish() error {
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	if r.eof {
		return fmt.Errorf("channel %d ended twice", r.channel)
	}
	r.eof = true
	r.arrived.Broadcast()
	return nil
}

// sender is the outgoing half of a channel, guarded by the stream's lock.
type sender struct {
	s       *Stream
	channel uint8
	granted sync.Cond
	credit  int
	eof     bool
}

// Write is for data channels; see [Stream.Writer].
func (w *sender) Write(p []byte) (int, error) { return w.write(context.Background(), p) }

// Close ends the channel: the peer reads io.EOF behind what was written. A
// Write that waits for credit ends with [ErrClosed].
func (w *sender) Close() error {
	w.s.mu.Lock()
	err := w.s.ended()
	done := w.eof
	w.eof = true
	w.granted.Broadcast()
	w.s.mu.Unlock()
	if done || err != nil {
		return err
	}
	return w.s.c.write(w.s.ctx, w.header(frameEOF, 0), nil)
}

func (w *sender) header(kind frameType, length int) header {
	return header{length: uint32(length), stream: w.s.id, kind: kind, channel: w.channel, side: w.s.side}
}

func (w *sender) write(ctx context.Context, p []byte) (int, error) {
	sent := 0
	for sent < len(p) {
		n, err := w.claim(ctx, min(len(p)-sent, maxData))
		if err != nil {
			return sent, err
		}
		if err := w.s.c.write(ctx, w.header(frameData, n), p[sent:sent+n]); err != nil {
			w.s.mu.Lock()
			w.credit += n // ctx ended before our turn to write: nothing was sent
			w.s.mu.Unlock()
			return sent, err
		}
		sent += n
	}
	return sent, nil
}

// claim waits for credit and takes up to want bytes of it.
func (w *sender) claim(ctx context.Context, want int) (int, error) {
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	for {
		if w.eof {
			return 0, ErrClosed
		}
		if err := w.s.ended(); err != nil {
			return 0, err
		}
		if w.credit > 0 {
			n := min(want, w.credit)
			w.credit -= n
			return n, nil
		}
		if err := w.s.await(ctx, &w.granted); err != nil {
			return 0, err
		}
	}
}

// take is claim without waiting, for a stream that has just been made.
func (w *sender) take(want int) int {
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	n := min(want, w.credit)
	w.credit -= n
	return n
}

func (w *sender) grant(n uint32) error {
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	if n == 0 || int64(n) > int64(w.s.c.opts.Window-w.credit) {
		return errors.New("it granted credit for what was not sent")
	}
	w.credit += int(n)
	w.granted.Broadcast()
	return nil
}
