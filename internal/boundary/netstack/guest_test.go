package netstack

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

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

var (
	guestAddr   = netip.MustParseAddr("192.168.127.2")
	gatewayAddr = netip.MustParseAddr("192.168.127.1")
	elsewhere   = netip.MustParseAddr("198.18.0.7") // no address of ours: the guest's default route
	cardMAC     = mac{0x52, 0x54, 0x00, 0x12, 0x34, 0x56}
)

const patience = 10 * time.Second // for what must happen; nothing waits that long

// socketpair is a cable.
func socketpair(t testing.TB) (host, card net.Conn) {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var conns [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "cable")
		if conns[i], err = net.FileConn(f); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	return conns[0], conns[1]
}

// start gives a stack and the card's end of its cable.
func start(t testing.TB, o Options) (*Stack, net.Conn) {
	t.Helper()
	host, card := socketpair(t)
	o.Guest, o.Gateway = guestAddr, gatewayAddr
	s, err := New(host, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		card.Close()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s, card
}

// guest is another gVisor stack, as the operating system in the VM.
type guest struct {
	net   *stack.Stack
	link  *channel.Endpoint
	conn  net.Conn
	tasks sync.WaitGroup
}

func startGuest(t testing.TB, conn net.Conn) *guest {
	t.Helper()
	g := &guest{conn: conn, link: channel.New(4096, defaultMTU+ethernetSize, tcpip.LinkAddress(cardMAC[:]))}
	g.net = stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, arp.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4},
	})
	wait := tcpip.TCPTimeWaitTimeoutOption(0)
	g.net.SetTransportProtocolOption(tcp.ProtocolNumber, &wait)
	address := tcpip.ProtocolAddress{Protocol: ipv4.ProtocolNumber,
		AddressWithPrefix: tcpip.AddressWithPrefix{Address: tcpip.AddrFrom4(guestAddr.As4()), PrefixLen: 24}}
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
		{Destination: header.IPv4EmptySubnet, Gateway: tcpip.AddrFrom4(gatewayAddr.As4()), NIC: nicID},
	})
	ctx, cancel := context.WithCancel(context.Background())
	g.tasks.Go(g.receive)
	g.tasks.Go(func() { g.send(ctx) })
	t.Cleanup(func() {
		cancel()
		conn.Close()
		g.tasks.Wait()
		g.net.Destroy()
	})
	return g
}

func (g *guest) receive() {
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

func (g *guest) send(ctx context.Context) {
	for {
		pkt := g.link.ReadContext(ctx)
		if pkt == nil {
			return
		}
		slices := append([][]byte{binary.BigEndian.AppendUint32(nil, uint32(pkt.Size()))}, pkt.AsSlices()...)
		buffers := net.Buffers(slices)
		_, err := buffers.WriteTo(g.conn)
		pkt.DecRef()
		if err != nil {
			return
		}
	}
}

func (g *guest) dial(t testing.TB, to netip.AddrPort) (*gonet.TCPConn, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c, err := gonet.DialContextTCP(ctx, g.net, fullAddress(to.Addr(), to.Port()), ipv4.ProtocolNumber)
	if err == nil {
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(patience))
	} else if errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("dial %v was left to time out", to)
	}
	return c, err
}

func (g *guest) mustDial(t testing.TB, to netip.AddrPort) *gonet.TCPConn {
	t.Helper()
	c, err := g.dial(t, to)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (g *guest) dialUDP(t testing.TB, to netip.AddrPort) *gonet.UDPConn {
	t.Helper()
	a := fullAddress(to.Addr(), to.Port())
	c, err := gonet.DialUDP(g.net, nil, &a, ipv4.ProtocolNumber)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c
}

// card sends and receives frames as a guest that is no operating system.
type card struct {
	t    testing.TB
	conn net.Conn
	br   *bufio.Reader
}

func newCard(t testing.TB, conn net.Conn) *card {
	conn.SetDeadline(time.Now().Add(patience))
	return &card{t, conn, bufio.NewReader(conn)}
}

func (c *card) send(frame []byte) {
	c.t.Helper()
	if _, err := c.conn.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(frame))), frame...)); err != nil {
		c.t.Fatal(err)
	}
}

func (c *card) receive() []byte {
	c.t.Helper()
	var length [4]byte
	if _, err := io.ReadFull(c.br, length[:]); err != nil {
		c.t.Fatal(err)
	}
	frame := make([]byte, binary.BigEndian.Uint32(length[:]))
	if _, err := io.ReadFull(c.br, frame); err != nil {
		c.t.Fatal(err)
	}
	return frame
}

// ping asks the gateway and wants that its answer is what comes next: all that was
// sent before was not answered.
func (c *card) ping() {
	c.t.Helper()
	c.send(pingFrame(gatewayAddr, 7))
	got := c.receive()
	p := got[min(len(got), ethernetSize):]
	if len(p) < ipSize+icmpSize || p[9] != protocolICMP || p[ipSize] != icmpEchoReply || p[len(p)-1] != 7 {
		c.t.Fatalf("the answer is % x, want that of a ping", got)
	}
	if sum(0, p[:ipSize]) != 0xffff || sum(0, p[ipSize:]) != 0xffff {
		c.t.Fatalf("the answer's checksums are wrong: % x", got)
	}
}

// ethernetFrame is from the card to the gateway.
func ethernetFrame(etherType uint16, payload ...byte) []byte {
	frame := append(append([]byte{}, gatewayMAC[:]...), cardMAC[:]...)
	return append(binary.BigEndian.AppendUint16(frame, etherType), payload...)
}

func ipFrame(from, to netip.Addr, protocol byte, payload ...byte) []byte {
	p := append(make([]byte, ipSize), payload...)
	encodeIPv4(p, protocol, from, to)
	return ethernetFrame(etherIPv4, p...)
}

func pingFrame(to netip.Addr, last byte) []byte {
	p := []byte{0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, last}
	encodeICMP(p, icmpEcho, 0)
	return ipFrame(guestAddr, to, protocolICMP, p...)
}

func udpFrameTo(from uint16, to netip.AddrPort, payload ...byte) []byte {
	h := binary.BigEndian.AppendUint16(nil, from)
	h = binary.BigEndian.AppendUint16(h, to.Port())
	h = binary.BigEndian.AppendUint16(h, uint16(udpSize+len(payload)))
	return ipFrame(guestAddr, to.Addr(), protocolUDP, append(append(h, 0, 0), payload...)...)
}

func tcpFrameTo(from uint16, to netip.AddrPort, flags byte, sequence, ack uint32) []byte {
	h := make([]byte, tcpSize)
	binary.BigEndian.PutUint16(h[0:], from)
	binary.BigEndian.PutUint16(h[2:], to.Port())
	binary.BigEndian.PutUint32(h[4:], sequence)
	binary.BigEndian.PutUint32(h[8:], ack)
	h[12], h[13] = 5<<4, flags
	binary.BigEndian.PutUint16(h[14:], 0xffff)
	return ipFrame(guestAddr, to.Addr(), protocolTCP, h...)
}

func arpFrame(sender, target netip.Addr) []byte {
	p := append([]byte{}, arpRequest...)
	p = append(p, cardMAC[:]...)
	p = append(p, sender.AsSlice()...)
	p = append(p, 0, 0, 0, 0, 0, 0)
	frame := ethernetFrame(etherARP, append(p, target.AsSlice()...)...)
	copy(frame, broadcastMAC[:])
	return frame
}

// changed is a frame with bytes from offset on replaced.
func changed(frame []byte, offset int, b ...byte) []byte {
	frame = append([]byte{}, frame...)
	copy(frame[offset:], b)
	return frame
}
