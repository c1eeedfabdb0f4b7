package netstack

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"creel/internal/boundary/netstack/netstacktest"
)

var web = netip.AddrPortFrom(elsewhere, 80)

// echo accepts, and sends everything back.
func echo(_ context.Context, a *Attempt) {
	c, err := a.Accept()
	if err != nil {
		return
	}
	defer c.Close()
	io.Copy(c, c)
}

func allowUDP(netip.AddrPort) bool { return true }

func TestTCPCarriesBothWaysAndClosesByHalves(t *testing.T) {
	attempts := make(chan *Attempt, 1)
	s, card := start(t, Options{TCP: func(ctx context.Context, a *Attempt) {
		attempts <- a
		echo(ctx, a)
	}})
	c := startGuest(t, card).MustDial(t, web)
	a := <-attempts
	if a.Destination() != web || a.Source().Addr() != guestAddr || a.Source().Port() != uint16(c.LocalAddr().(*net.TCPAddr).Port) {
		t.Errorf("from %v to %v", a.Source(), a.Destination())
	}
	want := make([]byte, 5<<20)
	for i := range want {
		want[i] = byte(rand.Uint32())
	}
	go func() {
		c.Write(want)
		c.CloseWrite()
	}()
	got, err := io.ReadAll(c)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes came back, %v; they are the same: %v", len(got), err, bytes.Equal(got, want))
	}
	c.Close()
	awaitFlows(t, s, 0)
	for end := time.Now().Add(patience); s.held.Load() != 0; runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatalf("%d segments are held for good", s.held.Load())
		}
	}
}

// TestEndThatIsSentAgainEndsTheFlow is of a guest, or a host so busy, that an end
// is acknowledged late.
func TestEndThatIsSentAgainEndsTheFlow(t *testing.T) {
	s, conn := start(t, Options{TCP: echo})
	c := newCard(t, conn)
	c.send(tcpFrameTo(1000, web, 2, 1, 0))
	begin := binary.BigEndian.Uint32(c.receive()[ethernetSize+ipSize+4:]) + 1
	c.send(tcpFrameTo(1000, web, 0x10, 2, begin))
	c.send(tcpFrameTo(1000, web, 0x11, 2, begin)) // the guest's end
	for ends := 0; ends < 2; {
		if c.receive()[ethernetSize+ipSize+13]&1 != 0 {
			ends++
		}
	}
	c.send(tcpFrameTo(1000, web, 0x10, 3, begin+1))
	awaitFlows(t, s, 0)
}

// awaitFlows waits until so many flows are open.
func awaitFlows(t *testing.T, s *Stack, want int) {
	t.Helper()
	for end := time.Now().Add(patience); ; runtime.Gosched() {
		s.mu.Lock()
		n := s.flows
		s.mu.Unlock()
		if n == want {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%d flows are open, want %d", n, want)
		}
	}
}

func TestTCPIsRefusedAtOnce(t *testing.T) {
	tests := map[string]struct {
		o  Options
		to netip.AddrPort
	}{
		"refused":           {Options{TCP: func(_ context.Context, a *Attempt) { a.Refuse() }}, web},
		"left unanswered":   {Options{TCP: func(context.Context, *Attempt) {}}, web},
		"nobody is asked":   {Options{}, web},
		"no service":        {Options{TCP: echo}, netip.AddrPortFrom(gatewayAddr, 80)},
		"too many flows":    {Options{TCP: echo, MaxFlows: -1}, web},
		"too many attempts": {Options{TCP: echo, MaxPending: -1}, web},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			s, card := start(t, test.o)
			_, err := startGuest(t, card).Dial(t, test.to)
			if err == nil || !strings.Contains(err.Error(), "refused") {
				t.Errorf("dial: %v", err)
			}
			awaitFlows(t, s, 0)
			want := uint64(0)
			if strings.HasPrefix(name, "too many") {
				want = 1
			}
			if n := s.Dropped()[Flood]; n != want {
				t.Errorf("%d counted as a flood, want %d", n, want)
			}
		})
	}
}

func TestSYNIsAnsweredOnlyByAccept(t *testing.T) {
	attempts, accept := make(chan *Attempt), make(chan struct{})
	_, conn := start(t, Options{TCP: func(ctx context.Context, a *Attempt) {
		attempts <- a
		<-accept
		echo(ctx, a)
	}})
	c := newCard(t, conn)
	c.send(tcpFrameTo(1000, web, 2, 5, 0))
	<-attempts
	c.send(tcpFrameTo(1000, web, 2, 5, 0)) // again: no second attempt
	c.ping()
	close(accept)
	p := c.receive()[ethernetSize:]
	if flags := p[ipSize+13]; flags != 0x12 || binary.BigEndian.Uint32(p[ipSize+8:]) != 6 {
		t.Errorf("answer with flags %#x: % x", flags, p)
	}
}

func TestAnswerIsGivenOnce(t *testing.T) {
	second := make(chan error, 1)
	_, card := start(t, Options{TCP: func(_ context.Context, a *Attempt) {
		c, err := a.Accept()
		if err != nil {
			second <- err
			return
		}
		a.Refuse()
		_, err = a.Accept()
		second <- err
		io.Copy(c, c)
		c.Close()
	}})
	c := startGuest(t, card).MustDial(t, web)
	if err := <-second; err == nil {
		t.Error("an attempt was accepted twice")
	}
	c.Write([]byte("x"))
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Error(err)
	}
}

func TestResetReachesTheGuest(t *testing.T) {
	for _, afterClose := range []bool{false, true} {
		done := make(chan struct{})
		s, card := start(t, Options{TCP: func(_ context.Context, a *Attempt) {
			defer close(done)
			c, err := a.Accept()
			if err != nil {
				t.Error(err)
				return
			}
			if afterClose {
				// More than the guest takes unread: the end cannot reach it.
				c.SetWriteDeadline(time.Now().Add(20 * time.Millisecond))
				if n, err := c.Write(make([]byte, 10<<20)); err == nil {
					t.Errorf("wrote %d bytes", n)
				}
				c.Close()
			}
			c.(*TCPConn).Reset()
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
				t.Errorf("read after reset: %v", err)
			}
		}})
		g := startGuest(t, card)
		c := g.MustDial(t, web)
		<-done
		if _, err := io.Copy(io.Discard, c); err == nil || !strings.Contains(err.Error(), "reset") {
			t.Errorf("the guest got %v", err)
		}
		awaitFlows(t, s, 0)
	}
}

func TestTCPDeadlines(t *testing.T) {
	errs := make(chan error, 3)
	_, card := start(t, Options{TCP: func(_ context.Context, a *Attempt) {
		c, err := a.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		c.SetDeadline(time.Now().Add(20 * time.Millisecond))
		_, err = c.Read(make([]byte, 1))
		errs <- err
		_, err = c.Write(make([]byte, 10<<20)) // more than fits while the guest does not read
		errs <- err
		c.Close()
		_, err = c.Read(make([]byte, 1))
		errs <- err
	}})
	startGuest(t, card).MustDial(t, web)
	for _, want := range []error{os.ErrDeadlineExceeded, os.ErrDeadlineExceeded, net.ErrClosed} {
		if err := <-errs; !errors.Is(err, want) {
			t.Errorf("%v, want %v", err, want)
		}
	}
}

func TestGatewayServices(t *testing.T) {
	s, card := start(t, Options{})
	l, err := s.ListenTCP(53)
	if err != nil {
		t.Fatal(err)
	}
	p, err := s.ListenUDP(53)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 2)
	go func() {
		c, err := l.Accept()
		if err == nil {
			io.Copy(c, c)
			c.Close()
			_, err = l.Accept()
		}
		done <- err
	}()
	go func() {
		b := make([]byte, 100)
		n, from, err := p.ReadFrom(b)
		if err == nil {
			p.WriteTo(bytes.ToUpper(b[:n]), from)
			_, _, err = p.ReadFrom(b)
		}
		done <- err
	}()
	g := startGuest(t, card)
	u := g.DialUDP(t, netip.AddrPortFrom(gatewayAddr, 53))
	u.Write([]byte("name"))
	b := make([]byte, 100)
	if n, err := u.Read(b); err != nil || string(b[:n]) != "NAME" {
		t.Errorf("%q, %v", b[:n], err)
	}
	c := g.MustDial(t, netip.AddrPortFrom(gatewayAddr, 53))
	c.Write([]byte("name"))
	if _, err := io.ReadFull(c, b[:4]); err != nil || string(b[:4]) != "name" {
		t.Errorf("%q, %v", b[:4], err)
	}
	c.Close()
	l.Close()
	p.Close()
	for range 2 {
		if err := <-done; !errors.Is(err, net.ErrClosed) {
			t.Errorf("after close: %v", err)
		}
	}
	u.Write([]byte("name"))
	netstacktest.AwaitRefusal(t, u)
	if _, err := g.Dial(t, netip.AddrPortFrom(gatewayAddr, 53)); err == nil {
		t.Error("connected with a closed service")
	}
}

func TestServicesCountAsFlows(t *testing.T) {
	s, card := start(t, Options{MaxFlows: 1})
	l, err := s.ListenTCP(53)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			if _, err := l.Accept(); err != nil {
				return
			}
		}
	}()
	g := startGuest(t, card)
	g.MustDial(t, netip.AddrPortFrom(gatewayAddr, 53))
	awaitFlows(t, s, 1)
	c := g.MustDial(t, netip.AddrPortFrom(gatewayAddr, 53))
	if _, err := c.Read(make([]byte, 1)); err == nil || !strings.Contains(err.Error(), "reset") {
		t.Errorf("a connection too many: %v", err)
	}
}

func TestUDPFlow(t *testing.T) {
	attempts, ended := make(chan *Attempt, 1), make(chan error, 1)
	s, card := start(t, Options{MayUDP: allowUDP, UDPIdle: 200 * time.Millisecond, UDP: func(_ context.Context, a *Attempt) {
		attempts <- a
		c, err := a.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		b := make([]byte, defaultMTU)
		for {
			n, err := c.Read(b)
			if err != nil {
				ended <- err
				return
			}
			c.Write(b[:n])
		}
	}})
	c := startGuest(t, card).DialUDP(t, web)
	for _, size := range []int{3, 0, defaultMTU - ipSize - udpSize} {
		want := bytes.Repeat([]byte{byte(size + 1)}, size)
		if _, err := c.Write(want); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, defaultMTU)
		if n, err := c.Read(got); err != nil || !bytes.Equal(got[:n], want) {
			t.Errorf("sent %d bytes, got %d, %v", size, n, err)
		}
	}
	if a := <-attempts; a.Destination() != web || a.Source().Addr() != guestAddr {
		t.Errorf("from %v to %v", a.Source(), a.Destination())
	}
	if err := <-ended; !errors.Is(err, net.ErrClosed) { // nothing more comes: it is idle
		t.Error(err)
	}
	awaitFlows(t, s, 0)
}

func TestUDPIsRefusedAtOnce(t *testing.T) {
	accept := func(_ context.Context, a *Attempt) { a.Accept() }
	tests := map[string]Options{
		"not allowed":     {UDP: accept, MayUDP: func(to netip.AddrPort) bool { return to != web }},
		"nobody decides":  {UDP: accept},
		"nobody is asked": {MayUDP: allowUDP},
		"refused":         {MayUDP: allowUDP, UDP: func(_ context.Context, a *Attempt) { a.Refuse() }},
		"left unanswered": {MayUDP: allowUDP, UDP: func(context.Context, *Attempt) {}},
		"too many flows":  {MayUDP: allowUDP, UDP: accept, MaxFlows: -1},
	}
	for name, o := range tests {
		t.Run(name, func(t *testing.T) {
			s, card := start(t, o)
			c := startGuest(t, card).DialUDP(t, web)
			c.Write([]byte("x"))
			netstacktest.AwaitRefusal(t, c)
			awaitFlows(t, s, 0)
		})
	}
}

func TestUDPDeadline(t *testing.T) {
	s, _ := start(t, Options{})
	p, err := s.ListenUDP(53)
	if err != nil {
		t.Fatal(err)
	}
	for _, wait := range []time.Duration{time.Millisecond, -time.Second} {
		p.SetReadDeadline(time.Now().Add(wait))
		if _, _, err := p.ReadFrom(nil); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error(err)
		}
	}
	if _, err := p.WriteTo([]byte("x"), net.UDPAddrFromAddrPort(web)); err == nil {
		t.Error("a service wrote to somebody else than the guest")
	}
	if _, err := s.ListenUDP(53); err == nil {
		t.Error("a port was taken twice")
	}
}

func TestDialReachesTheGuest(t *testing.T) {
	s, card := start(t, Options{})
	g := startGuest(t, card)
	l, p := g.Listen(t, 8080), g.ListenPacket(t, 8080)
	go func() {
		if c, err := l.Accept(); err == nil {
			io.Copy(c, c)
			c.Close()
		}
	}()
	go func() {
		b := make([]byte, 100)
		if n, from, err := p.ReadFrom(b); err == nil {
			p.WriteTo(b[:n], from)
		}
	}()
	ctx := t.Context()
	for _, network := range []string{"tcp", "udp"} {
		c, err := s.Dial(ctx, network, 8080)
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(patience))
		c.Write([]byte("hello"))
		b := make([]byte, 5)
		if _, err := io.ReadFull(c, b); err != nil || string(b) != "hello" {
			t.Errorf("%s: %q, %v", network, b, err)
		}
		if host, _, _ := net.SplitHostPort(c.LocalAddr().String()); host != gatewayAddr.String() {
			t.Errorf("%s: dialled from %v", network, c.LocalAddr())
		}
		c.Close()
	}
	if _, err := s.Dial(ctx, "tcp", 8081); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("dial of a port that nobody listens on: %v", err)
	}
	awaitFlows(t, s, 0)
}

func TestDialEndsWithItsContextAndWithTheStack(t *testing.T) {
	s, conn := start(t, Options{})
	c := newCard(t, conn)
	for _, stop := range []string{"context", "stack"} {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			_, err := s.Dial(ctx, "tcp", 80)
			done <- err
		}()
		c.receive() // the SYN, which the guest leaves unanswered
		if stop == "stack" {
			s.Close()
		}
		cancel()
		if err := <-done; err == nil {
			t.Errorf("dial came through without a guest")
		}
	}
	awaitFlows(t, s, 0)
}
