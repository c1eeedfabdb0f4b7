// Package qemu is the [vm.Driver] that runs machines in QEMU's microvm. A
// machine is planned as data (arguments and descriptors), locked in by package
// confine, and commanded over QMP. Everything that the VMM has, sockets, disks,
// memory, it is handed as a descriptor.
//
// The package must not know images, templates or tasks. It trusts nothing that
// the VMM says: a guest may have taken it over.
package qemu

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"creel/internal/environ"
	"creel/internal/sandbox"
	"creel/internal/vm"
)

const (
	binaryName = "qemu-system-x86_64"

	cpuKVM = "host"
	// Some hosts offer the guest an MSR that they then refuse to set, at which
	// QEMU aborts. Without the feature behind it they do not.
	cpuKVMPlain = "host,-arch-capabilities"
)

// Options of [New].
type Options struct {
	Binary string // "": qemu-system-x86_64 from PATH
}

// Driver starts machines. It is safe for use by several goroutines.
type Driver struct {
	binary string
}

var _ vm.Driver = (*Driver)(nil)

// New finds the VMM. It does not run it.
func New(o Options) (*Driver, error) {
	if o.Binary == "" {
		o.Binary = binaryName
	}
	path, err := exec.LookPath(o.Binary)
	if err != nil {
		return nil, fmt.Errorf("find the VMM: %w: PATH (%q) has no QEMU; install it (Debian: qemu-system-x86), or add its directory to PATH", err, os.Getenv("PATH"))
	}
	if path, err = filepath.Abs(path); err == nil {
		path, err = filepath.EvalSymlinks(path)
	}
	if err != nil {
		return nil, fmt.Errorf("find the VMM: %w", err)
	}
	return &Driver{binary: path}, nil
}

// Path is the VMM's binary, with symlinks resolved.
func (d *Driver) Path() string { return d.binary }

// CPU is the model that guests see under an accelerator. Plain is for a KVM that
// refuses to set IA32_ARCH_CAPABILITIES.
func CPU(a sandbox.Accel, plain bool) string {
	switch {
	case a != sandbox.AccelKVM:
		return cpuTCG
	case plain:
		return cpuKVMPlain
	}
	return cpuKVM
}

// Identity of a VMM, for a template's manifest.
type Identity struct {
	Path    string
	Version string // first line of --version
	SHA256  string // of the binary, hexadecimal
}

// Identity runs the VMM once with --version and hashes its binary, about 30 ms
// in all; the caller keeps the answer.
func (d *Driver) Identity(ctx context.Context) (Identity, error) {
	cmd := exec.CommandContext(ctx, d.binary, "--version")
	cmd.Env = environ.Helper()
	out, err := cmd.Output()
	if err != nil {
		return Identity{}, fmt.Errorf("ask %q for its version: %w", d.binary, err)
	}
	f, err := os.Open(d.binary)
	if err != nil {
		return Identity{}, fmt.Errorf("hash the VMM: %w", err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return Identity{}, fmt.Errorf("hash the VMM: %w", err)
	}
	version, _, _ := strings.Cut(string(out), "\n")
	return Identity{Path: d.binary, Version: version, SHA256: hex.EncodeToString(h.Sum(nil))}, nil
}

// Start implements [vm.Driver].
func (d *Driver) Start(ctx context.Context, c vm.Config) (vm.Machine, error) {
	if err := validate(c); err != nil {
		return nil, err
	}
	m, err := d.start(ctx, c)
	if err != nil {
		return nil, fmt.Errorf("start machine: %w", err)
	}
	return m, nil
}

func validate(c vm.Config) error {
	var errs []error
	fault := func(bad bool, text string) {
		if bad {
			errs = append(errs, errors.New(text))
		}
	}
	fault(c.Shape.MemoryMiB <= 0 || c.Shape.VCPUs <= 0, "shape: memory and CPUs must be positive")
	fault(c.Accel != sandbox.AccelKVM && c.Accel != sandbox.AccelTCG, "accel: want kvm or tcg")
	fault(c.Memory == nil, "memory: no file given")
	boot := c.Kernel != nil && c.Initrd != nil
	fault(c.Restore == nil && !boot, "kernel, initrd: both are needed to boot")
	fault(c.Restore != nil && (c.Kernel != nil || c.Initrd != nil), "restore: a machine boots or is restored, not both")
	for _, d := range c.Disks {
		fault(d.Serial == "" || len(d.Serial) > 20 || strings.ContainsAny(d.Serial, ",="), "disk: serial must be 1 to 20 plain characters")
		fault(d.File == nil && d.PlaceholderBytes <= 0, "disk "+d.Serial+": a placeholder needs its size")
	}
	return errors.Join(errs...)
}
