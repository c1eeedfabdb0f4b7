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
	"strings"
	"syscall"

	"creel/internal/durable"
	"creel/internal/keeper"
	"creel/internal/policy/tier"
	"creel/internal/sandbox"

	"golang.org/x/sys/unix"
)

// ids are those of every sandbox that has a directory, or something in its
// place.
func (e *Engine) ids() ([]sandbox.ID, error) {
	entries, err := os.ReadDir(filepath.Join(e.opts.Dir, sandboxesName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // none was ever made
	}
	if err != nil {
		return nil, fmt.Errorf("list sandboxes: %w; look what lies there, and move it away", err)
	}
	var ids []sandbox.ID
	for _, entry := range entries {
		if id, err := sandbox.ParseID(entry.Name()); err == nil { // else it is not ours
			ids = append(ids, id)
		}
	}
	return ids, nil
}

// readRecord is record, and tells a sandbox whose record is damaged, or gone
// though the sandbox was complete, from one that is half made or half removed:
// that one's error is [fs.ErrNotExist].
func (e *Engine) readRecord(id sandbox.ID) (Record, error) {
	rec, err := e.record(id)
	if errors.Is(err, fs.ErrNotExist) && e.complete(id) {
		rec, err = e.record(id) // it may have been made between the two looks
	}
	if errors.Is(err, fs.ErrNotExist) && e.complete(id) {
		return rec, fmt.Errorf("%s of sandbox %s is missing", recordName, id.Short())
	}
	if err == nil && rec.Config.Spec.ID != id {
		return rec, fmt.Errorf("%s of sandbox %s is that of another one", recordName, id.Short())
	}
	return rec, err
}

// complete reports whether a sandbox has what is made after its record is, and
// removed before that is: a log, a keeper, or the mark that it has ended.
func (e *Engine) complete(id sandbox.ID) bool {
	dir := e.SandboxDir(id)
	logs, err := logsIn(dir)
	if err != nil || len(logs) > 0 {
		return true // what cannot be looked at may be
	}
	for _, name := range []string{processName, settledName} {
		if _, err := os.Lstat(filepath.Join(dir, name)); err == nil {
			return true
		}
	}
	return false
}

// settled reports whether a sandbox has ended and is kept.
func (e *Engine) settled(id sandbox.ID) bool {
	_, err := os.Lstat(filepath.Join(e.SandboxDir(id), settledName))
	return err == nil
}

// damaged is a sandbox whose record cannot be read, with all that is known
// without it.
func (e *Engine) damaged(id sandbox.ID, reason error) Found {
	rec := Record{Version: recordVersion, UID: e.ownerOf(id), Config: keeper.Config{
		Spec: sandbox.Spec{ID: id, Name: cmp.Or(e.namedBy(id), id.Short())},
	}}
	if info, err := os.Lstat(e.SandboxDir(id)); err == nil {
		rec.Created = info.ModTime()
	}
	f := Found{Record: rec, Damage: reason.Error()}
	var err error
	if f.Status, err = e.status(rec); err != nil || !f.Running() || !e.lookedAfter(id) {
		f.Status.ID, f.Status.Name = id, rec.Config.Spec.Name
		f.Status.State, f.Status.ExitCode = sandbox.StateLost, sandbox.ExitCreel
		f.Status.Error = fmt.Sprintf("its record cannot be read; `creel rm -f %s` removes it", id.Short())
	}
	return f
}

// errDamaged is what a command says that needs more of a sandbox than its ID.
func (f Found) errDamaged() error {
	return fmt.Errorf("sandbox %s is damaged: %s; `creel rm -f %s` removes it", f.Record.Config.Spec.Name, f.Damage, f.Record.Config.Spec.ID.Short())
}

// namedBy is the name that leads to a sandbox; "": there is none.
func (e *Engine) namedBy(id sandbox.ID) string {
	entries, _ := os.ReadDir(filepath.Join(e.opts.Dir, namesName)) // without names it has none
	for _, entry := range entries {
		if owner, taken := e.nameOwner(entry.Name()); taken && owner == id {
			return entry.Name()
		}
	}
	return ""
}

// ownerOf is the user that a sandbox has of its own, by what it owns; 0: none.
func (e *Engine) ownerOf(id sandbox.ID) int {
	info, err := os.Lstat(e.KeeperDir(id))
	if err != nil {
		return 0
	}
	uid := int(info.Sys().(*syscall.Stat_t).Uid)
	if uid < uidBase || uid >= uidBase+uidCount {
		return 0
	}
	return uid
}

// lookedAfter reports whether somebody holds a sandbox's lock, without changing
// anything.
func (e *Engine) lookedAfter(id sandbox.ID) bool {
	return durable.Held(filepath.Join(e.SandboxDir(id), lockName))
}

// removeDamaged deletes a sandbox whose record cannot be read, and frees every
// name that leads to it. The caller holds the keeper's lock where there is one.
func (e *Engine) removeDamaged(ctx context.Context, f Found) error {
	store, err := e.lockStore()
	if err != nil {
		return err
	}
	defer store.Close()
	id := f.Record.Config.Spec.ID
	return e.removeLost(ctx, id, tier.Hide("its record was damaged: "+f.Damage), func() error {
		return e.takeAway(ctx, f.Record, func() error { return e.freeNamesOf(id) })
	})
}

// freeNamesOf frees every name that leads to a sandbox. The store is locked.
func (e *Engine) freeNamesOf(id sandbox.ID) error {
	for name := e.namedBy(id); name != ""; name = e.namedBy(id) {
		if err := e.freeNameOf(id, name); err != nil {
			return err
		}
	}
	return nil
}

// readOnly says why nothing can be changed in the state directory; nil: it can.
func (e *Engine) readOnly() error { return unix.Access(e.opts.Dir, unix.W_OK|unix.X_OK) }

// tidy is [Engine.Reconcile] before a command that can do without it. What could
// not be done is said in one line, of that level: who asks about one sandbox is
// not told of the others.
func (e *Engine) tidy(ctx context.Context, level slog.Level) {
	if err := e.readOnly(); err != nil {
		e.stale.Do(func() {
			e.opts.Log.Warn("the state directory cannot be written: nothing is cleaned up, and what is shown may be out of date", "dir", e.opts.Dir, "err", err)
		})
		return
	}
	err := e.Reconcile(ctx)
	if err == nil {
		return
	}
	if level >= slog.LevelWarn && e.warned.Swap(true) {
		return
	}
	first, rest, _ := strings.Cut(err.Error(), "\n")
	if rest != "" {
		first = fmt.Sprintf("%s (and %d more lines)", first, strings.Count(rest, "\n")+1)
	}
	e.opts.Log.Log(ctx, level, "some leftovers could not be reconciled; the next command tries again", "err", first)
}
