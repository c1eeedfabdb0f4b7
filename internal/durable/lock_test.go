package durable

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func acquired(t *testing.T, path string) *Lock {
	t.Helper()
	l, err := TryAcquire(path)
	if err != nil || l == nil {
		t.Fatalf("the lock is not free: %v", err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// Each of many adds one to a number while it has the lock, and none is lost.
func TestOneAtATime(t *testing.T) {
	dir := t.TempDir()
	path, number := filepath.Join(dir, "lock"), filepath.Join(dir, "number")
	shared, err := OpenLock(path, 0) // and used again and again
	if err != nil {
		t.Fatal(err)
	}
	defer shared.Close()
	add := func() error {
		text, err := os.ReadFile(number)
		n, _ := strconv.Atoi(string(text))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		return os.WriteFile(number, fmt.Append(nil, n+1), 0o600)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	const times = 20
	var all sync.WaitGroup
	for _, ctx := range []context.Context{ctx, ctx, context.Background(), context.Background()} {
		all.Go(func() {
			for range times {
				l, err := Acquire(ctx, path)
				if err != nil {
					t.Error(err)
					return
				}
				if err := errors.Join(add(), l.Close()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Go(func() {
		for range times {
			if err := errors.Join(shared.Lock(ctx), add(), shared.Unlock()); err != nil {
				t.Error(err)
			}
		}
	})
	all.Wait()
	if text, err := os.ReadFile(number); string(text) != strconv.Itoa(5*times) {
		t.Errorf("%s were counted, %v", text, err)
	}
}

// A process that inherited the lock holds it when its maker has closed it, until
// it is killed.
func TestLockIsInherited(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	l := acquired(t, path)
	cmd := exec.Command("cat")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	cmd.ExtraFiles = []*os.File{l.File}
	if err := errors.Join(cmd.Start(), l.Close()); err != nil {
		t.Fatal(err)
	}
	if !Held(path) {
		t.Error("nobody holds the lock")
	}
	if l, err := TryAcquire(path); l != nil || err != nil {
		t.Errorf("%v, %v", l, err)
	}
	cmd.Process.Kill()
	cmd.Wait()
	if Held(path) {
		t.Error("a dead process holds the lock")
	}
	acquired(t, path)
}

func TestWaitEndsWithItsContext(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	acquired(t, path)
	enough := errors.New("enough")
	ctx, cancel := context.WithTimeoutCause(t.Context(), 3*interval, enough)
	defer cancel()
	if l, err := Acquire(ctx, path); l != nil || !errors.Is(err, enough) {
		t.Errorf("%v, %v", l, err)
	}
}

// Whoever waits for a lock whose file is removed or replaced meanwhile gets that
// of the file that is there then.
func TestRemovedLockIsNone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	times := 0
	l, err := acquire(path, func(l *Lock) (bool, error) {
		if times++; times < 3 {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		}
		if times == 2 {
			if err := os.WriteFile(path, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		return l.TryLock()
	})
	if err != nil || times != 3 {
		t.Fatalf("after %d tries: %v", times, err)
	}
	defer l.Close()
	if !Held(path) {
		t.Error("the lock that was taken is not the one that is there")
	}
}

func TestShare(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	made := acquired(t, path)
	if err := made.Close(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		l, err := OpenExisting(path)
		if err == nil {
			defer l.Close()
			err = l.Share(t.Context())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if Held(path) {
		t.Error("a shared lock keeps others from sharing it")
	}
	if l, err := TryAcquire(path); l != nil || err != nil {
		t.Errorf("taken while it is shared: %v", err)
	}
}

func TestDirectoryAsLock(t *testing.T) {
	dir := t.TempDir()
	for n := range 2 {
		l, err := OpenExisting(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		if taken, err := l.TryLock(); err != nil || taken != (n == 0) {
			t.Errorf("%d: %v, %v", n, taken, err)
		}
	}
	if !Held(dir) {
		t.Error("it is not held")
	}
}

// What lies in a lock file's place is neither followed nor waited for, and a
// question makes no file.
func TestWhatIsNoLock(t *testing.T) {
	dir := t.TempDir()
	real, link, pipe := filepath.Join(dir, "real"), filepath.Join(dir, "link"), filepath.Join(dir, "pipe")
	acquired(t, real)
	if err := errors.Join(os.Symlink(real, link), unix.Mkfifo(pipe, 0o600)); err != nil {
		t.Fatal(err)
	}
	if Held(link) || Held(pipe) || Held(filepath.Join(dir, "missing")) {
		t.Error("held")
	}
	if _, err := os.Lstat(filepath.Join(dir, "missing")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it was made: %v", err)
	}
	if _, err := OpenLock(link, unix.O_NOFOLLOW); !errors.Is(err, unix.ELOOP) {
		t.Error(err)
	}
	if l, err := TryAcquire(link); l != nil || err != nil {
		t.Errorf("a link to a lock that is held: %v, %v", l, err)
	}
	if _, err := OpenExisting(link); !errors.Is(err, unix.ELOOP) {
		t.Error(err)
	}
	if _, err := OpenLock(dir, 0); err == nil || !strings.Contains(err.Error(), "`rm -r "+dir+"` fixes it") {
		t.Error(err)
	}
	var none *Lock
	if err := none.Close(); !errors.Is(err, os.ErrInvalid) {
		t.Error(err)
	}
}
