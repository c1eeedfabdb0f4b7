package boundary

import (
	"context"
	"io"
	"net"
	"sync"
	"time"

	"creel/internal/audit/event"
)

// Port is one that is published: a listener on the host, and the port of the
// sandbox behind it. One of Stream and Datagram is set.
type Port struct {
	Stream   net.Listener
	Datagram net.PacketConn
	Guest    uint16
}

// touch puts the end of an idle flow off.
func (e *Edge) touch(c net.Conn) { c.SetReadDeadline(time.Now().Add(e.cfg.idle)) }

func (p Port) close() {
	if p.Stream != nil {
		p.Stream.Close()
	}
	if p.Datagram != nil {
		p.Datagram.Close()
	}
}

// maxInbound are connections from outside at once, of one port.
const maxInbound = 256

// publish lets connections in, each on record before it reaches the guest.
func (e *Edge) publish(ctx context.Context) {
	for _, p := range e.cfg.Ports {
		e.serving.Go(func() {
			if p.Stream != nil {
				e.admitStreams(ctx, p)
			} else {
				e.admitDatagrams(ctx, p)
			}
		})
	}
}

func (e *Edge) admitStreams(ctx context.Context, p Port) {
	var open sync.WaitGroup
	defer open.Wait()
	places := make(chan struct{}, maxInbound)
	for {
		c, err := p.Stream.Accept()
		if err != nil {
			return
		}
		places <- struct{}{}
		open.Go(func() {
			defer func() { <-places }()
			defer c.Close()
			e.admit(ctx, p, c)
		})
	}
}

func (e *Edge) admit(ctx context.Context, p Port, from net.Conn) {
	defer context.AfterFunc(ctx, func() { from.Close() })()
	if e.record(ctx, event.KindPublished, event.Published{From: from.RemoteAddr().String(), Port: p.Guest, Proto: "tcp"}) != nil {
		abort(from)
		return
	}
	guest, err := e.stack.Dial(ctx, "tcp", p.Guest)
	if err != nil {
		abort(from)
		return
	}
	defer guest.Close()
	defer context.AfterFunc(ctx, func() { guest.Close() })()
	var done sync.WaitGroup
	copyHalf := func(to, from net.Conn) {
		if _, err := io.Copy(struct{ io.Writer }{to}, struct{ io.Reader }{from}); err != nil {
			abort(to)
			abort(from)
			return
		}
		if half, ok := to.(interface{ CloseWrite() error }); ok {
			half.CloseWrite()
		}
	}
	done.Go(func() { copyHalf(guest, from) })
	done.Go(func() { copyHalf(from, guest) })
	done.Wait()
}

// admitDatagrams keeps one flow for each sender.
func (e *Edge) admitDatagrams(ctx context.Context, p Port) {
	var mu sync.Mutex
	peers := map[string]net.Conn{}
	var open sync.WaitGroup
	defer open.Wait()
	defer func() {
		mu.Lock()
		defer mu.Unlock()
		for _, c := range peers {
			c.Close()
		}
	}()
	buf := make([]byte, maxDatagram)
	for {
		n, from, err := p.Datagram.ReadFrom(buf)
		if err != nil {
			return
		}
		key := from.String()
		mu.Lock()
		c, full := peers[key], len(peers) >= maxInbound
		mu.Unlock()
		if c == nil {
			if full || e.record(ctx, event.KindPublished, event.Published{From: key, Port: p.Guest, Proto: "udp"}) != nil {
				continue
			}
			if c, err = e.stack.Dial(ctx, "udp", p.Guest); err != nil {
				continue
			}
			mu.Lock()
			peers[key] = c
			mu.Unlock()
			open.Go(func() {
				e.answerDatagrams(p.Datagram, from, c)
				mu.Lock()
				delete(peers, key)
				mu.Unlock()
				c.Close()
			})
		}
		e.touch(c)
		c.Write(buf[:n])
	}
}

// answerDatagrams carries what the sandbox answers one sender, until the flow
// is idle.
func (e *Edge) answerDatagrams(to net.PacketConn, peer net.Addr, from net.Conn) {
	buf := make([]byte, maxDatagram)
	for {
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		e.touch(from)
		if _, err := to.WriteTo(buf[:n], peer); err != nil {
			return
		}
	}
}
