package confine

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"creel/internal/sandbox"
)

// StageArg is the first argument of a process that is a confinement stage.
const StageArg = "vmm-stage"

// Words on the link between parent and stage, one byte each.
const (
	stageReady       = 'R' // stage: all is done but the execve
	stageGo          = 'G' // parent: it still lives, go on
	stageFailed      = 'E' // stage: text of an error follows
	stageNoNamespace = 'N' // stage: as above, and the namespaces are to blame
)

const (
	maxStageError  = 4 << 10
	maxStageOrders = 1 << 20

	// execPage holds the path of the one execve that the VMM's filter lets
	// through. The filter also lets nothing be mapped below mapFloor, so that
	// after the execve no address can name a path for another.
	execPage = 0x100000
	mapFloor = 0x200000

	maxOpenFiles = 1024
	maxThreads   = 4096 // of the uid, which the VMM shares with its keeper
)

// errNamespace marks steps that fail where namespaces are restricted.
var errNamespace = errors.New("the namespace does not permit it")

// StageMain turns this process into the VMM that its parent describes. The
// program's main calls it before anything else where the first argument is
// [StageArg]. It does not return.
func StageMain() {
	// Credentials and filters are set on this thread alone; execve ends the
	// others.
	runtime.LockOSThread()
	link, err := strconv.Atoi(os.Args[len(os.Args)-1])
	if err != nil || len(os.Args) != 3 {
		os.Exit(125)
	}
	unix.CloseOnExec(link)
	if err := stage(link); err != nil {
		word := byte(stageFailed)
		if errors.Is(err, errNamespace) {
			word = stageNoNamespace
		}
		unix.Write(link, append([]byte{word}, err.Error()...)) // a parent that is gone needs no answer
	}
	os.Exit(125)
}

func stage(link int) error {
	c, err := readOrders(link)
	if err != nil {
		return err
	}
	path := c.Path
	switch c.Level {
	case sandbox.ConfinementFull:
		if path, err = enterPrivateRoot(&c); err != nil {
			return fmt.Errorf("%w (%w)", err, errNamespace)
		}
	case sandbox.ConfinementReduced:
		if err := landlockVMM(c); err != nil {
			return err
		}
	default:
		return fmt.Errorf("level %q is not known", c.Level)
	}
	// QEMU asks for huge pages where it fills only a part of them: some 3 MiB of
	// each VM. The setting outlives execve.
	if err := unix.Prctl(unix.PR_SET_THP_DISABLE, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("do without huge pages: %w", err)
	}
	if err := setLimits(c); err != nil {
		return err
	}
	if err := dropPrivileges(c); err != nil {
		return err
	}
	// After setresuid, which clears it. A parent that died before this is
	// noticed by the handshake: its end of the link is closed.
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return fmt.Errorf("set parent-death signal: %w", err)
	}
	if err := handshake(link); err != nil || c.Probe {
		return err
	}
	return become(path, c)
}

func readOrders(link int) (stageConfig, error) {
	var c stageConfig
	var orders []byte
	buf := make([]byte, 16<<10)
	for !bytes.HasSuffix(orders, []byte("\n")) {
		n, err := unix.Read(link, buf)
		if err != nil || n == 0 || len(orders) > maxStageOrders {
			return c, fmt.Errorf("read orders: %d bytes, then %v", len(orders), err)
		}
		orders = append(orders, buf[:n]...)
	}
	if err := json.Unmarshal(orders, &c); err != nil {
		return c, fmt.Errorf("read orders: %w", err)
	}
	return c, nil
}

func handshake(link int) error {
	if _, err := unix.Write(link, []byte{stageReady}); err != nil {
		return fmt.Errorf("tell the parent: %w", err)
	}
	var word [1]byte
	if n, err := unix.Read(link, word[:]); err != nil || n != 1 || word[0] != stageGo {
		os.Exit(125) // the parent is gone, and with it whoever wants this VMM
	}
	return nil
}

func setLimits(c stageConfig) error {
	limits := []struct {
		resource int
		max      uint64
	}{
		{unix.RLIMIT_CORE, 0},
		{unix.RLIMIT_NOFILE, maxOpenFiles},
		{unix.RLIMIT_FSIZE, uint64(c.MaxFileBytes)},
	}
	if c.Root { // elsewhere the count includes the user's other processes
		limits = append(limits, struct {
			resource int
			max      uint64
		}{unix.RLIMIT_NPROC, maxThreads})
	}
	for _, l := range limits {
		if err := unix.Prlimit(0, l.resource, &unix.Rlimit{Cur: l.max, Max: l.max}, nil); err != nil {
			return fmt.Errorf("set limit %d to %d: %w", l.resource, l.max, err)
		}
	}
	return nil
}

// dropPrivileges gives up every capability, for good, and root's identity.
func dropPrivileges(c stageConfig) error {
	if c.Root || c.Level == sandbox.ConfinementFull {
		if err := dropBounding(); err != nil {
			return err
		}
	}
	if c.Root {
		gids := make([]uint32, len(c.Groups))
		for i, g := range c.Groups {
			gids[i] = uint32(g)
		}
		if _, _, e := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(gids)), uintptr(unsafe.Pointer(unsafe.SliceData(gids))), 0); e != 0 {
			return fmt.Errorf("set groups %v: %w", c.Groups, e)
		}
		gid, uid := uintptr(c.GID), uintptr(c.UID)
		if _, _, e := unix.RawSyscall(unix.SYS_SETRESGID, gid, gid, gid); e != 0 {
			return fmt.Errorf("become group %d: %w", c.GID, e)
		}
		if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, uid, uid, uid); e != 0 {
			return fmt.Errorf("become user %d: %w", c.UID, e)
		}
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("clear ambient capabilities: %w", err)
	}
	var none [2]unix.CapUserData
	if err := unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &none[0]); err != nil {
		return fmt.Errorf("clear capabilities: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("set no_new_privs: %w", err)
	}
	return nil
}

func dropBounding() error {
	for capability := uintptr(0); ; capability++ {
		switch err := unix.Prctl(unix.PR_CAPBSET_DROP, capability, 0, 0, 0); {
		case errors.Is(err, unix.EINVAL):
			return nil // beyond the last that the kernel has
		case err != nil:
			return fmt.Errorf("drop capability %d for good: %w", capability, err)
		}
	}
}

// become installs the filter and executes the VMM, in that order, with the
// path where the filter wants it.
func become(path string, c stageConfig) error {
	page, err := unix.MmapPtr(-1, 0, unsafe.Add(nil, execPage), uintptr(os.Getpagesize()),
		unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_FIXED_NOREPLACE)
	if err != nil {
		return fmt.Errorf("map the page of the path: %w", err)
	}
	if uintptr(page) != execPage || len(path) >= os.Getpagesize() {
		return fmt.Errorf("place path %q", path)
	}
	copy(unsafe.Slice((*byte)(page), os.Getpagesize()), path)
	argv, err := syscall.SlicePtrFromStrings(append([]string{c.Path}, c.Args...))
	if err != nil {
		return fmt.Errorf("encode arguments: %w", err)
	}
	var envp [1]*byte
	if err := unix.CloseRange(uint(3+c.Files), ^uint(0)>>33, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("close what is not the VMM's: %w", err)
	}
	if err := install(vmmFilter(os.Getpid()), 0); err != nil {
		return err
	}
	_, _, e := unix.RawSyscall(unix.SYS_EXECVE, execPage, uintptr(unsafe.Pointer(unsafe.SliceData(argv))), uintptr(unsafe.Pointer(&envp)))
	return fmt.Errorf("execute: %w", e)
}
