package netstack

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

// Options of a stack. Zero means the default of the field.
type Options struct {
	Guest, Gateway netip.Addr       // IPv4; no default
	MAC            net.HardwareAddr // of the guest's card, used until it sends from another; default 52:54:00:12:34:56
	MTU            uint32           // bytes of an IP packet, at most and by default 65000

	// TCP answers a connection that the guest asks for, and UDP the first datagram
	// of a new flow; each call has a goroutine of its own, which [Stack.Close] waits for.
	// ctx ends with the stack. An attempt that is not accepted on return is
	// refused. nil: all are refused.
	TCP func(ctx context.Context, a *Attempt)
	UDP func(ctx context.Context, a *Attempt)

	// Knock is told of each attempt at a port of the gateway that nobody serves. It
	// must not block. nil: nobody is told.
	Knock func(to netip.AddrPort, udp bool)
	// MayUDP is asked about each datagram of no known flow before UDP is, to the gateway
	// excepted. It must be quick: the card waits for it. False, or nil: refused.
	MayUDP func(netip.AddrPort) bool

	MaxPending int           // TCP attempts not answered yet, default 256; more are refused
	MaxFlows   int           // TCP connections and UDP flows, attempts too, default 1024; more are refused
	UDPIdle    time.Duration // after which a UDP flow ends, default 60 s
}

func (o *Options) complete() error {
	if !o.Guest.Is4() || !o.Gateway.Is4() || o.Guest == o.Gateway {
		return fmt.Errorf("addresses %v and %v: want two of IPv4", o.Guest, o.Gateway)
	}
	if o.MAC == nil {
		o.MAC = net.HardwareAddr{0x52, 0x54, 0x00, 0x12, 0x34, 0x56}
	}
	if o.MTU == 0 {
		o.MTU = defaultMTU
	}
	if len(o.MAC) != len(mac{}) || o.MTU < 576 || o.MTU > defaultMTU {
		return fmt.Errorf("card %v with an MTU of %d: want 6 bytes, and 576 to %d", o.MAC, o.MTU, defaultMTU)
	}
	if o.MaxPending == 0 {
		o.MaxPending = defaultPending
	}
	if o.MaxFlows == 0 {
		o.MaxFlows = defaultFlows
	}
	if o.UDPIdle == 0 {
		o.UDPIdle = defaultIdle
	}
	return nil
}

// Stack is the host's end of one card. It is safe for use by several
// goroutines.
type Stack struct {
	opts      Options
	conn      net.Conn
	filter    filter
	link      *link
	net       *stack.Stack
	forwarder *tcp.Forwarder
	ctx       context.Context // parent of every attempt's
	cancel    context.CancelFunc
	done      chan struct{}  // closed when the connection has ended
	tasks     sync.WaitGroup // reader, writer and all attempts
	closing   sync.Once
	dropped   [reasons]atomic.Uint64
	mail      atomic.Int64  // bytes of datagrams that nobody has read yet
	held      atomic.Int64  // segments without payload
	room      chan struct{} // has one when held fell below half of its limit

	mu       sync.Mutex
	err      error
	ended    bool                                   // nothing new from here on
	pending  map[stack.TransportEndpointID]struct{} // TCP attempts
	flows    int
	udp      map[flowKey]*udpConn
	services map[uint16]*udpConn // UDP listeners on the gateway
}

const nicID = 1

// New takes charge of the card's connection. The caller ends the stack with
// [Stack.Close].
func New(conn net.Conn, o Options) (*Stack, error) {
	s := &Stack{conn: conn, done: make(chan struct{}), pending: map[stack.TransportEndpointID]struct{}{},
		room: make(chan struct{}, 1),
		udp:  map[flowKey]*udpConn{}, services: map[uint16]*udpConn{}}
	err := o.complete()
	if err == nil {
		s.opts = o
		s.filter = filter{guest: o.Guest.As4(), gateway: o.Gateway.As4(), mtu: int(o.MTU)}
		s.link = newLink(o.MTU, mac(o.MAC), &s.dropped[Overrun])
		err = s.newTCP()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make network stack: %w", err), conn.Close())
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.tasks.Go(func() { s.end(s.read()) })
	s.tasks.Go(func() { s.end(s.link.write(s.ctx.Done(), s.conn)) })
	return s, nil
}

// newTCP makes gVisor's part: it takes TCP to any address as its own, because
// all of them are on this side.
func (s *Stack) newTCP() error {
	s.net = stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol},
	})
	sack, tune := tcpip.TCPSACKEnabled(true), tcpip.TCPModerateReceiveBufferOption(true)
	wait, retries := tcpip.TCPTimeWaitTimeoutOption(timeWait), tcpip.TCPSynRetriesOption(synRetries)
	for _, o := range []tcpip.SettableTransportProtocolOption{
		&sack, &tune, &wait, &retries,
		&tcpip.TCPReceiveBufferSizeRangeOption{Min: tcp.MinBufferSize, Default: firstBuffer, Max: maxBuffer},
		&tcpip.TCPSendBufferSizeRangeOption{Min: tcp.MinBufferSize, Default: sendBuffer, Max: sendBuffer},
	} {
		if err := s.net.SetTransportProtocolOption(tcp.ProtocolNumber, o); err != nil {
			return fmt.Errorf("set %T: %s", o, err)
		}
	}
	gateway := tcpip.ProtocolAddress{Protocol: ipv4.ProtocolNumber, AddressWithPrefix: tcpip.AddrFrom4(s.opts.Gateway.As4()).WithPrefix()}
	for _, err := range []tcpip.Error{
		s.net.CreateNIC(nicID, s.link),
		s.net.AddProtocolAddress(nicID, gateway, stack.AddressProperties{}),
		s.net.SetPromiscuousMode(nicID, true),
		s.net.SetSpoofing(nicID, true),
	} {
		if err != nil {
			return fmt.Errorf("make network interface: %s", err)
		}
	}
	s.net.SetRouteTable([]tcpip.Route{{Destination: tcpip.AddressWithPrefix{PrefixLen: 0, Address: tcpip.AddrFrom4([4]byte{})}.Subnet(), NIC: nicID}})
	s.forwarder = tcp.NewForwarder(s.net, firstBuffer, s.opts.MaxPending+1, s.attempt)
	s.net.SetTransportProtocolHandler(tcp.ProtocolNumber, s.syn)
	return nil
}

// read takes frames from the card until its connection ends.
func (s *Stack) read() error {
	br := bufio.NewReaderSize(s.conn, 64<<10)
	limit := s.opts.MTU + ethernetSize + lengthSize // some cards count a checksum
	for {
		var length [lengthSize]byte
		if _, err := io.ReadFull(br, length[:]); err != nil {
			return fmt.Errorf("read from the card: %w", err)
		}
		n := binary.BigEndian.Uint32(length[:])
		if n > limit {
			return fmt.Errorf("read from the card: a frame of %d bytes, more than %d: its stream is broken", n, limit)
		}
		if n == 0 {
			s.drop(Malformed)
			continue
		}
		view := buffer.NewViewSize(int(n))
		if _, err := io.ReadFull(br, view.AsSlice()); err != nil {
			view.Release()
			return fmt.Errorf("read from the card: %w", err)
		}
		s.receive(view)
	}
}

// receive owns view, one frame.
func (s *Stack) receive(view *buffer.View) {
	frame := view.AsSlice()
	kind, end, why := s.filter.check(frame)
	if why != passed {
		s.drop(why)
		view.Release()
		return
	}
	s.link.learn(mac(frame[6:12]))
	if kind == kindTCP {
		o := stack.PacketBufferOptions{}
		if !tcpPayload(frame[:end]) {
			s.hold()
			o.OnRelease = s.letGo
		}
		view.CapLength(end)
		view.TrimFront(ethernetSize)
		o.Payload = buffer.MakeWithView(view)
		pkt := stack.NewPacketBuffer(o)
		s.link.dispatcher.DeliverNetworkPacket(ipv4.ProtocolNumber, pkt)
		pkt.DecRef()
		return
	}
	switch frame = frame[:end]; kind {
	case kindARP:
		s.link.sendOwn(answerARP(frame))
	case kindPing:
		s.link.sendOwn(s.answerPing(frame))
	case kindUDP:
		s.datagram(frame)
	}
	view.Release()
}

// hold counts a segment without payload, and waits while there are too many.
// Only the reader calls it.
func (s *Stack) hold() {
	if s.held.Add(1) <= maxHeld {
		return
	}
	timer := time.NewTimer(holdTime)
	defer timer.Stop()
	select {
	case <-s.room:
	case <-timer.C:
	case <-s.ctx.Done():
	}
}

// letGo is called when gVisor is through with one.
func (s *Stack) letGo() {
	if s.held.Add(-1) == maxHeld/2 {
		select {
		case s.room <- struct{}{}:
		default:
		}
	}
}

func (s *Stack) drop(why Reason) { s.dropped[why].Add(1) }

// Dropped is what was dropped so far.
func (s *Stack) Dropped() (d Dropped) {
	for i := range d {
		d[i] = s.dropped[i].Load()
	}
	return d
}

// take reserves one of MaxFlows; it is given back with release.
func (s *Stack) take() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.takeLocked()
}

func (s *Stack) takeLocked() bool {
	if s.ended {
		return false
	}
	if s.flows >= s.opts.MaxFlows {
		s.drop(Flood)
		return false
	}
	s.flows++
	return true
}

func (s *Stack) release() {
	s.mu.Lock()
	s.flows--
	s.mu.Unlock()
}

// Done is closed when the card's connection has ended, by either side.
func (s *Stack) Done() <-chan struct{} { return s.done }

// Err is why the card's connection has ended: nil while it has not, or when [Stack.Close]
// did it; an error that wraps io.EOF when the machine did.
func (s *Stack) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// end is the end of the connection. The first error counts.
func (s *Stack) end(err error) {
	s.mu.Lock()
	first := !s.ended
	if first {
		s.ended, s.err = true, err
	}
	s.mu.Unlock()
	if first {
		s.cancel()
		s.conn.Close() // the other loop ends
		close(s.done)
	}
}

// Close ends every flow, listener and attempt, and the connection. When it
// returns, no goroutine of the stack is left. It may be called again.
func (s *Stack) Close() error {
	s.closing.Do(func() {
		s.end(nil)
		s.closeUDP()
		s.abortUntilJoined()
		s.net.Destroy()
	})
	return nil
}

// abortUntilJoined aborts TCP endpoints until no attempt is left. Once is not
// enough: an attempt may be about to make its endpoint, and gVisor
// does not say when it has.
func (s *Stack) abortUntilJoined() {
	joined := make(chan struct{})
	go func() {
		s.tasks.Wait()
		close(joined)
	}()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		for _, e := range s.net.RegisteredEndpoints() {
			e.Abort()
		}
		select {
		case <-joined:
			return
		case <-tick.C:
		}
	}
}
