// Package packet builds, byte by byte, what a hostile guest may send: frames,
// IP packets of every kind, whole or in fragments, and ClientHellos. [IP] and
// [Hello] describe, the functions build, and [Parse] reads enough of an answer
// to know whose it is. It must not send anything, or be used outside of tests.
package packet

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
)

// EtherTypes.
const (
	TypeIPv4 = 0x0800
	TypeARP  = 0x0806
	TypeIPv6 = 0x86dd
)

// Broadcast is the hardware address of everybody.
func Broadcast() net.HardwareAddr { return net.HardwareAddr{255, 255, 255, 255, 255, 255} }

// Frame is an Ethernet frame around a payload.
func Frame(to, from net.HardwareAddr, kind uint16, payload []byte) []byte {
	b := append(slices.Clone(to), from...)
	b = binary.BigEndian.AppendUint16(b, kind)
	return append(b, payload...)
}

// ARP operations.
const (
	ARPRequest = 1
	ARPReply   = 2
)

// ARP is the payload of an ARP frame for IPv4.
func ARP(op uint16, from net.HardwareAddr, source, target netip.Addr) []byte {
	b := []byte{0, 1, 8, 0, 6, 4}
	b = binary.BigEndian.AppendUint16(b, op)
	b = append(append(b, from...), source.AsSlice()...)
	b = append(b, 0, 0, 0, 0, 0, 0)
	return append(b, target.AsSlice()...)
}

// ARPSender says who an ARP packet is from, and whether it is a reply.
func ARPSender(b []byte) (hardware net.HardwareAddr, sender netip.Addr, reply bool) {
	if len(b) < 28 {
		return nil, netip.Addr{}, false
	}
	sender, _ = netip.AddrFromSlice(b[14:18])
	return net.HardwareAddr(b[8:14]), sender, binary.BigEndian.Uint16(b[6:]) == ARPReply
}

// Packet is what [Parse] finds in a frame.
type Packet struct {
	Type       uint16 // EtherType
	From       net.HardwareAddr
	Source, To netip.Addr // of IP packets
	Protocol   byte       // of IP packets; IPv6 extension headers are not followed
	Payload    []byte     // after the Ethernet or, where it is one, the IP header
}

// Parse reads the headers of a frame; false is what is too short for them.
func Parse(frame []byte) (Packet, bool) {
	if len(frame) < 14 {
		return Packet{}, false
	}
	p := Packet{Type: binary.BigEndian.Uint16(frame[12:]), From: net.HardwareAddr(frame[6:12]), Payload: frame[14:]}
	b := p.Payload
	switch p.Type {
	case TypeIPv4:
		if len(b) < 20 {
			return Packet{}, false
		}
		header, total := int(b[0]&15)*4, int(binary.BigEndian.Uint16(b[2:]))
		if header < 20 || total < header || total > len(b) {
			return Packet{}, false
		}
		p.Protocol, p.Payload = b[9], b[header:total]
		p.Source, _ = netip.AddrFromSlice(b[12:16])
		p.To, _ = netip.AddrFromSlice(b[16:20])
	case TypeIPv6:
		if len(b) < 40 {
			return Packet{}, false
		}
		p.Protocol, p.Payload = b[6], b[40:]
		p.Source, _ = netip.AddrFromSlice(b[8:24])
		p.To, _ = netip.AddrFromSlice(b[24:40])
	}
	return p, true
}

// Ports are the first two numbers of TCP, UDP and SCTP.
func (p Packet) Ports() (from, to uint16) {
	if len(p.Payload) < 4 {
		return 0, 0
	}
	return binary.BigEndian.Uint16(p.Payload), binary.BigEndian.Uint16(p.Payload[2:])
}

// TCPFlags are those of a TCP segment, and none of anything else.
func (p Packet) TCPFlags() byte {
	if p.Protocol != TCP || len(p.Payload) < 20 {
		return 0
	}
	return p.Payload[13]
}
