package sandbox

import (
	"errors"
	"fmt"
	"net/netip"
	"path"
	"strings"

	"github.com/docker/go-units"
)

// Bounds of a Spec.
const (
	MinMemoryBytes = 16 << 20
	MaxMemoryBytes = 8 << 30
	MinDiskBytes   = 64 << 20
	MaxDiskBytes   = 64 << 30
	DefaultDisk    = 10 << 30
	MinPIDs        = 4
	MaxCPUs        = 4.0
	MinCPUs        = 0.01

	maxPorts     = 256
	maxEnv       = 4096
	maxEnvBytes  = 128 << 10 // one variable; Linux's MAX_ARG_STRLEN
	maxSpecBytes = 512 << 10 // all arguments and variables together

	MaxPolicyBytes = 1 << 20
)

// Size is a number of bytes as people write it, such as 512 MiB.
func Size(bytes int64) string {
	return units.CustomSize("%.4g %s", float64(bytes), 1024, []string{"bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"})
}

const alphanumeric = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"

// ValidName reports whether s can name a sandbox: Docker's rule, at most 128
// characters, and nothing that looks like an ID.
func ValidName(s string) bool {
	return len(s) >= 1 && len(s) <= 128 && only(s[:1], alphanumeric) && only(s, alphanumeric+"_.-") && !looksLikeID(s)
}

func validHostname(s string) bool {
	return len(s) <= 63 && only(s[:1], alphanumeric) && only(s[len(s)-1:], alphanumeric) && only(s, alphanumeric+".-")
}

// Validate returns every fault of the Spec at once, joined, each beginning
// with the field's name. A Spec that passes can be acted on.
func (s *Spec) Validate() error {
	var errs []error
	fault := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }

	if _, err := ParseID(string(s.ID)); err != nil {
		errs = append(errs, err)
	}
	if !ValidName(s.Name) {
		fault("name %q: want letters, digits, '_', '.' and '-', the first a letter or digit, at most 128", s.Name)
	}
	if s.Image == "" {
		fault("image: none given; name one that `creel image ls` shows")
	}
	if s.Hostname != "" && !validHostname(s.Hostname) {
		fault("hostname %q: want at most 63 letters, digits, '.' and '-', no '-' at either end", s.Hostname)
	}
	if s.Workdir != "" && (!path.IsAbs(s.Workdir) || strings.Contains(s.Workdir, "\x00")) {
		fault("workdir %q: want an absolute path", s.Workdir)
	}
	if strings.ContainsAny(s.User, "\x00\n") || strings.Count(s.User, ":") > 1 {
		fault("user %q: want NAME|UID[:GROUP|GID]", s.User)
	}
	if s.Timeout < 0 {
		fault("timeout %s: want a positive duration, such as 10m", s.Timeout)
	}
	if len(s.Policy) > MaxPolicyBytes {
		fault("policy: it has %s, at most %s; use wildcards", Size(int64(len(s.Policy))), Size(MaxPolicyBytes))
	}
	switch s.Confinement {
	case ConfinementFull, ConfinementReduced:
	default:
		fault("confinement %q: want full or reduced", s.Confinement)
	}
	switch s.Accel {
	case AccelAuto, AccelKVM, AccelTCG:
	default:
		fault("accel %q: want auto, kvm or tcg", s.Accel)
	}
	errs = append(errs, s.validateProcess()...)
	errs = append(errs, s.Resources.validate()...)
	errs = append(errs, validateMounts(s.Mounts)...)
	errs = append(errs, validatePorts(s.Ports)...)
	return errors.Join(errs...)
}

func (s *Spec) validateProcess() (errs []error) {
	total := 0
	for _, arg := range append(append([]string{}, s.Entrypoint...), s.Command...) {
		total += len(arg)
		if strings.Contains(arg, "\x00") {
			errs = append(errs, errors.New("command: an argument holds a NUL byte"))
		}
	}
	if len(s.Env) > maxEnv {
		errs = append(errs, fmt.Errorf("env: %d variables, at most %d", len(s.Env), maxEnv))
	}
	for _, e := range s.Env {
		total += len(e)
		name, _, ok := strings.Cut(e, "=")
		switch {
		case !ok || name == "" || strings.Contains(e, "\x00"):
			errs = append(errs, fmt.Errorf("env %q: want NAME=value", name))
		case len(e) > maxEnvBytes:
			errs = append(errs, fmt.Errorf("env %s: it has %s, at most %s; put it in a file", name, Size(int64(len(e))), Size(maxEnvBytes)))
		}
	}
	if total > maxSpecBytes {
		errs = append(errs, fmt.Errorf("command and env: %s together, at most %s; put large input on stdin", Size(int64(total)), Size(maxSpecBytes)))
	}
	return errs
}

func (r Resources) validate() (errs []error) {
	bounds := func(field string, v, least, most int64) {
		if v != 0 && (v < least || v > most) {
			errs = append(errs, fmt.Errorf("%s %s: want %s to %s", field, Size(v), Size(least), Size(most)))
		}
	}
	bounds("memory", r.MemoryBytes, MinMemoryBytes, MaxMemoryBytes)
	bounds("disk", r.DiskBytes, MinDiskBytes, MaxDiskBytes)
	if r.CPUs != 0 && !(r.CPUs >= MinCPUs && r.CPUs <= MaxCPUs) {
		errs = append(errs, fmt.Errorf("cpus %g: want %g to %g", r.CPUs, MinCPUs, MaxCPUs))
	}
	if r.PIDs != 0 && r.PIDs < MinPIDs {
		errs = append(errs, fmt.Errorf("pids-limit %d: want at least %d, or 0 for none", r.PIDs, MinPIDs))
	}
	return errs
}

func validatePorts(ports []Port) (errs []error) {
	if len(ports) > maxPorts {
		errs = append(errs, fmt.Errorf("ports: %d are published, at most %d", len(ports), maxPorts))
	}
	seen := map[Port]bool{}
	for _, p := range ports {
		host := p
		host.GuestPort = 0
		switch _, err := netip.ParseAddr(p.HostIP); {
		case err != nil:
			errs = append(errs, fmt.Errorf("port %s: the host's side wants an address, such as 127.0.0.1", p))
		case p.GuestPort == 0:
			errs = append(errs, fmt.Errorf("port %s: the sandbox's side wants 1 to 65535", p))
		case p.Proto != "tcp" && p.Proto != "udp":
			errs = append(errs, fmt.Errorf("port %s: want tcp or udp", p))
		case p.HostPort != 0 && seen[host]:
			errs = append(errs, fmt.Errorf("port %s: given twice", p))
		}
		seen[host] = true
	}
	return errs
}

// ownMounts are targets that the guest agent itself mounts.
var ownMounts = []string{"/", "/proc", "/sys", "/dev", "/dev/pts"}

func validateMounts(mounts []Mount) (errs []error) {
	seen := map[string]bool{}
	for _, m := range mounts {
		fault := func(format string, args ...any) {
			errs = append(errs, fmt.Errorf("mount %q: "+format, append([]any{m.Target}, args...)...))
		}
		if m.Kind != MountTmpfs {
			fault("kind %q is not known", m.Kind)
		}
		if !path.IsAbs(m.Target) || path.Clean(m.Target) != m.Target || strings.Contains(m.Target, "\x00") {
			fault("want an absolute path without '..'")
		}
		for _, own := range ownMounts {
			if m.Target == own {
				fault("the sandbox has its own file system there")
			}
		}
		if seen[m.Target] {
			fault("given twice")
		}
		seen[m.Target] = true
		if m.SizeBytes < 0 || m.SizeBytes > MaxMemoryBytes {
			fault("size %s: want at most %s", Size(m.SizeBytes), Size(MaxMemoryBytes))
		}
		if m.Mode > 0o7777 {
			fault("mode %o: want at most 7777 octal", m.Mode)
		}
	}
	return errs
}
