package engine

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/containerd/errdefs"

	"creel/internal/engine/store"
	"creel/internal/keeper/launch"
	"creel/internal/sandbox"
)

// damaged is a sandbox whose record cannot be read, with all that is known
// without it.
func (e *Engine) damaged(id sandbox.ID, reason error) Found {
	rec := store.NewRecord(launch.Config{Spec: sandbox.Spec{ID: id, Name: cmp.Or(e.store.NameOf(id), id.Short())}})
	rec.UID = e.store.OwnerOf(id)
	if info, err := os.Lstat(e.store.Dir(id)); err == nil {
		rec.Created = info.ModTime()
	}
	f := Found{Record: rec, Damage: reason.Error()}
	var err error
	if f.Status, err = e.store.Status(rec); err != nil || !f.Running() || !e.store.LookedAfter(id) {
		f.Status.ID, f.Status.Name = id, rec.Config.Spec.Name
		f.Status.State, f.Status.ExitCode = sandbox.StateLost, sandbox.ExitCreel
		f.Status.Error = fmt.Sprintf("its record cannot be read; `creel rm -f %s` removes it", id.Short())
	}
	return f
}

// errDamaged is what a command says that needs more of a sandbox than its ID.
func (f Found) errDamaged() error {
	return errorf(errdefs.ErrFailedPrecondition, "sandbox %s is damaged: %s; `creel rm -f %s` removes it", f.Record.Config.Spec.Name, f.Damage, f.Record.Config.Spec.ID.Short())
}

// tidy is [Engine.Reconcile] before a command that can do without it. What could
// not be done is said in one line.
func (e *Engine) tidy(ctx context.Context) {
	if !e.canTidy() {
		return
	}
	err := e.Reconcile(ctx)
	if err == nil || e.warned.Swap(true) {
		return
	}
	first, rest, _ := strings.Cut(err.Error(), "\n")
	if rest != "" {
		first = fmt.Sprintf("%s (and %d more lines)", first, strings.Count(rest, "\n")+1)
	}
	e.opts.Log.Warn("some leftovers could not be reconciled; the next command tries again", "err", first)
}

// tidyOne is tidy for a command about one sandbox.
func (e *Engine) tidyOne(ctx context.Context, id sandbox.ID) {
	if !e.canTidy() {
		return
	}
	if err := e.reconcileOne(ctx, id); err != nil {
		e.opts.Log.Info("the sandbox could not be reconciled; the next command tries again", "err", err)
	}
}

// canTidy reports whether anything can be changed in the state directory.
func (e *Engine) canTidy() bool {
	err := e.store.ReadOnly()
	if err != nil {
		e.stale.Do(func() {
			e.opts.Log.Warn("the state directory cannot be written: nothing is cleaned up, and what is shown may be out of date", "dir", e.opts.Dir, "err", err)
		})
	}
	return err == nil
}
