package engine

import (
	"context"
	"errors"
	"fmt"

	"creel/internal/durable"
	"creel/internal/engine/process"
	"creel/internal/engine/store"
	"creel/internal/keeper/launch"
	"creel/internal/policy/syntax"
	"creel/internal/sandbox"
	"creel/internal/standby"
	"creel/internal/undo"
	"creel/internal/vm"
)

// plan is a run that is to be started: what is stored of its sandbox, and what
// its launcher alone needs.
type plan struct {
	store.Record

	auditDir   string         // of this run, in the sandbox's directory
	madeUpName bool           // may be replaced until it is reserved
	waited     *standby.Taken // the VM that waited for it, or nil
}

// planFor decides everything about a run that is decided before it starts.
func (e *Engine) planFor(ctx context.Context, spec sandbox.Spec, progress func(string)) (plan, error) {
	img, err := e.opts.Images.Resolve(ctx, spec.Image)
	if err != nil {
		return plan{}, err
	}
	task, err := process.For(spec, img.Config)
	if err != nil {
		return plan{}, err
	}
	stop, err := process.StopSignal(img.Config.StopSignal)
	if err != nil {
		return plan{}, fmt.Errorf("image %s: %w", spec.Image, err)
	}
	shape, err := vm.ShapeFor(spec.Resources.MemoryBytes, spec.Resources.CPUs)
	if err != nil {
		return plan{}, err
	}
	m, err := e.Template(ctx, img, TemplateWish{shape, spec.Accel, spec.Confinement}, progress)
	if err != nil {
		return plan{}, err
	}
	rec := store.NewRecord(launch.Config{
		Spec: spec, Process: task, StopSignal: stop,
		Template: m.Digest, Shape: shape, Accel: m.Accel,
	})
	rec.ImageID, rec.PolicyDigest = img.ID, syntax.Digest(syntax.Canonical(spec.Policy))
	return plan{Record: rec, auditDir: store.AuditName}, nil
}

// reserve takes the name, a user and a directory, and writes the record. From
// then on the sandbox exists for every other process. The file returned holds
// the keeper's lock, which says that somebody looks after the sandbox.
func (e *Engine) reserve(p *plan, steps *undo.Stack, waiting takeWaiting) (lock *durable.Lock, err error) {
	err = e.store.Locked(func() error {
		lock, err = e.reserveLocked(p, steps, waiting)
		return err
	})
	return lock, err
}

func (e *Engine) reserveLocked(p *plan, steps *undo.Stack, waiting takeWaiting) (*durable.Lock, error) {
	if err := e.store.MakeDirs(); err != nil {
		return nil, err
	}
	if _, taken := e.store.Named(p.Name()); taken && p.madeUpName {
		p.Config.Spec.Name = e.store.MakeUpName() // another command made up the same
	}
	if err := e.store.TakeName(p.Name(), p.ID()); err != nil {
		if _, taken := errors.AsType[*store.NameTaken](err); taken {
			err = fmt.Errorf("%w; choose another with --name", err)
		}
		return nil, err
	}
	steps.Push("sandbox", func() error { return e.discard(p.Record) })
	lock, err := e.takeDir(p, steps, waiting)
	if err != nil {
		return nil, err
	}
	if err := e.store.Write(p.Record); err != nil {
		lock.Close()
		return nil, err
	}
	return lock, nil
}

// takeDir gives a sandbox its directory: that of a VM that waited, or a new one.
func (e *Engine) takeDir(p *plan, steps *undo.Stack, waiting takeWaiting) (*durable.Lock, error) {
	if p.waited = waiting(p.Record); p.waited != nil {
		steps.Push("waiting VM", p.waited.End)
		p.UID = p.waited.UID
		return e.store.OpenLock(p.ID()) // its process holds it
	}
	others, err := e.opts.Standby.UIDs()
	if err != nil {
		return nil, err
	}
	return e.store.MakeDir(&p.Record, others)
}
