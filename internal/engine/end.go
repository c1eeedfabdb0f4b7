package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"creel/internal/audit"
	"creel/internal/audit/event"
	"creel/internal/engine/store"
	"creel/internal/keeper/launch"
	"creel/internal/procs"
)

// answersIn is how long a keeper may take to end its run when it is told to,
// before it is ended from outside.
const answersIn = 30 * time.Second

// noteKeeper writes down which process is the keeper of the sandbox in dir: who
// launches it does, outside of what the keeper can write. What a keeper says of
// itself is not believed.
func noteKeeper(dir string, p procs.Instance) error {
	data, err := json.Marshal(p)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, store.ProcessName), data, 0o600) // a reboot makes it worthless
	}
	if err != nil {
		return fmt.Errorf("note the keeper's process: %w", err)
	}
	return nil
}

// endKeeper ends a sandbox's keeper from outside, and all that it has started.
// The caller tries the sandbox's lock to see whether that was all.
func (e *Engine) endKeeper(ctx context.Context, rec store.Record) error {
	id := rec.Config.Spec.ID
	family, err := endFamily(e.store.Dir(id))
	others, left := e.endUser(rec.UID)
	if err = errors.Join(err, left); family+others == 0 {
		return err // nobody was there
	}
	about := audit.Event{Kind: audit.KindSignal, Sandbox: string(id), Data: event.Signal{Signal: int(unix.SIGKILL), Target: "keeper"}}
	if recorded := e.opts.Ledger.Append(context.WithoutCancel(ctx), about); recorded != nil {
		e.opts.Log.Warn("that the keeper was ended is not on record", "sandbox", id.Short(), "err", recorded)
	}
	return err
}

// endFamily ends the keeper of the sandbox in dir, and what it has started. If a
// holder is among that, the next run starts another. It returns how many were
// sent a signal.
func endFamily(dir string) (ended int, err error) {
	data, err := os.ReadFile(filepath.Join(dir, store.ProcessName))
	if err != nil {
		return 0, fmt.Errorf("find the keeper's process: %w; find it by its open file %s, and end it", err, filepath.Join(dir, launch.LockName))
	}
	var keeper procs.Instance
	if err := json.Unmarshal(data, &keeper); err != nil {
		return 0, fmt.Errorf("read %s: %w", store.ProcessName, err)
	}
	main, err := keeper.Open()
	if errors.Is(err, procs.ErrGone) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	errs := []error{main.Signal(unix.SIGSTOP)} // it starts no more of them
	started, err := descendants(keeper.PID)
	errs = append(errs, err)
	family := append(started, main)
	for _, p := range family {
		errs = append(errs, p.Signal(unix.SIGKILL))
	}
	for _, p := range family {
		errs = append(errs, awaitProcess(p, killGrace), p.Close())
	}
	return len(family), errors.Join(errs...)
}

func awaitProcess(p *procs.Handle, within time.Duration) error {
	ended, err := p.Ends(within)
	if err == nil && !ended {
		err = fmt.Errorf("process %d did not end within %s of SIGKILL; the kernel holds it", p.PID, within)
	}
	return err
}

// descendants holds all that a process has started, and what those have.
func descendants(of int) (out []*procs.Handle, err error) {
	children, err := procs.Children()
	for wave := children[of]; len(wave) > 0; {
		var next []procs.Instance
		for _, p := range wave {
			if h, err := p.Open(); err == nil { // else it has ended
				out = append(out, h)
			}
			next = append(next, children[p.PID]...)
		}
		wave = next
	}
	return out, err
}

// endUser ends every process of a user whom only one sandbox has, and returns
// how many there were.
func (e *Engine) endUser(uid int) (ended int, err error) {
	if !store.OwnUser(uid) {
		return 0, nil // the user's own
	}
	var errs []error
	err = procs.EachOf(uid, func(p *procs.Handle) {
		errs = append(errs, p.Signal(unix.SIGKILL), awaitProcess(p, killGrace))
		ended++
	})
	return ended, errors.Join(append(errs, err)...)
}
