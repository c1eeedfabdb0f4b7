// Package confine locks processes in. [Start] runs a VMM in namespaces of its
// own, on an empty root, without privileges and under seccomp; [Self] does what
// can be done to a Go process that is already running, such as a keeper or a
// holder; [Available] says whether the machine lets a VMM be locked in fully.
// docs/confinement.md tells what each measure is for.
//
// A VMM is confined by a stage: this binary, re-executed with [StageArg], which
// builds the prison around itself and becomes the VMM. The package must not
// know which VMM it is, what a VM is, or what a task is.
package confine

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"creel/internal/procs"
	"creel/internal/sandbox"
)

// VMM is a program to be locked in, and everything that it is handed.
type VMM struct {
	Path   string     // absolute
	Args   []string   // without the program's own name
	Files  []*os.File // become descriptors 3, 4, … and stay the caller's
	Stderr *os.File   // nil: /dev/null
	Stdout *os.File   // nil: as Stderr

	Level sandbox.Confinement
	// UID and GID are what it becomes where the caller is root; never 0 there,
	// and ignored otherwise.
	UID, GID int
	// Dir is an empty directory on which the private root is mounted, in the
	// VMM's own mount namespace only. Unused at the reduced level.
	Dir string

	KVM          bool  // /dev/kvm is there for it, and its user may open it if that can be arranged
	MaxFileBytes int64 // no file that it writes can grow beyond this
}

// Process is a VMM that runs. It is killed when the process that started it
// dies.
type Process struct {
	proc  *os.Process
	stat  *os.File // /proc/PID/stat; nil where it could not be had
	done  chan struct{}
	state *os.ProcessState // valid once done is closed
}

// PID is the VMM's in the caller's namespace.
func (p *Process) PID() int { return p.proc.Pid }

// CPU is the processor time that the VMM has used so far, 0 where that is not
// known. It can be asked under [Self].
func (p *Process) CPU() time.Duration {
	if p.stat == nil {
		return 0
	}
	var buf [1 << 10]byte
	n, _ := p.stat.ReadAt(buf[:], 0) // the end of the file, or of the process
	stat, err := procs.ParseStat(buf[:n])
	if err != nil {
		return 0
	}
	return stat.CPU
}

// Done is closed when the VMM has ended and was reaped.
func (p *Process) Done() <-chan struct{} { return p.done }

// State says how the VMM ended; nil before Done.
func (p *Process) State() *os.ProcessState {
	select {
	case <-p.done:
		return p.state
	default:
		return nil
	}
}

// Kill ends the VMM at once and waits until it was reaped.
func (p *Process) Kill() error {
	if err := p.proc.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("kill vmm %d: %w", p.proc.Pid, err)
	}
	<-p.done
	return nil
}

// Start locks the program in and returns once it executes. It must be called
// before [Self]: a process under Self can neither fork nor write an id map.
func Start(v VMM) (*Process, error) {
	if err := v.validate(); err != nil {
		return nil, err
	}
	return start(v, false)
}

func (v *VMM) validate() error {
	var errs []error
	switch v.Level {
	case sandbox.ConfinementFull:
		if v.Dir == "" {
			errs = append(errs, errors.New("dir: none given; full confinement needs an empty directory"))
		}
	case sandbox.ConfinementReduced:
	default:
		errs = append(errs, fmt.Errorf("level %q: want full or reduced", v.Level))
	}
	if os.Geteuid() == 0 && (v.UID <= 0 || v.GID <= 0) {
		errs = append(errs, fmt.Errorf("uid %d, gid %d: a VMM never runs as root", v.UID, v.GID))
	}
	return errors.Join(errs...)
}

// stageConfig is what the parent tells the stage.
type stageConfig struct {
	Path         string
	Args         []string
	Files        int // descriptors 3 to 3+Files-1 are the VMM's
	Level        sandbox.Confinement
	Root         bool // the stage has real root and gives it up
	UID, GID     int
	Groups       []int
	Dir          string
	KVM          bool
	MaxFileBytes int64
	Probe        bool // end instead of executing: [Available]
}

// start runs the stage and gives it its orders. The goroutine that forks stays
// on its thread until the VMM is gone, because a parent-death signal is sent
// when the parent's thread ends.
func start(v VMM, probe bool) (*Process, error) {
	ours, theirs, err := procs.Files()
	if err != nil {
		return nil, err
	}
	defer ours.Close()
	defer theirs.Close()

	p := &Process{done: make(chan struct{})}
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		var err error
		if p.proc, err = v.fork(theirs); err != nil {
			started <- err
			return
		}
		if p.stat, err = os.Open(fmt.Sprintf("/proc/%d/stat", p.proc.Pid)); err != nil {
			p.stat = nil // not a reason to be without the VMM
		}
		started <- nil
		p.state, _ = p.proc.Wait() // fails only for a process that is not ours
		p.stat.Close()
		close(p.done)
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	theirs.Close()
	if err := v.conduct(ours, probe); err != nil {
		return nil, errors.Join(err, p.Kill())
	}
	return p, nil
}

func (v *VMM) fork(link *os.File) (*os.Process, error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	stderr := v.Stderr
	if stderr == nil {
		stderr = null
	}
	attr := &syscall.SysProcAttr{Setsid: true} // no terminal to inject into, no signals from its keys
	if v.Level == sandbox.ConfinementFull {
		attr.Cloneflags = unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET |
			unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWCGROUP
		if uid, gid := os.Geteuid(), os.Getegid(); uid != 0 {
			attr.Cloneflags |= unix.CLONE_NEWUSER
			attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: uid, HostID: uid, Size: 1}}
			attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: gid, HostID: gid, Size: 1}}
			attr.AmbientCaps = []uintptr{unix.CAP_SYS_ADMIN, unix.CAP_SETPCAP}
		}
	}
	stdout := v.Stdout
	if stdout == nil {
		stdout = stderr
	}
	files := append([]*os.File{null, stdout, stderr}, v.Files...)
	files = append(files, link)
	proc, err := os.StartProcess("/proc/self/exe", []string{"creel", StageArg, strconv.Itoa(len(files) - 1)},
		&os.ProcAttr{Files: files, Env: []string{}, Sys: attr})
	if err != nil && v.Level == sandbox.ConfinementFull {
		return nil, unavailable(err)
	}
	return proc, err
}

// conduct sends the orders, waits for "ready", answers it, and waits for the
// link's end, which the VMM's execve brings. What else arrives is an error.
func (v *VMM) conduct(link *os.File, probe bool) error {
	c := stageConfig{
		Path: v.Path, Args: v.Args, Files: len(v.Files), Level: v.Level, Root: os.Geteuid() == 0,
		UID: v.UID, GID: v.GID, Dir: v.Dir, KVM: v.KVM, MaxFileBytes: v.MaxFileBytes, Probe: probe,
	}
	if v.KVM {
		var st unix.Stat_t
		if err := unix.Stat(kvmPath, &st); err != nil {
			return fmt.Errorf("find the group of /dev/kvm: %w", err)
		}
		if st.Gid != 0 {
			c.Groups = []int{int(st.Gid)}
		}
	}
	orders, err := json.Marshal(c)
	if err != nil {
		return fmt.Errorf("encode orders of the confinement stage: %w", err)
	}
	if _, err := link.Write(append(orders, '\n')); err != nil {
		return fmt.Errorf("start confinement stage: %w", err)
	}
	word := make([]byte, 1)
	if _, err := io.ReadFull(link, word); err != nil {
		return fmt.Errorf("confinement stage ended without a word: %w", err)
	}
	if word[0] == stageReady {
		if _, err := link.Write([]byte{stageGo}); err != nil {
			return fmt.Errorf("answer confinement stage: %w", err)
		}
		if _, err = io.ReadFull(link, word); err == io.EOF {
			return nil
		}
	}
	text, _ := io.ReadAll(io.LimitReader(link, maxStageError))
	err = fmt.Errorf("confine %s: %s", v.Path, text)
	if v.Level == sandbox.ConfinementFull && word[0] == stageNoNamespace {
		return unavailable(err)
	}
	return err
}

func unavailable(err error) error {
	return fmt.Errorf("%w; full confinement needs namespaces, as root or by user namespaces: allow them "+
		"(sysctl -w user.max_user_namespaces=10000; where they exist also kernel.unprivileged_userns_clone=1 and "+
		"kernel.apparmor_restrict_unprivileged_userns=0), or accept less with --confinement=reduced", err)
}

// Available reports whether the caller can lock a VMM in fully. It really
// builds a prison and lets it go; the error says what to do.
func Available() error {
	dir, err := os.MkdirTemp("", "creel-confine-")
	if err != nil {
		return fmt.Errorf("make directory for a trial: %w", err)
	}
	defer os.Remove(dir)
	const nobody = 65534
	p, err := start(VMM{Path: "/usr/bin/true", Level: sandbox.ConfinementFull, UID: nobody, GID: nobody, Dir: dir}, true)
	if err != nil {
		return err
	}
	<-p.done
	return nil
}
