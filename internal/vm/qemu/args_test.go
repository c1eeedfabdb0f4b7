package qemu

import (
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"creel/internal/sandbox"
	"creel/internal/vm"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func TestArguments(t *testing.T) {
	file := os.Stdin // only its presence matters
	disks := func(f *os.File) []vm.Disk {
		return []vm.Disk{
			{Serial: "root", ReadOnly: true, File: f, PlaceholderBytes: 1 << 36},
			{Serial: "scratch", File: f, PlaceholderBytes: 1 << 36},
			{Serial: "workspace", ReadOnly: true, PlaceholderBytes: 1 << 36},
			{Serial: "spare-ro", ReadOnly: true, PlaceholderBytes: 1 << 36},
			{Serial: "spare-rw", PlaceholderBytes: 1 << 36},
		}
	}
	small, large := vm.Shape{MemoryMiB: 256, VCPUs: 1}, vm.Shape{MemoryMiB: 8192, VCPUs: 4}
	boot := func(s vm.Shape, a sandbox.Accel) vm.Config {
		return vm.Config{Shape: s, Accel: a, Disks: disks(nil), Kernel: file, Initrd: file, Cmdline: "quiet panic=-1"}
	}
	restore := func(s vm.Shape, a sandbox.Accel) vm.Config {
		return vm.Config{Shape: s, Accel: a, Disks: disks(file), Restore: file}
	}
	for name, c := range map[string]vm.Config{
		"boot-tcg-256m-1cpu":     boot(small, sandbox.AccelTCG),
		"boot-tcg-8192m-4cpu":    boot(large, sandbox.AccelTCG),
		"boot-kvm-256m-1cpu":     boot(small, sandbox.AccelKVM),
		"restore-tcg-256m-1cpu":  restore(small, sandbox.AccelTCG),
		"restore-kvm-8192m-4cpu": restore(large, sandbox.AccelKVM),
	} {
		t.Run(name, func(t *testing.T) {
			golden(t, name, strings.Join(newPlan(c).args, "\n")+"\n")
		})
	}
}

// A clone has to show the CPU of its template, whatever this host would choose.
func TestCPUIsTheOneAskedFor(t *testing.T) {
	for _, c := range []struct {
		accel sandbox.Accel
		cpu   string
		want  string
	}{
		{sandbox.AccelKVM, "", "host"},
		{sandbox.AccelKVM, CPU(sandbox.AccelKVM, false), "host"},
		{sandbox.AccelKVM, CPU(sandbox.AccelKVM, true), "host,-arch-capabilities"},
		{sandbox.AccelTCG, "", CPU(sandbox.AccelTCG, true)},
		{sandbox.AccelTCG, "other", "other"},
	} {
		args := newPlan(vm.Config{Accel: c.accel, CPU: c.cpu, Restore: os.Stdin}).args
		if i := slices.Index(args, "-cpu"); i < 0 || args[i+1] != c.want {
			t.Errorf("%s, CPU %q: %q, want %q", c.accel, c.cpu, args, c.want)
		}
	}
}

func TestCommandLines(t *testing.T) {
	for _, accel := range []sandbox.Accel{sandbox.AccelKVM, sandbox.AccelTCG} {
		golden(t, "cmdline-"+string(accel), strings.ReplaceAll(Cmdline(accel, 2596120), " ", "\n")+"\n")
	}
}

// golden holds text against testdata/name.args.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".args")
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Error(diff)
	}
}

func TestMachineIDIsTheDevicesNotTheirBacking(t *testing.T) {
	shape := vm.Shape{MemoryMiB: 256, VCPUs: 1}
	id := MachineID(shape, sandbox.AccelTCG, []vm.Disk{{Serial: "root", ReadOnly: true, PlaceholderBytes: 1 << 30}})
	if got := MachineID(shape, sandbox.AccelTCG, []vm.Disk{{Serial: "root", ReadOnly: true, PlaceholderBytes: 1 << 30, File: os.Stdin}}); got != id {
		t.Error("a file changed the machine")
	}
	for what, got := range map[string]string{
		"kind":  MachineID(shape, sandbox.AccelTCG, []vm.Disk{{Serial: "root", PlaceholderBytes: 1 << 30}}),
		"accel": MachineID(shape, sandbox.AccelKVM, []vm.Disk{{Serial: "root", ReadOnly: true, PlaceholderBytes: 1 << 30}}),
		"shape": MachineID(vm.Shape{MemoryMiB: 512, VCPUs: 1}, sandbox.AccelTCG, []vm.Disk{{Serial: "root", ReadOnly: true, PlaceholderBytes: 1 << 30}}),
	} {
		if got == id {
			t.Errorf("another %s is the same machine", what)
		}
	}
}

func TestTSCFrequencyIsSteady(t *testing.T) {
	a, err := TSCKHz()
	if err != nil {
		t.Fatal(err)
	}
	b, err := TSCKHz()
	if err != nil {
		t.Fatal(err)
	}
	if d := float64(a)/float64(b) - 1; d > 1e-4 || d < -1e-4 {
		t.Errorf("measured %d kHz, then %d", a, b)
	}
}
