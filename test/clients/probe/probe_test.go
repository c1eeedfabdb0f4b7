package main

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

// probed runs a case as the command line would.
func probed(t *testing.T, args ...string) result {
	t.Helper()
	var out bytes.Buffer
	if err := run(t.Context(), append([]string{"-gateway", "127.0.0.1"}, args...), &out); err != nil {
		t.Fatal(err)
	}
	var r result
	if err := json.Unmarshal(out.Bytes(), &r); err != nil {
		t.Fatalf("%q: %v", &out, err)
	}
	if i := slices.IndexFunc(args, func(a string) bool { return a == r.Case }); i < 0 {
		t.Errorf("the line is for case %q, want one of %q", r.Case, args)
	}
	return r
}

// closedPort is one that refuses.
func closedPort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func TestStreams(t *testing.T) {
	seen := make(chan string, 100)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/dns-query" {
			w.WriteHeader(http.StatusTeapot)
		}
	}))
	server.TLS = &tls.Config{GetConfigForClient: func(info *tls.ClientHelloInfo) (*tls.Config, error) {
		seen <- info.ServerName
		return nil, nil
	}}
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	defer server.Close()
	address := server.Listener.Addr().String()
	for name, tc := range map[string]struct {
		args    []string
		reached bool
		detail  string
		sni     string
	}{
		"named":      {[]string{"tls-sni", address, "a.example"}, true, "ServerHello", "a.example"},
		"unnamed":    {[]string{"tls-sni", address, "-"}, true, "ServerHello", ""},
		"fragmented": {[]string{"tls-sni", address, "a.example", "fragmented", "slow"}, true, "ServerHello", "a.example"},
		"encrypted":  {[]string{"tls-sni", address, "outer.example", "ech=inner.example"}, true, "ServerHello", "outer.example"},
		"garbage":    {[]string{"tls-garbage", address, "160301000501000001ff"}, false, "alert", ""},
		"refused":    {[]string{"tls-sni", closedPort(t), "a.example"}, false, "connection refused", ""},
		"connect":    {[]string{"-wait", "100ms", "connect", address}, true, "connected to", ""},
		"not there":  {[]string{"connect", closedPort(t)}, false, "connection refused", ""},
	} {
		t.Run(name, func(t *testing.T) {
			r := probed(t, tc.args...)
			if !r.Sent || r.Reached != tc.reached || !strings.Contains(r.Detail, tc.detail) {
				t.Errorf("got %+v, want reached %v with %q", r, tc.reached, tc.detail)
			}
			if tc.detail == "ServerHello" {
				if got := <-seen; got != tc.sni {
					t.Errorf("the server saw %q, want %q", got, tc.sni)
				}
			}
		})
	}
}

func TestShapes(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		if r.Host != "name.example" || r.URL.Path == "/smuggled" {
			w.WriteHeader(http.StatusForbidden)
		}
	}))
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	defer server.Close()
	address := server.Listener.Addr().String()
	for shape, reached := range map[string]bool{"plain": true, "pipeline": true, "other-host": false, "host-twice": false, "cl-cl": false, "header-huge": false} {
		if r := probed(t, "-wait", "500ms", "http-raw", address, shape, "name.example", "other.example"); r.Reached != reached || !r.Sent {
			t.Errorf("%s: got %+v, want reached %v", shape, r, reached)
		}
	}
	if r := probed(t, "-wait", "500ms", "http-raw", address, "pipeline", "name.example"); !strings.HasPrefix(r.Detail, "2 responses") || !strings.Contains(r.Detail, "403") {
		t.Errorf("the second request of a pipeline is not there: %+v", r)
	}
	if r := probed(t, "http-raw", address, "list"); len(strings.Fields(r.Detail)) != len(shapes()) {
		t.Errorf("the list has %q", r.Detail)
	}
}

func TestBytesOf(t *testing.T) {
	got := bytesOf(shapes()["cl-te"], "a.example", "b.example")
	head, body, _ := strings.Cut(got, "\r\n\r\n")
	if !strings.HasPrefix(head, "POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 48\r\n") || len(body) != 48 || !strings.Contains(body, "Host: b.example") {
		t.Errorf("got %q", got)
	}
	for name, shape := range shapes() {
		if s := bytesOf(shape, "a", "b"); strings.Contains(s, "LEN") || strings.Contains(s, "NAME") || strings.Contains(s, "OTHER") {
			t.Errorf("%s is not filled in: %.200q", name, s)
		}
	}
}

// resolver answers over UDP until the test ends: leak.example has a text,
// names below ok.example an address, and nothing else is there.
func resolver(t *testing.T) string {
	t.Helper()
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() {
		c.Close()
		<-done
	})
	go func() {
		defer close(done)
		b := make([]byte, 1<<16)
		for {
			n, from, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			var m dnsmessage.Message
			if m.Unpack(b[:n]) != nil || len(m.Questions) != 1 {
				continue
			}
			answer(&m)
			if packed, err := m.Pack(); err == nil {
				c.WriteTo(packed, from)
			}
		}
	}()
	return c.LocalAddr().String()
}

func answer(m *dnsmessage.Message) {
	q := m.Questions[0]
	m.Response, m.RCode, m.Additionals = true, dnsmessage.RCodeNameError, nil
	h := dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class}
	switch name := q.Name.String(); {
	case strings.HasSuffix(name, "ok.example."):
		m.RCode = dnsmessage.RCodeSuccess
		if q.Type == dnsmessage.TypeA {
			m.Answers = append(m.Answers, dnsmessage.Resource{Header: h, Body: &dnsmessage.AResource{A: [4]byte{198, 18, 0, 1}}})
		}
	case name == "leak.example." && q.Type == dnsmessage.TypeTXT:
		m.RCode = dnsmessage.RCodeSuccess
		m.Answers = append(m.Answers, dnsmessage.Resource{Header: h, Body: &dnsmessage.TXTResource{TXT: []string{"data"}}})
	}
}

func TestNames(t *testing.T) {
	dns := resolver(t)
	for name, tc := range map[string]struct {
		args    []string
		reached bool
		detail  string
	}{
		"there":      {[]string{"dns-name", "ok.example"}, true, "198.18.0.1"},
		"not there":  {[]string{"dns-name", "no.example"}, false, "RCodeNameError"},
		"only an A":  {[]string{"dns-type", "ok.example"}, false, "with 1 addresses"},
		"a text":     {[]string{"dns-type", "leak.example", "1", "16"}, true, "TypeTXT"},
		"no tunnel":  {[]string{"dns-tunnel", "no.example"}, false, "16 × RCodeNameError"},
		"a tunnel":   {[]string{"dns-tunnel", "ok.example"}, true, "16 × RCodeSuccess"},
		"garbage":    {[]string{"-wait", "100ms", "dns-garbage"}, false, "then a good query: ok"},
		"many":       {[]string{"flood-names", "300", "ok.example"}, true, "300 × RCodeSuccess; 1 addresses"},
		"many wrong": {[]string{"flood-names", "300", "no.example"}, false, "300 × RCodeNameError"},
	} {
		t.Run(name, func(t *testing.T) {
			r := probed(t, append([]string{"-dns", dns}, tc.args...)...)
			if !r.Sent || r.Reached != tc.reached || !strings.Contains(r.Detail, tc.detail) {
				t.Errorf("got %+v, want reached %v with %q", r, tc.reached, tc.detail)
			}
		})
	}
}

func TestFloodConnections(t *testing.T) {
	server := httptest.NewServer(nil)
	defer server.Close()
	r := probed(t, "flood-conns", server.Listener.Addr().String(), "200")
	if !r.Sent || !r.Reached || !strings.HasPrefix(r.Detail, "200 × ok; 200 still open") {
		t.Errorf("got %+v", r)
	}
	r = probed(t, "flood-conns", closedPort(t), "200")
	if !r.Sent || r.Reached || !strings.HasPrefix(r.Detail, "200 × connection refused; 0 still open") {
		t.Errorf("got %+v", r)
	}
}

func TestDatagram(t *testing.T) {
	dns := resolver(t)
	host, port, _ := net.SplitHostPort(dns)
	if r := probed(t, "-wait", "100ms", "quic", host, port); !r.Sent || r.Reached || r.Detail != "no answer" {
		t.Errorf("got %+v", r)
	}
	_, closed, _ := net.SplitHostPort(closedPort(t))
	if r := probed(t, "udp", host, closed, "1000"); !r.Sent || r.Reached || r.Detail != "connection refused" {
		t.Errorf("got %+v", r)
	}
}

func TestMisuse(t *testing.T) {
	for _, args := range [][]string{{}, {"nothing"}, {"icmp"}, {"icmp", "x"}, {"tls-sni", "127.0.0.1:1", "a", "b"}, {"flood-names", "0", "x"}} {
		if err := run(t.Context(), args, io.Discard); err == nil {
			t.Errorf("%q was taken", args)
		}
	}
}

// Rows are commands of both kinds, and each says how it went.
func TestRows(t *testing.T) {
	t.Setenv("WORD", "list")
	in := "7\techo two; echo words; exit 3\n8\tprobe http-raw nowhere $WORD\n9\tprobe nothing\n"
	var out bytes.Buffer
	if err := rows(t.Context(), strings.NewReader(in), &out, 1); err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{`^7\t3\t\d+\ttwo words$`, `^8\t0\t\d+\t\{"case":"http-raw",.* plain `, `^9\t2\t\d+\tthere is no case "nothing"`} {
		line := strings.Split(out.String(), "\n")[i]
		if !regexp.MustCompile(want).MatchString(line) {
			t.Errorf("row %d is %q, want %q", i, line, want)
		}
	}
	if err := rows(t.Context(), strings.NewReader("nothing\n"), &out, 1); err == nil {
		t.Error("a line without a number is taken for a row")
	}
}
