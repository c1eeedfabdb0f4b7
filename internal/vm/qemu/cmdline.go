package qemu

import (
	"fmt"
	"math"
	"time"

	"golang.org/x/sys/unix"

	"creel/internal/sandbox"
)

// Cmdline is the guest kernel's command line for a machine that boots. Under
// emulation it holds the host's TSC frequency in kHz, of [TSCKHz]: the guest
// reads the host's counter and has no other clock to calibrate it by.
func Cmdline(accel sandbox.Accel, khz uint64) string {
	// Of Debian's security modules those that do something without a policy of
	// a distribution's: each further one is asked at every system call, and
	// where AppArmor is off SELinux takes its place. integrity has no hooks,
	// but the kernel panics without it. The task's processes are in a cgroup of
	// their own, where autogroups do nothing.
	//
	// reboot=t is a triple fault, the one way to reboot that works in a clone:
	// the kernel's usual way there ends in the firmware, which stands still.
	// What the console gets is errors, and why the kernel panicked.
	const common = "console=ttyS0 panic=-1 reboot=t quiet no_timer_check init_on_alloc=0 cryptomgr.notests audit=0 lsm=landlock,yama,integrity noautogroup"
	if accel != sandbox.AccelTCG {
		// Real speculation: a task may run code of others under other users, and
		// its kernel keeps them apart as well as any. What keeps guests apart
		// from each other and from the host are the host's own mitigations.
		return common + " mitigations=auto"
	}
	// The guest kernel's mitigations are instructions for a processor that is
	// not there: translated, they hold nothing back and only cost time. What
	// translated code may speculate about is the host's to mitigate.
	//
	// tsc=reliable besides the CPU's ARAT makes an idle guest tickless. Each setting of a
	// timer wakes the VMM's main loop: with timers at the tick's resolution
	// (4 ms), and grace periods that do not wait for one, a run of /bin/true
	// takes an eighth less. Code that runs at every switch of tasks (psi) or
	// only because time has passed (the agent's GODEBUG) has to be translated
	// anew in every clone.
	return fmt.Sprintf("%s mitigations=off highres=off rcupdate.rcu_expedited=1 psi=0 tsc_early_khz=%d tsc=reliable GODEBUG=asyncpreemptoff=1", common, khz)
}

// rdtsc reads the time stamp counter.
func rdtsc() uint64

// TSCKHz measures the counter against CLOCK_MONOTONIC_RAW for 20 ms. It comes
// out differently by a few parts per million from call to call.
func TSCKHz() (uint64, error) {
	start, err := readClocks()
	if err != nil {
		return 0, err
	}
	for {
		end, err := readClocks()
		if err != nil {
			return 0, err
		}
		if elapsed := end.nanos - start.nanos; elapsed >= (20 * time.Millisecond).Nanoseconds() {
			khz := math.Round(float64(end.ticks-start.ticks) * 1e6 / float64(elapsed))
			if khz < 1e5 || khz > 1e8 {
				return 0, fmt.Errorf("measure TSC: %g kHz is no frequency of a processor", khz)
			}
			return uint64(khz), nil
		}
	}
}

type clocks struct {
	ticks uint64
	nanos int64
}

// readClocks reads both at the same moment: of eight pairs the one that took
// the fewest ticks, so that being preempted between the two does not matter.
func readClocks() (best clocks, err error) {
	shortest := uint64(math.MaxUint64)
	for range 8 {
		var ts unix.Timespec
		before := rdtsc()
		if err := unix.ClockGettime(unix.CLOCK_MONOTONIC_RAW, &ts); err != nil {
			return best, fmt.Errorf("read clock: %w", err)
		}
		if took := rdtsc() - before; took < shortest {
			shortest, best = took, clocks{before + took/2, ts.Nano()}
		}
	}
	return best, nil
}
