package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strconv"

	"golang.org/x/sys/unix"

	"creel/test/clients/packet"
)

const ownPort = 40404 // of packets that no socket sends

func rawTries() []try {
	return []try{
		{"raw-ip", "ADDRESS PROTOCOL: an IP packet of any protocol, from a raw socket and as a frame", 2, rawIP},
		{"icmp", "ADDRESS: an echo request", 1, icmp},
		{"sctp", "ADDRESS PORT: an association", 2, sctp},
		{"raw-socket-tcp", "ADDRESS PORT: a SYN from a raw socket", 2, rawSYN},
		{"udp", "ADDRESS PORT [BYTES]: a datagram", 2, udp},
		{"quic", "ADDRESS PORT: a datagram that looks like QUIC's first", 2, quic},
		{"fragments", "echo|dns|syn|overlap|endless ADDRESS PORT: a packet in fragments; endless sends 65536 first ones", 3, fragments},
		{"spoof-source", "SOURCE ADDRESS PORT: a SYN and a DNS query from an address of somebody else", 3, spoofSource},
		{"spoof-mac", "MAC: ARP, echo and DNS query from another card's address", 1, spoofMAC},
	}
}

// endpoint reads an address and a port.
func endpoint(address, port string) (netip.AddrPort, error) {
	a, err := netip.ParseAddr(address)
	if err != nil {
		return netip.AddrPort{}, err
	}
	n, err := strconv.ParseUint(port, 10, 16)
	return netip.AddrPortFrom(a, uint16(n)), err
}

// ask sends a packet and waits for the first one that match takes. What else
// came from the same address is told.
func (p *prober) ask(ctx context.Context, l *link, b []byte, match func(packet.Packet) bool) result {
	r := result{Sent: l.sendIP(b), Detail: "no answer"}
	r.Reached = l.listen(ctx, p.wait, func(f packet.Packet) bool {
		if match(f) {
			r.Detail = describe(f)
			return true
		}
		if f.Protocol == packet.ICMP || f.Protocol == packet.TCP && f.TCPFlags()&packet.RST != 0 {
			r.Detail = "no answer, but " + describe(f)
		}
		return false
	})
	return r
}

func from(a netip.Addr, protocol byte) func(packet.Packet) bool {
	return func(f packet.Packet) bool { return f.Source == a && f.Protocol == protocol }
}

// accepts matches what a listening TCP sends.
func accepts(to netip.AddrPort) func(packet.Packet) bool {
	return func(f packet.Packet) bool {
		port, _ := f.Ports()
		return f.Source == to.Addr() && port == to.Port() && f.TCPFlags()&(packet.SYN|packet.ACK) == packet.SYN|packet.ACK
	}
}

func rawIP(ctx context.Context, p *prober, args []string) (result, error) {
	to, err := netip.ParseAddr(args[0])
	if err != nil {
		return result{}, err
	}
	protocol, err := strconv.ParseUint(args[1], 10, 8)
	if err != nil {
		return result{}, err
	}
	return p.on(ctx, func(l *link) result {
		how := "by raw socket too"
		payload := []byte("does anybody read this?")
		if err := rawSend(unix.AF_INET, int(protocol), to, payload); err != nil {
			how = "raw socket: " + cause(err)
		}
		r := p.ask(ctx, l, packet.IP{From: l.own, To: to, Protocol: byte(protocol)}.Packet(payload), func(f packet.Packet) bool {
			return f.Source == to && f.Protocol == byte(protocol)
		})
		r.Detail += "; " + how
		return r
	})
}

// rawSend lets the kernel put its own header before a payload, or for
// IPPROTO_RAW take the one that is there.
func rawSend(family, protocol int, to netip.Addr, b []byte) error {
	fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Sendto(fd, b, 0, &unix.SockaddrInet4{Addr: to.As4()})
}

func icmp(ctx context.Context, p *prober, args []string) (result, error) {
	to, err := netip.ParseAddr(args[0])
	if err != nil {
		return result{}, err
	}
	return p.on(ctx, func(l *link) result {
		return p.ask(ctx, l, packet.IP{From: l.own, To: to, Protocol: packet.ICMP}.Packet(packet.Echo(0x4242, make([]byte, 56))), isEchoOf(to))
	})
}

func isEchoOf(a netip.Addr) func(packet.Packet) bool {
	return func(f packet.Packet) bool {
		return f.Source == a && f.Protocol == packet.ICMP && len(f.Payload) > 0 && f.Payload[0] == 0
	}
}

func sctp(ctx context.Context, p *prober, args []string) (result, error) {
	to, err := endpoint(args[0], args[1])
	if err != nil {
		return result{}, err
	}
	return p.on(ctx, func(l *link) result {
		return p.ask(ctx, l, packet.Association(netip.AddrPortFrom(l.own, ownPort), to), from(to.Addr(), packet.SCTP))
	})
}

func rawSYN(ctx context.Context, p *prober, args []string) (result, error) {
	to, err := endpoint(args[0], args[1])
	if err != nil {
		return result{}, err
	}
	return p.on(ctx, func(l *link) result {
		b := packet.Opening(netip.AddrPortFrom(l.own, ownPort), to)
		err := rawSend(unix.AF_INET, unix.IPPROTO_RAW, to.Addr(), b)
		// The kernel knows nothing of the connection and resets it at once.
		r := result{Sent: err == nil, Detail: "no answer, sent: " + cause(err)}
		r.Reached = l.listen(ctx, p.wait, func(f packet.Packet) bool {
			r.Detail = describe(f)
			return accepts(to)(f)
		})
		return r
	})
}

func udp(ctx context.Context, p *prober, args []string) (result, error) {
	size := 32
	if len(args) > 2 {
		n, err := strconv.Atoi(args[2])
		if err != nil || n < 0 {
			return result{}, fmt.Errorf("%q is no number of bytes", args[2])
		}
		size = n
	}
	return p.datagram(ctx, args, make([]byte, size))
}

func quic(ctx context.Context, p *prober, args []string) (result, error) {
	return p.datagram(ctx, args, packet.Initial())
}

// datagram sends one through the kernel, which tells of what ICMP says.
func (p *prober) datagram(ctx context.Context, args []string, payload []byte) (result, error) {
	to, err := endpoint(args[0], args[1])
	if err != nil {
		return result{}, err
	}
	answer, sent, err := p.exchange(ctx, "udp", to, payload)
	r := result{Sent: sent, Reached: err == nil, Detail: cause(err)}
	if err == nil {
		r.Detail = fmt.Sprintf("%d bytes from %s", len(answer), to)
	}
	return r, nil
}

func fragments(ctx context.Context, p *prober, args []string) (result, error) {
	to, err := endpoint(args[1], args[2])
	if err != nil {
		return result{}, err
	}
	return p.on(ctx, func(l *link) result {
		h := packet.IP{From: l.own, To: to.Addr(), ID: 0x2323}
		switch args[0] {
		case "echo":
			h.Protocol = packet.ICMP
			return p.askInParts(ctx, l, h.Fragments(packet.Echo(0x4242, make([]byte, 200)), 48), isEchoOf(to.Addr()))
		case "dns":
			h.Protocol = packet.UDP
			body := h.Datagram(ownPort, to.Port(), plainQuery("fragments.invalid"))
			return p.askInParts(ctx, l, h.Fragments(body, 16), func(f packet.Packet) bool {
				source, own := f.Ports()
				return from(to.Addr(), packet.UDP)(f) && source == to.Port() && own == ownPort
			})
		case "syn": // the flags are in the second fragment
			h.Protocol = packet.TCP
			return p.askInParts(ctx, l, h.Fragments(h.Segment(ownPort, to.Port(), 1, packet.SYN), 8), accepts(to))
		case "overlap": // the second says another port, and what came first says port 9
			h.Protocol = packet.TCP
			harmless, real := h.Segment(ownPort, 9, 1, packet.SYN), h.Segment(ownPort, to.Port(), 1, packet.SYN)
			first, again, last := h, h, h
			first.More, again.More, last.Offset = true, true, 8
			parts := [][]byte{first.Packet(harmless[:16]), again.Packet(real[:8]), last.Packet(real[8:])}
			return p.askInParts(ctx, l, parts, accepts(to))
		case "endless":
			h.Protocol, h.More = packet.UDP, true
			return p.endless(ctx, l, h)
		}
		return result{Detail: "there are no fragments of kind " + args[0]}
	})
}

func (p *prober) askInParts(ctx context.Context, l *link, parts [][]byte, match func(packet.Packet) bool) result {
	for _, b := range parts[:len(parts)-1] {
		if !l.sendIP(b) {
			return result{Detail: "the card did not take a fragment"}
		}
	}
	return p.ask(ctx, l, parts[len(parts)-1], match)
}

// endless begins packets that it never ends; the gateway's echo shows that it lives.
func (p *prober) endless(ctx context.Context, l *link, h packet.IP) result {
	sent := 0
	for id := range 1 << 16 {
		if ctx.Err() != nil {
			break
		}
		h.ID = uint16(id)
		if l.sendIP(h.Packet(make([]byte, 1400))) {
			sent++
		}
	}
	r := p.ask(ctx, l, packet.IP{From: l.own, To: p.gateway, Protocol: packet.ICMP}.Packet(packet.Echo(1, nil)), isEchoOf(p.gateway))
	return result{Sent: sent > 0, Detail: fmt.Sprintf("%d first fragments sent; then the gateway's echo: %s", sent, r.Detail)}
}

func spoofSource(ctx context.Context, p *prober, args []string) (result, error) {
	source, err := netip.ParseAddr(args[0])
	if err != nil {
		return result{}, err
	}
	to, err := endpoint(args[1], args[2])
	if err != nil {
		return result{}, err
	}
	return p.on(ctx, func(l *link) result {
		query := packet.Datagram(netip.AddrPortFrom(source, ownPort), p.dns, plainQuery("spoofed.invalid"))
		gratuitous := packet.ARP(packet.ARPReply, l.mac, source, source)
		if !l.send(packet.Broadcast(), packet.TypeARP, gratuitous) || !l.sendIP(query) {
			return result{Detail: "the card took nothing"}
		}
		return p.ask(ctx, l, packet.Opening(netip.AddrPortFrom(source, ownPort), to), func(f packet.Packet) bool {
			if f.Type == packet.TypeARP { // somebody asks where the answer should go
				l.send(packet.Broadcast(), packet.TypeARP, gratuitous)
			}
			return f.To == source
		})
	})
}

func spoofMAC(ctx context.Context, p *prober, args []string) (result, error) {
	mac, err := net.ParseMAC(args[0])
	if err != nil || len(mac) != 6 {
		return result{}, fmt.Errorf("%q is no hardware address", args[0])
	}
	return p.on(ctx, func(l *link) result {
		l.mac = mac
		r := result{Sent: true, Detail: "no answer"}
		for _, b := range [][]byte{
			packet.IP{From: l.own, To: p.gateway, Protocol: packet.ICMP}.Packet(packet.Echo(0x4242, nil)),
			packet.Datagram(netip.AddrPortFrom(l.own, ownPort), p.dns, plainQuery("spoofed.invalid")),
		} {
			r.Sent = l.sendIP(b) && r.Sent
		}
		request := packet.ARP(packet.ARPRequest, mac, l.own, p.gateway)
		r.Sent = l.send(packet.Broadcast(), packet.TypeARP, request) && r.Sent
		r.Reached = l.listen(ctx, p.wait, func(f packet.Packet) bool {
			r.Detail = describe(f)
			return true
		})
		return r
	})
}
