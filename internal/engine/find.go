package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"creel/internal/durable"
	"creel/internal/keeper/rundir"
	"creel/internal/keeper/socket"
	"creel/internal/sandbox"
)

// ErrNotFound is in the chain of errors about sandboxes that do not exist.
var ErrNotFound = errors.New("no such sandbox")

// Found is a sandbox as any process sees it.
type Found struct {
	Record Record
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
	e.tidy(ctx, slog.LevelWarn)
	return e.Peek()
}

// Peek is [Engine.List] of what is there now: nothing is reconciled, and
// nothing waited for. A sandbox in it may be one whose keeper has gone.
func (e *Engine) Peek() ([]Found, error) {
	ids, err := e.ids()
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
	rec, err := e.readRecord(id)
	if errors.Is(err, fs.ErrNotExist) {
		return Found{}, err // half made, or removed meanwhile
	}
	if err != nil {
		return e.damaged(id, err), nil
	}
	status, err := e.status(rec)
	if errors.Is(err, fs.ErrNotExist) {
		return Found{}, err // removed since
	}
	if err != nil { // its keeper wrote nonsense
		status.State, status.ExitCode, status.Error = sandbox.StateLost, sandbox.ExitCreel, err.Error()
	}
	f := Found{Record: rec, Status: status}
	if f.Running() && e.readOnly() != nil && !e.lookedAfter(id) { // nobody could put it on record
		f.Status.State, f.Status.ExitCode, f.Status.Error = sandbox.StateLost, sandbox.ExitCreel, "its keeper has gone"
	}
	return f, nil
}

// status reads what the keeper last said; before its first word the sandbox is
// created.
func (e *Engine) status(rec Record) (sandbox.Status, error) {
	status, err := rundir.ReadStatus(e.KeeperDir(rec.Config.Spec.ID))
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Stat(e.SandboxDir(rec.Config.Spec.ID)); err != nil {
			return status, err
		}
		if e.settled(rec.Config.Spec.ID) {
			return sandbox.Status{
				ID: rec.Config.Spec.ID, Name: rec.Config.Spec.Name, State: sandbox.StateLost, ExitCode: sandbox.ExitCreel,
				CreatedAt: rec.Created, TemplateDigest: rec.Config.Template, Error: "it has ended, and what its keeper said of that is gone",
			}, nil
		}
		return sandbox.Status{
			ID: rec.Config.Spec.ID, Name: rec.Config.Spec.Name, State: sandbox.StateCreated, CreatedAt: rec.Created,
			TemplateDigest: rec.Config.Template,
		}, nil
	}
	status.ID, status.Name = rec.Config.Spec.ID, rec.Config.Spec.Name // it may have been renamed
	return status, err
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
	e.tidy(ctx, slog.LevelInfo)
	all, err := e.Peek()
	if err != nil {
		return Found{}, err
	}
	var hits []Found
	for _, f := range all {
		id := string(f.Record.Config.Spec.ID)
		if f.Record.Config.Spec.Name == ref || id == ref {
			return f, nil
		}
		if ref != "" && strings.HasPrefix(id, ref) {
			hits = append(hits, f)
		}
	}
	switch len(hits) {
	case 1:
		return hits[0], nil
	case 0:
		return Found{}, fmt.Errorf("%w: %s; `creel ps -a` lists them", ErrNotFound, ref)
	default:
		return Found{}, fmt.Errorf("%q begins the IDs of %d sandboxes; give more digits", ref, len(hits))
	}
}

// Connect returns a client of a running sandbox's keeper.
func (e *Engine) Connect(ctx context.Context, f Found) (*socket.Client, error) {
	spec := f.Record.Config.Spec
	if !f.Running() {
		return nil, fmt.Errorf("sandbox %s is not running; `creel logs %[1]s` shows what it wrote", spec.Name)
	}
	client, err := socket.Dial(ctx, e.KeeperDir(spec.ID), spec.ID)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("sandbox %s is still starting, or ended just now; try again", spec.Name)
	}
	return client, err
}

// Remove deletes a sandbox. One that runs is refused, or with force killed; so is
// one that a keeper holds on to which says that its task has ended.
func (e *Engine) Remove(ctx context.Context, f Found, force bool) error {
	spec := f.Record.Config.Spec
	if f.Running() && !force {
		return fmt.Errorf("sandbox %s is running; stop it first, or use rm -f", spec.Name)
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
		lock, err = e.claimSoon(ctx, spec.ID)
	}
	if err == nil && lock == nil && force && e.exists(spec.ID) {
		ended := e.endKeeper(ctx, f.Record)
		if lock, err = e.claimSoon(ctx, spec.ID); err == nil && lock == nil {
			err = errors.Join(asked, ended)
		}
	}
	switch {
	case force && err != nil && !e.lookedAfter(spec.ID):
		e.opts.Log.Warn("the sandbox's lock cannot be taken, and nobody has it", "err", err)
		return e.removeAny(ctx, f)
	case err != nil:
		return fmt.Errorf("end sandbox %s: %w", spec.Name, err)
	case lock != nil:
		defer lock.Close()
		return e.removeAny(ctx, f)
	case !e.exists(spec.ID):
		return nil // removed by its launcher
	}
	return fmt.Errorf("sandbox %s is in use by another command; try again when that has ended", spec.Name)
}

func (e *Engine) removeAny(ctx context.Context, f Found) error {
	if f.Damage != "" {
		return e.removeDamaged(ctx, f)
	}
	return e.remove(ctx, f.Record.Config.Spec.ID)
}

func (e *Engine) exists(id sandbox.ID) bool {
	_, err := os.Lstat(e.SandboxDir(id))
	return !errors.Is(err, fs.ErrNotExist)
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

// Rename gives a sandbox another name, which must be free.
func (e *Engine) Rename(f Found, name string) error {
	if !sandbox.ValidName(name) {
		return fmt.Errorf("name %q: want letters, digits, '_', '.' and '-', the first a letter or digit", name)
	}
	id, old := f.Record.Config.Spec.ID, ""
	err := e.changeRecord(id, func(rec *Record) error {
		if name == rec.Config.Spec.Name {
			return nil
		}
		if err := e.takeName(name, id); err != nil {
			if _, taken := errors.AsType[*nameTaken](err); taken {
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
	return errors.Join(err, e.locked(func() error { return e.freeNameOf(id, unused) }))
}

// settle closes a kept sandbox whose keeper has gone, by whoever finds it first:
// its logs' final roots go on the ledger, and a run that was lost is said to be.
func (e *Engine) settle(ctx context.Context, rec Record) error {
	dir := e.SandboxDir(rec.Config.Spec.ID)
	marker := filepath.Join(dir, settledName)
	if _, err := os.Stat(marker); err == nil {
		return nil
	}
	status, err := e.status(rec)
	if err != nil {
		status = sandbox.Status{ID: rec.Config.Spec.ID, Name: rec.Config.Spec.Name, CreatedAt: rec.Created, Error: err.Error()}
	}
	if status.State != sandbox.StateExited {
		status.State = sandbox.StateLost
		status.ExitCode = sandbox.ExitCreel
		status.Error = cmp.Or(status.Error, unknownEnd)
		if err := rundir.WriteStatus(e.KeeperDir(rec.Config.Spec.ID), status); err != nil {
			return err
		}
	}
	if err := e.closeLogs(ctx, rec.Config.Spec.ID); err != nil {
		return err
	}
	socket := filepath.Join(e.KeeperDir(rec.Config.Spec.ID), socket.Name) // a killed keeper leaves it
	if err := os.RemoveAll(socket); err != nil {                          // or something else in its place
		return fmt.Errorf("remove the keeper's socket: %w", err)
	}
	if err := e.proveGone(ctx, rec, true); err != nil {
		return err
	}
	return os.WriteFile(marker, nil, 0o600)
}
