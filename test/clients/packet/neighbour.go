package packet

import (
	"encoding/binary"
	"net"
	"net/netip"
)

// LinkLocal is the fe80:: address that a card makes of its hardware address.
func LinkLocal(mac net.HardwareAddr) netip.Addr {
	return netip.AddrFrom16([16]byte{0xfe, 0x80, 8: mac[0] ^ 2, mac[1], mac[2], 0xff, 0xfe, mac[3], mac[4], mac[5]})
}

// Multicast is the hardware address of an IPv6 group.
func Multicast(group netip.Addr) net.HardwareAddr {
	b := group.As16()
	return net.HardwareAddr{0x33, 0x33, b[12], b[13], b[14], b[15]}
}

// AllNodes and AllRouters are groups of the link.
func AllNodes() netip.Addr   { return netip.MustParseAddr("ff02::1") }
func AllRouters() netip.Addr { return netip.MustParseAddr("ff02::2") }

// EchoV6 asks for an ICMPv6 echo.
func EchoV6(from, to netip.Addr) []byte {
	return icmpv6(from, to, 128, []byte{0x77, 0x77, 0, 1, 'e', 'c', 'h', 'o'})
}

// RouterSolicitation asks who routes.
func RouterSolicitation(mac net.HardwareAddr) []byte {
	return icmpv6(LinkLocal(mac), AllRouters(), 133, append(make([]byte, 4), linkOption(1, mac)...))
}

// RouterAdvertisement says to all that mac routes, and resolves names.
func RouterAdvertisement(mac net.HardwareAddr, prefix netip.Prefix) []byte {
	b := []byte{64, 0, 0x07, 0x08}                    // hop limit; half an hour
	b = append(b, make([]byte, 8)...)                 // reachable, retransmission
	b = append(b, linkOption(1, mac)...)              //
	b = append(b, 3, 4, byte(prefix.Bits()), 0xc0)    // on this link, make addresses of it
	b = append(b, 0, 1, 0x51, 0x80, 0, 0, 0x38, 0x40) // valid, preferred
	b = append(append(b, 0, 0, 0, 0), prefix.Addr().AsSlice()...)
	b = append(append(b, 25, 3, 0, 0, 0, 0, 7, 8), LinkLocal(mac).AsSlice()...)
	return icmpv6(LinkLocal(mac), AllNodes(), 134, b)
}

// NeighbourSolicitation asks who has an address.
func NeighbourSolicitation(mac net.HardwareAddr, target netip.Addr) []byte {
	b := append(append(make([]byte, 4), target.AsSlice()...), linkOption(1, mac)...)
	return icmpv6(LinkLocal(mac), Solicited(target), 135, b)
}

// NeighbourAdvertisement says to all that mac has an address, and overrides.
func NeighbourAdvertisement(mac net.HardwareAddr, target netip.Addr) []byte {
	b := append(append([]byte{0x20, 0, 0, 0}, target.AsSlice()...), linkOption(2, mac)...)
	return icmpv6(LinkLocal(mac), AllNodes(), 136, b)
}

// Solicited is the group that the owner of an address listens to.
func Solicited(target netip.Addr) netip.Addr {
	group, end := netip.MustParseAddr("ff02::1:ff00:0").As16(), target.As16()
	copy(group[13:], end[13:])
	return netip.AddrFrom16(group)
}

func linkOption(kind byte, mac net.HardwareAddr) []byte { return append([]byte{kind, 1}, mac...) }

func icmpv6(from, to netip.Addr, kind byte, body []byte) []byte {
	h := IP{From: from, To: to, Protocol: ICMPv6}
	b := append([]byte{kind, 0, 0, 0}, body...)
	binary.BigEndian.PutUint16(b[2:], h.checksum(b))
	return h.Packet(b)
}

// Discover is a DHCP packet that asks for an address.
func Discover(mac net.HardwareAddr) []byte {
	b := []byte{1, 1, 6, 0, 0xde, 0xad, 0xbe, 0xef, 0, 0, 0x80, 0} // answer by broadcast
	b = append(b, make([]byte, 16)...)                             // no addresses yet
	b = append(append(b, mac...), make([]byte, 10+64+128)...)
	b = append(b, 0x63, 0x82, 0x53, 0x63, 53, 1, 1, 55, 4, 1, 3, 6, 15, 255)
	return Datagram(netip.MustParseAddrPort("0.0.0.0:68"), netip.MustParseAddrPort("255.255.255.255:67"), b)
}

// Initial looks like the first datagram of QUIC. A server that speaks QUIC
// answers the version, which there is none of, with those that it has.
func Initial() []byte {
	b := append([]byte{0xc3, 0x1a, 0x2a, 0x3a, 0x4a}, 8)
	b = append(b, 1, 2, 3, 4, 5, 6, 7, 8, 8, 8, 7, 6, 5, 4, 3, 2, 1, 0, 0x44, 0x80)
	return append(b, make([]byte, 1200-len(b))...)
}
