// Package machine is the VM around the guest agent: what its PID 1 mounts and
// loads at boot, how it settles before the freeze, each step that makes a clone
// fresh, the task's cgroup, and the port to the host. [Boot] makes a [Machine],
// which is what package agent calls its platform.
//
// It runs under emulation, and what it does after a restore is what users wait
// for: it must stay small, and must not start programs. It must not import host
// packages.
package machine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"creel/internal/guest/api"
	"creel/internal/sandbox"
)

// Where things are before the task's root becomes "/". They are made before
// the freeze, so that a clone has only to move them.
const (
	base       = "/creel"
	imageDir   = base + "/root"
	scratchDir = base + "/scratch"
	mergedDir  = base + "/merged"
)

// Machine is the VM around the agent. It implements the agent's Platform.
type Machine struct {
	kernel string
	disks  map[string]string // role → device
	oom    *os.File          // /proc/self/oom_score_adj
	cgroup *os.File          // of the task

	threads *os.File // /proc/self/task

	mu       sync.Mutex // of starts: this process's own OOM score is lent to the child
	scratch  *os.File   // its top, unreachable by name once the root was changed
	baseline uint64     // bytes used on scratch before the task
	ownEtc   bool       // the image's /etc is not what a scratch disk has ready
	readOnly bool
}

// Kernel implements the agent's Platform.
func (m *Machine) Kernel() string { return m.kernel }

// SetClock implements the agent's Platform.
func (m *Machine) SetClock(now time.Time) error {
	ts, err := unix.TimeToTimespec(now)
	if err != nil {
		return fmt.Errorf("set clock: %w", err)
	}
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &ts); err != nil {
		return fmt.Errorf("set clock: %w", err)
	}
	return nil
}

// Step implements the agent's Platform.
func (m *Machine) Step(name string, id *api.Identity) error {
	switch name {
	case "random":
		return reseed(id.Seed)
	case "clock":
		return m.SetClock(time.Unix(0, id.UnixNano))
	case "root":
		return m.changeRoot()
	case "hostname":
		if err := unix.Sethostname([]byte(id.Hostname)); err != nil {
			return fmt.Errorf("set host name: %w", err)
		}
		return writeFile("/etc/hostname", id.Hostname+"\n", 0o644)
	case "machine-id":
		if len(id.MachineID) != 32 || strings.Trim(id.MachineID, "0123456789abcdef") != "" {
			return fmt.Errorf("machine-id %q: want 32 hexadecimal digits", id.MachineID)
		}
		return writeFile("/etc/machine-id", id.MachineID+"\n", 0o444)
	case "files":
		if err := writeFile("/etc/hosts", id.Hosts, 0o644); err != nil {
			return err
		}
		if err := writeFile("/etc/resolv.conf", id.Resolv, 0o644); err != nil {
			return err
		}
		for _, f := range id.Files {
			if err := writeFile(f.Path, f.Text, 0o644); err != nil {
				return err
			}
		}
		return nil
	case "trust":
		return trust(id.CACertificate)
	case "mounts":
		return m.mounts(id)
	case "limits":
		return m.limit(id.Limits)
	}
	return fmt.Errorf("step %q is not known", name)
}

// reseed makes the kernel's randomness that of this clone alone: the seed is
// credited as entropy and the generator started anew from it.
func reseed(seed []byte) error {
	const size = 64
	if len(seed) != size {
		return fmt.Errorf("seed has %d bytes, want %d", len(seed), size)
	}
	fd, err := unix.Open("/dev/urandom", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open /dev/urandom: %w", err)
	}
	defer unix.Close(fd)
	info := struct { // rand_pool_info
		bits, bytes int32
		seed        [size]byte
	}{bits: size * 8, bytes: size, seed: [size]byte(seed)}
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.RNDADDENTROPY, uintptr(unsafe.Pointer(&info))); e != 0 {
		return fmt.Errorf("credit seed: %w", e)
	}
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.RNDRESEEDCRNG, 0); e != 0 {
		return fmt.Errorf("reseed: %w", e)
	}
	return nil
}

// changeRoot lays the writable disk over the image and makes that the root of
// this process and of all that it starts.
func (m *Machine) changeRoot() error {
	device := m.disks[api.DiskScratch]
	if device == "" {
		return fmt.Errorf("no disk has the serial %q", api.DiskScratch)
	}
	if err := mountScratch(device); err != nil {
		return err
	}
	fd, err := unix.Open(scratchDir, unix.O_DIRECTORY|unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", scratchDir, err)
	}
	m.scratch = os.NewFile(uintptr(fd), scratchDir)
	var stat unix.Statfs_t
	if err := unix.Fstatfs(fd, &stat); err != nil {
		return fmt.Errorf("size of %s: %w", scratchDir, err)
	}
	m.baseline = (stat.Blocks - stat.Bfree) * uint64(stat.Bsize)
	for _, dir := range []string{"upper", "work"} {
		if err := unix.Mkdirat(fd, dir, 0o755); err != nil && err != unix.EEXIST {
			return fmt.Errorf("make %s/%s: %w", scratchDir, dir, err)
		}
	}
	if m.ownEtc {
		if err := dropPlanted(scratchDir); err != nil {
			return err
		}
	}
	layers := "lowerdir=" + imageDir + ",upperdir=" + scratchDir + "/upper,workdir=" + scratchDir + "/work"
	if err := mount("overlay", mergedDir, "overlay", 0, layers); err != nil {
		return err
	}
	for _, dir := range movable {
		if err := unix.Mkdir(mergedDir+dir, 0o755); err != nil && err != unix.EEXIST {
			return fmt.Errorf("make %s: %w", dir, err)
		}
		if err := mount(dir, mergedDir+dir, "", unix.MS_MOVE, ""); err != nil {
			return err
		}
	}
	if err := unix.Chdir(mergedDir); err != nil {
		return fmt.Errorf("enter the root: %w", err)
	}
	if err := mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return err
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("change root: %w", err)
	}
	return unix.Chdir("/")
}

// mountScratch mounts the writable disk. Where that is larger than the
// template's placeholder the driver may still be about to take notice of it.
func mountScratch(device string) error {
	const wait = time.Second
	for began := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		err := mount(device, scratchDir, "ext4", unix.MS_NOATIME|unix.MS_NODEV|unix.MS_NOSUID, "noinit_itable")
		if !errors.Is(err, unix.EINVAL) || time.Since(began) > wait {
			return err
		}
	}
}

func (m *Machine) mounts(id *api.Identity) error {
	for _, t := range id.Mounts {
		if t.Kind != sandbox.MountTmpfs {
			return fmt.Errorf("mount %s: kind %q is not known", t.Target, t.Kind)
		}
		if err := os.MkdirAll(t.Target, 0o755); err != nil {
			return fmt.Errorf("mount %s: %w", t.Target, err)
		}
		mode := t.Mode
		if mode == 0 {
			mode = 0o1777
		}
		options := fmt.Sprintf("mode=%o", mode)
		if t.SizeBytes > 0 {
			options += fmt.Sprintf(",size=%d", t.SizeBytes)
		}
		flags := uintptr(unix.MS_NOSUID | unix.MS_NODEV)
		if t.ReadOnly {
			flags |= unix.MS_RDONLY
		}
		if t.NoExec {
			flags |= unix.MS_NOEXEC
		}
		if err := mount("tmpfs", t.Target, "tmpfs", flags, options); err != nil {
			return err
		}
	}
	if !id.ReadOnlyRoot {
		return nil
	}
	m.readOnly = true
	return mount("", "/", "", unix.MS_REMOUNT|unix.MS_RDONLY, "") // last: targets were made in it
}

// Started implements the agent's Platform. A child inherits this process's OOM score
// from the fork on, so this process has a task's score for that moment.
func (m *Machine) Started(fork func(cgroup int) error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.protect("0"); err != nil {
		return err
	}
	err := fork(int(m.cgroup.Fd()))
	if perr := m.protect("-1000"); err == nil {
		err = perr
	}
	return err
}

func (m *Machine) protect(score string) error {
	if _, err := m.oom.WriteAt([]byte(score), 0); err != nil {
		return fmt.Errorf("set OOM score: %w", err)
	}
	return nil
}

// Shutdown implements the agent's Platform.
func (m *Machine) Shutdown(ctx context.Context) error {
	if err := m.killTasks(ctx); err != nil {
		return err
	}
	unix.Sync()
	if m.scratch == nil {
		return nil
	}
	if !m.readOnly {
		if err := mount("", "/", "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
			return err
		}
	}
	// The disk has no name in this root any more, but its descriptor does.
	at := fmt.Sprintf("/proc/self/fd/%d", m.scratch.Fd())
	return mount("", at, "", unix.MS_REMOUNT|unix.MS_RDONLY, "")
}

func mount(source, target, kind string, flags uintptr, options string) error {
	if err := unix.Mount(source, target, kind, flags, options); err != nil {
		return fmt.Errorf("mount %s on %s: %w", strings.TrimSpace(kind+" "+source), target, err)
	}
	return nil
}
