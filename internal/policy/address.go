package policy

import (
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"slices"
	"strings"
)

// Class says what kind of place an address is.
type Class string

const (
	Public    Class = "public"
	Private   Class = "private"    // RFC 1918, unique local, shared, benchmarking
	Loopback  Class = "loopback"   // also the host's own addresses
	LinkLocal Class = "link-local" // also site-local
	Metadata  Class = "metadata"   // where clouds hand out credentials
	Multicast Class = "multicast"  // also broadcast
	Reserved  Class = "reserved"   // unspecified, documentation, tunnels, never routed
)

var classes = []struct {
	class    Class
	prefixes []netip.Prefix // the first class that has the address wins
}{
	{Metadata, prefixes("169.254.169.254/32", "169.254.170.2/32", "169.254.170.23/32", "100.100.100.200/32", "192.0.0.192/32",
		"168.63.129.16/32", "fd00:ec2::/32", "fd20:ce::254/128", "fd00:42::42/128")},
	{Loopback, prefixes("127.0.0.0/8", "::1/128")},
	{LinkLocal, prefixes("169.254.0.0/16", "fe80::/10", "fec0::/10")},
	{Private, prefixes("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "198.18.0.0/15", "fc00::/7")},
	{Multicast, prefixes("224.0.0.0/4", "255.255.255.255/32", "ff00::/8")},
	{Reserved, prefixes("0.0.0.0/8", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "198.51.100.0/24", "203.0.113.0/24",
		"240.0.0.0/4", "::/96", "100::/64", "2001::/23", "2001:db8::/32", "3fff::/20", "5f00::/16")},
}

func prefixes(list ...string) (out []netip.Prefix) {
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

var globalUnicast = netip.MustParsePrefix("2000::/3")

// AddressClass says what an address is, looking into the forms that carry an
// IPv4 address: mapped, NAT64, 6to4 and ISATAP. An invalid address is
// Reserved.
func AddressClass(addr netip.Addr) Class {
	if !addr.IsValid() {
		return Reserved
	}
	addr = addr.Unmap().WithZone("")
	for _, c := range classes {
		for _, p := range c.prefixes {
			if p.Contains(addr) {
				return c.class
			}
		}
	}
	if inner, ok := embedded(addr); ok {
		return AddressClass(inner)
	}
	if addr.Is6() && !globalUnicast.Contains(addr) {
		return Reserved
	}
	return Public
}

var (
	nat64      = netip.MustParsePrefix("64:ff9b::/96")
	nat64Local = netip.MustParsePrefix("64:ff9b:1::/48")
	sixToFour  = netip.MustParsePrefix("2002::/16")
)

// embedded is the IPv4 address that an IPv6 address is a way to write, where
// it is one.
func embedded(addr netip.Addr) (netip.Addr, bool) {
	if !addr.Is6() {
		return netip.Addr{}, false
	}
	b := addr.As16()
	switch {
	case nat64.Contains(addr), nat64Local.Contains(addr):
		return netip.AddrFrom4([4]byte(b[12:16])), true
	case sixToFour.Contains(addr):
		return netip.AddrFrom4([4]byte(b[2:6])), true
	case binary.BigEndian.Uint32(b[8:12])&^0x02000000 == 0x00005efe: // ISATAP, RFC 5214
		return netip.AddrFrom4([4]byte(b[12:16])), true
	}
	return netip.Addr{}, false
}

// PrefixClass is the class of a whole prefix, or Public when it reaches into
// public space.
func PrefixClass(p netip.Prefix) Class {
	for _, c := range classes {
		for _, known := range c.prefixes {
			if known.Bits() <= p.Bits() && known.Contains(p.Addr()) {
				return c.class
			}
		}
	}
	if p.IsSingleIP() {
		return AddressClass(p.Addr())
	}
	return Public
}

// permits reports whether an allow rule lets its destination be an address of
// a class. Private and loopback addresses want the rule to say so, or to have
// the very address as its upstream: what a name becomes is not the rule's word.
// Link-local and metadata ones want to be written down as such; the rest never
// are.
func (r *Rule) permits(addr netip.Addr, c Class) bool {
	upstream, err := netip.ParseAddrPort(r.Upstream.Address)
	literal := err == nil && upstream.Addr().Unmap() == addr
	switch c {
	case Public:
		return true
	case Private, Loopback:
		return r.AllowPrivate || r.Host == HostAlias && c == Loopback || literal
	case LinkLocal, Metadata:
		return literal || r.AllowPrivate && r.Prefix.IsValid() && (c == PrefixClass(r.Prefix) || PrefixClass(r.Prefix) == LinkLocal && c == LinkLocal)
	}
	return false
}

// metadataNames are under which clouds hand out credentials.
var metadataNames = []string{
	"metadata", "metadata.google.internal", "metadata.goog", "instance-data", "instance-data.ec2.internal", "metadata.azure.internal",
	"metadata.tencentyun.com", "metadata.platformequinix.com", "metadata.packet.net",
}

// localDomains are for names that mean something in one network alone
// (RFC 6761, 6762, 8375, and what is used without an RFC), with what routers,
// cluster and private networks call themselves.
var localDomains = []string{
	"local", "internal", "intranet", "intra", "private", "corp", "home", "lan", "localdomain", "workgroup", "home.arpa", "consul", "svc", "docker",
	"fritz.box", "speedport.ip", "easy.box", "mshome.net", "routerlogin.net", "tplinkwifi.net", "ts.net",
}

// loopbackDomains lead to this machine.
var loopbackDomains = []string{
	"localhost", "localhost.localdomain", "localtest.me", "lvh.me", "vcap.me", "lacolhost.com", "localho.st", "fuf.me", "lndo.site", "ddev.site",
}

// addressDomains have names for every address, which is in the name.
var addressDomains = []string{"nip.io", "sslip.io", "xip.io", "traefik.me", "plex.direct", "1u.ms", "rbndr.us", "local-ip.co", "backname.io"}

// NameClass is the class of what a clean name leads to as far as the name tells:
// Metadata, Loopback, Private, or Public where nothing in it speaks against.
// What a name really leads to is known only once it is looked up.
func NameClass(host string) Class {
	switch {
	case slices.Contains(metadataNames, host):
		return Metadata
	case host == HostAlias, below(host, loopbackDomains):
		return Loopback
	case !strings.Contains(host, "."), below(host, localDomains):
		return Private // of a search domain, or of one network
	}
	inside := addressesIn(host)
	if below(host, addressDomains) {
		inside = append(inside, otherAddressesIn(host)...)
		if len(inside) == 0 {
			return Private // whatever it is: there is one for each
		}
	}
	found := Public
	for _, addr := range inside {
		switch c := AddressClass(addr); {
		case c == Metadata:
			return c
		case c == Private, c == Loopback, c == LinkLocal:
			found = c
		}
	}
	return found
}

// below reports whether a name is one of the domains, or in one.
func below(host string, domains []string) bool {
	return slices.ContainsFunc(domains, func(domain string) bool {
		return host == domain || strings.HasSuffix(host, "."+domain)
	})
}

// addressesIn are the IPv4 addresses that a name holds: four numbers with dots
// or dashes between them.
func addressesIn(host string) (out []netip.Addr) {
	parts := strings.FieldsFunc(host, func(c rune) bool { return c == '.' || c == '-' })
	for i := 0; i+4 <= len(parts); i++ {
		if addr, err := netip.ParseAddr(strings.Join(parts[i:i+4], ".")); err == nil {
			out = append(out, addr)
		}
	}
	return out
}

// otherAddressesIn are those in the hexadecimal and IPv6 forms that a label of
// an address domain may have.
func otherAddressesIn(host string) (out []netip.Addr) {
	for label := range strings.SplitSeq(host, ".") {
		if addr, err := netip.ParseAddr(strings.ReplaceAll(label, "-", ":")); err == nil {
			out = append(out, addr)
		}
		word := label[strings.LastIndexByte(label, '-')+1:]
		if b, err := hex.DecodeString(word); err == nil && len(b) == 4 {
			out = append(out, netip.AddrFrom4([4]byte(b)))
		}
	}
	return out
}
