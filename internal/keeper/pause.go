package keeper

import (
	"context"
	"errors"
	"fmt"
	"time"

	"creel/internal/audit/event"
	"creel/internal/guest/api"
	"creel/internal/vm"
	"creel/internal/wire"
)

// errPaused is the answer to what needs a guest that runs.
var errPaused = errors.New("the sandbox is paused; unpause it first (`creel unpause`)")

func (r *Run) servePause(ctx context.Context, s *wire.Stream) error {
	if err := r.awaitReady(ctx); err != nil {
		return err
	}
	if err := r.setRunning(ctx, false, r.tellStep); err != nil {
		return err
	}
	return s.Send(ctx, api.Reply{})
}

// serveResume also sets the clock: a paused guest's has stood still.
func (r *Run) serveResume(ctx context.Context, s *wire.Stream) error {
	if err := r.awaitReady(ctx); err != nil {
		return err
	}
	if err := r.setRunning(ctx, true, r.recordStep); err != nil {
		return err
	}
	clock, cancel := context.WithTimeout(ctx, r.limit.goodbye)
	defer cancel()
	if err := r.guest.Clock(clock, time.Now()); err != nil {
		return err
	}
	return s.Send(ctx, api.Reply{})
}

// resumeForEnd lets a paused sandbox go on, so that its task can be asked to
// end. The guest's clock is set beside that.
func (r *Run) resumeForEnd(ctx context.Context) error {
	if !r.isPaused() {
		return nil
	}
	if err := r.setRunning(ctx, true, r.tellStep); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.isOver() {
		r.tending.Go(func() { r.guest.Clock(context.Background(), time.Now()) })
	}
	return nil
}

// recordStep makes a step wait for its record, and tellStep does not: to take
// away and to end never depend on one.
func (r *Run) recordStep(ctx context.Context, name string) error {
	return r.record(ctx, event.KindStep, event.Step{Step: name})
}

func (r *Run) tellStep(_ context.Context, name string) error {
	r.tell(event.KindStep, event.Step{Step: name})
	return nil
}

// setRunning lets the virtual CPUs go on or stops them, on record. It is not
// given up when its client goes: what the machine does and what the status
// says would differ. That the status cannot be written for others does not undo
// what was done.
func (r *Run) setRunning(ctx context.Context, run bool, onRecord func(context.Context, string) error) error {
	r.pausing.Lock()
	defer r.pausing.Unlock()
	if r.isOver() {
		return errNotRunning
	}
	p, ok := r.machine.(vm.Pauser)
	if !ok {
		return errors.New("this machine cannot be paused")
	}
	verb, act := "pause", p.Pause
	if run {
		verb, act = "resume", p.Resume
	}
	if err := onRecord(ctx, verb); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.limit.vmm)
	defer cancel()
	if err := act(ctx); err != nil {
		return fmt.Errorf("%s: %w", verb, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.isOver() {
		return nil
	}
	r.status.Paused = !run
	if err := r.saveLocked(); err != nil {
		r.deps.Log.Error("the status is not up to date", "err", err)
	}
	return nil
}

func (r *Run) isPaused() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.status.Paused
}
