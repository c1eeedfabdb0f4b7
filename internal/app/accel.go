package app

import (
	"context"
	"path/filepath"

	"creel/internal/confine"
	"creel/internal/kernel"
	"creel/internal/sandbox"
	"creel/internal/template"
	"creel/internal/vm/accel"
	"creel/internal/vm/qemu"
)

// accelHost is what is known of the accelerators for a state directory.
func accelHost(state string) accel.Host {
	return accel.Host{File: filepath.Join(state, "accel.json"), Confinement: ownUser}
}

// accelerators chooses for the guest kernel of a state directory.
type accelerators struct{ state string }

// Choose implements [engine.Accelerators].
func (a accelerators) Choose(ctx context.Context, want sandbox.Accel, level sandbox.Confinement) (accel.Choice, error) {
	w := accel.Wish{Accel: want, Level: level}
	// Without a kernel the host is judged alone; who needs one says so.
	if k, err := kernel.Latest(kernelDir(a.state)); err == nil {
		w.Kernel = k.VMLinux.SHA256
	}
	return accelHost(a.state).Choose(ctx, w)
}

// Learn implements [engine.Accelerators].
func (a accelerators) Learn(ctx context.Context, c accel.Choice, failure error) error {
	return accelHost(a.state).Learn(ctx, c, failure)
}

// possibleLevel is the level at which to look at a machine that may not allow
// the one that is configured. Whether it does is a finding of its own.
func possibleLevel(level sandbox.Confinement) sandbox.Confinement {
	if confine.Available() != nil {
		return sandbox.ConfinementReduced
	}
	return level
}

// bootOf is how the VMM boots what a request asks for.
func bootOf(ctx context.Context, state string, req template.Request) (template.Boot, error) {
	b := template.Boot{Devices: qemu.MachineID(req.Shape, req.Accel, template.Disks(nil, nil))}
	var host accel.Features
	var err error
	if req.Accel == sandbox.AccelKVM {
		if host, err = accelHost(state).Features(ctx, req.Confinement); err != nil {
			return b, err
		}
	}
	b.CPU, b.HostCPU = qemu.CPU(req.Accel, host.RefusesArchCapabilities), host.CPUID
	b.Cmdline, err = bootCmdline(state, req.Accel)
	return b, err
}
