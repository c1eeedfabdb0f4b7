package boundary

import (
	"creel/internal/audit/event"
	"creel/internal/policy"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// maxCharge bounds what is charged at once, and so how far a budget can be
// overrun.
const maxCharge = 64 << 10

const (
	wideFlows  = 64
	narrowCopy = 16 << 10 // bytes that each direction of a further connection is copied with
)

// charging is a connection with whoever is outside that charges every byte.
type charging struct {
	net.Conn
	edge    *Edge
	flow    *flow
	out, in atomic.Int64
	failed  atomic.Pointer[error]
}

func (c *charging) Write(p []byte) (n int, err error) {
	for {
		part := p[n:min(n+maxCharge, len(p))]
		if d := c.edge.spend(c.flow, c.flow.charged(), policy.Usage{BytesOut: int64(len(part))}); !d.Allow {
			return n, c.fail(errBudget)
		}
		k, err := c.Conn.Write(part)
		n += k
		c.out.Add(int64(k))
		if err != nil || n == len(p) {
			return n, err
		}
	}
}

func (c *charging) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p[:min(len(p), maxCharge)])
	if n > 0 {
		if d := c.edge.spend(c.flow, c.flow.charged(), policy.Usage{BytesIn: int64(n)}); !d.Allow {
			return 0, c.fail(errBudget)
		}
		c.in.Add(int64(n))
	}
	return n, err
}

// fail keeps the first reason for the connection's end.
func (c *charging) fail(err error) error {
	c.failed.CompareAndSwap(nil, &err)
	return err
}

// Reset passes the wish on.
func (c *charging) Reset() { abort(c.Conn) }

// metered is a connection to the outside.
type metered struct {
	charging
	id      int64
	dialled policy.Request // what was allowed: Dial, or Connect where a proxy resolves
	host    string
	began   time.Time
	once    sync.Once
}

// Reset is Close, and tells the other side that it did not get everything.
func (m *metered) Reset() {
	if c, ok := m.Conn.(interface{ SetLinger(int) error }); ok {
		c.SetLinger(0)
	}
	m.Close()
}

// CloseWrite tells the other side that no more comes.
func (m *metered) CloseWrite() error {
	if c, ok := m.Conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return m.Close()
}

// CloseWrite tells the other side that no more comes.
func (c *charging) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return c.Close()
}

// Close also puts on record what has passed.
func (m *metered) Close() error {
	err := m.Conn.Close()
	m.once.Do(func() {
		defer m.flow.left(m) // last: the flow waits for the record as long as it knows of m
		m.edge.outside.Add(-1)
		d := event.Disconnected{
			ID: m.id, Host: m.host, Port: m.flow.req.Port, BytesOut: m.out.Load(), BytesIn: m.in.Load(),
			DurationMS: time.Since(m.began).Milliseconds(),
		}
		if why := m.failed.Load(); why != nil {
			d.Error = (*why).Error()
		}
		m.edge.note(event.KindDisconnected, d)
	})
	return err
}

// carry copies both directions until both have ended or one has failed.
func (e *Edge) carry(guest, outside net.Conn, up io.Reader) {
	var done sync.WaitGroup
	size, ends := e.flows.buffer(), [2]net.Conn{guest, outside}
	done.Go(func() { pass(outside, up, ends, make([]byte, size)) })
	done.Go(func() { pass(guest, outside, ends, make([]byte, size)) })
	done.Wait()
}

// pass copies one direction. Its end is told to the receiver; a failure ends
// both directions.
func pass(to io.Writer, from io.Reader, ends [2]net.Conn, buf []byte) {
	_, err := io.CopyBuffer(struct{ io.Writer }{to}, struct{ io.Reader }{from}, buf)
	if err == nil {
		if half, ok := to.(interface{ CloseWrite() error }); ok {
			err = half.CloseWrite()
		}
	}
	if err != nil {
		abort(ends[0])
		abort(ends[1])
	}
}

// abort closes a connection with a reset, where it can be.
func abort(c net.Conn) {
	switch r := c.(type) {
	case interface{ Reset() }:
		r.Reset()
		return
	case interface{ SetLinger(int) error }:
		r.SetLinger(0)
	}
	c.Close()
}
