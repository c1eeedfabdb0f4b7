package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"creel/internal/template"
	"creel/internal/undo"
	"creel/test/bench/docker"
	"creel/test/bench/network"
	"creel/test/images"
)

// imageName is what both sides call the image that they run.
const imageName = network.ImageName

// rig holds what rows share. Each part is made when a row first asks for it.
type rig struct {
	creel    string // absolute path
	state    string // creel's state directory, of this bench alone
	unpacked string // Debian's docker.io
	disk     string // a directory on a real disk: a sync costs nothing in $TMPDIR where that is memory
	peers    string // Debian's passt and mitmproxy
	ends     undo.Stack

	templates *template.Store // nil until image was called
	manifest  template.Manifest

	runs, fleets series

	daemon  *docker.Daemon
	lack    error  // why there is no daemon
	archive string // a `docker save` archive of the image
}

func newRig(creel, unpacked, peers string) (*rig, error) {
	r := &rig{disk: "build"}
	r.runs.take, r.fleets.take = r.runInPhases, r.fleet
	var err error
	if r.creel, err = filepath.Abs(creel); err != nil {
		return nil, err
	}
	if r.unpacked, err = filepath.Abs(unpacked); err != nil {
		return nil, err
	}
	if r.peers, err = filepath.Abs(peers); err != nil {
		return nil, err
	}
	if _, err := os.Stat(r.creel); err != nil {
		return nil, fmt.Errorf("find creel: %w; run make build", err)
	}
	if r.state, err = os.MkdirTemp("", "creel-bench-"); err != nil {
		return nil, fmt.Errorf("make state directory: %w", err)
	}
	r.ends.Push("state directory", func() error { return os.RemoveAll(r.state) })
	r.ends.Push("holders", r.endHolders)
	r.ends.Push("sandboxes", r.removeSandboxes)
	return r, nil
}

// Close ends and removes whatever the rows left running.
func (r *rig) Close() error { return r.ends.Unwind() }

// creelIn is one command of creel on a state directory. A cancelled ctx asks it
// to end, so that it can clean up after itself.
func (r *rig) creelIn(ctx context.Context, state string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, r.creel, args...)
	cmd.Env = append(os.Environ(), "CREEL_STATE_DIR="+state)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	return cmd
}

// image takes the Debian image in and builds its template.
func (r *rig) image(ctx context.Context) error {
	if r.templates != nil {
		return nil
	}
	tar, err := images.Debian(ctx)
	if err != nil {
		return err
	}
	for _, args := range [][]string{{"kernel", "fetch"}, {"image", "import", tar, imageName}, {"template", "build", imageName}} {
		if err := done(r.creelIn(ctx, r.state, args...)); err != nil {
			return err
		}
	}
	return r.openTemplates(ctx)
}

// openTemplates opens Creel's store for the bench's own clones. Only Creel
// builds in it, and its holders are Creel's.
func (r *rig) openTemplates(ctx context.Context) error {
	store, err := template.Open(template.Options{
		Dir: filepath.Join(r.state, "templates"), RuntimeDir: filepath.Join(r.state, "holders"),
		Holder: []string{r.creel, "holder"},
	})
	if err != nil {
		return err
	}
	all, err := store.List(ctx)
	if err != nil {
		return err
	}
	if len(all) != 1 {
		return fmt.Errorf("creel has %d templates after building one", len(all))
	}
	r.templates, r.manifest = store, all[0]
	return nil
}

// docker starts the daemon and gives it the same image. Its error is [absent]
// where there is no docker to compare with.
func (r *rig) docker(ctx context.Context) (*docker.Daemon, error) {
	if r.daemon != nil || r.lack != nil {
		return r.daemon, r.lack
	}
	d, err := docker.Start(ctx, r.unpacked)
	if err != nil {
		if lack, ok := errors.AsType[docker.Absent](err); ok {
			err = absent{string(lack)}
		}
		r.lack = err
		return nil, err
	}
	r.ends.Push("dockerd", d.Close)
	tar, err := images.Debian(ctx)
	if err != nil {
		return nil, err
	}
	if err := done(d.Command(ctx, "import", tar, imageName)); err != nil {
		return nil, err
	}
	r.daemon = d
	return d, nil
}

// saved is the path of a `docker save` archive of the image, and the bytes of
// layer tar in it.
func (r *rig) saved(ctx context.Context, d *docker.Daemon) (string, int64, error) {
	if r.archive == "" {
		file := filepath.Join(d.Dir, "image.tar")
		if err := done(d.Command(ctx, "save", "-o", file, imageName)); err != nil {
			return "", 0, err
		}
		r.archive = file
	}
	info, err := os.Stat(r.archive) // one layer, not compressed
	if err != nil {
		return "", 0, err
	}
	return r.archive, info.Size(), nil
}

// done runs a command and puts what it printed into the error.
func done(cmd *exec.Cmd) error {
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", cmd.Args, err, bytes.TrimSpace(out))
	}
	return nil
}

// explain puts what a command wrote to its standard error into the error of
// its Output.
func explain(cmd *exec.Cmd, err error) error {
	if failed, ok := errors.AsType[*exec.ExitError](err); ok {
		return fmt.Errorf("%s: %w: %s", cmd.Args, err, bytes.TrimSpace(failed.Stderr))
	}
	return err
}

// timed is how many milliseconds a command took as a whole.
func timed(cmd *exec.Cmd) (float64, error) {
	began := time.Now()
	err := done(cmd)
	return float64(time.Since(began).Microseconds()) / 1000, err
}
