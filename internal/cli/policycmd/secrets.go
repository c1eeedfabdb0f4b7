package policycmd

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"creel/internal/policy"
	"creel/internal/secret"
)

// Secret is a secret as its owner made it, but for the value.
type Secret struct {
	secret.Binding
	From   string        // its source, as `creel secret set --from` has it; "": kept here
	MaxAge time.Duration // 0: none
}

// secretWarnings holds a policy against the secrets of this installation. They
// are warnings, since a policy may be checked where its secrets are not; refused
// tells whether a run is refused here for one of them.
func secretWarnings(ctx context.Context, env Env, p *policy.Policy) (warnings policy.Faults, refused bool) {
	if env.Secrets == nil {
		return nil, false
	}
	have, err := env.Secrets(ctx)
	if err != nil {
		return policy.Faults{{Text: fmt.Sprintf("whether its secrets exist could not be seen: %v", err)}}, false
	}
	wanted := wantedHosts(p)
	for i := range p.Rules {
		r := &p.Rules[i]
		if r.Secret == "" {
			continue
		}
		warn := func(text, mend string) {
			refused = true
			warnings = append(warnings, policy.Fault{Line: r.Line, Where: r.Name, Text: text + ": a run is refused", Mend: mend})
		}
		s, exists := have[r.Secret]
		if !exists {
			warn(fmt.Sprintf("secret %q does not exist", r.Secret), newSecret(r.Secret, wanted[r.Secret]))
			continue
		}
		if r.Host != "" && !covers(s.Hosts, r.Host) {
			warn(fmt.Sprintf("secret %q is not bound to %s", r.Secret, r.Host), s.andHosts(r.Secret, wanted[r.Secret]))
		}
		// As the engine does.
		if err := s.MayGo(r.Upstream.Address, r.Upstream.CA, slices.Contains(r.Protocols(), policy.HTTP)); err != nil {
			for line := range strings.Lines(err.Error()) {
				warn(fmt.Sprintf("secret %q is %s", r.Secret, strings.TrimSuffix(line, "\n")), s.command(r.Secret)+" is how it is bound now")
			}
		}
	}
	return append(warnings, unused(have, wanted, p)...), refused
}

// wantedHosts are the hosts to which the rules send each secret.
func wantedHosts(p *policy.Policy) map[string][]string {
	wanted := map[string][]string{}
	for i := range p.Rules {
		if r := &p.Rules[i]; r.Secret != "" && (r.Host == "" || !slices.Contains(wanted[r.Secret], r.Host)) {
			wanted[r.Secret] = append(wanted[r.Secret], r.Host)
		}
	}
	return wanted
}

// unused are the secrets that a task could use and does not get.
func unused(have map[string]Secret, wanted map[string][]string, p *policy.Policy) (warnings policy.Faults) {
	for _, name := range slices.Sorted(maps.Keys(have)) {
		for i := range p.Rules {
			if r := &p.Rules[i]; wanted[name] == nil && !r.Deny && r.Host != "" && boundTo(have[name].Binding, r.Host) {
				warnings = append(warnings, policy.Fault{
					Line: r.Line, Where: r.Name, Text: fmt.Sprintf("secret %q is bound to %s, and no rule uses it: the task does not get it", name, r.Host),
					Mend: fmt.Sprintf("write `secret: %s` in the rule, if the task is to use it", name),
				})
				break
			}
		}
	}
	return warnings
}

// newSecret is the command that makes a secret for hosts.
func newSecret(name string, hosts []string) string {
	line := "creel secret set " + name
	for _, host := range hosts {
		if host == "" {
			host = "HOST"
		}
		line += flagOf("host", host)
	}
	return line + " --as bearer (or another --as: see `creel secret set --help`)"
}

// andHosts is the command that binds a secret to more hosts, and leaves all
// else of it as it is.
func (s Secret) andHosts(name string, hosts []string) string {
	s.Hosts = slices.Clone(s.Hosts)
	for _, host := range hosts {
		if host != "" && !covers(s.Hosts, host) {
			s.Hosts = append(s.Hosts, host)
		}
	}
	return s.command(name) + " binds it there as well (its value has to be given again)"
}

// command is the command that makes a secret as it is, to be pasted into a shell.
func (s Secret) command(name string) string {
	line := "creel secret set " + name
	add := func(flag string, values ...string) {
		for _, v := range values {
			if v != "" {
				line += flagOf(flag, v)
			}
		}
	}
	list := func(flag string, values []string) {
		for _, v := range values {
			if strings.ContainsAny(v, ",\"") { // the flag reads CSV
				v = `"` + strings.ReplaceAll(v, `"`, `""`) + `"`
			}
			add(flag, v)
		}
	}
	list("host", s.Hosts)
	list("method", s.Methods)
	list("path", s.Paths)
	list("upstream", s.Upstreams)
	if s.CA != "" {
		line += " --upstream-ca FILE"
	}
	if s.Clear {
		line += " --clear"
	}
	use := s.Use
	switch use.As {
	case secret.AsHeader, secret.AsQuery:
		add("as", use.As+":"+use.Name)
	case secret.AsBasic:
		add("as", use.As+":"+use.User)
	default:
		add("as", use.As)
	}
	add("prefix", use.Prefix)
	add("env", use.Env)
	add("file", use.File)
	list("in", use.In)
	if s.MaxAge > 0 {
		add("max-age", s.MaxAge.String())
	}
	add("from", s.From)
	return line
}

// flagOf is a flag with its value, which the shell takes as it is.
func flagOf(flag, value string) string {
	return " --" + flag + " '" + strings.ReplaceAll(value, "'", `'\''`) + "'"
}

// covers tells whether a secret for hosts may go to all that a rule names, as
// the engine asks.
func covers(hosts []string, host string) bool {
	return slices.ContainsFunc(hosts, func(h string) bool { return policy.Covers(h, host) })
}

// boundTo tells whether a secret may go to a rule's host. A pattern is asked
// for by a name below it.
func boundTo(b secret.Binding, host string) bool {
	if slices.Contains(b.Hosts, host) {
		return true
	}
	var rules []policy.Rule
	for _, h := range b.Hosts {
		rules = append(rules, policy.Rule{Name: h, Host: h, Ports: []policy.PortRange{{First: 1, Last: 65535}}, Protocol: policy.HTTP})
	}
	return policy.New(rules, policy.Budget{}, nil).Decide(policy.Request{Op: policy.Resolve, Host: below(host)}).Allow
}

// below is a name that a pattern matches, or the name itself.
func below(host string) string {
	for _, wildcard := range []string{"**.", "*."} {
		if len(host) > len(wildcard) && host[:len(wildcard)] == wildcard {
			return "a." + host[len(wildcard):]
		}
	}
	return host
}
