package policy

import (
	"net"
	"strconv"
)

// Owner is a name whose rules ask more of a connection than one that is made
// to an address would be held to.
type Owner struct {
	Host string // as rules name it; a wildcard where the rule has an upstream
	At   string // the name or address where it is
}

// Owners are the names that a connection by address to a port could pass by, if
// the address is theirs: their rules have requests read or a budget. Names that
// only a wildcard matches are not among them, since nobody knows them all, and
// neither are denied names, which are never looked up.
func (p *Policy) Owners(port uint16) (out []Owner) {
	if p == nil {
		return nil
	}
	seen := map[Owner]bool{}
	for i := range p.Rules {
		r := &p.Rules[i]
		if r.Host == "" || r.Host == HostAlias {
			continue
		}
		o := Owner{r.Host, r.Host}
		switch host, at, err := net.SplitHostPort(r.Upstream.Address); {
		case err == nil:
			if o.At = host; r.Deny || at != strconv.Itoa(int(port)) || !r.NeedsHTTP() && r.Budget == (Budget{}) {
				continue
			}
		case wildcard(r.Host) || !p.asksMore(r.Host, port):
			continue
		}
		if !seen[o] {
			seen[o] = true
			out = append(out, o)
		}
	}
	return out
}

// asksMore reports whether a name is allowed on a port, with conditions.
func (p *Policy) asksMore(host string, port uint16) bool {
	d := p.Decide(Request{Op: Connect, Host: host, Port: port})
	return d.Allow && d.Rule.Upstream.Address == "" && (d.Inspect || d.Rule.Budget != (Budget{}))
}

// Named decides about a connection to an address, which is allowed, whose
// client calls it by a name: the name has to be allowed too, and must not ask
// more than the address does.
func (p *Policy) Named(req Request, name string) Decision {
	d := p.Decide(Request{Op: Connect, Host: name, Port: req.Port, Protocol: req.Protocol})
	if d.Allow && (d.Inspect || d.Rule.Upstream.Address != "" || d.Rule.Budget != (Budget{})) {
		d.Allow, d.Why = false, WhyByAddress
	}
	return d
}
