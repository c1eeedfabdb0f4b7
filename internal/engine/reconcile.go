package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"creel/internal/audit"
	"creel/internal/audit/event"
	"creel/internal/durable"
	"creel/internal/sandbox"
)

// Reconcile removes what killed processes left: sandboxes whose keeper has
// gone without anybody to release them. The keeper's lock tells, which the
// kernel gives back on any death; process numbers, which are used again, are
// not asked.
func (e *Engine) Reconcile(ctx context.Context) error {
	ids, err := e.ids()
	errs := []error{err, e.sweepStandby(), e.opts.Ledger.CloseAside(ctx)}
	for _, id := range ids {
		if err := e.reconcileOne(ctx, id); err != nil {
			errs = append(errs, fmt.Errorf("sandbox %s: %w", id.Short(), err))
		}
	}
	return errors.Join(append(errs, e.sweepNames())...)
}

// sweepNames removes abandoned names, which stand in nobody's way.
func (e *Engine) sweepNames() error {
	if files, err := e.abandonedNames(); err != nil || len(files) == 0 {
		return err
	}
	return e.locked(func() error {
		files, err := e.abandonedNames()
		errs := []error{err}
		for _, file := range files {
			errs = append(errs, os.RemoveAll(file))
		}
		return errors.Join(errs...)
	})
}

func (e *Engine) reconcileOne(ctx context.Context, id sandbox.ID) error {
	if e.settled(id) {
		return nil // ended and kept; its lock is left to those who use its files
	}
	lock, err := e.claim(id)
	if err != nil || lock == nil {
		return err
	}
	defer lock.Close()
	rec, err := e.readRecord(id)
	if err == nil && rec.Config.Spec.Keep {
		return e.settle(ctx, rec)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil // it is damaged: `creel ps` shows it, and `creel rm -f` removes it
	}
	if err == nil && e.ended(rec) {
		return e.remove(ctx, id) // its user had left it, or its launcher was killed since
	}
	return e.removeLost(ctx, id, "its keeper and its launcher ended without releasing it", func() error { return e.remove(ctx, id) })
}

// ended reports whether the keeper has said that the run ended in order.
func (e *Engine) ended(rec Record) bool {
	status, err := e.status(rec)
	return err == nil && status.State == sandbox.StateExited
}

// removeLost puts on the ledger that a sandbox is about to be taken away, or
// where that cannot be done, that it was: the removal may have made room for
// it. It says so once, however often the removal fails.
func (e *Engine) removeLost(ctx context.Context, id sandbox.ID, reason string, takeAway func() error) error {
	marker := filepath.Join(e.SandboxDir(id), lostName)
	about := audit.Event{Kind: event.KindLost, Sandbox: string(id), Data: event.Lost{Reason: reason}}
	var unrecorded error
	if _, err := os.Lstat(marker); err != nil {
		if unrecorded = e.opts.Ledger.Append(ctx, about); unrecorded == nil {
			os.WriteFile(marker, nil, 0o600) // without it, it is said again
		}
	}
	err := takeAway()
	if unrecorded != nil {
		unrecorded = e.opts.Ledger.Append(ctx, about)
	}
	return errors.Join(unrecorded, err)
}

// claim takes the lock of a sandbox that nobody looks after; nil says that
// somebody does, or that it is gone. Its launcher makes the directory and takes
// the lock while it holds the store's lock, so a directory without one, or
// with one that nobody holds, seen under that lock, has a dead maker.
func (e *Engine) claim(id sandbox.ID) (*durable.Lock, error) {
	store, err := e.lockStore()
	if err != nil {
		return nil, err
	}
	defer store.Close()
	lock, err := durable.TryAcquire(filepath.Join(e.SandboxDir(id), lockName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("try keeper lock: %w; `creel rm -f %s` removes the sandbox", err, id.Short())
	}
	return lock, nil
}

// keeperLeaves is how long a keeper may take to go once its task has ended.
const keeperLeaves = 10 * time.Second

// claimSoon is claim for a sandbox whose task has ended: its keeper tells its
// clients before it goes.
func (e *Engine) claimSoon(ctx context.Context, id sandbox.ID) (*durable.Lock, error) {
	ctx, cancel := context.WithTimeout(ctx, e.leaves)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		lock, err := e.claim(id)
		if err != nil || lock != nil {
			return lock, err
		}
		if _, err := os.Stat(e.SandboxDir(id)); err != nil {
			return nil, nil // removed meanwhile
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, nil
		}
	}
}

// Leftovers counts the sandboxes that the next [Engine.Reconcile] would act on.
func (e *Engine) Leftovers() (int, error) {
	if err := e.readOnly(); err != nil {
		return 0, fmt.Errorf("not counted, since the state directory cannot be written: %w", err)
	}
	ids, err := e.ids()
	if err != nil {
		return 0, err
	}
	n := 0
	for _, id := range ids {
		if e.settled(id) {
			continue // ended and kept
		}
		if _, err := e.readRecord(id); err != nil && !errors.Is(err, fs.ErrNotExist) {
			continue // it is damaged, and stays
		}
		if lock, err := e.claim(id); err == nil && lock != nil {
			lock.Close()
			n++
		}
	}
	return n, nil
}

// Damaged lists the sandboxes whose record cannot be read.
func (e *Engine) Damaged() (all []Found, err error) {
	ids, err := e.ids()
	for _, id := range ids {
		if f, err := e.look(id); err == nil && f.Damage != "" {
			all = append(all, f)
		}
	}
	return all, err
}
