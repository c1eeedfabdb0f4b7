package web

import (
	"bytes"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/andybalholm/brotli"
)

// smallBomb is a body in brotli of some thirty bytes, without its end, that takes
// a window of 16 MiB to open.
var smallBomb = sync.OnceValue(func() string {
	var b bytes.Buffer
	w := brotli.NewWriterOptions(&b, brotli.WriterOptions{Quality: 1, LGWin: 24})
	w.Write(make([]byte, 16<<20))
	w.Flush()
	return b.String()
})

// TestManyResponsesThatCostMuch holds what concurrent responses cost against the
// bounds: each is small on the wire, and never ends.
func TestManyResponsesThatCostMuch(t *testing.T) {
	const responses = 24
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		coding, _ := url.QueryUnescape(r.URL.RawQuery)
		w.Header().Set("Content-Encoding", coding)
		if r.URL.Path == "/small" {
			io.WriteString(w, zipped("gzip", "small"))
			return
		}
		body := smallBomb()
		if coding == "gzip, br" {
			body = zipped("br", zipped("gzip", "x"))
		}
		io.WriteString(w, body)
		http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	for _, coding := range []string{"br", "gzip, br"} {
		t.Run(coding, func(t *testing.T) {
			w := newWorld(t, plainHTTP, serveHTTP(t, plainHTTP, h), func(s *Server) { s.patience = 50 * time.Millisecond })
			w.pass.Values = compile(t, theSecret)
			w.get("/small?gzip")
			before := heap()
			var asking sync.WaitGroup
			var mu sync.Mutex
			var open, refused int
			for range responses {
				asking.Go(func() {
					r := w.request("GET", "/?"+url.QueryEscape(coding), nil)
					r.Header.Set("Accept-Encoding", "gzip, br;q=0.9")
					res, err := w.client.Do(r)
					if err != nil {
						t.Error(err)
						return
					}
					t.Cleanup(func() { res.Body.Close() })
					if res.StatusCode == http.StatusOK && coding == "br" {
						io.ReadFull(res.Body, make([]byte, 1<<20)) // its decoder is at work
					}
					var d Denial
					if res.StatusCode == http.StatusServiceUnavailable && json.NewDecoder(res.Body).Decode(&d) != nil || d.Error != "" && (d.Error != "busy" || d.Hint == "") {
						t.Errorf("%s, %+v", res.Status, d)
					}
					mu.Lock()
					defer mu.Unlock()
					switch res.StatusCode {
					case http.StatusOK:
						open++
					case http.StatusServiceUnavailable:
						refused++
					default:
						t.Errorf("%s", res.Status)
					}
				})
			}
			asking.Wait()
			grown := int64(heap()) - int64(before)
			t.Logf("%d bytes each: %d responses are open, %d were refused, %d MiB are held", len(smallBomb()), open, refused, grown>>20)
			if grown > maxDecoders+16<<20 {
				t.Errorf("the heap has grown by %d MiB, and decoders may have %d", grown>>20, maxDecoders>>20)
			}
			if open == 0 || coding == "br" && refused == 0 {
				t.Errorf("%d responses are open, %d were refused", open, refused)
			}
			// What is small finds a place beside them.
			if res, body := w.get("/small?gzip"); res.StatusCode != 200 || !strings.Contains(body, "small") {
				t.Errorf("a small response got %d", res.StatusCode)
			}
		})
	}
}

// TestDecodersGiveBack has responses, one after the other, that would not all be
// opened at once.
func TestDecodersGiveBack(t *testing.T) {
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Encoding", "br")
		switch r.URL.Path {
		case "/broken":
			io.WriteString(w, smallBomb())
		case "/whole":
			io.WriteString(w, zipped("br", "whole"))
		}
	})
	for _, way := range ways {
		w := newWorld(t, way, serveHTTP(t, way, h))
		w.pass.Values = compile(t, theSecret)
		for i := range 3 * maxDecoders >> 24 {
			r := w.request([]string{"GET", "HEAD"}[i%2], []string{"/broken", "/whole", "/empty"}[i%3], nil)
			r.Header.Set("Accept-Encoding", "br")
			res := w.do(r)
			if i%5 > 0 {
				io.Copy(io.Discard, res.Body)
			}
			res.Body.Close()
			if res.StatusCode != 200 {
				t.Errorf("%s: response %d got %s", way, i, res.Status)
			}
		}
	}
}

func TestOnlyWhatWasAskedForIsOpened(t *testing.T) {
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Encoding", "br")
		io.WriteString(w, zipped("br", "it is "+theSecret))
	})
	for offer, want := range map[string]int{
		"": 502, "gzip": 502, "br;q=0": 502, "br;q=0.000, gzip": 502, "*": 502, "gzip, xbr": 502, "br": 200, "gzip;q=0.5,BR ; q=0.1": 200,
	} {
		w := newWorld(t, tlsHTTP1, serveHTTP(t, tlsHTTP2, h))
		w.pass.Values = compile(t, theSecret)
		r := w.request("GET", "/", nil)
		r.Header.Set("Accept-Encoding", offer)
		res := w.do(r)
		body := readAll(t, res.Body)
		if res.StatusCode != want || want == 200 && body != "it is "+strings.Repeat("*", len(theSecret)) || want == 502 && !strings.Contains(body, "not asked for") {
			t.Errorf("%q: %s, %s", offer, res.Status, body)
		}
	}
}

// A header of short lines takes many times its size in memory, while the
// response lasts.
func TestHeadersOfManyFields(t *testing.T) {
	const responses, most = 32, 512 << 10
	for _, size := range []int{maxFields - 8, maxFields + 1, maxResponseHeader / 6} {
		var header strings.Builder
		for i := range size {
			header.WriteString(strconv.FormatInt(int64(i), 36) + ":\r\n")
		}
		w := newWorld(t, plainHTTP, serveRaw(t, func(c net.Conn) {
			c.Read(make([]byte, 1000))
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n"+header.String()+"\r\n")
			io.Copy(io.Discard, c)
		}))
		w.pass.Values = compile(t, theSecret)
		before := heap()
		var asking sync.WaitGroup
		for range responses {
			asking.Go(func() {
				res, err := w.client.Do(w.request("GET", "/", nil))
				if err != nil {
					t.Error(err)
					return
				}
				res.Header = nil // the guest's own
				t.Cleanup(func() { res.Body.Close() })
				if want := size > maxFields; (res.StatusCode == 502) != want {
					t.Errorf("%d fields: %s", size, res.Status)
				}
			})
		}
		asking.Wait()
		grown := (int64(heap()) - int64(before)) / responses
		t.Logf("a header of %d fields takes %d KiB", size, grown>>10)
		if grown > most {
			t.Errorf("a header of %d fields takes %d KiB, more than %d", size, grown>>10, most>>10)
		}
	}
}
