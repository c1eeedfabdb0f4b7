package keeper

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"creel/internal/guest/api"
	"creel/internal/sandbox"
)

const sigkill = 9

// start runs the task, once. Its error says why it does not run, and the run
// then ends.
func (r *Run) start(ctx context.Context) error {
	<-r.ready
	r.mu.Lock()
	already, failed := r.starting, r.failure
	r.starting = true
	r.mu.Unlock()
	if failed != nil {
		return failed
	}
	if already {
		return errors.New("the task was already started")
	}
	if err := r.startTask(ctx); err != nil {
		r.fail(err)
		return err
	}
	return nil
}

func (r *Run) startTask(ctx context.Context) error {
	if r.cfg.Helper {
		return errors.New("the sandbox has ended; this clone only serves its files")
	}
	if err := r.record(ctx, "started", map[string]any{"args": r.cfg.Process.Args}); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, startDeadline)
	defer cancel()
	task, err := r.guest.Exec(ctx, r.cfg.Process)
	if err != nil {
		return err
	}
	r.mu.Lock()
	r.task = task
	r.status.State = sandbox.StateRunning
	r.status.StartedAt = time.Now()
	r.mu.Unlock()
	close(r.running)
	if err := r.saveStatus(); err != nil {
		return err
	}
	r.tending.Go(r.tend)
	return nil
}

// tend carries the task's output until it ends, and notes how.
func (r *Run) tend() {
	if r.cfg.Spec.Timeout > 0 {
		timer := time.AfterFunc(r.cfg.Spec.Timeout, r.timeOut)
		defer timer.Stop()
	}
	var pumps sync.WaitGroup
	pumps.Go(func() { r.out.carry(api.ChannelOut, r.task.Stdout()) })
	pumps.Go(func() { r.out.carry(api.ChannelErr, r.task.Stderr()) })
	exit, err := r.task.Wait(context.Background())
	if err != nil {
		r.fail(fmt.Errorf("wait for the task: %w", err))
		return
	}
	r.mu.Lock()
	r.exit = exit
	r.mu.Unlock()
	pumps.Wait()
	r.overOnce.Do(func() { close(r.over) })
}

func (r *Run) timeOut() {
	r.mu.Lock()
	r.status.TimedOut = true
	r.mu.Unlock()
	r.stop(context.Background(), r.cfg.StopSignal, killGrace)
}

// stop signals the task and, where it still runs after grace, kills it. A
// client that has stopped reading the output cannot hold up the end.
func (r *Run) stop(ctx context.Context, signal int, grace time.Duration) error {
	for _, n := range []int{signal, sigkill} {
		if err := r.signal(ctx, n); err != nil {
			return err
		}
		if r.overWithin(ctx, grace) {
			return nil
		}
		grace = max(grace, killGrace)
	}
	r.overOnce.Do(func() { close(r.over) })
	return ctx.Err()
}

func (r *Run) overWithin(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-r.over:
		return true
	case <-ctx.Done():
	case <-timer.C:
	}
	return false
}

// signal sends the task a signal. One that has not started is not started any
// more by a signal that would end it.
func (r *Run) signal(ctx context.Context, signal int) error {
	r.mu.Lock()
	task := r.task
	r.mu.Unlock()
	if task == nil {
		return errors.New("the task is not running yet")
	}
	if err := r.record(ctx, "signal", map[string]any{"signal": signal}); err != nil {
		return err
	}
	return task.Signal(ctx, signal)
}

// feed copies a client's stdin to the task. Only the client that started the
// task ends its stdin.
func (r *Run) feed(stdin io.Reader, last bool) {
	select {
	case <-r.running:
	case <-r.over:
		return
	}
	w := r.task.Stdin()
	io.Copy(w, stdin) // an error means that either side has gone; both see it elsewhere
	if last {
		w.Close()
	}
}

const statusName = "status.json"

// saveStatus puts the status where every process can read it.
func (r *Run) saveStatus() error {
	if r.cfg.Helper {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return writeStatus(r.deps.Dir, r.status)
}

// writeStatus replaces the status file: readers see the old or the new one.
func writeStatus(dir *os.Root, status sandbox.Status) error {
	data, err := json.MarshalIndent(status, "", "  ")
	if err != nil {
		return fmt.Errorf("encode status: %w", err)
	}
	if err := dir.WriteFile(statusName+".new", data, 0o600); err != nil {
		return fmt.Errorf("write status: %w", err)
	}
	if err := dir.Rename(statusName+".new", statusName); err != nil {
		return fmt.Errorf("write status: %w", err)
	}
	return nil
}

// WriteStatus is for whoever finds a sandbox whose keeper has died.
func WriteStatus(dir string, status sandbox.Status) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("write status: %w", err)
	}
	defer root.Close()
	return writeStatus(root, status)
}

// ReadStatus reads what a keeper last wrote into a sandbox's directory.
func ReadStatus(dir string) (sandbox.Status, error) {
	var status sandbox.Status
	data, err := os.ReadFile(filepath.Join(dir, statusName))
	if err != nil {
		return status, err
	}
	if err := json.Unmarshal(data, &status); err != nil {
		return status, fmt.Errorf("decode status in %s: %w", dir, err)
	}
	return status, nil
}
