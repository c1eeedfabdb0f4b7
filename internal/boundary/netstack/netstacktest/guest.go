// Package netstacktest is the guest's side of a card, for tests of whatever is
// on the host's side: [Cable] is what lies between, and [Guest] a network stack
// of its own, as the operating system in the VM has one. Programs must not
// import the package, and it must not import anything of ours.
package netstacktest

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"creel/internal/procs"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/channel"
	"gvisor.dev/gvisor/pkg/tcpip/link/ethernet"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
)

// The guest's network, as every sandbox has it.
var (
	Address = netip.MustParseAddr("192.168.127.2")
	Gateway = netip.MustParseAddr("192.168.127.1")
	MAC     = net.HardwareAddr{0x52, 0x54, 0x00, 0x12, 0x34, 0x56}

	gatewayMAC = net.HardwareAddr{0x5a, 0x94, 0xef, 0xe4, 0x0c, 0x01}
)

const (
	mtu   = 65000
	nicID = 1
)

// Patience is for what must happen; nothing waits that long.
const Patience = 10 * time.Second

// Cable is a pair of connections, the host's end and the card's. The caller
// closes both.
func Cable(t testing.TB) (host, card net.Conn) {
	t.Helper()
	host, card, err := procs.Conns()
	if err != nil {
		t.Fatal(err)
	}
	return host, card
}

// Guest is a network stack behind a card.
type Guest struct {
	net     *stack.Stack
	link    *channel.Endpoint
	writing sync.Mutex // one frame at a time
	conn    net.Conn
	cancel  context.CancelFunc
	tasks   sync.WaitGroup
	closing sync.Once
}

// Start puts a guest behind the card's end of a cable, until the test ends.
func Start(t testing.TB, card net.Conn) *Guest {
	t.Helper()
	g := &Guest{conn: card, link: channel.New(4096, mtu+header.EthernetMinimumSize, tcpip.LinkAddress(MAC))}
	g.net = stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, arp.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4},
	})
	wait := tcpip.TCPTimeWaitTimeoutOption(0)
	g.net.SetTransportProtocolOption(tcp.ProtocolNumber, &wait)
	address := tcpip.ProtocolAddress{Protocol: ipv4.ProtocolNumber,
		AddressWithPrefix: tcpip.AddressWithPrefix{Address: tcpip.AddrFrom4(Address.As4()), PrefixLen: 24}}
	for _, err := range []tcpip.Error{
		g.net.CreateNIC(nicID, ethernet.New(g.link)),
		g.net.AddProtocolAddress(nicID, address, stack.AddressProperties{}),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	g.net.SetRouteTable([]tcpip.Route{
		{Destination: address.AddressWithPrefix.Subnet(), NIC: nicID},
		{Destination: header.IPv4EmptySubnet, Gateway: tcpip.AddrFrom4(Gateway.As4()), NIC: nicID},
	})
	ctx, cancel := context.WithCancel(context.Background())
	g.cancel = cancel
	g.tasks.Go(g.receive)
	g.tasks.Go(func() { g.send(ctx) })
	t.Cleanup(g.Close)
	return g
}

// Close ends the guest at once, as the end of its VM does. It may be called
// again.
func (g *Guest) Close() {
	g.closing.Do(func() {
		g.cancel()
		g.conn.Close()
		g.tasks.Wait()
		g.net.Destroy()
	})
}

func (g *Guest) receive() {
	br := bufio.NewReaderSize(g.conn, 256<<10)
	for {
		var length [4]byte
		if _, err := io.ReadFull(br, length[:]); err != nil {
			return
		}
		v := buffer.NewViewSize(int(binary.BigEndian.Uint32(length[:])))
		if _, err := io.ReadFull(br, v.AsSlice()); err != nil {
			return
		}
		pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithView(v)})
		g.link.InjectInbound(0, pkt)
		pkt.DecRef()
	}
}

func (g *Guest) send(ctx context.Context) {
	for {
		pkt := g.link.ReadContext(ctx)
		if pkt == nil {
			return
		}
		err := g.write(pkt.Size(), pkt.AsSlices())
		pkt.DecRef()
		if err != nil {
			return
		}
	}
}

func (g *Guest) write(size int, parts [][]byte) error {
	buffers := append(net.Buffers{binary.BigEndian.AppendUint32(nil, uint32(size))}, parts...)
	g.writing.Lock()
	defer g.writing.Unlock()
	_, err := buffers.WriteTo(g.conn)
	return err
}

// Inject sends a frame that the stack would not: hostile guests have none.
func (g *Guest) Inject(frame []byte) error { return g.write(len(frame), [][]byte{frame}) }

func full(a netip.AddrPort) tcpip.FullAddress {
	return tcpip.FullAddress{NIC: nicID, Addr: tcpip.AddrFrom4(a.Addr().As4()), Port: a.Port()}
}

// Dial connects over TCP. That it is left to time out fails the test.
func (g *Guest) Dial(t testing.TB, to netip.AddrPort) (*gonet.TCPConn, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	c, err := g.DialContext(ctx, to)
	if errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("dial %v was left to time out", to)
	}
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(Patience))
	return c, nil
}

// DialContext is Dial for use by other goroutines than the test's; the caller
// closes the connection.
func (g *Guest) DialContext(ctx context.Context, to netip.AddrPort) (*gonet.TCPConn, error) {
	return gonet.DialContextTCP(ctx, g.net, full(to), ipv4.ProtocolNumber)
}

// ResetAll ends every TCP connection with a reset.
func (g *Guest) ResetAll() {
	for _, e := range g.net.RegisteredEndpoints() {
		e.Abort()
	}
}

// MustDial is Dial for what has to succeed.
func (g *Guest) MustDial(t testing.TB, to netip.AddrPort) *gonet.TCPConn {
	t.Helper()
	c, err := g.Dial(t, to)
	if err != nil {
		t.Fatalf("dial %v: %v", to, err)
	}
	return c
}

// DialUDP opens a socket for one destination.
func (g *Guest) DialUDP(t testing.TB, to netip.AddrPort) *gonet.UDPConn {
	t.Helper()
	a := full(to)
	c, err := gonet.DialUDP(g.net, nil, &a, ipv4.ProtocolNumber)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(Patience))
	return c
}

// AwaitRefusal reads until the socket hears that nobody is there. It reads again
// and again because gonet does not notice an error while it waits.
func AwaitRefusal(t testing.TB, c *gonet.UDPConn) {
	t.Helper()
	for range 1000 {
		c.SetReadDeadline(time.Now().Add(Patience / 1000))
		_, err := c.Read(make([]byte, 1))
		if err == nil {
			t.Error("the datagram was answered")
			return
		}
		if strings.Contains(err.Error(), "refused") {
			return
		}
	}
	t.Error("the datagram was not refused")
}

// Listen serves a TCP port of the guest.
func (g *Guest) Listen(t testing.TB, port uint16) net.Listener {
	t.Helper()
	l, err := gonet.ListenTCP(g.net, full(netip.AddrPortFrom(Address, port)), ipv4.ProtocolNumber)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// ListenPacket serves a UDP port of the guest.
func (g *Guest) ListenPacket(t testing.TB, port uint16) net.PacketConn {
	t.Helper()
	a := full(netip.AddrPortFrom(Address, port))
	c, err := gonet.DialUDP(g.net, &a, nil, ipv4.ProtocolNumber)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// SYN is a frame that asks for a TCP connection from a port of the guest's.
func SYN(from uint16, to netip.AddrPort) []byte {
	frame := make([]byte, header.EthernetMinimumSize+header.IPv4MinimumSize+header.TCPMinimumSize)
	header.Ethernet(frame).Encode(&header.EthernetFields{
		SrcAddr: tcpip.LinkAddress(MAC), DstAddr: tcpip.LinkAddress(gatewayMAC), Type: header.IPv4ProtocolNumber,
	})
	ip := header.IPv4(frame[header.EthernetMinimumSize:])
	src, dst := tcpip.AddrFrom4(Address.As4()), tcpip.AddrFrom4(to.Addr().As4())
	ip.Encode(&header.IPv4Fields{TotalLength: uint16(len(ip)), TTL: 64, Protocol: uint8(tcp.ProtocolNumber), SrcAddr: src, DstAddr: dst})
	ip.SetChecksum(^ip.CalculateChecksum())
	segment := header.TCP(ip.Payload())
	segment.Encode(&header.TCPFields{
		SrcPort: from, DstPort: to.Port(), SeqNum: 1, DataOffset: header.TCPMinimumSize, Flags: header.TCPFlagSyn, WindowSize: 0xffff,
	})
	segment.SetChecksum(^segment.CalculateChecksum(header.PseudoHeaderChecksum(tcp.ProtocolNumber, src, dst, header.TCPMinimumSize)))
	return frame
}

// Resolve asks the gateway for a name's address, and gives the answer's code
// where there is none.
func (g *Guest) Resolve(t testing.TB, name string) (netip.Addr, error) {
	t.Helper()
	c := g.DialUDP(t, netip.AddrPortFrom(Gateway, 53))
	defer c.Close()
	query, err := question(name)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("ask for %q: %w", name, err)
	}
	if _, err := c.Write(query); err != nil {
		t.Fatal(err)
	}
	answer := make([]byte, 2048)
	n, err := c.Read(answer)
	if err != nil {
		t.Fatalf("ask for %q: no answer: %v", name, err)
	}
	return addressIn(answer[:n])
}

// MustResolve is Resolve for what has to succeed.
func (g *Guest) MustResolve(t testing.TB, name string) netip.Addr {
	t.Helper()
	a, err := g.Resolve(t, name)
	if err != nil {
		t.Fatalf("ask for %q: %v", name, err)
	}
	return a
}
