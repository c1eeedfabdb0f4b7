package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"creel/internal/audit"
	"creel/internal/undo"
)

// Files boots a helper clone with the disk of a kept sandbox that has ended,
// and no task: its client can copy, and nothing else. The host never mounts a
// disk that a guest has written. Release ends the helper and leaves the
// sandbox as it is.
func (e *Engine) Files(ctx context.Context, f Found) (_ *Sandbox, err error) {
	rec := f.Record
	id := rec.Config.Spec.ID
	dir := e.SandboxDir(id)
	lock, err := e.claimSoon(ctx, id)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	if lock == nil {
		return nil, fmt.Errorf("sandbox %s is in use by another command; try again when it has ended", rec.Config.Spec.Name)
	}
	rec.Config.Helper = true
	rec.Config.Spec.Timeout = 0
	rec.Config.Spec.Policy, rec.Config.Spec.Ports, rec.Config.Spec.Canaries = "", nil, false // no task, no network
	rec.auditDir = freeAuditDir(dir)
	var steps undo.Stack
	defer func() { err = errors.Join(err, steps.Unwind()) }()
	steps.Push("audit log", func() error { return e.endHelper(context.WithoutCancel(ctx), rec) }) // it may be open where opening it fails
	key, err := e.opts.Ledger.OpenSandbox(ctx, string(id), filepath.Join(dir, rec.auditDir))
	if err != nil {
		return nil, fmt.Errorf("open the helper's audit log: %w", err)
	}
	sb, err := e.bringUp(ctx, rec, key, lock, network{})
	if err != nil {
		return nil, err
	}
	steps.Release()
	return sb, nil
}

// endHelper closes the log of a helper run, or else sets it aside; where it can
// do neither, the log stays with the sandbox until that is removed.
func (e *Engine) endHelper(ctx context.Context, rec Record) error {
	id := string(rec.Config.Spec.ID)
	dir := filepath.Join(e.SandboxDir(rec.Config.Spec.ID), rec.auditDir)
	closed := e.opts.Ledger.CloseSandbox(ctx, id, dir)
	if closed == nil || errors.Is(closed, audit.ErrUnsound) {
		return closed
	}
	return errors.Join(fmt.Errorf("the helper's audit log is kept until its closing can be recorded: %w", closed), e.opts.Ledger.SetAside(id, dir))
}

// freeAuditDir names the log of one more helper run: each run has its own.
func freeAuditDir(dir string) string {
	for n := 1; ; n++ {
		name := fmt.Sprintf("%s.%d", auditName, n)
		if _, err := os.Lstat(filepath.Join(dir, name)); errors.Is(err, os.ErrNotExist) {
			return name
		}
	}
}
