package intercept

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"testing"
	"time"
)

func authority(t *testing.T) *Authority {
	t.Helper()
	a, err := New("test", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// shake tries a handshake between a client that trusts roots and the edge.
func shake(t *testing.T, config *tls.Config, name string, roots *x509.CertPool) (tls.ConnectionState, error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	b, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() {
		defer b.Close()
		served <- tls.Server(b, config).HandshakeContext(t.Context())
	}()
	client := tls.Client(a, &tls.Config{ServerName: name, RootCAs: roots, NextProtos: []string{"h2"}})
	err = client.HandshakeContext(t.Context())
	a.Close()
	<-served
	return client.ConnectionState(), err
}

func pool(t *testing.T, a *Authority) *x509.CertPool {
	t.Helper()
	p := x509.NewCertPool()
	if !p.AppendCertsFromPEM([]byte(a.PEM())) {
		t.Fatal("the certificate is not PEM")
	}
	return p
}

func TestCertificatesOfNamesAndAddresses(t *testing.T) {
	a := authority(t)
	long := "a-label-of-its-own.that-makes-the-name-longer-than-a-common-name.example.com"
	for _, host := range []string{"api.example.com", "192.0.2.7", long} {
		state, err := shake(t, a.Config(host), host, pool(t, a))
		if err != nil {
			t.Errorf("%s: %v", host, err)
		} else if state.NegotiatedProtocol != "h2" {
			t.Errorf("%s: protocol %q", host, state.NegotiatedProtocol)
		}
	}
}

func TestNoOtherNameAndNoOtherSandbox(t *testing.T) {
	a, other := authority(t), authority(t)
	if _, err := shake(t, a.Config("api.example.com"), "www.example.com", pool(t, a)); err == nil {
		t.Error("a certificate serves for another name")
	}
	if _, err := shake(t, a.Config("api.example.com"), "api.example.com", pool(t, other)); err == nil {
		t.Error("another sandbox's authority is trusted")
	}
}

func TestCertificatesAreRenewedAndBounded(t *testing.T) {
	a := authority(t)
	now := time.Now()
	first, err := a.certificate("a.test", now)
	if err != nil {
		t.Fatal(err)
	}
	again, err := a.certificate("a.test", now.Add(time.Hour))
	if err != nil || again != first {
		t.Errorf("not remembered: %v", err)
	}
	later, err := a.certificate("a.test", now.Add(leafLife-time.Hour))
	if err != nil || later == first {
		t.Errorf("not renewed: %v", err)
	}
	for i := range maxLeaves + 10 {
		if _, err := a.certificate(fmt.Sprintf("%d.test", i), now); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(a.leaves); n > maxLeaves {
		t.Errorf("%d certificates are remembered", n)
	}
}
