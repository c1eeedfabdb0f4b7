package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// rows is the table. The names are what `-run` selects by.
func rows(r *rig) []row {
	all := []row{
		{name: "ready, holder warm", unit: "ms", maxRatio: 1.0 / 8, setup: r.cloneWarm},
		{name: "ready, holder cold", unit: "ms", setup: r.cloneCold},
		{name: "run true, whole process", unit: "ms", maxRatio: 0.8, setup: r.runTrue},
		{name: "run true, a VM waits", unit: "ms", maxRatio: 0.8, setup: r.runWaited},
	}
	for _, p := range phases {
		all = append(all, r.phase(p))
	}
	all = append(all,
		row{name: "30 clones: all up", unit: "s", maxA: 8, few: fleets, setup: r.fleetUp},
		row{name: "30 clones: memory of each", unit: "MiB", maxA: 60, few: fleets, setup: r.fleetMemory},
		row{name: "image conversion", unit: "MB/s", setup: r.convert},
		row{name: "stdout of a task", unit: "MB/s", setup: r.stream},
		row{name: "exec true, whole process", unit: "ms", setup: r.exec},
	)
	all = append(all, r.networkRows()...)
	all = append(all, r.recordRows()...)
	return append(all, decisions()...)
}

// runTrue compares a disposable VM with a container, from the start of the
// client to its end.
func (r *rig) runTrue(ctx context.Context) (a, b side, err error) {
	if err := r.image(ctx); err != nil {
		return a, b, err
	}
	a = side{"creel run", func(ctx context.Context) (float64, error) {
		return timed(r.creelIn(ctx, r.state, "run", imageName, "true"))
	}}
	d, err := r.docker(ctx)
	if err != nil {
		return a, b, err
	}
	b = side{"docker run --rm, runc", func(ctx context.Context) (float64, error) {
		return timed(d.Command(ctx, "run", "--rm", imageName, "true"))
	}}
	return a, b, nil
}

// runWaited is runTrue where a VM waits for the task, as the setting standby
// has it. Each side is timed while one waits, and nothing else is under way.
func (r *rig) runWaited(ctx context.Context) (a, b side, err error) {
	if a, b, err = r.runTrue(ctx); a.sample == nil {
		return a, b, err
	}
	run := func(ctx context.Context) *exec.Cmd {
		cmd := r.creelIn(ctx, r.state, "run", imageName, "true")
		cmd.Env = append(cmd.Env, "CREEL_STANDBY=1")
		return cmd
	}
	if err := done(run(ctx)); err != nil { // which leaves the first that waits
		return a, b, err
	}
	calm := func(take sample) sample {
		return func(ctx context.Context) (float64, error) {
			if err := r.awaitStandby(ctx); err != nil {
				return 0, err
			}
			return take(ctx)
		}
	}
	a.sample = calm(func(ctx context.Context) (float64, error) { return timed(run(ctx)) })
	if b.sample != nil {
		b.sample = calm(b.sample)
	}
	return a, b, err
}

// prepares is more than a VM takes that waits, from its socket's appearance,
// until it has done all that it can before it is wanted.
const prepares = time.Second

func (r *rig) awaitStandby(ctx context.Context) error {
	for ctx.Err() == nil {
		found, err := filepath.Glob(filepath.Join(r.state, "standby", "*", "keeper.sock"))
		if err != nil {
			return err
		}
		if len(found) > 0 {
			time.Sleep(prepares)
			return nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return ctx.Err()
}

// convert takes one `docker save` archive in, each time into a store that does
// not have it. Only the taking in is timed.
func (r *rig) convert(ctx context.Context) (a, b side, err error) {
	d, err := r.docker(ctx)
	if err != nil {
		return a, b, err
	}
	archive, size, err := r.saved(ctx, d)
	if err != nil {
		return a, b, err
	}
	rate := func(ms float64) float64 { return float64(size) / 1e6 / (ms / 1000) }
	a = side{"creel image load", func(ctx context.Context) (float64, error) {
		state, err := os.MkdirTemp("", "creel-bench-")
		if err != nil {
			return 0, err
		}
		defer os.RemoveAll(state)
		ms, err := timed(r.creelIn(ctx, state, "image", "load", "-i", archive))
		return rate(ms), err
	}}
	b = side{"docker load", func(ctx context.Context) (float64, error) {
		if err := done(d.Command(ctx, "rmi", "-f", imageName)); err != nil {
			return 0, err
		}
		ms, err := timed(d.Command(ctx, "load", "-i", archive))
		return rate(ms), err
	}}
	return a, b, nil
}

const streamBytes = 16 << 20

// stream is how fast a task's output arrives, from its first byte to its last.
func (r *rig) stream(ctx context.Context) (a, b side, err error) {
	if err := r.image(ctx); err != nil {
		return a, b, err
	}
	task := []string{imageName, "head", "-c", fmt.Sprint(streamBytes), "/dev/zero"}
	a = side{"creel run", func(ctx context.Context) (float64, error) {
		return drained(r.creelIn(ctx, r.state, append([]string{"run"}, task...)...))
	}}
	d, err := r.docker(ctx)
	if err != nil {
		return a, b, err
	}
	b = side{"docker run --rm", func(ctx context.Context) (float64, error) {
		return drained(d.Command(ctx, append([]string{"run", "--rm"}, task...)...))
	}}
	return a, b, nil
}

// drained is the MB/s of a command's output.
func drained(cmd *exec.Cmd) (float64, error) {
	var complaint strings.Builder
	cmd.Stderr = &complaint
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	_, first := io.ReadFull(out, make([]byte, 1))
	began := time.Now()
	n, rest := io.Copy(io.Discard, out)
	took := time.Since(began)
	if err := errors.Join(first, rest, cmd.Wait()); err != nil {
		return 0, fmt.Errorf("%s: %w: %s", cmd.Args, err, strings.TrimSpace(complaint.String()))
	}
	if n+1 != streamBytes {
		return 0, fmt.Errorf("%s: %d bytes came, want %d", cmd.Args, n+1, streamBytes)
	}
	return float64(n) / 1e6 / took.Seconds(), nil
}

// exec compares one more process in what already runs.
func (r *rig) exec(ctx context.Context) (a, b side, err error) {
	if err := r.image(ctx); err != nil {
		return a, b, err
	}
	const name = "bench-exec"
	start := []string{"run", "-d", "--name", name, imageName, "sleep", "infinity"}
	if err := done(r.creelIn(ctx, r.state, start...)); err != nil {
		return a, b, err
	}
	a = side{"creel exec", func(ctx context.Context) (float64, error) {
		return timed(r.creelIn(ctx, r.state, "exec", name, "true"))
	}}
	d, err := r.docker(ctx)
	if err != nil {
		return a, b, err
	}
	if err := done(d.Command(ctx, start...)); err != nil {
		return a, b, err
	}
	// By the daemon: its control group is busy for a while where it is killed.
	r.ends.Push("container", func() error {
		return done(d.Command(context.WithoutCancel(ctx), "rm", "-f", name))
	})
	b = side{"docker exec", func(ctx context.Context) (float64, error) {
		return timed(d.Command(ctx, "exec", name, "true"))
	}}
	return a, b, nil
}
