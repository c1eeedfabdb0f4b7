package integration

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// A VM whose record has gone is seen and can be ended, and its log comes on the
// ledger; a template without its manifest is built again.
func TestRunningSandboxWithoutItsRecord(t *testing.T) {
	r := machines(t)
	before := r.Snapshot(t)
	name := background(t, r, "debian", "sleep", "1000")
	id := r.Inspect(t, name).Status.ID
	if err := os.Remove(filepath.Join(r.State, "sandboxes", id, "record.json")); err != nil {
		t.Fatal(err)
	}
	if out := r.Must(t, "ps"); !strings.Contains(out, name) {
		t.Errorf("ps shows %s", out)
	}
	if got := r.Run(t, "doctor"); !strings.Contains(got.Out, "creel rm -f "+id[:12]) {
		t.Errorf("doctor says %s", got.Out)
	}
	if got := r.Run(t, "rm", name); got.Code == 0 {
		t.Errorf("removed without force: %+v", got)
	}
	r.Must(t, "rm", "-f", name)
	r.Clean(t, before)
	r.Must(t, "audit", "verify")

	manifests, err := filepath.Glob(filepath.Join(r.State, "templates", "*", "manifest.json"))
	if err != nil || len(manifests) == 0 {
		t.Fatal(manifests, err)
	}
	aside := t.TempDir()
	for i, m := range manifests {
		if err := os.Rename(m, filepath.Join(aside, strconv.Itoa(i))); err != nil {
			t.Fatal(err)
		}
	}
	r.Must(t, "run", "debian", "true")
	made := 0
	for i, m := range manifests { // those of other tests' images come back
		if _, err := os.Stat(m); err == nil {
			made++
		} else if err := os.Rename(filepath.Join(aside, strconv.Itoa(i)), m); err != nil {
			t.Fatal(err)
		}
	}
	if made == 0 {
		t.Error("no template was made again")
	}
}
