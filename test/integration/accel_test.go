package integration

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"creel/test/rig"
)

// A KVM under which the guest kernel does not come up: auto notices once and
// emulates from then on, and whoever insists is warned and told what to do. On
// a machine whose KVM is quick there is nothing to see.
func TestKVMThatBootsNothing(t *testing.T) {
	if lack := rig.Lack(); lack != "" {
		t.Skip(lack)
	}
	kvm, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		t.Skip(err)
	}
	kvm.Close()
	r, err := rig.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	importBusybox(t, r)
	r.Run(t, "doctor") // probes, and keeps the answer
	file := filepath.Join(r.State, "accel.json")
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(data), `"usable": false`) {
		t.Skip("KVM is usable here")
	}
	// A host whose KVM is quick and does not suit the guest kernel.
	if err := os.WriteFile(file, []byte(strings.Replace(string(data), `"usable": false`, `"usable": true`, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	for i, tries := range []bool{true, false} {
		got := r.Run(t, "run", "busybox", "true")
		if got.Code != 0 || strings.Contains(got.Err, "under kvm") != tries || strings.Contains(got.Err, "using emulation") != tries {
			t.Errorf("run %d: %+v", i, got)
		}
	}
	if got := r.Run(t, "doctor"); !strings.Contains(got.Out, "did not come up under it") {
		t.Errorf("doctor: %+v", got)
	}
	got := r.Run(t, "run", "--accel", "kvm", "busybox", "true")
	if got.Code != 125 || !strings.Contains(got.Err, "warning: KVM does not look usable") || !strings.Contains(got.Err, "use --accel=tcg") {
		t.Errorf("insisted: %+v", got)
	}
}
