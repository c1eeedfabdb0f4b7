package policy

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

var (
	methodPattern = regexp.MustCompile(`^[A-Z][A-Z0-9_-]{0,19}$`)
	secretPattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$`)
)

// settle gives a rule its defaults and returns what is wrong within it.
func (r *Rule) settle() (faults Faults) {
	fault := func(mend, format string, args ...any) {
		faults = append(faults, Fault{Text: fmt.Sprintf(format, args...), Mend: mend})
	}
	if len(r.Name) > 300 || strings.ContainsFunc(r.Name, func(c rune) bool { return c < ' ' || c == 0x7f || c == 0xfffd }) {
		fault("keep to 300 plain characters", "name %.40q cannot be printed", r.Name)
	}
	switch r.Protocol {
	case "", TLS, HTTP, TCP, UDP:
	default:
		fault("write tls, http, tcp or udp", "protocol %.40q is not known", r.Protocol)
		return faults
	}
	if r.Deny && (r.Protocol == TLS || r.Protocol == HTTP) {
		fault("leave protocol out, or write tcp or udp", "a deny is by transport, not by %s", r.Protocol)
	}
	if !r.Deny && len(r.Ports) == 0 {
		switch {
		case r.Host == HostAlias || r.Protocol == TCP || r.Protocol == UDP:
			fault("write `ports: N`", "no ports, and there is no usual one for %s", r.Destination())
		case r.Protocol == HTTP:
			r.Ports = []PortRange{{80, 80}}
		default:
			r.Ports = []PortRange{{443, 443}}
		}
	}
	for _, m := range r.Methods {
		if !methodPattern.MatchString(m) {
			fault("write it as in the request, such as GET", "method %.40q is not one", m)
		}
	}
	for _, p := range r.Paths {
		if err := checkPath(p); err != nil {
			fault("", "%v", err)
		}
	}
	if len(r.Paths) > 1000 {
		fault("use wildcards", "%d paths, at most 1000", len(r.Paths))
	}
	faults = append(faults, r.settleRequests()...)
	return append(faults, r.settleAddress()...)
}

// settleRequests checks what can only be enforced where requests are read.
func (r *Rule) settleRequests() (faults Faults) {
	fault := func(mend, format string, args ...any) {
		faults = append(faults, Fault{Text: fmt.Sprintf(format, args...), Mend: mend})
	}
	if r.Secret != "" && !secretPattern.MatchString(r.Secret) {
		fault("use letters, digits, '_', '.' and '-'; the value itself never belongs in a policy", "secret: not the name of one")
	}
	if r.Secret != "" && r.Host == "**" {
		fault("name the hosts that it is for", "secret %q would be given to every host", r.Secret)
	}
	if !r.NeedsHTTP() {
		return faults
	}
	if r.Prefix.IsValid() && (r.Deny || r.Secret != "") {
		fault("write the host's name, or leave them out", "secrets, and denies with methods or paths, are by name and not by address")
	}
	if r.Deny && r.Protocol == UDP {
		fault("leave protocol out", "there are no methods and paths in udp")
	}
	for _, ports := range r.Ports {
		opaque := r.ProtocolAt(ports.First)
		if ports.First != ports.Last && r.Protocol == "" {
			opaque = TCP
		}
		if !r.Deny && (opaque == TCP || opaque == UDP) {
			fault("write `protocol: tls` or `protocol: http`", "methods, paths and secrets need requests, and port %s is opaque %s", formatPorts([]PortRange{ports})[0], opaque)
		}
	}
	return faults
}

func (r *Rule) settleAddress() (faults Faults) {
	if r.Host == HostAlias && (r.Upstream.Address != "" || r.AllowPrivate) {
		faults = append(faults, Fault{Text: HostAlias + " has neither upstream nor allow_private", Mend: "remove them; the rule itself opens the port"})
	}
	if r.Host != HostAlias && wildcard(r.Host) && patternCovers(r.Host, "x."+HostAlias) && r.Host != "**" && strings.HasSuffix(r.Host, HostAlias) {
		faults = append(faults, Fault{Text: r.Host + " matches nothing", Mend: "write " + HostAlias})
	}
	if r.Prefix.IsValid() && !r.Deny {
		switch c := prefixClass(r.Prefix); {
		case c == Multicast || c == Reserved:
			faults = append(faults, Fault{Text: fmt.Sprintf("%s is %s, where nothing can be connected to", r.Destination(), c), Mend: "remove the rule"})
		case c != Public && !r.AllowPrivate && r.Upstream.Address == "":
			faults = append(faults, Fault{Text: fmt.Sprintf("%s is %s", r.Destination(), c), Mend: "add `allow_private: true` if you mean it"})
		}
	}
	return faults
}

// finish looks at the rules together, and makes the policy.
func finish(doc draft) (*Policy, Faults, error) {
	p := compile(doc.own, doc.budget, doc.cases)
	faults := p.conflicts()
	rules := slices.Clone(doc.own)
	for i := range doc.preset {
		// What the user wrote for a destination is meant instead of a preset's
		// rule for it.
		r := &doc.preset[i]
		same := func(o Rule) bool {
			return !o.Deny && o.Destination() == r.Destination() && overlap(o.Ports, r.Ports)
		}
		if !slices.ContainsFunc(rules, same) {
			rules = append(rules, *r)
		}
	}
	if len(rules) > MaxRules {
		faults = append(faults, Fault{Text: fmt.Sprintf("%d rules, at most %d", len(rules), MaxRules), Mend: "use wildcards"})
	}
	names := map[string]bool{}
	for i := range rules {
		if names[rules[i].Name] {
			faults = append(faults, Fault{Line: rules[i].Line, Text: fmt.Sprintf("two rules are named %q", rules[i].Name), Mend: "rename one"})
		}
		names[rules[i].Name] = true
	}
	p = compile(rules, doc.budget, doc.cases)
	warnings := p.warnings()
	slices.SortStableFunc(faults, func(a, b Fault) int { return a.Line - b.Line })
	if err := faults.err(); err != nil {
		return nil, warnings, err
	}
	return p, warnings, nil
}

// conflicts finds rules that can never decide anything, and rules that
// contradict one another.
func (p *Policy) conflicts() (faults Faults) {
	for i := range p.Rules {
		r := &p.Rules[i]
		for _, b := range p.wider(r) {
			for _, o := range slices.Concat(b.deny, b.allow) {
				if o == r {
					continue
				}
				if text, mend := r.against(o); text != "" {
					f := Fault{Line: r.Line, Text: text, Mend: mend}
					if r.Line == 0 {
						f.Where = r.Name
					}
					faults = append(faults, f)
					break
				}
			}
		}
	}
	return faults
}

// wider are the buckets whose pattern covers the rule's.
func (p *Policy) wider(r *Rule) (out []*bucket) {
	var near found
	if r.Prefix.IsValid() {
		for _, b := range p.index.addressed(r.Prefix.Addr(), &near) {
			if b.any().Prefix.Bits() <= r.Prefix.Bits() {
				out = append(out, b)
			}
		}
		return out
	}
	// Names that the pattern matches find every bucket that may cover it.
	probes := []string{r.Host}
	if wildcard(r.Host) {
		below := strings.TrimLeft(r.Host, "*")
		probes = []string{"x" + below, "x.x" + below}
	}
	for _, host := range probes {
		for _, b := range p.index.named(host, &near) {
			if !slices.Contains(out, b) && patternCovers(b.any().Host, r.Host) {
				out = append(out, b)
			}
		}
	}
	return out
}

// any is one of the bucket's rules: all have the same destination.
func (b *bucket) any() *Rule {
	if len(b.allow) > 0 {
		return b.allow[0]
	}
	return b.deny[0]
}

// against says what is wrong with a rule beside another whose pattern covers
// its own; "" for nothing.
func (r *Rule) against(o *Rule) (text, mend string) {
	same := r.Destination() == o.Destination()
	covered := covers(o.Ports, r.Ports) && transportCovers(o, r)
	narrower := subset(r.Methods, o.Methods) && subset(r.Paths, o.Paths)
	switch {
	case o.Deny && covered && !o.conditional():
		if r.Deny && same && r.scope() == o.scope() && r.pos < o.pos {
			return "", "" // the later of two equals is the fault
		}
		if r.Deny {
			return fmt.Sprintf("shadowed: rule %q denies this already", o.Name), "remove this rule"
		}
		return fmt.Sprintf("never allows anything: rule %q denies all of it, and a deny beats every allow", o.Name), "remove one of the two, or narrow the deny"
	case o.Deny && covered && narrower && r.conditional():
		if r.scope() == o.scope() && r.pos < o.pos {
			return "", ""
		}
		return fmt.Sprintf("shadowed: rule %q denies these requests already", o.Name), "remove this rule, or one of the two"
	case o.Deny || r.Deny || !overlap(o.Ports, r.Ports) || (o.Protocol == UDP) != (r.Protocol == UDP):
		return "", ""
	}
	if same && r.pos >= o.pos {
		if text, mend := r.contradicts(o); text != "" {
			return text, mend
		}
	}
	sameMeaning := r.options() == o.options() && r.Budget == o.Budget && sameProtocol(r, o)
	if !covered || !sameMeaning || !narrower {
		return "", ""
	}
	equalRequests := slices.Equal(r.Methods, o.Methods) && slices.Equal(r.Paths, o.Paths)
	if same && equalRequests && covers(r.Ports, o.Ports) && r.pos < o.pos {
		return "", ""
	}
	if same || equalRequests {
		return fmt.Sprintf("shadowed: rule %q allows this already", o.Name), "remove this rule"
	}
	return "", ""
}

// contradicts compares two allows of one destination that share a port.
func (r *Rule) contradicts(o *Rule) (text, mend string) {
	switch {
	case !sameProtocol(r, o):
		return fmt.Sprintf("contradicts rule %q: one port of one destination has one protocol", o.Name), "give both the same protocol, or other ports"
	case r.connectOptions() != o.connectOptions():
		return fmt.Sprintf("contradicts rule %q: upstream, allow_private and ech hold for the connection, whatever the request", o.Name), "give both the same"
	case r.Secret != o.Secret && slices.Equal(r.Paths, o.Paths) && meet(r.Methods, o.Methods):
		return fmt.Sprintf("contradicts rule %q: the same requests cannot use two secrets, or one and none", o.Name), "keep one, or give them different methods or paths"
	case r.Budget != o.Budget && r.options() == o.options() && slices.Equal(r.Paths, o.Paths) && meet(r.Methods, o.Methods):
		return fmt.Sprintf("contradicts rule %q: the same requests have two budgets", o.Name), "keep one"
	}
	return "", ""
}

func sameProtocol(a, b *Rule) bool {
	for _, p := range a.Ports {
		for _, q := range b.Ports {
			first, last := max(p.First, q.First), min(p.Last, q.Last)
			if first > last {
				continue
			}
			for _, port := range []uint16{first, last, 80, 443} {
				if first <= port && port <= last && a.ProtocolAt(port) != b.ProtocolAt(port) {
					return false
				}
			}
			if last-first > 2 && a.ProtocolAt(1) != b.ProtocolAt(1) {
				return false // ports that are neither 80 nor 443 nor an end
			}
		}
	}
	return true
}

func transportCovers(o, r *Rule) bool {
	if o.Deny && o.Protocol == "" {
		return true
	}
	if r.Deny && r.Protocol == "" && !r.conditional() {
		return false
	}
	return (o.Protocol == UDP) == (r.Protocol == UDP)
}

// covers: an empty list is every port.
func covers(o, r []PortRange) bool {
	if len(o) == 0 {
		return true
	}
	for _, p := range r {
		next := uint32(p.First)
		for _, q := range o {
			if uint32(q.First) <= next && next <= uint32(q.Last) {
				next = uint32(q.Last) + 1
			}
		}
		if next <= uint32(p.Last) {
			return false
		}
	}
	return len(r) > 0
}

func overlap(a, b []PortRange) bool {
	return slices.ContainsFunc(a, func(p PortRange) bool {
		return slices.ContainsFunc(b, func(q PortRange) bool { return p.First <= q.Last && q.First <= p.Last })
	})
}

// subset: an empty list is everything.
func subset(r, o []string) bool {
	return len(o) == 0 || len(r) > 0 && !slices.ContainsFunc(r, func(s string) bool { return !slices.Contains(o, s) })
}

func meet(a, b []string) bool {
	return len(a) == 0 || len(b) == 0 || slices.ContainsFunc(a, func(s string) bool { return slices.Contains(b, s) })
}

// warnings are what is allowed, and may be more than was meant.
func (p *Policy) warnings() (ws Faults) {
	for i := range p.Rules {
		r := &p.Rules[i]
		if r.Deny {
			continue
		}
		warn := func(mend, format string, args ...any) {
			ws = append(ws, Fault{Line: r.Line, Where: r.Name, Text: fmt.Sprintf(format, args...), Mend: mend})
		}
		if wildcard(r.Host) {
			if places := openPlaces(r.Host); len(places) > 0 {
				more := ""
				if len(places) > 3 {
					more = fmt.Sprintf(" and %d more", len(places)-3)
				}
				warn("name the hosts that the task needs, or deny these", "%s reaches places where anyone can receive data: %s%s",
					r.Host, strings.Join(places[:min(3, len(places))], ", "), more)
			}
			if r.Secret != "" {
				warn("name the hosts", "secret %q is used for every name that %s matches", r.Secret, r.Host)
			}
		}
		if r.Prefix.IsValid() && r.Prefix.Bits() < 8 {
			warn("name the networks that the task needs", "%s is a large part of the internet", r.Prefix)
		}
		if r.Secret != "" && slices.ContainsFunc(r.Ports, func(p PortRange) bool { return r.ProtocolAt(p.First) == HTTP }) {
			warn("use tls", "secret %q crosses the network unencrypted", r.Secret)
		}
	}
	return ws
}
