package accel

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// Linux, include/uapi/linux/kvm.h
	kvmGetSupportedCPUID = 0xc008ae05
	kvmGetMSRs           = 0xc008ae88
	kvmSetMSRs           = 0x4008ae89
	kvmSetCPUID2         = 0x4008ae90
	kvmMaxCPUID          = 256

	msrArchCapabilities = 0x10a
	leafFeatures        = 7
	bitArchCapabilities = 29 // of EDX there
)

// cpuidEntry is struct kvm_cpuid_entry2.
type cpuidEntry struct {
	Function, Index, Flags uint32
	EAX, EBX, ECX, EDX     uint32
	_                      [3]uint32
}

// cpuidTable is struct kvm_cpuid2.
type cpuidTable struct {
	Count, _ uint32
	Entries  [kvmMaxCPUID]cpuidEntry
}

// oneMSR is struct kvm_msrs with one entry.
type oneMSR struct {
	Count, _ uint32
	Index, _ uint32
	Data     uint64
}

// features asks KVM what it gives guests, and tries what it says.
func features(kvm int) (Features, error) {
	table := cpuidTable{Count: kvmMaxCPUID}
	if _, err := ioctl(kvm, kvmGetSupportedCPUID, uintptr(unsafe.Pointer(&table))); err != nil {
		return Features{}, fmt.Errorf("ask KVM for its CPUID: %w", err)
	}
	entries := table.Entries[:table.Count]
	f := Features{CPUID: digestCPUID(entries)}
	i := slices.IndexFunc(entries, func(e cpuidEntry) bool { return e.Function == leafFeatures && e.Index == 0 })
	if i < 0 || entries[i].EDX>>bitArchCapabilities&1 == 0 {
		return f, nil
	}
	refused, err := refusesArchCapabilities(kvm, &table)
	f.RefusesArchCapabilities = refused
	return f, err
}

// refusesArchCapabilities sets the MSR as a VMM does: on a CPU with all that KVM
// offers, to the value that KVM offers.
func refusesArchCapabilities(kvm int, table *cpuidTable) (bool, error) {
	msr := oneMSR{Count: 1, Index: msrArchCapabilities}
	if n, err := ioctl(kvm, kvmGetMSRs, uintptr(unsafe.Pointer(&msr))); err != nil || n != 1 {
		return false, nil // no value is offered, and a VMM sets none
	}
	vm, err := ioctl(kvm, kvmCreateVM, 0)
	if err != nil {
		return false, fmt.Errorf("create VM: %w", err)
	}
	defer unix.Close(vm)
	vcpu, err := ioctl(vm, kvmCreateVCPU, 0)
	if err != nil {
		return false, fmt.Errorf("create CPU: %w", err)
	}
	defer unix.Close(vcpu)
	if _, err := ioctl(vcpu, kvmSetCPUID2, uintptr(unsafe.Pointer(table))); err != nil {
		return false, fmt.Errorf("set the CPUID that KVM offers: %w", err)
	}
	n, err := ioctl(vcpu, kvmSetMSRs, uintptr(unsafe.Pointer(&msr)))
	return err != nil || n != 1, nil
}

// digestCPUID is the same on every CPU of a machine: what tells one CPU from
// its neighbours, and how many there are, is left out. A VMM replaces it.
func digestCPUID(entries []cpuidEntry) string {
	entries = slices.Clone(entries)
	slices.SortFunc(entries, func(a, b cpuidEntry) int {
		return cmp.Or(cmp.Compare(a.Function, b.Function), cmp.Compare(a.Index, b.Index))
	})
	h := sha256.New()
	for _, e := range entries {
		switch e.Function {
		case 4, 0xb, 0x1a, 0x1f, 0x8000001d, 0x8000001e, 0x80000026: // caches shared by whom, APIC ids, kind of core
			continue
		case 1:
			e.EBX &= 0xff00 // APIC id and number of CPUs
		case 0x80000008:
			e.ECX = 0 // number of cores
		}
		fmt.Fprintf(h, "%08x.%x %08x %08x %08x %08x\n", e.Function, e.Index, e.EAX, e.EBX, e.ECX, e.EDX)
	}
	return "sha256:" + hex.EncodeToString(h.Sum(nil))
}
