package web

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// floods are what a guest sends of HTTP/2 without end and without reading.
var floods = map[string]func(f *frames, i int) error{
	"rapid reset": func(f *frames, i int) error {
		f.headers(uint32(2*i+1), ":method= GET", ":scheme= https", ":path= /slow", ":authority= api.test")
		return f.WriteRSTStream(uint32(2*i+1), http2.ErrCodeCancel)
	},
	"continuations": func(f *frames, i int) error {
		if i == 0 {
			return f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: nil})
		}
		return f.WriteContinuation(1, false, bytes.Repeat([]byte{0x40, 1, 'a', 1, 'b'}, 200))
	},
	"empty continuations": func(f *frames, i int) error {
		if i == 0 {
			return f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: nil})
		}
		return f.WriteContinuation(1, false, nil)
	},
	"pings": func(f *frames, i int) error { return f.WritePing(false, [8]byte{byte(i)}) },
	"settings": func(f *frames, i int) error {
		return f.WriteSettings(http2.Setting{ID: http2.SettingHeaderTableSize, Val: uint32(i)})
	},
	"windows": func(f *frames, i int) error { return f.WriteWindowUpdate(0, 1<<31-1) },
	"tiny windows": func(f *frames, i int) error {
		if i == 0 {
			f.headers(1, ":method= GET", ":scheme= https", ":path= /large", ":authority= api.test")
		}
		return f.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: uint32(i % 2)})
	},
	"streams": func(f *frames, i int) error {
		f.headers(uint32(2*i+1), ":method= GET", ":scheme= https", ":path= /slow", ":authority= api.test")
		return nil
	},
	"header bomb": func(f *frames, i int) error {
		var block bytes.Buffer
		e := hpack.NewEncoder(&block)
		for _, name := range []string{":method GET", ":scheme https", ":path /", ":authority api.test"} {
			name, value, _ := strings.Cut(name, " ")
			e.WriteField(hpack.HeaderField{Name: name, Value: value})
		}
		for range 3000 { // one byte each, but for the first
			e.WriteField(hpack.HeaderField{Name: "x", Value: strings.Repeat("v", 3000)})
		}
		return f.WriteHeaders(http2.HeadersFrameParam{StreamID: uint32(2*i + 1), BlockFragment: block.Bytes(), EndHeaders: true, EndStream: true})
	},
	"empty data": func(f *frames, i int) error {
		if i == 0 {
			var block bytes.Buffer
			e := hpack.NewEncoder(&block)
			for _, name := range []string{":method POST", ":scheme https", ":path /slow", ":authority api.test"} {
				name, value, _ := strings.Cut(name, " ")
				e.WriteField(hpack.HeaderField{Name: name, Value: value})
			}
			return f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndHeaders: true})
		}
		return f.WriteData(1, false, nil)
	},
	"priorities": func(f *frames, i int) error {
		return f.WritePriority(uint32(2*i+1), http2.PriorityParam{StreamDep: uint32(2*i + 3)})
	},
	"unknown frames": func(f *frames, i int) error { return f.WriteRawFrame(0x77, 0xff, uint32(i), make([]byte, 1000)) },
}

func TestFloods(t *testing.T) {
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/slow":
			<-r.Context().Done()
		case "/large":
			io.Copy(w, noise(8<<20))
		}
	})
	for name, flood := range floods {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, tlsHTTP2, serveHTTP(t, tlsHTTP2, h))
			w.pass.Values, w.pass.Marks = compile(t, theSecret), compile(t, theCanary)
			w.get("/")
			before := heap()
			f := newFrames(t, w)
			f.conn.SetWriteDeadline(time.Now().Add(time.Second)) // the server need not read on
			sent := 0
			for ; sent < 10000; sent++ {
				if err := flood(f, sent); err != nil {
					break
				}
			}
			grown := int64(heap()) - int64(before)
			if grown > 32<<20 {
				t.Errorf("after %d frames the heap has grown by %d bytes", sent, grown)
			}
			began := time.Now()
			if res, _ := w.get("/"); res.StatusCode != 200 {
				t.Errorf("another connection got %d", res.StatusCode)
			}
			w.locked(func() {
				t.Logf("%d times; %d KiB; then %v for another; %d requests let through", sent, grown>>10, time.Since(began), len(w.asked))
			})
			f.conn.Close()
		})
	}
}

// forever sends a text until the other side has gone.
func forever(c net.Conn, head, text string) {
	io.WriteString(c, head)
	for {
		if _, err := io.WriteString(c, text); err != nil {
			return
		}
	}
}

func bomb() string {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	zeros := make([]byte, 1<<20)
	for range 16 {
		z.Write(zeros)
	}
	z.Close()
	return b.String()
}

func TestHostileUpstreams(t *testing.T) {
	bombed := bomb()
	type outcome struct{ status, body string }
	for name, c := range map[string]struct {
		serve func(net.Conn)
		want  outcome // "" where the answer is broken off
	}{
		"endless header":     {func(c net.Conn) { forever(c, "HTTP/1.1 200 OK\r\n", "X-Y: z\r\n") }, outcome{status: "502"}},
		"endless line":       {func(c net.Conn) { forever(c, "HTTP/1.1 200 OK\r\nX: ", "yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy") }, outcome{status: "502"}},
		"endless status":     {func(c net.Conn) { forever(c, "HTTP/1.1 ", "99999999999999999") }, outcome{status: "502"}},
		"endless hints":      {func(c net.Conn) { forever(c, "", "HTTP/1.1 103 Early Hints\r\nX: y\r\n\r\n") }, outcome{status: "502"}},
		"endless trailer":    {func(c net.Conn) { forever(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", "X: y\r\n") }, outcome{}},
		"endless chunk size": {func(c net.Conn) { forever(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "00000000") }, outcome{}},
		"endless extension":  {func(c net.Conn) { forever(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;", "x") }, outcome{}},
		"no HTTP":            {func(c net.Conn) { forever(c, "", "\x00\xffSSH-2.0") }, outcome{status: "502"}},
		"two lengths": {func(c net.Conn) {
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx")
		}, outcome{status: "502"}},
		"nothing":            {func(c net.Conn) {}, outcome{status: "502"}},
		"a length too large": {func(c net.Conn) { io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n") }, outcome{status: "502"}},
		"more than the length": {func(c net.Conn) {
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nother")
		}, outcome{"200", "ok"}},
		"bomb": {func(c net.Conn) {
			fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%s", len(bombed), bombed)
		}, outcome{status: "200"}},
		"switch unasked": {func(c net.Conn) {
			io.WriteString(c, "HTTP/1.1 101 X\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		}, outcome{status: "502"}},
	} {
		for _, way := range ways {
			t.Run(name+" "+way, func(t *testing.T) {
				w := newWorld(t, way, serveRaw(t, func(conn net.Conn) {
					if _, err := http.ReadRequest(bufio.NewReader(conn)); err == nil {
						c.serve(conn)
					}
				}))
				w.pass.Values = compile(t, theSecret)
				before := heap()
				res, err := w.client.Do(w.request("GET", "/", nil))
				got := outcome{}
				if err == nil {
					var b []byte
					if c.want.body != "" {
						b, err = io.ReadAll(res.Body)
					} else {
						_, err = io.Copy(io.Discard, res.Body)
					}
					res.Body.Close()
					if err == nil {
						got = outcome{fmt.Sprint(res.StatusCode), string(b)}
					}
				}
				if got != c.want {
					t.Errorf("got %+v, %v, want %+v", got, err, c.want)
				}
				if grown := int64(heap()) - int64(before); grown > 16<<20 {
					t.Errorf("the heap has grown by %d bytes", grown)
				}
				w.results(1)
			})
		}
	}
}

func TestHostileUpstreamsOfHTTP2(t *testing.T) {
	for name, serve := range map[string]func(f *http2.Framer) error{
		"goaway":   func(f *http2.Framer) error { return f.WriteGoAway(0, http2.ErrCodeNo, nil) },
		"refusals": func(f *http2.Framer) error { return f.WriteRSTStream(1, http2.ErrCodeRefusedStream) },
		"large":    func(f *http2.Framer) error { return f.WriteRawFrame(http2.FrameData, 0, 1, make([]byte, 1<<20)) },
		"push": func(f *http2.Framer) error {
			return f.WritePushPromise(http2.PushPromiseParam{StreamID: 1, PromiseID: 2, EndHeaders: true})
		},
		"settings": func(f *http2.Framer) error { return f.WriteSettings() },
		"pings":    func(f *http2.Framer) error { return f.WritePing(false, [8]byte{}) },
		"data":     func(f *http2.Framer) error { return f.WriteData(1, false, make([]byte, 16000)) },
		"endless": func(f *http2.Framer) error {
			return f.WriteContinuation(1, false, bytes.Repeat([]byte{0x40, 1, 'a', 1, 'b'}, 200))
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, tlsHTTP2, serveRawTLS(t, "h2", func(c net.Conn) {
				io.ReadFull(c, make([]byte, len(http2.ClientPreface)))
				f := http2.NewFramer(c, c)
				f.AllowIllegalWrites = true
				f.WriteSettings()
				for { // until its first request
					frame, err := f.ReadFrame()
					if err != nil {
						return
					}
					if _, ok := frame.(*http2.HeadersFrame); ok {
						break
					}
				}
				if name == "endless" {
					f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1})
				}
				c.SetDeadline(time.Now().Add(time.Second))
				go io.Copy(io.Discard, c)
				for serve(f) == nil {
				}
			}))
			before := heap()
			ctx, cancel := contextFor(t)
			defer cancel()
			res, err := w.client.Do(w.request("GET", "/", nil).WithContext(ctx))
			if err == nil {
				_, err = io.Copy(io.Discard, res.Body)
			}
			if err == nil && res.StatusCode != 502 {
				t.Errorf("status %d", res.StatusCode)
			}
			if grown := int64(heap()) - int64(before); grown > 16<<20 {
				t.Errorf("the heap has grown by %d bytes", grown)
			}
			cancel()
			w.results(1)
		})
	}
}

func TestSlowHeadersDoNotHoldOthersUp(t *testing.T) {
	h := http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})
	for _, way := range ways {
		w := newWorld(t, way, serveHTTP(t, plainHTTP, h))
		for range 50 {
			io.WriteString(w.connect(), "GET / HT") // and no more
		}
		if res, _ := w.get("/"); res.StatusCode != 200 {
			t.Errorf("%s: %d", way, res.StatusCode)
		}
	}
}

// An upstream that is in league with the guest must not end the strict reading
// of the guest's requests.
func TestASwitchThatNobodyAskedFor(t *testing.T) {
	for name, asked := range map[string]string{"nothing": "", "upgrade without connection": "Upgrade: websocket\r\n"} {
		for _, answer := range []string{"Connection: Upgrade\r\nUpgrade: websocket\r\n", "Connection: Upgrade\r\nUpgrade: h2c\r\n", "Connection: Upgrade\r\n", ""} {
			w := newWorld(t, plainHTTP, serveRaw(t, func(c net.Conn) {
				http.ReadRequest(bufio.NewReader(c))
				io.WriteString(c, "HTTP/1.1 101 X\r\n"+answer+"\r\n")
				io.Copy(io.Discard, c)
			}))
			c := w.connect()
			fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: api.test\r\n%s\r\n", asked)
			r := bufio.NewReader(c)
			res, err := http.ReadResponse(r, nil)
			if err != nil || res.StatusCode != 502 {
				t.Fatalf("%s, %q: %v %v", name, answer, res, err)
			}
			io.Copy(io.Discard, res.Body)
			io.WriteString(c, "POST / HTTP/1.1\r\nHost: api.test\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
			if res, err := http.ReadResponse(r, nil); err != nil || res.StatusCode != 400 {
				t.Errorf("%s, %q: what is ambiguous got %v %v", name, answer, res, err)
			}
		}
	}
}
