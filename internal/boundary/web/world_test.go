package web

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"creel/internal/boundary/intercept"
	"creel/internal/boundary/scrub"
)

const host = "api.test"

// patience is how long a test waits for what must come.
const patience = 10 * time.Second

// Ways to speak HTTP.
const (
	plainHTTP = "http/1"
	tlsHTTP1  = "tls+http/1"
	tlsHTTP2  = "tls+http/2"
)

var ways = []string{plainHTTP, tlsHTTP1, tlsHTTP2}

// eachWay runs a test with every way of the guest and every way of the upstream.
func eachWay(t *testing.T, h http.Handler, test func(t *testing.T, w *world)) {
	for _, guest := range ways {
		for _, upstream := range ways {
			t.Run(guest+" to "+upstream, func(t *testing.T) { test(t, newWorld(t, guest, serveHTTP(t, upstream, h))) })
		}
	}
}

// destination is an upstream.
type destination struct {
	addr string
	tls  bool
	ca   *x509.CertPool
}

func authorityOf(t testing.TB) (*intercept.Authority, *x509.CertPool) {
	t.Helper()
	a, err := intercept.New("test", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM([]byte(a.PEM()))
	return a, pool
}

// serveHTTP starts an upstream that is net/http's.
func serveHTTP(t testing.TB, way string, h http.Handler) destination {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	t.Cleanup(s.Close)
	if way == plainHTTP {
		s.Start()
		return destination{addr: s.Listener.Addr().String()}
	}
	a, pool := authorityOf(t)
	s.TLS = a.Config(host)
	s.EnableHTTP2 = way == tlsHTTP2
	s.TLS.NextProtos = []string{"http/1.1"}
	if s.EnableHTTP2 {
		s.TLS.NextProtos = []string{"h2"}
	}
	s.StartTLS()
	return destination{s.Listener.Addr().String(), true, pool}
}

// serveRaw starts an upstream that speaks for itself.
func serveRaw(t testing.TB, serve func(net.Conn)) destination {
	t.Helper()
	l := listen(t)
	var done sync.WaitGroup
	var mu sync.Mutex
	var open []net.Conn
	done.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open = append(open, c)
			mu.Unlock()
			done.Go(func() {
				defer c.Close()
				serve(c)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		for _, c := range open {
			c.Close()
		}
		mu.Unlock()
		done.Wait()
	})
	return destination{addr: l.Addr().String()}
}

// serveRawTLS is serveRaw behind TLS, where protocol was agreed on.
func serveRawTLS(t testing.TB, protocol string, serve func(net.Conn)) destination {
	t.Helper()
	a, pool := authorityOf(t)
	config := a.Config(host)
	config.NextProtos = []string{protocol}
	d := serveRaw(t, func(c net.Conn) {
		s := tls.Server(c, config)
		if s.HandshakeContext(t.Context()) == nil {
			serve(s)
			s.Close()
		}
	})
	d.tls, d.ca = true, pool
	return d
}

func listen(t testing.TB) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// world is a guest, the edge and an upstream.
type world struct {
	t    testing.TB
	way  string // of the guest
	to   destination
	addr string // where the guest connects to
	ca   *x509.CertPool
	host string
	port uint16
	pass Pass // what each request gets; Done is the world's

	server *Server
	client *http.Client
	logged safeBuffer

	quiet  bool // nothing is noted
	mu     sync.Mutex
	asked  []string // method, URI and host of every request that was asked about
	dialed int
	ended  []Result
	deny   func(*http.Request) *Denial
}

// newWorld starts one; change is of its server, before anything is served.
func newWorld(t testing.TB, way string, to destination, change ...func(*Server)) *world {
	t.Helper()
	w := &world{t: t, way: way, to: to, server: NewServer(), host: host, port: 80}
	if to.tls {
		w.port = 443
	}
	w.server.http.ErrorLog = log.New(&w.logged, "", 0)
	for _, do := range change {
		do(w.server)
	}
	var config *tls.Config
	if way != plainHTTP {
		var a *intercept.Authority
		a, w.ca = authorityOf(t)
		config = a.Config(host)
	}
	l := listen(t)
	w.addr = l.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	var accepting sync.WaitGroup
	accepting.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			accepting.Go(func() { w.server.Serve(ctx, c, w.site(), config) })
		}
	})
	w.client = w.newClient()
	t.Cleanup(func() {
		w.client.CloseIdleConnections()
		l.Close()
		cancel()
		w.server.Close()
		accepting.Wait()
		if text := w.logged.String(); strings.Contains(text, "panic") {
			t.Errorf("the server logged a panic:\n%s", text)
		}
	})
	return w
}

func (w *world) site() *Site {
	return &Site{
		Host: w.host, Port: w.port, TLS: w.to.tls, Roots: w.to.ca,
		Ask: func(_ context.Context, r *http.Request) (*Pass, *Denial) {
			if w.quiet {
				pass := w.pass
				pass.Done = func(Result) {}
				return &pass, nil
			}
			w.mu.Lock()
			defer w.mu.Unlock()
			w.asked = append(w.asked, r.Method+" "+r.URL.RequestURI()+" "+r.Host)
			if w.deny != nil {
				if d := w.deny(r); d != nil {
					return nil, d
				}
			}
			pass := w.pass
			pass.Done = func(r Result) {
				w.mu.Lock()
				defer w.mu.Unlock()
				w.ended = append(w.ended, r)
			}
			return &pass, nil
		},
		Dial: func(ctx context.Context) (net.Conn, error) {
			w.mu.Lock()
			w.dialed++
			w.mu.Unlock()
			var d net.Dialer
			return d.DialContext(ctx, "tcp", w.to.addr)
		},
	}
}

// connect is a connection of the guest, with TLS where it speaks TLS.
func (w *world) connect() net.Conn {
	w.t.Helper()
	c, err := net.Dial("tcp", w.addr)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	if w.way == plainHTTP {
		return c
	}
	t := tls.Client(c, w.tlsConfig())
	if err := t.HandshakeContext(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
	return t
}

func (w *world) tlsConfig() *tls.Config {
	protocol := "http/1.1"
	if w.way == tlsHTTP2 {
		protocol = "h2"
	}
	return &tls.Config{RootCAs: w.ca, ServerName: host, NextProtos: []string{protocol}}
}

func (w *world) newClient() *http.Client {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(w.way != tlsHTTP2)
	protocols.SetHTTP2(w.way == tlsHTTP2)
	return &http.Client{
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			Protocols: protocols, TLSClientConfig: w.tlsConfig(), DisableCompression: true, ExpectContinueTimeout: patience, MaxResponseHeaderBytes: 256 << 10,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				var d net.Dialer
				return d.DialContext(ctx, "tcp", w.addr)
			},
		},
	}
}

// url is of a path at the upstream.
func (w *world) url(path string) string {
	scheme, port := "http", ""
	if w.way != plainHTTP {
		scheme = "https"
	}
	if (w.way != plainHTTP) != w.to.tls { // not the scheme's own
		port = ":80"
		if w.to.tls {
			port = ":443"
		}
	}
	return scheme + "://" + host + port + path
}

func (w *world) request(method, path string, body io.Reader) *http.Request {
	w.t.Helper()
	r, err := http.NewRequestWithContext(w.t.Context(), method, w.url(path), body)
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

// do is a request whose response the caller reads.
func (w *world) do(r *http.Request) *http.Response {
	w.t.Helper()
	res, err := w.client.Do(r)
	if err != nil {
		w.t.Fatalf("%s %s: %v", r.Method, r.URL, err)
	}
	w.t.Cleanup(func() { res.Body.Close() })
	return res
}

// get is the response to GET, read.
func (w *world) get(path string) (*http.Response, string) {
	w.t.Helper()
	res := w.do(w.request("GET", path, nil))
	return res, readAll(w.t, res.Body)
}

func (w *world) locked(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
}

// results waits until n requests have ended.
func (w *world) results(n int) (all []Result) {
	w.t.Helper()
	until(w.t, func() bool {
		w.locked(func() { all = append([]Result(nil), w.ended...) })
		return len(all) >= n
	})
	return all
}

// until waits for what another goroutine is about to do.
func until(t testing.TB, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	late := time.After(patience)
	for !ok() {
		select {
		case <-tick.C:
		case <-late:
			t.Fatal("it did not happen in time")
		}
	}
}

func readAll(t testing.TB, r io.Reader) string {
	t.Helper()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatalf("read body: %v after %d bytes", err, len(b))
	}
	return string(b)
}

func compile(t testing.TB, values ...string) *scrub.Set {
	t.Helper()
	named := map[string]string{}
	for _, v := range values {
		named["name-of-"+v[:3]] = v
	}
	s, err := scrub.Compile(named)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// safeBuffer is a buffer for several goroutines.
type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *safeBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *safeBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// contextFor ends before a test's patience does.
func contextFor(t testing.TB) (context.Context, context.CancelFunc) {
	return context.WithTimeout(t.Context(), 2*time.Second)
}
