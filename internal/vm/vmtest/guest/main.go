// Command guest is PID 1 of the machines that the conformance suite of package
// vmtest boots. It answers lines on the control port, echoes what the file
// port says, and must not do anything else.
package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "guest:", err)
	}
	// Returning ends PID 1, and with it the kernel.
}

func run() error {
	for _, m := range []struct{ kind, target string }{{"devtmpfs", "/dev"}, {"sysfs", "/sys"}, {"proc", "/proc"}} {
		os.MkdirAll(m.target, 0o755)
		if err := unix.Mount(m.kind, m.target, m.kind, 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	if err := loadModules(); err != nil {
		return err
	}
	share, err := openPort("fs")
	if err != nil {
		return err
	}
	go io.Copy(share, share)
	control, err := openPort("ctl")
	if err != nil {
		return err
	}
	fmt.Fprintln(control, "hello")
	for lines := bufio.NewScanner(control); lines.Scan(); {
		switch lines.Text() {
		case "ping":
			fmt.Fprintln(control, "pong")
		case "disks":
			fmt.Fprintln(control, disks())
		case "off":
			unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
		case "reboot":
			unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
		case "sysrq o", "sysrq b", "sysrq c":
			// What a task that is root can ask its kernel for.
			os.WriteFile("/proc/sysrq-trigger", []byte(lines.Text()[len("sysrq "):]), 0)
		case "fill":
			fmt.Fprintln(control, fill("/dev/vdb"))
		case "panic":
			return nil
		}
	}
	return nil
}

func loadModules() error {
	order, err := os.ReadFile("/modules/order")
	if err != nil {
		return err
	}
	for name := range strings.FieldsSeq(string(order)) {
		f, err := os.Open("/modules/" + name)
		if err != nil {
			return err
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		f.Close()
		if err != nil && err != unix.EEXIST {
			return fmt.Errorf("load %s: %w", name, err)
		}
	}
	return nil
}

func openPort(name string) (*os.File, error) {
	ports, _ := filepath.Glob("/sys/class/virtio-ports/*/name")
	for _, p := range ports {
		if data, _ := os.ReadFile(p); strings.TrimSpace(string(data)) == name {
			fd, err := unix.Open("/dev/"+filepath.Base(filepath.Dir(p)), unix.O_RDWR|unix.O_CLOEXEC, 0)
			return os.NewFile(uintptr(fd), name), err
		}
	}
	return nil, fmt.Errorf("no port %q among %v", name, ports)
}

// fill writes a disk from end to end, past every cache, and says how that ended.
func fill(disk string) string {
	fd, err := unix.Open(disk, unix.O_WRONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		return err.Error()
	}
	defer unix.Close(fd)
	data, err := unix.Mmap(-1, 0, 1<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE) // aligned
	if err != nil {
		return err.Error()
	}
	for i := range data {
		data[i] = 1
	}
	for {
		if _, err := unix.Write(fd, data); err == unix.ENOSPC {
			return "written" // a disk's end
		} else if err != nil {
			return err.Error()
		}
	}
}

// disks lists serial, read-only flag and size in sectors of each, in order.
func disks() string {
	var out []string
	dirs, _ := filepath.Glob("/sys/block/vd*")
	for _, d := range dirs {
		var field [3]string
		for i, name := range []string{"serial", "ro", "size"} {
			data, _ := os.ReadFile(filepath.Join(d, name))
			field[i] = strings.TrimSpace(string(data))
		}
		out = append(out, strings.Join(field[:], ":"))
	}
	return strings.Join(out, " ")
}
