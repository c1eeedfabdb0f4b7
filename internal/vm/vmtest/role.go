package vmtest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Role is who runs a test again, and what /dev/kvm is there: a node of the
// role's own in a mount namespace of its own, so that the machine's stays as it
// is. Only root can take one.
type Role struct {
	Name   string
	UID    int   // 0: root; else user and group
	Groups []int // besides
	// Owner, group and mode of /dev/kvm.
	DeviceGroup int
	DeviceMode  os.FileMode
}

const (
	roleEnv   = "CREEL_TEST_ROLE"
	roleLimit = 5 * time.Minute // of one role's tests on a busy host
	kvmPath   = "/dev/kvm"
)

// RoleMain takes the role that a parent's [RunAs] wants. TestMain calls it
// first.
func RoleMain() {
	text, ok := os.LookupEnv(roleEnv)
	if !ok || text == "" {
		return
	}
	var r Role
	err := json.Unmarshal([]byte(text), &r)
	if err == nil {
		err = r.take()
	}
	fmt.Fprintf(os.Stderr, "take role %s: %v\n", text, err)
	os.Exit(1)
}

// InRole says that this process has taken a role.
func InRole() bool {
	_, ok := os.LookupEnv(roleEnv)
	return ok
}

// RunAs runs the calling test once more, alone, in another role. There
// [InRole] is true.
func RunAs(t *testing.T, r Role) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can run a test as somebody else")
	}
	if _, err := os.Stat(kvmPath); err != nil {
		t.Skip(err)
	}
	role, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), roleLimit)
	defer cancel()
	name, _, _ := strings.Cut(t.Name(), "/")
	child := exec.CommandContext(ctx, copySelf(t), "-test.run=^"+name+"$", "-test.v")
	child.Env = append(os.Environ(), roleEnv+"="+string(role), "TMPDIR=/tmp")
	child.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS} // mounts do not leave it: Go sees to that
	out, err := child.CombinedOutput()
	if err != nil {
		t.Errorf("as %s: %v\n%s", r.Name, err, out)
		return
	}
	t.Logf("as %s:\n%s", r.Name, out)
}

// copySelf is this program where everybody can reach it.
func copySelf(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "creel-role-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, filepath.Base(os.Args[0]))
	if err := errors.Join(os.WriteFile(path, self, 0o755), os.Chmod(path, 0o755), os.Chmod(dir, 0o755)); err != nil {
		t.Fatal(err)
	}
	return path
}

// take makes the device, becomes the user, and starts the program anew.
func (r Role) take() error {
	dir, err := os.MkdirTemp("", "creel-role-")
	if err != nil {
		return err
	}
	if err := unix.Mount("creel", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NOEXEC, "mode=755,size=64k"); err != nil {
		return fmt.Errorf("mount %s: %w", dir, err)
	}
	var st unix.Stat_t
	if err := unix.Stat(kvmPath, &st); err != nil {
		return fmt.Errorf("look at %s: %w", kvmPath, err)
	}
	node := filepath.Join(dir, "kvm")
	if err := unix.Mknod(node, unix.S_IFCHR|0o600, int(st.Rdev)); err != nil {
		return fmt.Errorf("make %s: %w", node, err)
	}
	if err := os.Chown(node, 0, r.DeviceGroup); err != nil {
		return err
	}
	if err := os.Chmod(node, r.DeviceMode); err != nil {
		return err
	}
	if err := unix.Mount(node, kvmPath, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount %s: %w", kvmPath, err)
	}
	// The node lives on where it is bound.
	if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount %s: %w", dir, err)
	}
	if err := os.Remove(dir); err != nil {
		return err
	}
	if r.UID != 0 {
		if err := syscall.Setgroups(r.Groups); err != nil {
			return fmt.Errorf("set groups: %w", err)
		}
		if err := syscall.Setresgid(r.UID, r.UID, r.UID); err != nil {
			return fmt.Errorf("become group %d: %w", r.UID, err)
		}
		if err := syscall.Setresuid(r.UID, r.UID, r.UID); err != nil {
			return fmt.Errorf("become user %d: %w", r.UID, err)
		}
	}
	os.Setenv(roleEnv, "")
	return syscall.Exec("/proc/self/exe", os.Args, os.Environ())
}
