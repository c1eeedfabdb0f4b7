package web

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"compress/zlib"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/andybalholm/brotli"
	"github.com/coder/websocket"
)

// spellings are how a value may be written; each finds what a guest must not see.
func spellings(v string) map[string]string {
	all := map[string]string{
		"plain": v, "url": url.QueryEscape(v), "path": url.PathEscape(v), "hex": hex.EncodeToString([]byte(v)),
		"HEX":  strings.ToUpper(hex.EncodeToString([]byte(v))),
		"json": strings.ReplaceAll(v, "/", `\/`), "json+": strings.ReplaceAll(v, "+", `\u002b`),
	}
	for i := range 3 {
		for name, e := range map[string]*base64.Encoding{"std": base64.StdEncoding, "url": base64.URLEncoding} {
			all[fmt.Sprintf("base64 %s %d", name, i)] = e.EncodeToString([]byte("abc"[:i] + v + " and more"))
		}
	}
	return all
}

// seen names the spellings of a value in what a guest got. Of base64 it looks for
// the middle, that the value determines alone.
func seen(got, v string) (names []string) {
	for name, text := range spellings(v) {
		if strings.HasPrefix(name, "base64") {
			text = text[4:28]
		}
		if strings.Contains(got, text) {
			names = append(names, name)
		}
	}
	return names
}

// everything is what a guest gets for a request: early hints, status, header,
// body and trailers, as text.
func everything(t *testing.T, w *world, method, path string) (got string, res *http.Response) {
	t.Helper()
	var b strings.Builder
	r := w.request(method, path, nil)
	r.Header.Set("Accept-Encoding", "gzip, br, deflate, zstd")
	r.Header.Set("Range", "bytes=0-5")
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got1xxResponse: func(_ int, h textproto.MIMEHeader) error {
		fmt.Fprintln(&b, h)
		return nil
	}})
	res = w.do(r.WithContext(ctx))
	body, err := io.ReadAll(res.Body)
	fmt.Fprintln(&b, res.Status, res.Header, len(res.Header), err)
	for name := range res.Header {
		fmt.Fprintln(&b, strings.ToLower(name))
	}
	if res.Header.Get("Content-Encoding") == "gzip" {
		if z, err := gzip.NewReader(bytes.NewReader(body)); err == nil {
			body, _ = io.ReadAll(z)
		}
	}
	b.Write(body)
	fmt.Fprintln(&b, res.Trailer)
	return b.String(), res
}

func zipped(coding, text string) string {
	var b bytes.Buffer
	var z io.WriteCloser
	switch coding {
	case "gzip":
		z = gzip.NewWriter(&b)
	case "deflate":
		z = zlib.NewWriter(&b)
	case "br":
		z = brotli.NewWriter(&b)
	}
	io.WriteString(z, text)
	z.Close()
	return b.String()
}

// lower is a value that can be a header's name.
const lower = "deadbeef0123456789abcdef"

// echoes has an upstream put the secret in one place each.
var echoes = map[string]func(w http.ResponseWriter, r *http.Request){
	"header": func(w http.ResponseWriter, r *http.Request) {
		for _, text := range spellings(theSecret) {
			w.Header().Add("X-Echo", "token "+text)
			w.Header().Add("Set-Cookie", "a="+text)
		}
		w.Header().Set("Etag", `"`+theSecret+`"`)
		w.Header().Set("Www-Authenticate", `Bearer realm="`+theSecret+`"`)
	},
	"header name": func(w http.ResponseWriter, r *http.Request) { w.Header().Set("X-"+lower+"-Y", "1") },
	"location": func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Location", "https://elsewhere.test/?key="+url.QueryEscape(theSecret))
		w.WriteHeader(302)
	},
	"hints": func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Link", theSecret)
		w.WriteHeader(103)
		w.Header().Del("Link")
		w.WriteHeader(200)
	},
	"body": func(w http.ResponseWriter, r *http.Request) {
		for _, text := range spellings(theSecret) {
			fmt.Fprintf(w, "<%s>", text)
		}
	},
	"error page": func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(500)
		fmt.Fprintf(w, "bad key %s", theSecret)
	},
	"chunks": func(w http.ResponseWriter, r *http.Request) {
		for _, text := range spellings(theSecret) {
			for i := range len(text) {
				w.Write([]byte{text[i]})
				http.NewResponseController(w).Flush()
			}
			w.Write([]byte("\n"))
		}
	},
	"events": func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		fmt.Fprintf(w, "data: %s", theSecret[:9])
		http.NewResponseController(w).Flush()
		fmt.Fprintf(w, "%s\n\n", theSecret[9:])
	},
	"trailers": func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "Announced")
		w.WriteHeader(200)
		io.WriteString(w, "body")
		w.Header().Set("Announced", theSecret)
		w.Header().Set(http.TrailerPrefix+"Late", theSecret)
	},
	"gzip": func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Encoding", "gzip")
		io.WriteString(w, zipped("gzip", "it is "+theSecret))
	},
	"gRPC": func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/grpc")
		fmt.Fprintf(w, "\x00\x00\x00\x00%c\x0a%c%s", len(theSecret)+2, len(theSecret), theSecret)
	},
}

func TestWhatTheUpstreamEchoes(t *testing.T) {
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { echoes[strings.Trim(r.URL.Path, "/")](w, r) })
	eachWay(t, h, func(t *testing.T, w *world) {
		values := compile(t, theSecret, lower)
		for name := range echoes {
			if name == "hints" && w.way == tlsHTTP2 {
				continue // it gets none
			}
			w.locked(func() { w.pass = Pass{} })
			got, res := everything(t, w, "GET", "/"+url.PathEscape(name))
			if len(seen(got, theSecret)) == 0 && !strings.Contains(got, lower) {
				t.Fatalf("%s: without a search it is not seen either: %q", name, got)
			}
			w.locked(func() { w.pass = Pass{Values: values, Whole: true} })
			clean, cleaned := everything(t, w, "GET", "/"+url.PathEscape(name))
			if found := seen(clean, theSecret); len(found) > 0 || strings.Contains(clean, lower) {
				t.Errorf("%s: seen as %q in %q", name, found, clean)
			}
			if cleaned.StatusCode != res.StatusCode {
				t.Errorf("%s: status %d", name, cleaned.StatusCode)
			}
			if res.ContentLength > 0 && name != "gzip" && cleaned.ContentLength != res.ContentLength {
				t.Errorf("%s: length %d, was %d", name, cleaned.ContentLength, res.ContentLength)
			}
		}
		// A match that ends a body may be counted after the guest has it.
		for i, r := range w.results(2 * (len(echoes) - 1)) {
			if i%2 == 1 && r.Scrubbed == 0 {
				t.Errorf("result %d says nothing of it: %+v", i, r)
			}
		}
	})
}

func TestEncodedBodies(t *testing.T) {
	text := "it is " + theSecret
	bodies := map[string]string{
		"gzip": zipped("gzip", text), "x-gzip": zipped("gzip", text), "deflate": zipped("deflate", text), "br": zipped("br", text),
		"gzip, br": zipped("br", zipped("gzip", text)), "zstd": "(\xb5/\xfd", "gzip, zstd": "(\xb5/\xfd", "identity": text,
	}
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		coding, _ := url.QueryUnescape(r.URL.RawQuery)
		w.Header().Set("Content-Encoding", coding)
		w.Header().Set("Etag", `"tag"`)
		w.Header().Set("X-Asked", strings.Join(r.Header["Accept-Encoding"], ",")+"|"+r.Header.Get("Range"))
		io.WriteString(w, bodies[coding])
	})
	eachWay(t, h, func(t *testing.T, w *world) {
		w.pass = Pass{Values: compile(t, theSecret), Whole: true}
		for coding := range bodies {
			got, res := everything(t, w, "GET", "/?"+url.QueryEscape(coding))
			unknown := strings.Contains(coding, "zstd")
			switch {
			case unknown && (res.StatusCode != 502 || !strings.Contains(got, `"error":"upstream"`)):
				t.Errorf("%s: %q", coding, got)
			case !unknown && !strings.Contains(got, "it is "+strings.Repeat("*", len(theSecret))):
				t.Errorf("%s: %q", coding, got)
			case !unknown && res.Header.Get("X-Asked") != "gzip|":
				t.Errorf("the upstream was asked for %q", res.Header.Get("X-Asked"))
			case !unknown && coding != "identity" && res.Header.Get("Etag") != `W/"tag"`:
				t.Errorf("%s: tag %s", coding, res.Header.Get("Etag"))
			}
			everything(t, w, "HEAD", "/?"+url.QueryEscape(coding))
		}
		w.locked(func() { w.pass.Unreadable = true })
		if got, res := everything(t, w, "GET", "/?zstd"); res.StatusCode != 200 || !strings.Contains(got, bodies["zstd"]) {
			t.Errorf("with leave: %q", got)
		}
		res := w.do(w.request("GET", "/?identity", nil))
		if asked := res.Header.Get("X-Asked"); asked != "identity|" {
			t.Errorf("for a guest that named no encoding, %q was asked for", asked)
		}
	})
}

func TestPartsAndCompressedMessagesAreRefused(t *testing.T) {
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/part" {
			w.WriteHeader(206)
			return
		}
		w.Header().Set("Grpc-Encoding", "gzip")
	})
	w := newWorld(t, tlsHTTP2, serveHTTP(t, tlsHTTP2, h))
	w.pass = Pass{Values: compile(t, theSecret), Whole: true}
	for _, path := range []string{"/part", "/message"} {
		if got, res := everything(t, w, "GET", path); res.StatusCode != 502 || !strings.Contains(got, "unreadable: allow") {
			t.Errorf("%s: %q", path, got)
		}
	}
}

// A response that is refused must not wait for the request's end either.
func TestRefusedWhileTheRequestGoesOn(t *testing.T) {
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.NewResponseController(w).EnableFullDuplex()
		w.Header().Set("Content-Encoding", "zstd")
		io.WriteString(w, "begun")
		http.NewResponseController(w).Flush()
		io.Copy(io.Discard, r.Body)
	})
	eachWay(t, h, func(t *testing.T, w *world) {
		w.pass = Pass{Values: compile(t, theSecret)}
		body, send := io.Pipe()
		defer send.Close()
		if res := w.do(w.request("POST", "/", body)); res.StatusCode != 502 {
			t.Errorf("status %d", res.StatusCode)
		}
	})
}

// An upstream can put text into its status line, which no library sends.
func TestStatusLineAndSwitch(t *testing.T) {
	for name, c := range map[string]struct{ answer, want string }{
		"reason":        {"HTTP/1.1 200 " + theSecret + "\r\nContent-Length: 0\r\n\r\n", "200 OK"},
		"switch":        {"HTTP/1.1 101 " + theSecret + "\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", "101 Switching Protocols"},
		"switch header": {"HTTP/1.1 101 x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSet-Cookie: a=" + theSecret + "\r\n\r\n", "101 Switching Protocols"},
		"switch frame":  {"HTTP/1.1 101 x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n\x82" + string(rune(len(theSecret))) + theSecret, "101 Switching Protocols"},
		"pong":          {"HTTP/1.1 101 x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n\x8a" + string(rune(len(theSecret))) + theSecret, "101 Switching Protocols"},
		"unasked":       {"HTTP/1.1 101 x\r\nConnection: Upgrade\r\nUpgrade: " + theSecret + "\r\n\r\n", "502 Bad Gateway"},
		"malformed":     {"HTTP/1.1 " + theSecret + " \r\n\r\n", "502 Bad Gateway"},
	} {
		for _, way := range []string{plainHTTP, tlsHTTP1} {
			t.Run(name+" "+way, func(t *testing.T) {
				w := newWorld(t, way, serveRaw(t, func(conn net.Conn) {
					if _, err := http.ReadRequest(bufio.NewReader(conn)); err == nil {
						io.WriteString(conn, c.answer)
					}
				}))
				w.pass = Pass{Values: compile(t, theSecret)}
				conn := w.connect()
				to := host
				if way != plainHTTP {
					to += ":80"
				}
				fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", to)
				conn.SetDeadline(time.Now().Add(200 * time.Millisecond))
				got, _ := io.ReadAll(conn)
				if !strings.HasPrefix(string(got), "HTTP/1.1 "+c.want+"\r\n") || strings.Contains(string(got), theSecret) {
					t.Errorf("got %q", got)
				}
				if (name == "switch frame" || name == "pong") && !strings.HasSuffix(string(got), strings.Repeat("*", len(theSecret))) {
					t.Errorf("the frame is %q", got)
				}
			})
		}
	}
}

func TestWebSocket(t *testing.T) {
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Sec-Websocket-Extensions") != "" {
			w.WriteHeader(400)
			return
		}
		c, err := websocket.Accept(w, r, &websocket.AcceptOptions{InsecureSkipVerify: true, CompressionMode: websocket.CompressionContextTakeover})
		if err != nil {
			return
		}
		defer c.CloseNow()
		c.SetReadLimit(1 << 20)
		for {
			kind, text, err := c.Read(r.Context())
			if err != nil {
				return
			}
			if string(text) == "bye" {
				c.Close(4001, "for "+theSecret)
				return
			}
			m, err := c.Writer(r.Context(), kind)
			if err != nil {
				return
			}
			for _, part := range bytes.SplitAfter(text, []byte("|")) {
				m.Write(part) // a fragment each, where it is large
			}
			m.Close()
		}
	})
	for _, guest := range []string{plainHTTP, tlsHTTP1} {
		for _, upstream := range []string{plainHTTP, tlsHTTP1} { // it is of HTTP/1
			t.Run(guest+" to "+upstream, func(t *testing.T) {
				w := newWorld(t, guest, serveHTTP(t, upstream, h))
				var alerts []string
				w.pass = Pass{Values: compile(t, theSecret), Marks: compile(t, theCanary), Found: func(names []string) { alerts = append(alerts, names...) }}
				dial := func() *websocket.Conn {
					c, _, err := websocket.Dial(t.Context(), w.url("/"), &websocket.DialOptions{HTTPClient: w.client, CompressionMode: websocket.CompressionContextTakeover})
					if err != nil {
						t.Fatal(err)
					}
					c.SetReadLimit(1 << 20)
					return c
				}
				c := dial()
				defer c.CloseNow()
				big := strings.Repeat("0123456789|", 10000)
				for _, m := range []struct {
					kind       websocket.MessageType
					sent, want string
				}{
					{websocket.MessageText, "hello", "hello"}, {websocket.MessageBinary, "\x00\xff", "\x00\xff"}, {websocket.MessageText, "", ""},
					{websocket.MessageText, big, big},
					{websocket.MessageText, theSecret[:5] + "|" + theSecret[5:], theSecret[:5] + "|" + theSecret[5:]},
					{websocket.MessageText, theSecret, strings.Repeat("*", len(theSecret))},
				} {
					if err := c.Write(t.Context(), m.kind, []byte(m.sent)); err != nil {
						t.Fatal(err)
					}
					kind, got, err := c.Read(t.Context())
					if err != nil || kind != m.kind || string(got) != m.want {
						t.Fatalf("got %v %.50q, %v, want %.50q", kind, got, err, m.want)
					}
				}
				go func() { // a pong comes to the one who reads
					if c.Ping(t.Context()) == nil {
						c.Write(t.Context(), websocket.MessageText, []byte("bye"))
					}
				}()
				_, _, err := c.Read(t.Context())
				if websocket.CloseStatus(err) != 4001 || strings.Contains(err.Error(), theSecret) || !strings.Contains(err.Error(), "****") {
					t.Errorf("closed with %v", err)
				}
				c = dial()
				defer c.CloseNow()
				c.Write(t.Context(), websocket.MessageText, []byte("take "+theCanary))
				if _, got, err := c.Read(t.Context()); err == nil {
					t.Errorf("a canary was answered with %q", got)
				}
				w.results(2)
				if len(alerts) != 1 {
					t.Errorf("alerts %q", alerts)
				}
			})
		}
	}
}
