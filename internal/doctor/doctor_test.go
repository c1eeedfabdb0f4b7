package doctor

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"creel/internal/sandbox"
	"creel/internal/template"
	"creel/internal/vm/accel"
)

// healthy is a machine on which nothing but a kernel is missing.
func healthy(t *testing.T) Deps {
	t.Helper()
	dir := t.TempDir()
	return Deps{
		StateDir: dir, KernelDir: filepath.Join(dir, "kernels"),
		Accel:      chose(accel.Choice{Accel: sandbox.AccelKVM, Reason: "it runs guest code"}),
		Namespaces: func() error { return nil },
		Templates:  func(context.Context) ([]template.Manifest, error) { return nil, nil },
		Leftovers:  func() (int, error) { return 0, nil },
		Images:     func(context.Context) error { return nil },
		Damaged:    func() ([]string, error) { return nil, nil },
		Record:     func(context.Context) (error, error) { return nil, nil },
	}
}

func chose(c accel.Choice) func(context.Context) (accel.Choice, error) {
	return func(context.Context) (accel.Choice, error) { return c, nil }
}

func find(t *testing.T, d Deps, name string) Finding {
	t.Helper()
	for _, f := range Check(t.Context(), d) {
		if f.Name == name {
			return f
		}
	}
	t.Fatalf("no finding is named %s", name)
	return Finding{}
}

func TestEachLackIsFoundWithItsMend(t *testing.T) {
	for _, c := range []struct {
		name  string
		spoil func(*Deps)
		level Level
		mend  string
	}{
		{"accelerator", func(*Deps) {}, OK, ""},
		{"accelerator", func(d *Deps) {
			d.Accel = chose(accel.Choice{Accel: sandbox.AccelTCG, Reason: "closed", Advice: "join the group"})
		}, Warn, "join the group"},
		{"accelerator", func(d *Deps) {
			d.Accel = chose(accel.Choice{Accel: sandbox.AccelTCG, Reason: "as asked"})
		}, Warn, "--accel auto"},
		{"accelerator", func(d *Deps) {
			d.Accel = chose(accel.Choice{Accel: sandbox.AccelKVM, Reason: "as asked", Doubt: "stuck"})
		}, Warn, "--accel tcg"},
		{"accelerator", func(d *Deps) {
			d.Accel = func(context.Context) (accel.Choice, error) { return accel.Choice{}, errors.New("no") }
		}, Fail, "--accel tcg"},
		{"kernel", func(*Deps) {}, Fail, "creel kernel fetch"},
		{"namespaces", func(*Deps) {}, OK, ""},
		{"namespaces", func(d *Deps) { d.Namespaces = func() error { return errors.New("refused") } }, Fail, "--confinement=reduced"},
		{"templates", func(d *Deps) {
			d.Templates = func(context.Context) ([]template.Manifest, error) { return nil, errors.New("damaged") }
		}, Fail, "creel template ls"},
		{"disk", func(d *Deps) { d.StateDir = "/does/not/exist" }, Fail, "CREEL_STATE_DIR"},
		{"permissions", func(*Deps) {}, OK, ""},
		{"permissions", func(d *Deps) { d.StateDir = "/does/not/exist" }, Fail, "CREEL_STATE_DIR"},
		{"images", func(*Deps) {}, OK, ""},
		{"images", func(d *Deps) { d.Images = func(context.Context) error { return errors.New("damaged\nboth") } }, Fail, "creel image ls"},
		{"sandboxes", func(*Deps) {}, OK, ""},
		{"sandboxes", func(d *Deps) { d.Damaged = func() ([]string, error) { return []string{"a", "b"}, nil } }, Warn, "creel rm -f a b"},
		{"sandboxes", func(d *Deps) { d.Damaged = func() ([]string, error) { return nil, errors.New("not a directory") } }, Fail, "creel ps"},
		{"record", func(*Deps) {}, OK, ""},
		{"record", func(d *Deps) {
			d.Record = func(context.Context) (error, error) { return errors.New("no key\nput it back"), nil }
		}, Fail, "as it says"},
		{"record", func(d *Deps) {
			d.Record = func(context.Context) (error, error) { return nil, errors.New("no head") }
		}, Warn, "as it says"},
		{"leftovers", func(*Deps) {}, OK, ""},
		{"leftovers", func(d *Deps) { d.Leftovers = func() (int, error) { return 2, nil } }, Warn, "creel ps"},
	} {
		d := healthy(t)
		c.spoil(&d)
		f := find(t, d, c.name)
		if f.Level != c.level || !strings.Contains(f.Mend, c.mend) || (f.Level == OK) != (f.Mend == "") {
			t.Errorf("%s: %+v, want level %s and the mend %q", c.name, f, c.level, c.mend)
		}
	}
}

func TestMissingVMMAndToolsAreFound(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	if f := find(t, healthy(t), "vmm"); f.Level != Fail || !strings.Contains(f.Mend, "qemu-system-x86") {
		t.Errorf("vmm: %+v", f)
	}
	if _, err := os.Stat("/usr/sbin/dpkg-deb"); err == nil {
		t.Skip("dpkg-deb is where it is looked for beside the PATH")
	}
	if f := find(t, healthy(t), "tools"); f.Level != Fail || !strings.Contains(f.Mend, "apt-get install") {
		t.Errorf("tools: %+v", f)
	}
}

// Where nothing can be started for want of room, that is no warning.
func TestAFullDiskFails(t *testing.T) {
	d := healthy(t)
	if err := unix.Mount("tmpfs", d.StateDir, "tmpfs", 0, "size=1m"); err != nil {
		t.Skipf("nothing can be mounted: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(d.StateDir, unix.MNT_DETACH) })
	if f := find(t, d, "disk"); f.Level != Warn {
		t.Errorf("an empty one: %+v", f)
	}
	os.WriteFile(filepath.Join(d.StateDir, "all"), make([]byte, 1<<20), 0o600) // as much as there is
	if f := find(t, d, "disk"); f.Level != Fail || !strings.Contains(f.Mend, "creel rm") {
		t.Errorf("a full one: %+v", f)
	}
}
