package qemu_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"creel/internal/confine"
	"creel/internal/sandbox"
	"creel/internal/vm"
	"creel/internal/vm/accel"
	"creel/internal/vm/qemu"
	"creel/internal/vm/vmtest"
)

const (
	nobody      = 65534
	deviceGroup = 4242 // of /dev/kvm, as Debian's group kvm
)

// The driver with a guest that any KVM runs, for whoever starts it.
func TestStubGuest(t *testing.T) {
	d, err := qemu.New(qemu.Options{})
	if err != nil {
		t.Skip(err)
	}
	host := accel.Host{File: filepath.Join(t.TempDir(), "accel.json"), Confinement: ownUser}
	for _, a := range []sandbox.Accel{sandbox.AccelTCG, sandbox.AccelKVM} {
		if a == sandbox.AccelTCG && vmtest.InRole() && os.Geteuid() == 0 {
			continue // a role of root's differs in the device alone
		}
		for _, row := range []struct {
			level sandbox.Confinement
			cpus  int
		}{{sandbox.ConfinementFull, 1}, {sandbox.ConfinementFull, 2}, {sandbox.ConfinementReduced, 1}} {
			t.Run(fmt.Sprintf("%s, %s, %d CPUs", a, row.level, row.cpus), func(t *testing.T) {
				if err := confine.Available(); err != nil && row.level == sandbox.ConfinementFull {
					t.Skip(err)
				}
				fx := vmtest.StubFixtures{Accel: a, CPU: stubCPU(t, host, a, row.level), VCPUs: row.cpus}
				fx.Confinement = func(t *testing.T) vm.Confinement { return ownUser(row.level, t.TempDir()) }
				vmtest.RunStub(t, d, fx)
			})
		}
	}
	if vmtest.InRole() || testing.Short() {
		return
	}
	for _, r := range []vmtest.Role{
		{Name: "root, device of a group", DeviceGroup: deviceGroup, DeviceMode: 0o660},
		{Name: "nobody in the device's group", UID: nobody, Groups: []int{deviceGroup}, DeviceGroup: deviceGroup, DeviceMode: 0o660},
	} {
		t.Run(r.Name, func(t *testing.T) { vmtest.RunAs(t, r) })
	}
}

func ownUser(level sandbox.Confinement, dir string) vm.Confinement {
	return vm.Confinement{Level: level, UID: 20001, GID: 20001, Dir: dir}
}

// stubCPU is the model that a run would give its guest, or skips where a VMM may
// not open /dev/kvm.
func stubCPU(t *testing.T, host accel.Host, a sandbox.Accel, level sandbox.Confinement) string {
	t.Helper()
	if a != sandbox.AccelKVM {
		return qemu.CPU(a, false)
	}
	f, err := host.Features(t.Context(), level)
	if err != nil && vmtest.InRole() {
		t.Fatal(err)
	}
	if err != nil {
		t.Skip(err)
	}
	if _, err := os.Stat(host.File); err != nil {
		t.Errorf("the probe's answer was not kept: %v", err)
	}
	return qemu.CPU(a, f.RefusesArchCapabilities)
}
