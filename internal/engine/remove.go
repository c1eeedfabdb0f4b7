package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/containerd/errdefs"

	"creel/internal/audit"
	"creel/internal/durable"
	"creel/internal/engine/store"
	"creel/internal/keeper/launch"
	"creel/internal/policy/tier"
	"creel/internal/sandbox"
)

// Remove deletes a sandbox. One that runs is refused, or with force killed; so is
// one that a keeper holds on to which says that its task has ended.
func (e *Engine) Remove(ctx context.Context, f Found, force bool) error {
	id, name := f.Record.ID(), f.Record.Name()
	if f.Running() && !force {
		return errorf(errdefs.ErrFailedPrecondition, "sandbox %s is running; stop it first, or use rm -f", name)
	}
	if f.Damage != "" && !force {
		return f.errDamaged()
	}
	var asked error
	if f.Running() {
		asked = e.askToEnd(ctx, f)
	}
	var lock *durable.Lock
	var err error
	if asked == nil {
		lock, err = e.store.ClaimSoon(ctx, id, e.leaves)
	}
	if err == nil && lock == nil && force && e.store.Exists(id) {
		ended := e.endKeeper(ctx, f.Record)
		if lock, err = e.store.ClaimSoon(ctx, id, e.leaves); err == nil && lock == nil {
			err = errors.Join(asked, ended)
		}
	}
	switch {
	case force && err != nil && !e.store.LookedAfter(id):
		e.opts.Log.Warn("the sandbox's lock cannot be taken, and nobody has it", "err", err)
		return e.removeAny(ctx, f)
	case err != nil:
		return fmt.Errorf("end sandbox %s: %w", name, err)
	case lock != nil:
		defer lock.Close()
		return e.removeAny(ctx, f)
	case !e.store.Exists(id):
		return nil // removed by its launcher
	}
	return errorf(errdefs.ErrUnavailable, "sandbox %s is in use by another command; try again when that has ended", name)
}

// askToEnd has a keeper end its run, and waits until nothing of it remains, as
// far as the keeper says. It does not wait long: the keeper may have been taken
// over.
func (e *Engine) askToEnd(ctx context.Context, f Found) error {
	ctx, cancel := context.WithTimeout(ctx, e.patience)
	defer cancel()
	client, err := e.Connect(ctx, f)
	if err != nil {
		return err
	}
	defer client.Close()
	if err := client.Kill(ctx); err != nil {
		return err
	}
	_, err = client.Wait(ctx)
	return err
}

func (e *Engine) removeAny(ctx context.Context, f Found) error {
	if f.Damage != "" {
		return e.removeDamaged(ctx, f)
	}
	return e.remove(ctx, f.Record.ID())
}

// remove deletes a sandbox, frees its name, and puts what is left of it on
// record. A log whose closing cannot be recorded is kept for a later command,
// whatever happens to the rest. The caller holds the keeper's lock.
func (e *Engine) remove(ctx context.Context, id sandbox.ID) error {
	return e.store.Locked(func() error {
		rec, err := e.store.Read(id)
		if errors.Is(err, fs.ErrNotExist) {
			return os.RemoveAll(e.store.Dir(id)) // removed by another process, or never complete: it has no log
		}
		if err != nil {
			return e.damaged(id, err).errDamaged()
		}
		return e.takeAway(ctx, rec, func() error { return e.store.FreeName(id, rec.Name()) })
	})
}

// removeDamaged deletes a sandbox whose record cannot be read, and frees every
// name that leads to it. The caller holds the keeper's lock where there is one.
func (e *Engine) removeDamaged(ctx context.Context, f Found) error {
	id := f.Record.ID()
	return e.store.Locked(func() error {
		return e.removeLost(ctx, id, tier.Hide("its record was damaged: "+f.Damage), func() error {
			return e.takeAway(ctx, f.Record, func() error { return e.store.FreeNames(id) })
		})
	})
}

// discard takes back what [Engine.reserve] made, with the log that was opened
// since. What cannot be taken back is left to [Engine.Reconcile].
func (e *Engine) discard(rec store.Record) error {
	freeName := func() error { return e.store.FreeName(rec.ID(), rec.Name()) }
	return e.store.Locked(func() error {
		if !e.store.Complete(rec.ID()) { // no log was opened
			return errors.Join(freeName(), os.RemoveAll(e.store.Dir(rec.ID())))
		}
		_, err := e.dismantle(context.Background(), rec, freeName)
		return err
	})
}

// takeAway is the end of a sandbox, with the proof that nothing of it is left.
// The store is locked.
func (e *Engine) takeAway(ctx context.Context, rec store.Record, freeNames func() error) error {
	kept, err := e.dismantle(ctx, rec, freeNames)
	if kept {
		return err
	}
	return errors.Join(err, e.proveGone(ctx, rec, false))
}

// dismantle removes a sandbox whose log is closed first, or else kept until
// that can be recorded. The store is locked.
func (e *Engine) dismantle(ctx context.Context, rec store.Record, freeNames func() error) (kept bool, _ error) {
	id := rec.ID()
	// The disk goes first: where it has filled the host's, the log has no room
	// until then.
	disk := filepath.Join(e.store.Dir(id), launch.DiskName)
	if err := os.RemoveAll(disk); err != nil && !errors.Is(err, syscall.ENOTDIR) {
		return true, fmt.Errorf("remove the writable disk: %w", err)
	}
	closed := e.closeLogs(ctx, id)
	if closed != nil {
		if err := e.eachLog(id, func(dir string) error { return e.opts.Ledger.SetAside(string(id), dir) }); err != nil {
			return true, fmt.Errorf("sandbox %s is kept, since its audit log can neither be closed nor kept otherwise: %w; try again when that is mended",
				rec.Name(), errors.Join(closed, err))
		}
	}
	if err := freeNames(); err != nil {
		return true, err
	}
	err := e.store.RemoveDir(id)
	if closed != nil && !errors.Is(closed, audit.ErrUnsound) {
		closed = e.opts.Ledger.CloseAside(ctx) // there may be room now
	}
	if closed != nil && !errors.Is(closed, audit.ErrUnsound) {
		closed = fmt.Errorf("the audit log of sandbox %s is kept until its closing can be recorded: %w; make room, and the next command does it", rec.Name(), closed)
	}
	return false, errors.Join(closed, err)
}

// closeLogs puts the final roots of every run's log on the ledger: the task's,
// and those of helpers that were killed.
func (e *Engine) closeLogs(ctx context.Context, id sandbox.ID) error {
	return e.eachLog(id, func(dir string) error { return e.opts.Ledger.CloseSandbox(ctx, string(id), dir) })
}

func (e *Engine) eachLog(id sandbox.ID, do func(dir string) error) error {
	all, err := e.store.Logs(id)
	if err != nil {
		return err
	}
	var errs []error
	for _, dir := range all {
		errs = append(errs, do(dir))
	}
	return errors.Join(errs...)
}
