package syntax

import (
	"fmt"
	"net"
	"slices"
	"strings"

	"creel/internal/policy"
)

// Flags are the policy that a command line states beside or without a file.
type Flags struct {
	Allow   []string // HOST[:PORT]; an address or CIDR as [ADDRESS]:PORT or, with IPv4, ADDRESS:PORT
	Presets []string
	Net     string // "none": nothing is allowed; "": as the rest says
}

// FromFlags makes one policy of a file's (nil: none) and of flags. What an
// --allow names by address is meant, private or not. The error is [Faults].
func FromFlags(base *policy.Policy, f Flags, in Inputs) (*policy.Policy, policy.Faults, error) {
	var faults policy.Faults
	fault := func(where, format string, args ...any) {
		faults = append(faults, policy.Fault{Where: where, Text: fmt.Sprintf(format, args...)})
	}
	switch {
	case f.Net != "" && f.Net != "none":
		fault("--net "+f.Net, "a sandbox has a network of its own, which leads where its policy says; want none, or leave it out and give --allow HOST[:PORT], --preset or --policy")
	case f.Net == "none" && (base != nil || len(f.Allow) > 0 || len(f.Presets) > 0):
		fault("--net none", "contradicts --policy, --preset and --allow; give one or the other")
	}
	var doc draft
	if base != nil {
		doc.own, doc.budget, doc.cases, doc.endOnAlert = slices.Clone(base.Rules), base.Budget, base.Cases, base.EndOnAlert
	}
	for _, s := range f.Allow {
		rule, err := allowFlag(s)
		if err != nil {
			fault("--allow "+s, "%v", err)
			continue
		}
		for _, one := range settle(&rule) {
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
	if err := faults.Err(); err != nil {
		return nil, nil, err
	}
	return finish(doc)
}

func allowFlag(s string) (policy.Rule, error) {
	rule := policy.Rule{Name: "--allow " + s}
	host, port := s, ""
	if plain, udp := strings.CutSuffix(s, "/udp"); udp {
		return rule, fmt.Errorf("udp needs a policy file: `- {allow: %s, protocol: udp, ports: PORT}`", hostOf(plain))
	}
	s = strings.TrimSuffix(s, "/tcp") // which every other one is
	host = s
	if err := notURL(s); err != nil {
		return rule, err
	}
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
	if name := strings.ToLower(strings.TrimSuffix(host, ".")); name == "localhost" || strings.HasSuffix(name, ".localhost") {
		return rule, fmt.Errorf("%s is the sandbox itself; this machine is %s, so write --allow %[2]s:PORT", host, policy.HostAlias)
	}
	if err := setDestination(&rule, host); err != nil {
		return rule, err
	}
	if port != "" {
		if err := setPorts(&rule, []string{port}); err != nil {
			return rule, err
		}
	}
	if rule.Prefix.IsValid() {
		c := policy.PrefixClass(rule.Prefix)
		rule.AllowPrivate = c != policy.Public && c != policy.Multicast && c != policy.Reserved
	}
	return rule, nil
}

// hostOf is HOST[:PORT] without the port.
func hostOf(s string) string {
	if host, _, err := net.SplitHostPort(s); err == nil {
		return host
	}
	return s
}

// notURL explains what to write instead of a URL.
func notURL(s string) error {
	scheme, rest, isURL := strings.Cut(s, "://")
	if !isURL {
		host, path, hasPath := strings.Cut(s, "/")
		name, _, _ := strings.Cut(host, ":")
		if _, err := policy.CleanHost(name); !hasPath || err != nil {
			return nil // a network, or what others explain
		}
		return fmt.Errorf("want HOST[:PORT] without a path: --allow %s; requests to /%s alone are allowed by a policy file, `paths: [/%[2]s]`", host, path)
	}
	authority, path, _ := strings.Cut(rest, "/")
	authority = authority[strings.LastIndexByte(authority, '@')+1:]
	port := map[string]string{"http": "80", "ws": "80", "ssh": "22", "git": "9418", "ftp": "21"}[strings.ToLower(scheme)]
	if port != "" && !strings.Contains(authority[strings.LastIndexByte(authority, ']')+1:], ":") {
		authority += ":" + port
	}
	err := fmt.Errorf("want HOST[:PORT], not a URL: --allow %s", authority)
	if path != "" {
		err = fmt.Errorf("%w; requests to /%s alone are allowed by a policy file, `paths: [/%[2]s]`", err, path)
	}
	return err
}
