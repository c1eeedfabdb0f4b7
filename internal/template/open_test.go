package template

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"creel/internal/procs"
	"creel/internal/template/content"

	"golang.org/x/sys/unix"
)

// holderPID is the process that listens on the store's only socket.
func holderPID(t *testing.T, f *fixture) int {
	t.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(fd)
	must(t, unix.Connect(fd, &unix.SockaddrUnix{Name: onlySocket(t, f)}))
	cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	must(t, err)
	return int(cred.Pid)
}

func sockets(t *testing.T, f *fixture) []string {
	t.Helper()
	found, err := filepath.Glob(f.path("run/*.sock"))
	must(t, err)
	return found
}

func onlySocket(t *testing.T, f *fixture) string {
	t.Helper()
	found := sockets(t, f)
	if len(found) != 1 {
		t.Fatalf("sockets: %v, want one", found)
	}
	return found[0]
}

// waitGone returns when the process has ended.
func waitGone(t *testing.T, process *procs.Handle) {
	t.Helper()
	ended, err := process.Ends(20 * time.Second)
	must(t, err)
	if !ended {
		t.Fatal("the holder goes on")
	}
}

func openParts(t *testing.T, s *Store, m Manifest) *Parts {
	t.Helper()
	p, err := s.Open(t.Context(), m)
	must(t, err)
	return p
}

func TestOpenHandsOutSealedParts(t *testing.T) {
	f, s := store(t)
	m := built(t, f, s)
	a := openParts(t, s, m)
	b := openParts(t, s, m)
	defer a.Close()
	defer b.Close()
	if got, err := content.Memory(t.Context(), a.Memory, nil); err != nil || got != m.Memory.Digest {
		t.Errorf("memory: %s, %v", got, err)
	}
	for _, p := range []*Parts{a, b} { // each has the state from its beginning
		if state, err := io.ReadAll(p.State); err != nil || string(state) != "device state" {
			t.Errorf("state: %q, %v", state, err)
		}
	}
	if root, err := io.ReadAll(io.NewSectionReader(a.Root, 0, 100)); err != nil || string(root) != rootContent {
		t.Errorf("root: %q, %v", root, err)
	}
	for name, file := range map[string]*os.File{"memory": a.Memory, "state": a.State, "root": a.Root} {
		if _, err := file.WriteAt([]byte("x"), 0); err == nil {
			t.Errorf("%s can be written", name)
		}
		if err := file.Truncate(0); err == nil {
			t.Errorf("%s can be truncated", name)
		}
	}
	if _, err := unix.Mmap(int(a.Memory.Fd()), 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err == nil {
		t.Error("memory can be mapped shared and writable")
	}
}

func TestManyClientsOneHolder(t *testing.T) {
	f, s := store(t)
	m := built(t, f, s)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			p, err := s.Open(t.Context(), m)
			if err != nil {
				t.Error(err)
				return
			}
			p.Close()
		})
	}
	wg.Wait()
	onlySocket(t, f)
}

func TestHolderKilledIsReplaced(t *testing.T) {
	f, s := store(t)
	m := built(t, f, s)
	before := openParts(t, s, m)
	defer before.Close()
	pid := holderPID(t, f)
	must(t, unix.Kill(pid, unix.SIGKILL))
	onlySocket(t, f) // it is stale, or will be in a moment
	after := openParts(t, s, m)
	defer after.Close()
	if holderPID(t, f) == pid {
		t.Error("the killed holder answers")
	}
	if got, err := content.Memory(t.Context(), before.Memory, nil); err != nil || got != m.Memory.Digest {
		t.Errorf("a clone of the killed holder lost its memory: %v", err)
	}
}

// A holder that is stopped answers nobody: it is replaced, as a dead one is.
func TestHolderThatHangsIsReplaced(t *testing.T) {
	f, s := store(t)
	m := built(t, f, s)
	before := openParts(t, s, m)
	defer before.Close()
	process, err := procs.Open(holderPID(t, f))
	must(t, err)
	t.Cleanup(func() { process.Signal(unix.SIGKILL); process.Close() })
	must(t, process.Signal(unix.SIGSTOP))
	c := s.client()
	c.Patience = 2 * time.Second
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	after, err := c.Open(ctx, m.Digest)
	must(t, err)
	defer after.Close()
	waitGone(t, process)
	if got, err := content.Memory(t.Context(), before.Memory, nil); err != nil || got != m.Memory.Digest {
		t.Errorf("a clone of the stopped holder lost its memory: %v", err)
	}
}

// A holder that is killed while it loads is started once more, and not again
// and again.
func TestHolderKilledWhileItLoads(t *testing.T) {
	program, err := os.Executable()
	must(t, err)
	for times, works := range map[int]bool{1: true, 2: false} {
		f, s := store(t)
		m := built(t, f, s)
		o := f.options()
		script := fmt.Sprintf("for n in $(seq %d); do mkdir %s/$n 2>/dev/null && kill -9 $$; done; exec \"$0\" \"$@\"", times, t.TempDir())
		o.Holder = []string{"/bin/sh", "-c", script, program, "holder"}
		s, err := Open(o)
		must(t, err)
		p, err := s.Open(t.Context(), m)
		if err == nil {
			p.Close()
		}
		if works != (err == nil) || !works && !strings.Contains(err.Error(), "it was killed") {
			t.Errorf("killed %d times: %v", times, err)
		}
	}
}

func TestHolderEndsWhenIdle(t *testing.T) {
	f, _ := store(t)
	f.idle = 300 * time.Millisecond
	s, err := Open(f.options())
	must(t, err)
	m := built(t, f, s)
	p := openParts(t, s, m)
	process, err := procs.Open(holderPID(t, f))
	must(t, err)
	defer process.Close()
	p.Close()
	waitGone(t, process)
	if left := sockets(t, f); len(left) != 0 {
		t.Errorf("left %v", left)
	}
	openParts(t, s, m).Close()
}

func TestRemovedTemplatesHolderEndsWithItsLastClient(t *testing.T) {
	f, s := store(t)
	m := built(t, f, s)
	p := openParts(t, s, m)
	process, err := procs.Open(holderPID(t, f))
	must(t, err)
	defer process.Close()
	must(t, s.Remove(t.Context(), m.Digest))
	if _, err := io.ReadAll(p.State); err != nil {
		t.Errorf("a running clone lost its parts: %v", err)
	}
	p.Close()
	waitGone(t, process)
	if left := sockets(t, f); len(left) != 0 {
		t.Errorf("left %v", left)
	}
}

func flip(t *testing.T, path string, at int64) {
	t.Helper()
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	defer file.Close()
	b := []byte{0}
	file.ReadAt(b, at) // beyond the end there is nothing to read
	b[0] ^= 1
	_, err = file.WriteAt(b, at)
	must(t, err)
}

func TestTamperingIsFoundBeforeAnythingStarts(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(t *testing.T, f *fixture, dir string)
		want  string
	}{
		"memory flipped": {func(t *testing.T, _ *fixture, dir string) { flip(t, filepath.Join(dir, memoryName), 64<<20) }, "memory: "},
		"memory hole":    {func(t *testing.T, _ *fixture, dir string) { flip(t, filepath.Join(dir, memoryName), 100<<20) }, "memory: "},
		"memory cut": {func(t *testing.T, _ *fixture, dir string) {
			must(t, os.Truncate(filepath.Join(dir, memoryName), 255<<20))
		}, "memory: "},
		"state flipped":    {func(t *testing.T, _ *fixture, dir string) { flip(t, filepath.Join(dir, stateName), 3) }, "device state: "},
		"state longer":     {func(t *testing.T, _ *fixture, dir string) { flip(t, filepath.Join(dir, stateName), 12) }, "device state: "},
		"root flipped":     {func(t *testing.T, f *fixture, _ string) { flip(t, f.path("root.img"), 3) }, "root file system: "},
		"root missing":     {func(t *testing.T, f *fixture, _ string) { must(t, os.Remove(f.path("root.img"))) }, "root file system: "},
		"manifest flipped": {func(t *testing.T, _ *fixture, dir string) { flip(t, filepath.Join(dir, manifestName), 30) }, "manifest"},
		"memory and state swapped": {func(t *testing.T, _ *fixture, dir string) {
			must(t, unix.Renameat2(unix.AT_FDCWD, filepath.Join(dir, memoryName), unix.AT_FDCWD, filepath.Join(dir, stateName), unix.RENAME_EXCHANGE))
		}, "memory"},
		"state is a symlink": {func(t *testing.T, f *fixture, dir string) {
			must(t, os.Rename(filepath.Join(dir, stateName), f.path("elsewhere")))
			must(t, os.Symlink(f.path("elsewhere"), filepath.Join(dir, stateName)))
		}, "device state: "},
		"root is a pipe": {func(t *testing.T, f *fixture, _ string) {
			must(t, os.Remove(f.path("root.img")))
			must(t, unix.Mkfifo(f.path("root.img"), 0o600))
		}, "root file system: "},
	} {
		t.Run(name, func(t *testing.T) {
			f, s := store(t)
			m := built(t, f, s)
			c.spoil(t, f, s.path(m.key()))
			p, err := s.Open(t.Context(), m)
			if err == nil {
				p.Close()
			}
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "creel template rm") {
				t.Errorf("got %v, want %q", err, c.want)
			}
			if left := sockets(t, f); len(left) != 0 {
				t.Errorf("left %v", left)
			}
			if name == "state is a symlink" {
				return // to the right content, which is all that verify asks
			}
			if _, err := s.Verify(t.Context(), m.Digest); err == nil {
				t.Error("verify found nothing")
			}
		})
	}
}

// What happens to the files while a holder runs reaches no clone: memory and
// state are copies, and the root is checked again.
func TestTamperingUnderARunningHolder(t *testing.T) {
	f, s := store(t)
	m := built(t, f, s)
	first := openParts(t, s, m)
	defer first.Close()
	flip(t, filepath.Join(s.path(m.key()), memoryName), 0)
	second := openParts(t, s, m)
	defer second.Close()
	if got, err := content.Memory(t.Context(), second.Memory, nil); err != nil || got != m.Memory.Digest {
		t.Errorf("memory: %s, %v", got, err)
	}
	flip(t, f.path("root.img"), 0)
	if p, err := s.Open(t.Context(), m); err == nil || !strings.Contains(err.Error(), "root file system: ") {
		t.Errorf("a changed root was handed out: %v", err)
		p.Close()
	}
	// The right content in a new file is found to be right.
	must(t, os.Remove(f.path("root.img")))
	must(t, os.WriteFile(f.path("root.img"), []byte(rootContent), 0o600))
	openParts(t, s, m).Close()
}

func TestRuntimeDirectoryOfOthersIsRefused(t *testing.T) {
	f, s := store(t)
	m := built(t, f, s)
	must(t, os.MkdirAll(f.path("run"), 0o700))
	must(t, os.Chmod(f.path("run"), 0o755))
	if _, err := s.Open(t.Context(), m); err == nil || !strings.Contains(err.Error(), "want user") {
		t.Errorf("mode 755: %v", err)
	}
	must(t, os.Chmod(f.path("run"), 0o700))
}

func TestLongRuntimeDirectory(t *testing.T) {
	f, _ := store(t)
	o := f.options()
	o.RuntimeDir = f.path(strings.Repeat("long/", 40))
	s, err := Open(o)
	must(t, err)
	openParts(t, s, built(t, f, s)).Close()
}

func TestOpenEndsWithItsContext(t *testing.T) {
	f, s := store(t)
	m := built(t, f, s)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Open(ctx, m); err == nil {
		t.Error("a cancelled call got parts")
	}
	openParts(t, s, m).Close()
}
