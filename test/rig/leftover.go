package rig

import (
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Snapshot is what a run must not change: the names of all files of the state
// directory, but for the audit log, which grows, holders, which outlive runs,
// pristine disks, and what is known of the accelerator.
func (r *Rig) Snapshot(t testing.TB) []string {
	t.Helper()
	var names []string
	err := filepath.WalkDir(r.State, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(r.State, path) // it lies below
		if name == "audit" || name == "holders" {
			return fs.SkipDir
		}
		pristine, _ := filepath.Match("scratch/ext4-*.img", name) // the pattern is sound
		if name == "accel.json" || pristine {
			return nil
		}
		names = append(names, name)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// Clean waits for what is dying, runs one more command, and complains about
// everything that is left of any run since the snapshot was taken.
func (r *Rig) Clean(t testing.TB, before []string) {
	t.Helper()
	for left := r.mortal(); len(left) > 0; left = r.mortal() {
		Await(t, left...)
	}
	if left := r.Must(t, "ps", "-aq"); left != "" {
		t.Errorf("sandboxes are left: %s", left)
	}
	for _, p := range r.mortal() {
		t.Errorf("%s is left: %q", p, p.Args)
	}
	if diff := cmp.Diff(before, r.Snapshot(t)); diff != "" {
		t.Errorf("the state directory is not what it was before (-before +after):\n%s", diff)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(mounts), r.State) {
		t.Errorf("something is mounted in %s:\n%s", r.State, mounts)
	}
}

// mortal are the processes that must not outlive their run.
func (r *Rig) mortal() []Process {
	return slices.DeleteFunc(r.Processes(), func(p Process) bool { return p.Kind == Holder })
}
