package names

import (
	"encoding/binary"
	"net/netip"
	"strings"
	"sync"
	"time"

	"creel/internal/policy"
)

// Options of a resolver. The zero Options deny every name.
type Options struct {
	// Allow decides about a name in the form of [policy.CleanHost], and counts
	// the decision. It is called once a query, whatever the type, by several
	// goroutines.
	Allow func(host string) bool
	// Odd, where it is set, hears of each query that Allow is not asked about:
	// the name is none of a host, or one of the reverse trees. It is as sent,
	// at most 254 bytes of any value.
	Odd func(name string)
	// Pool is the IPv4 network that addresses are taken from, but for its first
	// and last.
	Pool netip.Prefix
	// Max is how many names may have an address, at most what Pool has. One
	// takes up to 400 bytes: a guest that may ask for **.example.com can make
	// each 253 bytes long.
	Max int
}

// Names is the resolver of one sandbox. It is safe for use by several
// goroutines.
type Names struct {
	opts  Options
	first uint32 // of Pool, never given out
	idle  time.Duration
	conns int

	mu     sync.Mutex
	number map[string]uint32 // by host, from 0
	hosts  []string          // by number; never shrinks, so that no address changes its name
}

// New makes a resolver that has no names yet.
func New(o Options) *Names {
	n := &Names{opts: o, idle: idleTimeout, conns: maxConns, number: map[string]uint32{}}
	n.opts.Max = max(o.Max, 0)
	if !o.Pool.IsValid() || !o.Pool.Addr().Is4() || o.Pool.Bits() > 30 {
		n.opts.Max, n.opts.Pool = 0, netip.Prefix{}
		return n
	}
	n.opts.Pool = o.Pool.Masked()
	n.opts.Max = min(n.opts.Max, 1<<(32-o.Pool.Bits())-2)
	base := n.opts.Pool.Addr().As4()
	n.first = binary.BigEndian.Uint32(base[:])
	return n
}

// Host is the name whose address addr is. It stays so when the name is no
// longer allowed.
func (n *Names) Host(addr netip.Addr) (host string, ok bool) {
	if !n.opts.Pool.Contains(addr) {
		return "", false
	}
	raw := addr.As4()
	number := int(binary.BigEndian.Uint32(raw[:])-n.first) - 1
	n.mu.Lock()
	defer n.mu.Unlock()
	if number < 0 || number >= len(n.hosts) {
		return "", false
	}
	return n.hosts[number], true
}

// Used is how many names have an address.
func (n *Names) Used() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.hosts)
}

// address is the one of an allowed host; false where none is left for it.
func (n *Names) address(host string) (addr [4]byte, ok bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	number, known := n.number[host]
	if !known {
		if len(n.hosts) >= n.opts.Max {
			return addr, false
		}
		number = uint32(len(n.hosts))
		n.number[host] = number
		n.hosts = append(n.hosts, host)
	}
	binary.BigEndian.PutUint32(addr[:], n.first+1+number)
	return addr, true
}

// allowed asks about a name as it was sent.
func (n *Names) allowed(name string) (host string, ok bool) {
	host, err := policy.CleanHost(name)
	if err != nil || reverse(host) {
		if n.opts.Odd != nil {
			n.opts.Odd(name)
		}
		return "", false
	}
	return host, n.opts.Allow != nil && n.opts.Allow(host)
}

// reverse names are those of addresses, RFC 1035 section 3.5 and RFC 3596
// section 2.5. There is nothing to tell: not even of the addresses here, which
// stand for what the guest asked itself.
func reverse(host string) bool {
	for _, tree := range []string{"in-addr.arpa", "ip6.arpa"} {
		if rest, ok := strings.CutSuffix(host, tree); ok && (rest == "" || strings.HasSuffix(rest, ".")) {
			return true
		}
	}
	return false
}
