package network

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"
)

// edgeHost is what is asked for at every proxy, and edgeKey the secret that
// each puts into requests and, but for the bare one, takes out of responses.
const (
	edgeHost = "edge.bench.test"
	edgeKey  = "sk-bench-4f9c2a7be01d48c3"
)

const edgePolicy = `version: 1
rules:
  - {allow: ` + edgeHost + `, ports: %[1]d, protocol: tls, methods: GET, secret: bench-key, upstream: {address: "127.0.0.1:%[1]d", ca: ca.pem}}
`

// peer is something that TLS can be spoken to, with the upstream behind it.
type peer struct {
	label   string
	address string
	config  *tls.Config
	port    int // of the upstream, which requests name
}

// edgeRows are those of TLS that is opened, on the host alone.
func (b *Bench) edgeRows() []Row {
	small, large := load{"/bytes/1000"}, load{fmt.Sprintf("/bytes/%d", largeBody)}
	return []Row{
		{Name: "edge: requests", Unit: "/s", MinRatio: 0.7, Setup: b.beside(b.withoutMore, small.perSecond)},
		{Name: "edge: requests, mitmproxy", Unit: "/s", MinRatio: 10, Setup: b.beside(b.withMitm, small.perSecond)},
		{Name: "edge: responses of 256 KiB", Unit: "MB/s", MinRatio: 0.7, Setup: b.beside(b.withoutMore, large.megabytes)},
		{Name: "edge: the same, mitmproxy", Unit: "MB/s", MinRatio: 10, Setup: b.beside(b.withMitm, large.megabytes)},
		{Name: "edge: delay added to an event", Unit: "ms", MaxA: 1, Setup: b.beside(b.withoutMore, b.eventDelay)},
	}
}

// beside compares the edge with another proxy.
func (b *Bench) beside(other func(context.Context) (*peer, error), measure func(context.Context, *peer) (float64, error)) func(context.Context) (x, y Side, err error) {
	of := func(p *peer) Side {
		return Side{p.label, func(ctx context.Context) (float64, error) { return measure(ctx, p) }}
	}
	return func(ctx context.Context) (x, y Side, err error) {
		edge, err := b.withEdge(ctx)
		if err != nil {
			return x, y, err
		}
		p, err := other(ctx)
		if err != nil {
			return of(edge), y, err
		}
		return of(edge), of(p), nil
	}
}

// withEdge is a sandbox's edge, in a process of its own as a keeper is.
func (b *Bench) withEdge(ctx context.Context) (*peer, error) {
	if b.edge != nil {
		return b.edge, nil
	}
	dir, key, err := b.Record(ctx)
	if err == nil {
		b.edge, err = b.proxy(ctx, "edge", order{Edge: true, LogDir: dir, LogKey: key})
	}
	return b.edge, err
}

// withoutMore is Go's reverse proxy, in a process of its own.
func (b *Bench) withoutMore(ctx context.Context) (p *peer, err error) {
	if b.bareProxy == nil {
		b.bareProxy, err = b.proxy(ctx, "bare ReverseProxy", order{})
	}
	return b.bareProxy, err
}

// trusting is a client's configuration that trusts one authority.
func trusting(authority string) *tls.Config {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(authority))
	return &tls.Config{RootCAs: roots, ServerName: edgeHost}
}

// withMitm is mitmproxy as a reverse proxy that puts the header in and looks
// for the secret in responses.
func (b *Bench) withMitm(ctx context.Context) (*peer, error) {
	if b.mitm != nil {
		return b.mitm, nil
	}
	program := filepath.Join(b.Peers, "usr/bin/mitmdump")
	if _, err := os.Stat(program); err != nil {
		return nil, Absent("no mitmproxy in " + b.Peers)
	}
	s, err := b.serve(ctx)
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(b.State, "mitm")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	ca := filepath.Join(dir, "upstream.pem")
	if err := os.WriteFile(ca, []byte(s.authority.PEM()), 0o600); err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("find a port: %w", err)
	}
	port := portOf(l)
	l.Close()
	cmd := exec.Command("/usr/bin/python3", program, "--quiet", "--set", "confdir="+dir, "--mode", fmt.Sprintf("reverse:https://%s:%d", "127.0.0.1", s.secure),
		"--listen-host", "127.0.0.1", "--listen-port", strconv.Itoa(port), "--set", "ssl_verify_upstream_trusted_ca="+ca,
		"--modify-headers", "/~q/Authorization/Bearer "+edgeKey, "--modify-body", "/~s/"+edgeKey+"/********")
	cmd.Env = append(os.Environ(), "PYTHONPATH="+filepath.Join(b.Peers, "usr/lib/python3/dist-packages"),
		"LD_LIBRARY_PATH="+filepath.Join(b.Peers, "usr/lib/x86_64-linux-gnu"))
	cmd.Stderr = os.Stderr
	if err := b.child("mitmproxy", cmd); err != nil {
		return nil, err
	}
	p := &peer{"mitmproxy", fmt.Sprintf("127.0.0.1:%d", port), nil, s.secure}
	if err := answers(ctx, p.address); err != nil {
		return nil, err
	}
	authority, err := os.ReadFile(filepath.Join(dir, "mitmproxy-ca-cert.pem"))
	if err != nil {
		return nil, fmt.Errorf("read mitmproxy's CA: %w", err)
	}
	p.config = trusting(string(authority))
	b.mitm = p
	return p, nil
}

// answers waits until something listens.
func answers(ctx context.Context, address string) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		c, err := net.Dial("tcp", address)
		if err == nil {
			return c.Close()
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return errors.Join(err, ctx.Err())
		}
	}
}
