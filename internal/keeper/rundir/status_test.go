package rundir

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"creel/internal/sandbox"

	"golang.org/x/sys/unix"
)

// That the host's disk is full is in the status of a sandbox on that disk.
func TestStatusOnAFullDisk(t *testing.T) {
	small := t.TempDir()
	if err := unix.Mount("tmpfs", small, "tmpfs", 0, "size=64k"); err != nil {
		t.Skipf("a tmpfs of its own needs root: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(small, 0) })
	dir, err := os.OpenRoot(small)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	status := sandbox.Status{Name: "otter", State: sandbox.StateRunning}
	if err := SaveStatus(dir, status); err != nil {
		t.Fatal(err)
	}
	os.WriteFile(filepath.Join(small, "filler"), make([]byte, 64<<10), 0o600) // ends short
	const fault = "the host's disk is full, and what the task wrote is not all there: free some space, or set CREEL_STATE_DIR to a larger disk"
	for _, words := range []string{fault, "", fault} { // a shorter one leaves nothing of a longer one
		status.DiskFault = words
		if err := SaveStatus(dir, status); err != nil {
			t.Fatal(err)
		}
		if got, err := ReadStatus(small); err != nil || got.DiskFault != words || got.Name != "otter" {
			t.Errorf("read %+v, %v", got, err)
		}
	}
	if left, _ := os.ReadDir(small); len(left) != 2 {
		t.Errorf("left %v", left)
	}
	status.Error = strings.Repeat("x", 2*statusBlock)
	if err := SaveStatus(dir, status); err == nil {
		t.Error("what has no room was said to be saved")
	}
	if got, err := ReadStatus(small); err != nil || got.DiskFault != fault {
		t.Errorf("the old one is lost: %+v, %v", got, err)
	}
}
