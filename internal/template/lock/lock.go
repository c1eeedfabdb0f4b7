// Package lock takes file locks between processes: [Wait] and [Try]. The kernel
// gives a lock back on any death of its holder. The package must not know what
// is locked.
package lock

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// interval between two attempts: flock(2) itself cannot be cancelled.
const interval = 10 * time.Millisecond

// Wait takes the lock of the file at path, which is made where absent and stays.
// Waiting, which may be nil, is called once if another process has it. The
// lock ends with Close.
func Wait(ctx context.Context, path string, waiting func()) (*os.File, error) {
	f, ok, err := Try(path)
	if ok || err != nil {
		return f, err
	}
	if waiting != nil {
		waiting()
	}
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-tick.C:
		}
		if f, ok, err := Try(path); ok || err != nil {
			return f, err
		}
	}
}

// Try is Wait without waiting: ok is false when another process has the lock.
func Try(path string) (f *os.File, ok bool, err error) {
	f, err = os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, false, fmt.Errorf("open lock: %w", err)
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		return f, true, nil
	}
	f.Close()
	if errors.Is(err, unix.EWOULDBLOCK) || errors.Is(err, unix.EINTR) {
		return nil, false, nil
	}
	return nil, false, fmt.Errorf("lock %q: %w", path, err)
}
