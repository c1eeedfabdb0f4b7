package socket

import (
	"context"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"creel/internal/guest/api"
	"creel/internal/sandbox"
	"creel/internal/wire"

	"golang.org/x/sys/unix"
)

// keeperIn is a keeper of the sandbox id that listens in dir.
func keeperIn(t *testing.T, dir string, id sandbox.ID) {
	t.Helper()
	l, err := Listen(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			c := wire.NewConn(conn, wire.Options{Handler: func(ctx context.Context, s *wire.Stream) {
				if s.Op() != OpHello {
					s.Send(ctx, api.Reply{})
					return
				}
				s.Send(ctx, HelloReply{Version: Version, ID: id})
			}})
			t.Cleanup(func() { c.Close() })
		}
	}()
}

// A keeper that a guest has taken over lays something else in the place of its
// socket: no client is led to another sandbox's keeper, or made to wait.
func TestOnlyTheKeeperOfThatSandbox(t *testing.T) {
	id, other := sandbox.NewID(), sandbox.NewID()
	for name, tc := range map[string]struct {
		lay  func(at, others string) error
		want string
	}{
		"a link to another's":      {func(at, others string) error { return os.Symlink(others, at) }, "is not a socket"},
		"a hard link of another's": {func(at, others string) error { return os.Link(others, at) }, "it is not that of sandbox " + id.Short()},
		"a file":                   {func(at, _ string) error { return os.WriteFile(at, nil, 0o600) }, "is not a socket"},
		"a pipe":                   {func(at, _ string) error { return unix.Mkfifo(at, 0o600) }, "is not a socket"},
		"a directory":              {func(at, _ string) error { return os.Mkdir(at, 0o700) }, "is not a socket"},
		"nothing":                  {func(string, string) error { return nil }, "no such file"},
	} {
		t.Run(name, func(t *testing.T) {
			dir, others := t.TempDir(), t.TempDir()
			keeperIn(t, others, other)
			if err := tc.lay(filepath.Join(dir, Name), filepath.Join(others, Name)); err != nil {
				t.Fatal(err)
			}
			c, err := Dial(t.Context(), dir, id)
			if err == nil {
				c.Close()
			}
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
			keeperIn(t, dir, id) // the next run of the sandbox, whatever lies there
			if c, err = Dial(t.Context(), dir, id); err != nil {
				t.Fatal(err)
			}
			c.Close()
		})
	}
	t.Run("the directory is a link", func(t *testing.T) {
		others, at := t.TempDir(), filepath.Join(t.TempDir(), "run")
		keeperIn(t, others, id)
		if err := os.Symlink(others, at); err != nil {
			t.Fatal(err)
		}
		if c, err := Dial(t.Context(), at, id); err == nil {
			c.Close()
			t.Error("it was followed")
		}
	})
}

// A directory's path may be longer than a socket's.
func TestLongPath(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("d", 200))
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	id := sandbox.NewID()
	keeperIn(t, dir, id)
	c, err := Dial(t.Context(), dir, id)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}

// A socket that a sandbox's own user listens on was made by a keeper, or a VMM,
// that had been locked in.
func TestListenerOfAnotherUserIsRefused(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can listen as another user")
	}
	dir, id := t.TempDir(), sandbox.NewID()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: filepath.Join(dir, Name)}); err != nil {
		t.Fatal(err)
	}
	listened := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with this goroutine
		const other = 0x70000001
		if _, _, errno := syscall.RawSyscall(syscall.SYS_SETRESUID, other, other, other); errno != 0 {
			listened <- errno
			return
		}
		listened <- unix.Listen(fd, 1)
	}()
	if err := <-listened; err != nil {
		t.Fatal(err)
	}
	if c, err := Dial(t.Context(), dir, id); err == nil || !strings.Contains(err.Error(), "user 1879048193 listens there") {
		if err == nil {
			c.Close()
		}
		t.Errorf("got %v", err)
	}
}

// A keeper that is stopped, or was taken over, does not hold up its clients.
func TestSilentKeeper(t *testing.T) {
	dir := t.TempDir()
	l, err := Listen(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := dial(t.Context(), dir, sandbox.NewID(), 10*time.Millisecond); err == nil || !strings.Contains(err.Error(), "has not answered for 10ms") {
		t.Errorf("got %v", err)
	}
}

// A keeper may have answered, and closed the stream, before the end of the
// secrets is sent: its answer is what counts.
func TestSecretsThatAreAnsweredEarly(t *testing.T) {
	dir, id := t.TempDir(), sandbox.NewID()
	keeperIn(t, dir, id) // its reply has no error, whatever is asked
	c, err := Dial(t.Context(), dir, id)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for range 300 {
		if err := c.SetSecrets(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
	}
}
