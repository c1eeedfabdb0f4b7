package wire

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"creel/internal/procs"
)

// sockets is a connected pair with real kernel buffers.
func sockets(t *testing.T) (net.Conn, net.Conn) {
	t.Helper()
	a, b, err := procs.Conns()
	if err != nil {
		t.Fatal(err)
	}
	return a, b
}

// pair connects a client to a server that runs handler.
func pair(t *testing.T, handler Handler) (client, server *Conn) {
	t.Helper()
	a, b := sockets(t)
	server = NewConn(b, Options{Handler: handler})
	client = NewConn(a, Options{})
	t.Cleanup(func() { client.Close(); server.Close() })
	return client, server
}

type note struct {
	N    int    `json:"n"`
	Text string `json:"text,omitempty"`
}

// serve answers the operations that the tests use.
func serve(ctx context.Context, s *Stream) {
	switch s.Op() {
	case "echo": // body back as a message
		var n note
		if err := s.Body(&n); err != nil {
			s.Send(ctx, note{N: -1, Text: err.Error()})
			return
		}
		s.Send(ctx, n)
	case "messages": // every message back
		for {
			var n note
			if s.Recv(ctx, &n) != nil {
				return
			}
			s.Send(ctx, n)
		}
	case "copy": // channel 0 to channel 1
		io.Copy(s.Writer(1), s.Reader(0))
		s.Writer(1).Close()
		s.Recv(ctx, &note{}) // until the peer closes
	case "flood":
		block := make([]byte, 256<<10)
		for {
			if _, err := s.Writer(1).Write(block); err != nil {
				return
			}
		}
	case "hold":
		<-ctx.Done()
	}
}

func TestCallReturnsTheReply(t *testing.T) {
	c, _ := pair(t, serve)
	for _, size := range []int{0, 10, maxData, defaultWindow, MaxMessage - 100} {
		want := note{N: size, Text: strings.Repeat("x", size)}
		got, err := Call[note](t.Context(), c, "echo", want)
		if err != nil || got != want {
			t.Fatalf("%d bytes: got %d bytes, %v", size, len(got.Text), err)
		}
	}
	if _, err := c.Open(t.Context(), "echo", note{Text: strings.Repeat("x", MaxMessage)}); err == nil {
		t.Fatal("a message over the limit was sent")
	}
}

func TestBodyRefusesUnknownKeys(t *testing.T) {
	c, _ := pair(t, serve)
	got, err := Call[note](t.Context(), c, "echo", map[string]int{"n": 1, "m": 2})
	if err != nil || got.N != -1 || !strings.Contains(got.Text, `unknown field "m"`) {
		t.Fatalf("got %+v, %v", got, err)
	}
}

func TestMessagesKeepOrderAndEndWithEOF(t *testing.T) {
	c, _ := pair(t, func(ctx context.Context, s *Stream) {
		for i := range 100 {
			s.Send(ctx, note{N: i})
		}
	})
	s, err := c.Open(t.Context(), "x", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for i := range 100 {
		var n note
		if err := s.Recv(t.Context(), &n); err != nil || n.N != i {
			t.Fatalf("message %d: got %d, %v", i, n.N, err)
		}
	}
	if err := s.Recv(t.Context(), &note{}); err != io.EOF {
		t.Fatalf("got %v, want io.EOF", err)
	}
	if _, err := s.Reader(1).Read(make([]byte, 1)); !errors.Is(err, ErrPeerClosed) {
		t.Fatalf("a channel that was not ended: got %v", err)
	}
}

func TestRecvGoesOnAfterItsContextEnded(t *testing.T) {
	release := make(chan struct{})
	c, _ := pair(t, func(ctx context.Context, s *Stream) {
		<-release
		s.Send(ctx, note{N: 7})
	})
	s, err := c.Open(t.Context(), "x", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if err := s.Recv(ctx, &note{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("got %v", err)
	}
	close(release)
	var n note
	if err := s.Recv(t.Context(), &n); err != nil || n.N != 7 {
		t.Fatalf("got %+v, %v", n, err)
	}
}

func TestDataSurvivesInBothDirections(t *testing.T) {
	for name, connect := range map[string]func() (net.Conn, net.Conn){
		"sockets": func() (net.Conn, net.Conn) { return sockets(t) },
		"pipe":    func() (net.Conn, net.Conn) { return net.Pipe() },
	} {
		t.Run(name, func(t *testing.T) {
			a, b := connect()
			server := NewConn(b, Options{Handler: serve})
			client := NewConn(a, Options{})
			defer server.Close()
			defer client.Close()
			var all sync.WaitGroup
			for range 4 {
				all.Go(func() { copyThrough(t, client, 16<<20) })
			}
			all.Wait()
		})
	}
}

// copyThrough sends size random bytes through "copy" in odd pieces.
func copyThrough(t *testing.T, c *Conn, size int) {
	s, err := c.Open(t.Context(), "copy", nil)
	if err != nil {
		t.Error(err)
		return
	}
	defer s.Close()
	sent, got := sha256.New(), sha256.New()
	var writing sync.WaitGroup
	writing.Go(func() {
		block := make([]byte, 100<<10)
		for left := size; left > 0; {
			p := block[:min(left, 1+rand.IntN(len(block)))]
			for i := 0; i < len(p); i += 512 {
				p[i] = byte(rand.Int())
			}
			sent.Write(p)
			if _, err := s.Writer(0).Write(p); err != nil {
				t.Error(err)
				return
			}
			left -= len(p)
		}
		s.Writer(0).Close()
	})
	n, err := io.Copy(got, s.Reader(1))
	writing.Wait()
	if err != nil || n != int64(size) || !bytes.Equal(sent.Sum(nil), got.Sum(nil)) {
		t.Errorf("copied %d of %d bytes, %v", n, size, err)
	}
}

func TestSlowReaderNeitherBlocksOthersNorGrowsMemory(t *testing.T) {
	c, _ := pair(t, serve)
	slow, err := c.Open(t.Context(), "flood", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Close()
	if _, err := slow.Reader(1).Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	copyThrough(t, c, 64<<20)
	slow.mu.Lock()
	held := len(slow.recv[1].ring)
	slow.mu.Unlock()
	if held > defaultWindow {
		t.Fatalf("the slow stream holds %d bytes", held)
	}
}

func TestUnreadDataOfClosedStreamsIsDropped(t *testing.T) {
	c, server := pair(t, serve)
	for range 50 {
		s, err := c.Open(t.Context(), "flood", nil)
		if err != nil {
			t.Fatal(err)
		}
		io.ReadFull(s.Reader(1), make([]byte, 1000))
		s.Close()
		if _, err := s.Reader(1).Read(make([]byte, 1)); err != ErrClosed {
			t.Fatalf("read after close: %v", err)
		}
	}
	copyThrough(t, c, 1<<20)
	if c.Err() != nil || server.Err() != nil {
		t.Fatal(c.Err(), server.Err())
	}
}

func TestPeerMayNotOpenWithoutHandler(t *testing.T) {
	c, server := pair(t, serve)
	if s, err := server.Open(t.Context(), "x", nil); err == nil {
		<-s.Context().Done()
	}
	<-c.Done()
	if err := c.Err(); err == nil || !strings.Contains(err.Error(), "may not") {
		t.Fatalf("got %v", err)
	}
}

func TestTooManyStreamsEndTheConnection(t *testing.T) {
	a, b := sockets(t)
	server := NewConn(b, Options{Handler: serve, MaxStreams: 3})
	client := NewConn(a, Options{})
	defer client.Close()
	defer server.Close()
	for range 4 {
		if _, err := client.Open(t.Context(), "hold", nil); err != nil {
			break
		}
	}
	<-server.Done()
	if err := server.Err(); !strings.Contains(err.Error(), "more than 3 streams") {
		t.Fatalf("got %v", err)
	}
}

func TestStreamNumbersMayJumpOnlyBetweenConversations(t *testing.T) {
	a, b := sockets(t)
	server := NewConn(b, Options{Handler: serve})
	defer server.Close()
	// The first host freezes with its connection; a later one goes on with
	// the same bytes' end. Both are clients of one byte stream here.
	first := NewConn(keepOpen{a}, Options{FirstID: 900})
	s, err := first.Open(t.Context(), "echo", note{N: 1})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Recv(t.Context(), &note{}); err != nil {
		t.Fatal(err)
	}
	if err := s.Recv(t.Context(), &note{}); err != io.EOF {
		t.Fatal(err)
	}
	write := func(h header, payload string) { a.Write(append(h.append(nil), payload...)) }
	write(header{length: 4, stream: 5, kind: frameOpen}, "hold")
	write(header{length: 4, stream: 6, kind: frameOpen}, "hold")
	write(header{length: 4, stream: 8, kind: frameOpen}, "hold")
	<-server.Done()
	if err := server.Err(); !strings.Contains(err.Error(), "stream 8 opened after 6") {
		t.Fatalf("got %v", err)
	}
	a.Close()
	first.Close()
}

type keepOpen struct{ net.Conn }

func (keepOpen) Close() error { return nil }

func TestBreachesEndTheConnectionWithAReason(t *testing.T) {
	open := header{length: 4, stream: 1, kind: frameOpen}
	data := func(n, channel int) []byte {
		h := header{length: uint32(n), stream: 1, kind: frameData, channel: uint8(channel)}
		return append(h.append(nil), make([]byte, n)...)
	}
	after := func(frames ...[]byte) []byte {
		return bytes.Join(append([][]byte{append(open.append(nil), "hold"...)}, frames...), nil)
	}
	credit := header{length: 4, stream: 1, kind: frameCredit, channel: 1}.append(nil)
	eof := header{stream: 1, kind: frameEOF, channel: 2}.append(nil)
	for want, said := range map[string][]byte{
		"type 9 is not known":         header{stream: 1, kind: 9}.append(nil),
		"has 65537 bytes":             header{length: 65537, stream: 1, kind: frameData}.append(nil),
		"has 65 bytes":                header{length: 65, stream: 1, kind: frameOpen}.append(nil),
		"reserved":                    {0, 0, 0, 0, 1, 0, 0, 0, byte(frameClose), 0, 0, 1},
		"names channel 5":             header{length: 1, stream: 1, kind: frameData, channel: 5}.append(nil),
		"names channel 1":             header{stream: 1, kind: frameClose, channel: 1}.append(nil),
		"stream number is 0":          header{kind: frameClose}.append(nil),
		"stream 1 was not opened":     header{stream: 1, kind: frameClose}.append(nil),
		"stream 3 was not opened":     header{stream: 3, kind: frameClose, side: fromAcceptor}.append(nil),
		"stream 7 opened after 1":     after(append(header{length: 1, stream: 7, kind: frameOpen}.append(nil), 'x')),
		"with credit for 0":           after(data(64<<10, 0), data(64<<10, 0), data(64<<10, 0), data(64<<10, 0), data(1, 0)),
		"granted credit":              after(append(credit, 1, 0, 0, 0)),
		"granted credit for":          after(append(credit, 0, 0, 0, 0)),
		"ended twice":                 after(eof, eof),
		"data after the end":          after(eof, data(1, 2)),
		"unexpected EOF":              after(eof[:7]),
		ErrPeerClosed.Error():         after(eof),
		"read from the peer: unexpec": after(data(5, 0)[:14]),
	} {
		t.Run(want, func(t *testing.T) {
			a, b := sockets(t)
			server := NewConn(b, Options{Handler: serve})
			defer server.Close()
			a.Write(said)
			a.Close()
			<-server.Done()
			if err := server.Err(); !strings.Contains(err.Error(), want) {
				t.Fatalf("got %v", err)
			}
		})
	}
}

func TestOverlongMessageEndsTheConnection(t *testing.T) {
	a, b := sockets(t)
	server := NewConn(b, Options{Handler: serve})
	defer server.Close()
	defer a.Close()
	a.Write(append(header{length: 4, stream: 1, kind: frameOpen}.append(nil), "echo"...))
	a.Write(append(header{length: 4, stream: 1, kind: frameData, channel: messageChannel}.append(nil), 1, 0, 0x10, 0))
	<-server.Done()
	if err := server.Err(); !strings.Contains(err.Error(), "over the limit") {
		t.Fatalf("got %v", err)
	}
}

// recorder keeps what is written.
type recorder struct {
	net.Conn
	mu  sync.Mutex
	all []byte
}

func (r *recorder) Write(p []byte) (int, error) {
	r.mu.Lock()
	r.all = append(r.all, p...)
	r.mu.Unlock()
	return r.Conn.Write(p)
}

func TestCloseAtEveryByteEndsEveryStream(t *testing.T) {
	// Record one whole conversation of a client, then play each prefix of it.
	a, b := sockets(t)
	rec := &recorder{Conn: a}
	server := NewConn(b, Options{Handler: serve})
	client := NewConn(rec, Options{})
	if _, err := Call[note](t.Context(), client, "echo", note{N: 3}); err != nil {
		t.Fatal(err)
	}
	copyThrough(t, client, 600)
	client.Close()
	server.Close()
	for cut := range rec.all {
		a, b := sockets(t)
		server := NewConn(b, Options{Handler: serve})
		var reading sync.WaitGroup
		reading.Go(func() { io.Copy(io.Discard, a) })
		a.Write(rec.all[:cut])
		a.Close()
		<-server.Done()
		server.Close() // returns only when no handler is left
		reading.Wait()
		if server.Err() == nil {
			t.Fatalf("cut at %d: no error", cut)
		}
	}
}

func TestCloseEndsWaitersOfEveryKind(t *testing.T) {
	c, _ := pair(t, serve)
	s, err := c.Open(t.Context(), "hold", nil)
	if err != nil {
		t.Fatal(err)
	}
	var waiters sync.WaitGroup
	errs := make(chan error, 3)
	waiters.Go(func() { errs <- s.Recv(t.Context(), &note{}) })
	waiters.Go(func() { _, err := s.Reader(0).Read(make([]byte, 1)); errs <- err })
	waiters.Go(func() { _, err := s.Writer(0).Write(make([]byte, 1<<20)); errs <- err })
	c.Close()
	waiters.Wait()
	close(errs)
	for err := range errs {
		if !errors.Is(err, ErrClosed) {
			t.Errorf("got %v", err)
		}
	}
	if _, err := c.Open(t.Context(), "hold", nil); !errors.Is(err, ErrClosed) {
		t.Errorf("open after close: %v", err)
	}
}

func TestManyStreamsAtOnce(t *testing.T) {
	c, _ := pair(t, serve)
	var all sync.WaitGroup
	for i := range 100 {
		all.Go(func() {
			s, err := c.Open(t.Context(), "messages", nil)
			if err != nil {
				t.Error(err)
				return
			}
			defer s.Close()
			for n := range 20 {
				want := note{N: n, Text: fmt.Sprint(i)}
				var got note
				if err := errors.Join(s.Send(t.Context(), want), s.Recv(t.Context(), &got)); err != nil || got != want {
					t.Errorf("got %+v, %v", got, err)
					return
				}
			}
		})
	}
	all.Wait()
}

// fuzzed is a peer that says data and then goes.
type fuzzed struct {
	io.Reader
}

func (fuzzed) Write(p []byte) (int, error) { return len(p), nil }
func (fuzzed) Close() error                { return nil }

func FuzzAcceptor(f *testing.F) {
	open := append(header{length: 4, stream: 1, kind: frameOpen}.append(nil), "copy"...)
	f.Add(open)
	f.Add(append(bytes.Clone(open), append(header{length: 3, stream: 1, kind: frameData}.append(nil), "abc"...)...))
	f.Add(append(bytes.Clone(open), append(header{length: 4, stream: 1, kind: frameData, channel: 4}.append(nil), 2, 0, 0, 0)...))
	f.Fuzz(func(t *testing.T, data []byte) {
		c := NewConn(fuzzed{bytes.NewReader(data)}, Options{Handler: serve, MaxStreams: 4, Window: 1 << 10})
		<-c.Done()
		c.Close()
		if c.Err() == nil {
			t.Fatal("ended without a reason")
		}
	})
}

func FuzzOpener(f *testing.F) {
	reply := append(header{length: 11, stream: 1, kind: frameData, channel: 4, side: fromAcceptor}.append(nil), "\x07\x00\x00\x00{\"n\":1}"...)
	f.Add(reply)
	f.Add(append(bytes.Clone(reply), header{stream: 1, kind: frameClose, side: fromAcceptor}.append(nil)...))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, w := io.Pipe()
		c := NewConn(fuzzed{r}, Options{Window: 1 << 10})
		s, err := c.Open(t.Context(), "x", nil)
		if err != nil {
			t.Fatal(err)
		}
		var peer sync.WaitGroup
		peer.Go(func() { w.Write(data); w.Close() })
		for s.Recv(t.Context(), &note{}) == nil {
		}
		io.Copy(io.Discard, s.Reader(1))
		r.Close()
		c.Close()
		peer.Wait()
	})
}

func BenchmarkData(b *testing.B) {
	x, y := net.Pipe()
	server := NewConn(y, Options{Handler: func(ctx context.Context, s *Stream) { io.Copy(io.Discard, s.Reader(0)) }})
	client := NewConn(x, Options{})
	defer server.Close()
	defer client.Close()
	s, err := client.Open(b.Context(), "x", nil)
	if err != nil {
		b.Fatal(err)
	}
	block := make([]byte, 32<<10)
	b.SetBytes(int64(len(block)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.Writer(0).Write(block); err != nil {
			b.Fatal(err)
		}
	}
}
