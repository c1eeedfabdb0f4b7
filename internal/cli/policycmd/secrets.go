package policycmd

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"creel/internal/policy"
	"creel/internal/secret"
)

// secretWarnings holds a policy against the secrets of this installation. They
// are warnings, since a policy may be checked where its secrets are not.
func secretWarnings(ctx context.Context, env Env, p *policy.Policy) (warnings policy.Faults) {
	if env.Secrets == nil {
		return nil
	}
	have, err := env.Secrets(ctx)
	if err != nil {
		return policy.Faults{{Text: fmt.Sprintf("whether its secrets exist could not be seen: %v", err)}}
	}
	used := map[string]bool{}
	for i := range p.Rules {
		r := &p.Rules[i]
		if r.Secret == "" {
			continue
		}
		used[r.Secret] = true
		warn := func(text, mend string) {
			warnings = append(warnings, policy.Fault{Line: r.Line, Where: r.Name, Text: text, Mend: mend})
		}
		b, exists := have[r.Secret]
		switch {
		case !exists:
			warn(fmt.Sprintf("secret %q does not exist", r.Secret), setSecret(r.Secret, r.Host))
		case r.Host != "" && !boundTo(b, r.Host):
			warn(fmt.Sprintf("secret %q is not bound to %s, and is not used there", r.Secret, r.Host), setSecret(r.Secret, r.Host))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(have)) {
		for i := range p.Rules {
			if r := &p.Rules[i]; !used[name] && !r.Deny && r.Host != "" && boundTo(have[name], r.Host) {
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

// setSecret is the command that makes a secret for a host.
func setSecret(name, host string) string {
	if host == "" {
		host = "HOST"
	}
	return fmt.Sprintf("creel secret set %s --host '%s' --as bearer (or another --as: see `creel secret set --help`)", name, host)
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
