package engine

import (
	"context"
	"path/filepath"
	"time"

	"creel/internal/audit"
	"creel/internal/audit/event"
	"creel/internal/engine/remains"
	"creel/internal/engine/store"
	"creel/internal/keeper/socket"
)

// killGrace is how long a process may take to end that was killed.
const killGrace = 5 * time.Second

// proveGone looks for what could be left of a run that has ended, and puts
// what it finds on record. Of a kept sandbox the directory is meant to stay.
func (e *Engine) proveGone(ctx context.Context, rec store.Record, kept bool) error {
	id := rec.Config.Spec.ID
	dir := e.store.Dir(id)
	found := event.Cleanup{}
	look := func(what string, left []string, err error) {
		if err != nil {
			return // what could not be looked at is not said to be gone
		}
		found.Checked = append(found.Checked, what)
		found.Left = append(found.Left, left...)
	}
	if rec.UID != 0 {
		left, err := remains.Processes(rec.UID, killGrace)
		look("processes", left, err)
	}
	left, err := remains.Mounts(dir)
	look("mounts", left, err)
	if kept {
		found.Kept = []string{"record", "logs", "disk"}
		left, err = remains.File(filepath.Join(e.store.KeeperDir(id), socket.Name))
		look("socket", left, err)
	} else {
		left, err = remains.File(dir)
		look("directory", left, err)
	}
	found.Complete = len(found.Left) == 0
	return e.opts.Ledger.Append(context.WithoutCancel(ctx), audit.Event{Kind: audit.KindCleanup, Sandbox: string(id), Data: found})
}
