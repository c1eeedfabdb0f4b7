package machine

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"creel/internal/guest/api"
)

const (
	maxFiles = 1 << 20 // open files of a process, as Docker has it
	portWait = 5 * time.Second
	portPoll = 10 * time.Millisecond
)

// movable are the mounts that go into the task's root. They are made before
// the freeze, under these names.
var movable = []string{"/dev", "/proc", "/sys"}

// Boot makes PID 1's surroundings, as far as no host is needed.
func Boot() (*Machine, error) {
	m := &Machine{disks: map[string]string{}}
	for _, dir := range []string{"/dev", "/proc", "/sys", imageDir, scratchDir, mergedDir} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
	}
	unix.Umask(0o022)
	for _, s := range []struct {
		kind, target, options string
		flags                 uintptr
	}{
		{"proc", "/proc", "", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
		{"sysfs", "/sys", "", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
		{"cgroup2", cgroupDir, "", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
		{"tmpfs", "/dev", "mode=755", unix.MS_NOSUID},
	} {
		if err := mount(s.kind, s.target, s.kind, s.flags, s.options); err != nil {
			return nil, err
		}
	}
	var err error
	if m.oom, err = os.OpenFile("/proc/self/oom_score_adj", os.O_WRONLY, 0); err != nil {
		return nil, err
	}
	if m.threads, err = os.Open("/proc/self/task"); err != nil {
		return nil, err
	}
	// Set through package syscall, which then lets children have it too.
	limit := syscall.Rlimit{Cur: maxFiles, Max: maxFiles}
	var name unix.Utsname
	if err := errors.Join(syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit), unix.Uname(&name),
		m.protect("-1000"), makeDevices(), loadModules("/modules"), m.prepareCgroup(), network()); err != nil {
		return nil, err
	}
	m.kernel = unix.ByteSliceToString(name.Release[:])
	return m, nil
}

// makeDevices fills /dev with what Docker has there, and the two devices that
// a task which is root in its own kernel may use.
func makeDevices() error {
	for _, d := range []struct {
		name         string
		major, minor uint32
		mode         uint32
	}{
		{"null", 1, 3, 0o666}, {"zero", 1, 5, 0o666}, {"full", 1, 7, 0o666}, {"random", 1, 8, 0o666},
		{"urandom", 1, 9, 0o666}, {"tty", 5, 0, 0o666}, {"fuse", 10, 229, 0o666}, {"net/tun", 10, 200, 0o600},
	} {
		name := "/dev/" + d.name
		if err := os.MkdirAll(path.Dir(name), 0o755); err != nil {
			return err
		}
		if err := unix.Mknod(name, unix.S_IFCHR|d.mode, int(unix.Mkdev(d.major, d.minor))); err != nil {
			return fmt.Errorf("make %s: %w", name, err)
		}
		if err := unix.Chmod(name, d.mode); err != nil { // whatever the umask
			return fmt.Errorf("make %s: %w", name, err)
		}
	}
	for name, target := range map[string]string{
		"/dev/fd": "/proc/self/fd", "/dev/stdin": "/proc/self/fd/0", "/dev/stdout": "/proc/self/fd/1",
		"/dev/stderr": "/proc/self/fd/2", "/dev/ptmx": "pts/ptmx", "/dev/core": "/proc/kcore",
	} {
		if err := os.Symlink(target, name); err != nil {
			return err
		}
	}
	const flags = unix.MS_NOSUID | unix.MS_NOEXEC
	for _, s := range []struct {
		kind, target, options string
		flags                 uintptr
	}{
		{"devpts", "/dev/pts", "newinstance,ptmxmode=0666,mode=0620,gid=5", flags},
		{"tmpfs", "/dev/shm", "mode=1777,size=64m", flags | unix.MS_NODEV},
		{"mqueue", "/dev/mqueue", "", flags | unix.MS_NODEV},
	} {
		if err := os.Mkdir(s.target, 0o755); err != nil {
			return err
		}
		err := mount(s.kind, s.target, s.kind, s.flags, s.options)
		if err != nil && !(s.kind == "mqueue" && errors.Is(err, unix.ENODEV)) {
			return err
		}
	}
	return nil
}

// loadModules loads what dir/order lists, one file name to a line.
func loadModules(dir string) error {
	order, err := os.ReadFile(dir + "/order")
	if errors.Is(err, os.ErrNotExist) {
		return nil // a kernel with everything built in
	}
	if err != nil {
		return err
	}
	for name := range strings.FieldsSeq(string(order)) {
		f, err := os.Open(path.Join(dir, path.Base(name)))
		if err != nil {
			return err
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		f.Close()
		if err != nil && err != unix.EEXIST {
			return fmt.Errorf("load module %s: %w", name, err)
		}
	}
	return nil
}

// OpenPort opens the virtio-serial port of that name. It appears when the
// host's device has told the driver about it.
func OpenPort(name string) (*Port, error) {
	deadline := time.NewTimer(portWait)
	defer deadline.Stop()
	tick := time.NewTicker(portPoll)
	defer tick.Stop()
	for {
		device, err := findPort(name)
		if err != nil {
			return nil, err
		}
		if device != "" {
			return openPort(device)
		}
		select {
		case <-deadline.C:
			return nil, fmt.Errorf("no virtio port has the name %q", name)
		case <-tick.C:
		}
	}
}

func findPort(name string) (string, error) {
	const class = "/sys/class/virtio-ports"
	entries, err := os.ReadDir(class)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	for _, e := range entries {
		got, err := os.ReadFile(path.Join(class, e.Name(), "name"))
		if err == nil && string(bytes.TrimSpace(got)) == name {
			return path.Join(class, e.Name()), nil
		}
	}
	return "", nil
}

// makeNode makes the device node of a directory in /sys and returns its name.
func makeNode(sys string, kind uint32) (string, error) {
	number, err := os.ReadFile(sys + "/dev")
	if err != nil {
		return "", err
	}
	var major, minor uint32
	if _, err := fmt.Sscanf(string(number), "%d:%d", &major, &minor); err != nil {
		return "", fmt.Errorf("read %s/dev: %w", sys, err)
	}
	name := base + "/" + path.Base(sys)
	err = unix.Mknod(name, kind|0o600, int(unix.Mkdev(major, minor)))
	if err != nil && err != unix.EEXIST {
		return "", fmt.Errorf("make %s: %w", name, err)
	}
	return name, nil
}

// findDisks notes the device of each role by its serial.
func (m *Machine) findDisks() error {
	entries, err := os.ReadDir("/sys/block")
	if err != nil {
		return err
	}
	for _, e := range entries {
		dir := "/sys/block/" + e.Name()
		serial, err := os.ReadFile(dir + "/serial")
		if err != nil {
			continue // not a virtio disk
		}
		device, err := makeNode(dir, unix.S_IFBLK)
		if err != nil {
			return err
		}
		m.disks[string(bytes.TrimSpace(serial))] = device
	}
	if m.disks[api.DiskRoot] == "" {
		return fmt.Errorf("no disk has the serial %q", api.DiskRoot)
	}
	return nil
}
