package web

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

func TestDenials(t *testing.T) {
	reached := make(chan string, 10)
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { reached <- r.RequestURI })
	eachWay(t, h, func(t *testing.T, w *world) {
		for name, d := range map[string]Denial{
			"by rule": {Rule: "no\nsuch\tü", Reason: "because", Hint: "try"}, "by none": {Reason: "no rule"},
			"spent": {Status: 429, Rule: "r", Reason: "too many"},
		} {
			w.locked(func() { w.deny = func(*http.Request) *Denial { d := d; return &d } })
			r := w.request("POST", "/a%2Fb?q=secret", strings.NewReader("body"))
			res := w.do(r)
			var got Denial
			if err := json.Unmarshal([]byte(readAll(t, res.Body)), &got); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			want := Denial{Error: "denied", By: "creel", Host: host, Port: w.port, Method: "POST", Path: "/a%2Fb", Rule: d.Rule, Reason: d.Reason, Hint: d.Hint}
			if got != want {
				t.Errorf("%s: got %+v", name, got)
			}
			status := max(d.Status, 403)
			if res.StatusCode != status || res.Header.Get("Creel-Decision") != "deny" || res.Header.Get("Creel-Rule") != asHeader(d.Rule) || res.Header.Get("Content-Type") != "application/json" {
				t.Errorf("%s: %d %v", name, res.StatusCode, res.Header)
			}
		}
		w.locked(func() {
			if w.dialed > 0 || len(reached) > 0 || len(w.ended) > 0 {
				t.Errorf("%d dials, %d requests arrived, %v", w.dialed, len(reached), w.ended)
			}
		})
	})
}

// frames are a guest's connection that speaks HTTP/2 by hand.
type frames struct {
	*http2.Framer
	t    *testing.T
	conn net.Conn
}

func newFrames(t *testing.T, w *world) *frames {
	t.Helper()
	conn := w.connect()
	io.WriteString(conn, http2.ClientPreface)
	f := &frames{http2.NewFramer(conn, bufio.NewReader(conn)), t, conn}
	f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	f.AllowIllegalWrites = true
	f.WriteSettings()
	return f
}

// headers sends a request without a body.
func (f *frames) headers(stream uint32, fields ...string) {
	var block bytes.Buffer
	e := hpack.NewEncoder(&block)
	for _, field := range fields {
		name, value, _ := strings.Cut(field, "= ")
		e.WriteField(hpack.HeaderField{Name: name, Value: value})
	}
	f.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: block.Bytes(), EndHeaders: true, EndStream: true})
}

// status is that of the answer; "reset" where there is none.
func (f *frames) status(stream uint32) string {
	for {
		frame, err := f.ReadFrame()
		if err != nil {
			return "closed"
		}
		switch frame := frame.(type) {
		case *http2.MetaHeadersFrame:
			if frame.StreamID == stream {
				return frame.PseudoValue("status")
			}
		case *http2.RSTStreamFrame:
			return "reset"
		case *http2.GoAwayFrame:
			return "closed"
		}
	}
}

func TestWhatHTTP2CanName(t *testing.T) {
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(299) })
	for name, c := range map[string]struct {
		fields []string
		want   string
	}{
		"right":            {[]string{":method= GET", ":scheme= https", ":path= /", ":authority= api.test"}, "299"},
		"port":             {[]string{":method= GET", ":scheme= https", ":path= /", ":authority= API.test:443"}, "299"},
		"host alone":       {[]string{":method= GET", ":scheme= https", ":path= /", "host= api.test"}, "299"},
		"other authority":  {[]string{":method= GET", ":scheme= https", ":path= /", ":authority= other.test"}, "403"},
		"other port":       {[]string{":method= GET", ":scheme= https", ":path= /", ":authority= api.test:444"}, "403"},
		"other host":       {[]string{":method= GET", ":scheme= https", ":path= /", ":authority= api.test", "host= other.test"}, "403"},
		"second host":      {[]string{":method= GET", ":scheme= https", ":path= /", ":authority= api.test", "host= api.test", "host= other.test"}, "403"},
		"user":             {[]string{":method= GET", ":scheme= https", ":path= /", ":authority= user@api.test"}, "reset"},
		"no host":          {[]string{":method= GET", ":scheme= https", ":path= /"}, "403"},
		"absolute":         {[]string{":method= GET", ":scheme= https", ":path= https://other.test/", ":authority= api.test"}, "403"},
		"absolute, same":   {[]string{":method= GET", ":scheme= https", ":path= https://api.test/", ":authority= api.test"}, "403"},
		"opaque":           {[]string{":method= GET", ":scheme= https", ":path= other:path", ":authority= api.test"}, "403"},
		"two slashes":      {[]string{":method= GET", ":scheme= https", ":path= //other.test/", ":authority= api.test"}, "299"},
		"no slash":         {[]string{":method= GET", ":scheme= https", ":path= path", ":authority= api.test"}, "reset"},
		"star":             {[]string{":method= GET", ":scheme= https", ":path= *", ":authority= api.test"}, "400"},
		"star of OPTIONS":  {[]string{":method= OPTIONS", ":scheme= https", ":path= *", ":authority= api.test"}, "200"}, // net/http's own
		"space in path":    {[]string{":method= GET", ":scheme= https", ":path= /a HTTP/1.1", ":authority= api.test"}, "400"},
		"space in query":   {[]string{":method= GET", ":scheme= https", ":path= /?a HTTP/1.1", ":authority= api.test"}, "400"},
		"fragment":         {[]string{":method= GET", ":scheme= https", ":path= /?a#b", ":authority= api.test"}, "400"},
		"line in path":     {[]string{":method= GET", ":scheme= https", ":path= /\r\nX: y", ":authority= api.test"}, "reset"},
		"CONNECT":          {[]string{":method= CONNECT", ":authority= api.test:443"}, "403"},
		"extended CONNECT": {[]string{":method= CONNECT", ":protocol= websocket", ":scheme= https", ":path= /", ":authority= api.test"}, "reset"},
		"upgrade":          {[]string{":method= GET", ":scheme= https", ":path= /", ":authority= api.test", "upgrade= websocket"}, "400"},
		"length by CGI":    {[]string{":method= GET", ":scheme= https", ":path= /", ":authority= api.test", "content_length= 5"}, "400"},
		"encoding by CGI":  {[]string{":method= GET", ":scheme= https", ":path= /", ":authority= api.test", "transfer_encoding= chunked"}, "400"},
		"underscore":       {[]string{":method= GET", ":scheme= https", ":path= /", ":authority= api.test", "my_header= 1"}, "299"},
		"encoding":         {[]string{":method= GET", ":scheme= https", ":path= /", ":authority= api.test", "transfer-encoding= chunked"}, "400"},
		"line in header":   {[]string{":method= GET", ":scheme= https", ":path= /", ":authority= api.test", "x= a\r\nb: c"}, "reset"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, tlsHTTP2, serveHTTP(t, tlsHTTP1, h))
			f := newFrames(t, w)
			f.headers(1, c.fields...)
			if got := f.status(1); got != c.want {
				t.Errorf("answer %s, want %s", got, c.want)
			}
			w.locked(func() {
				if reached := c.want < "300"; reached != (w.dialed == 1) || reached != (len(w.asked) == 1) {
					t.Errorf("%d dials, asked %q", w.dialed, w.asked)
				}
			})
		})
	}
}

func TestWhatHTTP1CanName(t *testing.T) {
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.EqualFold(r.Header.Get("Upgrade"), "h2c") || r.Header.Get("Http2-Settings") != "" {
			t.Errorf("an offer of HTTP/2 was passed on: %v", r.Header)
		}
		w.WriteHeader(299)
	})
	for name, c := range map[string]struct{ sent, want string }{
		"right":       {"GET / HTTP/1.1\r\nHost: API.TEST.:80\r\n\r\n", "299"},
		"other host":  {"GET / HTTP/1.1\r\nHost: other.test\r\n\r\n", "403"},
		"old":         {"GET / HTTP/1.0\r\n\r\n", "403"},
		"absolute":    {"GET http://api.test/ HTTP/1.1\r\nHost: api.test\r\n\r\n", "400"},
		"CONNECT":     {"CONNECT api.test:80 HTTP/1.1\r\nHost: api.test:80\r\n\r\n", "400"},
		"h2c":         {"GET / HTTP/1.1\r\nHost: api.test\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n\r\n", "299"},
		"other":       {"GET / HTTP/1.1\r\nHost: api.test\r\nConnection: Upgrade\r\nUpgrade: tunnel\r\n\r\n", "403"},
		"websocket":   {"GET / HTTP/1.1\r\nHost: api.test\r\nConnection: Upgrade\r\nUpgrade: WebSocket\r\n\r\n", "299"},
		"two of them": {"GET / HTTP/1.1\r\nHost: api.test\r\nConnection: Upgrade\r\nUpgrade: websocket, tunnel\r\n\r\n", "403"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, plainHTTP, serveHTTP(t, plainHTTP, h))
			conn := w.connect()
			io.WriteString(conn, c.sent)
			res, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				t.Fatal(err)
			}
			if got := fmt.Sprint(res.StatusCode); got != c.want {
				t.Errorf("answer %s, want %s", got, c.want)
			}
			w.locked(func() {
				if reached := c.want == "299"; reached != (w.dialed == 1) {
					t.Errorf("%d dials", w.dialed)
				}
			})
		})
	}
}

func TestAnUpstreamThatIsNotWhoItShouldBe(t *testing.T) {
	h := http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("a request arrived") })
	to := serveHTTP(t, tlsHTTP2, h)
	_, to.ca = authorityOf(t) // another
	w := newWorld(t, tlsHTTP2, to)
	if res, body := w.get("/"); res.StatusCode != 502 || !strings.Contains(body, "not who it should be") {
		t.Errorf("%d %s", res.StatusCode, body)
	}
}

type refusal struct{}

func (refusal) Error() string   { return "refused" }
func (refusal) Denial() *Denial { return &Denial{Rule: "r", Reason: "the address is private"} }

func TestADialThatIsRefused(t *testing.T) {
	server := NewServer()
	defer server.Close()
	done := make(chan Result, 1)
	site := &Site{Host: host, Port: 80, Dial: func(context.Context) (net.Conn, error) { return nil, refusal{} }, Ask: func(context.Context, *http.Request) (*Pass, *Denial) {
		return &Pass{Done: func(r Result) { done <- r }}, nil
	}}
	l := listen(t)
	defer l.Close()
	var serving sync.WaitGroup
	serving.Go(func() {
		if c, err := l.Accept(); err == nil {
			server.Serve(t.Context(), c, site, nil)
		}
	})
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(c, "GET / HTTP/1.0\r\nHost: %s\r\n\r\n", host)
	if got := readAll(t, c); !strings.HasPrefix(got, "HTTP/1.0 403") || !strings.Contains(got, "the address is private") {
		t.Errorf("got %q", got)
	}
	c.Close()
	serving.Wait()
	if r := <-done; r.Err == nil || r.Status != 0 {
		t.Errorf("result %+v", r)
	}
}

func TestMarksInBodiesBreakRequestsOff(t *testing.T) {
	got := make(chan string, len(ways)*len(ways))
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		got <- string(b)
	})
	eachWay(t, h, func(t *testing.T, w *world) {
		found := make(chan string, 2)
		w.pass = Pass{Marks: compile(t, theCanary), Found: func(names []string) { found <- strings.Join(names, ",") }}
		r := w.request("POST", "/", io.MultiReader(strings.NewReader("take this: "+theCanary[:8]), strings.NewReader(theCanary[8:]+" and more")))
		res := w.do(r)
		if body := readAll(t, res.Body); res.StatusCode != 403 || !strings.Contains(body, "credential") {
			t.Errorf("%d %s", res.StatusCode, body)
		}
		if name := <-found; name != "name-of-AKI" {
			t.Errorf("found %q", name)
		}
		if r := w.results(1); r[0].Err == nil {
			t.Errorf("result %+v", r)
		}
		select {
		case b := <-got:
			if strings.Contains(b, theCanary) {
				t.Errorf("the upstream got %q", b)
			}
		case <-time.After(0):
		}
	})
}

// oneToOne checks that the upstream saw nothing but what was asked about.
func oneToOne(t *testing.T, sent []byte) {
	var mu sync.Mutex
	var reached []string
	h := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		mu.Lock()
		reached = append(reached, r.Method+" "+r.RequestURI+" "+r.Host)
		mu.Unlock()
		io.Copy(io.Discard, r.Body)
	})
	w := newWorld(t, plainHTTP, serveHTTP(t, plainHTTP, h))
	c := w.connect()
	c.Write(sent)
	c.(*net.TCPConn).CloseWrite()
	c.SetReadDeadline(time.Now().Add(2 * time.Second))
	io.Copy(io.Discard, c)
	c.Close()
	w.locked(func() {
		mu.Lock()
		defer mu.Unlock()
		left := slices.Clone(w.asked)
		for _, r := range reached {
			i := slices.Index(left, r)
			if i < 0 {
				t.Errorf("the upstream saw %q, asked was %q; sent was %q", reached, w.asked, sent)
				return
			}
			left = slices.Delete(left, i, i+1)
		}
	})
}

func FuzzWhatReachesTheUpstream(f *testing.F) {
	for _, s := range []string{
		"GET / HTTP/1.1\r\nHost: api.test\r\n\r\n",
		"POST /a HTTP/1.1\r\nHost: api.test\r\nContent-Length: 4\r\n\r\nbodyGET /b?c HTTP/1.1\r\nHost: api.test\r\n\r\n",
		"POST /a HTTP/1.1\r\nHost: api.test\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\nGET /b HTTP/1.1\r\nHost: api.test\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: api.test\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /x HTTP/1.1\r\nHost: api.test\r\n\r\n",
		"GET /\xc3\xbc%2F\" HTTP/1.1\r\nHost: api.test\r\nConnection: close, x-y\r\nX-Y: 1\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: api.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nGET /x HTTP/1.1\r\nHost: api.test\r\n\r\n",
		"OPTIONS * HTTP/1.1\r\nHost: api.test\r\n\r\n", "GET //a/../b HTTP/1.0\r\nHost: api.test\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: api.test\r\nExpect: 100-continue\r\nContent-Length: 50\r\n\r\nGET /x HTTP/1.1\r\nHost: api.test\r\n\r\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(oneToOne)
}
