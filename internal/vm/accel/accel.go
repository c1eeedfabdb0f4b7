// Package accel finds out what executes guest code well on this machine. That
// /dev/kvm opens and makes VMs proves nothing: on some hosts it interprets
// guest kernels hundreds of times slower than emulation would. The probe runs
// a counted loop in ring 0 of a tiny guest against the clock, confined as a VMM
// is, so that it may open what a VMM may open. Whether a guest kernel boots has
// the last word: who saw that tells [Host.Learn].
//
// The main type is [Host]. The package must not know VMMs, machines or images.
package accel

import (
	"cmp"
	"context"
	"fmt"
	"os"

	"creel/internal/sandbox"
	"creel/internal/vm"

	"golang.org/x/sys/unix"
)

const device = "/dev/kvm"

// Host is what is known of this machine, in one state directory.
type Host struct {
	// File keeps what was found out until the next boot; "" keeps nothing.
	File string
	// Confinement is that of a VMM. Dir is empty, and goes away with the probe.
	Confinement func(level sandbox.Confinement, dir string) vm.Confinement

	device string // "": /dev/kvm; another in tests of what is remembered
}

// Wish is what somebody wants to run.
type Wish struct {
	Accel  sandbox.Accel
	Level  sandbox.Confinement // of the VMM
	Kernel string              // digest of the guest kernel; "": none is known yet
}

// Choice is what executes guest code.
type Choice struct {
	Accel  sandbox.Accel // kvm or tcg
	Reason string        // for people
	// Doubt is why KVM, which was insisted on, may not do; mostly empty.
	Doubt string
	// Advice is what makes KVM usable, where it is not.
	Advice string

	wish Wish
}

// Features are what KVM gives its guests here.
type Features struct {
	// CPUID is a digest of what guests can be told of their CPU. A frozen guest
	// goes on only where it is the same.
	CPUID string `json:"cpuid"`
	// RefusesArchCapabilities says that KVM offers IA32_ARCH_CAPABILITIES and
	// then refuses to set it: a guest has to go without.
	RefusesArchCapabilities bool `json:"refusesArchCapabilities,omitempty"`
}

// Choose settles what was wished for. Auto takes KVM where the guest kernel has
// come up under it or the probe found it usable, else emulation. KVM that was
// asked for is had wherever it opens; whether it does is for the boot to show,
// and Doubt says what speaks against it.
func (h Host) Choose(ctx context.Context, w Wish) (Choice, error) {
	c := Choice{Accel: sandbox.AccelTCG, Reason: "as asked", wish: w}
	if w.Accel == sandbox.AccelTCG {
		return c, nil
	}
	f, err := h.ask(ctx, w.Level)
	if err != nil {
		return Choice{}, fmt.Errorf("probe KVM: %w", err)
	}
	if !f.Verdict.Opens && w.Accel == sandbox.AccelKVM {
		return Choice{}, fmt.Errorf("KVM is not usable here: %s; %s, or use --accel=tcg, which emulates and is slower", f.Verdict.Reason, f.Verdict.Advice)
	}
	usable, reason := f.Verdict.Usable, f.Verdict.Reason
	c.Advice = f.Verdict.Advice
	if seen, ok := f.Kernels[w.Kernel]; ok && w.Kernel != "" && f.Verdict.Opens {
		usable, reason = seen.CameUp, seen.Reason
		c.Advice = "`creel template build --accel kvm IMAGE` tries it again; or import another guest kernel"
	}
	switch {
	case usable:
		c.Accel, c.Reason, c.Advice = sandbox.AccelKVM, reason, ""
	case w.Accel == sandbox.AccelKVM:
		c.Accel, c.Reason, c.Doubt = sandbox.AccelKVM, "as asked", reason
	default:
		c.Reason = "KVM is not usable here: " + reason
	}
	return c, nil
}

// Learn remembers until the next boot whether a template of the choice's guest
// kernel came up under KVM. It outweighs the probe. Nil is that it did.
func (h Host) Learn(ctx context.Context, c Choice, failure error) error {
	if h.File == "" || c.wish.Kernel == "" {
		return nil
	}
	f, err := h.ask(ctx, c.wish.Level)
	if err != nil {
		return fmt.Errorf("probe KVM: %w", err)
	}
	s := sighting{CameUp: failure == nil, Reason: "a template of this guest kernel came up under it"}
	if failure != nil {
		s.Reason = fmt.Sprintf("a template of this guest kernel did not come up under it, but under emulation it did: %.300s", failure)
	}
	return h.keepSighting(f.Key, c.wish.Kernel, s)
}

// Features are what the probe has seen at a level. Where /dev/kvm does not open
// they are an error.
func (h Host) Features(ctx context.Context, level sandbox.Confinement) (Features, error) {
	f, err := h.ask(ctx, level)
	if err == nil && !f.Verdict.Opens {
		err = fmt.Errorf("%s; %s", f.Verdict.Reason, f.Verdict.Advice)
	}
	if err != nil {
		return Features{}, fmt.Errorf("ask KVM for its CPU: %w", err)
	}
	return f.Verdict.Features, nil
}

// ask is what is known at a level, from the file or by probing.
func (h Host) ask(ctx context.Context, level sandbox.Confinement) (finding, error) {
	// An ordinary user's VMM may open what the user may: that is quickly asked,
	// and asked every time, since access may have been given since.
	path := cmp.Or(h.device, device)
	if err := canOpen(path); err != nil {
		return finding{Verdict: closed(path, err)}, nil
	}
	key, err := keyOf(path, level)
	if err != nil {
		return finding{}, err
	}
	if f, ok := h.find(key); ok {
		return f, nil
	}
	f := finding{Key: key}
	if f.Verdict, err = h.probe(ctx, level); err != nil {
		return f, err
	}
	if !f.Verdict.Measured {
		return f, nil
	}
	return f, h.keep(f)
}

func canOpen(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return f.Close()
}

// closed is the verdict where the device does not open for this process.
func closed(path string, err error) verdict {
	v := verdict{Reason: err.Error()}
	var st unix.Stat_t
	if statErr := unix.Stat(path, &st); statErr != nil {
		v.Advice = "use a machine with KVM (as root: modprobe kvm_intel or kvm_amd)"
		return v
	}
	v.Reason = fmt.Sprintf("user %d may not open %s (owner %d, group %d, mode %04o): %v", os.Geteuid(), path, st.Uid, st.Gid, st.Mode&0o7777, err)
	if st.Gid != 0 && st.Mode&0o060 == 0o060 {
		v.Advice = fmt.Sprintf("join the group that may (as root: usermod -aG %d NAME) and log in again", st.Gid)
	} else {
		v.Advice = "give it to a group (as root: chgrp kvm /dev/kvm; chmod 660 /dev/kvm), and be in it unless you are root"
	}
	return v
}
