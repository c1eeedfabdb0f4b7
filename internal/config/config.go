// Package config is the operator's defaults: one strict YAML file, environment
// variables over it, and for each value where it came from. Flags override
// both, and are not known here. The package must not act on a value, and must
// not create anything.
package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"creel/internal/sandbox"

	"github.com/docker/go-units"
	"go.yaml.in/yaml/v3"
)

// Config is every default, checked.
type Config struct {
	StateDir    string
	MemoryBytes int64 // 0: the default machine's
	CPUs        float64
	DiskBytes   int64
	Timeout     time.Duration
	Accel       sandbox.Accel
	Confinement sandbox.Confinement
	Tier        string // of a task, where no flag says
	TiersFile   string // replaces the tiers that ship; "": none
	// SecretsIdentity is the file with the age identity that secrets are
	// encrypted for; "": one beside them.
	SecretsIdentity string
	LogLevel        string // debug, info, warn or error
	LogFormat       string // text or json
	PruneAfter      time.Duration
	// Standby is how many VMs wait for the next task, 0 to 16, and StandbyFor
	// how long each.
	Standby    int
	StandbyFor time.Duration
	AuditQuota int64 // most bytes of one run's audit log
	// Mirrors are tried in order before a registry itself: registry → mirrors.
	Mirrors map[string][]string
	// ProxyCertificates is a file that a corporate proxy's certificates are verified
	// with, besides the system's; ProxyResolves hands that proxy names.
	ProxyCertificates string
	ProxyResolves     bool
}

// Value is one setting as `creel config show` prints it.
type Value struct {
	Name   string `json:"name"`
	Value  string `json:"value"`
	Source string `json:"source"` // "default", "environment NAME" or "FILE line N"
}

// setting is one row of the table that reading, checking, showing and the
// schema all come from.
type setting struct {
	name, fallback, about string
	pattern               string // of the JSON Schema; "" is any text
	set                   func(*Config, string) error
}

// env is the setting's variable: stateDir is CREEL_STATE_DIR.
func (s setting) env() string {
	var b strings.Builder
	b.WriteString("CREEL_")
	for _, r := range s.name {
		if r >= 'A' && r <= 'Z' {
			b.WriteByte('_')
		}
		b.WriteRune(r)
	}
	return strings.ToUpper(b.String())
}

const (
	sizePattern     = `^$|^[0-9]+(\.[0-9]+)?[bkmgBKMG]?[bB]?$`
	durationPattern = `^([0-9]+(\.[0-9]+)?(ms|s|m|h))+$|^0$`
)

// maxStandby VMs can wait at once.
const maxStandby = 16

// An audit log of less has no room for what is kept back of it, and one of more
// is not taken in: package audit has the same numbers.
const (
	minAuditQuota = 1 << 20
	maxAuditQuota = 64 << 20
)

func settings(stateDir string) []setting {
	return []setting{
		{"stateDir", stateDir, "where images, templates and sandboxes lie", "^/", func(c *Config, v string) error {
			if !filepath.IsAbs(v) {
				return errors.New("want an absolute path")
			}
			c.StateDir = filepath.Clean(v)
			return nil
		}},
		{"memory", "", "memory of a task, such as 2g; empty is all that a 512m machine has", sizePattern, sizeSetter(func(c *Config) *int64 { return &c.MemoryBytes })},
		{"cpus", "1", "CPUs of a task, 0.01 to 4", `^[0-9.]+$`, func(c *Config, v string) (err error) {
			if c.CPUs, err = strconv.ParseFloat(v, 64); err != nil || !(c.CPUs >= sandbox.MinCPUs && c.CPUs <= sandbox.MaxCPUs) {
				return fmt.Errorf("want a number from %g to %g", sandbox.MinCPUs, sandbox.MaxCPUs)
			}
			return nil
		}},
		{"disk", "10g", "writable disk of a task, 64m to 64g", sizePattern, sizeSetter(func(c *Config) *int64 { return &c.DiskBytes })},
		{"timeout", "0", "a task is stopped after this: its stop signal, SIGKILL 4 s later, the VM's end 1 s after that; 0 is never", durationPattern, durationSetter(func(c *Config) *time.Duration { return &c.Timeout })},
		{"accel", "auto", "what executes guest code: kvm is tried wherever it opens, auto takes it where it is quick", "^(auto|kvm|tcg)$", choice(func(c *Config, v string) { c.Accel = sandbox.Accel(v) }, "auto", "kvm", "tcg")},
		{"confinement", "full", "how VMM processes are locked in", "^(full|reduced)$", choice(func(c *Config, v string) { c.Confinement = sandbox.Confinement(v) }, "full", "reduced")},
		{"tier", "trusted", "the ceiling on what a task may ask for", "^(untrusted|restricted|trusted)$", choice(func(c *Config, v string) { c.Tier = v }, "untrusted", "restricted", "trusted")},
		{"standby", "0", "how many VMs like the last task's wait for the next one, 0 to 16", "^([0-9]|1[0-6])$", func(c *Config, v string) (err error) {
			if c.Standby, err = strconv.Atoi(v); err != nil || c.Standby < 0 || c.Standby > maxStandby {
				return fmt.Errorf("want a number from 0 to %d", maxStandby)
			}
			return nil
		}},
		{"standbyFor", "10m", "how long a VM waits for a task before it goes", durationPattern, durationSetter(func(c *Config) *time.Duration { return &c.StandbyFor })},
		{"auditQuota", "64m", "the most that the audit log of one run may have, 1m to 64m; a task that has used it up reaches nothing more", sizePattern, func(c *Config, v string) (err error) {
			if c.AuditQuota, err = units.RAMInBytes(v); err != nil || c.AuditQuota < minAuditQuota || c.AuditQuota > maxAuditQuota {
				return errors.New("want a size from 1m to 64m")
			}
			return nil
		}},
		{"tiersFile", "", "the file that replaces those ceilings; empty is what `creel policy tiers` prints then", "^$|^/", pathSetter(func(c *Config) *string { return &c.TiersFile })},
		{"secretsIdentity", "", "the file with the age identity that secrets are encrypted for; empty is one beside them, in the state directory", "^$|^/", pathSetter(func(c *Config) *string { return &c.SecretsIdentity })},
		{"logLevel", "warn", "what Creel says about itself on standard error", "^(debug|info|warn|error)$", choice(func(c *Config, v string) { c.LogLevel = v }, "debug", "info", "warn", "error")},
		{"logFormat", "text", "how it says it", "^(text|json)$", choice(func(c *Config, v string) { c.LogFormat = v }, "text", "json")},
		{"registryMirrors", "", "mirrors tried before a registry, REGISTRY=MIRROR[,MIRROR], several apart by spaces", "", setMirrors},
		{"proxyCertificates", "", "PEM file of a corporate proxy's authority, trusted besides the system's for what sandboxes reach", "^$|^/", pathSetter(func(c *Config) *string { return &c.ProxyCertificates })},
		{"proxyResolves", "no", "whether the proxy of HTTPS_PROXY is given names instead of addresses: Creel then cannot tell private ones", "^(yes|no)$", choice(func(c *Config, v string) { c.ProxyResolves = v == "yes" }, "yes", "no")},
		{"pruneAfter", "336h", "`creel image prune` removes images without a name that are older", durationPattern, durationSetter(func(c *Config) *time.Duration { return &c.PruneAfter })},
	}
}

func setMirrors(c *Config, v string) error {
	c.Mirrors = map[string][]string{}
	for entry := range strings.FieldsSeq(v) {
		registry, mirrors, ok := strings.Cut(entry, "=")
		if !ok || registry == "" || mirrors == "" {
			return errors.New("want REGISTRY=MIRROR[,MIRROR], several apart by spaces")
		}
		c.Mirrors[registry] = append(c.Mirrors[registry], strings.Split(mirrors, ",")...)
	}
	return nil
}

// pathSetter takes an absolute path or none.
func pathSetter(field func(*Config) *string) func(*Config, string) error {
	return func(c *Config, v string) error {
		if v != "" && !filepath.IsAbs(v) {
			return errors.New("want an absolute path")
		}
		*field(c) = v
		return nil
	}
}

func sizeSetter(field func(*Config) *int64) func(*Config, string) error {
	return func(c *Config, v string) error {
		if v == "" {
			return nil
		}
		n, err := units.RAMInBytes(v)
		if err != nil || n <= 0 {
			return errors.New("want a size such as 512m or 2g")
		}
		*field(c) = n
		return nil
	}
}

func durationSetter(field func(*Config) *time.Duration) func(*Config, string) error {
	return func(c *Config, v string) error {
		d, err := time.ParseDuration(v)
		if err != nil || d < 0 {
			return errors.New("want a duration such as 10m or 24h, or 0")
		}
		*field(c) = d
		return nil
	}
}

func choice(set func(*Config, string), allowed ...string) func(*Config, string) error {
	return func(c *Config, v string) error {
		if !slices.Contains(allowed, v) {
			return fmt.Errorf("want one of %s", strings.Join(allowed, ", "))
		}
		set(c, v)
		return nil
	}
}

// Variables are those of the environment that [Load] reads.
func Variables() []string {
	names := []string{"CREEL_CONFIG", "HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME"}
	for _, s := range settings("") {
		names = append(names, s.env())
	}
	return names
}

// Path is the file that is read: CREEL_CONFIG, else creel/config.yaml in the
// user's configuration directory. A user without a home has none.
func Path(lookup func(string) (string, bool)) string {
	if p, ok := lookup("CREEL_CONFIG"); ok && p != "" {
		return p
	}
	if dir, ok := xdg(lookup, "XDG_CONFIG_HOME", ".config"); ok {
		return filepath.Join(dir, "creel", "config.yaml")
	}
	return ""
}

// stateDir is the default: of a user without a home, one below the directory
// for temporary files, by number. Whoever uses it checks whose it is.
func stateDir(lookup func(string) (string, bool)) string {
	if dir, ok := xdg(lookup, "XDG_STATE_HOME", ".local/state"); ok {
		return filepath.Join(dir, "creel")
	}
	return filepath.Join(os.TempDir(), fmt.Sprintf("creel-%d", os.Getuid()))
}

// xdg is a base directory of the XDG specification.
func xdg(lookup func(string) (string, bool), name, below string) (string, bool) {
	if p, ok := lookup(name); ok && filepath.IsAbs(p) {
		return p, true
	}
	if home, ok := lookup("HOME"); ok && filepath.IsAbs(home) && home != "/" {
		return filepath.Join(home, below), true
	}
	return "", false
}

// Load reads the file, where there is one, and the environment. Every fault is
// returned at once, each with its line or variable.
func Load(lookup func(string) (string, bool)) (Config, []Value, error) {
	path := Path(lookup)
	fromFile, lines, err := readFile(path)
	if err != nil {
		return Config{}, nil, err
	}
	var c Config
	var values []Value
	var errs []error
	for _, s := range settings(stateDir(lookup)) {
		v := Value{s.name, s.fallback, "default"}
		if text, ok := fromFile[s.name]; ok {
			v.Value, v.Source = text, fmt.Sprintf("%s line %d", path, lines[s.name])
			delete(fromFile, s.name)
		}
		if text, ok := lookup(s.env()); ok && text != "" {
			v.Value, v.Source = text, "environment "+s.env()
		}
		if err := s.set(&c, v.Value); err != nil {
			errs = append(errs, fmt.Errorf("%s %q (%s): %w", s.name, v.Value, v.Source, err))
		}
		values = append(values, v)
	}
	for name := range fromFile {
		errs = append(errs, fmt.Errorf("%s line %d: %q is not a setting; `creel config show` lists them", path, lines[name], name))
	}
	return c, values, errors.Join(errs...)
}

// readFile reads a flat mapping of scalars, and the line of each key.
func readFile(path string) (values map[string]string, lines map[string]int, err error) {
	values, lines = map[string]string{}, map[string]int{}
	if path == "" {
		return values, lines, nil
	}
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return values, lines, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("read configuration: %w", err)
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(data, &doc); err != nil {
		return nil, nil, fmt.Errorf("read configuration %s: %w", path, err)
	}
	if len(doc.Content) == 0 {
		return values, lines, nil
	}
	top := doc.Content[0]
	if top.Kind != yaml.MappingNode {
		return nil, nil, fmt.Errorf("read configuration %s line %d: want settings, `name: value`", path, top.Line)
	}
	for i := 0; i < len(top.Content); i += 2 {
		key, value := top.Content[i], top.Content[i+1]
		if _, twice := values[key.Value]; twice {
			return nil, nil, fmt.Errorf("read configuration %s line %d: %s is given twice", path, key.Line, key.Value)
		}
		if value.Kind != yaml.ScalarNode {
			return nil, nil, fmt.Errorf("read configuration %s line %d: %s: want one value", path, key.Line, key.Value)
		}
		values[key.Value], lines[key.Value] = value.Value, key.Line
	}
	return values, lines, nil
}

// Schema is a JSON Schema of the file, for editors.
func Schema() map[string]any {
	properties := map[string]any{}
	for _, s := range settings("~/.local/state/creel") {
		p := map[string]any{"type": []string{"string", "number"}, "description": s.about, "default": s.fallback}
		if s.pattern != "" {
			p["pattern"] = s.pattern
		}
		properties[s.name] = p
	}
	return map[string]any{
		"$schema": "https://json-schema.org/draft/2020-12/schema",
		"title":   "Creel configuration", "type": "object",
		"properties": properties, "additionalProperties": false,
	}
}
