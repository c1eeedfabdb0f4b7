package policy

import (
	"net/netip"
	"slices"
	"strings"
)

// Op is what a sandbox asks for.
type Op uint8

const (
	_       Op = iota // the zero Op is denied
	Resolve           // Host: may the name be looked up?
	Connect           // Host or Addr, and Port: may a connection be made?
	Dial              // Host, Addr and Port: may it go to the address that Host was resolved to?
	Ask               // Host or Addr, Port, Method and Path: may this HTTP request be made?
)

// Request is one question. Host is as the guest wrote it; Addr is what is
// connected to, without a name for Connect and Ask.
type Request struct {
	Op   Op
	Host string
	Addr netip.Addr
	// Instead is, for a Dial without a Host, the address that was connected to,
	// where Addr is its rule's upstream.
	Instead netip.Addr
	Port    uint16
	// Protocol is what the guest speaks: UDP for datagrams; else TLS or HTTP
	// where it is known by now, or "".
	Protocol Protocol
	// Own says that Addr is one of the host's own addresses, which counts as
	// Loopback.
	Own bool

	Method string
	Path   string // as on the wire, with its query
}

// Why is the kind of reason for a decision.
type Why uint8

const (
	WhyNothing   Why = iota // nothing asked, nothing allowed
	WhyRule                 // the rule allows or denies it
	WhyNoRule               // no rule names the destination
	WhyPort                 // rules name the host, but not this port and transport
	WhyHost                 // the name is not one
	WhyClass                // the address is of a class that the rule does not permit
	WhyProtocol             // another protocol than the rule's
	WhyRequest              // no rule of the destination allows this method and path
	WhyOpaque               // a deny by method or path, on a connection that cannot be read
	WhyBudget               // a limit is used up
	WhyOdd                  // servers could read the request as another one
	WhyByAddress            // a rule by name holds more than the address that was connected to
)

// Decision is the answer to one Request; the zero Decision is Deny. It is
// small and made without formatting: Reason and Hint write the words.
type Decision struct {
	Allow bool
	Why   Why
	Rule  *Rule // that decided; nil where none did
	// Protocol is what must be spoken, and Inspect whether requests must be
	// asked for one by one; both only on an allowed Connect, Dial or Ask.
	Protocol Protocol
	Inspect  bool

	Request Request
	Class   Class  // of Request.Addr, where that decided
	Limit   string // the budget's key, where one was used up
	Odd     string // what is odd about the request
}

// Decide answers a Request. It is pure, and safe for use by several
// goroutines.
func (p *Policy) Decide(req Request) Decision {
	d := Decision{Request: req}
	if p == nil {
		d.Why = WhyNoRule
		return d
	}
	if req.Host != "" {
		host, err := CleanHost(req.Host)
		if err != nil {
			d.Why = WhyHost
			return d
		}
		d.Request.Host = host
	}
	if req.Addr.IsValid() {
		d.Request.Addr = req.Addr.Unmap().WithZone("")
	} else if req.Host == "" {
		d.Why = WhyHost
		return d
	}
	switch req.Op {
	case Resolve:
		if d.Why = WhyHost; req.Host != "" {
			p.resolve(&d)
		}
	case Connect, Dial, Ask:
		p.connect(&d)
	}
	return d
}

// connected is the address that the guest connected to.
func (req *Request) connected() netip.Addr {
	if req.Op == Dial && req.Instead.IsValid() {
		return req.Instead.Unmap().WithZone("")
	}
	return req.Addr
}

func (p *Policy) destination(req *Request, f *found) []*bucket {
	if req.Host != "" {
		return p.index.named(req.Host, f)
	}
	return p.index.addressed(req.connected(), f)
}

// connect decides Connect, and the later questions as what remains to be
// asked of an allowed connection.
func (p *Policy) connect(d *Decision) {
	req := &d.Request
	udp := req.Protocol == UDP
	var group []*Rule // allow rules of the most specific pattern that speaks of the port
	var deny, partly *Rule
	known, inspect := false, false
	var near found
	buckets := p.destination(req, &near)
	for _, b := range buckets {
		for _, r := range b.deny {
			if !r.coversPort(req.Port, udp) {
				continue
			}
			if r.Conditional() {
				inspect, partly = true, r
			} else if deny == nil {
				deny = r
			}
		}
		known = known || len(b.allow) > 0
		if group == nil && coversPort(b.allow, req.Port, udp) {
			group = b.allow
		}
	}
	switch {
	case deny != nil:
		d.Why, d.Rule = WhyRule, deny
		return
	case group == nil && known:
		d.Why = WhyPort
		return
	case group == nil:
		d.Why = WhyNoRule
		return
	}
	first := (*Rule)(nil)
	for _, r := range group {
		if r.coversPort(req.Port, udp) {
			if first == nil {
				first = r
			}
			inspect = inspect || r.NeedsHTTP()
		}
	}
	d.Rule, d.Protocol, d.Inspect = first, first.ProtocolAt(req.Port), inspect
	d.Why = p.afterPort(d, buckets, group, partly)
	d.Allow = d.Why == WhyRule && !d.Rule.Deny
}

func coversPort(rules []*Rule, port uint16, udp bool) bool {
	for _, r := range rules {
		if r.coversPort(port, udp) {
			return true
		}
	}
	return false
}

// afterPort decides what is left once host and port are allowed by a group of
// rules; partly is a deny by method or path that speaks of them.
func (p *Policy) afterPort(d *Decision, buckets []*bucket, group []*Rule, partly *Rule) Why {
	req := &d.Request
	opaque := d.Protocol == TCP || d.Protocol == UDP
	switch {
	case opaque && partly != nil:
		d.Rule = partly
		return WhyOpaque
	case (req.Protocol == TLS || req.Protocol == HTTP) && req.Protocol != d.Protocol && !opaque:
		return WhyProtocol
	}
	if req.Addr.IsValid() || req.Op == Dial {
		if deny := p.deniedAddress(req); deny != nil {
			d.Rule = deny
			return WhyRule
		}
		d.Class = AddressClass(req.Addr)
		if req.Own && d.Class != Metadata {
			d.Class = Loopback
		}
		// An address that an upstream stands for is not dialled; the upstream is
		// asked about in its turn.
		replaced := req.Op != Dial && d.Rule.Upstream.Address != "" && (d.Class == Private || d.Class == Loopback)
		if !replaced && !d.Rule.permits(req.Addr, d.Class) {
			return WhyClass
		}
	}
	if req.Op == Ask && !opaque {
		return ask(d, buckets, group)
	}
	return WhyRule
}

// deniedAddress finds a deny for an address, or for the IPv4 address in it,
// whatever the name that led there.
func (p *Policy) deniedAddress(req *Request) *Rule {
	udp := req.Protocol == UDP
	inner, _ := embedded(req.Addr)
	var near found
	for _, a := range [2]netip.Addr{req.Addr, inner} {
		if !a.IsValid() {
			continue
		}
		for _, b := range p.index.addressed(a, &near) {
			for _, r := range b.deny {
				if r.coversPort(req.Port, udp) {
					return r
				}
			}
		}
	}
	return nil
}

func ask(d *Decision, buckets []*bucket, group []*Rule) Why {
	req := &d.Request
	t := target{method: req.Method, path: req.Path}
	var denies, allows []*Rule
	for _, b := range buckets {
		for _, r := range b.deny {
			if r.Conditional() && r.coversPort(req.Port, false) {
				denies = append(denies, r)
			}
		}
	}
	for _, r := range group {
		if r.coversPort(req.Port, false) {
			allows = append(allows, r)
		}
	}
	if d.Rule, d.Odd = odd(&t, denies, allows); d.Odd != "" {
		return WhyOdd
	}
	for _, r := range denies {
		if r.coversRequest(&t) {
			d.Rule = r
			return WhyRule
		}
	}
	for _, r := range allows {
		if r.coversRequest(&t) {
			d.Rule = r
			return WhyRule
		}
	}
	d.Rule = allows[0]
	return WhyRequest
}

// odd says what of a request its server could read as another method or path
// than the rules do, and names the first rule that asks for those.
func odd(t *target, denies, allows []*Rule) (*Rule, string) {
	var methods, paths *Rule
	for _, rules := range [2][]*Rule{denies, allows} {
		for _, r := range rules {
			if methods == nil && r.NeedsHTTP() {
				methods = r
			}
			if paths == nil && len(r.paths) > 0 {
				paths = r
			}
		}
	}
	if methods != nil {
		if text := oddMethod(t); text != "" {
			return methods, text
		}
	}
	if paths != nil && t.read().odd != "" {
		return paths, "the path " + t.read().odd
	}
	return nil, ""
}

// oddMethod finds methods that servers do not read as they are written. Some
// take lower case for capitals, and some let a parameter choose the method.
func oddMethod(t *target) string {
	if !methodPattern.MatchString(t.method) {
		return "the method is not written in capitals"
	}
	_, query, _ := strings.Cut(t.path, "?")
	for query != "" {
		var pair string
		if i := strings.IndexAny(query, "&;"); i >= 0 {
			pair, query = query[:i], query[i+1:]
		} else {
			pair, query = query, ""
		}
		key, _, _ := strings.Cut(pair, "=")
		names, control := ParameterNames(key)
		switch {
		case control:
			return "the query has a parameter with a control character in its name, which some servers end there"
		case slices.ContainsFunc(names, func(name string) bool { return strings.EqualFold(name, "_method") }):
			return "the query has a parameter _method, by which some servers choose the method"
		}
	}
	return ""
}

// resolve allows a name when there is a port of it that no deny closes.
func (p *Policy) resolve(d *Decision) {
	d.Why = WhyNoRule
	var near found
	buckets := p.index.named(d.Request.Host, &near)
	for _, b := range buckets {
		for _, r := range b.allow {
			deny := closed(buckets, r)
			if deny == nil {
				d.Allow, d.Why, d.Rule = true, WhyRule, r
				return
			}
			if d.Rule == nil {
				d.Why, d.Rule = WhyRule, deny
			}
		}
	}
	for _, b := range buckets {
		for _, r := range b.deny {
			if d.Rule == nil && !r.Conditional() {
				d.Why, d.Rule = WhyRule, r
			}
		}
	}
}

// closed finds a deny that, with the others, leaves no port of an allow rule
// open; nil when one is.
func closed(buckets []*bucket, allow *Rule) (deny *Rule) {
	for _, ports := range allow.Ports {
		for port := uint32(ports.First); port <= uint32(ports.Last); {
			last := uint32(0)
			for _, b := range buckets {
				for _, r := range b.deny {
					if end := r.deniesThrough(uint16(port), allow); end > last {
						last, deny = end, r
					}
				}
			}
			if last == 0 {
				return nil
			}
			port = last + 1
		}
	}
	return deny
}

// deniesThrough is the last port of the range that a deny closes beginning at
// port, for the protocol that allow has there; 0: it closes nothing.
func (r *Rule) deniesThrough(port uint16, allow *Rule) uint32 {
	if r.Conditional() || !r.coversPort(port, allow.Protocol == UDP) {
		return 0
	}
	for _, p := range r.Ports {
		if p.First <= port && port <= p.Last {
			return uint32(p.Last)
		}
	}
	return 65535
}
