package boundary

import (
	"errors"
	"fmt"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"creel/internal/audit/event"
	"creel/internal/boundary/netstack/netstacktest"
)

func udpRule(name, address string) string {
	return fmt.Sprintf("- {allow: %s, ports: 7000, protocol: udp, upstream: {address: %q}}\n", name, address)
}

func TestDatagrams(t *testing.T) {
	j := newJournal()
	r := j.open(t, rules(udpRule("udp.test", j.echoUDP(t)), allow("tcp.test", j.echo(t))))
	c := r.guest.DialUDP(t, r.to("udp.test", 7000))
	for _, size := range []int{1, 1400, 60000} {
		say, got := strings.Repeat("x", size), make([]byte, 65536)
		c.Write([]byte(say))
		if n, err := c.Read(got); err != nil || string(got[:n]) != say {
			t.Errorf("%d bytes came back of %d, %v", n, size, err)
		}
	}
	if n := j.count("record connection"); n != 1 {
		t.Errorf("%d connections on record", n)
	}
	if u, _ := r.edge.Used(); u.BytesOut != 61401 || u.BytesIn != 61401 {
		t.Errorf("used: %+v", u)
	}
	// Transport counts: a port that is open for one is shut for the other.
	other := r.guest.DialUDP(t, r.to("tcp.test", 7000))
	other.Write([]byte("x"))
	netstacktest.AwaitRefusal(t, other)
	r.wantReset("udp.test", 7000)
	list := r.awaitDenials(2)
	if len(list) != 2 || list[0].Target != "tcp.test:7000/udp" || list[1].Target != "udp.test:7000" {
		t.Errorf("denials: %+v", list)
	}
	// A policy without the rule ends the flow.
	r.setRules("")
	r.await(t, "record disconnected", 1)
}

func TestIdleDatagramsEnd(t *testing.T) {
	j := newJournal()
	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := j.open(t, rules(udpRule("udp.test", j.echoUDP(t))), func(c *Config) {
		c.idle, c.Ports = 50*time.Millisecond, []Port{{Datagram: udp, Guest: 8080}}
	})
	c := r.guest.DialUDP(t, r.to("udp.test", 7000))
	wantEcho(t, c, "hello")
	j.await(t, "record disconnected", 1)
	awaitFlows(t, r.edge, 0)
	// What comes later is another flow.
	wantEcho(t, c, "again")
	if d := of[event.Disconnected](j)[0]; d.BytesOut != 5 || d.BytesIn != 5 {
		t.Errorf("disconnected: %+v", d)
	}
}

func TestDatagramBudget(t *testing.T) {
	j := newJournal()
	r := j.open(t, "budget: {bytes_out: 100}\n"+rules(udpRule("udp.test", j.echoUDP(t))))
	c := r.guest.DialUDP(t, r.to("udp.test", 7000))
	wantEcho(t, c, strings.Repeat("x", 90))
	c.Write(make([]byte, 90))
	j.await(t, "record budget", 1)
	r.edge.Close()
	if n := j.count("datagram"); n != 1 {
		t.Errorf("%d datagrams got out", n)
	}
}

func TestPublishedPorts(t *testing.T) {
	j := newJournal()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	shut, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := j.open(t, "", func(c *Config) {
		c.Ports = []Port{{Stream: l, Guest: 8080}, {Datagram: p, Guest: 8080}, {Stream: shut, Guest: 9}}
	})
	inside, packets := r.guest.Listen(t, 8080), r.guest.ListenPacket(t, 8080)
	go func() {
		for {
			c, err := inside.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				buf := make([]byte, 100)
				for {
					n, err := c.Read(buf)
					if err != nil {
						return
					}
					c.Write(buf[:n])
				}
			}()
		}
	}()
	go func() {
		buf := make([]byte, 100)
		for {
			n, from, err := packets.ReadFrom(buf)
			if err != nil {
				return
			}
			packets.WriteTo(buf[:n], from)
		}
	}()
	for _, network := range []string{"tcp", "udp", "udp"} {
		to := l.Addr().String()
		if network == "udp" {
			to = p.LocalAddr().String()
		}
		c, err := net.Dial(network, to)
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(patience))
		wantEcho(t, c, "hello")
		wantEcho(t, c, "again")
		if half, ok := c.(*net.TCPConn); ok {
			half.CloseWrite()
			if n, err := half.Read(make([]byte, 1)); n != 0 || err == nil || err.Error() != "EOF" {
				t.Errorf("the end of the guest's half: %d, %v", n, err)
			}
		}
		c.Close()
	}
	visit(t, shut.Addr().String()) // nobody serves it: an end at once
	seen := of[event.Published](j)
	if len(seen) != 4 || seen[0].Proto != "tcp" || seen[1].Proto != "udp" || seen[0].Port != 8080 || seen[0].From == "" {
		t.Errorf("published: %+v", seen)
	}
	r.edge.Close()
	if _, err := net.Dial("tcp", l.Addr().String()); err == nil {
		t.Error("the port is open after the edge was closed")
	}
}

// Whoever connects to published ports does not hold more than maxInbound places,
// and as many for datagrams, however many ports there are, and is let go with the
// edge.
func TestFloodOfPublished(t *testing.T) {
	j := newJournal()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l2, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := j.open(t, "", func(c *Config) {
		c.Ports = []Port{{Stream: l, Guest: 8080}, {Datagram: p, Guest: 8080}, {Stream: l2, Guest: 8080}}
	})
	r.guest.Listen(t, 8080) // accepts nothing
	r.guest.ListenPacket(t, 8080)
	var conns []net.Conn
	for range maxInbound + 20 {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		u, err := net.Dial("udp", p.LocalAddr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer u.Close()
		u.Write([]byte("x"))
		c2, err := net.Dial("tcp", l2.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c2.Close()
		conns = append(conns, c, c2)
	}
	r.awaitInbound(2 * maxInbound)
	if err := r.edge.Close(); err != nil {
		t.Error(err)
	}
	in := int64(j.count("record published"))
	for _, v := range of[event.Visits](j) {
		in += v.Count
	}
	for _, p := range of[event.Published](j) {
		if p.Minute {
			in--
		}
	}
	if in != 2*maxInbound {
		t.Errorf("%d were let in", in)
	}
	for _, c := range conns {
		c.SetReadDeadline(time.Now().Add(patience))
		var timeout net.Error
		if _, err := c.Read(make([]byte, 1)); errors.As(err, &timeout) && timeout.Timeout() {
			t.Fatal("a connection is left open")
		}
	}
}

// awaitInbound waits until n from outside are in at once.
func (r *rig) awaitInbound(n int) {
	r.t.Helper()
	for end := time.Now().Add(patience); ; runtime.Gosched() {
		in := 0
		r.edge.flows.each(func(f *flow) {
			if f.inbound {
				in++
			}
		})
		if in >= n {
			return
		}
		if time.Now().After(end) {
			r.t.Fatalf("%d are in, want %d", in, n)
		}
	}
}
