package policy

import (
	"net"
	"net/netip"
)

// TakesAway reports whether a policy that follows another surely allows nothing
// that the other does not: it allows nothing at all, or differs only by more
// denies, fewer allows and smaller budgets. It may be false for one that allows
// less in another way.
func TakesAway(from, to *Policy) bool {
	if to == nil || len(to.allows()) == 0 {
		return true
	}
	if from == nil || from.EndOnAlert && !to.EndOnAlert || !to.Budget.within(&from.Budget) || from.repeats() || to.repeats() {
		return false
	}
	for i := range from.Rules {
		if from.Rules[i].Deny && to.Like(&from.Rules[i]) == nil {
			return false
		}
	}
	for _, r := range to.allows() {
		was := from.Like(r)
		if was == nil || !r.Budget.within(&was.Budget) {
			return false
		}
	}
	// A narrow allow hides a broader one for its destination: without it the
	// broader one would decide.
	for _, gone := range from.allows() {
		if to.Like(gone) != nil {
			continue
		}
		for _, r := range to.allows() {
			if meet(gone, r) {
				return false
			}
		}
	}
	return !ownerGoes(from, to)
}

// ownerGoes reports whether a name may not be among [Policy.Owners] any more, so
// that an allow by address, which remains, reaches what it kept from it.
func ownerGoes(from, to *Policy) bool {
	for _, owner := range from.allows() {
		if !from.mayOwn(owner) || to.Like(owner) != nil && !to.deniesMore(from, owner) {
			continue
		}
		for _, r := range to.allows() {
			if r.Prefix.IsValid() && overlap(owner, r) {
				return true
			}
		}
	}
	return false
}

// mayOwn reports whether an allow can make its name an owner.
func (p *Policy) mayOwn(r *Rule) bool {
	if r.Host == "" || r.Host == HostAlias {
		return false
	}
	if r.NeedsHTTP() || r.Budget != (Budget{}) || r.Upstream.Address != "" {
		return true
	}
	for i := range p.Rules {
		if deny := &p.Rules[i]; deny.Deny && deny.Conditional() && meet(deny, r) {
			return true
		}
	}
	return false
}

// deniesMore reports whether a policy has a deny about a rule's destination that
// the other has not: a denied name is nobody's address.
func (p *Policy) deniesMore(from *Policy, r *Rule) bool {
	for i := range p.Rules {
		if deny := &p.Rules[i]; deny.Deny && meet(deny, r) && from.Like(deny) == nil {
			return true
		}
	}
	return false
}

// overlap reports whether two rules can be about one port: an upstream's is
// another than its rule's.
func overlap(a, b *Rule) bool {
	for _, p := range b.Ports {
		if _, port, err := net.SplitHostPort(a.Upstream.Address); err == nil {
			if n, err := ParsePort(port); err != nil || p.First <= n && n <= p.Last {
				return true
			}
		}
		for _, q := range a.Ports {
			if p.First <= q.Last && q.First <= p.Last {
				return true
			}
		}
	}
	return false
}

func (p *Policy) allows() (out []*Rule) {
	for i := range p.Rules {
		if !p.Rules[i].Deny {
			out = append(out, &p.Rules[i])
		}
	}
	return out
}

// repeats reports whether two rules say the same.
func (p *Policy) repeats() bool {
	seen := map[string]bool{}
	for i := range p.Rules {
		if seen[p.Rules[i].key] {
			return true
		}
		seen[p.Rules[i].key] = true
	}
	return false
}

// meet reports whether two rules can be about one destination.
func meet(a, b *Rule) bool {
	if a.Prefix != (netip.Prefix{}) || b.Prefix != (netip.Prefix{}) {
		return a.Prefix.IsValid() && b.Prefix.IsValid() && a.Prefix.Overlaps(b.Prefix)
	}
	return Covers(a.Host, b.Host) || Covers(b.Host, a.Host)
}

// within reports whether a budget allows no more than another.
func (b *Budget) within(other *Budget) bool {
	for _, pair := range [][2]int64{
		{b.BytesOut, other.BytesOut}, {b.BytesIn, other.BytesIn}, {b.Requests, other.Requests}, {b.Connections, other.Connections},
		{b.Hosts, other.Hosts}, {b.RequestsPerMinute, other.RequestsPerMinute},
	} {
		if mine, limit := pair[0], pair[1]; limit != 0 && (mine == 0 || mine > limit) {
			return false
		}
	}
	return true
}
