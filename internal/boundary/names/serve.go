package names

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

const (
	idleTimeout = 10 * time.Second // for one whole query over TCP, and for its answer
	maxConns    = 32               // TCP connections at once, with a buffer of maxQuery bytes each
)

// ServeUDP answers one query after the other until ctx ends or c is closed,
// which is no error. It closes c.
func (n *Names) ServeUDP(ctx context.Context, c net.PacketConn) error {
	defer closeWith(ctx, c)()
	buf := make([]byte, maxQuery+1)
	for {
		size, from, err := c.ReadFrom(buf)
		if err != nil {
			return ended(ctx, "read query", err)
		}
		if answer := n.Answer(buf[:size]); answer != nil {
			c.WriteTo(answer, from) // the guest asks again for what is lost
		}
	}
}

// ServeTCP answers the queries of each connection in order, until ctx ends or
// l is closed, which is no error. It closes l and every connection, and
// returns when all are done with. A connection too many is closed at once.
func (n *Names) ServeTCP(ctx context.Context, l net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	var tasks sync.WaitGroup
	defer tasks.Wait()
	defer cancel()
	defer closeWith(ctx, l)()
	free := make(chan struct{}, n.conns)
	for {
		c, err := l.Accept()
		if err != nil {
			return ended(ctx, "accept connection", err)
		}
		select {
		case free <- struct{}{}:
			tasks.Go(func() {
				defer func() { <-free }()
				n.serveConn(ctx, c)
			})
		default:
			c.Close()
		}
	}
}

// serveConn reads messages that each follow their length, RFC 1035 section
// 4.2.2. What is out of form ends the connection.
func (n *Names) serveConn(ctx context.Context, c net.Conn) {
	defer closeWith(ctx, c)()
	var length [2]byte
	buf := make([]byte, maxQuery)
	for {
		if err := c.SetDeadline(time.Now().Add(n.idle)); err != nil {
			return
		}
		if _, err := io.ReadFull(c, length[:]); err != nil {
			return
		}
		size := int(binary.BigEndian.Uint16(length[:]))
		if size > maxQuery {
			return
		}
		if _, err := io.ReadFull(c, buf[:size]); err != nil {
			return
		}
		answer := n.Answer(buf[:size])
		if answer == nil {
			return
		}
		framed := binary.BigEndian.AppendUint16(make([]byte, 0, 2+MaxAnswer), uint16(len(answer)))
		if _, err := c.Write(append(framed, answer...)); err != nil {
			return
		}
	}
}

// closeWith closes c when ctx ends, or when the function that it returns is
// called, which waits for that.
func closeWith(ctx context.Context, c io.Closer) (now func()) {
	ctx, cancel := context.WithCancel(ctx)
	var closing sync.WaitGroup
	closing.Go(func() {
		<-ctx.Done()
		c.Close()
	})
	return func() {
		cancel()
		closing.Wait()
	}
}

// ended tells an end that was asked for from a fault.
func ended(ctx context.Context, what string, err error) error {
	if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
		return nil
	}
	return fmt.Errorf("%s: %w", what, err)
}
