// Package doctor looks at what a machine has and lacks for running sandboxes,
// and says for each lack what mends it. It must not mend anything itself, and
// must not decide anything that a run depends on: it asks the code that does.
package doctor

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/docker/go-units"
	"golang.org/x/sys/unix"

	"creel/internal/diskroom"
	"creel/internal/environ"
	"creel/internal/kernel"
	"creel/internal/sandbox"
	"creel/internal/template"
	"creel/internal/vm/accel"
)

// Level is how bad a finding is.
type Level string

const (
	OK   Level = "ok"
	Warn Level = "warn" // works, but not as well as it could
	Fail Level = "fail" // a task cannot run
)

// Finding is one thing looked at.
type Finding struct {
	Name   string `json:"name"`
	Level  Level  `json:"level"`
	Detail string `json:"detail"`
	Mend   string `json:"mend,omitempty"` // a command, or words where none can
}

// Deps are whom to ask.
type Deps struct {
	StateDir  string
	KernelDir string
	// Accel chooses what executes guest code, by running some.
	Accel func(context.Context) (accel.Choice, error)
	// Namespaces tries to make what full confinement needs.
	Namespaces func() error
	Templates  func(context.Context) ([]template.Manifest, error)
	// Images says which images are damaged, and Damaged which sandboxes, by ID.
	Images  func(context.Context) error
	Damaged func() ([]string, error)
	// Record looks at the audit record: broken says why nothing can be put on it,
	// doubt what else is not as it should be.
	Record func(context.Context) (broken, doubt error)
	// Leftovers counts sandboxes that nobody looks after.
	Leftovers func() (int, error)
}

// Below these a machine is short: one default machine's memory with its VMM,
// and the templates of a few images.
const (
	memoryWanted = 700 << 20
	diskWanted   = 3 << 30
)

// Check looks at everything; one finding each, in a fixed order.
func Check(ctx context.Context, d Deps) []Finding {
	return []Finding{
		vmm(ctx), d.accelerator(ctx), d.kernel(), d.templates(ctx), d.namespaces(),
		tools(), memory(), d.disk(), d.permissions(), d.images(ctx), d.sandboxes(), d.record(ctx), d.leftovers(),
	}
}

// Unusable is what is found where the state directory, or the settings, are not
// usable at all: err says why, and what mends it.
func Unusable(err error) []Finding { return []Finding{{"state", Fail, err.Error(), ""}} }

func (d Deps) images(ctx context.Context) Finding {
	if err := d.Images(ctx); err != nil {
		return Finding{"images", Fail, oneLine(err), "as it says; `creel image ls` lists those that are whole"}
	}
	return Finding{"images", OK, "the store can be read", ""}
}

func (d Deps) sandboxes() Finding {
	damaged, err := d.Damaged()
	if err != nil {
		return Finding{"sandboxes", Fail, err.Error(), "look at what lies there; `creel ps` says the same"}
	}
	if len(damaged) > 0 {
		return Finding{"sandboxes", Warn, fmt.Sprintf("%d whose record cannot be read", len(damaged)), "creel rm -f " + strings.Join(damaged, " ")}
	}
	return Finding{"sandboxes", OK, "every record can be read", ""}
}

func (d Deps) record(ctx context.Context) Finding {
	const mend = "as it says; see docs/audit.md"
	broken, doubt := d.Record(ctx)
	switch {
	case broken != nil:
		return Finding{"record", Fail, "nothing can be put on record: " + oneLine(broken), mend}
	case doubt != nil:
		return Finding{"record", Warn, oneLine(doubt), mend}
	}
	return Finding{"record", OK, "key and newest lines of the ledger are whole; `creel audit verify` checks everything", ""}
}

// oneLine is an error that may be several, for a finding's line.
func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }

func vmm(ctx context.Context) Finding {
	const mend = "apt-get install qemu-system-x86"
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", "--version")
	cmd.Env = environ.Helper()
	out, err := cmd.Output()
	if err != nil {
		return Finding{"vmm", Fail, "qemu-system-x86_64 cannot be run: " + err.Error(), mend}
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return Finding{"vmm", OK, line, ""}
}

func (d Deps) accelerator(ctx context.Context) Finding {
	c, err := d.Accel(ctx)
	switch {
	case err != nil:
		return Finding{"accelerator", Fail, err.Error(), "run `creel doctor` again; if it stays, use --accel tcg"}
	case c.Doubt != "":
		return Finding{"accelerator", Warn, "kvm, as asked, though it does not look usable: " + c.Doubt, "use --accel tcg, or the setting accel: auto"}
	case c.Accel == sandbox.AccelKVM:
		return Finding{"accelerator", OK, "kvm: " + c.Reason, ""}
	case c.Advice == "":
		return Finding{"accelerator", Warn, "emulation (tcg), many times slower than KVM: " + c.Reason, "use --accel auto"}
	default:
		return Finding{"accelerator", Warn, "emulation (tcg), many times slower than KVM: " + c.Reason, c.Advice}
	}
}

func (d Deps) kernel() Finding {
	k, err := kernel.Latest(d.KernelDir)
	if err != nil {
		return Finding{"kernel", Fail, err.Error(), "creel kernel fetch"}
	}
	return Finding{"kernel", OK, k.Package + " " + k.Version, ""}
}

// templates says which templates were built on another kernel than the one
// that new ones would use.
func (d Deps) templates(ctx context.Context) Finding {
	all, err := d.Templates(ctx)
	if err != nil {
		return Finding{"templates", Fail, oneLine(err), "creel template ls"}
	}
	k, err := kernel.Latest(d.KernelDir)
	if err != nil {
		return Finding{"templates", OK, fmt.Sprintf("%d", len(all)), ""}
	}
	var old []string
	for _, m := range all {
		if m.Kernel.Package != k.Package || m.Kernel.Version != k.Version {
			old = append(old, strings.TrimPrefix(m.Digest, "sha256:")[:12])
		}
	}
	if len(old) > 0 {
		return Finding{"templates", Warn, fmt.Sprintf("%d of %d on an outdated kernel", len(old), len(all)),
			"creel template rm " + strings.Join(old, " ")}
	}
	return Finding{"templates", OK, fmt.Sprintf("%d, all on the current kernel", len(all)), ""}
}

func (d Deps) namespaces() Finding {
	if err := d.Namespaces(); err != nil {
		return Finding{"namespaces", Fail, err.Error(), "sysctl -w user.max_user_namespaces=15000, or run with --confinement=reduced"}
	}
	return Finding{"namespaces", OK, "full confinement can be had", ""}
}

func tools() Finding {
	var lacking []string
	packages := map[string]string{"mke2fs": "e2fsprogs", "dpkg-deb": "dpkg"}
	for _, tool := range []string{"mke2fs", "dpkg-deb"} {
		if _, err := exec.LookPath(tool); err != nil {
			if _, err := os.Stat(filepath.Join("/usr/sbin", tool)); err != nil {
				lacking = append(lacking, packages[tool])
			}
		}
	}
	if len(lacking) > 0 {
		return Finding{"tools", Fail, "not found: " + strings.Join(lacking, ", "), "apt-get install " + strings.Join(lacking, " ")}
	}
	return Finding{"tools", OK, "mke2fs, dpkg-deb", ""}
}

func memory() Finding {
	data, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return Finding{"memory", Warn, err.Error(), "mount /proc"}
	}
	var kib int64
	for line := range strings.Lines(string(data)) {
		if _, err := fmt.Sscanf(line, "MemAvailable: %d kB", &kib); err == nil {
			break
		}
	}
	have := units.BytesSize(float64(kib << 10))
	if kib<<10 < memoryWanted {
		return Finding{"memory", Warn, have + " available; a default machine may need " + units.BytesSize(memoryWanted), "end something, or run with -m 256m"}
	}
	return Finding{"memory", OK, have + " available", ""}
}

func (d Deps) disk() Finding {
	var fs unix.Statfs_t
	if err := unix.Statfs(d.StateDir, &fs); err != nil {
		return Finding{"disk", Fail, fmt.Sprintf("%s: %v", d.StateDir, err), "set CREEL_STATE_DIR to a directory that exists"}
	}
	free := int64(fs.Bavail) * fs.Bsize
	detail := fmt.Sprintf("%s free in %s", units.BytesSize(float64(free)), d.StateDir)
	if free < diskroom.Reserve(int64(fs.Blocks)*fs.Bsize) {
		return Finding{"disk", Fail, detail + ", and nothing is started with so little", "creel rm, creel image rm, creel template rm, or another CREEL_STATE_DIR"}
	}
	if free < diskWanted {
		return Finding{"disk", Warn, detail, "creel rm, creel image rm, creel template rm, or another CREEL_STATE_DIR"}
	}
	return Finding{"disk", OK, detail, ""}
}

func (d Deps) permissions() Finding {
	if err := unix.Access(d.StateDir, unix.W_OK|unix.X_OK); err != nil {
		return Finding{"permissions", Fail, fmt.Sprintf("%s cannot be written: %v", d.StateDir, err), "chown it, or set CREEL_STATE_DIR"}
	}
	who := fmt.Sprintf("user %d", os.Geteuid())
	if os.Geteuid() == 0 {
		who = "root: keepers and VMMs run as users of their own"
	}
	return Finding{"permissions", OK, who, ""}
}

func (d Deps) leftovers() Finding {
	n, err := d.Leftovers()
	if err != nil {
		return Finding{"leftovers", Warn, err.Error(), "creel ps"}
	}
	if n > 0 {
		return Finding{"leftovers", Warn, fmt.Sprintf("%d sandboxes of killed processes", n), "creel ps"}
	}
	return Finding{"leftovers", OK, "none", ""}
}
