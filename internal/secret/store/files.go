package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"

	"creel/internal/durable"
)

// change runs do while no other process changes the store, and makes the store
// where it is not there yet.
func (s *Store) change(ctx context.Context, do func() error) error {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return fmt.Errorf("make directory of secrets: %w", err)
	}
	if err := s.checkDir(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, lockWait, errors.New("another creel has been changing secrets for too long; look for one that hangs"))
	defer cancel()
	held, err := durable.Acquire(ctx, filepath.Join(s.dir, lockName))
	if err != nil {
		return fmt.Errorf("lock secrets: %w", err)
	}
	defer held.Close()
	if err := durable.Sweep(s.dir); err != nil {
		return fmt.Errorf("clear directory of secrets: %w", err)
	}
	return do()
}

// checkDir refuses a directory that others can look into or change.
func (s *Store) checkDir() error {
	info, err := os.Lstat(s.dir)
	if err != nil {
		return fmt.Errorf("look at directory of secrets: %w", err)
	}
	if !info.IsDir() || !ownedAlone(info) {
		return fmt.Errorf("the directory of secrets %s is not yours alone (%s); look what changed it, then `chmod 700` it", s.dir, info.Mode())
	}
	return nil
}

// ownedAlone reports whether a file is of this user, and nobody else may so
// much as read it.
func ownedAlone(info os.FileInfo) bool {
	return int(info.Sys().(*syscall.Stat_t).Uid) == os.Geteuid() && info.Mode().Perm()&0o077 == 0
}

// readFile reads a regular file of at most limit bytes, and waits for nothing.
func readFile(path string, limit int64) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file; look what it is, and move it away", path)
	}
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("%s has more than %d bytes", path, limit)
	}
	return data, nil
}
