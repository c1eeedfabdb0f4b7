// Package accel finds out what executes guest code well on this machine. That
// /dev/kvm opens and makes VMs proves nothing: on some hosts it interprets
// guest kernels hundreds of times slower than emulation would. The probe runs
// a counted loop in ring 0 of a tiny guest against the clock.
//
// The main function is [Choose]. The package must not know VMMs or machines.
package accel

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"creel/internal/sandbox"
)

// StageArg is the first argument of a process that is the probe.
const StageArg = "accel-probe"

// childLimit is far beyond what the probe takes: a child that is still there
// hangs in the kernel.
const childLimit = 3 * time.Second

// verdict is the probe's answer.
type verdict struct {
	Usable bool   `json:"usable"`
	Reason string `json:"reason"`
}

// cached is a verdict in the cache file; it holds until the next boot.
type cached struct {
	BootID  string  `json:"bootId"`
	UID     int     `json:"uid"` // who may open /dev/kvm
	Verdict verdict `json:"verdict"`
}

// Choose settles what was wished for: kvm or tcg, with the reason for people.
// Auto takes KVM where it is usable; KVM where it is not is an error. The
// probe's answer is kept in cacheFile until the next boot; "" keeps none.
func Choose(ctx context.Context, want sandbox.Accel, cacheFile string) (sandbox.Accel, string, error) {
	if want == sandbox.AccelTCG {
		return want, "as asked", nil
	}
	v, err := ask(ctx, cacheFile)
	switch {
	case err != nil:
		return "", "", fmt.Errorf("probe KVM: %w", err)
	case v.Usable:
		return sandbox.AccelKVM, v.Reason, nil
	case want == sandbox.AccelKVM:
		return "", "", fmt.Errorf("KVM is not usable here: %s; use --accel=tcg, which emulates and is slower", v.Reason)
	}
	return sandbox.AccelTCG, "KVM is not usable here: " + v.Reason, nil
}

func ask(ctx context.Context, cacheFile string) (verdict, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return verdict{}, err
	}
	now := cached{BootID: strings.TrimSpace(string(boot)), UID: os.Geteuid()}
	if data, err := os.ReadFile(cacheFile); err == nil {
		var c cached
		// A cache that does not parse is as good as none.
		if json.Unmarshal(data, &c) == nil && c.BootID == now.BootID && c.UID == now.UID {
			return c.Verdict, nil
		}
	}
	if now.Verdict, err = runProbe(ctx); err != nil || cacheFile == "" {
		return now.Verdict, err
	}
	save(cacheFile, now) // where it cannot be kept it is asked for again
	return now.Verdict, nil
}

func save(path string, c cached) error {
	data, err := json.Marshal(c)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".accel-")
	if err != nil {
		return fmt.Errorf("keep the answer: %w", err)
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
		return fmt.Errorf("keep the answer: %w", err)
	}
	return nil
}

// runProbe runs the probe in a child, so that a kernel which hangs in it hangs
// nobody else.
func runProbe(ctx context.Context) (verdict, error) {
	ctx, cancel := context.WithTimeout(ctx, childLimit)
	defer cancel()
	var out bytes.Buffer
	child := exec.CommandContext(ctx, "/proc/self/exe", StageArg)
	child.Env = []string{} // it needs none
	child.Stdout = &out
	// A child that cannot even be killed is left behind.
	child.WaitDelay = time.Second
	err := child.Run()
	var v verdict
	if jsonErr := json.Unmarshal(out.Bytes(), &v); jsonErr == nil {
		return v, nil
	}
	if errors.Is(ctx.Err(), context.Canceled) {
		return v, ctx.Err()
	}
	return verdict{Reason: fmt.Sprintf("the probe did not end: %v", err)}, nil
}

// StageMain is the probe's process: main calls it where the first argument is
// [StageArg]. It does not return.
func StageMain() {
	v := verdict{Usable: true}
	perSecond, err := ring0(probeLimit)
	switch {
	case err != nil:
		v = verdict{Reason: err.Error()}
	case perSecond < minPerSecond:
		v = verdict{Reason: fmt.Sprintf("it runs %.1f million steps a second in ring 0, hardware some 1000 million", perSecond/1e6)}
	default:
		v.Reason = fmt.Sprintf("a guest ran %.0f million steps a second in ring 0", perSecond/1e6)
	}
	if err := json.NewEncoder(os.Stdout).Encode(v); err != nil {
		os.Exit(1)
	}
	os.Exit(0)
}
