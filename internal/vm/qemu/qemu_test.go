package qemu_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"creel/internal/confine"
	"creel/internal/kernel"
	"creel/internal/sandbox"
	"creel/internal/vm"
	"creel/internal/vm/accel"
	"creel/internal/vm/qemu"
	"creel/internal/vm/vmtest"
)

// kernelEnv names a store that `creel kernel fetch` filled.
const kernelEnv = "CREEL_TEST_KERNEL"

func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case confine.StageArg:
			confine.StageMain()
		case accel.StageArg:
			accel.StageMain()
		}
	}
	vmtest.RoleMain()
	os.Exit(m.Run())
}

func TestConformance(t *testing.T) {
	for _, level := range []sandbox.Confinement{sandbox.ConfinementFull, sandbox.ConfinementReduced} {
		t.Run(string(level), func(t *testing.T) {
			d, fx := fixtures(t, level)
			vmtest.Run(t, d, fx)
		})
	}
}

// fixtures builds what machines boot from, or skips.
func fixtures(t *testing.T, level sandbox.Confinement) (*qemu.Driver, vmtest.Fixtures) {
	t.Helper()
	d, err := qemu.New(qemu.Options{})
	if err != nil {
		t.Skip(err)
	}
	store := os.Getenv(kernelEnv)
	if store == "" {
		t.Skip(kernelEnv + " names no kernel store")
	}
	k, err := kernel.Latest(store)
	if err != nil {
		t.Fatal(err)
	}
	if err := confine.Available(); err != nil && level == sandbox.ConfinementFull {
		t.Skip(err)
	}
	khz, err := qemu.TSCKHz()
	if err != nil {
		t.Fatal(err)
	}
	return d, vmtest.Fixtures{
		Kernel: filepath.Join(k.Dir, k.VMLinux.Name), Initrd: initrd(t, k), Cmdline: qemu.Cmdline(sandbox.AccelTCG, khz), Accel: sandbox.AccelTCG,
		Confinement: func(t *testing.T) vm.Confinement {
			return vm.Confinement{Level: level, UID: 20001, GID: 20001, Dir: t.TempDir()}
		},
	}
}

func initrd(t *testing.T, k kernel.Kernel) string {
	t.Helper()
	dir := t.TempDir()
	build := exec.CommandContext(context.Background(), "go", "build", "-o", filepath.Join(dir, "init"), "creel/internal/vm/vmtest/guest")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build guest: %v\n%s", err, out)
	}
	agent, err := os.ReadFile(filepath.Join(dir, "init"))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "initrd")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := k.WriteInitramfs(f, agent); err != nil {
		t.Fatal(err)
	}
	return path
}

// Without QEMU the answer is where it was looked for, and what to do.
func TestNoQEMUInPath(t *testing.T) {
	t.Setenv("PATH", "/nowhere")
	if _, err := qemu.New(qemu.Options{}); err == nil || !strings.Contains(err.Error(), `PATH ("/nowhere") has no QEMU; install it`) {
		t.Error(err)
	}
}
