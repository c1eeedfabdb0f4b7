package app

import (
	"os"
	"strings"
	"testing"

	"creel/internal/sandbox"
	"creel/internal/template"
	"creel/internal/vm"
	"creel/internal/vm/qemu"
)

// What a template under KVM is known by changes with the host's CPU and with
// what its KVM refuses.
func TestBootIsTiedToTheHostsCPU(t *testing.T) {
	dir := t.TempDir()
	req := template.Request{Shape: vm.Shape{MemoryMiB: 256, VCPUs: 1}, Accel: sandbox.AccelTCG, Confinement: sandbox.ConfinementFull}
	emulated := boot(t, dir, req)
	if emulated.HostCPU != "" || emulated.CPU != qemu.CPU(sandbox.AccelTCG, false) {
		t.Errorf("emulation depends on the host: %+v", emulated)
	}
	host, err := accelHost(dir).Features(t.Context(), req.Confinement)
	if err != nil {
		t.Skip(err)
	}
	req.Accel = sandbox.AccelKVM
	here := boot(t, dir, req)
	if here.HostCPU != host.CPUID || here.CPU != qemu.CPU(sandbox.AccelKVM, host.RefusesArchCapabilities) {
		t.Errorf("%+v under a KVM with %+v", here, host)
	}
	file := accelHost(dir).File
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	other := strings.Replace(string(data), `"cpuid": "sha256:`, `"refusesArchCapabilities": true, "cpuid": "sha256:0`, 1)
	if err := os.WriteFile(file, []byte(other), 0o600); err != nil {
		t.Fatal(err)
	}
	if there := boot(t, dir, req); there.HostCPU == here.HostCPU || there.CPU != "host,-arch-capabilities" {
		t.Errorf("on another CPU %+v, here %+v", there, here)
	}
}

func boot(t *testing.T, dir string, req template.Request) template.Boot {
	t.Helper()
	b, err := bootOf(t.Context(), dir, req)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
