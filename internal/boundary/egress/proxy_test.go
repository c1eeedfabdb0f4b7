package egress

import (
	"bufio"
	"crypto/tls"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"creel/internal/policy"
)

const established = "HTTP/1.1 200 Connection established\r\nX: y\r\n\r\nhello"

// overTLS serves with the certificate of 127.0.0.1, and returns it.
func overTLS(serve func(net.Conn)) (wrapped func(net.Conn), ca string) {
	s := httptest.NewTLSServer(nil)
	defer s.Close()
	config := &tls.Config{Certificates: s.TLS.Certificates}
	ca = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}))
	return func(c net.Conn) {
		secure := tls.Server(c, config)
		serve(secure)
		secure.Close()
	}, ca
}

func TestProxies(t *testing.T) {
	one := Target{Addr: netip.MustParseAddr("1.1.1.1"), Port: 443}
	named := Target{Host: "pub.test", Port: 443}
	const http = "CONNECT %s, Host %[1]s, %[2]q"
	for name, c := range map[string]struct {
		scheme   string
		login    Login
		resolves bool
		target   Target
		hosts    string // what hosts has for pub.test
		record   string
		want     string // what the proxy sees
	}{
		"http":              {scheme: HTTP, target: one, record: "1.1.1.1:443", want: fmt.Sprintf(http, "1.1.1.1:443", "")},
		"http, login":       {scheme: HTTP, login: NewLogin("u", "p:w"), target: one, record: "1.1.1.1:443", want: fmt.Sprintf(http, "1.1.1.1:443", "Basic dTpwOnc=")},
		"http, name":        {scheme: HTTP, target: named, record: "2.2.2.2:443", want: fmt.Sprintf(http, "2.2.2.2:443", "")},
		"http, resolves":    {scheme: HTTP, target: named, resolves: true, record: "pub.test:443", want: fmt.Sprintf(http, "pub.test:443", "")},
		"resolves, hosts":   {scheme: HTTP, target: named, resolves: true, hosts: "3.3.3.3", record: "3.3.3.3:443", want: fmt.Sprintf(http, "3.3.3.3:443", "")},
		"https":             {scheme: HTTPS, login: NewLogin("u", "p"), target: one, record: "1.1.1.1:443", want: fmt.Sprintf(http, "1.1.1.1:443", "Basic dTpw")},
		"socks5":            {scheme: SOCKS5, target: one, record: "1.1.1.1:443", want: `SOCKS 1.1.1.1 443 ""`},
		"socks5, login":     {scheme: SOCKS5, login: NewLogin("u", "p"), target: one, record: "1.1.1.1:443", want: `SOCKS 1.1.1.1 443 "u:p"`},
		"socks5, resolves":  {scheme: SOCKS5, target: named, resolves: true, record: "pub.test:443", want: `SOCKS pub.test 443 ""`},
		"socks5, IPv6":      {scheme: SOCKS5, target: Target{Addr: netip.MustParseAddr("2606:4700::1"), Port: 80}, record: "[2606:4700::1]:80", want: `SOCKS 2606:4700::1 80 ""`},
		"http, IPv6":        {scheme: HTTP, target: Target{Addr: netip.MustParseAddr("2606:4700::1"), Port: 80}, record: "[2606:4700::1]:80", want: fmt.Sprintf(http, "[2606:4700::1]:80", "")},
		"private, resolves": {scheme: HTTP, resolves: true, target: Target{Addr: netip.MustParseAddr("10.0.0.1"), Port: 80}},
	} {
		t.Run(name, func(t *testing.T) {
			j := &journal{}
			serve, ca := connectProxy(j, established), ""
			switch c.scheme {
			case SOCKS5:
				serve = socksProxy(j)
			case HTTPS:
				serve, ca = overTLS(serve)
			}
			at := server(t, "127.0.0.1:0", serve)
			hosts := map[string][]netip.Addr{}
			if c.hosts != "" {
				hosts["pub.test"] = []netip.Addr{netip.MustParseAddr(c.hosts)}
			}
			d := newDialer(t, Config{
				Nameservers: []netip.AddrPort{nameserver(t, always(&journal{}, "2.2.2.2"))}, Hosts: hosts,
				Proxy: &Proxy{Scheme: c.scheme, Address: at.String(), Login: c.login}, ProxyResolves: c.resolves, CA: ca,
			})
			conn, err := d.Dial(t.Context(), rules(rule("**"), rule("0.0.0.0/0"), rule("::/0")), c.target, j)
			if c.record == "" {
				if Class(err) != DeniedByPolicy || len(j.all()) > 0 {
					t.Errorf("%v, %q", err, j.all())
				}
				return
			}
			wantHello(t, conn, err)
			want := []string{"record dial " + c.record + " via " + c.scheme + "://" + at.String(), c.want}
			if c.target == named && !c.resolves {
				want = append([]string{"record lookup pub.test"}, want...)
			}
			if diff := cmp.Diff(want, j.all()); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// The proxy itself may have a name, and more addresses than one.
func TestProxyByName(t *testing.T) {
	j := &journal{}
	at := server(t, "127.0.0.1:0", connectProxy(j, established))
	d := newDialer(t, Config{
		Nameservers: []netip.AddrPort{nameserver(t, always(&journal{}, "127.0.0.2", "127.0.0.1"))},
		Proxy:       &Proxy{Scheme: HTTP, Address: fmt.Sprintf("proxy.corp:%d", at.Port())},
	})
	conn, err := d.Dial(t.Context(), rules(rule("1.1.1.1/32")), Target{Addr: netip.MustParseAddr("1.1.1.1"), Port: 443}, j)
	wantHello(t, conn, err)
	want := []string{fmt.Sprintf("record dial 1.1.1.1:443 via http://proxy.corp:%d", at.Port()), "record lookup proxy.corp", `CONNECT 1.1.1.1:443, Host 1.1.1.1:443, ""`}
	if diff := cmp.Diff(want, j.all()); diff != "" {
		t.Error(diff)
	}
}

func TestNoProxy(t *testing.T) {
	for name, c := range map[string]struct {
		noProxy  string
		resolves bool
		direct   bool
	}{
		"nothing":            {},
		"name":               {noProxy: "pub.test", direct: true},
		"suffix":             {noProxy: "x,.test", direct: true},
		"other name":         {noProxy: "b.test"},
		"everything":         {noProxy: "*", direct: true},
		"prefix":             {noProxy: "1.1.0.0/16", direct: true},
		"other prefix":       {noProxy: "1.2.0.0/16"},
		"port":               {noProxy: "pub.test:443", direct: true},
		"other port":         {noProxy: "pub.test:80"},
		"resolves":           {resolves: true},
		"name, resolves":     {noProxy: "pub.test", resolves: true, direct: true},
		"address, resolves":  {noProxy: "1.1.1.1", resolves: true}, // which is not known here
		"everything, resolv": {noProxy: "*", resolves: true, direct: true},
	} {
		t.Run(name, func(t *testing.T) {
			j := &journal{}
			to := greeter(t, j, "127.0.0.1:0")
			at := server(t, "127.0.0.1:0", connectProxy(&journal{}, established))
			d := newDialer(t, Config{
				Nameservers: []netip.AddrPort{nameserver(t, always(&journal{}, "1.1.1.1"))}, ProxyResolves: c.resolves,
				Proxy: &Proxy{Scheme: HTTP, Address: at.String(), NoProxy: c.noProxy},
			})
			public(d, j, to)
			conn, err := d.Dial(t.Context(), rules(rule("pub.test")), Target{Host: "pub.test", Port: 443}, j)
			wantHello(t, conn, err)
			if direct := strings.HasSuffix(strings.Join(j.all(), " "), "accept"); direct != c.direct || direct != (j.last.Via == "") {
				t.Errorf("direct %v, want %v: %q", direct, c.direct, j.all())
			}
		})
	}
	// Loopback is the host itself, which no proxy reaches.
	j := &journal{}
	to := greeter(t, j, "127.0.0.1:0")
	d := newDialer(t, Config{Proxy: &Proxy{Scheme: HTTP, Address: "127.0.0.1:1"}, ProxyResolves: true})
	conn, err := d.Dial(t.Context(), rules(rule(policy.HostAlias)), Target{Host: policy.HostAlias, Port: to.Port()}, j)
	wantHello(t, conn, err)
	own := ownAddress(t)
	d.hosts = map[string][]netip.Addr{"own.test": {own}}
	if conn, err = d.Dial(t.Context(), rules(rule("own.test", private)), Target{Host: "own.test", Port: 1}, j); err == nil {
		conn.Close()
	}
	if j.last.Address.Addr() != own || j.last.Via != "" {
		t.Errorf("the host's own address: %+v", j.last)
	}
}

func TestProxyRefuses(t *testing.T) {
	hang := func(c net.Conn) {}
	reply := func(b ...byte) func(net.Conn) {
		return func(c net.Conn) { c.Read(make([]byte, 100)); c.Write(b); io.Copy(io.Discard, c) }
	}
	wrongCA, _ := overTLS(connectProxy(&journal{}, established))
	for name, c := range map[string]struct {
		scheme string
		serve  func(net.Conn)
		want   string
	}{
		"407":               {HTTP, connectProxy(&journal{}, "HTTP/1.1 407 hunter2\r\n\r\n"), ProxyRefused},
		"403":               {HTTP, connectProxy(&journal{}, "HTTP/1.1 403 hunter2\r\n\r\n"), ProxyRefused},
		"echo":              {HTTP, func(c net.Conn) { io.Copy(c, c) }, ProxyFailed},
		"endless head":      {HTTP, connectProxy(&journal{}, "HTTP/1.1 200 OK\r\nX: "+strings.Repeat("x", maxHead)+"\r\n\r\n"), ProxyFailed},
		"ends":              {HTTP, hang, ProxyFailed},
		"not TLS":           {HTTPS, connectProxy(&journal{}, established), ProxyFailed},
		"not verified":      {HTTPS, wrongCA, ProxyFailed},
		"SOCKS4":            {SOCKS5, reply(4, 0), ProxyFailed},
		"no method":         {SOCKS5, reply(5, 0xff), ProxyRefused},
		"another method":    {SOCKS5, reply(5, 1, 1, 0, 5, 0, 0, 1, 0, 0, 0, 0, 0, 0), ProxyFailed},
		"login not asked":   {SOCKS5, reply(5, 0, 5, 0, 0, 1, 0, 0, 0, 0, 0, 0), ProxyFailed},
		"login refused":     {SOCKS5, reply(5, 2, 1, 1), ProxyRefused},
		"connection denied": {SOCKS5, reply(5, 2, 1, 0, 5, 2, 0, 1, 0, 0, 0, 0, 0, 0), ProxyRefused},
		"odd address":       {SOCKS5, reply(5, 2, 1, 0, 5, 0, 0, 9, 0, 0, 0, 0, 0, 0), ProxyFailed},
	} {
		t.Run(name, func(t *testing.T) {
			config := Config{Proxy: &Proxy{Scheme: c.scheme, Address: server(t, "127.0.0.1:0", c.serve).String(), Login: NewLogin("agent", "hunter2")}}
			d := newDialer(t, config)
			j := &journal{}
			conn, err := d.Dial(t.Context(), rules(rule("1.1.1.1/32")), Target{Addr: netip.MustParseAddr("1.1.1.1"), Port: 443}, j)
			if conn != nil || Class(err) != c.want {
				t.Fatalf("%s: %v", Class(err), err)
			}
			if name == "407" && !strings.Contains(err.Error(), "check the user and password") {
				t.Errorf("says not what to do: %v", err)
			}
			encoded, _ := json.Marshal(config)
			for _, text := range []string{err.Error(), fmt.Sprintf("%+v %#v %s %v", *config.Proxy, *config.Proxy, config.Proxy.Login, config.Proxy),
				string(encoded), fmt.Sprint(j.all()), fmt.Sprint(d.proxy)} {
				if strings.Contains(text, "hunter2") || strings.Contains(text, "agent") || strings.Contains(text, "YWdlbnQ6") {
					t.Errorf("shows the login: %s", text)
				}
			}
		})
	}
}

func FuzzConnectResponse(f *testing.F) {
	for _, s := range []string{established, "HTTP/1.0 407 \r\n\r\n", "HTTP/1.1 200\n\n", "HTTP/1.1 20", "HTTP/2 200 OK\r\n\r\n", "\r\n\r\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		r := bufio.NewReaderSize(strings.NewReader(string(data)), 16)
		status, err := readConnectResponse(r)
		if err != nil {
			return
		}
		rest, _ := io.ReadAll(r)
		head := string(data[:len(data)-len(rest)])
		if status < 0 || status > 999 || len(head) > maxHead || !strings.HasSuffix(head, "\n") || strings.Contains(head[:len(head)-1], "\r\n\r\n") {
			t.Errorf("status %d of %q", status, head)
		}
	})
}

func FuzzSOCKSReply(f *testing.F) {
	f.Add([]byte{5, 0, 0, 1, 1, 1, 1, 1, 0, 80, 'x'})
	f.Add([]byte{5, 0, 0, 3, 1, 'a', 0, 80})
	f.Add([]byte{5, 0, 0, 3, 0, 0, 80})
	f.Fuzz(func(t *testing.T, data []byte) {
		r := strings.NewReader(string(data))
		if readSOCKSReply(r) == nil && len(data)-r.Len() > 262 {
			t.Error("read too far")
		}
	})
}
