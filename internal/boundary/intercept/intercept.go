// Package intercept lets one sandbox's TLS connections end at its edge, where
// a rule needs it: [Authority] is a certificate authority that is made for that
// sandbox alone, and whose key never leaves the process. The package must not
// decide which connections are opened, and must not read or write them.
package intercept

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/netip"
	"sync"
	"time"
)

const (
	authorityLife = 2 * 365 * 24 * time.Hour // longer than a sandbox
	leafLife      = 7 * 24 * time.Hour
	renewBefore   = 24 * time.Hour
	skew          = 24 * time.Hour // a guest's clock may be behind
	maxLeaves     = 1024           // certificates that are remembered
)

// Authority signs for one sandbox. It is safe for use by several goroutines.
type Authority struct {
	cert *x509.Certificate
	pem  string
	key  *ecdsa.PrivateKey // of the authority
	leaf *ecdsa.PrivateKey // of every certificate: nobody else has either

	mu     sync.Mutex
	leaves map[string]*tls.Certificate
}

// New makes an authority. The name tells people whose it is.
func New(name string, now time.Time) (*Authority, error) {
	a := &Authority{leaves: map[string]*tls.Certificate{}}
	var err error
	if a.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, fmt.Errorf("make key of the authority: %w", err)
	}
	if a.leaf, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, fmt.Errorf("make key of certificates: %w", err)
	}
	template := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: "Creel sandbox " + name, Organization: []string{"Creel"}},
		NotBefore: now.Add(-skew), NotAfter: now.Add(authorityLife),
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, a.key.Public(), a.key)
	if err != nil {
		return nil, fmt.Errorf("make the authority's certificate: %w", err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		return nil, fmt.Errorf("read the authority's certificate: %w", err)
	}
	a.pem = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	return a, nil
}

func serial() *big.Int {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil { // crypto/rand ends the process instead
		panic(err)
	}
	return n
}

// PEM is the authority's certificate, for the sandbox's trust stores.
func (a *Authority) PEM() string { return a.pem }

// Config is what a connection to host, a name or an address, ends with.
func (a *Authority) Config(host string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return a.certificate(host, time.Now()) },
	}
}

func (a *Authority) certificate(host string, now time.Time) (*tls.Certificate, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if c := a.leaves[host]; c != nil && now.Before(c.Leaf.NotAfter.Add(-renewBefore)) {
		return c, nil
	}
	template := &x509.Certificate{
		SerialNumber: serial(), NotBefore: now.Add(-skew), NotAfter: now.Add(leafLife),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	if len(host) <= 64 { // a common name's bound, RFC 5280 A.1
		template.Subject.CommonName = host
	}
	if addr, err := netip.ParseAddr(host); err == nil {
		template.IPAddresses = append(template.IPAddresses, addr.AsSlice())
	} else {
		template.DNSNames = []string{host}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, a.leaf.Public(), a.key)
	if err != nil {
		return nil, fmt.Errorf("make certificate of %s: %w", host, err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("read certificate of %s: %w", host, err)
	}
	c := &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: a.leaf, Leaf: leaf}
	if len(a.leaves) >= maxLeaves {
		clear(a.leaves)
	}
	a.leaves[host] = c
	return c, nil
}
