package policy

import "net/netip"

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
	return true
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
