package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"creel/test/rig"
)

// No clone starts from a template of which a byte was changed, and whoever
// runs creel is told what to do.
func TestTamperedTemplateIsRefused(t *testing.T) {
	r := machines(t)
	if got := r.Run(t, "run", "-q", "debian", "true"); got.Code != 0 {
		t.Fatalf("before anything was changed: %+v", got)
	}
	digest := strings.TrimSpace(r.Must(t, "inspect", "-f", "{{.Status.TemplateDigest}}", background(t, r, "debian", "sleep", "1000")))
	for _, test := range []struct{ part, pattern string }{
		{"memory", "templates/*/memory"},
		{"state", "templates/*/state"},
		{"root", "images/rootfs/sha256/*.ext4"},
	} {
		t.Run(test.part, func(t *testing.T) {
			path := partOf(t, r, digest, test.pattern)
			flip(t, path)
			defer flip(t, path)
			endHolders(t, r)
			got := r.Run(t, "run", "-q", "debian", "echo", "ran")
			if got.Out != "" || got.Code != 125 {
				t.Errorf("got %+v, want nothing to run", got)
			}
			for _, want := range []string{"creel template rm", path} {
				if !strings.Contains(got.Err, want) {
					t.Errorf("the refusal %q does not say %q", got.Err, want)
				}
			}
			if got := r.Run(t, "template", "verify", digest); got.Code == 0 {
				t.Errorf("verify finds nothing: %s", got.Out)
			}
		})
	}
	endHolders(t, r)
	if got := r.Run(t, "run", "-q", "debian", "echo", "ran"); got.Out != "ran\n" {
		t.Errorf("after all was put back: %+v", got)
	}
}

// partOf finds the one file of the template that matches.
func partOf(t *testing.T, r *rig.Rig, digest, pattern string) string {
	t.Helper()
	manifest := r.Must(t, "template", "inspect", digest)
	matches, err := filepath.Glob(filepath.Join(r.State, pattern))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range matches {
		name := strings.TrimSuffix(filepath.Base(m), ".ext4")
		own, _ := os.ReadFile(filepath.Join(filepath.Dir(m), "manifest.json"))
		if strings.Contains(manifest, name) && name != "memory" && name != "state" || strings.Contains(string(own), digest) {
			return m
		}
	}
	t.Fatalf("no part of %s among %q", digest, matches)
	return ""
}

// flip changes one bit in the middle of a file, or changes it back.
func flip(t *testing.T, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 1)
	at := info.Size() / 2
	if _, err := f.ReadAt(b, at); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 1
	if _, err := f.WriteAt(b, at); err != nil {
		t.Fatal(err)
	}
}

// endHolders makes the next run read the template from its files.
func endHolders(t *testing.T, r *rig.Rig) {
	t.Helper()
	for _, p := range r.Processes() {
		if p.Kind != rig.Holder {
			continue
		}
		if err := unix.Kill(p.PID, unix.SIGKILL); err != nil {
			t.Fatal(fmt.Errorf("end %s: %w", p, err))
		}
		rig.Await(t, p)
	}
}
