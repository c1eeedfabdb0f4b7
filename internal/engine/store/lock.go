package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"creel/internal/durable"
	"creel/internal/keeper/launch"
	"creel/internal/sandbox"
)

// Lock holds up every other process that makes or removes a sandbox.
func (s *Store) Lock() (*durable.Lock, error) {
	return durable.Acquire(context.Background(), filepath.Join(s.dir, lockName))
}

// Locked calls do with the store locked.
func (s *Store) Locked(do func() error) error {
	lock, err := s.Lock()
	if err != nil {
		return err
	}
	defer lock.Close()
	return do()
}

func (s *Store) lockPath(id sandbox.ID) string { return filepath.Join(s.Dir(id), launch.LockName) }

// Wait waits until nobody looks after a sandbox, and takes its lock.
func (s *Store) Wait(ctx context.Context, id sandbox.ID) (*durable.Lock, error) {
	return durable.Acquire(ctx, s.lockPath(id))
}

// OpenLock opens the lock of a sandbox that another process holds.
func (s *Store) OpenLock(id sandbox.ID) (*durable.Lock, error) {
	return durable.OpenExisting(s.lockPath(id))
}

// Claim takes the lock of a sandbox that nobody looks after; nil says that
// somebody does, or that it is gone. Its launcher makes the directory and takes
// the lock while it holds the store's lock, so a directory without one, or
// with one that nobody holds, seen under that lock, has a dead maker.
func (s *Store) Claim(id sandbox.ID) (*durable.Lock, error) {
	store, err := s.Lock()
	if err != nil {
		return nil, err
	}
	defer store.Close()
	lock, err := durable.TryAcquire(s.lockPath(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("try keeper lock: %w; `creel rm -f %s` removes the sandbox", err, id.Short())
	}
	return lock, nil
}

// ClaimSoon is Claim for a sandbox whose task has ended: its keeper tells its
// clients before it goes, and may take so long.
func (s *Store) ClaimSoon(ctx context.Context, id sandbox.ID, within time.Duration) (*durable.Lock, error) {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		lock, err := s.Claim(id)
		if err != nil || lock != nil {
			return lock, err
		}
		if !s.Exists(id) {
			return nil, nil // removed meanwhile
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, nil
		}
	}
}

// LookedAfter reports whether somebody holds a sandbox's lock, without changing
// anything.
func (s *Store) LookedAfter(id sandbox.ID) bool { return durable.Held(s.lockPath(id)) }
