package accel

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
	"unsafe"

	"creel/internal/confine"
	"creel/internal/sandbox"
	"creel/internal/vm"
	"creel/internal/vm/vmtest"

	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case confine.StageArg:
			confine.StageMain()
		case StageArg:
			StageMain()
		}
	}
	vmtest.RoleMain()
	os.Exit(m.Run())
}

const (
	vmmUser     = 20001
	deviceGroup = 4242
	nobody      = 65534
)

func hostIn(dir string) Host {
	return Host{File: filepath.Join(dir, "accel.json"), Confinement: func(level sandbox.Confinement, dir string) vm.Confinement {
		return vm.Confinement{Level: level, UID: vmmUser, GID: vmmUser, Dir: dir}
	}}
}

// known is a host whose device is a plain file that a probe was already made
// of.
func known(t *testing.T, v verdict) Host {
	t.Helper()
	h := hostIn(t.TempDir())
	h.device = filepath.Join(t.TempDir(), "kvm")
	must(t, os.WriteFile(h.device, nil, 0o600))
	key, err := keyOf(h.device, sandbox.ConfinementFull)
	must(t, err)
	must(t, h.keep(finding{Key: key, Verdict: v}))
	return h
}

func choose(t *testing.T, h Host, a sandbox.Accel, kernel string) Choice {
	t.Helper()
	c, err := h.Choose(t.Context(), Wish{Accel: a, Level: sandbox.ConfinementFull, Kernel: kernel})
	must(t, err)
	return c
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

var (
	good = verdict{Opens: true, Usable: true, Measured: true, Reason: "quick"}
	slow = verdict{Opens: true, Measured: true, Reason: "slow", Advice: "another machine"}
)

// The ioctl numbers hold the sizes of these.
func TestLayoutIsTheKernels(t *testing.T) {
	for name, c := range map[string][2]uintptr{
		"sregs":  {unsafe.Sizeof(sregs{}), kvmSetSregs >> 16 & 0x3fff},
		"regs":   {unsafe.Sizeof(regs{}), kvmSetRegs >> 16 & 0x3fff},
		"region": {unsafe.Sizeof(memoryRegion{}), kvmSetUserMemoryRegion >> 16 & 0x3fff},
		"cpuid":  {unsafe.Sizeof(cpuidTable{}) - kvmMaxCPUID*unsafe.Sizeof(cpuidEntry{}), kvmSetCPUID2 >> 16 & 0x3fff},
		"msrs":   {unsafe.Offsetof(oneMSR{}.Index), kvmSetMSRs >> 16 & 0x3fff},
		"entry":  {unsafe.Sizeof(cpuidEntry{}), 40},
	} {
		if c[0] != c[1] {
			t.Errorf("%s has %d bytes, the kernel's %d", name, c[0], c[1])
		}
	}
}

func TestChooseGoesByTheVerdict(t *testing.T) {
	for name, c := range map[string]struct {
		verdict verdict
		want    sandbox.Accel
		accel   sandbox.Accel
		doubt   string
	}{
		"emulation as asked":    {good, sandbox.AccelTCG, sandbox.AccelTCG, ""},
		"auto, good":            {good, sandbox.AccelAuto, sandbox.AccelKVM, ""},
		"auto, slow":            {slow, sandbox.AccelAuto, sandbox.AccelTCG, ""},
		"insisted, good":        {good, sandbox.AccelKVM, sandbox.AccelKVM, ""},
		"insisted against slow": {slow, sandbox.AccelKVM, sandbox.AccelKVM, "slow"},
	} {
		got := choose(t, known(t, c.verdict), c.want, "a")
		if got.Accel != c.accel || got.Doubt != c.doubt || got.Reason == "" {
			t.Errorf("%s: %+v", name, got)
		}
		if wantAdvice := c.want != sandbox.AccelTCG && !c.verdict.Usable; (got.Advice != "") != wantAdvice {
			t.Errorf("%s: advice %q", name, got.Advice)
		}
	}
}

// What a guest kernel did outweighs what the probe saw, for that kernel alone.
func TestKernelsAreJudgedOneByOne(t *testing.T) {
	h := known(t, good)
	c := choose(t, h, sandbox.AccelAuto, "bad kernel")
	must(t, h.Learn(t.Context(), c, errors.New("no answer within 10s")))
	if c := choose(t, h, sandbox.AccelAuto, "bad kernel"); c.Accel != sandbox.AccelTCG || !strings.Contains(c.Reason, "no answer within 10s") || !strings.Contains(c.Advice, "--accel kvm") {
		t.Errorf("a kernel that did not come up: %+v", c)
	}
	if c := choose(t, h, sandbox.AccelKVM, "bad kernel"); c.Accel != sandbox.AccelKVM || c.Doubt == "" {
		t.Errorf("the same, insisted on: %+v", c)
	}
	for _, other := range []string{"other kernel", ""} {
		if c := choose(t, h, sandbox.AccelAuto, other); c.Accel != sandbox.AccelKVM {
			t.Errorf("kernel %q suffers for another: %+v", other, c)
		}
	}
	must(t, h.Learn(t.Context(), c, nil))
	if c := choose(t, h, sandbox.AccelAuto, "bad kernel"); c.Accel != sandbox.AccelKVM {
		t.Errorf("a kernel that came up after all: %+v", c)
	}

	h = known(t, slow)
	must(t, h.Learn(t.Context(), choose(t, h, sandbox.AccelKVM, "fitting kernel"), nil))
	if c := choose(t, h, sandbox.AccelAuto, "fitting kernel"); c.Accel != sandbox.AccelKVM {
		t.Errorf("a kernel that came up where the probe says no: %+v", c)
	}
	if c := choose(t, h, sandbox.AccelKVM, "fitting kernel"); c.Doubt != "" {
		t.Errorf("doubts about a kernel that came up: %+v", c)
	}
	if c := choose(t, h, sandbox.AccelAuto, "other kernel"); c.Accel != sandbox.AccelTCG {
		t.Errorf("another kernel there: %+v", c)
	}
}

// A verdict holds for one boot, one level, and the device as it was.
func TestVerdictsAreKeptUntilSomethingChanges(t *testing.T) {
	h := known(t, good)
	if c := choose(t, h, sandbox.AccelAuto, ""); c.Reason != "quick" {
		t.Errorf("asked again: %+v", c)
	}
	// So is what KVM refuses: nobody has to find it out by a VMM that aborts.
	picky := slow
	picky.Features = Features{CPUID: "sha256:1", RefusesArchCapabilities: true}
	if f, err := known(t, picky).Features(t.Context(), sandbox.ConfinementFull); err != nil || f != picky.Features {
		t.Errorf("features %+v, %v", f, err)
	}
	if _, ok := h.find(keyAt(t, h, sandbox.ConfinementReduced)); ok {
		t.Error("another level has the same verdict")
	}
	// An ACL need not show in the mode; it does in the ctime, whose clock may
	// tick slowly.
	before := keyAt(t, h, sandbox.ConfinementFull)
	for end := time.Now().Add(5 * time.Second); keyAt(t, h, sandbox.ConfinementFull) == before; must(t, os.Chmod(h.device, 0o600)) {
		if time.Now().After(end) {
			t.Fatal("the verdict outlives a change of access")
		}
	}

	h = known(t, good)
	data, err := os.ReadFile(h.File)
	must(t, err)
	must(t, os.WriteFile(h.File, []byte(strings.Replace(string(data), `"bootId": "`, `"bootId": "0`, 1)), 0o600))
	if _, ok := h.find(keyAt(t, h, sandbox.ConfinementFull)); ok {
		t.Error("believed a verdict of another boot")
	}
	must(t, os.WriteFile(h.File, []byte("{"), 0o600))
	if _, ok := h.find(keyAt(t, h, sandbox.ConfinementFull)); ok {
		t.Error("believed a damaged file")
	}
}

func keyAt(t *testing.T, h Host, level sandbox.Confinement) string {
	t.Helper()
	key, err := keyOf(h.device, level)
	must(t, err)
	return key
}

func TestFindingsAreBounded(t *testing.T) {
	h := hostIn(t.TempDir())
	for i := range 3 * maxFindings {
		must(t, h.keep(finding{Key: strings.Repeat("x", i), Verdict: good}))
	}
	m, err := h.load()
	must(t, err)
	if len(m.Findings) != maxFindings || m.Findings[maxFindings-1].Key != strings.Repeat("x", 3*maxFindings-1) {
		t.Errorf("%d are kept", len(m.Findings))
	}
}

// What was in the way of opening the device may be gone the next time.
func TestErrorsOfOpeningAreNotKept(t *testing.T) {
	h := hostIn(t.TempDir())
	h.device = filepath.Join(t.TempDir(), "kvm")
	if c := choose(t, h, sandbox.AccelAuto, ""); c.Accel != sandbox.AccelTCG || !strings.Contains(c.Advice, "modprobe") {
		t.Errorf("no device: %+v", c)
	}
	if _, err := h.Choose(t.Context(), Wish{Accel: sandbox.AccelKVM, Level: sandbox.ConfinementFull}); err == nil || !strings.Contains(err.Error(), "--accel=tcg") {
		t.Errorf("KVM that does not open was promised: %v", err)
	}
	if _, err := os.Stat(h.File); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("an error was kept: %v", err)
	}
}

// The probe meets the permissions that the VMM meets, whoever starts it.
func TestProbeIsInTheVMMsPlace(t *testing.T) {
	if !vmtest.InRole() {
		for _, r := range []vmtest.Role{
			{Name: "root", DeviceMode: 0o600},
			{Name: "nobody", UID: nobody, Groups: []int{deviceGroup}, DeviceMode: 0o600},
			{Name: "nobody in the device's group", UID: nobody, Groups: []int{deviceGroup}, DeviceGroup: deviceGroup, DeviceMode: 0o660},
		} {
			t.Run(r.Name, func(t *testing.T) { vmtest.RunAs(t, r) })
		}
		return
	}
	if os.Geteuid() != 0 {
		var st unix.Stat_t
		must(t, unix.Stat(device, &st))
		checkOpens(t, sandbox.ConfinementReduced, st.Gid == deviceGroup)
		if err := confine.Available(); err != nil {
			t.Skip(err)
		}
		checkOpens(t, sandbox.ConfinementFull, st.Gid == deviceGroup)
		return
	}
	// The device is root's alone: in its private root a VMM has a node of its own.
	checkOpens(t, sandbox.ConfinementFull, true)
	h := checkOpens(t, sandbox.ConfinementReduced, false)
	if m, err := h.load(); err != nil || len(m.Findings) != 0 {
		t.Errorf("that it did not open was kept: %+v, %v", m, err)
	}
	// Access is given, and taken away again.
	must(t, os.Chown(device, 0, deviceGroup))
	must(t, os.Chmod(device, 0o660))
	checkOpensAt(t, h, sandbox.ConfinementReduced, true)
	must(t, os.Chmod(device, 0o600))
	checkOpensAt(t, h, sandbox.ConfinementReduced, false)
}

func checkOpens(t *testing.T, level sandbox.Confinement, want bool) Host {
	t.Helper()
	h := hostIn(t.TempDir())
	checkOpensAt(t, h, level, want)
	return h
}

func checkOpensAt(t *testing.T, h Host, level sandbox.Confinement, want bool) {
	t.Helper()
	c, err := h.Choose(t.Context(), Wish{Accel: sandbox.AccelAuto, Level: level})
	must(t, err)
	t.Logf("%s: %+v", level, c)
	f, err := h.Features(t.Context(), level)
	if (err == nil) != want || want == (f.CPUID == "") {
		t.Errorf("%s: %+v, %v; want it to open: %t", level, f, err, want)
	}
	if !want && (c.Accel != sandbox.AccelTCG || !strings.Contains(c.Reason, "may not open /dev/kvm") || !strings.Contains(c.Advice, "chgrp")) {
		t.Errorf("%s: %+v", level, c)
	}
}

// The digest is of the machine, not of the CPU that happens to answer.
func TestCPUIDIsTheSameOnEachCPU(t *testing.T) {
	kvm, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		t.Skip(err)
	}
	defer kvm.Close()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var all unix.CPUSet
	must(t, unix.SchedGetaffinity(0, &all))
	defer unix.SchedSetaffinity(0, &all)
	var first Features
	for cpu := range 1024 {
		if !all.IsSet(cpu) {
			continue
		}
		var one unix.CPUSet
		one.Set(cpu)
		must(t, unix.SchedSetaffinity(0, &one))
		f, err := features(int(kvm.Fd()))
		must(t, err)
		if first.CPUID == "" {
			first = f
		}
		if f != first {
			t.Errorf("CPU %d: %+v, another: %+v", cpu, f, first)
		}
	}
	t.Logf("%+v", first)
}

func TestDigestCPUID(t *testing.T) {
	base := func() []cpuidEntry {
		return []cpuidEntry{{Function: 7, EBX: 1}, {Function: 0, EAX: 7}, {Function: 1, EBX: 0x01020800, ECX: 3}, {Function: 0xb, EDX: 1}, {Function: 7, Index: 1, EAX: 9}}
	}
	want := digestCPUID(base())
	for what, c := range map[string]struct {
		change func([]cpuidEntry) []cpuidEntry
		same   bool
	}{
		"order":        {func(e []cpuidEntry) []cpuidEntry { e[0], e[1] = e[1], e[0]; return e }, true},
		"APIC id":      {func(e []cpuidEntry) []cpuidEntry { e[2].EBX = 0x03040800; return e }, true},
		"topology":     {func(e []cpuidEntry) []cpuidEntry { e[3].EDX = 2; return e }, true},
		"cache line":   {func(e []cpuidEntry) []cpuidEntry { e[2].EBX = 0x01021000; return e }, false},
		"feature":      {func(e []cpuidEntry) []cpuidEntry { e[0].EBX = 3; return e }, false},
		"family":       {func(e []cpuidEntry) []cpuidEntry { e[2].EAX = 1; return e }, false},
		"another leaf": {func(e []cpuidEntry) []cpuidEntry { return append(e, cpuidEntry{Function: 0xd}) }, false},
	} {
		if got := digestCPUID(c.change(base())); (got == want) != c.same {
			t.Errorf("another %s gives the digest %s, the first %s", what, got, want)
		}
	}
}
