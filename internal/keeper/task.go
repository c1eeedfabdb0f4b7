package keeper

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"creel/internal/audit"
	"creel/internal/audit/event"
	"creel/internal/guest/api"
	"creel/internal/guest/host"
	"creel/internal/keeper/rundir"
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
		return r.explained(err)
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
	if err := r.stop(ctx, r.cfg.StopSignal, r.limit.timeout); err != nil {
		r.deps.Log.Error("the timeout's signal could not be sent; the VM is ended instead", "err", err)
		r.kill()
	}
}

// stop signals the task and, where it still runs after grace, kills it, and soon
// after that the machine. A paused sandbox is let go on first, or nothing would
// come of it. Neither a guest that takes no signals nor a client that has stopped
// reading the output can hold up the end.
func (r *Run) stop(ctx context.Context, signal int, grace time.Duration) error {
	if err := r.resumeForEnd(ctx); err != nil {
		r.deps.Log.Warn("a paused sandbox did not go on; its VM is ended instead", "err", err)
		r.kill()
		return nil
	}
	for _, n := range []int{signal, sigkill} {
		if err := r.post(n); err != nil {
			return err
		}
		if r.overWithin(ctx, grace) {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		grace = r.limit.last
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
func (r *Run) post(signal int) error {
	if r.isOver() {
		return nil
	}
	task := r.runningTask()
	if task == nil {
		return errNotRunning
	}
	r.tellSignal(signal, task)
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.isOver() {
		r.tending.Go(func() { task.Signal(context.Background(), signal) })
	}
	return nil
}

// killTask sends SIGKILL, and ends the machine where that ends nothing: what
// runs in it may have taken the guest over.
func (r *Run) killTask(ctx context.Context) error {
	if err := r.post(sigkill); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.isOver() {
		r.tending.Go(func() {
			if !r.overWithin(context.WithoutCancel(ctx), r.limit.kill) {
				r.kill()
			}
		})
	}
	return nil
}

// tellSignal puts a signal on record, which gives a task nothing and may be the
// way to end it.
func (r *Run) tellSignal(signal int, x *host.Exec) {
	r.tell(audit.KindSignal, event.Signal{Signal: signal, PID: x.PID()})
}

// feed copies a client's stdin to the task, which has one writer at a time.
// Only the client that started the task ends its stdin, unless it detaches.
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
	r.mu.Lock()
	last = last && !r.detached // who comes next may type on
	r.mu.Unlock()
	if last {
		w.Close()
	}
}

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
	return rundir.SaveStatus(r.deps.Dir, r.withEdge(r.status))
}
