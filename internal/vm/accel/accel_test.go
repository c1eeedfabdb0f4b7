package accel

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unsafe"

	"creel/internal/sandbox"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == StageArg {
		StageMain()
	}
	os.Exit(m.Run())
}

// The ioctl numbers hold the sizes of these.
func TestLayoutIsTheKernels(t *testing.T) {
	for name, c := range map[string][2]uintptr{
		"sregs":  {unsafe.Sizeof(sregs{}), kvmSetSregs >> 16 & 0x3fff},
		"regs":   {unsafe.Sizeof(regs{}), kvmSetRegs >> 16 & 0x3fff},
		"region": {unsafe.Sizeof(memoryRegion{}), kvmSetUserMemoryRegion >> 16 & 0x3fff},
	} {
		if c[0] != c[1] {
			t.Errorf("%s has %d bytes, the kernel's %d", name, c[0], c[1])
		}
	}
}

func TestChooseAsksOncePerBoot(t *testing.T) {
	cache := filepath.Join(t.TempDir(), "accel.json")
	got, reason, err := Choose(t.Context(), sandbox.AccelAuto, cache)
	if err != nil || got != sandbox.AccelKVM && got != sandbox.AccelTCG || reason == "" {
		t.Fatalf("Choose = %q, %q, %v", got, reason, err)
	}
	t.Log(got, reason)

	// What the cache says is believed in this boot, and in no other.
	data, err := os.ReadFile(cache)
	if err != nil {
		t.Fatal(err)
	}
	other := `"reason":"from the cache"`
	planted := strings.Replace(string(data), data2reason(t, string(data)), other, 1)
	if err := os.WriteFile(cache, []byte(planted), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, reason, _ := Choose(t.Context(), sandbox.AccelAuto, cache); !strings.Contains(reason, "from the cache") {
		t.Errorf("asked again: %q", reason)
	}
	stale := strings.Replace(planted, `"bootId":"`, `"bootId":"0`, 1)
	if err := os.WriteFile(cache, []byte(stale), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, reason, _ := Choose(t.Context(), sandbox.AccelAuto, cache); strings.Contains(reason, "from the cache") {
		t.Error("believed an answer of another boot")
	}
}

func data2reason(t *testing.T, data string) string {
	t.Helper()
	i := strings.Index(data, `"reason":`)
	j := strings.LastIndex(data, `}}`)
	if i < 0 || j < i {
		t.Fatalf("cache holds %q", data)
	}
	return data[i:j]
}

func TestChooseRefusesKVMThatIsNotUsable(t *testing.T) {
	auto, _, err := Choose(t.Context(), sandbox.AccelAuto, "")
	if err != nil {
		t.Fatal(err)
	}
	got, _, err := Choose(t.Context(), sandbox.AccelKVM, "")
	if auto == sandbox.AccelKVM {
		if got != sandbox.AccelKVM || err != nil {
			t.Errorf("usable KVM refused: %v", err)
		}
	} else if err == nil || !strings.Contains(err.Error(), "--accel=tcg") {
		t.Errorf("error does not say what to do: %v", err)
	}
}
