package packet

import (
	"crypto/ecdh"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip"
	sums "gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

var (
	mac  = net.HardwareAddr{2, 0, 0, 0, 0, 9}
	from = netip.MustParseAddrPort("192.168.127.2:1234")
	to   = netip.MustParseAddrPort("198.18.0.7:443")
)

// Another implementation reads what ours builds.
func TestIPv4(t *testing.T) {
	for name, tc := range map[string]struct {
		packet   []byte
		protocol byte
	}{
		"tcp":  {Opening(from, to), TCP},
		"udp":  {Datagram(from, to, []byte("odd")), UDP},
		"sctp": {Association(from, to), SCTP},
		"icmp": {IP{From: from.Addr(), To: to.Addr(), Protocol: ICMP}.Packet(Echo(7, []byte("ab"))), ICMP},
	} {
		t.Run(name, func(t *testing.T) {
			h := header.IPv4(tc.packet)
			if !h.IsValid(len(tc.packet)) || !h.IsChecksumValid() {
				t.Fatalf("%x is no valid packet", tc.packet)
			}
			p, ok := Parse(Frame(mac, mac, TypeIPv4, tc.packet))
			if !ok || p.Source != from.Addr() || p.To != to.Addr() || p.Protocol != tc.protocol {
				t.Errorf("parsed %+v, %v", p, ok)
			}
			if source, target := p.Ports(); tc.protocol != ICMP && (source != from.Port() || target != to.Port()) {
				t.Errorf("ports are %d and %d", source, target)
			}
			checkTransport(t, h)
		})
	}
}

func checkTransport(t *testing.T, h header.IPv4) {
	t.Helper()
	source, target, body := h.SourceAddress(), h.DestinationAddress(), h.Payload()
	switch h.Protocol() {
	case TCP:
		if b := header.TCP(body); !b.IsChecksumValid(source, target, 0, 0) || b.Flags() != header.TCPFlagSyn {
			t.Errorf("segment %x has a wrong checksum or flags %s", body, b.Flags())
		}
	case UDP:
		b := header.UDP(body)
		if !b.IsChecksumValid(source, target, sums.Checksum(b.Payload(), 0)) {
			t.Errorf("datagram %x has a wrong checksum", body)
		}
	case ICMP:
		if sum := sums.Checksum(body, 0); sum != 0xffff {
			t.Errorf("message %x has a wrong checksum", body)
		}
	}
}

func TestIPv6(t *testing.T) {
	for name, tc := range map[string]struct {
		packet []byte
		kind   header.ICMPv6Type
	}{
		"echo":                    {EchoV6(LinkLocal(mac), AllNodes()), header.ICMPv6EchoRequest},
		"router solicitation":     {RouterSolicitation(mac), header.ICMPv6RouterSolicit},
		"router advertisement":    {RouterAdvertisement(mac, netip.MustParsePrefix("2001:db8::/64")), header.ICMPv6RouterAdvert},
		"neighbour solicitation":  {NeighbourSolicitation(mac, LinkLocal(mac)), header.ICMPv6NeighborSolicit},
		"neighbour advertisement": {NeighbourAdvertisement(mac, LinkLocal(mac)), header.ICMPv6NeighborAdvert},
	} {
		t.Run(name, func(t *testing.T) {
			h := header.IPv6(tc.packet)
			if !h.IsValid(len(tc.packet)) {
				t.Fatalf("%x is no valid packet", tc.packet)
			}
			message := header.ICMPv6(h.Payload())
			want := header.ICMPv6Checksum(header.ICMPv6ChecksumParams{Header: message, Src: h.SourceAddress(), Dst: h.DestinationAddress()})
			if message.Type() != tc.kind || message.Checksum() != want {
				t.Errorf("type %d checksum %x, want %d, %x", message.Type(), message.Checksum(), tc.kind, want)
			}
			checkOptions(t, message)
		})
	}
}

func checkOptions(t *testing.T, message header.ICMPv6) {
	t.Helper()
	var options header.NDPOptions
	switch message.Type() {
	case header.ICMPv6RouterAdvert:
		options = header.NDPRouterAdvert(message.MessageBody()).Options()
	case header.ICMPv6NeighborSolicit:
		options = header.NDPNeighborSolicit(message.MessageBody()).Options()
	default:
		return
	}
	found, err := options.Iter(true)
	if err != nil {
		t.Fatalf("the options are not right: %v", err)
	}
	option, _, err := found.Next()
	address, ok := option.(header.NDPSourceLinkLayerAddressOption)
	if err != nil || !ok || address.EthernetAddress() != tcpip.LinkAddress(mac) {
		t.Errorf("the first option is %v, %v, want the address of the card", option, err)
	}
}

func TestFragments(t *testing.T) {
	h := IP{From: from.Addr(), To: to.Addr(), Protocol: UDP, ID: 9}
	whole := h.Datagram(1, 2, make([]byte, 92))
	got := make([]byte, len(whole))
	fragments := h.Fragments(whole, 24)
	for i, f := range fragments {
		b := header.IPv4(f)
		if !b.IsValid(len(f)) || b.ID() != 9 || b.More() != (i < len(fragments)-1) {
			t.Errorf("fragment %d is %x", i, f)
		}
		copy(got[b.FragmentOffset():], b.Payload())
	}
	if len(fragments) != 5 || string(got) != string(whole) {
		t.Errorf("%d fragments give %x, want %x", len(fragments), got, whole)
	}
}

func TestARP(t *testing.T) {
	b := header.ARP(ARP(ARPReply, mac, from.Addr(), to.Addr()))
	hardware, sender, reply := ARPSender(b)
	if !b.IsValid() || b.Op() != header.ARPReply || hardware.String() != mac.String() || sender != from.Addr() || !reply {
		t.Errorf("%x: %s, %s, %v", []byte(b), hardware, sender, reply)
	}
}

func TestDiscover(t *testing.T) {
	p, ok := Parse(Frame(Broadcast(), mac, TypeIPv4, Discover(mac)))
	if source, target := p.Ports(); !ok || source != 68 || target != 67 {
		t.Fatalf("parsed %+v, %v", p, ok)
	}
	body := p.Payload[8:]
	if magic := body[236:240]; string(magic) != "\x63\x82\x53\x63" || string(body[28:34]) != string(mac) {
		t.Errorf("the message is %x", body)
	}
}

func TestHello(t *testing.T) {
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	list := ECHConfigList("outer.example", key.PublicKey())
	keys := []tls.EncryptedClientHelloKey{{Config: ECHConfig("outer.example", key.PublicKey()), PrivateKey: key.Bytes()}}
	for name, tc := range map[string]struct {
		hello Hello
		size  int
		want  string
	}{
		"plain":     {Hello{SNI: "a.example"}, 1 << 14, "a.example"},
		"without":   {Hello{}, 1 << 14, ""},
		"split":     {Hello{SNI: "a.example"}, 7, "a.example"},
		"encrypted": {Hello{SNI: "outer.example", Hidden: "inner.example", ECH: list}, 1 << 14, "inner.example"},
	} {
		t.Run(name, func(t *testing.T) {
			record, err := tc.hello.Record()
			if err != nil {
				t.Fatal(err)
			}
			if got := serverName(t, Split(record, tc.size), keys); got != tc.want {
				t.Errorf("the server saw %q, want %q", got, tc.want)
			}
		})
	}
}

// serverName is what a server finds in the records.
func serverName(t *testing.T, records [][]byte, keys []tls.EncryptedClientHelloKey) string {
	t.Helper()
	client, server := net.Pipe()
	defer client.Close()
	defer server.Close()
	go func() {
		for _, r := range records {
			client.Write(r)
		}
	}()
	seen, enough := "none", errors.New("enough")
	err := tls.Server(server, &tls.Config{
		EncryptedClientHelloKeys: keys,
		GetConfigForClient: func(info *tls.ClientHelloInfo) (*tls.Config, error) {
			seen = info.ServerName
			client.Close() // the alert is for nobody
			return nil, enough
		},
	}).Handshake()
	if !errors.Is(err, enough) {
		t.Errorf("the handshake ended with %v", err)
	}
	return seen
}

func FuzzParse(f *testing.F) {
	f.Add(Frame(mac, mac, TypeIPv4, Opening(from, to)))
	f.Add(Frame(mac, mac, TypeIPv6, RouterSolicitation(mac)))
	f.Add(Frame(mac, mac, TypeARP, ARP(ARPRequest, mac, from.Addr(), to.Addr())))
	f.Fuzz(func(t *testing.T, frame []byte) {
		if p, ok := Parse(frame); ok {
			p.Ports()
			p.TCPFlags()
			ARPSender(p.Payload)
		}
	})
}
