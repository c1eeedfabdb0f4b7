package egress

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"testing"

	"golang.org/x/net/dns/dnsmessage"

	"creel/internal/policy"
)

// journal has what happened, in order, as the witness and the servers saw it.
type journal struct {
	mu    sync.Mutex
	lines []string

	refuse string // the beginning of what the witness refuses to put on record
	last   Attempt
}

func (j *journal) note(format string, args ...any) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.lines = append(j.lines, fmt.Sprintf(format, args...))
}

func (j *journal) all() []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return append([]string(nil), j.lines...)
}

// start forgets what happened, and refuses to record what begins so.
func (j *journal) start(refuse string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.lines, j.refuse = nil, refuse
}

func (j *journal) record(kind, format string, args ...any) error {
	if j.refuse == kind {
		return io.ErrShortWrite
	}
	j.note("record "+kind+" "+format, args...)
	return nil
}

func (j *journal) Lookup(_ context.Context, host string) error { return j.record("lookup", "%s", host) }

func (j *journal) Dial(_ context.Context, a Attempt) error {
	j.last = a
	switch {
	case a.Name != "":
		return j.record("dial", "%s via %s", a.Name, a.Via)
	case a.Via != "":
		return j.record("dial", "%s via %s", a.Address, a.Via)
	}
	return j.record("dial", "%s", a.Address)
}

// zone answers a question.
type zone func(q dnsmessage.Question) (dnsmessage.RCode, []dnsmessage.Resource)

// nameserver serves a zone on loopback over UDP, truncating what is too long,
// and over TCP.
func nameserver(t *testing.T, z zone) netip.AddrPort {
	t.Helper()
	var tcp net.Listener
	var udp net.PacketConn
	for udp == nil { // until a port is free for both
		var err error
		if tcp, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
		if udp, err = net.ListenPacket("udp", tcp.Addr().String()); err != nil {
			tcp.Close()
		}
	}
	answer := func(query []byte) []byte {
		var m dnsmessage.Message
		if err := m.Unpack(query); err != nil || len(m.Questions) != 1 {
			t.Errorf("query %x: %v", query, err)
			return nil
		}
		code, answers := z(m.Questions[0])
		out, err := (&dnsmessage.Message{
			Header:    dnsmessage.Header{ID: m.ID, Response: true, RecursionAvailable: true, RCode: code},
			Questions: m.Questions, Answers: answers,
		}).Pack()
		if err != nil {
			t.Error(err)
		}
		return out
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, 4096)
		for {
			n, from, err := udp.ReadFrom(buf)
			if err != nil {
				return
			}
			out := answer(buf[:n])
			if len(out) > maxDatagram {
				out = out[:12]
				out[2] |= 2 // truncated, and with the question alone
				out = append(out, buf[12:n]...)
				binary.BigEndian.PutUint16(out[6:], 0)
				binary.BigEndian.PutUint16(out[10:], 1)
			}
			udp.WriteTo(out, from)
		}
	})
	wg.Go(func() {
		accept(tcp, func(c net.Conn) {
			var size [2]byte
			io.ReadFull(c, size[:])
			query := make([]byte, binary.BigEndian.Uint16(size[:]))
			io.ReadFull(c, query)
			out := answer(query)
			c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(out))), out...))
		})
	})
	t.Cleanup(func() { udp.Close(); tcp.Close(); wg.Wait() })
	return tcp.Addr().(*net.TCPAddr).AddrPort()
}

// accept serves each connection in turn until the listener is closed.
func accept(l net.Listener, serve func(net.Conn)) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		serve(c)
		c.Close()
	}
}

// server serves connections on loopback, one after the other.
func server(t *testing.T, address string, serve func(net.Conn)) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Skip(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { accept(l, serve) })
	t.Cleanup(func() { l.Close(); wg.Wait() })
	return l.Addr().(*net.TCPAddr).AddrPort()
}

// greeter says hello first, and notes that somebody came.
func greeter(t *testing.T, j *journal, address string) netip.AddrPort {
	return server(t, address, func(c net.Conn) { j.note("accept"); io.WriteString(c, "hello") })
}

// resources are the answers for one question: an address a piece, where it is
// of the family that is asked for, or a name that is an alias.
func resources(q dnsmessage.Question, answers ...string) (out []dnsmessage.Resource) {
	h := dnsmessage.ResourceHeader{Name: q.Name, Class: dnsmessage.ClassINET}
	for _, s := range answers {
		addr, err := netip.ParseAddr(s)
		switch {
		case err != nil:
			name := dnsmessage.MustNewName(s)
			out = append(out, dnsmessage.Resource{Header: h, Body: &dnsmessage.CNAMEResource{CNAME: name}})
			h.Name = name
		case addr.Is4() && q.Type == dnsmessage.TypeA:
			out = append(out, dnsmessage.Resource{Header: h, Body: &dnsmessage.AResource{A: addr.As4()}})
		case addr.Is6() && q.Type == dnsmessage.TypeAAAA:
			out = append(out, dnsmessage.Resource{Header: h, Body: &dnsmessage.AAAAResource{AAAA: addr.As16()}})
		}
	}
	return out
}

// always answers every name alike, and notes who asks for what.
func always(j *journal, answers ...string) zone {
	return func(q dnsmessage.Question) (dnsmessage.RCode, []dnsmessage.Resource) {
		j.note("asked %s", q.Name)
		return dnsmessage.RCodeSuccess, resources(q, answers...)
	}
}

func newDialer(t *testing.T, c Config) *Dialer {
	t.Helper()
	d, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// rule allows a destination on every port, for opaque TCP.
func rule(host string, change ...func(*policy.Rule)) policy.Rule {
	r := policy.Rule{Name: host, Host: host, Ports: []policy.PortRange{{First: 1, Last: 65535}}, Protocol: policy.TCP}
	if p, err := netip.ParsePrefix(host); err == nil {
		r.Host, r.Prefix = "", p
	}
	for _, f := range change {
		f(&r)
	}
	return r
}

func private(r *policy.Rule) { r.AllowPrivate = true }

func upstream(address string) func(*policy.Rule) {
	return func(r *policy.Rule) { r.Upstream.Address = address }
}

func rules(list ...policy.Rule) *policy.Policy { return policy.New(list, policy.Budget{}, nil) }

// wantHello reads what a greeter says, and ends the connection.
func wantHello(t *testing.T, conn net.Conn, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if got, err := io.ReadAll(conn); err != nil || string(got) != "hello" {
		t.Errorf("read %q, %v", got, err)
	}
	if _, ok := conn.(interface{ CloseWrite() error }); !ok {
		t.Errorf("%T has no CloseWrite", conn)
	}
}

// connectProxy is an HTTP proxy for one connection: whatever it is asked for,
// it greets itself, in one packet with its answer.
func connectProxy(j *journal, answer string) func(net.Conn) {
	return func(c net.Conn) {
		req, err := http.ReadRequest(bufio.NewReader(c))
		if err != nil {
			return
		}
		j.note("%s %s, Host %s, %q", req.Method, req.RequestURI, req.Host, req.Header.Get("Proxy-Authorization"))
		io.WriteString(c, answer)
	}
}

// socksProxy does the same for SOCKS5.
func socksProxy(j *journal) func(net.Conn) {
	return func(c net.Conn) {
		read := func(n byte) []byte {
			b := make([]byte, n)
			io.ReadFull(c, b)
			return b
		}
		method := read(read(2)[1])[0]
		c.Write([]byte{5, method})
		login := ""
		if method == 2 {
			login = string(read(read(2)[1]))
			login += ":" + string(read(read(1)[0]))
			c.Write([]byte{1, 0})
		}
		target, bound := "", []byte{5, 0, 0, 1, 0, 0, 0, 0, 0, 0}
		switch read(4)[3] {
		case 1:
			target = net.IP(read(4)).String()
		case 3:
			target, bound = string(read(read(1)[0])), []byte("\x05\x00\x00\x03\x04exit\x00\x50")
		case 4:
			target, bound = net.IP(read(16)).String(), append([]byte{5, 0, 0, 4}, make([]byte, 18)...)
		}
		j.note("SOCKS %s %d %q", target, binary.BigEndian.Uint16(read(2)), login)
		c.Write(append(bound, "hello"...))
	}
}
