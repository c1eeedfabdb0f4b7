package confine

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"creel/internal/procs"
	"creel/internal/sandbox"
)

// Modes of the test binary, in place of a VMM.
const (
	standInArg = "stand-in" // misbehaves, reports, and waits for the end of its socket
	keeperArg  = "keeper"   // starts a stand-in, tells its pid, and waits to be killed
)

// target is what the stand-in goes for; all of it exists outside.
type target struct {
	Parent                      int
	File, Socket, Abstract, Dir string
	TCPPort                     int
}

// attempts are what a misbehaving VMM tries, by name. They do harm where they
// succeed, so only [standIn] runs them.
func attempts(g target) map[string]func() error {
	open := func(path string, flags int) error {
		fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0o600)
		if err == nil {
			unix.Close(fd)
		}
		return err
	}
	dial := func(family int, sa unix.Sockaddr) error {
		fd, err := unix.Socket(family, unix.SOCK_STREAM, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Connect(fd, sa)
	}
	mapExecPage := func() error {
		_, err := unix.MmapPtr(-1, 0, unsafe.Add(nil, execPage), 4096, unix.PROT_READ, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_FIXED)
		return err
	}
	return map[string]func() error{
		"read a host file": func() error { return open(g.File, unix.O_RDONLY) },
		"read /etc/passwd": func() error { return open("/etc/passwd", unix.O_RDONLY) },
		"write a new file": func() error { return open(filepath.Join(g.Dir, "new"), unix.O_CREAT|unix.O_WRONLY) },
		"write in /tmp": func() error {
			return open(fmt.Sprintf("/tmp/creel-stand-in-%d", g.Parent), unix.O_CREAT|unix.O_WRONLY|unix.O_EXCL)
		},
		"read parent's memory":   func() error { return open(fmt.Sprintf("/proc/%d/mem", g.Parent), unix.O_RDONLY) },
		"write sealed memory":    func() error { return writeTo(3) },
		"connect to a socket":    func() error { return dial(unix.AF_UNIX, &unix.SockaddrUnix{Name: g.Socket}) },
		"connect to an abstract": func() error { return dial(unix.AF_UNIX, &unix.SockaddrUnix{Name: g.Abstract}) },
		"connect to TCP": func() error {
			return dial(unix.AF_INET, &unix.SockaddrInet4{Port: g.TCPPort, Addr: [4]byte{127, 0, 0, 1}})
		},
		"signal the parent":      func() error { return unix.Kill(g.Parent, 0) },
		"attach to the parent":   func() error { return attach(g.Parent) },
		"mount":                  func() error { return unix.Mount("x", "/", "tmpfs", 0, "") },
		"unshare":                func() error { return unix.Unshare(unix.CLONE_FS) },
		"run a shell":            func() error { return exec.Command("/bin/sh", "-c", ":").Run() },
		"become a shell":         func() error { return forbiddenExec() },
		"map the exec page":      func() error { return mapExecPage() },
		"clear the death signal": func() error { return unix.Prctl(unix.PR_SET_PDEATHSIG, 0, 0, 0, 0) },
	}
}

// attach traces a process, and lets it go where that succeeds: whom nobody lets
// go stops at its next signal, and Go's runtime sends itself many.
func attach(pid int) error {
	runtime.LockOSThread() // the tracer is a thread
	defer runtime.UnlockOSThread()
	if err := unix.PtraceSeize(pid); err != nil {
		return err
	}
	if err := unix.PtraceInterrupt(pid); err != nil {
		return err
	}
	var status unix.WaitStatus
	if _, err := unix.Wait4(pid, &status, unix.WALL, nil); err != nil {
		return err
	}
	stoppedBy := 0 // the signal that came first is passed on
	if status.TrapCause() != unix.PTRACE_EVENT_STOP {
		stoppedBy = int(status.StopSignal())
	}
	if _, _, e := unix.RawSyscall6(unix.SYS_PTRACE, unix.PTRACE_DETACH, uintptr(pid), 0, uintptr(stoppedBy), 0, 0); e != 0 {
		return e
	}
	return nil
}

func writeTo(fd int) error {
	_, err := unix.Pwrite(fd, []byte("x"), 0)
	return err
}

// forbiddenExec names no program, so that where it is let through it fails
// with ENOENT and the positive control goes on.
func forbiddenExec() error {
	err := unix.Exec("/nonexistent", []string{"x"}, nil)
	if err == unix.ENOENT {
		return nil
	}
	return err
}

// standIn reports on descriptor 4 which attempts were not refused.
func standIn(goal string) {
	var g target
	if err := json.Unmarshal([]byte(goal), &g); err != nil {
		os.Exit(3)
	}
	if own, err := os.Readlink("/proc/self/ns/mnt"); os.Geteuid() == 0 {
		if outer, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", g.Parent)); err != nil || own == outer {
			os.Exit(5) // as root in the host's mounts the attempts would reach the host
		}
	}
	done := []string{}
	for name, try := range attempts(g) {
		if try() == nil {
			done = append(done, name)
		}
	}
	link := os.NewFile(4, "link")
	if err := json.NewEncoder(link).Encode(done); err != nil {
		os.Exit(4)
	}
	link.Read(make([]byte, 1)) // until the test has looked from outside
}

// keeper starts a stand-in as a real keeper does a VMM.
func keeper(level string) {
	self, err := os.Executable()
	if err == nil {
		var ours, theirs *os.File
		if ours, theirs, err = procs.Files(); err == nil {
			defer ours.Close()
			dir, _ := os.MkdirTemp("", "keeper-")
			defer os.RemoveAll(dir)
			var p *Process
			p, err = Start(VMM{Path: self, Args: []string{standInArg, "{}"}, Files: []*os.File{os.Stdin, theirs},
				Level: sandbox.Confinement(level), UID: 20001, GID: 20001, Dir: dir, MaxFileBytes: 1 << 20})
			if err == nil {
				bufio.NewReader(ours).ReadString('\n') // it runs
				fmt.Println(p.PID())
				<-p.Done()
			}
		}
	}
	fmt.Println(err)
}

func sealedMemory(t *testing.T) *os.File {
	t.Helper()
	fd, err := unix.MemfdCreate("sealed", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "sealed")
	t.Cleanup(func() { f.Close() })
	if err := f.Truncate(4096); err != nil {
		t.Fatal(err)
	}
	return f
}

func seal(t *testing.T, f *os.File) {
	t.Helper()
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_WRITE|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL); err != nil {
		t.Fatal(err)
	}
}

// programCopy is this test binary where any uid can execute it.
func programCopy(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "confine-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "vmm")
	data, err := os.ReadFile("/proc/self/exe")
	if err == nil {
		err = os.WriteFile(path, data, 0o755)
	}
	if err := firstError(err, os.Chmod(dir, 0o755)); err != nil {
		t.Fatal(err)
	}
	return path
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// status reads /proc/PID/status as a map.
func status(t *testing.T, pid int) map[string]string {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	fields := map[string]string{}
	for line := range strings.Lines(string(data)) {
		k, v, _ := strings.Cut(line, ":")
		fields[k] = strings.Join(strings.Fields(v), " ")
	}
	return fields
}

func TestVMMDiesWithAKilledParent(t *testing.T) {
	for _, level := range []string{"full", "reduced"} {
		t.Run(level, func(t *testing.T) {
			cmd := exec.Command(programCopy(t), keeperArg, level)
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			line, _ := bufio.NewReader(out).ReadString('\n')
			pid, err := strconv.Atoi(strings.TrimSpace(line))
			if err != nil {
				t.Fatalf("keeper said %q", line)
			}
			vmm, err := procs.Open(pid)
			if err != nil {
				t.Fatal(err)
			}
			defer vmm.Close()
			cmd.Process.Kill()
			cmd.Wait()
			if ended, err := vmm.Ends(10 * time.Second); err != nil || !ended {
				t.Errorf("the VMM outlived its parent: %v", err)
				vmm.Signal(unix.SIGKILL)
			}
		})
	}
}
