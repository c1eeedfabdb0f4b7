package names

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// patience is for what happens at once where nothing is broken.
const patience = 5 * time.Second

// serving is one server under test, and its end.
type serving struct {
	addr   net.Addr
	cancel context.CancelFunc
	close  func() error
	result chan error
}

func serveUDP(t *testing.T, n *Names) serving {
	t.Helper()
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return start(t, c.LocalAddr(), c.Close, func(ctx context.Context) error { return n.ServeUDP(ctx, c) })
}

func serveTCP(t *testing.T, n *Names) serving {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return start(t, l.Addr(), l.Close, func(ctx context.Context) error { return n.ServeTCP(ctx, l) })
}

func start(t *testing.T, addr net.Addr, closer func() error, serve func(context.Context) error) serving {
	ctx, cancel := context.WithCancel(t.Context())
	s := serving{addr, cancel, closer, make(chan error, 1)}
	go func() { s.result <- serve(ctx) }()
	t.Cleanup(cancel)
	return s
}

// ends waits for the server to return.
func (s serving) ends(t *testing.T) {
	t.Helper()
	select {
	case err := <-s.result:
		if err != nil {
			t.Errorf("serve: %v", err)
		}
	case <-time.After(patience):
		t.Fatal("the server goes on")
	}
}

func (s serving) dial(t *testing.T) net.Conn {
	t.Helper()
	c, err := net.Dial(s.addr.Network(), s.addr.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c
}

func framed(query []byte) []byte {
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(query))), query...)
}

func receive(t *testing.T, c net.Conn) dnsmessage.Message {
	t.Helper()
	var length [2]byte
	if _, err := io.ReadFull(c, length[:]); err != nil {
		t.Fatal(err)
	}
	raw := make([]byte, binary.BigEndian.Uint16(length[:]))
	if _, err := io.ReadFull(c, raw); err != nil {
		t.Fatal(err)
	}
	return unpack(t, raw)
}

// closed reports whether the server has ended a connection, and not the
// deadline.
func closed(c net.Conn) bool {
	_, err := c.Read(make([]byte, 1))
	var timeout net.Error
	return err != nil && !(errors.As(err, &timeout) && timeout.Timeout())
}

// Go's own resolver is the client, over both transports.
func TestRealResolver(t *testing.T) {
	n := New(Options{Allow: below("example.com"), Pool: pool, Max: 10})
	servers := map[string]serving{"udp": serveUDP(t, n), "tcp": serveTCP(t, n)}
	for network, s := range servers {
		t.Run(network, func(t *testing.T) {
			r := &net.Resolver{PreferGo: true, StrictErrors: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
				var d net.Dialer
				return d.DialContext(ctx, network, s.addr.String())
			}}
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			got, err := r.LookupHost(ctx, "api.example.com.")
			if err != nil || len(got) != 1 || got[0] != "198.18.0.1" {
				t.Errorf("allowed name: %v, %v", got, err)
			}
			var missing *net.DNSError
			if _, err := r.LookupHost(ctx, "denied.test."); !errors.As(err, &missing) || !missing.IsNotFound {
				t.Errorf("denied name: %v", err)
			}
			if _, err := r.LookupTXT(ctx, "api.example.com."); !errors.As(err, &missing) || !missing.IsNotFound {
				t.Errorf("text of an allowed name: %v", err)
			}
		})
	}
}

func TestUDPGoesOnAfterRubbish(t *testing.T) {
	n := New(Options{Allow: everything, Pool: pool, Max: 10})
	c := serveUDP(t, n).dial(t)
	for _, rubbish := range [][]byte{{}, {1}, make([]byte, 5000)} {
		if _, err := c.Write(rubbish); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.Write(question(t, "example.com.", dnsmessage.TypeA)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 600)
	for range 2 { // the third piece of rubbish has a header, and is answered
		size, err := c.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		if m := unpack(t, buf[:size]); m.ID == 0x1234 && len(m.Answers) == 1 {
			return
		}
	}
	t.Error("no answer")
}

func TestTCPSeveralQueriesInOneSegment(t *testing.T) {
	n := New(Options{Allow: everything, Pool: pool, Max: 10})
	c := serveTCP(t, n).dial(t)
	one, two := framed(question(t, "one.test.", dnsmessage.TypeA)), framed(question(t, "two.test.", dnsmessage.TypeA))
	if _, err := c.Write(append(append(one, two...), one[:7]...)); err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"one.test.", "two.test."} {
		if m := receive(t, c); len(m.Answers) != 1 || m.Questions[0].Name.String() != want {
			t.Errorf("answer %d: %s", i, m.GoString())
		}
	}
	if _, err := c.Write(one[7:]); err != nil {
		t.Fatal(err)
	}
	if m := receive(t, c); len(m.Answers) != 1 {
		t.Errorf("third answer: %s", m.GoString())
	}
}

func TestTCPClosesWhatIsOutOfForm(t *testing.T) {
	tests := []struct {
		name string
		sent []byte
	}{
		{"too long", []byte{0x10, 0x01}},
		{"empty", []byte{0, 0}},
		{"a response", framed([]byte("\x00\x00\x80\x00\x00\x01\x00\x00\x00\x00\x00\x00"))},
	}
	s := serveTCP(t, New(Options{Allow: everything, Pool: pool, Max: 10}))
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := s.dial(t)
			if _, err := c.Write(tt.sent); err != nil {
				t.Fatal(err)
			}
			if !closed(c) {
				t.Error("the connection stays open")
			}
		})
	}
}

// A query that comes in drops is held to the same time as none.
func TestTCPIdleConnectionIsClosed(t *testing.T) {
	n := New(Options{Allow: everything, Pool: pool, Max: 10})
	n.idle = 50 * time.Millisecond
	s := serveTCP(t, n)
	silent, slow := s.dial(t), s.dial(t)
	if _, err := slow.Write([]byte{0, 40, 1, 2, 3}); err != nil {
		t.Fatal(err)
	}
	if !closed(silent) || !closed(slow) {
		t.Error("an idle connection stays open")
	}
}

func TestTCPConnectionsAreBounded(t *testing.T) {
	n := New(Options{Allow: everything, Pool: pool, Max: 10})
	n.conns = 2
	s := serveTCP(t, n)
	query := framed(question(t, "example.com.", dnsmessage.TypeA))
	var open []net.Conn
	for range n.conns {
		c := s.dial(t)
		c.Write(query)
		receive(t, c) // it has been accepted
		open = append(open, c)
	}
	if c := s.dial(t); !closed(c) {
		t.Error("a connection too many stays open")
	}
	open[0].Close()
	for deadline := time.Now().Add(patience); ; { // its place is free once the server has seen that
		c := s.dial(t)
		c.Write(query)
		if _, err := io.ReadFull(c, make([]byte, 2)); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("a place does not become free")
		}
	}
}

func TestServersEnd(t *testing.T) {
	query := question(t, "example.com.", dnsmessage.TypeA)
	tests := []struct {
		name  string
		serve func(*testing.T, *Names) serving
		end   func(serving)
	}{
		{"udp by context", serveUDP, func(s serving) { s.cancel() }},
		{"udp by close", serveUDP, func(s serving) { s.close() }},
		{"tcp by context", serveTCP, func(s serving) { s.cancel() }},
		{"tcp by close", serveTCP, func(s serving) { s.close() }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := tt.serve(t, New(Options{Allow: everything, Pool: pool, Max: 10}))
			c := s.dial(t)
			if s.addr.Network() == "tcp" {
				c.Write(framed(query))
				receive(t, c)
			}
			tt.end(s)
			s.ends(t)
			if s.addr.Network() == "tcp" && !closed(c) {
				t.Error("a connection is left")
			}
		})
	}
}
