package netstack

import (
	"encoding/binary"
	"net/netip"
)

// Frames that this package makes itself begin with their length, as the wire
// wants it.
const lengthSize = 4

// newFrame has room for size bytes behind the Ethernet header, which is
// complete.
func newFrame(to mac, etherType uint16, size int) (frame, body []byte) {
	frame = make([]byte, lengthSize+ethernetSize+size)
	encodeLink(frame, to, etherType)
	return frame, frame[lengthSize+ethernetSize:]
}

// encodeLink writes length and Ethernet header of a frame.
func encodeLink(frame []byte, to mac, etherType uint16) {
	binary.BigEndian.PutUint32(frame, uint32(len(frame)-lengthSize))
	copy(frame[lengthSize:], to[:])
	copy(frame[lengthSize+6:], gatewayMAC[:])
	binary.BigEndian.PutUint16(frame[lengthSize+12:], etherType)
}

// encodeIPv4 writes the header of a packet whose payload is in place.
func encodeIPv4(p []byte, protocol byte, from, to netip.Addr) {
	clear(p[:ipSize])
	p[0] = 0x45
	binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
	p[6] = 0x40 // do not fragment
	p[8] = 64   // hops
	p[9] = protocol
	src, dst := from.As4(), to.As4()
	copy(p[12:], src[:])
	copy(p[16:], dst[:])
	binary.BigEndian.PutUint16(p[10:], ^sum(0, p[:ipSize]))
}

// sum is the ones' complement sum of RFC 1071.
func sum(start uint16, b []byte) uint16 {
	total := uint64(start)
	for ; len(b) >= 4; b = b[4:] {
		total += uint64(binary.BigEndian.Uint32(b))
	}
	if len(b) >= 2 {
		total += uint64(binary.BigEndian.Uint16(b))
		b = b[2:]
	}
	if len(b) == 1 {
		total += uint64(b[0]) << 8
	}
	for total > 0xffff {
		total = total>>16 + total&0xffff
	}
	return uint16(total)
}

// answerARP says where the gateway is.
func answerARP(request []byte) []byte {
	frame, p := newFrame(mac(request[6:12]), etherARP, arpSize)
	asked := request[ethernetSize:]
	copy(p, arpRequest)
	p[7] = 2 // reply
	copy(p[8:14], gatewayMAC[:])
	copy(p[14:18], asked[24:28])
	copy(p[18:28], asked[8:18])
	return frame
}

// answerPing sends an echo request's payload back.
func (s *Stack) answerPing(request []byte) []byte {
	frame, p := newFrame(mac(request[6:12]), etherIPv4, len(request)-ethernetSize)
	copy(p[ipSize:], request[ethernetSize+ipSize:])
	encodeIPv4(p, protocolICMP, s.opts.Gateway, s.opts.Guest)
	encodeICMP(p[ipSize:], icmpEchoReply, 0)
	return frame
}

// portUnreachable tells the guest at once that a datagram went nowhere: head
// is the datagram's IP and UDP header (RFC 792). It comes from the address that the
// datagram was sent to.
func (s *Stack) portUnreachable(head []byte, to netip.Addr) []byte {
	frame, p := newFrame(s.link.guestMAC(), etherIPv4, ipSize+icmpSize+len(head))
	copy(p[ipSize+icmpSize:], head)
	encodeIPv4(p, protocolICMP, to, s.opts.Guest)
	encodeICMP(p[ipSize:], icmpUnreachable, icmpCodePort)
	return frame
}

func encodeICMP(p []byte, kind, code byte) {
	p[0], p[1], p[2], p[3] = kind, code, 0, 0
	binary.BigEndian.PutUint16(p[2:], ^sum(0, p))
}

// udpFrame is a datagram for the guest.
func (s *Stack) udpFrame(from, to netip.AddrPort, payload []byte) []byte {
	frame, p := newFrame(s.link.guestMAC(), etherIPv4, ipSize+udpSize+len(payload))
	encodeIPv4(p, protocolUDP, from.Addr(), to.Addr())
	d := p[ipSize:]
	binary.BigEndian.PutUint16(d[0:], from.Port())
	binary.BigEndian.PutUint16(d[2:], to.Port())
	binary.BigEndian.PutUint16(d[4:], uint16(len(d)))
	copy(d[udpSize:], payload)
	check := sum(protocolUDP+uint16(len(d)), p[12:ipSize]) // the pseudo header
	if check = ^sum(check, d); check == 0 {
		check = 0xffff // 0 means that there is none
	}
	binary.BigEndian.PutUint16(d[6:], check)
	return frame
}
