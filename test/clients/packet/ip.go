package packet

import (
	"encoding/binary"
	"hash/crc32"
	"net/netip"
)

// Protocol numbers.
const (
	ICMP   = 1
	TCP    = 6
	UDP    = 17
	ICMPv6 = 58
	SCTP   = 132
)

// IP is the header of a packet; both addresses are of one family.
type IP struct {
	From, To netip.Addr
	Protocol byte
	ID       uint16
	Offset   uint16 // of a fragment, in bytes: a multiple of 8
	More     bool   // fragments follow
}

// Packet puts the header before a payload.
func (h IP) Packet(payload []byte) []byte {
	if h.To.Is6() {
		b := []byte{0x60, 0, 0, 0}
		b = binary.BigEndian.AppendUint16(b, uint16(len(payload)))
		b = append(b, h.Protocol, 255) // neighbour discovery insists on 255
		return append(append(append(b, h.From.AsSlice()...), h.To.AsSlice()...), payload...)
	}
	fragment := h.Offset / 8
	if h.More {
		fragment |= 0x2000
	}
	b := []byte{0x45, 0}
	b = binary.BigEndian.AppendUint16(b, uint16(20+len(payload)))
	b = binary.BigEndian.AppendUint16(b, h.ID)
	b = binary.BigEndian.AppendUint16(b, fragment)
	b = append(b, 64, h.Protocol, 0, 0)
	b = append(append(b, h.From.AsSlice()...), h.To.AsSlice()...)
	binary.BigEndian.PutUint16(b[10:], checksum(0, b))
	return append(b, payload...)
}

// Fragments cuts a payload into packets of at most size bytes of it, a multiple of 8.
func (h IP) Fragments(payload []byte, size int) [][]byte {
	var all [][]byte
	for start := 0; start < len(payload); start += size {
		end := min(start+size, len(payload))
		f := h
		f.Offset, f.More = uint16(start), end < len(payload)
		all = append(all, f.Packet(payload[start:end]))
	}
	return all
}

// Datagram is a UDP packet with its header.
func Datagram(from, to netip.AddrPort, payload []byte) []byte {
	h := IP{From: from.Addr(), To: to.Addr(), Protocol: UDP}
	return h.Packet(h.Datagram(from.Port(), to.Port(), payload))
}

// Datagram is a UDP header and payload, without the IP header.
func (h IP) Datagram(from, to uint16, payload []byte) []byte {
	b := ports(from, to)
	b = binary.BigEndian.AppendUint16(b, uint16(8+len(payload)))
	b = append(append(b, 0, 0), payload...)
	sum := h.checksum(b)
	if sum == 0 {
		sum = 0xffff
	}
	binary.BigEndian.PutUint16(b[6:], sum)
	return b
}

// TCP flags.
const (
	SYN = 2
	RST = 4
	ACK = 16
)

// Segment is a TCP segment without payload or options and without the IP header.
func (h IP) Segment(from, to uint16, sequence uint32, flags byte) []byte {
	b := binary.BigEndian.AppendUint32(ports(from, to), sequence)
	b = append(b, 0, 0, 0, 0, 5<<4, flags, 0xff, 0xff, 0, 0, 0, 0)
	binary.BigEndian.PutUint16(b[16:], h.checksum(b))
	return b
}

// Opening is a TCP packet that asks for a connection.
func Opening(from, to netip.AddrPort) []byte {
	h := IP{From: from.Addr(), To: to.Addr(), Protocol: TCP}
	return h.Packet(h.Segment(from.Port(), to.Port(), 0x12345678, SYN))
}

// Echo is an ICMP echo request without the IP header.
func Echo(id uint16, payload []byte) []byte {
	b := []byte{8, 0, 0, 0}
	b = binary.BigEndian.AppendUint16(b, id)
	b = append(append(b, 0, 1), payload...)
	binary.BigEndian.PutUint16(b[2:], checksum(0, b))
	return b
}

// Association is an SCTP packet that asks for an association.
func Association(from, to netip.AddrPort) []byte {
	b := append(ports(from.Port(), to.Port()), 0, 0, 0, 0, 0, 0, 0, 0)
	b = append(b, 1, 0, 0, 20) // INIT
	b = append(b, 0xca, 0xfe, 0xba, 0xbe, 0, 0, 0xff, 0xff, 0, 1, 0, 1, 0, 0, 0, 1)
	binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
	return IP{From: from.Addr(), To: to.Addr(), Protocol: SCTP}.Packet(b)
}

func ports(from, to uint16) []byte {
	return binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, from), to)
}

// checksum is the transport's, over the pseudo header and what follows it.
func (h IP) checksum(b []byte) uint16 {
	pseudo := append(h.From.AsSlice(), h.To.AsSlice()...)
	pseudo = append(pseudo, 0, h.Protocol)
	pseudo = binary.BigEndian.AppendUint16(pseudo, uint16(len(b)))
	return checksum(^uint32(checksum(0, pseudo))&0xffff, b)
}

// checksum is that of RFC 1071, begun with what was summed before.
func checksum(sum uint32, b []byte) uint16 {
	for ; len(b) > 1; b = b[2:] {
		sum += uint32(b[0])<<8 | uint32(b[1])
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}
