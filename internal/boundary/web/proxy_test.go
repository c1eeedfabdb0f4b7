package web

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

const theSecret = "sk-live-7Qf3+Zt9/xW0aB" // has bytes that encodings change
const theCanary = "AKIACANARY0123456789"

func TestRequestsPassAsTheyAre(t *testing.T) {
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		for _, name := range []string{"Date", "Content-Type"} {
			w.Header()[name] = nil
		}
		w.Header()["Set-Cookie"] = []string{"a=1", "b=2"}
		w.Header().Set("Alt-Svc", `h3=":443"`)
		switch r.URL.Path {
		case "/204":
			w.WriteHeader(204)
		case "/304":
			w.WriteHeader(304)
		case "/redirect":
			w.Header().Set("Location", "https://elsewhere.test/x?y")
			w.WriteHeader(307)
		default:
			fmt.Fprintf(w, "%s %s %s %s [%s] %v", r.Method, r.RequestURI, r.Host, body, strings.Join(r.Header["X-Twice"], "|"), r.Header["Via"])
		}
	})
	eachWay(t, h, func(t *testing.T, w *world) {
		ask := func(method, path, body string, status int, want string) {
			t.Helper()
			r := w.request(method, "/", strings.NewReader(body))
			if body == "" {
				r.Body = nil
			}
			r.URL.Opaque = path
			r.Host = host
			if (w.way != plainHTTP) != w.to.tls {
				r.Host = strings.TrimPrefix(strings.TrimPrefix(w.url(""), "https://"), "http://")
			}
			if strings.HasPrefix(path, "//") {
				r.URL.Opaque, r.URL.Path = "", path
			}
			r.Header["X-Twice"] = []string{"1", "2"}
			r.Header.Set("X-Forwarded-For", "the task's own")
			res := w.do(r)
			got := readAll(t, res.Body)
			if res.StatusCode != status {
				t.Fatalf("%s %s: status %d, want %d", method, path, res.StatusCode, status)
			}
			if want != "" {
				want = fmt.Sprintf("%s %s %s %s [1|2] []", method, want, r.Host, body)
			}
			if got != want {
				t.Errorf("%s %s: got %q, want %q", method, path, got, want)
			}
			if cookies := res.Header["Set-Cookie"]; !slices.Equal(cookies, []string{"a=1", "b=2"}) {
				t.Errorf("%s %s: cookies %q", method, path, cookies)
			}
			if res.Header["Content-Type"] != nil || res.Header["Alt-Svc"] != nil {
				t.Errorf("%s %s: header %v", method, path, res.Header)
			}
		}
		ask("GET", "/", "", 200, "/")
		ask("POST", "/a", "what is sent", 200, "/a")
		ask("POST", "/a", "what is sent on the same connection", 200, "/a")
		ask("DELETE", "/a?", "", 200, "/a?")
		for _, path := range []string{
			"//a", "/a//b", "/a%2Fb", "/a%2fb", "/;a;b=1", "/a;b?c;d&e=%zz&&=", "/%C3%BC", "/a[1]", "/a/../b", "/a/./b", "/%41", "/a%00",
			"/?a=1&a=2&b", "/x?http://other/", "/a'()*!,:@$&+",
		} {
			ask("GET", path, "", 200, path)
		}
		ask("GET", "/204", "", 204, "")
		ask("GET", "/304", "", 304, "")
		ask("GET", "/redirect", "", 307, "")
		r := w.request("HEAD", "/head", nil)
		res := w.do(r)
		if body := readAll(t, res.Body); body != "" || res.ContentLength < 10 {
			t.Errorf("HEAD: body %q, length %d", body, res.ContentLength)
		}
	})
}

func TestPathsWithBytesThatAreEscaped(t *testing.T) {
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.RequestURI) })
	for _, c := range []struct{ sent, want string }{
		{"/\xc3\xbc%2Fb", "/%C3%BC%2Fb"},
		{`/a"b%2Fc%3F?d"`, `/a%22b%2Fc%3F?d"`},
		{"/a|b", "/a%7Cb"},
	} {
		w := newWorld(t, plainHTTP, serveHTTP(t, plainHTTP, h))
		c1 := w.connect()
		fmt.Fprintf(c1, "GET %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", c.sent, host)
		if got := readAll(t, c1); !strings.HasSuffix(got, "\r\n\r\n"+c.want) {
			t.Errorf("%s: %q", c.sent, got)
		}
		w.locked(func() {
			if want := []string{"GET " + c.want + " " + host}; !slices.Equal(w.asked, want) {
				t.Errorf("asked about %q, want %q", w.asked, want)
			}
		})
	}
}

// noise is n bytes of a seed.
func noise(n int64) io.Reader {
	return io.LimitReader(rand.NewChaCha8([32]byte{7}), n)
}

func sum(r io.Reader) (n int64, s [32]byte, err error) {
	var h hash.Hash = sha256.New()
	n, err = io.Copy(h, r)
	h.Sum(s[:0])
	return n, s, err
}

func TestLargeBodiesPassUnchangedInBoundedMemory(t *testing.T) {
	const size = 64 << 20
	_, want, _ := sum(noise(size))
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == "GET" {
			io.Copy(w, noise(size))
			return
		}
		n, got, err := sum(r.Body)
		fmt.Fprint(w, n == size && got == want && err == nil)
	})
	for _, c := range []struct{ guest, upstream string }{{tlsHTTP1, tlsHTTP2}} {
		t.Run(c.guest+" to "+c.upstream, func(t *testing.T) {
			w := newWorld(t, c.guest, serveHTTP(t, c.upstream, h))
			w.pass.Values, w.pass.Marks = compile(t, theSecret), compile(t, theCanary)
			before := heap()
			res := w.do(w.request("GET", "/", nil))
			if n, got, err := sum(res.Body); n != size || got != want || err != nil {
				t.Errorf("download: %d bytes, %v", n, err)
			}
			if after := heap(); after > before+32<<20 {
				t.Errorf("the heap grew from %d to %d bytes", before, after)
			}
			if got := readAll(t, w.do(w.request("POST", "/", noise(size))).Body); got != "true" {
				t.Errorf("upload: %s", got)
			}
			if r := w.results(2); r[0].BytesIn != size || r[1].BytesOut != size {
				t.Errorf("counted %+v", r)
			}
		})
	}
}

func heap() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc + m.StackInuse
}

// pingPong has the upstream answer each line with one, in one request.
func TestBothDirectionsAtOnce(t *testing.T) {
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "Grpc-Status")
		rc := http.NewResponseController(w)
		rc.EnableFullDuplex()
		w.WriteHeader(200)
		rc.Flush()
		lines := bufio.NewScanner(r.Body)
		for lines.Scan() {
			fmt.Fprintf(w, "%s\n", lines.Text())
			rc.Flush()
		}
		w.Header().Set("Grpc-Status", "0")
		w.Header().Set(http.TrailerPrefix+"Grpc-Message", "late "+theSecret)
	})
	for _, values := range []bool{false, true} {
		eachWay(t, h, func(t *testing.T, w *world) {
			if values {
				w.pass.Values, w.pass.Marks = compile(t, theSecret), compile(t, theCanary)
			}
			body, send := io.Pipe()
			r := w.request("POST", "/svc/Method", body)
			r.Header.Set("Te", "trailers")
			res := w.do(r)
			lines := bufio.NewReader(res.Body)
			var took []time.Duration
			for i := range 50 {
				want := fmt.Sprintf("%d\x00\n", i)
				began := time.Now()
				io.WriteString(send, want)
				if got, err := lines.ReadString('\n'); got != want || err != nil {
					t.Fatalf("got %q, %v", got, err)
				}
				took = append(took, time.Since(began))
			}
			slices.Sort(took)
			t.Logf("median of a round: %v", took[len(took)/2])
			if took[len(took)/2] > 15*time.Millisecond {
				t.Errorf("a round takes %v", took[len(took)/2])
			}
			send.Close()
			if rest := readAll(t, lines); rest != "" {
				t.Errorf("rest %q", rest)
			}
			message := res.Trailer.Get("Grpc-Message")
			if res.Trailer.Get("Grpc-Status") != "0" || !strings.HasPrefix(message, "late ") || strings.Contains(message, theSecret) == values {
				t.Errorf("trailers %v", res.Trailer)
			}
		})
	}
}

func TestContinueIsTheUpstreams(t *testing.T) {
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/yes" {
			w.WriteHeader(http.StatusExpectationFailed)
			return
		}
		io.Copy(w, r.Body)
	})
	for _, guest := range []string{plainHTTP, tlsHTTP1} {
		for _, upstream := range []string{plainHTTP, tlsHTTP1} {
			t.Run(guest+" to "+upstream, func(t *testing.T) {
				w := newWorld(t, guest, serveHTTP(t, upstream, h))
				send := func(path string) (res *http.Response, continued bool) {
					r := w.request("POST", path, strings.NewReader("body"))
					r.Header.Set("Expect", "100-continue")
					trace := &httptrace.ClientTrace{Got100Continue: func() { continued = true }}
					return w.do(r.WithContext(httptrace.WithClientTrace(r.Context(), trace))), continued
				}
				if res, continued := send("/no"); res.StatusCode != 417 || continued {
					t.Errorf("refused: status %d, continued %v", res.StatusCode, continued)
				}
				if res, continued := send("/yes"); readAll(t, res.Body) != "body" || !continued {
					t.Errorf("accepted: status %d, continued %v", res.StatusCode, continued)
				}
				w.locked(func() { w.deny = func(*http.Request) *Denial { return &Denial{Reason: "no"} } })
				if res, continued := send("/yes"); res.StatusCode != 403 || continued {
					t.Errorf("denied: status %d, continued %v", res.StatusCode, continued)
				}
			})
		}
	}
}

func TestEarlyHintsPassScrubbed(t *testing.T) {
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Link", "</"+theSecret+">")
		w.WriteHeader(103)
		w.WriteHeader(200)
	})
	eachWay(t, h, func(t *testing.T, w *world) {
		w.pass.Values = compile(t, theSecret)
		var link string
		r := w.request("GET", "/", nil)
		trace := &httptrace.ClientTrace{Got1xxResponse: func(_ int, h textproto.MIMEHeader) error {
			link = h.Get("Link")
			return nil
		}}
		w.do(r.WithContext(httptrace.WithClientTrace(r.Context(), trace)))
		want := "</" + strings.Repeat("*", len(theSecret)) + ">"
		if w.way == tlsHTTP2 {
			want = "" // see WriteHeader
		}
		if link != want {
			t.Errorf("link %q, want %q", link, want)
		}
	})
}

func TestPipelinedAndReused(t *testing.T) {
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) })
	w := newWorld(t, tlsHTTP1, serveHTTP(t, tlsHTTP2, h))
	c := w.connect()
	for i := range 20 {
		fmt.Fprintf(c, "POST /%d HTTP/1.1\r\nHost: %s\r\nContent-Length: 2\r\n\r\n%02d", i, host, i)
	}
	r := bufio.NewReader(c)
	for i := range 20 {
		res, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := readAll(t, res.Body); got != fmt.Sprintf("%02d", i) {
			t.Errorf("answer %d is %q", i, got)
		}
	}
	w.locked(func() {
		if w.dialed != 1 || len(w.asked) != 20 {
			t.Errorf("%d dials, %d questions", w.dialed, len(w.asked))
		}
	})
}

func TestTruncatedResponsesAreNotMadeWhole(t *testing.T) {
	cut := func(head string) func(net.Conn) {
		return func(c net.Conn) {
			if _, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
				io.WriteString(c, head)
			}
		}
	}
	for name, head := range map[string]string{
		"length":  "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nsome",
		"chunked": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nsome\r\n",
		"gzip":    "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n\x1f\x8b\x08\x00\x00\r\n0\r\n\r\n",
		"garbled": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nsomexxx\r\n0\r\n\r\n",
	} {
		for _, way := range ways {
			t.Run(name+" "+way, func(t *testing.T) {
				w := newWorld(t, way, serveRaw(t, cut(head)))
				w.pass.Values = compile(t, theSecret)
				if res, err := w.client.Do(w.request("GET", "/", nil)); err == nil {
					if b, err := io.ReadAll(res.Body); err == nil {
						t.Errorf("a clean end after %q", b)
					}
				}
				if r := w.results(1); r[0].Err == nil || r[0].Status != 200 {
					t.Errorf("result %+v", r)
				}
			})
		}
	}
}

func TestAGuestThatLeavesEndsItsRequest(t *testing.T) {
	for _, marks := range []bool{false, true} {
		arrived, gone := make(chan struct{}, 1), make(chan struct{}, 1)
		h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			arrived <- struct{}{}
			io.Copy(io.Discard, r.Body)
			<-r.Context().Done()
			gone <- struct{}{}
		})
		eachWay(t, h, func(t *testing.T, w *world) {
			if marks {
				w.pass.Values, w.pass.Marks = compile(t, theSecret), compile(t, theCanary)
			}
			for _, body := range []bool{false, true} {
				ctx, cancel := context.WithCancel(t.Context())
				r := w.request("GET", "/", nil).WithContext(ctx)
				if body {
					// The end of it may begin a mark.
					r = w.request("POST", "/", io.MultiReader(strings.NewReader("begun "+theCanary[:10]), blocked{ctx})).WithContext(ctx)
				}
				go func() {
					<-arrived
					cancel()
				}()
				if _, err := w.client.Do(r); !errors.Is(err, context.Canceled) {
					t.Errorf("got %v", err)
				}
				<-gone
			}
			w.results(2)
		})
	}
}

// blocked is a body that does not come.
type blocked struct{ ctx context.Context }

func (b blocked) Read([]byte) (int, error) {
	<-b.ctx.Done()
	return 0, b.ctx.Err()
}

func TestAGuestThatDoesNotReadHoldsLittle(t *testing.T) {
	for _, c := range []struct{ guest, upstream string }{{plainHTTP, plainHTTP}, {tlsHTTP2, tlsHTTP2}, {tlsHTTP2, tlsHTTP1}} {
		t.Run(c.guest+" to "+c.upstream, func(t *testing.T) {
			chunk := bytes.Repeat([]byte("x"), 64<<10)
			var sent sync.Map
			h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				for n := 0; ; n += len(chunk) {
					sent.Store(r.URL.Path, n)
					if _, err := w.Write(chunk); err != nil {
						return
					}
				}
			})
			w := newWorld(t, c.guest, serveHTTP(t, c.upstream, h))
			w.pass.Values = compile(t, theSecret)
			before := heap()
			// The guest's own buffers are not what is measured.
			w.client.Transport.(*http.Transport).HTTP2 = &http.HTTP2Config{MaxReceiveBufferPerStream: 64 << 10, MaxReceiveBufferPerConnection: 1 << 20}
			for i := range 30 {
				w.do(w.request("GET", fmt.Sprint("/", i), nil)) // and does not read on
			}
			// It has settled when nothing moves any more.
			last, same := 0, 0
			until(t, func() bool {
				total := 0
				sent.Range(func(_, n any) bool { total += n.(int); return true })
				if same++; total != last {
					last, same = total, 0
				}
				return same > 100
			})
			grown := int64(heap()) - int64(before)
			t.Logf("%d MiB were sent, the heap has grown by %d KiB", last>>20, grown>>10)
			if grown > 24<<20 {
				t.Errorf("the heap grew by %d bytes", grown)
			}
		})
	}
}

// An upstream may answer before the request has ended, and the guest may wait for
// the end of the answer before it ends its request.
func TestAnswerBeforeTheRequestsEnd(t *testing.T) {
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.NewResponseController(w).EnableFullDuplex()
		io.WriteString(w, "no more, please")
	})
	for _, marks := range []bool{false, true} {
		eachWay(t, h, func(t *testing.T, w *world) {
			if marks {
				w.pass.Marks = compile(t, theCanary)
			}
			body, send := io.Pipe()
			go io.WriteString(send, "begun "+theCanary[:10])
			res := w.do(w.request("POST", "/", body))
			if got := readAll(t, res.Body); got != "no more, please" {
				t.Errorf("got %q", got)
			}
			send.Close()
		})
	}
}

// net/http must not find the end of a request behind the answer to it.
func TestAnswerInTheMiddleOfARequest(t *testing.T) {
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.NewResponseController(w).EnableFullDuplex()
		w.WriteHeader(401)
	})
	for _, way := range []string{plainHTTP, tlsHTTP1} {
		w := newWorld(t, way, serveHTTP(t, tlsHTTP2, h))
		for range 20 {
			body, send := io.Pipe()
			go func() {
				io.WriteString(send, "begun")
				for range 10 {
					io.WriteString(send, "more")
				}
				send.Close()
			}()
			res := w.do(w.request("POST", "/", body))
			if readAll(t, res.Body); res.StatusCode != 401 {
				t.Errorf("status %d", res.StatusCode)
			}
		}
		w.results(20)
	}
}

// Each event arrives by itself, and soon.
func TestEventsAreNotHeldBack(t *testing.T) {
	next := make(chan time.Time)
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		flush := http.NewResponseController(w).Flush
		var out io.Writer = w
		if r.Header.Get("Accept-Encoding") == "gzip" {
			z := gzip.NewWriter(w)
			w.Header().Set("Content-Encoding", "gzip")
			out, flush = z, func() error { z.Flush(); return http.NewResponseController(w).Flush() }
		}
		flush()
		for range 50 {
			now := time.Now()
			fmt.Fprintf(out, "event: delta\ndata: {\"text\": \"word %d\"}\n\n", now.Nanosecond())
			flush()
			next <- now
		}
	})
	for _, coding := range []string{"identity", "gzip"} {
		eachWay(t, h, func(t *testing.T, w *world) {
			w.pass.Values = compile(t, theSecret)
			r := w.request("GET", "/", nil)
			r.Header.Set("Accept-Encoding", coding)
			lines := bufio.NewReader(w.do(r).Body)
			var took []time.Duration
			for range 50 {
				for line := ""; line != "\n"; {
					var err error
					if line, err = lines.ReadString('\n'); err != nil {
						t.Fatal(err)
					}
				}
				arrived := time.Now()
				took = append(took, arrived.Sub(<-next))
			}
			slices.Sort(took)
			t.Logf("%s: median %v, longest %v", coding, took[len(took)/2], took[len(took)-1])
			if took[len(took)/2] > 5*time.Millisecond {
				t.Errorf("the median of an event's way is %v", took[len(took)/2])
			}
		})
	}
}
