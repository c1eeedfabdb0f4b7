package accel

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"creel/internal/confine"
	"creel/internal/sandbox"
)

// StageArg is the first argument of a process that is the probe.
const StageArg = "accel-probe"

const (
	// probeDeadline is far beyond what the probe takes: a child that is still
	// there hangs in the kernel.
	probeDeadline = 3 * time.Second
	maxAnswer     = 16 << 10
)

// probe runs the probe as a VMM would run: its user and groups, its view of
// /dev. A kernel that hangs in it hangs nobody else.
func (h Host) probe(ctx context.Context, level sandbox.Confinement) (verdict, error) {
	dir, err := os.MkdirTemp("", "creel-accel-")
	if err != nil {
		return verdict{}, fmt.Errorf("make directory: %w", err)
	}
	defer os.Remove(dir)
	r, w, err := os.Pipe()
	if err != nil {
		return verdict{}, fmt.Errorf("make pipe: %w", err)
	}
	defer r.Close()
	self, err := executable(level)
	if err != nil {
		return verdict{}, err
	}
	c := h.Confinement(level, dir)
	child, err := confine.Start(confine.VMM{
		Path: self, Args: []string{StageArg}, Stderr: w,
		Level: level, UID: c.UID, GID: c.GID, Dir: dir, KVM: true,
	})
	w.Close()
	if err != nil {
		return verdict{}, err
	}
	late := h.wait(ctx, child)
	if late != nil && ctx.Err() != nil {
		return verdict{}, ctx.Err()
	}
	var v verdict
	if late == nil {
		answer, err := io.ReadAll(io.LimitReader(r, maxAnswer))
		if late = json.Unmarshal(answer, &v); late == nil {
			return v, nil
		}
		late = fmt.Errorf("%v, after %.200q: %w", child.State(), answer, errors.Join(late, err))
	}
	return verdict{Measured: true, Reason: fmt.Sprintf("the probe did not end: %v", late), Advice: adviceHardware}, nil
}

// executable is this program, by a name that a VMM of the level can use: at the
// full level the file is shown to it, which a link in /proc cannot be; at the
// reduced one its user may not come by the directory.
func executable(level sandbox.Confinement) (string, error) {
	if level == sandbox.ConfinementFull {
		return os.Executable()
	}
	return "/proc/self/exe", nil
}

// wait waits for the child's end, and ends it where that takes too long. One
// that cannot even be killed is left behind.
func (Host) wait(ctx context.Context, child *confine.Process) error {
	timer := time.NewTimer(probeDeadline)
	defer timer.Stop()
	select {
	case <-child.Done():
		return nil
	case <-ctx.Done():
	case <-timer.C:
	}
	killed := make(chan error, 1)
	go func() { killed <- child.Kill() }()
	timer.Reset(time.Second)
	select {
	case err := <-killed:
		return errors.Join(fmt.Errorf("killed after %s", probeDeadline), err)
	case <-timer.C:
		return errors.New("it hangs in the kernel")
	}
}

const adviceHardware = "use a machine that runs guests in hardware, or give a guest kernel that boots under this KVM and insist with --accel kvm"

// StageMain is the probe's process: main calls it where the first argument is
// [StageArg]. It does not return.
func StageMain() {
	if err := json.NewEncoder(os.Stdout).Encode(look()); err != nil {
		os.Exit(1)
	}
	os.Exit(0)
}

func look() verdict {
	kvm, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		return closed(device, err)
	}
	defer kvm.Close()
	v := verdict{Advice: adviceHardware}
	if v.Features, err = features(int(kvm.Fd())); err != nil {
		v.Reason = err.Error()
		return v
	}
	v.Opens = true
	perSecond, err := ring0(int(kvm.Fd()), probeLimit)
	v.Measured = err == nil || errors.Is(err, errSlow)
	switch {
	case err != nil:
		v.Reason = err.Error()
	case perSecond < minPerSecond:
		v.Reason = fmt.Sprintf("it runs %.1f million steps a second in ring 0, hardware some 1000 million", perSecond/1e6)
	default:
		v.Usable, v.Advice = true, ""
		v.Reason = fmt.Sprintf("a guest ran %.0f million steps a second in ring 0", perSecond/1e6)
	}
	return v
}
