// Package tier holds the trust levels: each is a ceiling on what a sandbox may
// ask for. [Default] and [Parse] give the [Tiers], [Ceiling.Admit] holds a
// [Wish] against one of them. The package is pure; it must not touch files,
// the network, the environment or the clock, must not trim a wish to fit, and
// must not print a value that looks like a secret.
package tier

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"creel/internal/policy"
	"creel/internal/policy/syntax"

	"github.com/docker/go-units"
	"go.yaml.in/yaml/v3"
)

//go:embed tiers.yaml
var defaults []byte

// Names of the tiers, from the least trusted.
const (
	Untrusted  = "untrusted"
	Restricted = "restricted"
	Trusted    = "trusted"
)

// Tiers are the ceilings by name; all three are there.
type Tiers map[string]*Ceiling

// Ceiling is the most that a sandbox of a tier may ask for. For numbers 0 is
// no ceiling; the zero value of all else allows nothing.
type Ceiling struct {
	Name               string        `yaml:"-"`
	Egress             Egress        `yaml:"egress"`
	Secrets            int           `yaml:"secrets"` // -1: any number
	SecretEnv          string        `yaml:"secret_env"`
	WritableMounts     bool          `yaml:"writable_mounts"`
	Publish            string        `yaml:"publish"`
	ReducedConfinement bool          `yaml:"reduced_confinement"`
	Memory             Bytes         `yaml:"memory"`
	CPUs               float64       `yaml:"cpus"`
	Disk               Bytes         `yaml:"disk"`
	PIDs               int64         `yaml:"pids"`
	Lifetime           time.Duration `yaml:"lifetime"`
}

// Egress is the ceiling on a policy.
type Egress struct {
	Protocols []policy.Protocol `yaml:"protocols"`
	Wildcards string            `yaml:"wildcards"`
	Addresses bool              `yaml:"addresses"`
	Private   bool              `yaml:"private"`
	Upstream  bool              `yaml:"upstream"`
	ECH       bool              `yaml:"ech"`
	HostPorts bool              `yaml:"host_ports"`
	Rules     int               `yaml:"rules"`
	BytesOut  Bytes             `yaml:"bytes_out"`
	Requests  int64             `yaml:"requests"`
}

// Bytes is a size, written as a number with KiB, MiB, GiB or TiB.
type Bytes int64

// UnmarshalYAML reads "2GiB" and 0.
func (b *Bytes) UnmarshalYAML(n *yaml.Node) error {
	if n.Value == "0" {
		*b = 0
		return nil
	}
	v, err := syntax.ParseCount(n.Value, true)
	if err != nil || n.Kind != yaml.ScalarNode {
		return fmt.Errorf("line %d: size %.40q: want a number with KiB, MiB or GiB, or 0 for no ceiling", n.Line, n.Value)
	}
	*b = Bytes(v)
	return nil
}

func (b Bytes) String() string {
	for _, unit := range []struct {
		name  string
		shift int
	}{{"TiB", 40}, {"GiB", 30}, {"MiB", 20}, {"KiB", 10}} {
		if b >= 1<<unit.shift && b&(1<<unit.shift-1) == 0 {
			return fmt.Sprintf("%d%s", b>>unit.shift, unit.name)
		}
	}
	return units.CustomSize("%.4g %s", float64(b), 1024, []string{"bytes", "KiB", "MiB", "GiB", "TiB"})
}

// DefaultText is the file that ships, for an operator to change a copy of.
func DefaultText() []byte { return bytes.Clone(defaults) }

// Default are the tiers that ship.
func Default() Tiers {
	tiers, err := Parse(defaults)
	if err != nil {
		panic("tier: the embedded file: " + err.Error())
	}
	return tiers
}

// Parse reads a file that replaces the one that ships. It must have all three
// tiers, and every key that it has must be known.
func Parse(data []byte) (Tiers, error) {
	var file struct {
		Version int   `yaml:"version"`
		Tiers   Tiers `yaml:"tiers"`
	}
	if len(data) > syntax.MaxFileBytes {
		return nil, fmt.Errorf("read tiers: %d bytes, at most %d", len(data), syntax.MaxFileBytes)
	}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	dec.KnownFields(true)
	if err := dec.Decode(&file); err != nil {
		return nil, fmt.Errorf("read tiers: %w", err)
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, errors.New("read tiers: the file holds more than one document")
	}
	var errs []error
	fault := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if file.Version != 1 {
		fault("version %d is not known; write `version: 1`", file.Version)
	}
	want := []string{Restricted, Trusted, Untrusted}
	if got := slices.Sorted(maps.Keys(file.Tiers)); !slices.Equal(got, want) {
		fault("tiers are %s; want exactly %s", strings.Join(got, ", "), strings.Join(want, ", "))
	}
	for _, name := range slices.Sorted(maps.Keys(file.Tiers)) {
		c := file.Tiers[name]
		if c == nil {
			fault("%s: empty; copy it from the file that ships", name)
			continue
		}
		c.Name = name
		for _, text := range c.faults() {
			fault("%s: %s", name, text)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return file.Tiers, nil
}

func (c *Ceiling) faults() (out []string) {
	oneOf := func(key, got string, want ...string) {
		if !slices.Contains(want, got) {
			out = append(out, fmt.Sprintf("%s %q: want one of %s", key, got, strings.Join(want, ", ")))
		}
	}
	oneOf("wildcards", c.Egress.Wildcards, "none", "one", "any")
	oneOf("publish", c.Publish, "none", "loopback", "any")
	oneOf("secret_env", c.SecretEnv, "refuse", "warn")
	for _, p := range c.Egress.Protocols {
		oneOf("protocol", string(p), "tls", "http", "tcp", "udp")
	}
	if c.CPUs < 0 || c.PIDs < 0 || c.Lifetime < 0 || c.Egress.Rules < 0 || c.Egress.Requests < 0 || c.Secrets < -1 {
		out = append(out, "a number is negative; write 0 for no ceiling")
	}
	return out
}

// Wish is what a sandbox asks for, in the words of this package: the engine
// writes it from a Spec. Sizes are what will be used, so that a default counts
// too; 0 is without limit.
type Wish struct {
	Policy         *policy.Policy
	Secrets        []string // beside those that the policy names
	Env            []string // NAME=value, as the user gave it
	WritableMounts []string // targets
	Publish        []Port
	Reduced        bool // reduced confinement
	MemoryBytes    int64
	CPUs           float64
	DiskBytes      int64
	PIDs           int64
	Lifetime       time.Duration
}

// Port is one that is opened on the host for the sandbox.
type Port struct {
	Text     string // as the user wrote it
	Loopback bool
}

// Admit lists everything in the wish that is over the ceiling, and warns of
// what is allowed here but seldom meant. No faults: admitted. A nil Ceiling
// admits nothing.
func (c *Ceiling) Admit(w Wish) (faults, warnings policy.Faults) {
	if c == nil {
		return policy.Faults{{Where: "tier", Text: "not known", Mend: "name untrusted, restricted or trusted"}}, nil
	}
	a := &admission{ceiling: c}
	a.resources(w)
	a.egress(w.Policy)

	secrets := slices.Concat(w.Policy.Secrets(), w.Secrets)
	slices.Sort(secrets)
	if n := len(slices.Compact(secrets)); c.Secrets >= 0 && n > c.Secrets {
		a.fault("secrets", fmt.Sprintf("%d are used, at most %d", n, c.Secrets), "use fewer")
	}
	for _, target := range w.WritableMounts {
		if !c.WritableMounts {
			a.fault("mount "+target, "is writable", "mount it read-only")
		}
	}
	for _, p := range w.Publish {
		if c.Publish == "none" || c.Publish == "loopback" && !p.Loopback {
			a.fault("-p "+p.Text, "ports in: "+c.Publish, "publish on 127.0.0.1, where that is allowed, or not at all")
		}
	}
	if w.Reduced && !c.ReducedConfinement {
		a.fault("confinement", "reduced is not enough here", "use full confinement")
	}
	envFaults, warnings := c.AdmitEnv(w.Env)
	return append(a.faults, envFaults...), warnings
}

// AdmitEnv is Admit for the variables of one more process, NAME=value each, as
// the user gave them.
func (c *Ceiling) AdmitEnv(env []string) (faults, warnings policy.Faults) {
	for _, e := range env {
		name, value, _ := strings.Cut(e, "=")
		kind := SecretShape(value)
		if kind == "" {
			continue
		}
		f := policy.Fault{
			Where: "-e " + name, Text: "the value looks like " + kind,
			Mend: "leave it out, since the task could read it and send it on",
		}
		if c != nil && c.SecretEnv == "warn" {
			warnings = append(warnings, f)
			continue
		}
		if c != nil {
			f.Text += ", which tier " + c.Name + " refuses"
		}
		faults = append(faults, f)
	}
	return faults, warnings
}

type admission struct {
	ceiling *Ceiling
	faults  policy.Faults
}

func (a *admission) fault(where, text, mend string) {
	a.faults = append(a.faults, policy.Fault{
		Where: where, Text: text + " (tier " + a.ceiling.Name + ")", Mend: mend + ", or choose a higher tier",
	})
}

func (a *admission) resources(w Wish) {
	c := a.ceiling
	if c.Memory > 0 && (w.MemoryBytes == 0 || w.MemoryBytes > int64(c.Memory)) {
		a.fault("memory", fmt.Sprintf("%s, at most %s", amount(w.MemoryBytes, Bytes(w.MemoryBytes)), c.Memory), "give a smaller --memory")
	}
	if c.Disk > 0 && (w.DiskBytes == 0 || w.DiskBytes > int64(c.Disk)) {
		a.fault("disk", fmt.Sprintf("%s, at most %s", amount(w.DiskBytes, Bytes(w.DiskBytes)), c.Disk), "give a smaller --disk")
	}
	if c.CPUs > 0 && !(w.CPUs > 0 && w.CPUs <= c.CPUs) {
		a.fault("cpus", fmt.Sprintf("%g, at most %g", w.CPUs, c.CPUs), fmt.Sprintf("give --cpus %g or less", c.CPUs))
	}
	if c.PIDs > 0 && (w.PIDs <= 0 || w.PIDs > c.PIDs) {
		a.fault("pids-limit", fmt.Sprintf("%s, at most %d", amount(w.PIDs, w.PIDs), c.PIDs), fmt.Sprintf("give --pids-limit %d or less", c.PIDs))
	}
	if c.Lifetime > 0 && (w.Lifetime <= 0 || w.Lifetime > c.Lifetime) {
		a.fault("timeout", fmt.Sprintf("%s, at most %s", amount(int64(w.Lifetime), w.Lifetime), c.Lifetime), fmt.Sprintf("give --timeout %s or less", c.Lifetime))
	}
}

func amount(n int64, v any) string {
	if n == 0 {
		return "no limit"
	}
	return fmt.Sprint(v)
}

func (a *admission) egress(p *policy.Policy) {
	if p == nil || len(p.Rules) == 0 {
		return // it reaches nothing
	}
	e := &a.ceiling.Egress
	for i := range p.Rules {
		if r := &p.Rules[i]; !r.Deny {
			a.rule(r)
		}
	}
	if e.Rules > 0 && len(p.Rules) > e.Rules {
		a.fault("policy", fmt.Sprintf("%d rules, at most %d", len(p.Rules), e.Rules), "write fewer")
	}
	if e.BytesOut > 0 && (p.Budget.BytesOut == 0 || p.Budget.BytesOut > int64(e.BytesOut)) {
		a.fault("policy", fmt.Sprintf("budget bytes_out: %s, at most %s", amount(p.Budget.BytesOut, Bytes(p.Budget.BytesOut)), e.BytesOut),
			"write `budget: {bytes_out: "+e.BytesOut.String()+"}` or less")
	}
	if e.Requests > 0 && (p.Budget.Requests == 0 || p.Budget.Requests > e.Requests) {
		a.fault("policy", fmt.Sprintf("budget requests: %s, at most %d", amount(p.Budget.Requests, p.Budget.Requests), e.Requests),
			fmt.Sprintf("write `budget: {requests: %d}` or less", e.Requests))
	}
}

func (a *admission) rule(r *policy.Rule) {
	e := &a.ceiling.Egress
	where := fmt.Sprintf("rule %q", r.Name)
	for _, proto := range r.Protocols() {
		if !slices.Contains(e.Protocols, proto) {
			a.fault(where, fmt.Sprintf("protocol %s", proto), "remove those ports")
		}
	}
	deep, any := strings.HasPrefix(r.Host, "**"), strings.HasPrefix(r.Host, "*")
	switch {
	case any && e.Wildcards == "none":
		a.fault(where, "a wildcard", "name the hosts")
	case deep && e.Wildcards == "one":
		a.fault(where, "a wildcard of any depth", "use *. or name the hosts")
	}
	for _, limit := range []struct {
		over, allowed bool
		text          string
	}{
		{r.Prefix.IsValid(), e.Addresses, "a destination by address"},
		{r.ReachesPrivate(), e.Private, "private addresses"},
		{r.Upstream.Address != "", e.Upstream, "an upstream"},
		{r.ECH, e.ECH, "encrypted ClientHello"},
		{r.Host == policy.HostAlias, e.HostPorts, "a port of the host"},
	} {
		if limit.over && !limit.allowed {
			a.fault(where, limit.text, "remove it")
		}
	}
}
