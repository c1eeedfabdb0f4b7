package web

import (
	"io"
	"net"
	"sync"
)

// A TLS connection takes and gives a record at a time, with a system call for
// each. Of a body whose length is known, as much is passed at once as has come.
const (
	plainRecord = 16 << 10              // most of a body in a record
	wireRecord  = 5 + plainRecord + 256 // and most that it is on the wire, RFC 8446 5.2
	largeBody   = 2 * plainRecord       // smaller ones go as they come
)

// upstream is a connection to a destination, under TLS. It reads ahead while a
// large body comes, and is used by who reads from it alone.
type upstream struct {
	net.Conn
	buffers *buffers
	want    int64  // what is still to come of the body
	buf     []byte // nil while nothing is ahead
	ahead   []byte // of buf
}

// expect is called before a body of HTTP/1 is read.
func (u *upstream) expect(length int64, b *buffers) { u.want, u.buffers = length, b }

// Read implements [net.Conn].
func (u *upstream) Read(p []byte) (int, error) {
	if len(u.ahead) == 0 {
		if u.want <= 0 {
			return u.Conn.Read(p)
		}
		if u.buf == nil {
			u.buf = u.buffers.Get()
		}
		n, err := u.Conn.Read(u.buf)
		if n == 0 {
			return 0, err
		}
		u.ahead = u.buf[:n]
		u.want -= int64(n)
	}
	n := copy(p, u.ahead)
	u.ahead = u.ahead[n:]
	if len(u.ahead) == 0 && u.want <= 0 {
		u.buffers.Put(u.buf)
		u.buf = nil
	}
	return n, nil
}

// eager reads as much of a body as has come.
type eager struct {
	io.Reader
	from *upstream
}

func (e eager) Read(p []byte) (n int, err error) {
	for {
		m, err := e.Reader.Read(p[n:])
		n += m
		if err != nil || len(p)-n < plainRecord || len(e.from.ahead) < wireRecord {
			return n, err
		}
	}
}

// gathering is a guest's connection, under TLS. Records that are made of one
// write go out in one.
type gathering struct {
	net.Conn
	buffers *buffers

	mu   sync.Mutex
	hold bool
	buf  []byte
}

// Write implements [net.Conn].
func (g *gathering) Write(p []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.hold {
		return g.Conn.Write(p)
	}
	if len(g.buf)+len(p) > cap(g.buf) {
		if err := g.flush(); err != nil {
			return 0, err
		}
	}
	if len(p) > cap(g.buf) {
		return g.Conn.Write(p)
	}
	g.buf = append(g.buf, p...)
	return len(p), nil
}

func (g *gathering) flush() error {
	if len(g.buf) == 0 {
		return nil
	}
	_, err := g.Conn.Write(g.buf)
	g.buf = g.buf[:0]
	return err
}

// writeTo writes to the TLS connection above.
func (g *gathering) writeTo(above net.Conn, p []byte) (int, error) {
	g.mu.Lock()
	g.hold, g.buf = true, g.buffers.Get()[:0]
	g.mu.Unlock()
	n, err := above.Write(p)
	g.mu.Lock()
	defer g.mu.Unlock()
	if failed := g.flush(); err == nil && failed != nil {
		n, err = 0, failed
	}
	g.buffers.Put(g.buf)
	g.hold, g.buf = false, nil
	return n, err
}
