package confine

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Top-level names that programs and their libraries are found by: directories,
// or links into /usr.
var programDirs = []string{"/usr", "/lib", "/lib64", "/lib32", "/bin", "/sbin"}

const linkerCache = "/etc/ld.so.cache"

const kvmPath = "/dev/kvm"

// elsewhere is where a VMM that is not under /usr is seen.
const elsewhere = "/vmm"

// enterPrivateRoot makes c.Dir the root of this mount namespace: programs and
// libraries, /proc of this process namespace, three devices at most, all of it
// read-only. It returns the VMM's path there.
func enterPrivateRoot(c *stageConfig) (string, error) {
	root := c.Dir
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return "", fmt.Errorf("make mounts private: %w", err)
	}
	flags := uintptr(unix.MS_NOSUID | unix.MS_NODEV)
	if c.KVM && c.Root {
		flags &^= unix.MS_NODEV // for kvmDevice
	}
	if err := unix.Mount("creel", root, "tmpfs", flags, "mode=755,size=64k"); err != nil {
		return "", fmt.Errorf("mount private root on %q: %w", root, err)
	}
	for _, dir := range programDirs {
		if err := mirror(root, dir); err != nil {
			return "", err
		}
	}
	if err := bind(root, linkerCache, linkerCache); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	path := c.Path
	if !strings.HasPrefix(path, "/usr/") {
		if err := bind(root, path, elsewhere); err != nil {
			return "", err
		}
		path = elsewhere
	}
	for _, d := range []string{"/dev/null", "/dev/urandom"} {
		if err := bind(root, d, d); err != nil {
			return "", err
		}
	}
	if err := kvmDevice(root, c); err != nil {
		return "", err
	}
	if err := mountProc(root); err != nil {
		return "", err
	}
	// Writing to a device node does not need a writable mount.
	if err := setattr(root, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOSUID); err != nil {
		return "", err
	}
	return path, pivot(root)
}

// kvmDevice shows /dev/kvm in the private root, where it is wanted. A stage that
// is root makes the VMM a node of its own: the host's may be root's alone, and
// so the VMM need not be in a group.
func kvmDevice(root string, c *stageConfig) error {
	if !c.KVM {
		return nil
	}
	if c.Root {
		var st unix.Stat_t
		if err := unix.Stat(kvmPath, &st); err != nil {
			return fmt.Errorf("look at %s: %w", kvmPath, err)
		}
		node := filepath.Join(root, kvmPath)
		err := unix.Mknod(node, unix.S_IFCHR|0o600, int(st.Rdev))
		if err == nil {
			c.Groups = nil
			return os.Chown(node, c.UID, c.GID)
		}
		if !errors.Is(err, unix.EPERM) { // a root that may make no devices, as in many containers
			return fmt.Errorf("make %s: %w", kvmPath, err)
		}
	}
	return bind(root, kvmPath, kvmPath)
}

// mirror shows dir in the private root as it is outside: a link as a link.
func mirror(root, dir string) error {
	info, err := os.Lstat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode()&fs.ModeSymlink != 0:
		target, err := os.Readlink(dir)
		if err != nil {
			return err
		}
		return os.Symlink(target, filepath.Join(root, dir))
	}
	if err := os.Mkdir(filepath.Join(root, dir), 0o755); err != nil {
		return err
	}
	if err := unix.Mount(dir, filepath.Join(root, dir), "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("bind %q: %w", dir, err)
	}
	return setattr(filepath.Join(root, dir), unix.MOUNT_ATTR_NODEV)
}

// bind shows the file at path as name in the private root.
func bind(root, path, name string) error {
	if _, err := os.Stat(path); err != nil {
		return err
	}
	target := filepath.Join(root, name)
	if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(target, nil, 0o644); err != nil {
		return err
	}
	if err := unix.Mount(path, target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %q: %w", path, err)
	}
	return nil
}

func mountProc(root string) error {
	proc := filepath.Join(root, "proc")
	if err := os.Mkdir(proc, 0o755); err != nil {
		return err
	}
	// Only processes, none of the files about the machine.
	if err := unix.Mount("proc", proc, "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "subset=pid"); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	return nil
}

func setattr(path string, attr uint64) error {
	err := unix.MountSetattr(unix.AT_FDCWD, path, unix.AT_RECURSIVE, &unix.MountAttr{Attr_set: attr})
	if err != nil {
		return fmt.Errorf("set mount attributes %#x on %q: %w", attr, path, err)
	}
	return nil
}

// pivot leaves the old root behind; stacking both on one directory avoids a
// place for the old one.
func pivot(root string) error {
	if err := unix.Chdir(root); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("change root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("leave old root: %w", err)
	}
	return unix.Chdir("/")
}
