package wire

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
)

var (
	// ErrClosed is returned after this side closed the stream or the
	// connection.
	ErrClosed = errors.New("closed")
	// ErrPeerClosed is returned after the peer closed the stream or the
	// connection. It is not io.EOF, so that a cut-off copy is no success.
	ErrPeerClosed = errors.New("closed by the peer")
)

// Handler serves one stream that the peer opened, in a goroutine of its own.
// ctx ends when the peer closes the stream or the connection ends. The stream
// is closed when the handler returns. It must not call [Conn.Close].
type Handler func(ctx context.Context, s *Stream)

// Options of a connection. Zero means the default of the field.
type Options struct {
	Handler    Handler // nil: the peer may not open streams
	MaxStreams int     // the peer's streams at once, default 256
	Window     int     // bytes of credit of each channel, default 256 KiB; the same at both ends
	FirstID    uint32  // number of the first stream that this side opens, default 1
}

// Conn is one connection with any number of streams. It is safe for use by
// several goroutines. A breach by the peer ends it and nothing else.
type Conn struct {
	rw     io.ReadWriteCloser
	opts   Options
	br     *bufio.Reader
	ctx    context.Context // parent of every stream's
	cancel context.CancelFunc
	tasks  sync.WaitGroup // the read loop and all handlers

	// turn is held by the one who writes; waiters are served first come,
	// first served, which is what makes streams share the connection fairly.
	turn chan struct{}
	wbuf []byte // guarded by turn

	mu       sync.Mutex
	err      error
	opened   map[uint32]*Stream // by this side
	accepted map[uint32]*Stream // opened by the peer
	nextID   uint32
	first    uint32 // peer's stream numbers from first to last have been used
	last     uint32
	serving  int // handlers running
}

// NewConn starts to read from rw. The caller ends it with [Conn.Close], which
// closes rw; that must make a Read in progress return.
func NewConn(rw io.ReadWriteCloser, o Options) *Conn {
	if o.MaxStreams == 0 {
		o.MaxStreams = defaultStreams
	}
	if o.Window == 0 {
		o.Window = defaultWindow
	}
	if o.FirstID == 0 {
		o.FirstID = 1
	}
	c := &Conn{
		rw: rw, opts: o, br: bufio.NewReaderSize(rw, maxData+headerSize), nextID: o.FirstID,
		turn: make(chan struct{}, 1), wbuf: make([]byte, 0, maxData+maxOp+2*headerSize),
		opened: map[uint32]*Stream{}, accepted: map[uint32]*Stream{},
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.tasks.Go(c.readLoop)
	return c
}

// Done is closed when the connection has ended.
func (c *Conn) Done() <-chan struct{} { return c.ctx.Done() }

// Err is nil while the connection lives, then [ErrClosed] after [Conn.Close],
// [ErrPeerClosed] where the peer ended it between frames, or the fault.
func (c *Conn) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Close ends the connection and every stream of it, and waits until all
// handlers have returned. Closing twice is allowed.
func (c *Conn) Close() error {
	c.fail(ErrClosed)
	c.tasks.Wait()
	return nil
}

// fail ends the connection; the first error stays.
func (c *Conn) fail(err error) {
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return
	}
	c.err = err
	var all []*Stream
	for _, m := range []map[uint32]*Stream{c.opened, c.accepted} {
		for id, s := range m {
			all = append(all, s)
			delete(m, id)
		}
	}
	c.mu.Unlock()
	c.cancel()
	c.rw.Close()
	for _, s := range all {
		s.end(err)
	}
}

// Open starts a stream: the peer's handler sees op and, as its body, the JSON
// of body (nil: an empty object). ctx bounds only the opening. The caller
// closes the stream.
func (c *Conn) Open(ctx context.Context, op string, body any) (*Stream, error) {
	if op == "" || len(op) > maxOp {
		return nil, fmt.Errorf("open stream: operation %q: want 1 to %d bytes", op, maxOp)
	}
	if body == nil {
		body = struct{}{}
	}
	msg, err := encode(body)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", op, err)
	}
	if err := c.takeTurn(ctx); err != nil {
		return nil, fmt.Errorf("open %s: %w", op, err)
	}
	// The number is drawn with the turn held: numbers go out in order.
	s, err := c.register(op)
	if err != nil {
		c.passTurn()
		return nil, fmt.Errorf("open %s: %w", op, err)
	}
	c.put(header{length: uint32(len(op)), stream: s.id, kind: frameOpen}, []byte(op))
	// What fits goes out in the same write as the opening frame.
	n := s.send[messageChannel].take(min(len(msg), maxData))
	c.put(header{length: uint32(n), stream: s.id, kind: frameData, channel: messageChannel}, msg[:n])
	err = c.flush()
	c.passTurn()
	if err == nil {
		_, err = s.send[messageChannel].write(ctx, msg[n:])
	}
	if err != nil {
		s.Close()
		return nil, fmt.Errorf("open %s: %w", op, err)
	}
	return s, nil
}

func (c *Conn) register(op string) (*Stream, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return nil, c.err
	}
	if c.nextID == 0 {
		return nil, errors.New("stream numbers are used up; make a new connection")
	}
	s := newStream(c, c.nextID, fromOpener, op)
	c.opened[s.id] = s
	c.nextID++
	return s, nil
}

func (c *Conn) takeTurn(ctx context.Context) error {
	select {
	case c.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-c.ctx.Done():
		return c.Err()
	}
}

func (c *Conn) passTurn() { <-c.turn }

// put adds a frame to what flush writes; the turn is held.
func (c *Conn) put(h header, payload []byte) {
	c.wbuf = append(h.append(c.wbuf), payload...)
}

func (c *Conn) flush() error {
	_, err := c.rw.Write(c.wbuf)
	c.wbuf = c.wbuf[:0]
	if err != nil {
		c.fail(fmt.Errorf("write to the peer: %w", err))
		return c.Err()
	}
	return nil
}

// write sends one frame.
func (c *Conn) write(ctx context.Context, h header, payload []byte) error {
	if err := c.takeTurn(ctx); err != nil {
		return err
	}
	defer c.passTurn()
	c.put(h, payload)
	return c.flush()
}

// readLoop never waits for anything but the peer: what arrives has a place,
// because the peer has credit for it, or the connection ends.
func (c *Conn) readLoop() {
	for {
		if err := c.readFrame(); err != nil {
			c.fail(err)
			return
		}
	}
}

func (c *Conn) readFrame() error {
	raw, err := c.br.Peek(headerSize)
	if err != nil {
		if err == io.EOF && len(raw) == 0 {
			return ErrPeerClosed
		}
		return fmt.Errorf("read from the peer: %w", unexpected(err))
	}
	h, err := parseHeader(raw)
	c.br.Discard(headerSize)
	if err != nil {
		return breach(err)
	}
	if h.kind == frameOpen {
		return c.accept(h)
	}
	s, err := c.lookup(h)
	if err != nil {
		return breach(err)
	}
	if s == nil { // closed already; its frames may still be under way
		return discard(c.br, int(h.length))
	}
	switch h.kind {
	case frameData:
		return s.recv[h.channel].fill(c.br, int(h.length))
	case frameEOF:
		return breach(s.recv[h.channel].finish())
	case frameCredit:
		raw, err := c.br.Peek(4)
		if err != nil {
			return fmt.Errorf("read from the peer: %w", unexpected(err))
		}
		n := binary.LittleEndian.Uint32(raw)
		c.br.Discard(4)
		return breach(s.send[h.channel].grant(n))
	default: // frameClose
		c.forget(s)
		s.end(nil)
		return nil
	}
}

// lookup finds the stream that a frame is for: nil where it was closed.
func (c *Conn) lookup(h header) (*Stream, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if h.side == fromOpener {
		if s := c.accepted[h.stream]; s != nil {
			return s, nil
		}
		if c.last == 0 || h.stream < c.first || h.stream > c.last {
			return nil, fmt.Errorf("stream %d was not opened", h.stream)
		}
		return nil, nil
	}
	if s := c.opened[h.stream]; s != nil {
		return s, nil
	}
	if h.stream < c.opts.FirstID || c.nextID != 0 && h.stream >= c.nextID {
		return nil, fmt.Errorf("stream %d was not opened", h.stream)
	}
	return nil, nil
}

// accept starts a handler. Numbers go up by one; while no stream is open a
// peer may begin at any number, which is how the host of a clone goes on where
// the host of its template stopped.
func (c *Conn) accept(h header) error {
	op := make([]byte, h.length)
	if _, err := io.ReadFull(c.br, op); err != nil {
		return fmt.Errorf("read from the peer: %w", unexpected(err))
	}
	if c.opts.Handler == nil {
		return breach(errors.New("it opened a stream, which it may not"))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return c.err
	}
	switch {
	case c.last != 0 && h.stream == c.last+1:
	case len(c.accepted) == 0:
		c.first = h.stream
	default:
		return breach(fmt.Errorf("stream %d opened after %d", h.stream, c.last))
	}
	if c.serving >= c.opts.MaxStreams {
		return breach(fmt.Errorf("more than %d streams are open", c.opts.MaxStreams))
	}
	s := newStream(c, h.stream, fromAcceptor, string(op))
	c.last = h.stream
	c.accepted[s.id] = s
	c.serving++
	c.tasks.Go(func() {
		defer func() {
			c.mu.Lock()
			c.serving--
			c.mu.Unlock()
		}()
		defer s.Close()
		c.opts.Handler(s.ctx, s)
	})
	return nil
}

// forget removes a stream; true for the first who asks.
func (c *Conn) forget(s *Stream) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	m := c.opened
	if s.side == fromAcceptor {
		m = c.accepted
	}
	if m[s.id] != s {
		return false
	}
	delete(m, s.id)
	return true
}

// Call opens a stream for op, receives one message, and closes it.
func Call[R any](ctx context.Context, c *Conn, op string, body any) (R, error) {
	var reply R
	s, err := c.Open(ctx, op, body)
	if err != nil {
		return reply, err
	}
	defer s.Close()
	if err := s.Recv(ctx, &reply); err != nil {
		if err == io.EOF {
			err = ErrPeerClosed
		}
		return reply, fmt.Errorf("reply to %s: %w", op, err)
	}
	return reply, nil
}

// encode makes a message: its length, then its JSON.
func encode(v any) ([]byte, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encode message: %w", err)
	}
	if len(data) > MaxMessage {
		return nil, fmt.Errorf("message of %d bytes is over the limit of %d", len(data), MaxMessage)
	}
	msg := make([]byte, 4, 4+len(data))
	binary.LittleEndian.PutUint32(msg, uint32(len(data)))
	return append(msg, data...), nil
}

// breach marks an error as the peer's fault.
func breach(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("peer broke the protocol: %w", err)
}

func discard(br *bufio.Reader, n int) error {
	if _, err := br.Discard(n); err != nil {
		return fmt.Errorf("read from the peer: %w", unexpected(err))
	}
	return nil
}

func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
