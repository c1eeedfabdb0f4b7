package egress

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strconv"

	"golang.org/x/net/http/httpproxy"
)

// The schemes of a proxy.
const (
	HTTP   = "http"
	HTTPS  = "https" // HTTP over TLS
	SOCKS5 = "socks5"
)

// Proxy is the network's way out. NoProxy has what NO_PROXY has: names, which
// stand for all below them too, addresses, prefixes, each with or without a
// port, or "*"; it is held against a target's name and against its address.
type Proxy struct {
	Scheme  string
	Address string // HOST:PORT
	Login   Login
	NoProxy string
}

// Login is a user and password that no way of printing shows.
type Login struct{ user, password string }

// NewLogin is the only way to make a Login that is not empty.
func NewLogin(user, password string) Login { return Login{user, password} }

// Format hides the value from package fmt, whatever the verb.
func (Login) Format(f fmt.State, _ rune) { io.WriteString(f, "[hidden]") }

// MarshalText hides the value from encoders.
func (Login) MarshalText() ([]byte, error) { return []byte("[hidden]"), nil }

func (l Login) empty() bool { return l == Login{} }

// proxy is a Proxy that was found to be right.
type proxy struct {
	scheme  string
	place   place
	login   Login
	roots   *x509.CertPool
	noProxy func(*url.URL) (*url.URL, error)
}

func newProxy(c *Proxy, roots *x509.CertPool) (*proxy, error) {
	p := &proxy{scheme: c.Scheme, login: c.Login, roots: roots}
	switch c.Scheme {
	case HTTP, HTTPS:
	case SOCKS5:
		// RFC 1929 has one byte for each length.
		if len(c.Login.user) > 255 || len(c.Login.password) > 255 {
			return nil, errors.New("proxy: user or password is longer than the 255 bytes that SOCKS5 has room for")
		}
	default:
		return nil, fmt.Errorf("proxy: scheme %.20q: want http, https or socks5", c.Scheme)
	}
	var err error
	if p.place, err = parsePlace(c.Address); err != nil {
		return nil, fmt.Errorf("proxy: %w", err)
	}
	// Only whether it returns a proxy is looked at.
	p.noProxy = (&httpproxy.Config{HTTPSProxy: "http://proxy", NoProxy: c.NoProxy}).ProxyFunc()
	return p, nil
}

func (p *proxy) String() string { return p.scheme + "://" + p.place.String() }

// direct says that NoProxy names a host, or that it is the host itself.
func (p *proxy) direct(host string, port uint16) bool {
	if host == "" {
		return false
	}
	to, err := p.noProxy(&url.URL{Scheme: HTTPS, Host: net.JoinHostPort(host, strconv.Itoa(int(port)))})
	return err == nil && to == nil
}

// open has the proxy behind conn connect to target, HOST:PORT, and owns conn.
func (p *proxy) open(ctx context.Context, conn net.Conn, target string) (net.Conn, error) {
	fail := func(err error) (net.Conn, error) {
		conn.Close()
		err = fmt.Errorf("through proxy %s: %w", p, err)
		if f := (*failure)(nil); errors.As(err, &f) {
			return nil, err
		}
		return nil, &failure{ProxyFailed, err}
	}
	greet := p.connectHTTP
	switch p.scheme {
	case SOCKS5:
		greet = p.connectSOCKS
	case HTTPS:
		host := p.place.host
		if host == "" {
			host = p.place.addrs[0].String()
		}
		secure := tls.Client(conn, &tls.Config{ServerName: host, RootCAs: p.roots, NextProtos: []string{"http/1.1"}})
		if err := secure.HandshakeContext(ctx); err != nil {
			return fail(err)
		}
		conn = secure
	}
	if err := within(ctx, conn, func() error { return greet(conn, target) }); err != nil {
		return fail(err)
	}
	return conn, nil
}

func (p *proxy) connectHTTP(conn net.Conn, target string) error {
	req := "CONNECT " + target + " HTTP/1.1\r\nHost: " + target + "\r\n"
	if !p.login.empty() {
		req += "Proxy-Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte(p.login.user+":"+p.login.password)) + "\r\n"
	}
	if _, err := io.WriteString(conn, req+"\r\n"); err != nil {
		return err
	}
	switch status, err := readConnectResponse(conn); {
	case err != nil:
		return err
	case status == 407:
		return &failure{ProxyRefused, errors.New("status 407: check the user and password in HTTPS_PROXY")}
	case status != 200:
		return &failure{ProxyRefused, fmt.Errorf("status %d", status)}
	}
	return nil
}

const maxHead = 16 << 10 // bytes of a proxy's response

// readConnectResponse reads a response's head and not a byte more: what
// follows is the target's. A head is short, so that reading it bytewise costs
// little, and the connection stays what it is.
func readConnectResponse(r io.Reader) (status int, err error) {
	head := make([]byte, 0, 512)
	for !bytes.HasSuffix(head, []byte("\r\n\r\n")) && !bytes.HasSuffix(head, []byte("\n\n")) {
		if len(head) == maxHead {
			return 0, fmt.Errorf("head of response is longer than %d bytes", maxHead)
		}
		if _, err := io.ReadFull(r, head[len(head):len(head)+1:cap(head)]); err != nil {
			return 0, fmt.Errorf("read head of response: %w", err)
		}
		head = head[:len(head)+1]
		if len(head) == cap(head) {
			head = append(head, 0)[:len(head)]
		}
	}
	// HTTP-version SP 3DIGIT, RFC 9112 section 4. The words after it are not
	// for our errors: a proxy may repeat there what it was sent.
	if len(head) < 13 || !bytes.HasPrefix(head, []byte("HTTP/1.")) || head[8] != ' ' || head[12] != ' ' && head[12] != '\r' && head[12] != '\n' {
		return 0, errors.New("response is not HTTP/1")
	}
	for _, c := range head[9:12] {
		if c < '0' || c > '9' {
			return 0, errors.New("response has no status")
		}
		status = 10*status + int(c-'0')
	}
	return status, nil
}

// connectSOCKS is RFC 1928 and RFC 1929.
func (p *proxy) connectSOCKS(conn net.Conn, target string) error {
	method := byte(0)
	if !p.login.empty() {
		method = 2
	}
	if _, err := conn.Write([]byte{5, 1, method}); err != nil {
		return err
	}
	var reply [2]byte
	if _, err := io.ReadFull(conn, reply[:]); err != nil {
		return fmt.Errorf("read greeting: %w", err)
	}
	switch {
	case reply[0] != 5:
		return errors.New("greeting is not SOCKS5")
	case reply[1] == 0xff:
		return &failure{ProxyRefused, errors.New("it wants another way to log in: check the user and password in HTTPS_PROXY")}
	case reply[1] != method:
		return errors.New("it chose a way to log in that was not offered")
	}
	if method == 2 {
		if err := p.login.sendSOCKS(conn); err != nil {
			return err
		}
	}
	request, err := socksRequest(target)
	if err != nil {
		return err
	}
	if _, err := conn.Write(request); err != nil {
		return err
	}
	return readSOCKSReply(conn)
}

func (l Login) sendSOCKS(conn net.Conn) error {
	msg := append([]byte{1, byte(len(l.user))}, l.user...)
	msg = append(append(msg, byte(len(l.password))), l.password...)
	if _, err := conn.Write(msg); err != nil {
		return err
	}
	var reply [2]byte
	if _, err := io.ReadFull(conn, reply[:]); err != nil {
		return fmt.Errorf("read answer to login: %w", err)
	}
	if reply[1] != 0 {
		return &failure{ProxyRefused, errors.New("login refused: check the user and password in HTTPS_PROXY")}
	}
	return nil
}

func socksRequest(target string) ([]byte, error) {
	to, err := parsePlace(target)
	if err != nil {
		return nil, err
	}
	msg := []byte{5, 1, 0}
	switch {
	case to.host != "":
		msg = append(append(msg, 3, byte(len(to.host))), to.host...) // a clean name has at most 253 bytes
	case to.addrs[0].Is4():
		msg = append(append(msg, 1), to.addrs[0].AsSlice()...)
	default:
		msg = append(append(msg, 4), to.addrs[0].AsSlice()...)
	}
	return append(msg, byte(to.port>>8), byte(to.port)), nil
}

// readSOCKSReply reads to the end of the reply and not a byte more.
func readSOCKSReply(r io.Reader) error {
	var head [5]byte // with the first byte of the address
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return fmt.Errorf("read reply: %w", err)
	}
	if head[0] != 5 {
		return errors.New("reply is not SOCKS5")
	}
	if head[1] != 0 {
		return &failure{ProxyRefused, fmt.Errorf("SOCKS5 reply %d", head[1])}
	}
	rest := 0
	switch head[3] {
	case 1:
		rest = net.IPv4len - 1
	case 3:
		rest = int(head[4])
	case 4:
		rest = net.IPv6len - 1
	default:
		return errors.New("reply has an address of an unknown kind")
	}
	if _, err := io.ReadFull(r, make([]byte, rest+2)); err != nil {
		return fmt.Errorf("read reply: %w", err)
	}
	return nil
}
