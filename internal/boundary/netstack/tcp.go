package netstack

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// Attempt is one connection, or UDP flow, that the guest asks for and that
// nobody has answered yet.
type Attempt struct {
	source, destination netip.AddrPort
	answered            atomic.Bool
	accept              func() (net.Conn, error)
	refuse              func()
}

// Source is the guest's end.
func (a *Attempt) Source() netip.AddrPort { return a.source }

// Destination is whom the guest asked for.
func (a *Attempt) Destination() netip.AddrPort { return a.destination }

// Accept answers the guest and waits until it is connected. For TCP the
// connection is a [*TCPConn]. The caller closes it.
func (a *Attempt) Accept() (net.Conn, error) {
	if a.answered.Swap(true) {
		return nil, errors.New("accept an attempt that was answered before")
	}
	return a.accept()
}

// Refuse tells the guest at once that there is nobody: with a reset, or for
// UDP with port unreachable. It does nothing after an answer.
func (a *Attempt) Refuse() {
	if !a.answered.Swap(true) {
		a.refuse()
	}
}

func addrPort(a tcpip.Address, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4(a.As4()), port)
}

// syn sees each TCP packet of no known connection. Those that it does not
// take are answered with a reset by gVisor. Only the reader calls it.
func (s *Stack) syn(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
	flags := header.TCP(pkt.TransportHeader().Slice()).Flags()
	if flags&(header.TCPFlagSyn|header.TCPFlagAck|header.TCPFlagRst) != header.TCPFlagSyn {
		return false
	}
	if to := addrPort(id.LocalAddress, id.LocalPort); to.Addr() == s.opts.Gateway {
		s.knock(to, false)
		return false
	}
	if s.opts.TCP == nil {
		return false
	}
	s.mu.Lock()
	_, again := s.pending[id]
	full := len(s.pending) >= s.opts.MaxPending
	if again || full || !s.takeLocked() {
		s.mu.Unlock()
		if full && !again {
			s.drop(Flood)
		}
		return again // a repeated SYN waits for the answer to the first
	}
	s.pending[id] = struct{}{}
	s.tasks.Add(1)
	s.mu.Unlock()
	// It starts attempt for certain, as its limit is never met: or it
	// found the packet malformed.
	if !s.forwarder.HandlePacket(id, pkt) {
		s.forget(id)
		s.release()
		s.tasks.Done()
		return false
	}
	return true
}

// knock tells of what was sent to a port of the gateway that nobody serves.
func (s *Stack) knock(to netip.AddrPort, udp bool) {
	if s.opts.Knock != nil {
		s.opts.Knock(to, udp)
	}
}

func (s *Stack) forget(id stack.TransportEndpointID) {
	s.mu.Lock()
	delete(s.pending, id)
	s.mu.Unlock()
}

// attempt has a goroutine of its own.
func (s *Stack) attempt(r *tcp.ForwarderRequest) {
	defer s.tasks.Done()
	id := r.ID()
	complete := func(reset bool) {
		r.Complete(reset)
		s.forget(id)
	}
	a := &Attempt{source: addrPort(id.RemoteAddress, id.RemotePort), destination: addrPort(id.LocalAddress, id.LocalPort)}
	a.refuse = func() {
		complete(true)
		s.release()
	}
	a.accept = func() (net.Conn, error) {
		c := s.newTCPConn(&waiter.Queue{})
		ep, err := r.CreateEndpoint(c.queue)
		complete(err != nil)
		if err != nil {
			c.abandon()
			return nil, fmt.Errorf("accept %v: %s", a.destination, err)
		}
		return c.start(ep), nil
	}
	defer a.Refuse()
	s.opts.TCP(s.ctx, a)
}

// TCPConn is one connection with the guest. Beyond net.Conn it can be closed
// by halves and reset.
type TCPConn struct {
	*gonet.TCPConn
	s        *Stack
	ep       tcpip.Endpoint
	queue    *waiter.Queue
	hangUp   waiter.Entry
	closed   atomic.Bool // ep is set by then
	released sync.Once
}

// newTCPConn is a connection that counts as one of MaxFlows until it is closed and its
// endpoint is gone: a guest that never finishes what was closed pays for it.
func (s *Stack) newTCPConn(queue *waiter.Queue) *TCPConn {
	c := &TCPConn{s: s, queue: queue}
	c.hangUp = waiter.NewFunctionEntry(waiter.EventHUp, func(waiter.EventMask) { c.settle() })
	queue.EventRegister(&c.hangUp)
	return c
}

func (c *TCPConn) start(ep tcpip.Endpoint) *TCPConn {
	c.ep, c.TCPConn = ep, gonet.NewTCPConn(c.queue, ep)
	c.s.mu.Lock()
	flows := c.s.flows
	c.s.mu.Unlock()
	switch options := ep.SocketOptions(); {
	case flows > wideFlows:
		options.SetReceiveBufferSize(narrowBuffer, true)
		options.SetSendBufferSize(narrowBuffer, true)
	case flows > fastFlows:
		options.SetReceiveBufferSize(wideBuffer, true)
		options.SetSendBufferSize(wideSend, true)
	}
	return c
}

// abandon is for a connection that did not come about.
func (c *TCPConn) abandon() {
	c.queue.EventUnregister(&c.hangUp)
	c.released.Do(c.s.release)
}

// settle gives the flow back when both sides are through with it.
func (c *TCPConn) settle() {
	if !c.closed.Load() {
		return
	}
	switch tcp.EndpointState(c.ep.State()) {
	case tcp.StateClose, tcp.StateError, tcp.StateTimeWait:
		c.released.Do(c.s.release)
	}
}

// Close sends what was written, and then the end. What arrives afterwards, or
// was not read, is answered with a reset.
func (c *TCPConn) Close() error {
	if c.closed.Swap(true) {
		return net.ErrClosed
	}
	c.ep.Close()
	c.settle()
	return nil
}

// Reset ends the connection with a reset and drops what is under way. It may
// follow Close.
func (c *TCPConn) Reset() {
	first := !c.closed.Swap(true)
	c.ep.Abort()
	if first {
		c.ep.Close()
	}
	c.settle()
}

// Read returns io.EOF behind all that the guest sent.
func (c *TCPConn) Read(b []byte) (int, error) {
	n, err := c.TCPConn.Read(b)
	return n, c.translate(err)
}

// Write waits while the guest does not read.
func (c *TCPConn) Write(b []byte) (int, error) {
	n, err := c.TCPConn.Write(b)
	return n, c.translate(err)
}

// translate makes gonet's errors those of package net.
func (c *TCPConn) translate(err error) error {
	var timeout net.Error
	switch {
	case err == nil:
		return nil
	case c.closed.Load():
		return net.ErrClosed
	case errors.As(err, &timeout) && timeout.Timeout():
		return os.ErrDeadlineExceeded
	}
	return err
}

// listener is a TCP service on the gateway.
type listener struct {
	s     *Stack
	ep    tcpip.Endpoint
	queue *waiter.Queue
	port  uint16
}

func fullAddress(a netip.Addr, port uint16) tcpip.FullAddress {
	return tcpip.FullAddress{NIC: nicID, Addr: tcpip.AddrFrom4(a.As4()), Port: port}
}

// ListenTCP serves a port of the gateway. The guest's connections to it are no
// attempts; they count as flows. Its Close does not close them.
func (s *Stack) ListenTCP(port uint16) (net.Listener, error) {
	l := &listener{s: s, queue: &waiter.Queue{}, port: port}
	if s.ctx.Err() != nil {
		return nil, fmt.Errorf("listen on port %d: %w", port, net.ErrClosed)
	}
	ep, err := s.net.NewEndpoint(tcp.ProtocolNumber, ipv4.ProtocolNumber, l.queue)
	if err != nil {
		return nil, fmt.Errorf("listen on port %d: %s", port, err)
	}
	if err = ep.Bind(fullAddress(s.opts.Gateway, port)); err == nil {
		err = ep.Listen(backlog)
	}
	if err != nil {
		ep.Close()
		return nil, fmt.Errorf("listen on port %d: %s", port, err)
	}
	l.ep = ep
	return l, nil
}

func (l *listener) Addr() net.Addr {
	return net.TCPAddrFromAddrPort(netip.AddrPortFrom(l.s.opts.Gateway, l.port))
}

func (l *listener) Close() error {
	l.ep.Close()
	return nil
}

func (l *listener) Accept() (net.Conn, error) {
	entry, arrived := waiter.NewChannelEntry(waiter.ReadableEvents)
	l.queue.EventRegister(&entry)
	defer l.queue.EventUnregister(&entry)
	for {
		ep, queue, err := l.ep.Accept(nil)
		if _, wait := err.(*tcpip.ErrWouldBlock); wait {
			select {
			case <-arrived:
			case <-l.s.ctx.Done():
				return nil, net.ErrClosed
			}
			continue
		}
		if err != nil { // the only one: the listener was closed
			return nil, net.ErrClosed
		}
		if l.s.take() {
			return l.s.newTCPConn(queue).start(ep), nil
		}
		ep.Abort()
		ep.Close()
	}
}

// Dial connects the gateway with a port of the guest; network is "tcp" or
// "udp".
func (s *Stack) Dial(ctx context.Context, network string, port uint16) (net.Conn, error) {
	var conn net.Conn
	var err error
	switch network {
	case "tcp":
		conn, err = s.dialTCP(ctx, port)
	case "udp":
		conn, err = s.dialUDP(port)
	default:
		err = net.UnknownNetworkError(network)
	}
	if err != nil {
		return nil, fmt.Errorf("dial port %d of the guest: %w", port, err)
	}
	return conn, nil
}

func (s *Stack) dialTCP(ctx context.Context, port uint16) (*TCPConn, error) {
	if !s.take() {
		return nil, s.noFlow()
	}
	c := s.newTCPConn(&waiter.Queue{})
	ep, err := s.net.NewEndpoint(tcp.ProtocolNumber, ipv4.ProtocolNumber, c.queue)
	if err != nil {
		c.abandon()
		return nil, errors.New(err.String())
	}
	entry, connected := waiter.NewChannelEntry(waiter.WritableEvents)
	c.queue.EventRegister(&entry)
	defer c.queue.EventUnregister(&entry)
	give := func(err error) (*TCPConn, error) {
		ep.Abort()
		ep.Close()
		c.abandon()
		return nil, err
	}
	if err = ep.Bind(fullAddress(s.opts.Gateway, 0)); err == nil {
		err = ep.Connect(fullAddress(s.opts.Guest, port))
	}
	if _, wait := err.(*tcpip.ErrConnectStarted); wait {
		select {
		case <-ctx.Done():
			return give(ctx.Err())
		case <-s.ctx.Done():
			return give(net.ErrClosed)
		case <-connected:
		}
		err = ep.LastError()
	}
	if err != nil {
		return give(errors.New(err.String()))
	}
	return c.start(ep), nil
}

// noFlow is why there was none to take.
func (s *Stack) noFlow() error {
	if s.ctx.Err() != nil {
		return net.ErrClosed
	}
	return fmt.Errorf("%d connections are open, and no more are allowed", s.opts.MaxFlows)
}
