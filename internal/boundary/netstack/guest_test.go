package netstack

import (
	"bufio"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"creel/internal/boundary/netstack/netstacktest"
)

var (
	guestAddr   = netstacktest.Address
	gatewayAddr = netstacktest.Gateway
	elsewhere   = netip.MustParseAddr("198.18.0.7") // no address of ours: the guest's default route
	cardMAC     = mac(netstacktest.MAC)
)

const patience = netstacktest.Patience

// start gives a stack and the card's end of its cable.
func start(t testing.TB, o Options) (*Stack, net.Conn) {
	t.Helper()
	host, card := netstacktest.Cable(t)
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

// startGuest is another gVisor stack, as the operating system in the VM.
func startGuest(t testing.TB, card net.Conn) *netstacktest.Guest { return netstacktest.Start(t, card) }

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
