package durable

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	stepEnv = "DURABLE_TEST_STEP" // a writer that does not get past it
	killEnv = "DURABLE_TEST_KILL" // and is killed there
	pathEnv = "DURABLE_TEST_PATH"
)

func TestMain(m *testing.M) {
	if step := os.Getenv(stepEnv); step != "" {
		action := uint32(unix.SECCOMP_RET_ERRNO) | uint32(unix.EIO)
		if os.Getenv(killEnv) != "" {
			action = unix.SECCOMP_RET_KILL_PROCESS
		}
		runtime.LockOSThread()
		if err := refuse(steps[step].filter, action); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		if Replace(os.Getenv(pathEnv), fresh) != nil {
			os.Exit(2)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

var (
	before = bytes.Repeat([]byte("old"), 1<<10)
	fresh  = bytes.Repeat([]byte("new"), 4<<10)
)

// steps are the system calls of Replace, in order, and what is at the path when
// one of them does not come to pass.
var steps = map[string]struct {
	filter []unix.SockFilter // matches the call
	want   []byte
}{
	"make the temporary file": {opens(true), before},
	"write it":                {calls(unix.SYS_WRITE), before},
	"sync it":                 {calls(unix.SYS_FSYNC), before},
	"rename it":               {calls(unix.SYS_RENAME, unix.SYS_RENAMEAT, unix.SYS_RENAMEAT2), before},
	"open the directory":      {opens(false), fresh},
}

const (
	match = 254 // jumps that refuse repairs
	pass  = 255
)

func calls(numbers ...uint32) (f []unix.SockFilter) {
	f = append(f, unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0}) // the call's number
	for _, n := range numbers {
		f = append(f, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: n, Jt: match})
	}
	return f
}

// opens matches calls that open a file and make it, or do not.
func opens(making bool) []unix.SockFilter {
	const flags = 16 + 2*8 // of the third argument
	last := unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K, K: unix.O_CREAT, Jt: match, Jf: pass}
	if !making {
		last.Jt, last.Jf = last.Jf, last.Jt
	}
	return []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SYS_OPENAT, Jf: pass},
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: flags},
		last,
	}
}

// refuse answers the calls that a filter matches with action, on this thread.
func refuse(filter []unix.SockFilter, action uint32) error {
	n := len(filter)
	program := append(filter[:n:n],
		unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
		unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: action})
	for i := range n {
		for _, jump := range []*uint8{&program[i].Jt, &program[i].Jf} {
			switch *jump {
			case match:
				*jump = uint8(n - i)
			case pass:
				*jump = uint8(n - i - 1)
			}
		}
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	p := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	return unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&p)), 0, 0)
}

func parts(t *testing.T, dir string) []string {
	t.Helper()
	left, err := filepath.Glob(filepath.Join(dir, partPrefix+"*"))
	if err != nil {
		t.Fatal(err)
	}
	return left
}

func is(t *testing.T, path string, want []byte) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s has %d bytes, %.10q…, %v, want %.10q…", filepath.Base(path), len(got), got, err, want)
	}
}

// Whichever step fails, or is the last one of a writer that is killed, the
// file is the old or the new one.
func TestEachStep(t *testing.T) {
	for step, s := range steps {
		for _, kill := range []string{"", "yes"} {
			t.Run(step+kill, func(t *testing.T) {
				path := filepath.Join(t.TempDir(), "file")
				if err := os.WriteFile(path, before, 0o600); err != nil {
					t.Fatal(err)
				}
				cmd := exec.Command("/proc/self/exe")
				cmd.Env = append(os.Environ(), stepEnv+"="+step, killEnv+"="+kill, pathEnv+"="+path)
				cmd.Stderr = os.Stderr
				exit, ok := errors.AsType[*exec.ExitError](cmd.Run())
				if !ok {
					t.Fatal("the writer got past the step, or was not told that it had not")
				}
				how := exit.Sys().(syscall.WaitStatus)
				if kill != "" && how.Signal() != syscall.SIGSYS || kill == "" && how.ExitStatus() != 2 {
					t.Fatalf("the writer ended otherwise: %v", exit)
				}
				is(t, path, s.want)
				if left := parts(t, filepath.Dir(path)); kill == "" && len(left) != 0 {
					t.Errorf("left %v", left)
				}
				if err := errors.Join(Sweep(filepath.Dir(path)), Replace(path, fresh)); err != nil {
					t.Error(err)
				}
				is(t, path, fresh)
				if left := parts(t, filepath.Dir(path)); len(left) != 0 {
					t.Errorf("left %v", left)
				}
			})
		}
	}
}

func TestReplaceMakesAPrivateFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := Replace(path, fresh); err != nil {
		t.Fatal(err)
	}
	is(t, path, fresh)
	if info, err := os.Lstat(path); err != nil || info.Mode() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if err := Replace(filepath.Join(path, "below"), fresh); err == nil {
		t.Error("replaced what is below a file")
	}
}

// A link at the path is replaced, and what it leads to is not touched.
func TestReplaceFollowsNoLink(t *testing.T) {
	dir := t.TempDir()
	other, path := filepath.Join(dir, "other"), filepath.Join(dir, "file")
	if err := errors.Join(os.WriteFile(other, before, 0o600), os.Symlink(other, path), Replace(path, fresh)); err != nil {
		t.Fatal(err)
	}
	is(t, other, before)
	if info, err := os.Lstat(path); err != nil || !info.Mode().IsRegular() {
		t.Errorf("%v, %v", info, err)
	}
}

func TestReadersFindTheFileWhole(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := Swap(path, before); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	var writers, reader sync.WaitGroup
	for i := range 4 {
		writers.Go(func() {
			for range 50 {
				if err := Swap(path, bytes.Repeat([]byte{byte('a' + i)}, 3<<10)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	reader.Go(func() {
		for {
			got, err := os.ReadFile(path)
			if err != nil || len(got) != 3<<10 || strings.Trim(string(got), string(got[0])) != "" && !bytes.Equal(got, before) {
				t.Errorf("%d bytes, %.10q…, %v", len(got), got, err)
			}
			select {
			case <-done:
				return
			default:
			}
		}
	})
	writers.Wait()
	close(done)
	reader.Wait()
	if left := parts(t, filepath.Dir(path)); len(left) != 0 {
		t.Errorf("left %v", left)
	}
}

func TestSweepTakesWhatWritersLeft(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{partPrefix + "1", partPrefix + "2", "kept.part-3"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := Sweep(dir); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 || entries[0].Name() != "kept.part-3" {
		t.Errorf("%v, %v", entries, err)
	}
	if err := Sweep(filepath.Join(dir, "missing")); err == nil {
		t.Error("nothing was said of a directory that is missing")
	}
}

func TestRename(t *testing.T) {
	dir := t.TempDir()
	from, to := filepath.Join(dir, "from"), filepath.Join(dir, "to")
	if err := errors.Join(os.WriteFile(from, fresh, 0o600), Rename(from, to)); err != nil {
		t.Fatal(err)
	}
	is(t, to, fresh)
	if err := Rename(from, to); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	if err := Sync(from); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}
