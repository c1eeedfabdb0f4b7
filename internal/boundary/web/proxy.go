package web

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/http/httputil"
	"net/netip"
	"strconv"
	"strings"
	"sync"

	"creel/internal/boundary/decode"
)

// exchange is one request that was let through, and what is known of it.
type exchange struct {
	site *Site
	link *link
	pass *Pass
	w    http.ResponseWriter
	body *requestBody // nil: there is none
	from *upstream    // nil: without TLS

	brotli bool // the guest asked for it by name

	cancel context.CancelFunc

	mu     sync.Mutex
	result Result
	found  bool // a mark was about to leave
}

type exchangeKey struct{}

func exchangeOf(ctx context.Context) *exchange { return ctx.Value(exchangeKey{}).(*exchange) }

func (x *exchange) note(change func(*Result)) {
	x.mu.Lock()
	defer x.mu.Unlock()
	change(&x.result)
}

// serve answers one request of the guest.
func serve(proxy *httputil.ReverseProxy, w http.ResponseWriter, r *http.Request) {
	site := siteOf(r.Context())
	d := misdirected(site, r)
	if reason := ambiguous(r); d == nil && reason != "" {
		d = &Denial{Status: http.StatusBadRequest, Error: "malformed", Reason: reason}
	}
	if d != nil {
		site.refused(d)
		d.answer(w, r, site)
		return
	}
	spell(r.URL)
	// Trailers of requests are dropped: they come when all has been decided.
	r.Trailer = nil
	pass, denial := site.Ask(r.Context(), r)
	if denial != nil {
		denial.answer(w, r, site)
		return
	}
	x := &exchange{site: site, link: linkOf(r.Context()), pass: pass}
	x.w = &responseWriter{ResponseWriter: w, x: x}
	defer func() {
		x.mu.Lock()
		result := x.result
		x.mu.Unlock()
		pass.Done(result)
	}()
	if r.ProtoMajor == 1 {
		// An upstream may answer before it has read everything.
		http.NewResponseController(w).EnableFullDuplex()
	}
	ctx := httptrace.WithClientTrace(context.WithValue(r.Context(), exchangeKey{}, x), &httptrace.ClientTrace{GotConn: x.sentBy})
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	x.cancel = cancel
	r = r.WithContext(ctx)
	if r.Body != nil && r.Body != http.NoBody {
		x.body = newRequestBody(r.Body, x)
		r.Body = x.body
	}
	proxy.ServeHTTP(x.w, r)
}

// sentBy notes the connection that a request takes.
func (x *exchange) sentBy(got httptrace.GotConnInfo) {
	x.from = nil
	if t, ok := got.Conn.(*tls.Conn); ok {
		x.from, _ = t.NetConn().(*upstream)
	}
}

// misdirected refuses what does not name the destination that the connection
// was allowed for, in every place where a server may look.
func misdirected(site *Site, r *http.Request) *Denial {
	if r.Method == http.MethodConnect || r.URL.IsAbs() || r.URL.Host != "" {
		return &Denial{Reason: "the request names a destination of its own; send the path alone"}
	}
	for _, host := range append([]string{r.Host}, r.Header["Host"]...) {
		if !site.names(host) {
			return &Denial{Reason: fmt.Sprintf("the request is for %.100q, the connection for %s", host, site.authority())}
		}
	}
	if up := r.Header.Values("Upgrade"); len(up) == 1 && strings.EqualFold(up[0], "h2c") {
		// An offer, which Java makes on every connection, and which is not taken.
		for _, h := range []string{"Upgrade", "Http2-Settings", "Connection"} {
			r.Header.Del(h)
		}
	} else if len(up) > 0 && !(len(up) == 1 && strings.EqualFold(up[0], "websocket")) {
		return &Denial{Reason: fmt.Sprintf("an upgrade to %.40q cannot be looked into", strings.Join(up, ", ")), Hint: "allow the port as tcp in a policy file"}
	}
	return nil
}

// names reports whether a Host header means the site.
func (s *Site) names(host string) bool {
	name, port, err := net.SplitHostPort(host)
	if err != nil {
		name, port = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]"), strconv.Itoa(s.usualPort())
	}
	if port != strconv.Itoa(int(s.Port)) {
		return false
	}
	if addr, err := netip.ParseAddr(s.Host); err == nil {
		other, err := netip.ParseAddr(name)
		return err == nil && other == addr
	}
	return strings.EqualFold(strings.TrimSuffix(name, "."), s.Host)
}

func (s *Site) usualPort() int {
	if s.TLS {
		return 443
	}
	return 80
}

func (s *Site) authority() string { return net.JoinHostPort(s.Host, strconv.Itoa(int(s.Port))) }

// rewrite makes the request that is sent on.
func rewrite(pr *httputil.ProxyRequest) {
	x := exchangeOf(pr.In.Context())
	out := pr.Out
	out.URL.Scheme = "http"
	if x.site.TLS {
		out.URL.Scheme = "https"
	}
	out.URL.Host = x.site.authority()
	out.URL.RawQuery = pr.In.URL.RawQuery // as it was judged
	out.Host = pr.In.Host
	out.Trailer = nil
	for _, h := range []string{"Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto"} {
		if v, ok := pr.In.Header[h]; ok {
			out.Header[h] = v // the task's own: nothing between them is to be seen
		}
	}
	if x.pass.Exact {
		straighten(out.Header)
	}
	out.Header.Del("Sec-Websocket-Extensions") // compressed frames cannot be looked into
	if !x.pass.Values.Empty() {
		x.brotli = offers(pr.In.Header, "br")
		narrow(out.Header)
	}
	if x.pass.Whole {
		out.Header.Del("Range")
		out.Header.Del("If-Range")
	}
	if x.pass.Edit != nil {
		x.pass.Edit(out)
	}
}

// narrow asks only for encodings that can be searched, and of these for the one
// that costs little to open: brotli takes a window of up to 16 MiB.
func narrow(h http.Header) {
	coding := "identity"
	if offers(h, "gzip") {
		coding = "gzip"
	}
	h.Del("Grpc-Accept-Encoding")
	h.Set("Accept-Encoding", coding)
}

// offers reports whether Accept-Encoding names a coding with any weight but 0,
// RFC 9110, section 12.5.3.
func offers(h http.Header, coding string) bool {
	for name := range strings.SplitSeq(strings.Join(h.Values("Accept-Encoding"), ","), ",") {
		name, weight, _ := strings.Cut(name, ";")
		if !strings.EqualFold(strings.TrimSpace(name), coding) {
			continue
		}
		weight = strings.TrimPrefix(strings.ToLower(strings.ReplaceAll(weight, " ", "")), "q=")
		return weight == "" || strings.Trim(weight, "0.") != ""
	}
	return false
}

// modifyResponse prepares what comes back.
func modifyResponse(res *http.Response) error {
	x := exchangeOf(res.Request.Context())
	x.note(func(r *Result) { r.Status = res.StatusCode })
	fields := 0
	for _, values := range res.Header {
		fields += len(values)
	}
	if fields > maxFields {
		return refused{fmt.Sprintf("the response has %d fields in its header, and at most %d are read", fields, maxFields)}
	}
	if res.StatusCode == http.StatusSwitchingProtocols {
		return switched(x, res)
	}
	res.Header.Del("Alt-Svc") // another way to the same place, which is not allowed by itself
	if len(res.Trailer) > 0 {
		res.Header.Del("Content-Length") // with a length, HTTP/1 has no trailers
	}
	body := &responseBody{Closer: res.Body, from: res.Body, x: x, res: res}
	if x.from != nil && res.ProtoMajor == 1 && res.ContentLength >= largeBody && !bodiless(res) {
		x.from.expect(res.ContentLength, x.link.buffers)
		body.from = eager{res.Body, x.from}
	}
	res.Body = body
	if x.pass.Values.Empty() {
		return nil
	}
	return searchable(x, res, body)
}

// refused is of a response that costs too much.
type refused struct{ why string }

func (r refused) Error() string { return r.why }

// errUnreadable is of a response in which a secret could not be found.
type errUnreadable struct{ what string }

func (e errUnreadable) Error() string {
	return "the response " + e.what + " cannot be searched for secrets"
}

// upstreamFailed answers for an upstream that did not.
func upstreamFailed(_ http.ResponseWriter, r *http.Request, err error) {
	x := exchangeOf(r.Context())
	x.note(func(res *Result) { res.Err = err })
	d := &Denial{Status: http.StatusBadGateway, Error: "upstream", Reason: "the destination did not answer"}
	x.mu.Lock()
	found := x.found
	x.mu.Unlock()
	var denied interface{ Denial() *Denial }
	var unreadable errUnreadable
	var costly refused
	var untrusted *tls.CertificateVerificationError
	switch {
	case found:
		d = &Denial{Reason: "the body holds a credential that is not for this destination"}
	case errors.As(err, &denied):
		d = denied.Denial()
	case errors.As(err, &costly):
		d.Reason = costly.Error()
	case errors.As(err, &untrusted):
		d.Reason = "the destination is not who it should be: " + x.text(untrusted.Error())
	case errors.Is(err, decode.ErrBudget):
		d = &Denial{Status: http.StatusServiceUnavailable, Error: "busy",
			Reason: fmt.Sprintf("the response is compressed, and the %d MiB in which this sandbox's responses are opened are in use", maxDecoders>>20),
			Hint:   "ask for fewer responses at once, or for `Accept-Encoding: identity`"}
	case errors.As(err, &unreadable):
		d.Reason = unreadable.Error()
		d.Hint = "`unreadable: allow` in the rule lets such responses pass"
	}
	x.note(func(res *Result) { res.Status = 0 })
	d.answer(x.w, r, x.site)
}

// responseWriter takes values out of every header that goes to the guest, also
// those of 1xx answers, which come by another way than the rest.
type responseWriter struct {
	http.ResponseWriter
	x     *exchange
	hints int // 1xx answers
}

// Unwrap lets http.ResponseController through.
func (w *responseWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *responseWriter) WriteHeader(status int) {
	if status < 200 {
		if w.hints++; w.hints > maxHints {
			w.x.cancel()
		}
	}
	if status < 200 && w.x.link.strict == nil {
		// net/http's HTTP/2 may still read the header of a 1xx answer when the
		// guest has cancelled and the next is written: a fault that ends the process.
		return
	}
	h := w.Header()
	w.x.clean(h)
	if _, known := h["Content-Type"]; !known {
		h["Content-Type"] = nil // or net/http would guess at one
	}
	if status >= 200 && w.x.link.strict != nil && w.x.body != nil && !w.x.body.over.Load() {
		// Who answers before the request has ended may never want its end, and
		// net/http panics where it finds that end after the answer's, and reads on.
		h.Set("Connection", "close")
		w.x.link.unread.Store(true)
	}
	w.ResponseWriter.WriteHeader(status)
}

// clean takes values out of names and values of headers. Names change their
// case on the way, and are also looked at as HTTP/2 sends them.
func (x *exchange) clean(h http.Header) {
	if x.pass.Values.Empty() || !x.suspect(h) {
		return
	}
	for name, values := range h {
		for i, v := range values {
			values[i] = x.text(v)
		}
		clean := x.text(name)
		if clean == name {
			clean = x.text(strings.ToLower(name))
		}
		if !strings.EqualFold(clean, name) {
			delete(h, name)
			h[http.CanonicalHeaderKey(strings.ReplaceAll(clean, "*", "x"))] = values
		}
	}
}

// suspect looks at all headers at once, which is what nearly always suffices.
func (x *exchange) suspect(h http.Header) bool {
	var all strings.Builder
	all.Grow(1 << 10)
	put := func(s string) {
		all.WriteString(s)
		all.WriteByte(0) // in no value
	}
	for name, values := range h {
		put(name)
		put(strings.ToLower(name))
		for _, v := range values {
			put(v)
		}
	}
	_, found := x.pass.Values.Text(all.String())
	return len(found) > 0
}

func (x *exchange) text(s string) string {
	clean, found := x.pass.Values.Text(s)
	if n := int64(len(found)); n > 0 {
		x.note(func(r *Result) { r.Scrubbed += n })
	}
	return clean
}
