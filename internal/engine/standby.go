package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"creel/internal/engine/store"
	"creel/internal/keeper/launch"
	"creel/internal/sandbox"
	"creel/internal/scratch"
	"creel/internal/standby"
)

// standbyKey says which waiting VM a run can use, and which is worth having
// after it.
func standbyKey(rec store.Record) (standby.Key, error) {
	program, err := standby.Program()
	spec := rec.Config.Spec
	return standby.Key{
		Template: rec.Config.Template, Disk: diskKind(spec), DiskBytes: spec.Resources.DiskBytes,
		Confinement: spec.Confinement, Program: program,
	}, err
}

// diskKind is that of a disk which is kept, or may come to be.
func diskKind(spec sandbox.Spec) scratch.Kind {
	if spec.Keep || spec.KeepDetached {
		return scratch.Durable
	}
	return scratch.Disposable
}

// maxHandedPorts is how many descriptors beside a keeper's others can be handed
// over a socket.
const maxHandedPorts = 200

// standbyAnswers is how long a VM that waited may take to be ready for its
// task, on a machine that is busy.
const standbyAnswers = 20 * time.Second

// unfitError says why a VM that waited could not be used: it is dead, or
// wedged, or another creel's. Nothing of the task has happened.
type unfitError struct{ error }

func (u *unfitError) Unwrap() error { return u.error }

// takeWaiting is where a run may get a VM that waited.
type takeWaiting func(store.Record) *standby.Taken

func nobodyWaits(store.Record) *standby.Taken { return nil }

// takeStandby takes a VM that waits for such a run, if there is one that can be
// used, and moves it to the sandbox's directory. The store is locked.
func (e *Engine) takeStandby(rec store.Record) *standby.Taken {
	if e.opts.Standby.Size == 0 || len(rec.Config.Spec.Ports) > maxHandedPorts {
		return nil
	}
	taken, err := e.tryStandby(rec)
	if err != nil {
		e.opts.Log.Warn("no VM that waits can be used", "err", err)
	}
	return taken
}

func (e *Engine) tryStandby(rec store.Record) (*standby.Taken, error) {
	key, err := standbyKey(rec)
	if err != nil {
		return nil, err
	}
	taken, err := e.opts.Standby.Take(key)
	if err != nil || taken == nil {
		return nil, err
	}
	dir := e.store.Dir(rec.Config.Spec.ID)
	if err := taken.Move(dir); err != nil {
		return nil, errors.Join(err, taken.End(), os.RemoveAll(dir))
	}
	return taken, nil
}

// Standby starts one more VM that waits, for another task like s, where the
// configuration wants some to and there are not enough. It does not wait for
// it, and is called when s needs the machine no more.
func (e *Engine) Standby(s *Sandbox) error {
	if e.opts.Standby.Size == 0 {
		return nil
	}
	key, err := standbyKey(s.Record)
	if err != nil {
		return err
	}
	return e.opts.Standby.Fill(key)
}

// MakeStandby makes a place, with its disk, for a VM that this process will
// start, and which will wait there.
func (e *Engine) MakeStandby(ctx context.Context, key standby.Key) (*standby.Place, error) {
	place, err := e.makePlace(key)
	if err != nil {
		return nil, err
	}
	err = errors.Join(
		store.MakeKeeperDir(place.Dir, place.UID),
		e.opts.Scratch(ctx, filepath.Join(place.Dir, launch.DiskName), key.DiskBytes, key.Disk),
	)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make a place for a waiting VM: %w", err), os.RemoveAll(place.Dir))
	}
	return place, nil
}

func (e *Engine) makePlace(key standby.Key) (*standby.Place, error) {
	lock, err := e.store.Lock()
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	waiting, err := e.opts.Standby.UIDs()
	if err != nil {
		return nil, err
	}
	uid, err := e.store.FreeUID(waiting)
	if err != nil {
		return nil, err
	}
	return e.opts.Standby.Make(key, uid, e.store.Lock)
}

// sweepStandby removes what killed waiting processes left, and ends those that
// the configuration does not want any more.
func (e *Engine) sweepStandby() error {
	if e.opts.Standby.Empty() {
		return nil
	}
	return e.store.Locked(func() error { return e.opts.Standby.Sweep(e.opts.Standby.Size) })
}

// EndStandby ends the VMs that wait as clones of a template.
func (e *Engine) EndStandby(template string) error {
	return e.store.Locked(func() error { return e.opts.Standby.End(template) })
}
