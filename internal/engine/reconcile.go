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
	"creel/internal/sandbox"

	"golang.org/x/sys/unix"
)

// Reconcile removes what killed processes left: sandboxes whose keeper has
// gone without anybody to release them. The keeper's lock tells, which the
// kernel gives back on any death; process numbers, which are used again, are
// not asked.
func (e *Engine) Reconcile(ctx context.Context) error {
	entries, err := os.ReadDir(filepath.Join(e.opts.Dir, sandboxesName))
	if err != nil {
		return fmt.Errorf("list sandboxes: %w", err)
	}
	errs := []error{e.sweepStandby(), e.opts.Ledger.CloseAside(ctx)}
	for _, entry := range entries {
		id, err := sandbox.ParseID(entry.Name())
		if err != nil {
			continue // not ours to remove
		}
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
			errs = append(errs, os.Remove(file))
		}
		return errors.Join(errs...)
	})
}

func (e *Engine) reconcileOne(ctx context.Context, id sandbox.ID) error {
	if _, err := os.Lstat(filepath.Join(e.SandboxDir(id), settledName)); err == nil {
		return nil // ended and kept; its lock is left to those who use its files
	}
	lock, err := e.claim(id)
	if err != nil || lock == nil {
		return err
	}
	defer lock.Close()
	rec, err := e.record(id)
	if err == nil && rec.Config.Spec.Keep {
		return e.settle(ctx, rec)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	about := event.Lost{Reason: "its keeper and its launcher ended without releasing it"}
	record := func() error {
		return e.opts.Ledger.Append(ctx, audit.Event{Kind: event.KindLost, Sandbox: string(id), Data: about})
	}
	lost := record()
	removed := e.remove(ctx, id)
	if lost != nil {
		lost = record() // the removal may have made room for it
	}
	return errors.Join(lost, removed)
}

// claim takes the lock of a sandbox that nobody looks after; nil says that
// somebody does, or that it is gone. Its launcher makes the directory and takes
// the lock while it holds the store's lock, so a directory without one, or
// with one that nobody holds, seen under that lock, has a dead maker.
func (e *Engine) claim(id sandbox.ID) (*os.File, error) {
	store, err := e.lockStore()
	if err != nil {
		return nil, err
	}
	defer store.Close()
	f, err := os.OpenFile(filepath.Join(e.SandboxDir(id), lockName), os.O_CREATE|os.O_RDWR, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open keeper lock: %w", err)
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		return f, nil
	}
	f.Close()
	if err == unix.EWOULDBLOCK {
		return nil, nil
	}
	return nil, fmt.Errorf("try keeper lock: %w", err)
}

// keeperLeaves is how long a keeper may take to go once its task has ended.
const keeperLeaves = 10 * time.Second

// claimSoon is claim for a sandbox whose task has ended: its keeper tells its
// clients before it goes.
func (e *Engine) claimSoon(ctx context.Context, id sandbox.ID) (*os.File, error) {
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
	entries, err := os.ReadDir(filepath.Join(e.opts.Dir, sandboxesName))
	if err != nil {
		return 0, fmt.Errorf("list sandboxes: %w", err)
	}
	n := 0
	for _, entry := range entries {
		id, err := sandbox.ParseID(entry.Name())
		if err != nil {
			continue
		}
		if _, err := os.Stat(filepath.Join(e.SandboxDir(id), settledName)); err == nil {
			continue // ended and kept
		}
		if lock, err := e.claim(id); err == nil && lock != nil {
			lock.Close()
			n++
		}
	}
	return n, nil
}
