package app

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"creel/internal/cli/hostcmd"
	"creel/internal/config"
	"creel/internal/confine"
	"creel/internal/guest/blob"
	"creel/internal/kernel"
	"creel/internal/vm/accel"
	"creel/internal/vm/qemu"
)

// parts names all that matters in a bug report. It works on a machine that has
// nothing, and makes no state directory there.
func parts(ctx context.Context, version string) []hostcmd.Part {
	all := []hostcmd.Part{
		{Name: "creel", Value: version},
		{Name: "go", Value: fmt.Sprintf("%s %s/%s", runtime.Version(), runtime.GOOS, runtime.GOARCH)},
		part("guest agent", agentDigest),
		part("vmm", func() (string, error) { return vmmVersion(ctx) }),
		part("confinement", func() (string, error) { return "full", confine.Available() }),
		{Name: "landlock", Value: strings.TrimSpace(strings.TrimPrefix(strings.TrimPrefix(confine.Landlock(), "landlock"), ":"))},
		part("host kernel", hostKernel),
	}
	cfg, _, err := config.Load(os.LookupEnv)
	if err != nil {
		return append(all, hostcmd.Part{Name: "configuration", Value: "not usable: " + err.Error()})
	}
	return append(all,
		part("accelerator", func() (string, error) { return accelerator(ctx, cfg) }),
		part("guest kernel", func() (string, error) {
			k, err := kernel.Latest(kernelDir(cfg.StateDir))
			return k.Package + " " + k.Version, err
		}),
		part("state directory", func() (string, error) {
			version, err := os.ReadFile(filepath.Join(cfg.StateDir, "version"))
			return fmt.Sprintf("%s, version %s", cfg.StateDir, strings.TrimSpace(string(version))), err
		}),
		part("templates", func() (string, error) { return countTemplates(ctx, cfg.StateDir) }),
	)
}

func part(name string, value func() (string, error)) hostcmd.Part {
	v, err := value()
	if err != nil {
		v = "not found: " + err.Error()
	}
	return hostcmd.Part{Name: name, Value: v}
}

func agentDigest() (string, error) {
	elf, err := blob.Agent()
	return fmt.Sprintf("sha256:%x", sha256.Sum256(elf)), err
}

func vmmVersion(ctx context.Context) (string, error) {
	driver, err := qemu.New(qemu.Options{})
	if err != nil {
		return "", err
	}
	id, err := driver.Identity(ctx)
	return fmt.Sprintf("%s, %s, sha256:%s", id.Path, id.Version, id.SHA256), err
}

// accelerator asks the probe, whose answer is kept where there is a state
// directory to keep it in.
func accelerator(ctx context.Context, cfg config.Config) (string, error) {
	level := possibleLevel(cfg.Confinement)
	if unix.Access(cfg.StateDir, unix.W_OK|unix.X_OK) == nil {
		c, err := accelerators{cfg.StateDir}.Choose(ctx, cfg.Accel, level)
		return fmt.Sprintf("%s: %s", c.Accel, cmp.Or(c.Doubt, c.Reason)), err
	}
	host := accel.Host{Confinement: ownUser}
	c, err := host.Choose(ctx, accel.Wish{Accel: cfg.Accel, Level: level})
	return fmt.Sprintf("%s: %s", c.Accel, cmp.Or(c.Doubt, c.Reason)), err
}

func hostKernel() (string, error) {
	var u unix.Utsname
	err := unix.Uname(&u)
	return fmt.Sprintf("%s %s", unix.ByteSliceToString(u.Release[:]), unix.ByteSliceToString(u.Version[:])), err
}

func countTemplates(ctx context.Context, state string) (string, error) {
	if _, err := os.Stat(filepath.Join(state, "templates")); errors.Is(err, fs.ErrNotExist) {
		return "0", nil // opening the store would make it
	}
	templates, err := openTemplates(state, slog.New(slog.DiscardHandler))
	if err != nil {
		return "", err
	}
	all, err := templates.List(ctx)
	return strconv.Itoa(len(all)), err
}
