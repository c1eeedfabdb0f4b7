package engine

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"

	"creel/internal/audit"
	"creel/internal/audit/chain"
	"creel/internal/audit/receipt"
	"creel/internal/audit/summary"
)

// Receipt makes the signed receipt of a run that has ended, also of one of
// which nothing but its record is there any more. Ref is a name, an ID or the
// beginning of one. The whole record is verified first: nothing is signed that
// is not proven.
func (e *Engine) Receipt(ctx context.Context, ref string) ([]byte, error) {
	id, err := e.receiptID(ctx, ref)
	if err != nil {
		return nil, err
	}
	public, err := e.opts.Ledger.PublicKey()
	if err != nil {
		return nil, err
	}
	report, err := audit.Verify(ctx, e.opts.AuditDir, public, audit.Options{})
	if err != nil {
		return nil, err
	}
	if len(report.Faults) > 0 {
		return nil, fmt.Errorf("no receipt: the audit record is not whole: %s; `creel audit verify` lists every fault", report.Faults[0])
	}
	r, err := summary.Of(ctx, e.opts.AuditDir, id)
	if err != nil {
		return nil, err
	}
	checkpoint, err := e.opts.Ledger.Checkpoint()
	if err != nil {
		return nil, err
	}
	if r.Audit.Ledger, err = chain.ParseCheckpoint(checkpoint); err != nil {
		return nil, err
	}
	signer, err := e.opts.Ledger.Signer()
	if err != nil {
		return nil, err
	}
	return receipt.Sign(r, signer)
}

// receiptID prefers a sandbox that exists to one that has gone.
func (e *Engine) receiptID(ctx context.Context, ref string) (string, error) {
	f, err := e.Find(ctx, ref)
	if err == nil {
		return string(f.Record.Config.Spec.ID), e.awaitEnd(ctx, f)
	}
	if !errors.Is(err, errdefs.ErrNotFound) {
		return "", err
	}
	return summary.Named(ctx, e.opts.AuditDir, ref)
}

// awaitEnd closes the record of a kept sandbox whose task has ended: its keeper
// tells its clients before it goes, and it is waited for.
func (e *Engine) awaitEnd(ctx context.Context, f Found) error {
	if e.store.Settled(f.Record.ID()) || f.Running() || !f.Record.Config.Spec.Keep {
		return nil
	}
	lock, err := e.store.Wait(ctx, f.Record.ID())
	if err != nil {
		return err
	}
	defer lock.Close()
	return e.settle(ctx, f.Record)
}
