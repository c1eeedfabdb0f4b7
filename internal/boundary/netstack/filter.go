package netstack

import (
	"bytes"
	"encoding/binary"
	"net/netip"
)

const (
	ethernetSize = 14
	arpSize      = 28
	ipSize       = 20 // without options, which do not pass
	udpSize      = 8
	icmpSize     = 8
	tcpSize      = 20
	minFrame     = 60 // what cards pad to; longer frames carry no padding

	etherIPv4 = 0x0800
	etherARP  = 0x0806
	etherIPv6 = 0x86dd

	protocolICMP = 1
	protocolTCP  = 6
	protocolUDP  = 17

	icmpEchoReply   = 0
	icmpUnreachable = 3
	icmpEcho        = 8
	icmpCodePort    = 3
)

// mac is an Ethernet address.
type mac [6]byte

// gatewayMAC is ours: locally administered, unicast, the same in every
// sandbox because each has a network of its own.
var gatewayMAC = mac{0x5a, 0x94, 0xef, 0xe4, 0x0c, 0x01}

var broadcastMAC = mac{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// Reason says why something of the guest's was dropped.
type Reason uint8

// Reasons, in the order in which a frame is looked at.
const (
	passed      Reason = iota
	Malformed          // lengths that do not agree, headers cut short, port 0
	Link               // not to our Ethernet address, or from none that a card has
	IPv6               // router advertisements and neighbour discovery as well
	EtherType          // neither ARP nor IP
	ARP                // for an address that is not the gateway's, or not a question
	Source             // an address that is not the guest's
	Destination        // broadcast, multicast, loopback, reserved, the guest itself
	Fragment           // whatever it is a part of
	IPOptions          // source routes and the like
	ICMP               // anything but a ping of the gateway
	Protocol           // neither TCP nor UDP nor ICMP
	Flood              // attempts beyond MaxPending or MaxFlows; these were refused
	Unread             // datagrams for which nobody had read those before
	Overrun            // frames to the guest that it did not take in time
	reasons
)

var reasonNames = [reasons]string{"passed", "malformed", "link", "ipv6", "ethertype", "arp", "source", "destination", "fragment",
	"ip-options", "icmp", "protocol", "flood", "unread", "overrun"}

// String is a word that stays the same.
func (r Reason) String() string {
	if r < reasons {
		return reasonNames[r]
	}
	return "unknown"
}

// Dropped is how often something was dropped, by [Reason].
type Dropped [reasons]uint64

// kind is what a frame that passed is.
type kind uint8

const (
	kindNone kind = iota
	kindARP       // a request for the gateway's Ethernet address
	kindPing
	kindTCP
	kindUDP
)

// filter is what may come from the guest. It is pure.
type filter struct {
	guest, gateway [4]byte
	mtu            int
}

// check says what a frame is, and where its IP packet ends; or why it may not
// pass. It neither keeps nor changes the frame.
func (f *filter) check(frame []byte) (k kind, end int, why Reason) {
	if len(frame) < ethernetSize || len(frame) > f.mtu+ethernetSize {
		return kindNone, 0, Malformed
	}
	to, from := mac(frame[0:6]), mac(frame[6:12])
	if from[0]&1 != 0 || from == (mac{}) || from == gatewayMAC {
		return kindNone, 0, Link
	}
	switch binary.BigEndian.Uint16(frame[12:14]) {
	case etherARP:
		return f.checkARP(frame)
	case etherIPv6:
		return kindNone, 0, IPv6
	case etherIPv4:
		if to != gatewayMAC {
			return kindNone, 0, Link
		}
		return f.checkIPv4(frame)
	}
	return kindNone, 0, EtherType
}

// arpRequest begins every request of an IPv4 address over Ethernet (RFC 826).
var arpRequest = []byte{0, 1, 8, 0, 6, 4, 0, 1}

func (f *filter) checkARP(frame []byte) (kind, int, Reason) {
	if to := mac(frame[0:6]); to != gatewayMAC && to != broadcastMAC {
		return kindNone, 0, Link
	}
	p := frame[ethernetSize:]
	switch {
	case len(p) < arpSize || len(frame) > minFrame:
		return kindNone, 0, Malformed
	case !bytes.Equal(p[:8], arpRequest):
		return kindNone, 0, ARP
	case !bytes.Equal(p[8:14], frame[6:12]) || [4]byte(p[14:18]) != f.guest:
		return kindNone, 0, Source
	case [4]byte(p[24:28]) != f.gateway:
		return kindNone, 0, ARP
	}
	return kindARP, ethernetSize + arpSize, passed
}

func (f *filter) checkIPv4(frame []byte) (kind, int, Reason) {
	p := frame[ethernetSize:]
	if len(p) < ipSize || p[0]>>4 != 4 {
		return kindNone, 0, Malformed
	}
	total := int(binary.BigEndian.Uint16(p[2:4]))
	switch {
	case p[0] != 0x45 && p[0]&15 > 5:
		return kindNone, 0, IPOptions
	case p[0] != 0x45 || total < ipSize || total > len(p) || total < len(p) && len(frame) > minFrame:
		return kindNone, 0, Malformed
	case binary.BigEndian.Uint16(p[6:8])&0x3fff != 0: // more fragments, or an offset
		return kindNone, 0, Fragment
	case [4]byte(p[12:16]) != f.guest:
		return kindNone, 0, Source
	case f.nobody([4]byte(p[16:20])):
		return kindNone, 0, Destination
	}
	k, why := f.checkTransport(p[:total])
	return k, ethernetSize + total, why
}

// nobody says that an address is that of no single other machine.
func (f *filter) nobody(to [4]byte) bool {
	return to == f.guest || to[0] == 0 || to[0] == 127 || to[0] >= 224
}

func (f *filter) checkTransport(p []byte) (kind, Reason) {
	body := p[ipSize:]
	switch p[9] {
	case protocolTCP:
		if len(body) < tcpSize || noPort(body) || int(body[12]>>4)*4 < tcpSize || int(body[12]>>4)*4 > len(body) {
			return kindNone, Malformed
		}
		return kindTCP, passed
	case protocolUDP:
		if len(body) < udpSize || noPort(body) || int(binary.BigEndian.Uint16(body[4:6])) != len(body) {
			return kindNone, Malformed
		}
		return kindUDP, passed
	case protocolICMP:
		if len(body) < icmpSize {
			return kindNone, Malformed
		}
		if body[0] != icmpEcho || body[1] != 0 || [4]byte(p[16:20]) != f.gateway {
			return kindNone, ICMP
		}
		return kindPing, passed
	}
	return kindNone, Protocol
}

// noPort says that a TCP or UDP header has port 0 in it.
func noPort(h []byte) bool {
	return h[0]|h[1] == 0 || h[2]|h[3] == 0
}

// tcpPayload says whether a TCP packet that passed has any.
func tcpPayload(frame []byte) bool {
	segment := frame[ethernetSize+ipSize:]
	return len(segment) > int(segment[12]>>4)*4
}

// addressesOf are the ends of a TCP or UDP packet that passed.
func addressesOf(frame []byte) (from, to netip.AddrPort) {
	ip, ports := frame[ethernetSize:], frame[ethernetSize+ipSize:]
	from = netip.AddrPortFrom(netip.AddrFrom4([4]byte(ip[12:16])), binary.BigEndian.Uint16(ports[0:2]))
	to = netip.AddrPortFrom(netip.AddrFrom4([4]byte(ip[16:20])), binary.BigEndian.Uint16(ports[2:4]))
	return from, to
}
