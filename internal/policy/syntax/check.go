package syntax

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"creel/internal/policy"
)

var (
	methodPattern = regexp.MustCompile(policy.MethodPattern)
	secretPattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$`)
)

// settle gives a rule its defaults and returns what is wrong within it.
func settle(r *policy.Rule) (faults policy.Faults) {
	fault := func(mend, format string, args ...any) {
		faults = append(faults, policy.Fault{Text: fmt.Sprintf(format, args...), Mend: mend})
	}
	if len(r.Name) > 300 || strings.ContainsFunc(r.Name, func(c rune) bool { return c < ' ' || c == 0x7f || c == 0xfffd }) {
		fault("keep to 300 plain characters", "name %.40q cannot be printed", r.Name)
	}
	switch r.Protocol {
	case "", policy.TLS, policy.HTTP, policy.TCP, policy.UDP:
	default:
		fault("write tls, http, tcp or udp", "protocol %.40q is not known", r.Protocol)
		return faults
	}
	if r.Deny && (r.Protocol == policy.TLS || r.Protocol == policy.HTTP) {
		fault("leave protocol out, or write tcp or udp", "a deny is by transport, not by %s", r.Protocol)
	}
	if !r.Deny && len(r.Ports) == 0 {
		switch {
		case r.Host == policy.HostAlias || r.Protocol == policy.TCP || r.Protocol == policy.UDP:
			fault("write `ports: N`", "no ports, and there is no usual one for %s", r.Destination())
		case r.Protocol == policy.HTTP:
			r.Ports = []policy.PortRange{{First: 80, Last: 80}}
		default:
			r.Ports = []policy.PortRange{{First: 443, Last: 443}}
		}
	}
	for _, m := range r.Methods {
		if !methodPattern.MatchString(m) {
			fault("write it as in the request, such as GET", "method %.40q is not one", m)
		}
	}
	for _, p := range r.Paths {
		if err := policy.CheckPath(p); err != nil {
			fault("", "%v", err)
		}
	}
	if len(r.Paths) > 1000 {
		fault("use wildcards", "%d paths, at most 1000", len(r.Paths))
	}
	faults = append(faults, settleRequests(r)...)
	return append(faults, settleAddress(r)...)
}

// settleRequests checks what can only be enforced where requests are read.
func settleRequests(r *policy.Rule) (faults policy.Faults) {
	fault := func(mend, format string, args ...any) {
		faults = append(faults, policy.Fault{Text: fmt.Sprintf(format, args...), Mend: mend})
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
	if r.Deny && r.Protocol == policy.UDP {
		fault("leave protocol out", "there are no methods and paths in udp")
	}
	for _, ports := range r.Ports {
		opaque := r.ProtocolAt(ports.First)
		if ports.First != ports.Last && r.Protocol == "" {
			opaque = policy.TCP
		}
		if !r.Deny && (opaque == policy.TCP || opaque == policy.UDP) {
			fault("write `protocol: tls` or `protocol: http`", "methods, paths and secrets need requests, and port %s is opaque %s", formatPorts([]policy.PortRange{ports})[0], opaque)
		}
	}
	return faults
}

func settleAddress(r *policy.Rule) (faults policy.Faults) {
	if r.Host == policy.HostAlias && (r.Upstream.Address != "" || r.AllowPrivate) {
		faults = append(faults, policy.Fault{Text: policy.HostAlias + " has neither upstream nor allow_private", Mend: "remove them; the rule itself opens the port"})
	}
	if wildcard(r) && strings.HasSuffix(r.Host, policy.HostAlias) {
		faults = append(faults, policy.Fault{Text: r.Host + " matches nothing", Mend: "write " + policy.HostAlias})
	}
	if r.Prefix.IsValid() && !r.Deny {
		switch c := policy.PrefixClass(r.Prefix); {
		case c == policy.Multicast || c == policy.Reserved:
			faults = append(faults, policy.Fault{Text: fmt.Sprintf("%s is %s, where nothing can be connected to", r.Destination(), c), Mend: "remove the rule"})
		case c != policy.Public && !r.AllowPrivate && r.Upstream.Address == "":
			faults = append(faults, policy.Fault{Text: fmt.Sprintf("%s is %s", r.Destination(), c), Mend: "add `allow_private: true` if you mean it"})
		}
	}
	return faults
}

// finish looks at the rules together, and makes the policy.
func finish(doc draft) (*policy.Policy, policy.Faults, error) {
	p := policy.New(doc.own, doc.budget, doc.cases)
	faults := conflicts(p)
	rules := slices.Clone(doc.own)
	for i := range doc.preset {
		// What the user wrote for a destination is meant instead of a preset's
		// rule for it.
		r := &doc.preset[i]
		same := func(o policy.Rule) bool {
			return !o.Deny && o.Destination() == r.Destination() && overlap(o.Ports, r.Ports)
		}
		if !slices.ContainsFunc(rules, same) {
			rules = append(rules, *r)
		}
	}
	if len(rules) > MaxRules {
		faults = append(faults, policy.Fault{Text: fmt.Sprintf("%d rules, at most %d", len(rules), MaxRules), Mend: "use wildcards"})
	}
	names := map[string]bool{}
	for i := range rules {
		if names[rules[i].Name] {
			faults = append(faults, policy.Fault{Line: rules[i].Line, Text: fmt.Sprintf("two rules are named %q", rules[i].Name), Mend: "rename one"})
		}
		names[rules[i].Name] = true
	}
	p = policy.New(rules, doc.budget, doc.cases)
	p.EndOnAlert = doc.endOnAlert
	warned := warnings(p)
	slices.SortStableFunc(faults, func(a, b policy.Fault) int { return a.Line - b.Line })
	if err := faults.Err(); err != nil {
		return nil, warned, err
	}
	return p, warned, nil
}

// conflicts finds rules that can never decide anything, and rules that
// contradict one another. Of two equals the later is the fault.
func conflicts(p *policy.Policy) (faults policy.Faults) {
	position := make(map[*policy.Rule]int, len(p.Rules))
	for i := range p.Rules {
		position[&p.Rules[i]] = i
	}
	for i := range p.Rules {
		r := &p.Rules[i]
		for _, o := range p.Covering(r) {
			if o == r {
				continue
			}
			if text, mend := against(r, o, i < position[o]); text != "" {
				f := policy.Fault{Line: r.Line, Text: text, Mend: mend}
				if r.Line == 0 {
					f.Where = r.Name
				}
				faults = append(faults, f)
				break
			}
		}
	}
	return faults
}

func wildcard(r *policy.Rule) bool { return strings.HasPrefix(r.Host, "*") }

// against says what is wrong with a rule beside another whose pattern covers
// its own; "" for nothing. earlier says that r stands before o.
func against(r, o *policy.Rule, earlier bool) (text, mend string) {
	same := r.Destination() == o.Destination()
	covered := covers(o.Ports, r.Ports) && transportCovers(o, r)
	narrower := subset(r.Methods, o.Methods) && subset(r.Paths, o.Paths)
	switch {
	case o.Deny && covered && !o.Conditional():
		if r.Deny && same && r.Scope() == o.Scope() && earlier {
			return "", "" // the later of two equals is the fault
		}
		if r.Deny {
			return fmt.Sprintf("shadowed: rule %q denies this already", o.Name), "remove this rule"
		}
		return fmt.Sprintf("never allows anything: rule %q denies all of it, and a deny beats every allow", o.Name), "remove one of the two, or narrow the deny"
	case o.Deny && covered && narrower && r.Conditional():
		if r.Scope() == o.Scope() && earlier {
			return "", ""
		}
		return fmt.Sprintf("shadowed: rule %q denies these requests already", o.Name), "remove this rule, or one of the two"
	case o.Deny || r.Deny || !overlap(o.Ports, r.Ports) || (o.Protocol == policy.UDP) != (r.Protocol == policy.UDP):
		return "", ""
	}
	if same && !earlier {
		if text, mend := contradicts(r, o); text != "" {
			return text, mend
		}
	}
	sameMeaning := sameOptions(r, o) && r.Budget == o.Budget && sameProtocol(r, o)
	if !covered || !sameMeaning || !narrower {
		return "", ""
	}
	equalRequests := slices.Equal(r.Methods, o.Methods) && slices.Equal(r.Paths, o.Paths)
	if same && equalRequests && covers(r.Ports, o.Ports) && earlier {
		return "", ""
	}
	if same || equalRequests {
		return fmt.Sprintf("shadowed: rule %q allows this already", o.Name), "remove this rule"
	}
	return "", ""
}

// contradicts compares two allows of one destination that share a port.
func contradicts(r, o *policy.Rule) (text, mend string) {
	switch {
	case !sameProtocol(r, o):
		return fmt.Sprintf("contradicts rule %q: one port of one destination has one protocol", o.Name), "give both the same protocol, or other ports"
	case !sameConnection(r, o):
		return fmt.Sprintf("contradicts rule %q: upstream, allow_private and ech hold for the connection, whatever the request", o.Name), "give both the same"
	case r.Secret != o.Secret && slices.Equal(r.Paths, o.Paths) && meet(r.Methods, o.Methods):
		return fmt.Sprintf("contradicts rule %q: the same requests cannot use two secrets, or one and none", o.Name), "keep one, or give them different methods or paths"
	case r.Budget != o.Budget && sameOptions(r, o) && slices.Equal(r.Paths, o.Paths) && meet(r.Methods, o.Methods):
		return fmt.Sprintf("contradicts rule %q: the same requests have two budgets", o.Name), "keep one"
	}
	return "", ""
}

func sameConnection(a, b *policy.Rule) bool {
	return a.Upstream == b.Upstream && a.AllowPrivate == b.AllowPrivate && a.ECH == b.ECH
}

func sameOptions(a, b *policy.Rule) bool {
	return sameConnection(a, b) && a.Secret == b.Secret && a.Unreadable == b.Unreadable
}

func sameProtocol(a, b *policy.Rule) bool {
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

func transportCovers(o, r *policy.Rule) bool {
	if o.Deny && o.Protocol == "" {
		return true
	}
	if r.Deny && r.Protocol == "" && !r.Conditional() {
		return false
	}
	return (o.Protocol == policy.UDP) == (r.Protocol == policy.UDP)
}

// covers: an empty list is every port.
func covers(o, r []policy.PortRange) bool {
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

func overlap(a, b []policy.PortRange) bool {
	return slices.ContainsFunc(a, func(p policy.PortRange) bool {
		return slices.ContainsFunc(b, func(q policy.PortRange) bool { return p.First <= q.Last && q.First <= p.Last })
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
func warnings(p *policy.Policy) (ws policy.Faults) {
	for i := range p.Rules {
		r := &p.Rules[i]
		if r.Deny {
			continue
		}
		warn := func(mend, format string, args ...any) {
			ws = append(ws, policy.Fault{Line: r.Line, Where: r.Name, Text: fmt.Sprintf(format, args...), Mend: mend})
		}
		if wildcard(r) {
			if places := policy.OpenPlaces(r.Host); len(places) > 0 {
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
		if class := r.ReachesMetadata(); class != "" {
			warn("leave it out, unless the task is meant to act as this machine", "it reaches a %s address, where clouds give out the credentials of the machine", class)
		}
		if wildcard(r) && r.AllowPrivate {
			warn("name the hosts", "any name that %s matches may be an address of a private network or of this machine", r.Host)
		}
		if r.Prefix.IsValid() && r.Prefix.Bits() < 8 {
			warn("name the networks that the task needs", "%s is a large part of the internet", r.Prefix)
		}
		if r.Unreadable && len(p.Secrets()) > 0 {
			warn("leave `unreadable` out if the destination can do without", "a response of %s in an encoding that is not gzip, deflate or br may hold a secret that nobody takes out", r.Destination())
		}
		if r.Secret != "" && slices.ContainsFunc(r.Ports, func(p policy.PortRange) bool { return r.ProtocolAt(p.First) == policy.HTTP }) {
			warn("use tls", "secret %q crosses the network unencrypted", r.Secret)
		}
	}
	return ws
}
