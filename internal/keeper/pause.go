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
var errPaused = errors.New("the sandbox is paused; unpause it first (creel unpause)")

func (r *Run) servePause(ctx context.Context, s *wire.Stream) error {
	if err := r.awaitReady(ctx); err != nil {
		return err
	}
	if err := r.setRunning(ctx, false); err != nil {
		return err
	}
	return s.Send(ctx, api.Reply{})
}

// serveResume also sets the clock: a paused guest's has stood still.
func (r *Run) serveResume(ctx context.Context, s *wire.Stream) error {
	if err := r.awaitReady(ctx); err != nil {
		return err
	}
	if err := r.setRunning(ctx, true); err != nil {
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
	if err := r.setRunning(ctx, true); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.isOver() {
		r.tending.Go(func() { r.guest.Clock(context.Background(), time.Now()) })
	}
	return nil
}

// setRunning lets the virtual CPUs go on or stops them, on record. It is not
// given up when its client goes: what the machine does and what the status
// says would differ.
func (r *Run) setRunning(ctx context.Context, run bool) error {
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
	if err := r.record(ctx, event.KindStep, event.Step{Step: verb}); err != nil {
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
	return r.saveLocked()
}

func (r *Run) isPaused() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.status.Paused
}
