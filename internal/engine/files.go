package engine

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/containerd/errdefs"

	"creel/internal/audit"
	"creel/internal/undo"
)

// Files boots a helper clone with the disk of a kept sandbox that has ended,
// and no task: its client can copy, and nothing else. The host never mounts a
// disk that a guest has written. Release ends the helper and leaves the
// sandbox as it is.
func (e *Engine) Files(ctx context.Context, f Found) (_ *Sandbox, err error) {
	p := plan{Record: f.Record}
	id := p.ID()
	dir := e.store.Dir(id)
	lock, err := e.store.ClaimSoon(ctx, id, e.leaves)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	if lock == nil {
		return nil, errorf(errdefs.ErrUnavailable, "sandbox %s is in use by another command; try again when it has ended", p.Config.Spec.Name)
	}
	p.Config.Helper = true
	p.Config.Spec.Timeout = 0
	p.Config.Spec.Policy, p.Config.Spec.Ports, p.Config.Spec.Canaries = "", nil, false // no task, no network
	p.auditDir = e.store.HelperLog(id)
	var steps undo.Stack
	defer func() { err = errors.Join(err, steps.Unwind()) }()
	steps.Push("audit log", func() error { return e.endHelper(context.WithoutCancel(ctx), p) }) // it may be open where opening it fails
	key, err := e.opts.Ledger.OpenSandbox(ctx, string(id), filepath.Join(dir, p.auditDir))
	if err != nil {
		return nil, fmt.Errorf("open the helper's audit log: %w", err)
	}
	sb, err := e.bringUp(ctx, p, key, lock, network{})
	if err != nil {
		return nil, err
	}
	steps.Release()
	return sb, nil
}

// endHelper closes the log of a helper run, or else sets it aside; where it can
// do neither, the log stays with the sandbox until that is removed.
func (e *Engine) endHelper(ctx context.Context, p plan) error {
	id := string(p.Config.Spec.ID)
	dir := filepath.Join(e.store.Dir(p.Config.Spec.ID), p.auditDir)
	closed := e.opts.Ledger.CloseSandbox(ctx, id, dir)
	if closed == nil || errors.Is(closed, audit.ErrUnsound) {
		return closed
	}
	return errors.Join(fmt.Errorf("the helper's audit log is kept until its closing can be recorded: %w", closed), e.opts.Ledger.SetAside(id, dir))
}
