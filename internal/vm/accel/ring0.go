package accel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	probeLimit   = 100 * time.Millisecond
	steps        = 2_000_000
	minPerSecond = 2e7

	guestMemory = 2 << 20

	// Linux, include/uapi/linux/kvm.h
	kvmGetAPIVersion       = 0xae00
	kvmCreateVM            = 0xae01
	kvmGetVCPUMmapSize     = 0xae04
	kvmCreateVCPU          = 0xae41
	kvmSetUserMemoryRegion = 0x4020ae46
	kvmRun                 = 0xae80
	kvmSetRegs             = 0x4090ae82
	kvmGetSregs            = 0x8138ae83
	kvmSetSregs            = 0x4138ae84
	kvmAPIVersion          = 12
	kvmExitIO              = 2

	offImmediateExit = 1
	offExitReason    = 8
)

// Where things are in the guest's memory.
const (
	codeAt = 0x2000
	pml4At = 0x3000
	pdptAt = 0x4000
	pdAt   = 0x5000
)

type memoryRegion struct {
	Slot, Flags    uint32
	GuestPhys      uint64
	Size, UserAddr uint64
}

type regs struct {
	RAX, RBX, RCX, RDX, RSI, RDI, RSP, RBP         uint64
	R8, R9, R10, R11, R12, R13, R14, R15, RIP, FLG uint64
}

type segment struct {
	Base                         uint64
	Limit                        uint32
	Selector                     uint16
	Type, Present, DPL, DB, S, L uint8
	G, AVL, Unusable, _          uint8
}

type table struct {
	Base  uint64
	Limit uint16
	_     [3]uint16
}

type sregs struct {
	CS, DS, ES, FS, GS, SS, TR, LDT     segment
	GDT, IDT                            table
	CR0, CR2, CR3, CR4, CR8, EFER, APIC uint64
	Interrupts                          [4]uint64
}

var errSlow = errors.New("this KVM emulates or is stuck")

// ring0 runs the loop and returns its steps a second. A loop that is not done
// within limit is stopped, and that is an error.
func ring0(kvm int, limit time.Duration) (float64, error) {
	vcpu, run, unmap, err := newGuest(kvm)
	if err != nil {
		return 0, err
	}
	defer unmap()

	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	pid, tid := unix.Getpid(), unix.Gettid()
	// Both what the next entry looks at and what interrupts this one.
	timer := time.AfterFunc(limit, func() {
		run[offImmediateExit] = 1
		unix.Tgkill(pid, tid, unix.SIGURG)
	})
	defer timer.Stop()
	begin := time.Now()
	for {
		_, err = ioctl(vcpu, kvmRun, 0)
		if !errors.Is(err, unix.EINTR) || time.Since(begin) >= limit {
			break
		}
	}
	elapsed := time.Since(begin)
	if errors.Is(err, unix.EINTR) {
		return 0, fmt.Errorf("a loop of %d steps in ring 0 was not done after %s: %w", steps, elapsed.Round(time.Millisecond), errSlow)
	}
	if err != nil {
		return 0, fmt.Errorf("run guest: %w", err)
	}
	if reason := binary.LittleEndian.Uint32(run[offExitReason:]); reason != kvmExitIO {
		return 0, fmt.Errorf("the guest left with reason %d, not by its last instruction", reason)
	}
	return steps / elapsed.Seconds(), nil
}

// newGuest makes a guest of one CPU in long mode, at the first instruction.
func newGuest(kvm int) (vcpu int, run []byte, unmap func(), err error) {
	if v, err := ioctl(kvm, kvmGetAPIVersion, 0); err != nil || v != kvmAPIVersion {
		return 0, nil, nil, fmt.Errorf("KVM has API version %d, %v; want %d", v, err, kvmAPIVersion)
	}
	vm, err := ioctl(kvm, kvmCreateVM, 0)
	if err != nil {
		return 0, nil, nil, fmt.Errorf("create VM: %w", err)
	}
	memory, err := unix.Mmap(-1, 0, guestMemory, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return 0, nil, nil, fmt.Errorf("map guest memory: %w", err)
	}
	fill(memory)
	region := memoryRegion{Size: guestMemory, UserAddr: uint64(uintptr(unsafe.Pointer(&memory[0])))}
	if _, err := ioctl(vm, kvmSetUserMemoryRegion, uintptr(unsafe.Pointer(&region))); err != nil {
		return 0, nil, nil, fmt.Errorf("give guest memory: %w", err)
	}
	if vcpu, err = ioctl(vm, kvmCreateVCPU, 0); err != nil {
		return 0, nil, nil, fmt.Errorf("create CPU: %w", err)
	}
	size, err := ioctl(kvm, kvmGetVCPUMmapSize, 0)
	if err != nil {
		return 0, nil, nil, fmt.Errorf("size CPU state: %w", err)
	}
	if run, err = unix.Mmap(vcpu, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return 0, nil, nil, fmt.Errorf("map CPU state: %w", err)
	}
	unmap = func() { // the process ends soon, but its descriptors and maps are ours
		unix.Munmap(run)
		unix.Close(vcpu)
		unix.Close(vm)
		unix.Munmap(memory)
	}
	if err := setRegisters(vcpu); err != nil {
		unmap()
		return 0, nil, nil, err
	}
	return vcpu, run, unmap, nil
}

// fill writes the program and the page tables that map it to itself.
func fill(memory []byte) {
	code := []byte{
		0x48, 0xb9, 0, 0, 0, 0, 0, 0, 0, 0, // mov rcx, steps
		0x48, 0xff, 0xc9, 0x75, 0xfb, // 1: dec rcx; jnz 1b
		0xb0, 0x2b, 0xe6, 0x10, 0xf4, // mov al, 0x2b; out 0x10, al; hlt
	}
	binary.LittleEndian.PutUint64(code[2:], steps)
	copy(memory[codeAt:], code)
	binary.LittleEndian.PutUint64(memory[pml4At:], pdptAt|3)
	binary.LittleEndian.PutUint64(memory[pdptAt:], pdAt|3)
	binary.LittleEndian.PutUint64(memory[pdAt:], 0x83) // one page of 2 MiB
}

func setRegisters(vcpu int) error {
	var s sregs
	if _, err := ioctl(vcpu, kvmGetSregs, uintptr(unsafe.Pointer(&s))); err != nil {
		return fmt.Errorf("read registers: %w", err)
	}
	s.CR0, s.CR3, s.CR4, s.EFER = 0x80050033, pml4At, 0x20, 0x500
	s.CS = segment{Limit: 0xffffffff, Selector: 8, Type: 11, Present: 1, S: 1, L: 1, G: 1}
	data := segment{Limit: 0xffffffff, Selector: 16, Type: 3, Present: 1, S: 1, DB: 1, G: 1}
	s.DS, s.ES, s.FS, s.GS, s.SS = data, data, data, data, data
	if _, err := ioctl(vcpu, kvmSetSregs, uintptr(unsafe.Pointer(&s))); err != nil {
		return fmt.Errorf("set registers: %w", err)
	}
	r := regs{RIP: codeAt, FLG: 2}
	if _, err := ioctl(vcpu, kvmSetRegs, uintptr(unsafe.Pointer(&r))); err != nil {
		return fmt.Errorf("set registers: %w", err)
	}
	return nil
}

func ioctl(fd int, request, argument uintptr) (int, error) {
	n, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, argument)
	if e != 0 {
		return -1, e
	}
	return int(n), nil
}
