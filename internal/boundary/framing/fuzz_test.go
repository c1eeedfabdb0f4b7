package framing

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"strings"
	"testing"
)

// ends are the offsets at which the scanner sees requests end in what it lets
// pass.
func ends(passed string) (all []int) {
	s := newScanner()
	for i := range len(passed) {
		s.scan([]byte{passed[i]})
		if s.state == requestLine && len(s.line) == 0 {
			all = append(all, i+1)
		}
	}
	return all
}

// next is what net/http reads as the next request.
func next(br *bufio.Reader) (*http.Request, []byte, error) {
	r, err := http.ReadRequest(br)
	if err != nil {
		return nil, nil, err
	}
	body, err := io.ReadAll(r.Body)
	if r.ContentLength != 0 { // else there is none, and one would be sent on in chunks
		r.Body = io.NopCloser(bytes.NewReader(body))
	}
	return r, body, err
}

// FuzzRequests holds the scanner against net/http: in what passes, both see the
// same requests end in the same places; what does not end is no request to
// either; and what net/http writes of a request is one request to both.
func FuzzRequests(f *testing.F) {
	for _, file := range []string{"passed.txt", "refused.txt"} {
		for _, c := range corpus(f, file) {
			f.Add(c.bytes)
		}
	}
	f.Fuzz(func(t *testing.T, sent string) {
		passed, reason := scanned(sent, len(sent)+1)
		slowly, same := scanned(sent, 1)
		if reason != same || !strings.HasPrefix(slowly, passed) {
			t.Fatalf("refused because of %q behind %q; byte by byte of %q behind %q", reason, passed, same, slowly)
		}
		if reason == "" && passed != sent {
			t.Fatalf("of %q passed %q", sent, passed)
		}
		source := strings.NewReader(slowly)
		br := bufio.NewReader(source)
		for i, end := range ends(slowly) {
			r, body, err := next(br)
			if err != nil {
				t.Fatalf("net/http does not read request %d of %q: %v", i, slowly, err)
			}
			if at := len(slowly) - source.Len() - br.Buffered(); at != end {
				t.Fatalf("request %d of %q ends at %d, to net/http at %d", i, slowly, end, at)
			}
			if r.Host != "" {
				sendOn(t, r, body)
			}
		}
		if r, body, err := next(br); err == nil {
			t.Fatalf("net/http reads one more request in %q: %v with %q", slowly, r, body)
		}
	})
}

func sendOn(t *testing.T, r *http.Request, body []byte) {
	var wire strings.Builder
	r.Trailer = nil
	if err := r.Write(&wire); err != nil {
		t.Fatalf("write %v: %v", r, err)
	}
	passed, reason := scanned(wire.String(), 4096)
	if reason != "" || len(ends(passed)) != 1 || ends(passed)[0] != wire.Len() {
		t.Fatalf("net/http sends on %q, which is refused because of %q, or ends at %v", wire.String(), reason, ends(passed))
	}
	again, same, err := next(bufio.NewReader(strings.NewReader(passed)))
	if err != nil || !bytes.Equal(same, body) || again.Method != r.Method || again.Host != r.Host || again.URL.RequestURI() != r.URL.RequestURI() {
		t.Fatalf("net/http sends on %q: %v", wire.String(), err)
	}
}

func BenchmarkRequests(b *testing.B) {
	get := []byte("GET /api/v1/items?limit=10 HTTP/1.1\r\nHost: a.example\r\nUser-Agent: python-requests/2.31.0\r\n" +
		"Accept-Encoding: gzip, deflate\r\nAccept: */*\r\nConnection: keep-alive\r\nAuthorization: Bearer 0123456789abcdef\r\n\r\n")
	chunks := []byte("POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n" +
		strings.Repeat("1000\r\n"+strings.Repeat("\n", 4096)+"\r\n", 64) + "0\r\n\r\n")
	for name, p := range map[string][]byte{"get": get, "chunks": chunks} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(p)))
			b.ReportAllocs()
			s := newScanner()
			for b.Loop() {
				if _, fault := s.scan(p); fault != nil {
					b.Fatal(fault)
				}
			}
		})
	}
}
