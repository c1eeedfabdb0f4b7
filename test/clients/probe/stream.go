package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"creel/test/clients/packet"
)

func streamTries() []try {
	return []try{
		{"connect", "HOST:PORT [send]: a TCP connection; with send, reached is that bytes come back", 1, connect},
		{"dot", "ADDRESS NAME: DNS over TLS", 2, dot},
		{"doh", "ADDRESS NAME [SNI]: DNS over HTTPS", 2, doh},
		{"tls-sni", "HOST:PORT SNI|- [ech=NAME] [fragmented] [slow]: a ClientHello; with ech the true name is hidden; reached is a ServerHello", 2, tlsSNI},
		{"tls-garbage", "HOST:PORT HEX: first bytes of whatever kind, where TLS is expected", 2, tlsGarbage},
		{"http-raw", "HOST:PORT SHAPE NAME [OTHER]: a request of a shape, for NAME and what is smuggled for OTHER; reached is any 2xx; SHAPE list lists", 2, httpRaw},
		{"https-raw", "HOST:PORT SHAPE NAME [OTHER]: the same within TLS to NAME, whoever signed for it", 3, httpsRaw},
	}
}

// isLocal tells that nothing left this machine.
func isLocal(err error) bool {
	for _, no := range []syscall.Errno{syscall.ENETUNREACH, syscall.EADDRNOTAVAIL, syscall.EACCES, syscall.EPERM, syscall.EINVAL, syscall.EAFNOSUPPORT, syscall.EMFILE} {
		if errors.Is(err, no) {
			return true
		}
	}
	var name *net.DNSError
	return errors.As(err, &name)
}

// dial connects, with a deadline for all that follows.
func (p *prober) dial(ctx context.Context, address string) (net.Conn, error) {
	c, err := (&net.Dialer{Timeout: p.wait}).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	if err := c.SetDeadline(time.Now().Add(p.wait)); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// dialled is the result of a connection that failed.
func dialled(err error) result {
	return result{Sent: !isLocal(err), Detail: "connect: " + cause(err)}
}

func connect(ctx context.Context, p *prober, args []string) (result, error) {
	c, err := p.dial(ctx, args[0])
	if err != nil {
		return dialled(err), nil
	}
	defer c.Close()
	r := result{Sent: true, Reached: true}
	b := make([]byte, 256)
	if len(args) > 1 {
		fmt.Fprint(c, "GET / HTTP/1.0\r\n\r\n")
		r.Reached = false
	}
	n, err := c.Read(b)
	r.Reached = r.Reached || n > 0
	r.Detail = fmt.Sprintf("connected to %s; read %q, %s", c.RemoteAddr(), b[:n], cause(err))
	return r, nil
}

func dot(ctx context.Context, p *prober, args []string) (result, error) {
	q, err := query(args[1], dnsmessage.TypeA, dnsmessage.ClassINET)
	if err != nil {
		return result{}, err
	}
	raw, err := p.dial(ctx, net.JoinHostPort(args[0], "853"))
	if err != nil {
		return dialled(err), nil
	}
	c := tls.Client(raw, &tls.Config{InsecureSkipVerify: true})
	defer c.Close()
	if err := c.HandshakeContext(ctx); err != nil {
		return result{Sent: true, Detail: "connected; TLS: " + cause(err)}, nil
	}
	answer, _, err := converse(c, true, q)
	return result{Sent: true, Reached: true, Detail: fmt.Sprintf("TLS is up; %d bytes of answer, %s", len(answer), cause(err))}, nil
}

func doh(ctx context.Context, p *prober, args []string) (result, error) {
	q, err := query(args[1], dnsmessage.TypeA, dnsmessage.ClassINET)
	if err != nil {
		return result{}, err
	}
	name := args[0]
	if len(args) > 2 {
		name = args[2]
	}
	transport := &http.Transport{
		TLSClientConfig:   &tls.Config{InsecureSkipVerify: true},
		ForceAttemptHTTP2: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return p.dial(ctx, net.JoinHostPort(args[0], "443"))
		},
	}
	defer transport.CloseIdleConnections()
	url := "https://" + name + "/dns-query?dns=" + base64.RawURLEncoding.EncodeToString(q)
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return result{}, err
	}
	request.Header.Set("Accept", "application/dns-message")
	response, err := transport.RoundTrip(request)
	if err != nil {
		return dialled(err), nil
	}
	response.Body.Close()
	return result{Sent: true, Reached: true, Detail: response.Status}, nil
}

func tlsSNI(ctx context.Context, p *prober, args []string) (result, error) {
	hello := packet.Hello{SNI: args[1]}
	if hello.SNI == "-" {
		hello.SNI = ""
	}
	for _, word := range args[2:] {
		if name, ok := strings.CutPrefix(word, "ech="); ok {
			hello.Hidden = name
		} else if word != "fragmented" && word != "slow" {
			return result{}, fmt.Errorf("%q is no word for a hello", word)
		}
	}
	record, err := hello.Record()
	if err != nil {
		return result{}, err
	}
	parts := [][]byte{record}
	if slices.Contains(args, "fragmented") {
		parts = packet.Split(record, 11)
	}
	if slices.Contains(args, "slow") { // byte by byte, as far as the kernel lets them go alone
		parts = slices.Collect(slices.Chunk(bytes.Join(parts, nil), 1))
	}
	return p.firstRecord(ctx, args[0], parts)
}

func tlsGarbage(ctx context.Context, p *prober, args []string) (result, error) {
	b, err := hex.DecodeString(args[1])
	if err != nil {
		return result{}, err
	}
	return p.firstRecord(ctx, args[0], [][]byte{b})
}

// firstRecord sends a hello and says what the other side answers.
func (p *prober) firstRecord(ctx context.Context, address string, parts [][]byte) (result, error) {
	c, err := p.dial(ctx, address)
	if err != nil {
		return dialled(err), nil
	}
	defer c.Close()
	if t, ok := c.(*net.TCPConn); ok {
		t.SetNoDelay(true)
	}
	for _, b := range parts {
		if _, err := c.Write(b); err != nil {
			return result{Sent: true, Detail: "while the hello was sent: " + cause(err)}, nil
		}
	}
	var b [7]byte
	n, err := io.ReadFull(c, b[:])
	switch {
	case n >= 6 && b[0] == 22 && b[5] == 2:
		return result{Sent: true, Reached: true, Detail: "ServerHello"}, nil
	case n == 7 && b[0] == 21:
		return result{Sent: true, Detail: "alert: " + tls.AlertError(b[6]).Error()}, nil
	case n > 0:
		return result{Sent: true, Detail: fmt.Sprintf("bytes that are no TLS: %q", b[:n])}, nil
	}
	return result{Sent: true, Detail: cause(err)}, nil
}
