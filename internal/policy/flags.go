package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Flags are the policy that a command line states beside or without a file.
type Flags struct {
	Allow   []string // HOST[:PORT]; an address or CIDR as [ADDRESS]:PORT or, with IPv4, ADDRESS:PORT
	Presets []string
	Net     string // "none": nothing is allowed; "": as the rest says
}

// FromFlags makes one policy of a file's (nil: none) and of flags. What an
// --allow names by address is meant, private or not. The error is [Faults].
func FromFlags(base *Policy, f Flags, in Inputs) (*Policy, Faults, error) {
	var faults Faults
	fault := func(where, format string, args ...any) {
		faults = append(faults, Fault{Where: where, Text: fmt.Sprintf(format, args...)})
	}
	switch {
	case f.Net != "" && f.Net != "none":
		fault("--net "+f.Net, "not known; want none, or no --net and --allow HOST")
	case f.Net == "none" && (base != nil || len(f.Allow) > 0 || len(f.Presets) > 0):
		fault("--net none", "contradicts --policy, --preset and --allow; give one or the other")
	}
	var doc draft
	if base != nil {
		doc.own, doc.budget, doc.cases = slices.Clone(base.Rules), base.Budget, base.Cases
	}
	for _, s := range f.Allow {
		rule, err := allowFlag(s)
		if err != nil {
			fault("--allow "+s, "%v", err)
			continue
		}
		for _, one := range rule.settle() {
			one.Where = rule.Name
			faults = append(faults, one)
		}
		doc.own = append(doc.own, rule)
	}
	for _, name := range f.Presets {
		if in.Preset == nil {
			fault("--preset "+name, "presets cannot be read here")
			continue
		}
		rules, err := in.Preset(name)
		if err != nil {
			fault("--preset "+name, "%v", err)
		}
		doc.preset = append(doc.preset, rules...)
	}
	if err := faults.err(); err != nil {
		return nil, nil, err
	}
	return finish(doc)
}

func allowFlag(s string) (Rule, error) {
	rule := Rule{Name: "--allow " + s}
	host, port := s, ""
	if rest, ok := strings.CutPrefix(s, "["); ok {
		inner, after, closed := strings.Cut(rest, "]")
		p, colon := strings.CutPrefix(after, ":")
		if !closed || after != "" && !colon {
			return rule, fmt.Errorf("want [ADDRESS] or [ADDRESS]:PORT")
		}
		host, port = inner, p
	} else if strings.Count(s, ":") == 1 {
		host, port, _ = strings.Cut(s, ":")
		if port == "" {
			return rule, fmt.Errorf("no port behind the colon")
		}
	}
	if host == "" {
		return rule, fmt.Errorf("want HOST or HOST:PORT")
	}
	if err := rule.setDestination(host); err != nil {
		return rule, err
	}
	if port != "" {
		if err := rule.setPorts([]string{port}); err != nil {
			return rule, err
		}
	}
	if rule.Prefix.IsValid() {
		c := prefixClass(rule.Prefix)
		rule.AllowPrivate = c != Public && c != Multicast && c != Reserved
	}
	return rule, nil
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
