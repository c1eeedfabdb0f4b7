package durable

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Lock is a lock between processes, on a file or directory. Whoever inherits
// its descriptor, or is sent it, holds the lock too: it ends with the last one,
// by Close or by the death of its process.
type Lock struct{ *os.File }

// Acquire opens the lock file at path, makes it where absent, and waits until
// this process alone has the lock. Where ctx ends first, its cause is the error.
func Acquire(ctx context.Context, path string) (*Lock, error) {
	return acquire(path, func(l *Lock) (bool, error) { return true, l.Lock(ctx) })
}

// TryAcquire is [Acquire] without waiting: nil says that somebody has the lock.
func TryAcquire(path string) (*Lock, error) { return acquire(path, (*Lock).TryLock) }

// acquire looks whether the file that it has locked is still the one at path: it
// may have been moved or removed by whoever had the lock before.
func acquire(path string, take func(*Lock) (bool, error)) (*Lock, error) {
	for {
		l, err := OpenLock(path, 0)
		if err != nil {
			return nil, err
		}
		taken, err := take(l)
		there := false
		if taken && err == nil {
			there, err = l.isAt(path)
		}
		if there && err == nil {
			return l, nil
		}
		l.Close()
		if err != nil || !taken {
			return nil, err
		}
	}
}

func (l *Lock) isAt(path string) (bool, error) {
	named, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look at lock: %w", err)
	}
	mine, err := l.Stat()
	return err == nil && os.SameFile(mine, named), err
}

// Close gives up this process's descriptor. A lock that is nil has none.
func (l *Lock) Close() error {
	if l == nil {
		return os.ErrInvalid
	}
	return l.File.Close()
}

// Held reports whether somebody has the lock at path. It makes no file, follows
// no link and waits for nothing.
func Held(path string) bool {
	l, err := OpenExisting(path)
	if err != nil {
		return false
	}
	defer l.Close()
	free, err := l.try(unix.LOCK_SH)
	return !free && err == nil
}

// OpenLock opens the lock file at path, and makes it where absent, without
// taking the lock. Flags are added to those of open(2).
func OpenLock(path string, flags int) (*Lock, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|flags, 0o600)
	if errors.Is(err, unix.EISDIR) {
		err = fmt.Errorf("%w; `rm -r %s` fixes it", err, path)
	}
	if err != nil {
		return nil, fmt.Errorf("open lock: %w", err)
	}
	return &Lock{f}, nil
}

// OpenExisting opens the file or directory at path as a lock, without taking it.
// It follows no link and waits for nothing.
func OpenExisting(path string) (*Lock, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open lock: %w", err)
	}
	return &Lock{f}, nil
}

// Lock waits until nobody else has the lock. Where ctx ends first, its cause is
// the error.
func (l *Lock) Lock(ctx context.Context) error { return l.wait(ctx, unix.LOCK_EX) }

// Share waits until nobody else has the lock but by Share.
func (l *Lock) Share(ctx context.Context) error { return l.wait(ctx, unix.LOCK_SH) }

// TryLock is Lock without waiting: false says that somebody has the lock.
func (l *Lock) TryLock() (bool, error) { return l.try(unix.LOCK_EX) }

// Unlock gives the lock up, and keeps the file open.
func (l *Lock) Unlock() error { return l.flock(unix.LOCK_UN) }

// interval is the time between two tries, since flock(2) cannot be cancelled.
const interval = 10 * time.Millisecond

func (l *Lock) wait(ctx context.Context, how int) error {
	if ctx.Done() == nil {
		return l.flock(how)
	}
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		if taken, err := l.try(how); taken || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}

func (l *Lock) try(how int) (bool, error) {
	err := l.flock(how | unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return false, nil
	}
	return err == nil, err
}

func (l *Lock) flock(how int) error {
	for {
		err := unix.Flock(int(l.Fd()), how)
		if err == nil {
			return nil
		}
		if err != unix.EINTR {
			return fmt.Errorf("lock %s: %w", l.Name(), err)
		}
	}
}
