package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/containerd/errdefs"

	"creel/internal/engine/store"
	"creel/internal/keeper/rundir"
	"creel/internal/keeper/socket"
	"creel/internal/sandbox"
)

// Found is a sandbox as any process sees it.
type Found struct {
	Record store.Record
	Status sandbox.Status
	// Damage says why the record cannot be read, of which little more than the
	// ID is known then; "": it can be read.
	Damage string `json:",omitempty"`
}

// Running reports whether a task is or will be running in it.
func (f Found) Running() bool {
	return f.Status.State == sandbox.StateRunning || f.Status.State == sandbox.StateCreated
}

// List returns every sandbox, newest first, after it has reconciled what
// killed processes left. One whose record cannot be read is there too.
func (e *Engine) List(ctx context.Context) ([]Found, error) {
	e.tidy(ctx)
	return e.Peek()
}

// Peek is [Engine.List] of what is there now: nothing is reconciled, and
// nothing waited for. A sandbox in it may be one whose keeper has gone.
func (e *Engine) Peek() ([]Found, error) {
	ids, err := e.store.IDs()
	if err != nil {
		return nil, err
	}
	var out []Found
	for _, id := range ids {
		if f, err := e.look(id); !errors.Is(err, fs.ErrNotExist) {
			out = append(out, f)
		}
	}
	slices.SortFunc(out, func(a, b Found) int { return b.Record.Created.Compare(a.Record.Created) })
	return out, nil
}

// look finds one sandbox. The error is [fs.ErrNotExist] or nil.
func (e *Engine) look(id sandbox.ID) (Found, error) {
	rec, err := e.store.Read(id)
	if errors.Is(err, fs.ErrNotExist) {
		return Found{}, err // half made, or removed meanwhile
	}
	if err != nil {
		return e.damaged(id, err), nil
	}
	status, err := e.store.Status(rec)
	if errors.Is(err, fs.ErrNotExist) {
		return Found{}, err // removed since
	}
	switch {
	case err == nil:
	case e.store.LookedAfter(id): // what is written does not end a keeper
		status.State, status.CreatedAt, status.Error = sandbox.StateRunning, rec.Created, err.Error()
	default:
		status.State, status.ExitCode, status.Error = sandbox.StateLost, sandbox.ExitCreel, err.Error()
	}
	f := Found{Record: rec, Status: status}
	if f.Running() && e.store.ReadOnly() != nil && !e.store.LookedAfter(id) { // nobody could put it on record
		f.Status.State, f.Status.ExitCode, f.Status.Error = sandbox.StateLost, sandbox.ExitCreel, "its keeper has gone"
	}
	return f, nil
}

// ConfirmEnd asks the kernel, and not what a keeper wrote, whether the keeper of a
// sandbox has gone that is said to have ended. One that is just leaving is
// waited for.
func (e *Engine) ConfirmEnd(ctx context.Context, f Found) error {
	id := f.Record.ID()
	if e.store.Settled(id) || e.store.ReadOnly() != nil {
		return nil
	}
	lock, err := e.store.ClaimSoon(ctx, id, e.leaves)
	switch {
	case err != nil:
		return err
	case lock != nil:
		return lock.Close()
	case !e.store.Exists(id):
		return nil
	}
	return errorf(errdefs.ErrFailedPrecondition, "sandbox %s is said to have ended, but its keeper is still there; `creel rm -f %s` ends it", f.Record.Name(), id.Short())
}

// Find resolves a name, an ID or the beginning of one that no other has. A
// sandbox whose record cannot be read is an error that says so.
func (e *Engine) Find(ctx context.Context, ref string) (Found, error) {
	f, err := e.FindAny(ctx, ref)
	if err == nil && f.Damage != "" {
		return Found{}, f.errDamaged()
	}
	return f, err
}

// FindAny is Find for a command that needs no more than the ID.
func (e *Engine) FindAny(ctx context.Context, ref string) (Found, error) {
	fit, err := e.store.Lookup(ref)
	if err != nil {
		return Found{}, err
	}
	if len(fit) > 1 {
		return Found{}, errorf(errdefs.ErrInvalidArgument, "%q begins the IDs of %d sandboxes; give more digits", ref, len(fit))
	}
	for _, id := range fit {
		e.tidyOne(ctx, id)
		if f, err := e.look(id); err == nil {
			return f, nil
		} // else it has gone
	}
	return Found{}, NoSuch(ref)
}

// Connect returns a client of a running sandbox's keeper.
func (e *Engine) Connect(ctx context.Context, f Found) (*socket.Client, error) {
	spec := f.Record.Config.Spec
	if !f.Running() {
		return nil, errorf(errdefs.ErrFailedPrecondition, "sandbox %s is not running; `creel logs %[1]s` shows what it wrote", spec.Name)
	}
	client, err := socket.Dial(ctx, e.store.KeeperDir(spec.ID), spec.ID)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errorf(errdefs.ErrUnavailable, "sandbox %s is still starting, or ended just now; try again", spec.Name)
	}
	return client, err
}

// Rename gives a sandbox another name, which must be free.
func (e *Engine) Rename(f Found, name string) error {
	if !sandbox.ValidName(name) {
		return errorf(errdefs.ErrInvalidArgument, "name %q: want letters, digits, '_', '.' and '-', the first a letter or digit", name)
	}
	id, old := f.Record.Config.Spec.ID, ""
	err := e.store.Change(id, func(rec *store.Record) error {
		if name == rec.Config.Spec.Name {
			return nil
		}
		if err := e.store.TakeName(name, id); err != nil {
			if _, taken := errors.AsType[*store.NameTaken](err); taken {
				err = fmt.Errorf("%w; choose another name, or rename that one first", err)
			}
			return err
		}
		old, rec.Config.Spec.Name = rec.Config.Spec.Name, name
		return nil
	})
	if old == "" {
		return err // nothing was taken
	}
	unused := old
	if err != nil {
		unused = name // it was taken in vain
	}
	return errors.Join(err, e.store.Locked(func() error { return e.store.FreeName(id, unused) }))
}

// settle closes a kept sandbox whose keeper has gone, by whoever finds it first:
// its logs' final roots go on the ledger, and a run that was lost is said to be.
func (e *Engine) settle(ctx context.Context, rec store.Record) error {
	if e.store.Settled(rec.ID()) {
		return nil
	}
	status, err := e.store.Status(rec)
	if err != nil {
		status = sandbox.Status{ID: rec.Config.Spec.ID, Name: rec.Config.Spec.Name, CreatedAt: rec.Created, Error: err.Error()}
	}
	if status.State != sandbox.StateExited {
		status.State = sandbox.StateLost
		status.ExitCode = sandbox.ExitCreel
		status.Error = cmp.Or(status.Error, unknownEnd)
		if err := rundir.WriteStatus(e.store.KeeperDir(rec.Config.Spec.ID), status); err != nil {
			return err
		}
	}
	if err := e.closeLogs(ctx, rec.Config.Spec.ID); err != nil {
		return err
	}
	socket := filepath.Join(e.store.KeeperDir(rec.Config.Spec.ID), socket.Name) // a killed keeper leaves it
	if err := os.RemoveAll(socket); err != nil {                                // or something else in its place
		return fmt.Errorf("remove the keeper's socket: %w", err)
	}
	if err := e.proveGone(ctx, rec, true); err != nil {
		return err
	}
	return e.store.Settle(rec.ID())
}
