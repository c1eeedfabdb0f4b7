// Package egress is the only code that looks names up and dials for a guest.
// [New] makes a [Dialer] of a [Config], which [ReadSystem] reads from the
// host; [Dialer.Dial] connects to a [Target] that policy allows, and a
// [Witness] puts each lookup and each dial on record before it happens.
//
// All files are read before New returns; from then on only sockets are used,
// so that the process can be locked in. That also means that a host whose
// nameservers change keeps the old ones for the run. Answers are not cached:
// every dial asks again, every address is asked of policy, and exactly the
// address that was allowed is dialled. Datagrams never take a proxy.
//
// The package must not decide by itself what is allowed, must not hand a name
// to anything that resolves it (but for [Config.ProxyResolves]), and must not
// print a proxy's password.
package egress

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"time"

	"creel/internal/policy"
)

const (
	dialTimeout  = 30 * time.Second // lookups and every attempt together
	tryTimeout   = 10 * time.Second // one address, a proxy's greeting included
	maxAttempts  = 4
	maxAddresses = 32 // of one name that are looked at
)

// Config is what the host's settings say.
type Config struct {
	Nameservers []netip.AddrPort        // at most three are asked
	Hosts       map[string][]netip.Addr // by name as [policy.CleanHost] writes it
	Proxy       *Proxy                  // nil: connect directly
	// ProxyResolves hands the proxy names instead of addresses, for networks
	// whose hosts cannot resolve public names. What address the proxy then
	// connects to is not seen here, and policy is not asked about it: the
	// proxy answers for names that lead to private addresses.
	ProxyResolves bool
	CA            string // PEM: trusted besides the system's roots
}

// Target is what the guest connected to. Exactly one of Host and Addr is set.
type Target struct {
	Host     string // a name as [policy.CleanHost] writes it
	Addr     netip.Addr
	Port     uint16
	Protocol policy.Protocol
}

// Attempt is one connection that is about to be made. Either Address is what
// is dialled, or Name is the HOST:PORT that a proxy is to resolve and dial.
type Attempt struct {
	Address  netip.AddrPort
	Name     string
	Via      string // the proxy, SCHEME://HOST:PORT; "": none
	Decision policy.Decision
}

// Witness puts on record before the act; an error stops the act.
type Witness interface {
	Lookup(ctx context.Context, host string) error // before a nameserver is asked
	Dial(ctx context.Context, a Attempt) error     // before exactly this is dialled
}

// Dialer is safe for use by several goroutines.
type Dialer struct {
	hosts         map[string][]netip.Addr
	resolver      resolver
	proxy         *proxy
	proxyResolves bool
	roots         *x509.CertPool
	own           ownAddresses
	connect       func(ctx context.Context, network string, addr netip.AddrPort) (net.Conn, error)
}

// New reads what remains to be read: the system's roots and the host's own
// addresses.
func New(c Config) (*Dialer, error) {
	roots, err := x509.SystemCertPool()
	if err != nil {
		roots = x509.NewCertPool() // a host without any: nothing verifies
	}
	if c.CA != "" && !roots.AppendCertsFromPEM([]byte(c.CA)) {
		return nil, errors.New("read proxy CA: no certificate in it; give it as PEM")
	}
	d := &Dialer{hosts: c.Hosts, proxyResolves: c.ProxyResolves, roots: roots, connect: connect}
	d.resolver.servers = c.Nameservers[:min(len(c.Nameservers), maxNameservers)]
	if d.own, err = readOwnAddresses(); err != nil {
		return nil, err
	}
	if c.Proxy != nil {
		if d.proxy, err = newProxy(c.Proxy, roots); err != nil {
			return nil, err
		}
	}
	return d, nil
}

// Roots are the system's roots and [Config.CA]; the caller owns the copy.
func (d *Dialer) Roots() *x509.CertPool { return d.roots.Clone() }

// Dial connects to where a policy lets the target lead: to its rule's
// upstream, to the host itself for [policy.HostAlias], else to what its name
// resolves to. The error is a [*Denied] where the policy says no; [Class] has
// a word for any. Connections over TCP have CloseWrite.
func (d *Dialer) Dial(ctx context.Context, p *policy.Policy, t Target, w Witness) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	q := question{policy: p, req: policy.Request{Op: policy.Connect, Host: t.Host, Port: t.Port, Protocol: t.Protocol}}
	if t.Host == "" {
		q.req.Addr = t.Addr
	}
	c := p.Decide(q.req)
	if t.Host == "" && t.Addr.Zone() != "" {
		c.Allow, c.Why = false, policy.WhyHost
	}
	if !c.Allow {
		return nil, &Denied{c}
	}
	to, err := destinationOf(c)
	if err != nil {
		return nil, err
	}
	if c.Rule.Upstream.Address != "" && t.Host == "" {
		q.req.Instead = t.Addr
	}
	viaName := t.Protocol != policy.UDP && d.proxyResolves && d.proxy != nil && !d.proxy.direct(to.host, to.port)
	if to.host != "" && viaName && len(d.hosts[to.host]) == 0 {
		return d.dialName(ctx, to, c, w)
	}
	addrs, err := d.addresses(ctx, to, w)
	if err != nil {
		return nil, err
	}
	allowed, err := d.ask(ctx, &q, addrs)
	if err != nil {
		return nil, err
	}
	return d.dialFirst(ctx, allowed, to, w)
}

// Addresses are those that a name has now, or the address that host is; there
// are none where names are left to the proxy.
func (d *Dialer) Addresses(ctx context.Context, host string, w Witness) ([]netip.Addr, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	if addr, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{addr.Unmap()}, nil
	}
	if d.proxyResolves && d.proxy != nil && len(d.hosts[host]) == 0 {
		return nil, nil
	}
	addrs, err := d.addresses(ctx, place{host: host}, w)
	if Class(err) == NoSuchName {
		return nil, nil
	}
	return addrs, err
}

// place is where a connection goes: to a name or to addresses.
type place struct {
	host  string // "": only addresses
	addrs []netip.Addr
	port  uint16
}

func (to place) String() string {
	host := to.host
	if host == "" {
		host = to.addrs[0].String()
	}
	return net.JoinHostPort(host, strconv.Itoa(int(to.port)))
}

var loopback = []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}

func destinationOf(c policy.Decision) (place, error) {
	req := c.Request
	switch {
	case c.Rule.Upstream.Address != "":
		to, err := parsePlace(c.Rule.Upstream.Address)
		if err != nil {
			return to, fmt.Errorf("read upstream of rule %q: %w", c.RuleName(), err)
		}
		return to, nil
	case req.Host == policy.HostAlias:
		return place{addrs: loopback, port: req.Port}, nil
	case req.Host != "":
		return place{host: req.Host, port: req.Port}, nil
	}
	return place{addrs: []netip.Addr{req.Addr}, port: req.Port}, nil
}

// parsePlace reads HOST:PORT.
func parsePlace(s string) (place, error) {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return place{}, errors.New("want HOST:PORT")
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		return place{}, fmt.Errorf("port %.20q: want 1 to 65535", port)
	}
	to := place{port: uint16(n)}
	if addr, err := netip.ParseAddr(host); err == nil {
		if addr.Zone() != "" {
			return place{}, fmt.Errorf("address %.80q: a zone is not supported", host)
		}
		to.addrs = []netip.Addr{addr.Unmap()}
		return to, nil
	}
	to.host, err = policy.CleanHost(host)
	return to, err
}

// addresses finds what a place is made of, in the order in which to try.
func (d *Dialer) addresses(ctx context.Context, to place, w Witness) ([]netip.Addr, error) {
	if to.host == "" {
		return to.addrs, nil
	}
	addrs := d.hosts[to.host]
	if len(addrs) == 0 {
		if err := w.Lookup(ctx, to.host); err != nil {
			return nil, &failure{Unrecorded, fmt.Errorf("record lookup of %s: %w", to.host, err)}
		}
		var err error
		if addrs, err = d.resolver.lookup(ctx, to.host); err != nil {
			return nil, fmt.Errorf("look up %s: %w", to.host, err)
		}
	}
	return addrs[:min(len(addrs), maxAddresses)], nil
}
