// Package dist packs a release twice and tries what was packed.
package dist

import (
	"bytes"
	"debug/elf"
	"encoding/json"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const version = "v1.2-3-g0123abc"

// Two builds in different directories give the same bytes, and what is in the
// package is what it says. Go's cache hides nothing: a directory that got into
// what is compiled would be a part of its key.
func TestDist(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: it builds everything twice")
	}
	for _, tool := range []string{"git", "make", "dpkg-deb"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("there is no %s", tool)
		}
	}
	files, err := exec.Command("git", "-C", "../..", "ls-files", "-z", "--cached", "--others", "--exclude-standard").Output()
	if err != nil {
		t.Skipf("this is no git checkout: %v", err)
	}
	one := packed(t, files, filepath.Join(t.TempDir(), "one"))
	two := packed(t, files, filepath.Join(t.TempDir(), "another", "and", "longer"))
	names := func(dir string) (all []string) {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			all = append(all, e.Name())
		}
		return all
	}
	want := []string{"SHA256SUMS", "creel", "creel.cdx.json", "creel_1.2+3.g0123abc_amd64.deb"}
	if diff := cmp.Diff(want, names(one)); diff != "" {
		t.Errorf("dist holds (-want +got):\n%s", diff)
	}
	for _, name := range names(one) {
		a, errA := os.ReadFile(filepath.Join(one, name))
		b, errB := os.ReadFile(filepath.Join(two, name))
		if errA != nil || errB != nil || !bytes.Equal(a, b) {
			t.Errorf("%s: two builds differ (%d and %d bytes) %v %v", name, len(a), len(b), errA, errB)
		}
	}
	sums := exec.Command("sha256sum", "--check", "--strict", "SHA256SUMS")
	sums.Dir = one
	if out, err := sums.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
	t.Run("static", func(t *testing.T) { isStatic(t, filepath.Join(one, "creel")) })
	t.Run("package", func(t *testing.T) { tryPackage(t, filepath.Join(one, want[3])) })
	t.Run("bill of materials", func(t *testing.T) { readBill(t, filepath.Join(one, "creel.cdx.json")) })
}

// packed copies the checkout to dir and runs make dist there.
func packed(t *testing.T, files []byte, dir string) string {
	t.Helper()
	for name := range strings.SplitSeq(strings.TrimSuffix(string(files), "\x00"), "\x00") {
		from, to := filepath.Join("../..", name), filepath.Join(dir, name)
		info, err := os.Stat(from)
		if os.IsNotExist(err) {
			continue // removed, and not yet committed
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(to, data, info.Mode().Perm()); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("make", "-s", "dist", "VERSION="+version)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "SOURCE_DATE_EPOCH=1700000000")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("make dist: %v\n%s", err, out)
	}
	return filepath.Join(dir, "dist")
}

func isStatic(t *testing.T, path string) {
	f, err := elf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			t.Error("the binary asks for a dynamic linker")
		}
	}
}

func tryPackage(t *testing.T, deb string) {
	root, home := t.TempDir(), t.TempDir()
	if out, err := exec.Command("dpkg-deb", "-x", deb, root).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	field := func(name string) string {
		out, err := exec.Command("dpkg-deb", "-f", deb, name).Output()
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(out))
	}
	if got, want := field("Depends"), "qemu-system-x86, e2fsprogs, dpkg"; got != want {
		t.Errorf("Depends: %s, want %s", got, want)
	}
	for _, name := range []string{
		"usr/share/man/man1/creel.1.gz", "usr/share/man/man1/creel-run.1.gz", "usr/share/man/man1/creel-version.1.gz",
		"usr/share/bash-completion/completions/creel", "usr/share/zsh/vendor-completions/_creel",
		"usr/share/fish/vendor_completions.d/creel.fish", "usr/share/doc/creel/copyright", "usr/share/doc/creel/third-party-licenses.gz",
		"usr/lib/systemd/user/creel-prune.service", "usr/lib/systemd/user/creel-prune.timer",
	} {
		if info, err := os.Stat(filepath.Join(root, name)); err != nil || info.Size() == 0 || !info.Mode().IsRegular() || info.Mode().Perm() != 0o644 {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
	// A bare machine: no home, no state, nothing to be found.
	creel := func(args ...string) string {
		cmd := exec.Command(filepath.Join(root, "usr/bin/creel"), args...)
		cmd.Env = []string{"PATH=/nonexistent", "XDG_STATE_HOME=" + home}
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Errorf("creel %q: %v: %s", args, err, out)
		}
		return string(out)
	}
	var parts map[string]string
	if err := json.Unmarshal([]byte(creel("version", "--json")), &parts); err != nil {
		t.Fatal(err)
	}
	if parts["creel"] != version || !strings.HasPrefix(parts["guest agent"], "sha256:") {
		t.Errorf("creel version: %q", parts)
	}
	for _, name := range []string{"vmm", "guest kernel", "state directory"} {
		if !strings.HasPrefix(parts[name], "not found: ") {
			t.Errorf("%s is %q on a machine that has none", name, parts[name])
		}
	}
	if left, err := fs.Glob(os.DirFS(home), "*"); err != nil || len(left) > 0 {
		t.Errorf("creel version left %q behind (%v)", left, err)
	}
	if lines := strings.Count(creel("version"), "\n"); lines != len(parts)+1 {
		t.Errorf("creel version has %d lines, its JSON %d parts", lines, len(parts))
	}
}

func readBill(t *testing.T, path string) {
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var bill struct {
		BOMFormat, SpecVersion string
		Components             []struct{ Type, Name, Version string }
	}
	if err := json.Unmarshal(data, &bill); err != nil {
		t.Fatal(err)
	}
	if bill.BOMFormat != "CycloneDX" || bill.SpecVersion != "1.5" {
		t.Errorf("the format is %s %s", bill.BOMFormat, bill.SpecVersion)
	}
	missing := map[string]bool{"creel": true, "creel-guest": true, "stdlib": true, "github.com/spf13/cobra": true}
	for _, c := range bill.Components {
		if c.Type == "library" && c.Version == "" {
			t.Errorf("%s has no version", c.Name)
		}
		delete(missing, c.Name)
	}
	if len(missing) > 0 {
		t.Errorf("it does not name %v", missing)
	}
}
