package engine

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"creel/internal/audit"
	"creel/internal/audit/event"
	"creel/internal/engine/store"
	"creel/internal/keeper/socket"
	"creel/internal/procs"
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
		left, err := processesLeft(rec.UID, killGrace)
		look("processes", left, err)
	}
	left, err := mountsLeft(dir)
	look("mounts", left, err)
	if kept {
		found.Kept = []string{"record", "logs", "disk"}
		left, err = fileLeft(filepath.Join(e.store.KeeperDir(id), socket.Name))
		look("socket", left, err)
	} else {
		left, err = fileLeft(dir)
		look("directory", left, err)
	}
	found.Complete = len(found.Left) == 0
	return e.opts.Ledger.Append(context.WithoutCancel(ctx), audit.Event{Kind: audit.KindCleanup, Sandbox: string(id), Data: found})
}

// processesLeft lists the processes of a user whom only one sandbox has. One that
// was killed a moment ago is given grace to end.
func processesLeft(uid int, grace time.Duration) (left []string, err error) {
	err = procs.EachOf(uid, func(p *procs.Handle) {
		if ended, err := p.Ends(grace); err != nil || !ended {
			left = append(left, "process "+strconv.Itoa(p.PID))
		}
	})
	return left, err
}

// mountsLeft lists this namespace's mounts in a directory.
func mountsLeft(dir string) (left []string, err error) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	for line := range bytes.Lines(data) {
		if fields := strings.Fields(string(line)); len(fields) > 4 && strings.HasPrefix(fields[4]+"/", dir+"/") {
			left = append(left, "mount "+fields[4])
		}
	}
	return left, nil
}

// fileLeft is the name of the file at path, where there is one.
func fileLeft(path string) ([]string, error) {
	_, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return []string{filepath.Base(path)}, err
}
