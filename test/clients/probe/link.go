package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"creel/test/clients/packet"
)

// link is the card, below everything that the kernel would correct.
type link struct {
	fd, index int
	mac       net.HardwareAddr
	own       netip.Addr
	gateway   net.HardwareAddr // broadcast, if the gateway does not say
}

// open takes the card, and learns who the gateway is.
func (p *prober) open(ctx context.Context) (*link, error) {
	card, err := net.InterfaceByName(p.card)
	if err != nil {
		return nil, err
	}
	const all = unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8 // in network order
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, all)
	if err != nil {
		return nil, fmt.Errorf("open packet socket: %w", err)
	}
	l := &link{fd: fd, index: card.Index, mac: card.HardwareAddr, gateway: packet.Broadcast()}
	err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: card.Index})
	promiscuous := &unix.PacketMreq{Ifindex: int32(card.Index), Type: unix.PACKET_MR_PROMISC}
	if err == nil {
		err = unix.SetsockoptPacketMreq(fd, unix.SOL_PACKET, unix.PACKET_ADD_MEMBERSHIP, promiscuous)
	}
	if err != nil {
		l.close()
		return nil, fmt.Errorf("listen on %s: %w", p.card, err)
	}
	addresses, err := card.Addrs()
	if err != nil {
		l.close()
		return nil, err
	}
	for _, a := range addresses {
		if prefix, err := netip.ParsePrefix(a.String()); err == nil && prefix.Addr().Is4() {
			l.own = prefix.Addr()
		}
	}
	if !l.own.IsValid() {
		l.close()
		return nil, errors.New("the card has no IPv4 address")
	}
	l.send(packet.Broadcast(), packet.TypeARP, packet.ARP(packet.ARPRequest, l.mac, l.own, p.gateway))
	l.listen(ctx, p.wait, func(f packet.Packet) bool {
		hardware, sender, reply := packet.ARPSender(f.Payload)
		if f.Type != packet.TypeARP || !reply || sender != p.gateway {
			return false
		}
		l.gateway = append(net.HardwareAddr{}, hardware...)
		return true
	})
	return l, nil
}

func (l *link) close() { unix.Close(l.fd) }

// send reports whether the card took a frame.
func (l *link) send(to net.HardwareAddr, kind uint16, payload []byte) bool {
	return l.sendFrame(packet.Frame(to, l.mac, kind, payload))
}

func (l *link) sendFrame(frame []byte) bool {
	for {
		err := unix.Sendto(l.fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: l.index, Halen: 6})
		if err != unix.EINTR && err != unix.ENOBUFS {
			return err == nil
		}
	}
}

// sendIP sends a packet to the gateway.
func (l *link) sendIP(b []byte) bool {
	if b[0]>>4 == 6 {
		return l.send(l.gateway, packet.TypeIPv6, b)
	}
	return l.send(l.gateway, packet.TypeIPv4, b)
}

// listen shows what comes in to match, until it says that this is the one, or
// nothing more comes. Its packets are gone when it returns.
func (l *link) listen(ctx context.Context, wait time.Duration, match func(packet.Packet) bool) bool {
	b := make([]byte, 1<<16)
	for end := time.Now().Add(wait); ctx.Err() == nil; {
		left := time.Until(end)
		if left <= 0 {
			return false
		}
		fds := []unix.PollFd{{Fd: int32(l.fd), Events: unix.POLLIN}}
		if n, err := unix.Poll(fds, int(left.Milliseconds())+1); n <= 0 {
			if err != nil && err != unix.EINTR {
				return false
			}
			continue
		}
		n, from, err := unix.Recvfrom(l.fd, b, unix.MSG_DONTWAIT)
		if err != nil {
			continue
		}
		if a, ok := from.(*unix.SockaddrLinklayer); ok && a.Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		if f, ok := packet.Parse(b[:n]); ok && match(f) {
			return true
		}
	}
	return false
}

// on opens the card for one case. What stops that is in the result: the caller
// sees that nothing was sent.
func (p *prober) on(ctx context.Context, try func(*link) result) (result, error) {
	l, err := p.open(ctx)
	if err != nil {
		return result{Detail: err.Error()}, nil
	}
	defer l.close()
	return try(l), nil
}

// describe says what a packet is, for a detail.
func describe(f packet.Packet) string {
	switch {
	case f.Type == packet.TypeARP:
		_, sender, _ := packet.ARPSender(f.Payload)
		return fmt.Sprintf("ARP from %s", sender)
	case !f.Source.IsValid():
		return fmt.Sprintf("a frame of type %04x", f.Type)
	case f.Protocol == packet.TCP:
		from, to := f.Ports()
		return fmt.Sprintf("TCP %s:%d to port %d, flags %02x", f.Source, from, to, f.TCPFlags())
	case (f.Protocol == packet.ICMP || f.Protocol == packet.ICMPv6) && len(f.Payload) > 1:
		return fmt.Sprintf("ICMP type %d code %d from %s", f.Payload[0], f.Payload[1], f.Source)
	}
	return fmt.Sprintf("protocol %d, %d bytes from %s", f.Protocol, len(f.Payload), f.Source)
}
