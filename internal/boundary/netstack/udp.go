package netstack

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"
)

// flowKey is a UDP flow: the guest's port, and the end that is ours.
type flowKey struct {
	guest uint16
	peer  netip.AddrPort
}

// letter is a datagram from the guest.
type letter struct {
	from    netip.AddrPort
	payload []byte
}

func (l *letter) cost() int64 { return int64(len(l.payload)) + letterCost }

// udpConn is a UDP flow, or a service on the gateway, which has no idle timer
// and any port of the guest as its other end. Writes never wait.
type udpConn struct {
	s        *Stack
	local    netip.AddrPort
	remote   netip.AddrPort // port 0: a service
	in       chan letter
	done     chan struct{}
	deadline deadline

	mu     sync.Mutex
	closed bool
	idle   *time.Timer // nil: a service
}

func (s *Stack) newUDP(local, remote netip.AddrPort) *udpConn {
	c := &udpConn{s: s, local: local, remote: remote, in: make(chan letter, maxLetters), done: make(chan struct{})}
	c.deadline.passed = make(chan struct{})
	return c
}

// datagram takes one from the guest. Only the reader calls it.
func (s *Stack) datagram(frame []byte) {
	from, to := addressesOf(frame)
	s.mu.Lock()
	c := s.udp[flowKey{from.Port(), to}]
	if c == nil && to.Addr() == s.opts.Gateway {
		c = s.services[to.Port()]
	}
	s.mu.Unlock()
	head := frame[ethernetSize:][:ipSize+udpSize]
	if c == nil {
		if c = s.newAttempt(from, to, head); c == nil {
			s.link.sendOwn(s.portUnreachable(head, to.Addr()))
			return
		}
	}
	c.deliver(letter{from, bytes.Clone(frame[ethernetSize+ipSize+udpSize:])})
}

// newAttempt is a flow that UDP has yet to accept; nil: refuse it.
func (s *Stack) newAttempt(from, to netip.AddrPort, head []byte) *udpConn {
	if to.Addr() == s.opts.Gateway {
		s.knock(to, true)
		return nil
	}
	if s.opts.UDP == nil || s.opts.MayUDP == nil || !s.opts.MayUDP(to) {
		return nil
	}
	c := s.newUDP(to, from)
	if !s.openFlow(c) {
		return nil
	}
	head = bytes.Clone(head)
	a := &Attempt{source: from, destination: to}
	a.accept = func() (net.Conn, error) { return c, nil }
	a.refuse = func() {
		c.Close()
		s.link.sendOwn(s.portUnreachable(head, to.Addr()))
	}
	s.tasks.Go(func() {
		defer a.Refuse()
		s.opts.UDP(s.ctx, a)
	})
	return c
}

// openFlow makes c known, unless it would be one too many.
func (s *Stack) openFlow(c *udpConn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.openFlowLocked(c)
}

func (s *Stack) openFlowLocked(c *udpConn) bool {
	if !s.takeLocked() {
		return false
	}
	s.udp[c.key()] = c
	c.idle = time.AfterFunc(s.opts.UDPIdle, func() { c.Close() })
	return true
}

func (c *udpConn) key() flowKey { return flowKey{c.remote.Port(), c.local} }

// deliver queues a letter, or drops it when too much is unread.
func (c *udpConn) deliver(l letter) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return
	}
	if c.s.mail.Add(l.cost()) <= maxMail {
		select {
		case c.in <- l:
			c.touch()
			return
		default:
		}
	}
	c.s.mail.Add(-l.cost())
	c.s.drop(Unread)
}

// touch starts the idle time anew.
func (c *udpConn) touch() {
	if c.idle != nil {
		c.idle.Reset(c.s.opts.UDPIdle)
	}
}

func (c *udpConn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return net.ErrClosed
	}
	c.closed = true
	close(c.done)
	for len(c.in) > 0 { // a reader may take one first
		select {
		case l := <-c.in:
			c.s.mail.Add(-l.cost())
		default:
		}
	}
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	if c.remote.Port() == 0 {
		delete(c.s.services, c.local.Port())
		return nil
	}
	c.idle.Stop()
	delete(c.s.udp, c.key())
	c.s.flows--
	return nil
}

func (c *udpConn) Read(b []byte) (int, error) {
	n, _, err := c.ReadFrom(b)
	return n, err
}

// ReadFrom cuts what is longer than b, as sockets do. After the idle time it
// returns net.ErrClosed.
func (c *udpConn) ReadFrom(b []byte) (int, net.Addr, error) {
	passed := c.deadline.channel()
	select {
	case <-c.done:
		return 0, nil, net.ErrClosed
	case <-passed:
		return 0, nil, os.ErrDeadlineExceeded
	default:
	}
	select {
	case <-c.done:
		return 0, nil, net.ErrClosed
	case <-passed:
		return 0, nil, os.ErrDeadlineExceeded
	case l := <-c.in:
		c.s.mail.Add(-l.cost())
		return copy(b, l.payload), net.UDPAddrFromAddrPort(l.from), nil
	}
}

func (c *udpConn) Write(b []byte) (int, error) { return c.send(b, c.remote) }

// WriteTo reaches the guest only.
func (c *udpConn) WriteTo(b []byte, to net.Addr) (int, error) {
	a, ok := to.(*net.UDPAddr)
	if !ok || a.AddrPort().Addr().Unmap() != c.s.opts.Guest {
		return 0, fmt.Errorf("write to %v: it is not the guest", to)
	}
	return c.send(b, netip.AddrPortFrom(c.s.opts.Guest, a.AddrPort().Port()))
}

func (c *udpConn) send(b []byte, to netip.AddrPort) (int, error) {
	if limit := int(c.s.opts.MTU) - ipSize - udpSize; len(b) > limit {
		return 0, fmt.Errorf("write datagram of %d bytes: more than %d", len(b), limit)
	}
	if to.Port() == 0 {
		return 0, errors.New("write datagram: no port to send it to")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return 0, net.ErrClosed
	}
	c.touch()
	c.s.link.sendOwn(c.s.udpFrame(c.local, to, b))
	return len(b), nil
}

func (c *udpConn) LocalAddr() net.Addr  { return net.UDPAddrFromAddrPort(c.local) }
func (c *udpConn) RemoteAddr() net.Addr { return net.UDPAddrFromAddrPort(c.remote) }

func (c *udpConn) SetDeadline(t time.Time) error     { return c.SetReadDeadline(t) }
func (c *udpConn) SetWriteDeadline(time.Time) error  { return nil }
func (c *udpConn) SetReadDeadline(t time.Time) error { c.deadline.set(t); return nil }

// ListenUDP serves a port of the gateway.
func (s *Stack) ListenUDP(port uint16) (net.PacketConn, error) {
	c := s.newUDP(netip.AddrPortFrom(s.opts.Gateway, port), netip.AddrPortFrom(s.opts.Guest, 0))
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.ended:
		return nil, fmt.Errorf("listen on port %d: %w", port, net.ErrClosed)
	case port == 0 || s.services[port] != nil:
		return nil, fmt.Errorf("listen on port %d: it is taken", port)
	}
	s.services[port] = c
	return c, nil
}

// dialUDP is a flow from a port of the gateway that nobody else uses.
func (s *Stack) dialUDP(port uint16) (net.Conn, error) {
	const first, ports = 49152, 16384 // RFC 6335, dynamic ports
	to := netip.AddrPortFrom(s.opts.Guest, port)
	start := rand.IntN(ports)
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range ports {
		local := netip.AddrPortFrom(s.opts.Gateway, uint16(first+(start+i)%ports))
		if s.udp[flowKey{port, local}] != nil || s.services[local.Port()] != nil {
			continue
		}
		if c := s.newUDP(local, to); s.openFlowLocked(c) {
			return c, nil
		}
		return nil, s.noFlow()
	}
	return nil, errors.New("every port of the gateway is in use")
}

func (s *Stack) closeUDP() {
	s.mu.Lock()
	var all []*udpConn
	for _, c := range s.udp {
		all = append(all, c)
	}
	for _, c := range s.services {
		all = append(all, c)
	}
	s.mu.Unlock()
	for _, c := range all {
		c.Close()
	}
}

// deadline is a point in time that may be moved.
type deadline struct {
	mu     sync.Mutex
	passed chan struct{} // closed when it has
	timer  *time.Timer
}

func (d *deadline) channel() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.passed
}

func (d *deadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timer != nil && !d.timer.Stop() {
		<-d.passed // its function is about to close it
	}
	d.timer = nil
	select {
	case <-d.passed:
		d.passed = make(chan struct{})
	default:
	}
	if t.IsZero() {
		return
	}
	passed := d.passed
	if wait := time.Until(t); wait > 0 {
		d.timer = time.AfterFunc(wait, func() { close(passed) })
	} else {
		close(passed)
	}
}
