package app

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"creel/internal/config"
	"creel/internal/engine"
	"creel/internal/engine/store"
	"creel/internal/environ"
	"creel/internal/keeper"
	"creel/internal/keeper/launch"
	"creel/internal/keeper/socket"
	"creel/internal/standby"
	"creel/internal/vm"
	"creel/internal/vm/qemu"
)

// standbyMain is a process whose VM waits for a task, from start to end: it
// becomes the keeper of whoever takes it.
func standbyMain(ctx context.Context, text string) error {
	var key standby.Key
	if err := json.Unmarshal([]byte(text), &key); err != nil {
		return fmt.Errorf("read what is to wait: %w; a waiting VM is started by creel itself", err)
	}
	log, end := keeperLog()
	defer end()
	cfg, _, err := config.Load(os.LookupEnv)
	if err != nil {
		return err
	}
	// Not all that a front door opens: the ledger's key must not be in a process
	// that becomes a keeper.
	eng := engine.New(engine.Options{
		Dir: cfg.StateDir, Standby: standbyPool(cfg), Scratch: makeScratch(cfg.StateDir), Log: log,
	})
	place, err := eng.MakeStandby(ctx, key)
	if errors.Is(err, standby.ErrEnough) {
		return nil
	}
	if err != nil {
		return err
	}
	defer place.Close() // only now: it holds the lock of the sandbox that this becomes
	if err := logTo(filepath.Join(place.Dir, launch.LogName)); err != nil {
		return err
	}
	waiting, err := wait(ctx, cfg.StateDir, key, place, log)
	if err != nil {
		return err
	}
	defer waiting.Close() // where no run has taken it
	if err := place.Listen(); err != nil {
		return err
	}
	until, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { <-waiting.Done(); cancel() }()
	files, err := place.Await(until, cfg.StandbyFor)
	if err != nil || files == nil {
		return err
	}
	return become(ctx, files, key, waiting, log)
}

func standbyPool(cfg config.Config) *standby.Pool {
	return &standby.Pool{
		Dir: filepath.Join(cfg.StateDir, store.StandbyName), Size: cfg.Standby, Command: []string{self, StandbyArg},
		Environ: environ.Own(config.Variables()),
	}
}

// become makes this process the keeper that its taker wants.
func become(ctx context.Context, files []*os.File, key standby.Key, waiting *keeper.Waiting, log *slog.Logger) error {
	l, err := launch.Read(launch.Files(files))
	if err != nil {
		return err
	}
	if l.Config.Template != key.Template || l.Config.Spec.Confinement != key.Confinement {
		return errors.New("the waiting VM is not what its taker wants")
	}
	if err := os.Remove(filepath.Join(l.SandboxDir, socket.Name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the waiting VM's socket: %w", err)
	}
	return keep(ctx, l, waiting, log)
}

// wait starts the clone that waits.
func wait(ctx context.Context, stateDir string, key standby.Key, place *standby.Place, log *slog.Logger) (*keeper.Waiting, error) {
	driver, err := qemu.New(qemu.Options{})
	if err != nil {
		return nil, err
	}
	parts, m, err := openParts(ctx, stateDir, key.Template, place.Dir, log)
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(place.Dir, vmmDir)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the VMM's directory: %w", err)
	}
	w, err := keeper.Restore(ctx, driver, vm.Config{
		Shape: m.Shape, Accel: m.Accel,
		Confinement: vm.Confinement{Level: key.Confinement, UID: place.UID, GID: place.UID, Dir: dir},
	}, parts)
	if err == nil {
		w.Prepare()
	}
	return w, err
}

// logTo makes a file this process's standard error.
func logTo(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("open keeper log: %w", err)
	}
	defer f.Close()
	return unix.Dup3(int(f.Fd()), int(os.Stderr.Fd()), 0)
}
