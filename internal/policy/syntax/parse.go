// Package syntax reads and prints policies: [Parse] a file, [FromFlags] a
// command line, [Text] the whole again. It finds every fault at once, also
// rules that can never decide anything and rules that contradict one another.
// What a policy refers to comes through [Inputs]; the package must not touch
// files, the network, the environment or the clock, and must not decide.
package syntax

import (
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"creel/internal/policy"

	"go.yaml.in/yaml/v3"
)

// Bounds of a policy file.
const (
	MaxFileBytes = 8 << 20
	MaxRules     = 20000
)

// Inputs are what a policy may refer to; nil functions refuse.
type Inputs struct {
	// Preset gives the rules of a preset, named and without lines.
	Preset func(name string) ([]policy.Rule, error)
	// File reads a file that the policy names: an upstream's CA.
	File func(name string) ([]byte, error)
}

// Parse reads a policy file. The error is [Faults], all of them; warnings are
// returned either way.
func Parse(data []byte, in Inputs) (p *policy.Policy, warnings policy.Faults, err error) {
	r := &reader{in: in}
	doc := r.document(data)
	if len(r.faults) > 0 {
		slices.SortStableFunc(r.faults, func(a, b policy.Fault) int { return a.Line - b.Line })
		return nil, nil, r.faults
	}
	return finish(doc)
}

// draft is a policy whose rules are each right, but not yet looked at
// together.
type draft struct {
	own, preset []policy.Rule
	budget      policy.Budget
	cases       []policy.Case
	endOnAlert  bool
}

type reader struct {
	in     Inputs
	faults policy.Faults
	last   policy.Rule // the last rule that had to be named by its line
}

func (r *reader) fault(line int, mend, format string, args ...any) {
	r.faults = append(r.faults, policy.Fault{Line: line, Text: fmt.Sprintf(format, args...), Mend: mend})
}

func (r *reader) document(data []byte) (doc draft) {
	if len(data) > MaxFileBytes {
		r.fault(0, "", "the file has %d bytes, at most %d", len(data), MaxFileBytes)
		return doc
	}
	dec := yaml.NewDecoder(strings.NewReader(string(data)))
	var root yaml.Node
	if err := dec.Decode(&root); err != nil {
		if errors.Is(err, io.EOF) {
			r.fault(1, "write `version: 1`", "the file is empty")
		} else {
			r.fault(0, "mend the YAML", "%s", strings.TrimPrefix(err.Error(), "yaml: "))
		}
		return doc
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		r.fault(0, "keep one", "the file holds more than one document, or text behind it")
		return doc
	}
	version := false
	r.mapping(root.Content[0], "a policy", map[string]func(*yaml.Node){
		"version": func(n *yaml.Node) {
			if version = true; n.Value != "1" || n.Tag != "!!int" {
				r.fault(n.Line, "write `version: 1`", "version %q is not known", n.Value)
			}
		},
		"presets": func(n *yaml.Node) { doc.preset = r.presets(n) },
		"rules": func(n *yaml.Node) {
			for _, item := range r.sequence(n, "rules", MaxRules) {
				if rule, ok := r.rule(item); ok {
					doc.own = append(doc.own, rule)
				}
			}
		},
		"budget": func(n *yaml.Node) { doc.budget = r.budget(n) },
		"tests":  func(n *yaml.Node) { doc.cases = r.cases(n) },
		"on_alert": func(n *yaml.Node) {
			if doc.endOnAlert = n.Value == "end"; !doc.endOnAlert {
				r.fault(n.Line, "write `on_alert: end`, or leave it out to go on", "on_alert %.40q is not known", n.Value)
			}
		},
	})
	if !version {
		r.fault(1, "write `version: 1` at the top", "no version")
	}
	return doc
}

// mapping calls the function of each key, and faults unknown and double ones.
func (r *reader) mapping(n *yaml.Node, what string, fields map[string]func(*yaml.Node)) {
	if n.Kind != yaml.MappingNode {
		r.fault(n.Line, "write `key: value` lines", "%s is not a mapping", what)
		return
	}
	seen := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		read, ok := fields[key.Value]
		switch {
		case !ok || key.Kind != yaml.ScalarNode:
			r.fault(key.Line, "the keys here are "+strings.Join(slices.Sorted(maps.Keys(fields)), ", "), "unknown key %.60q in %s", key.Value, what)
		case seen[key.Value] > 0:
			r.fault(key.Line, "keep one", "%s is given twice, first in line %d", key.Value, seen[key.Value])
		case value.Kind == yaml.AliasNode || value.Anchor != "":
			r.fault(value.Line, "write the value out", "%s uses a YAML anchor or alias", key.Value)
		default:
			seen[key.Value] = key.Line
			read(value)
		}
	}
}

func (r *reader) sequence(n *yaml.Node, what string, most int) []*yaml.Node {
	switch {
	case n.Kind != yaml.SequenceNode:
		r.fault(n.Line, "write a list", "%s is not a list", what)
		return nil
	case len(n.Content) > most:
		r.fault(n.Line, "write fewer", "%s has %d entries, at most %d", what, len(n.Content), most)
		return nil
	}
	return n.Content
}

func (r *reader) text(n *yaml.Node, what string) string {
	if n.Kind != yaml.ScalarNode || n.Tag != "!!str" || n.Value == "" {
		r.fault(n.Line, "write it in quotes", "%s is not text", what)
		return ""
	}
	return n.Value
}

func (r *reader) truth(n *yaml.Node, what string) bool {
	if n.Kind != yaml.ScalarNode || n.Tag != "!!bool" {
		r.fault(n.Line, "write true, or leave the key out", "%s is neither true nor false", what)
	}
	return n.Value == "true"
}

// permission reads "allow", the only word for what is denied where left out.
func (r *reader) permission(n *yaml.Node, key string) bool {
	if n.Value != "allow" {
		r.fault(n.Line, "write `"+key+": allow`, or leave it out to deny", "%s %.40q is not known", key, n.Value)
	}
	return n.Value == "allow"
}

// words reads one scalar or a list of them.
func (r *reader) words(n *yaml.Node, what string) (out []string) {
	items := []*yaml.Node{n}
	if n.Kind == yaml.SequenceNode {
		if items = n.Content; len(items) == 0 {
			r.fault(n.Line, "leave the key out, or name some", "%s is an empty list", what)
		}
	}
	for _, item := range items {
		if item.Kind != yaml.ScalarNode || item.Value == "" || item.Tag != "!!str" && item.Tag != "!!int" {
			r.fault(item.Line, "write words or a list of them", "%s holds something that is not a word", what)
			continue
		}
		if slices.Contains(out, item.Value) {
			r.fault(item.Line, "keep one", "%s names %.60q twice", what, item.Value)
			continue
		}
		out = append(out, item.Value)
	}
	return out
}

func (r *reader) rule(n *yaml.Node) (rule policy.Rule, ok bool) {
	before := len(r.faults)
	rule.Line = n.Line
	var verbs, onlyAllow []string
	verb := func(deny bool) func(*yaml.Node) {
		return func(n *yaml.Node) {
			rule.Deny = deny
			verbs = append(verbs, "")
			r.try(n.Line, setDestination(&rule, r.text(n, "the destination")))
		}
	}
	allow := func(key string, read func(*yaml.Node)) func(*yaml.Node) {
		return func(n *yaml.Node) {
			onlyAllow = append(onlyAllow, key)
			read(n)
		}
	}
	r.mapping(n, "a rule", map[string]func(*yaml.Node){
		"allow":         verb(false),
		"deny":          verb(true),
		"name":          func(n *yaml.Node) { rule.Name = r.text(n, "name") },
		"ports":         func(n *yaml.Node) { r.try(n.Line, setPorts(&rule, r.words(n, "ports"))) },
		"protocol":      func(n *yaml.Node) { rule.Protocol = policy.Protocol(r.text(n, "protocol")) },
		"methods":       func(n *yaml.Node) { rule.Methods = slices.Sorted(slices.Values(r.words(n, "methods"))) },
		"paths":         func(n *yaml.Node) { rule.Paths = slices.Sorted(slices.Values(r.words(n, "paths"))) },
		"secret":        allow("secret", func(n *yaml.Node) { rule.Secret = r.text(n, "secret") }),
		"upstream":      allow("upstream", func(n *yaml.Node) { rule.Upstream = r.upstream(n) }),
		"allow_private": allow("allow_private", func(n *yaml.Node) { rule.AllowPrivate = r.truth(n, "allow_private") }),
		"budget":        allow("budget", func(n *yaml.Node) { rule.Budget = r.budget(n) }),
		"ech":           allow("ech", func(n *yaml.Node) { rule.ECH = r.permission(n, "ech") }),
		"unreadable":    allow("unreadable", func(n *yaml.Node) { rule.Unreadable = r.permission(n, "unreadable") }),
	})
	if len(r.faults) > before {
		return rule, false
	}
	if len(verbs) != 1 {
		r.fault(n.Line, "write `allow: DESTINATION` or `deny: DESTINATION`", "a rule has one of allow and deny, this has %d", len(verbs))
		return rule, false
	}
	if rule.Deny && len(onlyAllow) > 0 {
		r.fault(n.Line, "remove it", "a deny has no %s", strings.Join(onlyAllow, " and "))
	}
	if rule.Name == "" {
		if rule.Name = "line " + strconv.Itoa(n.Line); r.last.Line == n.Line {
			rule.Name += "." + strconv.Itoa(n.Column)
		}
		r.last = rule
	}
	for _, f := range settle(&rule) {
		f.Line = n.Line
		r.faults = append(r.faults, f)
	}
	return rule, len(r.faults) == before
}

// try turns an error into a fault. An error's text says how to mend it.
func (r *reader) try(line int, err error) {
	if err != nil {
		r.fault(line, "", "%v", err)
	}
}

func setDestination(rule *policy.Rule, s string) (err error) {
	if s == "" {
		return nil // already a fault
	}
	if rule.Prefix, err = netip.ParsePrefix(s); err == nil {
		if rule.Prefix != rule.Prefix.Masked() {
			return fmt.Errorf("%s has bits behind its prefix; write %s", s, rule.Prefix.Masked())
		}
	} else if addr, err := netip.ParseAddr(s); err == nil {
		if addr.Zone() != "" {
			return fmt.Errorf("address %s: write it without its zone", s)
		}
		rule.Prefix = netip.PrefixFrom(addr, addr.BitLen())
	} else {
		rule.Host, err = policy.CleanPattern(s)
		return err
	}
	if rule.Prefix.Addr().Is4In6() {
		return fmt.Errorf("address %s: write the IPv4 address itself", s)
	}
	return nil
}

func setPorts(rule *policy.Rule, words []string) error {
	for _, w := range words {
		first, last, isRange := strings.Cut(w, "-")
		a, err := policy.ParsePort(first)
		b := a
		if err == nil && isRange {
			b, err = policy.ParsePort(last)
		}
		if err != nil || b < a {
			return fmt.Errorf("port %.40q: want 1 to 65535, or a range such as 8000-8010", w)
		}
		rule.Ports = append(rule.Ports, policy.PortRange{First: a, Last: b})
	}
	slices.SortFunc(rule.Ports, func(a, b policy.PortRange) int { return int(a.First) - int(b.First) })
	for i := 1; i < len(rule.Ports); i++ {
		if rule.Ports[i].First <= rule.Ports[i-1].Last {
			return fmt.Errorf("ports %s overlap; write each once", strings.Join(formatPorts(rule.Ports[i-1:i+1]), " and "))
		}
	}
	return nil
}

func formatPorts(ports []policy.PortRange) (out []string) {
	for _, p := range ports {
		out = append(out, p.String())
	}
	return out
}

func (r *reader) upstream(n *yaml.Node) (u policy.Upstream) {
	r.mapping(n, "upstream", map[string]func(*yaml.Node){
		"address": func(n *yaml.Node) { u.Address = r.text(n, "address") },
		"ca":      func(n *yaml.Node) { u.CA = r.ca(n) },
	})
	if err := policy.CheckUpstream(u.Address); err != nil {
		r.fault(n.Line, "write `address: HOST:PORT`", "%v", err)
	}
	return u
}

func (r *reader) ca(n *yaml.Node) string {
	text := r.text(n, "ca")
	if text == "" {
		return ""
	}
	if !strings.HasPrefix(text, "-----BEGIN") {
		if r.in.File == nil {
			r.fault(n.Line, "write the PEM itself", "ca %.100q: files cannot be read here", text)
			return ""
		}
		data, err := r.in.File(text)
		if err != nil {
			r.fault(n.Line, "name a readable PEM file", "ca: %v", err)
			return ""
		}
		text = string(data)
	}
	block, _ := pem.Decode([]byte(text))
	if block == nil || block.Type != "CERTIFICATE" {
		r.fault(n.Line, "give certificates in PEM", "ca: no certificate found in it")
	}
	if strings.Contains(text, "PRIVATE KEY") {
		r.fault(n.Line, "give certificates only", "ca: it holds a private key")
	}
	return strings.TrimSpace(text) + "\n"
}

func (r *reader) presets(n *yaml.Node) (rules []policy.Rule) {
	for _, name := range r.words(n, "presets") {
		if r.in.Preset == nil {
			r.fault(n.Line, "write its rules out", "preset %.60q: presets cannot be read here", name)
			continue
		}
		more, err := r.in.Preset(name)
		r.try(n.Line, err)
		rules = append(rules, more...)
	}
	return rules
}

// limits are a budget's keys, in the order in which they are printed.
func limits(b *policy.Budget) []limit {
	return []limit{
		{"bytes_out", &b.BytesOut, true}, {"bytes_in", &b.BytesIn, true}, {"requests", &b.Requests, false},
		{"connections", &b.Connections, false}, {"hosts", &b.Hosts, false}, {"requests_per_minute", &b.RequestsPerMinute, false},
	}
}

type limit struct {
	key   string
	value *int64
	bytes bool
}

func (r *reader) budget(n *yaml.Node) (b policy.Budget) {
	fields := map[string]func(*yaml.Node){}
	for _, l := range limits(&b) {
		fields[l.key] = func(n *yaml.Node) {
			v, err := ParseCount(n.Value, l.bytes)
			if err != nil || n.Kind != yaml.ScalarNode {
				r.fault(n.Line, "write a number, for bytes with KiB, MiB or GiB; to allow nothing, deny the destination", "%s %.40q is not a limit", l.key, n.Value)
			}
			*l.value = v
		}
	}
	r.mapping(n, "a budget", fields)
	if b.Hosts > policy.MaxHosts {
		r.fault(n.Line, "leave it out", "hosts %d: at most %d", b.Hosts, policy.MaxHosts)
	}
	return b
}

// ParseCount reads a positive number; for bytes it may end in KiB, MiB, GiB or
// TiB.
func ParseCount(s string, bytes bool) (int64, error) {
	digits, shift := s, 0
	if bytes {
		for i, unit := range []string{"KiB", "MiB", "GiB", "TiB"} {
			if d, ok := strings.CutSuffix(s, unit); ok {
				digits, shift = strings.TrimSpace(d), 10*(i+1)
			}
		}
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n <= 0 || n > 1<<60>>shift {
		return 0, fmt.Errorf("%.40q: want a positive number", s)
	}
	return n << shift, nil
}
