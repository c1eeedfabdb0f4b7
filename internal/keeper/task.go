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
	"syscall"
	"time"

	"creel/internal/audit"
	"creel/internal/audit/event"
	"creel/internal/guest/api"
	"creel/internal/guest/host"
	"creel/internal/policy/tier"
	"creel/internal/sandbox"
)

const sigkill = 9

// start runs the task, once. Its error says why it does not run, and the run
// then ends.
func (r *Run) start(ctx context.Context) error {
	if err := r.awaitReady(ctx); err != nil {
		return err
	}
	r.mu.Lock()
	already, over, failed := r.starting, r.isOver(), r.failure
	r.starting = true
	r.mu.Unlock()
	switch {
	case failed != nil:
		return failed
	case over:
		return errNotRunning
	case already:
		return errors.New("the task was already started")
	}
	if err := r.startTask(); err != nil {
		r.end(err)
		return err
	}
	return nil
}

// awaitReady waits until the clone is ready or will never be.
func (r *Run) awaitReady(ctx context.Context) error {
	select {
	case <-r.ready:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// startTask goes on when the client that asked for it has gone: it happens once.
func (r *Run) startTask() error {
	if r.cfg.Helper {
		return errors.New("the sandbox has ended; this clone only serves its files")
	}
	ctx, cancel := context.WithTimeout(context.Background(), r.limit.start)
	defer cancel()
	if err := r.record(ctx, audit.KindStarted, event.Process{Args: tier.HideAll(r.cfg.Process.Args), User: r.cfg.Process.User}); err != nil {
		return err
	}
	defer r.loseGuestAfter(ctx)()
	task, err := r.guest.Exec(ctx, r.cfg.Process)
	if err != nil && ctx.Err() != nil {
		return fmt.Errorf("the guest did not start the task within %s; try again when this machine is less busy", r.limit.start)
	}
	if err != nil {
		return err
	}
	r.mu.Lock()
	if r.isOver() {
		r.mu.Unlock()
		task.Close()
		return errNotRunning
	}
	r.task = task
	r.status.State = sandbox.StateRunning
	r.status.StartedAt = time.Now()
	r.tending.Go(r.tend)
	close(r.running)
	r.mu.Unlock()
	return r.saveStatus()
}

// tend carries the task's output until it ends, and notes how.
func (r *Run) tend() {
	if r.cfg.Spec.Timeout > 0 {
		r.tending.Go(r.enforceTimeout)
	}
	var pumps sync.WaitGroup
	pumps.Go(func() { r.out.carry(api.ChannelOut, r.task.Stdout()) })
	pumps.Go(func() { r.out.carry(api.ChannelErr, r.task.Stderr()) })
	exit, err := r.task.Wait(context.Background())
	switch {
	case err == nil:
		r.mu.Lock()
		if r.exit == nil {
			r.exit = &exit
		}
		r.mu.Unlock()
	case r.guest.Err() == nil: // else whoever waits for the guest knows why
		r.end(fmt.Errorf("wait for the task: %w", err))
	}
	pumps.Wait()
	if err == nil {
		r.end(nil)
	}
}

func (r *Run) enforceTimeout() {
	ctx := context.Background()
	if r.overWithin(ctx, r.cfg.Spec.Timeout) {
		return
	}
	r.mu.Lock()
	r.status.TimedOut = true
	r.mu.Unlock()
	if err := r.stop(ctx, r.cfg.StopSignal, r.limit.kill); err != nil {
		r.deps.Log.Error("the timeout's signal could not be sent; the VM is ended instead", "err", err)
		r.kill()
	}
}

// stop signals the task and, where it still runs after grace, kills it, and
// then the machine. Neither a guest that takes no signals nor a client that
// has stopped reading the output can hold up the end.
func (r *Run) stop(ctx context.Context, signal int, grace time.Duration) error {
	for _, n := range []int{signal, sigkill} {
		if err := r.post(ctx, n); err != nil {
			return err
		}
		if r.overWithin(ctx, grace) {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		grace = r.limit.kill
	}
	r.kill()
	return nil
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

// post sends the task a signal without waiting for the guest to take it. A
// task that has ended needs none.
func (r *Run) post(ctx context.Context, signal int) error {
	if r.isOver() {
		return nil
	}
	task := r.runningTask()
	if task == nil {
		return errNotRunning
	}
	if err := r.recordSignal(ctx, signal, task); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.isOver() {
		r.tending.Go(func() { task.Signal(context.Background(), signal) })
	}
	return nil
}

func (r *Run) recordSignal(ctx context.Context, signal int, x *host.Exec) error {
	return r.record(ctx, audit.KindSignal, event.Signal{Signal: signal, PID: x.PID()})
}

// feed copies a client's stdin to the task, which has one writer at a time.
// Only the client that started the task ends its stdin.
func (r *Run) feed(ctx context.Context, stdin io.Reader, last bool) {
	select {
	case <-r.running:
	case <-r.over:
		return
	}
	w := r.task.Stdin()
	buf := make([]byte, 32<<10)
	for {
		n, err := stdin.Read(buf)
		if n > 0 {
			select {
			case r.stdin <- struct{}{}:
			case <-ctx.Done():
				return
			}
			_, werr := w.Write(buf[:n])
			<-r.stdin
			if werr != nil {
				return // the task has ended its stdin, or has ended
			}
		}
		if err != nil {
			break // the client has ended it, or has gone
		}
	}
	if last {
		w.Close()
	}
}

const statusName = "status.json"

// saveStatus puts the status where every process can read it.
func (r *Run) saveStatus() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.saveLocked()
}

func (r *Run) saveLocked() error {
	if r.cfg.Helper {
		return nil
	}
	return writeStatus(r.deps.Dir, r.status)
}

// writeStatus replaces the status file: readers see the old or the new one.
func writeStatus(dir *os.Root, status sandbox.Status) error {
	data, err := json.MarshalIndent(status, "", "  ")
	if err != nil {
		return fmt.Errorf("encode status: %w", err)
	}
	// What lies there may be a trap by a keeper that was taken over.
	if err := dir.RemoveAll(statusName + ".new"); err != nil {
		return fmt.Errorf("write status: %w", err)
	}
	f, err := dir.OpenFile(statusName+".new", os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("write status: %w", err)
	}
	_, err = f.Write(data)
	if err := errors.Join(err, f.Close()); err != nil {
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
	if err := root.RemoveAll(statusName); err != nil {
		return fmt.Errorf("write status: %w", err)
	}
	return writeStatus(root, status)
}

// ReadStatus reads what a keeper last wrote into a sandbox's directory.
func ReadStatus(dir string) (sandbox.Status, error) {
	var status sandbox.Status
	f, err := openUntrusted(dir, statusName)
	if err != nil {
		return status, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxStatusBytes))
	if err != nil {
		return status, fmt.Errorf("read status: %w", err)
	}
	if err := json.Unmarshal(data, &status); err != nil {
		return status, fmt.Errorf("decode status in %s: %w", dir, err)
	}
	return status, nil
}

const maxStatusBytes = 1 << 20

// openUntrusted opens a file that a keeper wrote, which a guest may have taken
// over: a regular file of its directory, and nothing that leads elsewhere or
// makes the reader wait.
func openUntrusted(dir, name string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s in %s is not a file", name, dir)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}
