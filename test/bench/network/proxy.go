package network

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"time"

	"creel/internal/audit"
	"creel/internal/boundary"
	"creel/internal/boundary/credential"
	"creel/internal/boundary/egress"
	"creel/internal/boundary/intercept"
	"creel/internal/policy/syntax"
	"creel/internal/secret"
)

// ProxyArg makes the bench a proxy that the edge's rows compare: each is a
// process of its own, as a keeper is, and mitmproxy.
const ProxyArg = "proxy"

// order is what such a process is told, and offer what it answers.
type order struct {
	Edge      bool   // else Go's reverse proxy
	Port      int    // of the upstream
	Authority string // that the upstream is verified with
	LogDir    string
	LogKey    audit.SandboxKey
}

type offer struct{ Address, Authority string }

// proxy starts a process that the rig ends.
func (b *Bench) proxy(ctx context.Context, label string, o order) (*peer, error) {
	s, err := b.serve(ctx)
	if err != nil {
		return nil, err
	}
	o.Port, o.Authority = s.secure, s.authority.PEM()
	cmd := exec.Command("/proc/self/exe", ProxyArg)
	cmd.Stderr = os.Stderr
	in, err1 := cmd.StdinPipe()
	out, err2 := cmd.StdoutPipe()
	if err := errors.Join(err1, err2, b.child(label, cmd)); err != nil {
		return nil, err
	}
	var got offer
	if err := errors.Join(json.NewEncoder(in).Encode(o), json.NewDecoder(out).Decode(&got)); err != nil {
		return nil, fmt.Errorf("start the %s: %w", label, err)
	}
	return &peer{label, got.Address, trusting(got.Authority), s.secure}, nil
}

// ProxyMain is such a process. It returns when whoever started it has gone.
func ProxyMain() error {
	orders := json.NewDecoder(os.Stdin)
	var o order
	if err := orders.Decode(&o); err != nil {
		return fmt.Errorf("read what to be: %w", err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	serve := serveBare
	if o.Edge {
		serve = serveEdge
	}
	authority, err := serve(o, l)
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(offer{l.Addr().String(), authority})
	}
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

// serveEdge is a sandbox's edge on a listener in place of a card, with its record on
// disk, a secret that is put in, and responses that are searched.
func serveEdge(o order, l net.Listener) (authority string, err error) {
	ctx := context.Background()
	p, _, err := syntax.Parse(fmt.Appendf(nil, edgePolicy, o.Port), syntax.Inputs{
		File: func(string) ([]byte, error) { return []byte(o.Authority), nil },
	})
	if err != nil {
		return "", err
	}
	key, err := secret.NewValue(edgeKey)
	if err != nil {
		return "", err
	}
	wallet, err := credential.New([]secret.Grant{{Name: "bench-key", Value: key, Binding: secret.Binding{
		Hosts: []string{edgeHost}, Upstreams: []string{p.Rules[0].Upstream.Address}, CA: p.Rules[0].Upstream.CA, Use: secret.Use{As: secret.AsBearer},
	}}}, nil)
	if err != nil {
		return "", err
	}
	dialer, err := egress.New(egress.Config{})
	if err != nil {
		return "", err
	}
	record, err := audit.OpenLog(o.LogDir, o.LogKey)
	if err != nil {
		return "", err
	}
	card, _ := net.Pipe() // nothing is ever sent
	e, err := boundary.Open(ctx, boundary.Config{
		Sandbox: "bench", Network: card, Rules: boundary.Rules{Policy: p}, Dialer: dialer, Wallet: wallet,
		Audit: record, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return "", err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go e.Carry(ctx, edgeHost, uint16(o.Port), c)
		}
	}()
	return e.CA(), nil
}

// serveBare is Go's reverse proxy with the same TLS on both sides, which puts the
// header in and does nothing else.
func serveBare(o order, l net.Listener) (string, error) {
	authority, err := intercept.New("bench", time.Now())
	if err != nil {
		return "", err
	}
	upstream := &url.URL{Scheme: "https", Host: fmt.Sprintf("127.0.0.1:%d", o.Port)}
	proxy := &httputil.ReverseProxy{
		Rewrite: func(p *httputil.ProxyRequest) {
			p.SetURL(upstream)
			p.Out.Header.Set("Authorization", "Bearer "+edgeKey)
		},
		// HTTP/2 to the upstream, as by default, and as the edge speaks it.
		Transport: &http.Transport{
			TLSClientConfig: trusting(o.Authority), ForceAttemptHTTP2: true, MaxIdleConnsPerHost: crowd, DisableCompression: true,
		},
		ErrorLog: log.New(io.Discard, "", 0),
	}
	config := authority.Config(edgeHost)
	config.NextProtos = []string{"http/1.1"}
	go (&http.Server{Handler: proxy}).Serve(tls.NewListener(l, config))
	return authority.PEM(), nil
}
