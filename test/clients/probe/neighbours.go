package main

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"creel/test/clients/packet"
)

func neighbourTries() []try {
	return []try{
		{"arp-scan", "ask for every address of the gateway's network and for what the gateway may stand for; reached is an answer for another than the gateway", 0, arpScan},
		{"dhcp", "ask for an address", 0, dhcp},
		{"ipv6-nd", "ask for IPv6 neighbours, and claim to be them", 0, neighbourDiscovery},
		{"ipv6-ra", "ask for IPv6 routers, and claim to be one", 0, routerDiscovery},
		{"ipv6-tcp", "ADDRESS PORT: a connection by the kernel, with a mapped address too, and a SYN as a frame", 2, ipv6TCP},
	}
}

func arpScan(ctx context.Context, p *prober, _ []string) (result, error) {
	return p.on(ctx, func(l *link) result {
		base := p.gateway.As4()
		var targets []netip.Addr
		for i := range 256 {
			base[3] = byte(i)
			targets = append(targets, netip.AddrFrom4(base))
		}
		for _, a := range []string{"0.0.0.0", "127.0.0.1", "169.254.169.254", "10.0.2.2", "10.0.2.3", "172.17.0.1", "198.18.0.1", "8.8.8.8"} {
			targets = append(targets, netip.MustParseAddr(a))
		}
		r := result{Sent: true}
		var answered []string
		for _, a := range targets {
			if a == l.own {
				continue
			}
			r.Sent = l.send(packet.Broadcast(), packet.TypeARP, packet.ARP(packet.ARPRequest, l.mac, l.own, a)) && r.Sent
		}
		l.listen(ctx, p.wait, func(f packet.Packet) bool {
			hardware, sender, reply := packet.ARPSender(f.Payload)
			if f.Type == packet.TypeARP && reply {
				r.Reached = r.Reached || sender != p.gateway
				answered = append(answered, fmt.Sprintf("%s is %s", sender, hardware))
			}
			return false
		})
		slices.Sort(answered)
		r.Detail = fmt.Sprintf("%d asked; %s", len(targets)-1, strings.Join(slices.Compact(answered), ", "))
		return r
	})
}

func dhcp(ctx context.Context, p *prober, _ []string) (result, error) {
	return p.on(ctx, func(l *link) result {
		r := result{Sent: l.send(packet.Broadcast(), packet.TypeIPv4, packet.Discover(l.mac)), Detail: "no answer"}
		r.Reached = l.listen(ctx, p.wait, func(f packet.Packet) bool {
			source, _ := f.Ports()
			if f.Protocol != packet.UDP || source != 67 {
				return false
			}
			r.Detail = describe(f)
			return true
		})
		return r
	})
}

func neighbourDiscovery(ctx context.Context, p *prober, _ []string) (result, error) {
	return p.on(ctx, func(l *link) result {
		r := result{Sent: true}
		multicast := func(b []byte) {
			to, _ := netip.AddrFromSlice(b[24:40])
			r.Sent = l.send(packet.Multicast(to), packet.TypeIPv6, b) && r.Sent
		}
		gateway := packet.LinkLocal(l.gateway)
		for _, target := range []netip.Addr{gateway, netip.MustParseAddr("fe80::1"), netip.MustParseAddr("fec0::2"), netip.MustParseAddr("2001:db8::1")} {
			multicast(packet.NeighbourSolicitation(l.mac, target))
			multicast(packet.NeighbourAdvertisement(l.mac, target))
		}
		multicast(packet.EchoV6(packet.LinkLocal(l.mac), packet.AllNodes()))
		r.Sent = l.sendIP(packet.EchoV6(packet.LinkLocal(l.mac), gateway)) && r.Sent
		return p.anyIPv6(ctx, l, r)
	})
}

func routerDiscovery(ctx context.Context, p *prober, _ []string) (result, error) {
	return p.on(ctx, func(l *link) result {
		asked := l.send(packet.Multicast(packet.AllRouters()), packet.TypeIPv6, packet.RouterSolicitation(l.mac))
		claim := packet.RouterAdvertisement(l.mac, netip.MustParsePrefix("2001:db8:1::/64"))
		claimed := l.send(packet.Multicast(packet.AllNodes()), packet.TypeIPv6, claim)
		return p.anyIPv6(ctx, l, result{Sent: asked && claimed})
	})
}

// anyIPv6 is reached by whatever IPv6 comes in.
func (p *prober) anyIPv6(ctx context.Context, l *link, r result) result {
	r.Detail = "no IPv6 came"
	r.Reached = l.listen(ctx, p.wait, func(f packet.Packet) bool {
		if f.Type != packet.TypeIPv6 {
			return false
		}
		r.Detail = describe(f)
		return true
	})
	return r
}

func ipv6TCP(ctx context.Context, p *prober, args []string) (result, error) {
	to, err := endpoint(args[0], args[1])
	if err != nil {
		return result{}, err
	}
	if !to.Addr().Is6() {
		return result{}, fmt.Errorf("%s is no IPv6 address", to.Addr())
	}
	connected := p.connect6(to)
	r, err := p.on(ctx, func(l *link) result {
		// The kernel turned a mapped address into IPv4; this one stays what it is.
		for _, own := range []netip.Addr{netip.MustParseAddr("2001:db8:1::2"), netip.AddrFrom16(l.own.As16())} {
			if !l.sendIP(packet.Opening(netip.AddrPortFrom(own, ownPort), to)) {
				return result{Detail: "the card took nothing"}
			}
		}
		own := netip.AddrPortFrom(packet.LinkLocal(l.mac), ownPort)
		return p.ask(ctx, l, packet.Opening(own, to), func(f packet.Packet) bool { return f.Type == packet.TypeIPv6 })
	})
	r.Reached = r.Reached || connected == nil
	r.Detail = fmt.Sprintf("socket: %s; frame: %s", cause(connected), r.Detail)
	return r, err
}

// connect6 connects with an address as it is: the net package would look at it first.
func (p *prober) connect6(to netip.AddrPort) error {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	limit := unix.NsecToTimeval(p.wait.Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &limit); err != nil {
		return err
	}
	return unix.Connect(fd, &unix.SockaddrInet6{Addr: to.Addr().As16(), Port: int(to.Port())})
}
