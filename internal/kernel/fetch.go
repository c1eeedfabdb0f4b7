package kernel

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"

	"creel/internal/environ"
)

// metaPackage depends on Debian's newest kernel for virtual machines.
const metaPackage = "linux-image-cloud-amd64"

var realPackage = regexp.MustCompile(`(?m)^\s*Depends: (linux-image-[0-9][a-z0-9.+-]*-cloud-amd64)$`)

// Fetch downloads the newest cloud kernel package through apt, which checks
// its origin, and imports it into the store dir. It needs no privileges.
func Fetch(ctx context.Context, dir string) (Kernel, error) {
	const mend = "try `apt-get update`, or give a package file to `creel kernel import`"
	depends := exec.CommandContext(ctx, "apt-cache", "depends", metaPackage)
	depends.Env = environ.Fetcher()
	out, err := output(depends)
	if err != nil {
		return Kernel{}, fmt.Errorf("ask apt for the kernel package: %w; "+mend, err)
	}
	match := realPackage.FindSubmatch(out)
	if match == nil {
		return Kernel{}, fmt.Errorf("apt knows no package %s; "+mend, metaPackage)
	}
	tmp, err := os.MkdirTemp("", "creel-kernel-")
	if err != nil {
		return Kernel{}, fmt.Errorf("make download directory: %w", err)
	}
	defer os.RemoveAll(tmp)
	cmd := exec.CommandContext(ctx, "apt-get", "download", string(match[1]))
	cmd.Dir, cmd.Env = tmp, environ.Fetcher()
	if _, err := output(cmd); err != nil {
		return Kernel{}, fmt.Errorf("download kernel package: %w; "+mend, err)
	}
	debs, err := filepath.Glob(filepath.Join(tmp, "*.deb"))
	if err != nil || len(debs) != 1 {
		return Kernel{}, fmt.Errorf("download kernel package: apt left %d files, want 1", len(debs))
	}
	return Import(ctx, debs[0], dir)
}
