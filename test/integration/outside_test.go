package integration

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// outside is what a sandbox may reach, and what it must not: servers on this
// machine that write down all that they get. All answer.
type outside struct {
	CA string // PEM, of what the TLS server shows

	TLS, HTTP, TCP, UDP int      // ports of 127.0.0.1 that the policy names
	Decoy               int      // port of every address of this machine, that no rule names; TCP and UDP
	Decoys              []string // ADDRESS:PORT of those

	mu    sync.Mutex
	seen  map[string][]string // by server; requests, datagrams and the like
	conns map[string]int      // connections
}

// note writes down what a server got.
func (o *outside) note(server, format string, args ...any) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.seen[server] = append(o.seen[server], fmt.Sprintf(format, args...))
}

// got is what a server wrote down.
func (o *outside) got(server string) (seen []string, conns int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.seen[server]), o.conns[server]
}

// newOutside starts all of them; the end of the test ends them.
func newOutside(t *testing.T, names ...string) *outside {
	t.Helper()
	o := &outside{seen: map[string][]string{}, conns: map[string]int{}}
	certificate, ca := authority(t, names)
	o.CA = ca
	var all sync.WaitGroup
	t.Cleanup(all.Wait) // runs last: whatever closes was registered later

	listen := func(server, address string) net.Listener {
		t.Helper()
		l, err := net.Listen("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		return &counted{l, server, o}
	}
	serve := func(server string, l net.Listener) {
		s := &http.Server{Handler: o.site(server), ErrorLog: log.New(io.Discard, "", 0)}
		all.Go(func() { s.Serve(l) })
		t.Cleanup(func() { s.Close() })
	}
	l := listen("tls", "127.0.0.1:0")
	o.TLS = port(l.Addr())
	serve("tls", tls.NewListener(l, &tls.Config{
		NextProtos: []string{"http/1.1"},
		GetCertificate: func(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
			o.note("sni", "%s", h.ServerName)
			return certificate, nil
		},
	}))
	l = listen("http", "127.0.0.1:0")
	o.HTTP = port(l.Addr())
	serve("http", l)
	l = listen("tcp", "127.0.0.1:0")
	o.TCP = port(l.Addr())
	all.Go(func() { o.echo(&all, "tcp", l) })
	o.UDP = o.datagrams(t, &all, "udp", "127.0.0.1:0")
	o.decoys(t, &all, listen)
	return o
}

// decoys listen on one port of every address that this machine has.
func (o *outside) decoys(t *testing.T, all *sync.WaitGroup, listen func(server, address string) net.Listener) {
	t.Helper()
	l := listen("decoy", "[::]:0")
	o.Decoy = port(l.Addr())
	all.Go(func() { o.echo(all, "decoy", l) })
	o.datagrams(t, all, "decoy", fmt.Sprintf("[::]:%d", o.Decoy))
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addresses {
		if n, ok := a.(*net.IPNet); ok && !n.IP.IsLinkLocalUnicast() {
			o.Decoys = append(o.Decoys, net.JoinHostPort(n.IP.String(), fmt.Sprint(o.Decoy)))
		}
	}
}

func port(a net.Addr) int {
	switch a := a.(type) {
	case *net.TCPAddr:
		return a.Port
	case *net.UDPAddr:
		return a.Port
	}
	return 0
}

// counted counts the connections of a listener.
type counted struct {
	net.Listener
	server string
	out    *outside
}

func (l *counted) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err == nil {
		l.out.mu.Lock()
		l.out.conns[l.server]++
		l.out.mu.Unlock()
	}
	return c, err
}

// site answers every request, and sends those who ask for it elsewhere.
func (o *outside) site(server string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(io.LimitReader(r.Body, 1<<20)) // what can be read of it
		o.note(server, "%s %s %s %s", r.Method, r.Host, r.RequestURI, body)
		switch to := r.URL.Query().Get("to"); {
		case to != "":
			http.Redirect(w, r, to, http.StatusFound)
		default:
			fmt.Fprintf(w, "%s was here\n", server)
		}
	})
}

// echo greets, so that a client which waits for the server is served, too, and
// sends back what it gets.
func (o *outside) echo(all *sync.WaitGroup, server string, l net.Listener) {
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // too many open files, as long as a flood lasts
		}
		all.Go(func() {
			defer c.Close()
			c.SetDeadline(time.Now().Add(2 * time.Minute))
			fmt.Fprintf(c, "%s greets\n", server)
			b := make([]byte, 1<<10)
			for {
				n, err := c.Read(b)
				if n > 0 {
					o.note(server, "%s", b[:n])
					c.Write(b[:n])
				}
				if err != nil {
					return
				}
			}
		})
	}
}

// datagrams sends back those that it gets.
func (o *outside) datagrams(t *testing.T, all *sync.WaitGroup, server, address string) int {
	t.Helper()
	c, err := net.ListenPacket("udp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	all.Go(func() {
		b := make([]byte, 64<<10)
		for {
			n, from, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			o.note(server, "datagram %q", bytes.TrimRight(b[:min(n, 40)], "\x00"))
			c.WriteTo(b[:n], from)
		}
	})
	return port(c.LocalAddr())
}

// authority makes a CA that nobody else knows, and a certificate of it.
func authority(t *testing.T, names []string) (*tls.Certificate, string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "a test's authority"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	root, err := x509.CreateCertificate(rand.Reader, ca, ca, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: names[0]}, DNSNames: names,
		NotBefore: ca.NotBefore, NotAfter: ca.NotAfter, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, ca, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	pem.Encode(&text, &pem.Block{Type: "CERTIFICATE", Bytes: root})
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, text.String()
}
