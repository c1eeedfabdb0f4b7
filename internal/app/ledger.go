package app

import (
	"context"
	"log/slog"
	"path/filepath"
	"sync"

	"golang.org/x/mod/sumdb/note"

	"creel/internal/audit"
)

// ledger opens the installation's ledger when it is first needed: commands that
// put nothing on record work without one that is whole, or that can be written.
type ledger struct {
	open func() (*audit.Ledger, error)
}

// ledgerIn is the ledger in dir, whose runs' logs have at most quota bytes each.
func ledgerIn(dir string, quota int64, log *slog.Logger) ledger {
	return ledger{sync.OnceValues(func() (*audit.Ledger, error) {
		whole, err := audit.OpenLedger(dir)
		if err != nil {
			return nil, err
		}
		whole.MaxLog = quota
		if missing, err := whole.HeadMissing(); err == nil && missing { // an error comes again
			log.Warn("what said how far the audit ledger had come is missing; it is made anew, on record. "+
				"`creel audit verify --expect` with what you keep elsewhere shows whether the ledger's end was cut off", "file", filepath.Join(dir, audit.HeadName))
		}
		return whole, nil
	})}
}

func (l ledger) Append(ctx context.Context, events ...audit.Event) error {
	whole, err := l.open()
	if err != nil {
		return err
	}
	return whole.Append(ctx, events...)
}

func (l ledger) Note(failed func(error), events ...audit.Event) {
	whole, err := l.open()
	if err != nil {
		failed(err)
		return
	}
	whole.Note(failed, events...)
}

func (l ledger) OpenSandbox(ctx context.Context, id, dir string) (audit.SandboxKey, error) {
	whole, err := l.open()
	if err != nil {
		return audit.SandboxKey{}, err
	}
	return whole.OpenSandbox(ctx, id, dir)
}

func (l ledger) CloseSandbox(ctx context.Context, id, dir string) error {
	whole, err := l.open()
	if err != nil {
		return err
	}
	return whole.CloseSandbox(ctx, id, dir)
}

func (l ledger) SetAside(id, dir string) error {
	whole, err := l.open()
	if err != nil {
		return err
	}
	return whole.SetAside(id, dir)
}

func (l ledger) CloseAside(ctx context.Context) error {
	whole, err := l.open()
	if err != nil {
		return err
	}
	return whole.CloseAside(ctx)
}

func (l ledger) Checkpoint() (string, error) {
	whole, err := l.open()
	if err != nil {
		return "", err
	}
	return whole.Checkpoint()
}

func (l ledger) PublicKey() (string, error) {
	whole, err := l.open()
	if err != nil {
		return "", err
	}
	return whole.PublicKey()
}

func (l ledger) Signer() (note.Signer, error) {
	whole, err := l.open()
	if err != nil {
		return nil, err
	}
	return whole.Signer()
}

func (l ledger) RotateKey(context.Context) error {
	whole, err := l.open()
	if err != nil {
		return err
	}
	return whole.RotateKey()
}

func (l ledger) Prune(ctx context.Context, o audit.PruneOptions) (audit.PruneResult, error) {
	whole, err := l.open()
	if err != nil {
		return audit.PruneResult{}, err
	}
	return whole.Prune(ctx, o)
}
