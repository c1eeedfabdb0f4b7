// Package framing stands between a guest's connection and net/http's server
// and lets HTTP/1 requests through only where every server would read the same
// length, the same shape and the same destination: what two servers can read
// differently is how requests are smuggled past the one that decides. [NewConn]
// puts a [Conn] around a connection; a [Fault] says what was refused.
//
// Bytes pass unchanged and as they come. What is held against the rules is each
// line, and the line feed that ends a wrong one never passes; since net/http
// acts on whole lines only, it never acts on a wrong one. Nothing is buffered
// but the beginning of a line.
//
// The package must not change a byte, must not decide where a request may go,
// and must not look at responses.
package framing

import (
	"fmt"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"time"
)

// Fault is why a connection's requests are not read any further. Its text has
// no bytes of the guest's.
type Fault struct{ Reason string }

func (f *Fault) Error() string { return "refused request: " + f.Reason }

// Conn is the guest's connection as net/http's server shall see it. From the
// first fault on, reads return the [*Fault], behind a few NULs. A server's answer
// comes at the right time by itself: it finishes the requests before the faulty
// one, reads on, answers 400 to the error, and closes. In a body, the handler's
// read has the fault, but for one in a trailer, of which net/http makes an error
// of its own: [Conn.Fault] has it then.
type Conn struct {
	net.Conn
	opaque atomic.Bool
	fault  atomic.Pointer[Fault]

	// For the one who reads.
	scanner scanner
	padding int // NULs still to be given before the fault
}

// NewConn makes a Conn of a connection at the beginning of its first request.
// Closing it closes c.
func NewConn(c net.Conn) *Conn {
	return &Conn{Conn: c, scanner: newScanner()}
}

// PassThrough ends the reading of HTTP: what comes from now on is of another
// protocol. It is called once the upstream has agreed to the switch and before
// the guest is told, from any goroutine. What a guest sent earlier than that
// was held against HTTP's rules, and a fault that it had stays.
func (c *Conn) PassThrough() { c.opaque.Store(true) }

// Fault is what was refused, nil while nothing was.
func (c *Conn) Fault() *Fault { return c.fault.Load() }

// Read implements [net.Conn].
func (c *Conn) Read(p []byte) (int, error) {
	if c.fault.Load() != nil {
		return c.refuse(p)
	}
	n, err := c.Conn.Read(p)
	if c.opaque.Load() {
		return n, err
	}
	good, fault := c.scanner.scan(p[:n])
	if fault == nil {
		return n, err
	}
	c.fault.Store(fault)
	if c.scanner.state <= field {
		c.padding = padding
	}
	if good > 0 {
		return good, nil
	}
	return c.refuse(p)
}

// refuse gives the padding and then the fault.
func (c *Conn) refuse(p []byte) (int, error) {
	n := min(len(p), c.padding)
	if n == 0 {
		return 0, c.fault.Load()
	}
	c.padding -= n
	clear(p[:n])
	return n, nil
}

// padding is how many NULs, which are in no request, net/http's server gets
// before a fault between bodies. While a handler runs, it watches for the
// client's end by a read of one byte, and an error would cancel the request that
// is being served, which came before the faulty one and is right. Behind a
// request it waits for four bytes, and answers no error that comes before them.
const padding = 4

// serverAnswer is what net/http's server writes, by itself and in one piece,
// after an error between requests. A handler's answer has more headers.
const serverAnswer = "HTTP/1.1 400 Bad Request\r\n" +
	"Content-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n400 Bad Request"

// Write implements [net.Conn]. The server's 400 for a fault is replaced by one
// that has the reason.
func (c *Conn) Write(p []byte) (int, error) {
	fault := c.fault.Load()
	if fault == nil || string(p) != serverAnswer {
		return c.Conn.Write(p)
	}
	if _, err := c.Conn.Write(fault.answer()); err != nil {
		return 0, err
	}
	c.linger()
	return len(p), nil
}

// Bounds of what is read behind a fault.
const (
	lingerTime  = 500 * time.Millisecond
	lingerBytes = 256 << 10
)

// linger reads what the guest still sends. Closing a connection with unread
// bytes resets it, and the reset may overtake the answer.
func (c *Conn) linger() {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		half.CloseWrite()
	}
	if c.Conn.SetReadDeadline(time.Now().Add(lingerTime)) == nil {
		io.CopyN(io.Discard, c.Conn, lingerBytes) // its errors are the connection's end
	}
}

// answer is the response to a fault. Reasons need no escapes in JSON.
func (f *Fault) answer() []byte {
	body := fmt.Sprintf(`{"error":"malformed","by":"creel","reason":%q,`+
		`"hint":"send plain HTTP/1.1 with one Host, one length and a path, or allow the port as tcp in a policy file"}`+"\n", f.Reason)
	var b strings.Builder
	fmt.Fprintf(&b, "HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nCache-Control: no-store\r\n"+
		"Content-Length: %d\r\nConnection: close\r\n\r\n%s", len(body), body)
	return []byte(b.String())
}
