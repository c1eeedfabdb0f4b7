// Package web is the HTTP part of a sandbox's edge: it serves the guest's
// requests on connections whose destination was allowed, asks about each one,
// and sends it on. [Server] serves, a [Site] is one connection's destination,
// and a [Pass] is leave for one request, with what has to be put in and taken
// out of it. HTTP/1.1 and HTTP/2 are net/http's on both sides; what is ours is
// what may pass.
//
// The package must not decide, dial or resolve by itself, must not know whose
// policy or secrets it serves, and must not let a request through that it did
// not ask about.
package web

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"sync"
	"sync/atomic"
	"time"

	"creel/internal/boundary/framing"
	"creel/internal/boundary/scrub"
)

// Bounds of what a guest may send and keep open.
const (
	maxHeaderBytes    = 64 << 10
	headerTimeout     = 60 * time.Second // generous with an emulated guest
	idleTimeout       = 5 * time.Minute
	maxStreams        = 100       // HTTP/2 requests of one connection at once
	maxUnread         = 256 << 10 // bytes of HTTP/2 bodies of one connection that nobody has read yet
	maxRequests       = 1024      // of all connections at once, each with a header of its own
	maxResponseHeader = 256 << 10
	maxUpstreamConns  = 32 // of one guest connection
)

// Site is one connection of the guest, and where it leads.
type Site struct {
	Host string // clean name, or an address
	Port uint16
	TLS  bool // the destination speaks TLS

	// Ask decides about a request and puts it on record. It is given the
	// request as it would be sent. A denial is answered, and nothing is dialled.
	Ask func(context.Context, *http.Request) (*Pass, *Denial)
	// Dial connects to the destination, without TLS.
	Dial func(context.Context) (net.Conn, error)
	// Roots are who may sign the destination's certificate.
	Roots *x509.CertPool

	transport *http.Transport
}

// Pass is leave for one request. Its functions may be nil, but for Done.
type Pass struct {
	// Edit puts credentials in; their use is on record.
	Edit func(*http.Request)
	// Values are taken out of the response, in headers, body and trailers.
	Values *scrub.Set
	// Whole asks for a response that can be searched: no ranges.
	Whole bool
	// Unreadable lets a response pass in an encoding that cannot be searched.
	Unreadable bool
	// Marks must not leave in a request's body; Found is told of them, and the
	// request is then broken off.
	Marks *scrub.Set
	Found func(names []string)
	// Done is told how it ended, once.
	Done func(Result)
}

// Result is how a request ended. Bytes are those of bodies.
type Result struct {
	Status            int // 0: no answer came
	BytesOut, BytesIn int64
	Scrubbed          int64
	Err               error
}

// Server serves the HTTP connections of one sandbox.
type Server struct {
	http     http.Server
	incoming chan net.Conn
	closed   chan struct{}
	once     sync.Once
	serving  sync.WaitGroup
	conns    sync.WaitGroup
	handling sync.RWMutex // read by each request for as long as it is served
	requests atomic.Int64 // that are being served
}

// NewServer starts a server; the caller closes it.
func NewServer() *Server {
	s := &Server{incoming: make(chan net.Conn), closed: make(chan struct{})}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	proxy := &httputil.ReverseProxy{
		Rewrite: rewrite, Transport: roundTripper{}, FlushInterval: -1, ModifyResponse: modifyResponse,
		ErrorHandler: upstreamFailed, ErrorLog: log.New(io.Discard, "", 0), BufferPool: new(buffers),
	}
	s.http = http.Server{
		Handler:        http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { s.handle(proxy, w, r) }),
		MaxHeaderBytes: maxHeaderBytes, ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout,
		Protocols: protocols, HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams: maxStreams, MaxReceiveBufferPerConnection: maxUnread, MaxReceiveBufferPerStream: maxUnread,
		},
		ErrorLog: log.New(io.Discard, "", 0), DisableGeneralOptionsHandler: true,
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			if t, ok := c.(*tls.Conn); ok {
				c = t.NetConn()
			}
			return context.WithValue(ctx, connKey{}, c.(*conn))
		},
	}
	s.serving.Go(func() { s.http.Serve(listener{s}) })
	return s
}

type connKey struct{}

func connOf(ctx context.Context) *conn { return ctx.Value(connKey{}).(*conn) }

func siteOf(ctx context.Context) *Site { return connOf(ctx).site }

// Serve serves one connection until its end and closes it. With a
// configuration it is TLS that ends here; its first bytes may have been read
// already and be given again by nc.
func (s *Server) Serve(ctx context.Context, nc net.Conn, site *Site, config *tls.Config) error {
	s.conns.Add(1)
	defer s.conns.Done()
	site.transport = site.newTransport()
	defer site.transport.CloseIdleConnections()
	c := &conn{Conn: nc, site: site, done: make(chan struct{})}
	defer context.AfterFunc(ctx, func() { c.Close() })()
	served, err := c.prepare(ctx, config)
	if err != nil {
		c.Close()
		return err
	}
	select {
	case s.incoming <- served:
	case <-s.closed:
		c.Close()
	}
	<-c.done
	return nil
}

// Close ends every connection and waits for what serves them.
func (s *Server) Close() error {
	s.once.Do(func() { close(s.closed) })
	err := s.http.Close()
	s.serving.Wait()
	s.conns.Wait()
	s.handling.Lock() // net/http waits for none of them
	defer s.handling.Unlock()
	return err
}

// handle serves one request, unless the server is closed.
func (s *Server) handle(proxy *httputil.ReverseProxy, w http.ResponseWriter, r *http.Request) {
	s.handling.RLock()
	defer s.handling.RUnlock()
	select {
	case <-s.closed:
		panic(http.ErrAbortHandler) // net/http's way to say nothing
	default:
	}
	defer s.requests.Add(-1)
	if s.requests.Add(1) > maxRequests {
		d := &Denial{Status: http.StatusServiceUnavailable, Error: "busy", Reason: "too many requests of this sandbox are under way"}
		d.answer(w, r, siteOf(r.Context()))
		return
	}
	serve(proxy, w, r)
}

// conn is a guest's connection on its way through the server.
type conn struct {
	net.Conn
	site *Site
	once sync.Once
	done chan struct{}
	err  error

	strict *framing.Conn // reads HTTP/1; nil: HTTP/2
}

// passThrough lets bytes pass that are not HTTP any more.
func (c *conn) passThrough() { c.strict.PassThrough() }

func (c *conn) Close() error {
	c.once.Do(func() {
		c.err = c.Conn.Close()
		close(c.done)
	})
	return c.err
}

// prepare shakes hands, and puts the strict reader in front of HTTP/1.
func (c *conn) prepare(ctx context.Context, config *tls.Config) (net.Conn, error) {
	if config == nil {
		c.strict = framing.NewConn(c.Conn)
		c.Conn = c.strict
		return c, nil
	}
	t := tls.Server(c, config)
	ctx, cancel := context.WithTimeout(ctx, headerTimeout)
	defer cancel()
	if err := t.HandshakeContext(ctx); err != nil {
		return nil, err
	}
	if t.ConnectionState().NegotiatedProtocol == "h2" {
		return t, nil
	}
	inner := &conn{site: c.site, done: make(chan struct{}), strict: framing.NewConn(t)}
	inner.Conn = inner.strict
	return inner, nil
}

// listener hands the server what Serve was given.
type listener struct{ s *Server }

func (l listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.s.incoming:
		return c, nil
	case <-l.s.closed:
		return nil, net.ErrClosed
	}
}

func (l listener) Close() error   { return nil }
func (l listener) Addr() net.Addr { return &net.TCPAddr{} }

// newTransport sends requests on for one guest connection: what one sandbox
// has open upstream ends with what it has open here.
func (s *Site) newTransport() *http.Transport {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(s.TLS)
	return &http.Transport{
		DialContext:     func(ctx context.Context, _, _ string) (net.Conn, error) { return s.Dial(ctx) },
		TLSClientConfig: &tls.Config{RootCAs: s.Roots, ServerName: s.Host, MinVersion: tls.VersionTLS12},
		Protocols:       protocols, DisableCompression: true, MaxConnsPerHost: maxUpstreamConns,
		MaxIdleConnsPerHost: maxUpstreamConns, IdleConnTimeout: idleTimeout,
		TLSHandshakeTimeout: 30 * time.Second, ExpectContinueTimeout: time.Second,
		MaxResponseHeaderBytes: maxResponseHeader,
	}
}

type roundTripper struct{}

func (roundTripper) RoundTrip(r *http.Request) (*http.Response, error) {
	return siteOf(r.Context()).transport.RoundTrip(r)
}

// buffers are those that bodies are copied with.
type buffers struct{ pool sync.Pool }

func (b *buffers) Get() []byte {
	if p, ok := b.pool.Get().(*[]byte); ok {
		return *p
	}
	return make([]byte, 32<<10)
}

func (b *buffers) Put(p []byte) { b.pool.Put(&p) }

var errClosed = errors.New("the sandbox's edge is closed")
