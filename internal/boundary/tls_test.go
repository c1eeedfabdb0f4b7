package boundary

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"creel/internal/boundary/intercept"
)

// tlsEcho is an echo server with a certificate of its own.
func (j *journal) tlsEcho(t testing.TB, host string) string {
	config := ca().Config(host)
	config.NextProtos = nil
	return j.serve(t, func(c net.Conn) {
		s := tls.Server(c, config)
		io.Copy(s, s)
		s.Close()
	})
}

func trust(pem string) *tls.Config {
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM([]byte(pem))
	return &tls.Config{RootCAs: pool}
}

func tlsRule(name, address, more string) string {
	return fmt.Sprintf("- {allow: %s, ports: 443, upstream: {address: %q, ca: ca.pem}%s}\n", name, address, more)
}

// pieces gives what is written in pieces of one byte.
type pieces struct{ net.Conn }

func (p pieces) Write(b []byte) (int, error) {
	for i := range b {
		if _, err := p.Conn.Write(b[i : i+1]); err != nil {
			return i, err
		}
	}
	return len(b), nil
}

func TestTLSIsSpliced(t *testing.T) {
	j := newJournal()
	r := j.open(t, rules(tlsRule("secure.test", j.tlsEcho(t, "secure.test"), "")))
	for name, wrap := range map[string]func(net.Conn) net.Conn{
		"whole":     func(c net.Conn) net.Conn { return c },
		"byte-wise": func(c net.Conn) net.Conn { return pieces{c} },
	} {
		t.Run(name, func(t *testing.T) {
			config := trust(ca().PEM())
			config.ServerName = "Secure.Test"
			c := tls.Client(wrap(r.guest.MustDial(t, r.to("secure.test", 443))), config)
			if err := c.HandshakeContext(t.Context()); err != nil {
				t.Fatal(err)
			}
			if got := c.ConnectionState().PeerCertificates[0].Issuer.CommonName; got != "Creel sandbox upstreams" {
				t.Errorf("the certificate is from %q: it is not the server's own", got)
			}
			wantEcho(t, c, strings.Repeat("0123456789", 1000))
		})
	}
}

// helloOf is what a client begins with.
func helloOf(config *tls.Config) []byte {
	client, server := net.Pipe()
	go func() {
		tls.Client(client, config).Handshake()
		client.Close()
	}()
	b := make([]byte, 16<<10)
	n, _ := server.Read(b)
	server.Close()
	return b[:n]
}

// fragmented has each byte of a record in a record of its own.
func fragmented(record []byte) (out []byte) {
	for _, b := range record[5:] {
		out = append(out, 22, 3, 1, 0, 1, b)
	}
	return out
}

// withExtension adds an empty extension to a ClientHello in one record.
func withExtension(record []byte, kind uint16) []byte {
	b := bytes.Clone(record)
	at := 5 + 4 + 2 + 32
	at += 1 + int(b[at])                           // session
	at += 2 + int(binary.BigEndian.Uint16(b[at:])) // ciphers
	at += 1 + int(b[at])                           // compressions
	add := func(at, n int) { binary.BigEndian.PutUint16(b[at:], binary.BigEndian.Uint16(b[at:])+uint16(n)) }
	add(at, 4)
	add(3, 4)
	add(7, 4)
	return append(b, byte(kind>>8), byte(kind), 0, 0)
}

func TestWrongGreetingsGoNowhere(t *testing.T) {
	right, wrong := helloOf(&tls.Config{ServerName: "secure.test"}), helloOf(&tls.Config{ServerName: "other.test"})
	tests := map[string]struct {
		hello  []byte
		alert  bool
		reason string
	}{
		"another name":             {wrong, true, `names "other.test"`},
		"another name, in records": {fragmented(wrong), true, `names "other.test"`},
		"no name":                  {helloOf(&tls.Config{InsecureSkipVerify: true}), true, "names no server"},
		"ECH":                      {withExtension(right, 0xfe0d), true, "encrypted ClientHello"},
		"no TLS":                   {[]byte("GET / HTTP/1.1\r\nHost: secure.test\r\n\r\n"), false, "no TLS"},
		"half a greeting":          {right[:60], false, "cannot be read"},
		"nonsense":                 {append([]byte{22, 3, 1, 0, 8, 1, 0, 0, 4}, "junk"...), false, "cannot be read"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			j := newJournal()
			r := j.open(t, rules(tlsRule("secure.test", j.tlsEcho(t, "secure.test"), ""), tlsRule("other.test", j.tlsEcho(t, "other.test"), "")))
			c := r.guest.MustDial(t, r.to("secure.test", 443))
			c.Write(test.hello)
			c.CloseWrite()
			answer, err := io.ReadAll(c)
			if test.alert && !bytes.Equal(answer, accessDenied) || !test.alert && len(answer) > 0 {
				t.Errorf("answer % x, %v", answer, err)
			}
			list := r.awaitDenials(1)
			if len(list) != 1 || !strings.Contains(list[0].Reason, test.reason) || list[0].Target != "secure.test:443" {
				t.Errorf("denials: %+v", list)
			}
			j.wantNothingOutside(t)
		})
	}
	if n := len(right); n < 100 {
		t.Errorf("a ClientHello of %d bytes", n)
	}
}

func TestECHMayPass(t *testing.T) {
	j := newJournal()
	r := j.open(t, rules(tlsRule("secure.test", j.echo(t), ", ech: allow")))
	hello := withExtension(helloOf(&tls.Config{ServerName: "hidden.example"}), 0xfe0d)
	wantEcho(t, r.guest.MustDial(t, r.to("secure.test", 443)), string(hello))
}

// A connection to an address that names what is not allowed.
func TestAddressWithNameNeedsBoth(t *testing.T) {
	j := newJournal()
	text := fmt.Sprintf("- {allow: 93.184.216.34, ports: 443, upstream: {address: %q, ca: ca.pem}}\n", j.tlsEcho(t, "named.test"))
	r := j.open(t, rules(text))
	to := r.guest
	c := to.MustDial(t, mustAddrPort("93.184.216.34:443"))
	c.Write(helloOf(&tls.Config{ServerName: "named.test"}))
	if answer, _ := io.ReadAll(c); !bytes.Equal(answer, accessDenied) {
		t.Errorf("answer % x", answer)
	}
	j.wantNothingOutside(t)
	r.setRules(rules(text, "- {allow: named.test, ports: 443}\n"))
	config := trust(ca().PEM())
	config.ServerName = "named.test"
	s := tls.Client(to.MustDial(t, mustAddrPort("93.184.216.34:443")), config)
	wantEcho(t, s, "hello")
	// Rules that say the same leave it open.
	r.setRules(rules(text, "- {allow: named.test, ports: 443}\n", "- {allow: more.test}\n"))
	wantEcho(t, s, "hello")
}

func TestInterception(t *testing.T) {
	j := newJournal()
	address := j.web(t, "api.test", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.Proto) })
	r := j.open(t, rules(tlsRule("api.test", address, ", methods: [GET], paths: [/v1/**], name: R")))
	for _, proto := range []string{"HTTP/2.0", "HTTP/1.1"} {
		t.Run(proto, func(t *testing.T) {
			c := r.client(r.edge.CA())
			if proto == "HTTP/1.1" {
				c.Transport.(*http.Transport).ForceAttemptHTTP2 = false
			}
			res, err := c.Get("https://api.test/v1/x")
			if err != nil {
				t.Fatal(err)
			}
			io.Copy(io.Discard, res.Body)
			res.Body.Close()
			if res.Proto != proto || res.StatusCode != 200 {
				t.Errorf("%s, status %d", res.Proto, res.StatusCode)
			}
			before := len(j.seen())
			for _, try := range [][2]string{{"POST", "/v1/x"}, {"GET", "/v2/x"}} {
				req, _ := http.NewRequestWithContext(t.Context(), try[0], "https://api.test"+try[1], nil)
				res, err := c.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				body, _ := io.ReadAll(res.Body)
				res.Body.Close()
				if res.StatusCode != 403 || res.Header.Get("Creel-Decision") != "deny" || !strings.Contains(string(body), `"by":"creel"`) {
					t.Errorf("%v: status %d, %v, %s", try, res.StatusCode, res.Header, body)
				}
			}
			for _, l := range j.seen()[before:] {
				if strings.HasPrefix(l, "request ") {
					t.Errorf("the server saw %s", l)
				}
			}
		})
	}
}

func TestInterceptedUpstreamMustBeItself(t *testing.T) {
	stranger, err := intercept.New("stranger", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	config := stranger.Config("api.test")
	config.NextProtos = nil
	j := newJournal()
	r := j.open(t, rules(tlsRule("api.test", j.serve(t, func(c net.Conn) {
		s := tls.Server(c, config)
		if _, err := s.Read(make([]byte, 1)); err == nil {
			j.note("read")
		}
	}), ", methods: [GET]")))
	status, body := r.get(r.client(r.edge.CA()), "https://api.test/")
	if status != http.StatusBadGateway || !strings.Contains(body, "not who it should be") {
		t.Errorf("status %d, %s", status, body)
	}
	if j.count("read") != 0 {
		t.Error("the stranger was sent something")
	}
	// Nor does a client that trusts only the real authority trust ours.
	_, err = r.client(ca().PEM()).Get("https://api.test/")
	var untrusted *tls.CertificateVerificationError
	if !errors.As(err, &untrusted) {
		t.Errorf("a client that does not know the authority: %v", err)
	}
}

// A greeting that names another than the connection's is denied before TLS
// ends here.
func TestInterceptionHoldsTheName(t *testing.T) {
	j := newJournal()
	r := j.open(t, rules(tlsRule("api.test", j.echo(t), ", methods: [GET]")))
	config := trust(r.edge.CA())
	config.ServerName = "other.test"
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := tls.Client(r.guest.MustDial(t, r.to("api.test", 443)), config).HandshakeContext(ctx); err == nil || !strings.Contains(err.Error(), "access denied") {
		t.Errorf("handshake: %v", err)
	}
	j.wantNothingOutside(t)
}
