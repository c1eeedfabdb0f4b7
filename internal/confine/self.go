package confine

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"syscall"
	"unsafe"

	"github.com/landlock-lsm/go-landlock/landlock"
	llsys "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/psx"
)

// Options say what is left to a process under [Self].
type Options struct {
	// UID and GID are what the process becomes; 0 keeps them. A keeper and its
	// VMM have the same, so that the one may kill the other.
	UID, GID int
	// ReadPaths and WritePaths are files and directories that can still be
	// opened, with all below them; they must exist. WritePaths are also read.
	ReadPaths, WritePaths []string
	Unix                  bool // may make Unix sockets; accepting on one it holds needs no leave
	Internet              bool // may make IPv4 and IPv6 sockets
	// DataBytes is how much private memory the process may have mapped for
	// writing, what it has already included; 0 is no limit. A Go program that
	// wants more ends, with words that say so. A child that was started before
	// keeps its own limit.
	DataBytes uint64
}

// Self locks the calling process in, all its threads, for good. It returns
// what was achieved, for people: "seccomp, landlock 7". Afterwards the process
// can not start another, open anything in its own /proc, or signal processes
// but through an [os.Process] that it already has.
func Self(o Options) (achieved string, err error) {
	if err := unix.Prlimit(0, unix.RLIMIT_CORE, &unix.Rlimit{}, nil); err != nil {
		return "", fmt.Errorf("forbid core dumps: %w", err)
	}
	if o.DataBytes > 0 {
		if err := unix.Prlimit(0, unix.RLIMIT_DATA, &unix.Rlimit{Cur: o.DataBytes, Max: o.DataBytes}, nil); err != nil {
			return "", fmt.Errorf("limit memory: %w", err)
		}
	}
	// Paths are opened while the privileges to reach them are there. Landlock
	// also sets no_new_privs.
	if err := landlockSelf(o); err != nil {
		return "", err
	}
	if err := dropSelf(o); err != nil {
		return "", err
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return "", fmt.Errorf("make process undumpable: %w", err)
	}
	families := []uint32{}
	if o.Unix {
		families = append(families, unix.AF_UNIX)
	}
	if o.Internet {
		families = append(families, unix.AF_INET, unix.AF_INET6)
	}
	// The thread that installs the filter hands both the filter and
	// no_new_privs to the others.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return "", fmt.Errorf("set no_new_privs: %w", err)
	}
	if err := install(selfFilter(os.Getpid(), families), unix.SECCOMP_FILTER_FLAG_TSYNC); err != nil {
		return "", err
	}
	return "seccomp, " + Landlock(), nil
}

// Landlock says for people what the kernel has of it.
func Landlock() string {
	abi, err := llsys.LandlockGetABIVersion()
	if err != nil || abi < 1 {
		return "landlock: unavailable"
	}
	return fmt.Sprintf("landlock %d", abi)
}

// dropSelf gives up identity and capabilities on every thread.
func dropSelf(o Options) error {
	if os.Geteuid() == 0 {
		for capability := uintptr(0); ; capability++ {
			_, _, e := psx.Syscall3(unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, capability, 0)
			if e == syscall.EINVAL {
				break
			}
			if e != 0 {
				return fmt.Errorf("drop capability %d for good: %w", capability, e)
			}
		}
	}
	if o.GID != 0 {
		if err := errors.Join(syscall.Setgroups(nil), syscall.Setresgid(o.GID, o.GID, o.GID)); err != nil {
			return fmt.Errorf("become group %d: %w", o.GID, err)
		}
	}
	if o.UID != 0 {
		// From root this clears the permitted and effective capabilities too.
		if err := syscall.Setresuid(o.UID, o.UID, o.UID); err != nil {
			return fmt.Errorf("become user %d: %w", o.UID, err)
		}
	}
	return clearCapabilities()
}

func landlockSelf(o Options) error {
	rules := []landlock.Rule{}
	add := func(paths []string, dirs, files func(...string) landlock.FSRule) error {
		for _, p := range paths {
			info, err := os.Stat(p)
			if err != nil {
				return fmt.Errorf("open up path: %w", err)
			}
			if info.IsDir() {
				rules = append(rules, dirs(p))
			} else {
				rules = append(rules, files(p))
			}
		}
		return nil
	}
	writeDirs := func(p ...string) landlock.FSRule { return landlock.RWDirs(p...).WithRefer() }
	if err := errors.Join(
		add(o.ReadPaths, landlock.RODirs, landlock.ROFiles),
		add(o.WritePaths, writeDirs, landlock.RWFiles),
	); err != nil {
		return err
	}
	// Signals stay out of Landlock's scope: it would also stop the
	// parent-death signal to the VMM, which was started before. Seccomp
	// refuses them instead.
	config := landlock.V7.BestEffort()
	if err := config.RestrictPaths(rules...); err != nil {
		return fmt.Errorf("restrict paths: %w", err)
	}
	if o.Internet {
		return nil
	}
	if err := config.RestrictNet(); err != nil {
		return fmt.Errorf("restrict network: %w", err)
	}
	return nil
}

// landlockVMM stands in for the private root where there is none.
func landlockVMM(c stageConfig) error {
	rules := []landlock.Rule{
		landlock.RODirs(programDirs...).IgnoreIfMissing(),
		landlock.ROFiles(linkerCache).IgnoreIfMissing(),
		landlock.ROFiles(c.Path, "/dev/urandom"),
		landlock.RWFiles("/dev/null"),
	}
	if c.KVM {
		rules = append(rules, landlock.RWFiles(kvmPath).WithIoctlDev())
	}
	if err := landlock.V7.BestEffort().Restrict(rules...); err != nil {
		return fmt.Errorf("restrict files: %w", err)
	}
	return nil
}

func clearCapabilities() error {
	header := &unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	none := new([2]unix.CapUserData)
	_, _, e := psx.Syscall3(unix.SYS_CAPSET, uintptr(unsafe.Pointer(header)), uintptr(unsafe.Pointer(none)), 0)
	runtime.KeepAlive(header)
	runtime.KeepAlive(none)
	if e != 0 {
		return fmt.Errorf("clear capabilities: %w", e)
	}
	return nil
}
