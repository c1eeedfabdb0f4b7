package confine

import (
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Offsets in struct seccomp_data; x86-64 is little-endian.
const (
	offNR   = 0
	offArch = 4
	offArgs = 16

	x32Bit = 0x40000000
)

var (
	allow   = bpf.RetConstant{Val: unix.SECCOMP_RET_ALLOW}
	refuse  = bpf.RetConstant{Val: unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)}
	missing = bpf.RetConstant{Val: unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)}
	kill    = bpf.RetConstant{Val: unix.SECCOMP_RET_KILL_PROCESS}
)

// never are system calls that neither a VMM nor a keeper has a use for and
// that have let processes out of sandboxes, or reach other processes.
var never = []uint32{
	unix.SYS_FORK, unix.SYS_VFORK, unix.SYS_EXECVEAT,
	unix.SYS_PTRACE, unix.SYS_PROCESS_VM_READV, unix.SYS_PROCESS_VM_WRITEV, unix.SYS_KCMP,
	unix.SYS_PIDFD_OPEN, unix.SYS_PIDFD_GETFD, unix.SYS_PROCESS_MADVISE,
	unix.SYS_TKILL, unix.SYS_RT_SIGQUEUEINFO, unix.SYS_RT_TGSIGQUEUEINFO,
	unix.SYS_MOUNT, unix.SYS_UMOUNT2, unix.SYS_MOVE_MOUNT, unix.SYS_OPEN_TREE, unix.SYS_MOUNT_SETATTR,
	unix.SYS_FSOPEN, unix.SYS_FSCONFIG, unix.SYS_FSMOUNT, unix.SYS_FSPICK,
	unix.SYS_CHROOT, unix.SYS_PIVOT_ROOT, unix.SYS_SETNS, unix.SYS_UNSHARE,
	unix.SYS_OPEN_BY_HANDLE_AT, unix.SYS_NAME_TO_HANDLE_AT,
	unix.SYS_SETUID, unix.SYS_SETGID, unix.SYS_SETREUID, unix.SYS_SETREGID, unix.SYS_SETRESUID, unix.SYS_SETRESGID,
	unix.SYS_SETFSUID, unix.SYS_SETFSGID, unix.SYS_SETGROUPS, unix.SYS_CAPSET,
	unix.SYS_BPF, unix.SYS_PERF_EVENT_OPEN, unix.SYS_USERFAULTFD,
	unix.SYS_IO_URING_SETUP, unix.SYS_IO_URING_ENTER, unix.SYS_IO_URING_REGISTER,
	unix.SYS_KEYCTL, unix.SYS_ADD_KEY, unix.SYS_REQUEST_KEY,
	unix.SYS_KEXEC_LOAD, unix.SYS_KEXEC_FILE_LOAD, unix.SYS_INIT_MODULE, unix.SYS_FINIT_MODULE, unix.SYS_DELETE_MODULE,
	unix.SYS_REBOOT, unix.SYS_SWAPON, unix.SYS_SWAPOFF, unix.SYS_ACCT, unix.SYS_QUOTACTL, unix.SYS_QUOTACTL_FD,
	unix.SYS_SYSLOG, unix.SYS_SETHOSTNAME, unix.SYS_SETDOMAINNAME, unix.SYS_VHANGUP,
	unix.SYS_SETTIMEOFDAY, unix.SYS_CLOCK_SETTIME, unix.SYS_CLOCK_ADJTIME, unix.SYS_ADJTIMEX,
	unix.SYS_IOPL, unix.SYS_IOPERM, unix.SYS_MODIFY_LDT, unix.SYS_PERSONALITY,
	unix.SYS_MOVE_PAGES, unix.SYS_MIGRATE_PAGES, unix.SYS_REMAP_FILE_PAGES,
	unix.SYS_SHMGET, unix.SYS_SHMAT, unix.SYS_SHMCTL, unix.SYS_MSGGET, unix.SYS_SEMGET, unix.SYS_MQ_OPEN,
}

// neverVMM are refused to a VMM besides: it talks over what it was handed.
var neverVMM = []uint32{
	unix.SYS_SOCKET, unix.SYS_CONNECT, unix.SYS_BIND, unix.SYS_LISTEN, unix.SYS_ACCEPT, unix.SYS_ACCEPT4,
	unix.SYS_PIDFD_SEND_SIGNAL, unix.SYS_FANOTIFY_INIT,
}

// filter is a seccomp program under construction: system calls that it does
// not name are allowed.
type filter []bpf.Instruction

func newFilter() filter {
	f := filter{
		bpf.LoadAbsolute{Off: offArch, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.AUDIT_ARCH_X86_64, SkipTrue: 1},
		kill,
		bpf.LoadAbsolute{Off: offNR, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpLessThan, Val: x32Bit, SkipTrue: 1},
		kill,
	}
	f.refuseAll(never)
	f.on(unix.SYS_CLONE3, missing) // callers then use clone, whose flags can be seen
	f.on(unix.SYS_CLONE, low(0), bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: unix.CLONE_THREAD, SkipTrue: 1}, refuse, allow)
	f.on(unix.SYS_IOCTL, low(1), // both push input into a terminal
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.TIOCSTI, SkipTrue: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.TIOCLINUX, SkipTrue: 1}, allow, refuse)
	return f
}

// on adds what happens to one system call; body ends in returns, because it
// overwrites the accumulator.
func (f *filter) on(nr uint32, body ...bpf.Instruction) {
	*f = append(*f, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: nr, SkipTrue: uint8(len(body))})
	*f = append(*f, body...)
}

func (f *filter) refuseAll(nrs []uint32) {
	for _, nr := range nrs {
		f.on(nr, refuse)
	}
}

// onlyOn allows a system call where its argument arg is one of values. Only
// the low half is compared: the kernel takes these arguments as int.
func (f *filter) onlyOn(nr uint32, arg uint32, values ...uint32) {
	body := []bpf.Instruction{low(arg)}
	for i, v := range values {
		body = append(body, bpf.JumpIf{Cond: bpf.JumpEqual, Val: v, SkipTrue: uint8(len(values) - i)})
	}
	f.on(nr, append(body, refuse, allow)...)
}

func low(arg uint32) bpf.Instruction  { return bpf.LoadAbsolute{Off: offArgs + 8*arg, Size: 4} }
func high(arg uint32) bpf.Instruction { return bpf.LoadAbsolute{Off: offArgs + 8*arg + 4, Size: 4} }

// vmmFilter is a VMM's; pid is its own, as it sees itself.
func vmmFilter(pid int) filter {
	f := newFilter()
	f.refuseAll(neverVMM)
	f.signalsOnly(pid)
	f.onlyOn(unix.SYS_PRLIMIT64, 0, 0, uint32(pid))
	f.on(unix.SYS_PRCTL, low(0), // keep the parent-death signal and the break where they are
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.PR_SET_PDEATHSIG, SkipTrue: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.PR_SET_MM, SkipTrue: 1}, allow, refuse)
	f.on(unix.SYS_EXECVE, high(0),
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: 0, SkipTrue: 2}, low(0),
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: execPage, SkipTrue: 1}, refuse, allow)
	// Nothing can come to lie below mapFloor, where execPage is: not by a
	// fixed or wished-for address, not by a stack that grows down into it.
	f.on(unix.SYS_MMAP, low(3),
		bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: unix.MAP_GROWSDOWN, SkipTrue: 7}, high(0),
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: 0, SkipTrue: 6}, low(0),
		bpf.JumpIf{Cond: bpf.JumpGreaterOrEqual, Val: mapFloor, SkipTrue: 4},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: 0, SkipTrue: 2}, low(3),
		bpf.JumpIf{Cond: bpf.JumpBitsNotSet, Val: unix.MAP_FIXED | unix.MAP_FIXED_NOREPLACE, SkipTrue: 1}, refuse, allow)
	f.on(unix.SYS_MREMAP, low(3),
		bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: unix.MREMAP_FIXED | unix.MREMAP_DONTUNMAP, SkipTrue: 1}, allow, refuse)
	return f
}

// selfFilter is that of a Go process of ours. It may still signal through
// process descriptors that it holds, to end the VMM that it started.
func selfFilter(pid int, families []uint32) filter {
	f := newFilter()
	f.refuseAll([]uint32{unix.SYS_EXECVE, unix.SYS_LISTEN}) // what is listened on is so already
	f.signalsOnly(pid)
	f.onlyOn(unix.SYS_SOCKET, 0, families...)
	return f
}

// signalsOnly lets a process signal itself alone.
func (f *filter) signalsOnly(pid int) {
	f.onlyOn(unix.SYS_KILL, 0, uint32(pid))
	f.onlyOn(unix.SYS_TGKILL, 0, uint32(pid))
}

// install puts the filter on this thread, or with SECCOMP_FILTER_FLAG_TSYNC on
// all of them. no_new_privs is set already.
func install(f filter, flags uintptr) error {
	raw, err := bpf.Assemble(append(f, allow))
	if err != nil {
		return fmt.Errorf("assemble seccomp filter: %w", err)
	}
	program := make([]unix.SockFilter, len(raw))
	for i, r := range raw {
		program[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	prog := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	_, _, e := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&prog)))
	runtime.KeepAlive(program)
	if e != 0 {
		return fmt.Errorf("install seccomp filter: %w", e)
	}
	return nil
}
