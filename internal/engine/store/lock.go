package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"creel/internal/keeper/launch"
	"creel/internal/sandbox"
)

// Lock holds up every other process that makes or removes a sandbox.
func (s *Store) Lock() (*os.File, error) { return lockFile(filepath.Join(s.dir, lockName)) }

// Locked calls do with the store locked.
func (s *Store) Locked(do func() error) error {
	lock, err := s.Lock()
	if err != nil {
		return err
	}
	defer lock.Close()
	return do()
}

// Held waits until nobody looks after a sandbox, and takes its lock.
func (s *Store) Held(id sandbox.ID) (*os.File, error) {
	return lockFile(filepath.Join(s.Dir(id), launch.LockName))
}

// OpenLock opens the lock of a sandbox that another process holds.
func (s *Store) OpenLock(id sandbox.ID) (*os.File, error) {
	return os.Open(filepath.Join(s.Dir(id), launch.LockName))
}

// Claim takes the lock of a sandbox that nobody looks after; nil says that
// somebody does, or that it is gone. Its launcher makes the directory and takes
// the lock while it holds the store's lock, so a directory without one, or
// with one that nobody holds, seen under that lock, has a dead maker.
func (s *Store) Claim(id sandbox.ID) (*os.File, error) {
	store, err := s.Lock()
	if err != nil {
		return nil, err
	}
	defer store.Close()
	f, err := os.OpenFile(filepath.Join(s.Dir(id), launch.LockName), os.O_CREATE|os.O_RDWR, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open keeper lock: %w; `creel rm -f %s` removes the sandbox", err, id.Short())
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		return f, nil
	}
	f.Close()
	if err == unix.EWOULDBLOCK {
		return nil, nil
	}
	return nil, fmt.Errorf("try keeper lock: %w", err)
}

// ClaimSoon is Claim for a sandbox whose task has ended: its keeper tells its
// clients before it goes, and may take so long.
func (s *Store) ClaimSoon(ctx context.Context, id sandbox.ID, within time.Duration) (*os.File, error) {
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
func (s *Store) LookedAfter(id sandbox.ID) bool {
	f, err := os.OpenFile(filepath.Join(s.Dir(id), launch.LockName), os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	return unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB) == unix.EWOULDBLOCK
}

// lockFile takes an exclusive lock, which lasts until the last descriptor of
// the file is closed, by Close or by the end of the processes that have it.
func lockFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o600)
	if errors.Is(err, syscall.EISDIR) {
		err = fmt.Errorf("%w; `rm -r %s` mends it", err, path)
	}
	if err != nil {
		return nil, fmt.Errorf("open lock: %w", err)
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if err != unix.EINTR {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return f, nil
}

// replaceFile leaves the old content or the new one, whenever this process or
// the machine ends.
func replaceFile(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // gone already where it was renamed
	_, err = f.Write(data)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
