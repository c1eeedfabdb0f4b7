package web

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
)

// stream is a connection that has bytes, and counts who asks for them. Reading
// it when it has none would wait.
type stream struct {
	net.Conn
	t     *testing.T
	bytes []byte
	reads int
	wrote []int
}

func (s *stream) Read(p []byte) (int, error) {
	s.reads++
	if len(s.bytes) == 0 {
		s.t.Error("waited for what has not come")
		return 0, io.EOF
	}
	n := copy(p, s.bytes)
	s.bytes = s.bytes[n:]
	return n, nil
}

func (s *stream) Write(p []byte) (int, error) {
	s.wrote = append(s.wrote, len(p))
	return len(p), nil
}

// records gives a record at a time, as TLS does.
type records struct{ from io.Reader }

func (r records) Read(p []byte) (int, error) {
	var record [wireRecord]byte
	if _, err := io.ReadFull(r.from, record[:]); err != nil {
		return 0, err
	}
	return copy(p, record[5:5+plainRecord]), nil
}

func TestABodyIsReadAsFarAsItHasCome(t *testing.T) {
	const n = 10
	c := &stream{t: t, bytes: make([]byte, n*wireRecord)}
	u := &upstream{Conn: c}
	u.expect(100*plainRecord, new(buffers))
	body, calls := eager{records{u}, u}, 0
	p := make([]byte, bufferSize)
	for got := 0; got < n*plainRecord; calls++ {
		m, err := body.Read(p)
		if err != nil {
			t.Fatal(err)
		}
		got += m
	}
	if c.reads > 4 || calls > 6 {
		t.Errorf("%d reads of the connection and %d of the body, of %d records", c.reads, calls, n)
	}
}

func TestNothingIsReadAheadOfSmallBodies(t *testing.T) {
	c := &stream{t: t, bytes: make([]byte, 1000)}
	u := &upstream{Conn: c}
	if n, err := u.Read(make([]byte, 10)); n != 10 || err != nil || len(c.bytes) != 990 || u.buf != nil {
		t.Errorf("read %d %v, %d left", n, err, len(c.bytes))
	}
	u.expect(500, new(buffers))
	if n, err := u.Read(make([]byte, 600)); n != 600 || err != nil {
		t.Errorf("read %d %v", n, err)
	}
	if n, err := u.Read(make([]byte, 600)); n != 390 || err != nil || u.buf != nil {
		t.Errorf("read %d %v, a buffer is kept: %v", n, err, u.buf != nil)
	}
}

func TestAWriteIsFewOfTheConnection(t *testing.T) {
	c := &stream{t: t}
	g := &gathering{Conn: c, buffers: new(buffers)}
	above := &stream{t: t}
	if n, err := (&conn{Conn: above, under: g}).Write(make([]byte, plainRecord)); n != plainRecord || err != nil || len(above.wrote) != 1 || g.buf != nil {
		t.Errorf("a small write: %d %v %v", n, err, above.wrote)
	}
	large := &conn{Conn: cutting{g}, under: g}
	if n, err := large.Write(make([]byte, 5*plainRecord)); n != 5*plainRecord || err != nil {
		t.Errorf("%d %v", n, err)
	}
	total := 0
	for _, n := range c.wrote {
		total += n
	}
	if total != 5*wireRecord || len(c.wrote) != 2 || g.hold || g.buf != nil {
		t.Errorf("writes of %v, held %v", c.wrote, g.hold)
	}
	c.wrote = nil
	if n, err := g.Write(make([]byte, 7)); n != 7 || err != nil || len(c.wrote) != 1 {
		t.Errorf("an alert was held: %v %v", c.wrote, err)
	}
}

// cutting writes records.
type cutting struct{ net.Conn }

func (c cutting) Write(p []byte) (int, error) {
	for range len(p) / plainRecord {
		if _, err := c.Conn.Write(make([]byte, wireRecord)); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}

// TestLargeBodyComesAsItIs in all sizes and several on one connection, and what
// has come of it is not held back for the rest.
func TestLargeBodyComesAsItIs(t *testing.T) {
	text := []byte(strings.Repeat("0123456789abcdefghijklmnopqrstuvwxyz some text\n", 40_000))
	more := make(chan bool)
	eachWay(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n, _ := strconv.Atoi(r.URL.Path[1:])
		w.Header().Set("Content-Length", strconv.Itoa(n))
		if r.URL.RawQuery == "" {
			w.Write(text[:n])
			return
		}
		w.Write(text[:n-1])
		http.NewResponseController(w).Flush()
		<-more
		w.Write(text[n-1 : n])
	}), func(t *testing.T, w *world) {
		w.pass.Values = compile(t, "a-secret-that-is-not-there")
		for _, n := range []int{largeBody - 1, largeBody, largeBody + 1, bufferSize, 300_001, len(text), 5} {
			if _, got := w.get("/" + strconv.Itoa(n)); got != string(text[:n]) {
				t.Errorf("%d bytes came of %d", len(got), n)
			}
		}
		const n = 500_000
		res := w.do(w.request("GET", "/"+strconv.Itoa(n)+"?wait", nil))
		defer res.Body.Close()
		first := make([]byte, n-1)
		if _, err := io.ReadFull(res.Body, first); err != nil || !bytes.Equal(first, text[:n-1]) {
			t.Errorf("before the end: %v", err)
		}
		more <- true
		if rest := readAll(t, res.Body); rest != string(text[n-1:n]) {
			t.Errorf("the end: %q", rest)
		}
	})
}
