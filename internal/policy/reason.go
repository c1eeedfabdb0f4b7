package policy

import (
	"fmt"
	"net"
	"strconv"
	"strings"
)

// RuleName names the rule that decided, or is "" where none did.
func (d Decision) RuleName() string {
	if d.Rule == nil {
		return ""
	}
	return d.Rule.Name
}

// Target is what was asked for, as people write it.
func (d Decision) Target() string {
	req := d.Request
	host := req.Host
	if host == "" {
		host = req.connected().String()
	}
	switch {
	case req.Op == Resolve:
		return host
	case req.Op == Ask:
		path, _, _ := strings.Cut(req.Path, "?") // a query may hold what nobody should see
		return fmt.Sprintf("%.20q %s %.200q", req.Method, net.JoinHostPort(host, strconv.Itoa(int(req.Port))), path)
	case req.Protocol == UDP:
		return net.JoinHostPort(host, strconv.Itoa(int(req.Port))) + "/udp"
	}
	return net.JoinHostPort(host, strconv.Itoa(int(req.Port)))
}

// Reason says in one line why.
func (d Decision) Reason() string {
	switch d.Why {
	case WhyRule:
		if d.Allow {
			return "allowed by rule " + strconv.Quote(d.RuleName())
		}
		return "denied by rule " + strconv.Quote(d.RuleName())
	case WhyNoRule:
		return "no rule names this destination"
	case WhyPort:
		return "rules name this destination, but not this port"
	case WhyHost:
		return "not a host name"
	case WhyClass:
		return fmt.Sprintf("%s is a %s address, which rule %q does not permit", d.Request.Addr, d.Class, d.RuleName())
	case WhyProtocol:
		return fmt.Sprintf("rule %q wants %s on this port, not %s", d.RuleName(), d.Protocol, d.Request.Protocol)
	case WhyRequest:
		return "no rule of this destination allows this method and path"
	case WhyOpaque:
		return fmt.Sprintf("rule %q denies some requests, and in opaque %s none can be told apart", d.RuleName(), d.Protocol)
	case WhyOdd:
		return d.Odd
	case WhyByAddress:
		return fmt.Sprintf("rule %q holds for %s, which was connected to by address", d.RuleName(), d.Request.Host)
	case WhyBudget:
		if d.Rule == nil {
			return "the task's budget " + d.Limit + " is used up"
		}
		return fmt.Sprintf("the budget %s of rule %q is used up", d.Limit, d.RuleName())
	}
	return "nothing was asked for"
}

// Hint says what would allow it, or is "" where it is allowed. What a guest
// asked for is never a reason to let it into this machine, its network or its
// metadata: of those a hint says what to decide, and nothing that could be
// pasted.
func (d Decision) Hint() string {
	switch d.Why {
	case WhyNoRule, WhyPort:
		return d.allowHint()
	case WhyRule:
		if !d.Allow && d.Rule != nil {
			return fmt.Sprintf("remove or narrow the deny %q; a deny beats every allow", d.RuleName())
		}
	case WhyHost:
		return "use a plain DNS name; an address wants a rule of its own"
	case WhyClass:
		return classHint(d.Class)
	case WhyProtocol:
		return fmt.Sprintf("write `protocol: %s` in rule %q of a policy file", d.Request.Protocol, d.RuleName())
	case WhyRequest:
		path, _, _ := strings.Cut(d.Request.Path, "?")
		return fmt.Sprintf("add method %.20q and path %.200q to rule %q", d.Request.Method, path, d.RuleName())
	case WhyOpaque:
		return fmt.Sprintf("remove methods and paths from rule %q, or allow the port as http or tls", d.RuleName())
	case WhyByAddress:
		return "connect to the name " + d.Request.Host
	case WhyOdd:
		return fmt.Sprintf("send the request in its plain form, or remove methods, paths and secret from rule %q", d.RuleName())
	case WhyBudget:
		return "raise `" + d.Limit + "` in the policy file"
	}
	return ""
}

func (d Decision) allowHint() string {
	req := d.Request
	host := req.Host
	if host == "" && !req.Addr.IsValid() {
		return ""
	}
	if req.Addr.IsValid() {
		c := AddressClass(req.Addr)
		if req.Own && c != Metadata {
			c = Loopback
		}
		if c != Public {
			return classHint(c)
		}
	}
	if host == "" {
		host = req.Addr.String()
	} else if c := NameClass(host); c != Public {
		return classHint(c)
	}
	switch {
	case req.Port == 0:
		return "--allow " + shellWord(host)
	case req.Protocol == UDP:
		return fmt.Sprintf("a rule `allow: %s` with `ports: %d` and `protocol: udp` in a policy file", host, req.Port)
	}
	return "--allow " + shellWord(net.JoinHostPort(host, strconv.Itoa(int(req.Port))))
}

// classHint is the hint for whatever is of a class that is not public.
func classHint(c Class) string {
	switch c {
	case Metadata:
		return "no task should have it: who reaches the metadata service gets this machine's credentials"
	case Private, Loopback, LinkLocal:
		return "decide whether the task may reach this machine or its network at all; docs/policy.md says how, under Addresses"
	}
	return "nothing does: such an address is never connected to"
}

// shellWord is s as a shell takes it for one word.
func shellWord(s string) string {
	const plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-:/@%+=,"
	if s != "" && strings.Trim(s, plain) == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
