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

	"creel/internal/boundary/decode"
	"creel/internal/boundary/framing"
	"creel/internal/boundary/scrub"
)

// Bounds of what a guest may send and keep open.
const (
	maxHeaderBytes    = 64 << 10
	headerTimeout     = 60 * time.Second // generous with an emulated guest
	idleTimeout       = 5 * time.Minute
	lingerTime        = 500 * time.Millisecond
	maxStreams        = 100       // HTTP/2 requests of one connection at once
	maxUnread         = 256 << 10 // bytes of HTTP/2 bodies of one connection that nobody has read yet
	maxRequests       = 1024      // of all connections at once, each with a header of its own
	maxResponseHeader = 64 << 10
	maxFields         = 512 // of a response; each takes more than 200 bytes, however short it is
	maxUpstreamConns  = 32  // of one guest connection
	maxHints          = 32  // 1xx answers to one request

	// What the decoders of all responses hold together; see package decode. A
	// response that needs more waits, and is then refused.
	maxDecoders = 96 << 20
	decoderWait = 10 * time.Second

	// What may have come from the upstream by HTTP/2 and not been read by the
	// guest; the defaults are 4 MiB and 1 GiB.
	maxStreamBuffer = 512 << 10
	maxConnBuffer   = 4 << 20
)

// flushAfter is how long the beginning of a body whose length is known may wait
// for more of it. What has no known length, events for instance, never waits.
const flushAfter = time.Millisecond

// Site is one connection of the guest, and where it leads.
type Site struct {
	Host string // clean name, or an address
	Port uint16
	TLS  bool // the destination speaks TLS

	// Ask decides about a request and puts it on record. It is given the
	// request as it would be sent. A denial is answered, and nothing is dialled.
	Ask func(context.Context, *http.Request) (*Pass, *Denial)
	// Refused is told of requests that are not asked about: they are for another
	// destination, or can be read in two ways. It may be nil.
	Refused func(reason, hint string)
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
	// Exact takes headers out by which servers choose another method, path or
	// host than those that were asked about.
	Exact bool
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
	buffers  buffers
	decoders *decode.Budget
	patience time.Duration // for memory of decoders
	incoming chan net.Conn
	closed   chan struct{}
	once     sync.Once
	serving  sync.WaitGroup
	conns    sync.WaitGroup
	requests atomic.Int64 // that are being served
}

// NewServer starts a server; the caller closes it.
func NewServer() *Server {
	s := &Server{
		decoders: decode.NewBudget(maxDecoders), patience: decoderWait,
		incoming: make(chan net.Conn), closed: make(chan struct{}),
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	proxy := &httputil.ReverseProxy{
		Rewrite: rewrite, Transport: roundTripper{}, FlushInterval: flushAfter, ModifyResponse: modifyResponse,
		ErrorHandler: upstreamFailed, ErrorLog: log.New(io.Discard, "", 0), BufferPool: &s.buffers,
	}
	s.http = http.Server{
		Handler:        http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { s.handle(proxy, w, r) }),
		MaxHeaderBytes: maxHeaderBytes, ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout,
		Protocols: protocols, HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams: maxStreams, MaxReceiveBufferPerConnection: maxUnread, MaxReceiveBufferPerStream: maxUnread,
		},
		ErrorLog: log.New(io.Discard, "", 0), DisableGeneralOptionsHandler: true,
		ConnContext: s.connContext,
	}
	s.serving.Go(func() { s.http.Serve(listener{s}) })
	return s
}

type linkKey struct{}

func linkOf(ctx context.Context) *link { return ctx.Value(linkKey{}).(*link) }

func siteOf(ctx context.Context) *Site { return linkOf(ctx).site }

// connContext is of the requests of a connection: they are over when it is,
// also while nobody reads from it.
func (s *Server) connContext(ctx context.Context, nc net.Conn) context.Context {
	if t, ok := nc.(*tls.Conn); ok {
		nc = t.NetConn()
	}
	c := nc.(*conn)
	ctx, cancel := context.WithCancel(context.WithValue(ctx, linkKey{}, c.link))
	s.conns.Go(func() { // Serve, which counts too, has not returned
		<-c.link.done
		cancel()
	})
	return ctx
}

// Serve serves one connection until its end, closes it and waits for its
// requests. With a configuration it is TLS that ends here; its first bytes may
// have been read already and be given again by nc.
func (s *Server) Serve(ctx context.Context, nc net.Conn, site *Site, config *tls.Config) error {
	s.conns.Add(1)
	defer s.conns.Done()
	site.transport = site.newTransport()
	defer site.transport.CloseIdleConnections()
	c := &conn{Conn: nc, link: &link{site: site, buffers: &s.buffers, decoders: s.decoders, decoderWait: s.patience, done: make(chan struct{})}}
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
	<-c.link.done
	c.link.wait()
	if strict := c.link.strict; strict != nil && strict.Fault() != nil {
		site.refused(&Denial{Reason: "the request is malformed: " + strict.Fault().Reason})
	}
	return nil
}

// Close ends every connection and waits for what serves them.
func (s *Server) Close() error {
	s.once.Do(func() { close(s.closed) })
	err := s.http.Close()
	s.serving.Wait()
	s.conns.Wait()
	return err
}

// handle serves one request, unless its connection has ended.
func (s *Server) handle(proxy *httputil.ReverseProxy, w http.ResponseWriter, r *http.Request) {
	l := linkOf(r.Context())
	if !l.begin() {
		panic(http.ErrAbortHandler) // net/http's way to say nothing
	}
	defer l.work.Done()
	defer s.requests.Add(-1)
	if s.requests.Add(1) > maxRequests {
		d := &Denial{Status: http.StatusServiceUnavailable, Error: "busy", Reason: "too many requests of this sandbox are under way"}
		d.answer(w, r, l.site)
		return
	}
	serve(proxy, w, r)
}

// link is what the requests of one connection share.
type link struct {
	site    *Site
	strict  *framing.Conn // reads HTTP/1; nil: HTTP/2
	buffers *buffers
	once    sync.Once
	done    chan struct{} // closed once the connection is
	unread  atomic.Bool   // a request was answered before its end

	decoders    *decode.Budget
	decoderWait time.Duration

	mu   sync.Mutex
	over bool
	work sync.WaitGroup // requests, and what they have started
}

// begin counts a piece of work that calls work.Done. Once the connection has
// ended there is none any more.
func (l *link) begin() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.over {
		l.work.Add(1)
	}
	return !l.over
}

func (l *link) wait() {
	l.mu.Lock()
	l.over = true
	l.mu.Unlock()
	l.work.Wait()
}

// conn is a guest's connection on its way through the server.
type conn struct {
	net.Conn
	link  *link
	under *gathering // of TLS and HTTP/1
}

// Write implements [net.Conn].
func (c *conn) Write(p []byte) (int, error) {
	if c.under == nil || len(p) <= plainRecord {
		return c.Conn.Write(p)
	}
	return c.under.writeTo(c.Conn, p)
}

// Close implements [net.Conn].
func (c *conn) Close() error {
	if c.link.unread.Load() && c.Conn == net.Conn(c.link.strict) {
		c.link.linger()
	}
	err := c.Conn.Close()
	c.link.once.Do(func() { close(c.link.done) })
	return err
}

// linger reads what the guest still sends of a request that was answered before
// its end. Closing a connection with unread bytes resets it, and the reset may
// overtake the answer.
func (l *link) linger() {
	if half, ok := l.strict.Conn.(interface{ CloseWrite() error }); ok {
		half.CloseWrite()
	}
	if l.strict.Conn.SetReadDeadline(time.Now().Add(lingerTime)) == nil {
		io.Copy(io.Discard, l.strict.Conn) // its errors are the connection's end
	}
}

// prepare shakes hands, and puts the strict reader in front of HTTP/1.
func (c *conn) prepare(ctx context.Context, config *tls.Config) (net.Conn, error) {
	if config == nil {
		c.link.strict = framing.NewConn(c.Conn)
		c.Conn = c.link.strict
		return c, nil
	}
	under := &gathering{Conn: c.Conn, buffers: c.link.buffers}
	c.Conn = under
	t := tls.Server(c, config)
	ctx, cancel := context.WithTimeout(ctx, headerTimeout)
	defer cancel()
	if err := t.HandshakeContext(ctx); err != nil {
		return nil, err
	}
	if t.ConnectionState().NegotiatedProtocol == "h2" {
		return t, nil
	}
	c.link.strict = framing.NewConn(t)
	return &conn{c.link.strict, c.link, under}, nil
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
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			c, err := s.Dial(ctx)
			if err == nil && s.TLS {
				c = &upstream{Conn: c}
			}
			return c, err
		},
		TLSClientConfig: &tls.Config{RootCAs: s.Roots, ServerName: s.Host, MinVersion: tls.VersionTLS12},
		Protocols:       protocols, DisableCompression: true, MaxConnsPerHost: maxUpstreamConns,
		MaxIdleConnsPerHost: maxUpstreamConns, IdleConnTimeout: idleTimeout,
		TLSHandshakeTimeout: 30 * time.Second, ExpectContinueTimeout: time.Second,
		MaxResponseHeaderBytes: maxResponseHeader,
		HTTP2:                  &http.HTTP2Config{MaxReceiveBufferPerStream: maxStreamBuffer, MaxReceiveBufferPerConnection: maxConnBuffer},
	}
}

type roundTripper struct{}

func (roundTripper) RoundTrip(r *http.Request) (*http.Response, error) {
	return siteOf(r.Context()).transport.RoundTrip(r)
}

// buffers are those that bodies are copied and searched with.
type buffers struct{ pool sync.Pool }

const bufferSize = 64 << 10

func (b *buffers) Get() []byte {
	if p, ok := b.pool.Get().(*[]byte); ok {
		return *p
	}
	return make([]byte, bufferSize)
}

// Put takes back what Get gave, at its full size, or what has taken its place
// and may have grown.
func (b *buffers) Put(p []byte) {
	if p = p[:cap(p)]; len(p) >= bufferSize && len(p) <= 4*bufferSize {
		b.pool.Put(&p)
	}
}

var errClosed = errors.New("the sandbox's edge is closed")
