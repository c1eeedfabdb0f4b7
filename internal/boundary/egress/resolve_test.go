package egress

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

func TestLookup(t *testing.T) {
	answer := func(code dnsmessage.RCode, answers ...string) netip.AddrPort {
		return nameserver(t, func(q dnsmessage.Question) (dnsmessage.RCode, []dnsmessage.Resource) {
			return code, resources(q, answers...)
		})
	}
	l, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	closed := l.LocalAddr().(*net.UDPAddr).AddrPort()
	good := answer(dnsmessage.RCodeSuccess, "1.1.1.1", "1.1.1.2", "2606:4700::1")
	for name, c := range map[string]struct {
		servers []netip.AddrPort
		want    string // addresses, or a class
	}{
		"both families by turns":        {[]netip.AddrPort{good}, "1.1.1.1 2606:4700::1 1.1.1.2"},
		"the second, the first refuses": {[]netip.AddrPort{answer(dnsmessage.RCodeRefused), good}, "1.1.1.1 2606:4700::1 1.1.1.2"},
		"the second, the first fails":   {[]netip.AddrPort{answer(dnsmessage.RCodeServerFailure), good}, "1.1.1.1 2606:4700::1 1.1.1.2"},
		"the second, the first is gone": {[]netip.AddrPort{closed, good}, "1.1.1.1 2606:4700::1 1.1.1.2"},
		"no such name is final":         {[]netip.AddrPort{answer(dnsmessage.RCodeNameError), good}, NoSuchName},
		"no address is final":           {[]netip.AddrPort{answer(dnsmessage.RCodeSuccess, "alias."), good}, NoSuchName},
		"all gone":                      {[]netip.AddrPort{closed, closed}, ResolverFailed},
		"none":                          {nil, ResolverFailed},
	} {
		t.Run(name, func(t *testing.T) {
			r := resolver{c.servers}
			addrs, err := r.lookup(t.Context(), "pub.test")
			got := Class(err)
			if err == nil {
				got = strings.Trim(fmt.Sprint(addrs), "[]")
			}
			if got != c.want {
				t.Errorf("got %s (%v), want %s", got, err, c.want)
			}
		})
	}
}

// A nameserver that never answers for one family does not hold up the other.
func TestSilentFamily(t *testing.T) {
	l, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 1<<10)
		for range 2 {
			n, from, err := l.ReadFrom(buf)
			var m dnsmessage.Message
			if err != nil || m.Unpack(buf[:n]) != nil || m.Questions[0].Type != dnsmessage.TypeA {
				continue
			}
			reply := func(id uint16, host string) {
				q := m.Questions[0]
				q.Name = dnsmessage.MustNewName(host)
				out, _ := (&dnsmessage.Message{Header: dnsmessage.Header{ID: id, Response: true, RecursionAvailable: true},
					Questions: []dnsmessage.Question{q}, Answers: resources(q, "6.6.6.6")}).Pack()
				if host == "PUB.test." && id == m.ID {
					out[len(out)-1] = 1 // the true answer: 6.6.6.1
				}
				l.WriteTo(out, from)
			}
			l.WriteTo([]byte("nonsense"), from)
			reply(m.ID+1, "pub.test.")
			reply(m.ID, "other.test.")
			reply(m.ID, "PUB.test.")
		}
	}()
	begin := time.Now()
	r := resolver{[]netip.AddrPort{l.LocalAddr().(*net.UDPAddr).AddrPort()}}
	addrs, err := r.lookup(t.Context(), "pub.test")
	if err != nil || len(addrs) != 1 || addrs[0] != netip.MustParseAddr("6.6.6.1") {
		t.Errorf("%v, %v", addrs, err)
	}
	if took := time.Since(begin); took > queryTimeout {
		t.Errorf("took %v", took)
	}
	<-done
}

func FuzzAnswer(f *testing.F) {
	q := dnsmessage.Question{Name: dnsmessage.MustNewName("pub.test."), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}
	seed, err := (&dnsmessage.Message{Header: dnsmessage.Header{ID: 7, Response: true, RecursionAvailable: true},
		Questions: []dnsmessage.Question{q}, Answers: resources(q, "a.alias.", "1.1.1.1", "1.1.1.2")}).Pack()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Add(seed[:20])
	f.Fuzz(func(t *testing.T, msg []byte) {
		var p dnsmessage.Parser
		header, ok := start(&p, msg, 7, q)
		if !ok {
			return
		}
		addrs, err := readAnswers(&p, header, q.Type)
		if (err == nil) == (len(addrs) == 0) || len(addrs) > maxAddresses {
			t.Errorf("%v, %v", addrs, err)
		}
	})
}
