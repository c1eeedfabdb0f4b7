// Package policy decides what a sandbox may reach. [New] makes a [Policy] of
// rules, which package syntax reads from files and flags; [Policy.Decide]
// answers one [Request] with one [Decision], and a [Meter] counts what budgets
// limit. All of it is pure: whoever calls passes addresses and the time. The
// package must not touch files, the network, the environment or the clock, and
// must not import anything of ours.
package policy

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
)

// Protocol is what is spoken on a connection.
type Protocol string

const (
	TLS  Protocol = "tls"
	HTTP Protocol = "http"
	TCP  Protocol = "tcp" // opaque: bound by name, not looked into
	UDP  Protocol = "udp"
)

// HostAlias is the name of the machine that Creel runs on. A rule for it is of
// its own kind: no wildcard matches it, and its ports are loopback ports of
// the host.
const HostAlias = "host.creel.internal"

// PortRange is an inclusive range; First is at least 1.
type PortRange struct{ First, Last uint16 }

func (p PortRange) String() string {
	s := strconv.Itoa(int(p.First))
	if p.Last != p.First {
		s += "-" + strconv.Itoa(int(p.Last))
	}
	return s
}

// Upstream sends a name elsewhere. Address is HOST:PORT; CA is PEM, or "" for
// the system's roots.
type Upstream struct{ Address, CA string }

// CheckUpstream says what is wrong with the address of an upstream.
func CheckUpstream(address string) error {
	host, port, err := net.SplitHostPort(address)
	if err == nil {
		_, err = ParsePort(port)
	}
	if err == nil {
		if addr, aerr := netip.ParseAddr(host); aerr != nil {
			_, err = CleanHost(host)
		} else if c := AddressClass(addr); addr.Zone() != "" || c == Multicast || c == Reserved {
			err = fmt.Errorf("%s is a %s address", addr, c)
		}
	}
	if err != nil {
		return fmt.Errorf("upstream: address %.100q: %w", address, err)
	}
	return nil
}

// Rule is one line of a policy. Exactly one of Host and Prefix is set.
type Rule struct {
	Name string // how people and records know it; unique in a policy
	Line int    // in the file it was read from; 0: none
	Deny bool

	Host   string // a name, *.NAME for one label below it, **.NAME for any depth, ** for all
	Prefix netip.Prefix

	Ports    []PortRange // sorted, disjoint; empty on a deny: every port
	Protocol Protocol    // allow: "" is by port, see ProtocolAt; deny: "" is all, else TCP or UDP
	Methods  []string    // sorted; empty: every method
	Paths    []string    // sorted patterns; empty: every path

	Secret       string // name of the secret that is used here
	Upstream     Upstream
	AllowPrivate bool
	ECH          bool // encrypted ClientHello may pass
	Unreadable   bool // responses may pass in which a secret cannot be searched for
	Budget       Budget

	paths []pathPattern // of a deny: folded
	key   string
}

// Budget holds limits; 0 is no limit.
type Budget struct {
	BytesOut, BytesIn, Requests, Connections int64
	Hosts                                    int64 // distinct destinations, at most 65,536
	RequestsPerMinute                        int64
}

// Policy is a set of rules; their order means nothing. The zero value, and a
// nil pointer, deny everything. It must not be changed once made, and is then
// safe for use by several goroutines.
type Policy struct {
	Rules  []Rule
	Budget Budget
	Cases  []Case // what the file itself says should be allowed or denied
	// EndOnAlert ends the task when a stand-in or a canary is about to leave
	// for where it does not belong.
	EndOnAlert bool

	index index
}

// New makes a policy of rules that are known to be right and have unique
// names: package syntax checks what people write.
func New(rules []Rule, budget Budget, cases []Case) *Policy {
	p := &Policy{Rules: rules, Budget: budget, Cases: cases}
	for i := range p.Rules {
		p.Rules[i].prepare()
	}
	p.index.build(p.Rules)
	return p
}

func (r *Rule) prepare() {
	r.paths = nil
	for _, s := range r.Paths {
		pattern := compilePath(s)
		if r.Deny {
			pattern = foldAll(pattern)
		}
		r.paths = append(r.paths, pattern)
	}
	r.key = fmt.Sprintf("%s %q %v %v %v %q", r.Scope(), r.Upstream, r.AllowPrivate, r.ECH, r.Unreadable, r.Secret)
}

// ProtocolAt is the protocol of an allow rule on one of its ports: TLS on 443
// and HTTP on 80, opaque TCP elsewhere, unless the rule names one.
func (r *Rule) ProtocolAt(port uint16) Protocol {
	switch {
	case r.Protocol != "":
		return r.Protocol
	case port == 443:
		return TLS
	case port == 80:
		return HTTP
	}
	return TCP
}

// NeedsHTTP reports whether the rule can be enforced only by reading requests:
// over TLS that means interception.
func (r *Rule) NeedsHTTP() bool {
	return len(r.Methods) > 0 || len(r.Paths) > 0 || r.Secret != ""
}

// Intercepts reports whether the rule needs TLS to be opened on any port.
func (r *Rule) Intercepts() bool {
	if r.Deny || !r.NeedsHTTP() {
		return false
	}
	return slices.ContainsFunc(r.Ports, func(p PortRange) bool {
		return r.Protocol == TLS || r.Protocol == "" && p.First <= 443 && 443 <= p.Last
	})
}

// Destination is the rule's host pattern or address.
func (r *Rule) Destination() string {
	if r.Host != "" {
		return r.Host
	}
	if r.Prefix.IsSingleIP() {
		return r.Prefix.Addr().String()
	}
	return r.Prefix.String()
}

// Key is the same for rules that say the same, maybe of another policy; names
// and budgets apart. What was used of a budget is remembered by it.
func (r *Rule) Key() string { return r.key }

// Like finds the rule that says the same as one of another policy; nil where
// there is none.
func (p *Policy) Like(r *Rule) *Rule {
	if p == nil {
		return nil
	}
	for i := range p.Rules {
		if p.Rules[i].key == r.key {
			return &p.Rules[i]
		}
	}
	return nil
}

// Conditional reports whether the rule speaks only of some requests.
func (r *Rule) Conditional() bool { return len(r.Methods) > 0 || len(r.Paths) > 0 }

// coversPort reports whether the rule speaks of a port and transport.
func (r *Rule) coversPort(port uint16, udp bool) bool {
	if r.Deny && r.Protocol == "" {
		// A deny without a protocol covers both transports.
	} else if (r.Protocol == UDP) != udp {
		return false
	}
	if len(r.Ports) == 0 {
		return r.Deny
	}
	for _, p := range r.Ports {
		if p.First <= port && port <= p.Last {
			return true
		}
	}
	return false
}

func (r *Rule) coversRequest(t *target) bool {
	if len(r.Methods) > 0 && !r.coversMethod(t.method) {
		return false
	}
	if len(r.paths) == 0 {
		return true
	}
	if r.Deny {
		return t.read().mayMatch(r.paths)
	}
	return t.read().surelyMatches(r.paths)
}

// coversMethod is in capitals: others are refused before. Servers answer a HEAD
// as they would a GET, so that a deny of one is a deny of both.
func (r *Rule) coversMethod(method string) bool {
	return slices.Contains(r.Methods, method) || r.Deny && method == "HEAD" && slices.Contains(r.Methods, "GET")
}

// Scope says what the rule is about. With the options it is the whole rule,
// but for the budget: one that changes must not forget what was used.
func (r *Rule) Scope() string {
	verb := "allow"
	if r.Deny {
		verb = "deny"
	}
	return fmt.Sprintf("%s %s %s %v %q %q", verb, r.Destination(), r.Protocol, r.Ports, r.Methods, r.Paths)
}

// bySpecificity orders allow rules of one pattern: the first that matches a
// request is the one that decides it, however the file was ordered.
func bySpecificity(a, b *Rule) int {
	longest := func(r *Rule) (n int) {
		for _, p := range r.Paths {
			n = max(n, len(p))
		}
		return n
	}
	return cmp.Or(
		-cmp.Compare(longest(a), longest(b)),
		-cmp.Compare(min(1, len(a.Methods)), min(1, len(b.Methods))),
		cmp.Compare(a.key, b.key),
	)
}

// Secrets are the names of the secrets that the policy uses, sorted.
func (p *Policy) Secrets() (names []string) {
	if p == nil {
		return nil
	}
	for i := range p.Rules {
		if s := p.Rules[i].Secret; s != "" && !slices.Contains(names, s) {
			names = append(names, s)
		}
	}
	slices.Sort(names)
	return names
}

// ReachesPrivate reports whether the rule can lead to an address that is not
// public.
func (r *Rule) ReachesPrivate() bool {
	upstream, err := netip.ParseAddrPort(r.Upstream.Address)
	return !r.Deny && (r.AllowPrivate || err == nil && AddressClass(upstream.Addr()) != Public)
}

// ReachesMetadata is the class of addresses where clouds hand out credentials,
// or of the network that they are in, where the rule can lead there; else "".
func (r *Rule) ReachesMetadata() Class {
	c := Public
	if upstream, err := netip.ParseAddrPort(r.Upstream.Address); err == nil {
		c = AddressClass(upstream.Addr())
	} else if r.Prefix.IsValid() {
		c = PrefixClass(r.Prefix)
	}
	if !r.Deny && (c == Metadata || c == LinkLocal) {
		return c
	}
	return ""
}

// Protocols are those that an allow rule speaks on its ports, sorted.
func (r *Rule) Protocols() (out []Protocol) {
	for _, p := range r.Ports {
		for _, port := range []uint16{p.First, p.Last, 80, 443} {
			if p.First <= port && port <= p.Last {
				out = append(out, r.ProtocolAt(port))
			}
		}
		if p.Last-p.First > 2 {
			out = append(out, r.ProtocolAt(1)) // between the ends
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}
