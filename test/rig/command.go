package rig

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Patience is how long a command may take: emulation, on a busy machine.
const Patience = 3 * time.Minute

// Cmd is one command of the rig's creel, not yet started.
func (r *Rig) Cmd(args ...string) *exec.Cmd {
	cmd := exec.Command(r.Creel, args...)
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + r.Home, "CREEL_STATE_DIR=" + r.State, "CREEL_CONFIG=" + r.Home + "/none.yaml",
	}
	cmd.Env = append(cmd.Env, r.env...)
	cmd.Dir = r.Home
	cmd.ExtraFiles = slices.Repeat([]*os.File{r.careless}, 8) // more than Creel itself hands on
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: r.user}
	return cmd
}

// Result is how a command ended.
type Result struct {
	Out, Err string
	Code     int
}

// Run runs a command to its end.
func (r *Rig) Run(t testing.TB, args ...string) Result {
	t.Helper()
	return r.RunIn(t, nil, args...)
}

// RunIn is Run with a standard input.
func (r *Rig) RunIn(t testing.TB, in io.Reader, args ...string) Result {
	t.Helper()
	return r.RunWithin(t, Patience, in, args...)
}

// RunWithin is RunIn with another bound than [Patience].
func (r *Rig) RunWithin(t testing.TB, bound time.Duration, in io.Reader, args ...string) Result {
	t.Helper()
	var out, complaint bytes.Buffer
	cmd := r.Cmd(args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = in, &out, &complaint
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	limit := time.AfterFunc(bound, func() { cmd.Process.Kill() })
	err := cmd.Wait()
	if !limit.Stop() {
		t.Fatalf("creel %q did not end in %s; it wrote %q and %q", args, bound, &out, &complaint)
	}
	if _, exited := errors.AsType[*exec.ExitError](err); err != nil && !exited {
		t.Fatalf("creel %q: %v", args, err)
	}
	return Result{Out: out.String(), Err: complaint.String(), Code: cmd.ProcessState.ExitCode()}
}

// Must runs a command that has to succeed, and returns what it printed.
func (r *Rig) Must(t testing.TB, args ...string) string {
	t.Helper()
	got := r.Run(t, args...)
	if got.Code != 0 {
		t.Fatalf("creel %q: exit code %d: %s%s", args, got.Code, got.Out, got.Err)
	}
	return got.Out
}

// Running is a command under way.
type Running struct {
	Cmd    *exec.Cmd
	Stdin  io.WriteCloser
	Stdout *bufio.Reader
	Stderr *bytes.Buffer // complete after Wait

	t    testing.TB
	once sync.Once
	code int
}

// Start begins a command. The end of the test kills what is left of it.
func (r *Rig) Start(t testing.TB, args ...string) *Running {
	t.Helper()
	run := &Running{Cmd: r.Cmd(args...), Stderr: &bytes.Buffer{}, t: t}
	var err error
	if run.Stdin, err = run.Cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, in, err := os.Pipe() // not StdoutPipe: what is unread outlives Wait
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { out.Close() })
	run.Stdout, run.Cmd.Stdout, run.Cmd.Stderr = bufio.NewReader(out), in, run.Stderr
	err = run.Cmd.Start()
	in.Close()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		run.Cmd.Process.Kill()
		run.Wait()
	})
	return run
}

// Line reads the next line of standard output, without its end.
func (run *Running) Line() string {
	run.t.Helper()
	limit := time.AfterFunc(Patience, func() { run.Cmd.Process.Kill() })
	defer limit.Stop()
	line, err := run.Stdout.ReadString('\n')
	if err != nil {
		run.Wait()
		run.t.Fatalf("creel %q: %v after %q; standard error: %s", run.Cmd.Args[1:], err, line, run.Stderr)
	}
	return strings.TrimRight(line, "\r\n")
}

// Wait waits for the end and returns the exit code, -1 after a signal.
func (run *Running) Wait() int {
	run.once.Do(func() {
		limit := time.AfterFunc(Patience, func() { run.Cmd.Process.Kill() })
		defer limit.Stop()
		run.Cmd.Wait()
		run.code = run.Cmd.ProcessState.ExitCode()
	})
	return run.code
}

// Sandbox is the part of `creel inspect` that tests look at.
type Sandbox struct {
	Record struct {
		Config struct{ Spec struct{ ID, Name string } }
	}
	Status struct {
		ID, State, Confinement, TemplateDigest string
		ExitCode, KeeperPID, VMMPID            int
		Paused                                 bool
		StartedAt                              time.Time
	}
}

// Inspect looks at one sandbox.
func (r *Rig) Inspect(t testing.TB, ref string) Sandbox {
	t.Helper()
	var all []Sandbox
	if err := json.Unmarshal([]byte(r.Must(t, "inspect", ref)), &all); err != nil || len(all) != 1 {
		t.Fatalf("inspect %s: %v, %d sandboxes", ref, err, len(all))
	}
	return all[0]
}

// Context is the test's, bounded by [Patience].
func Context(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), Patience)
	t.Cleanup(cancel)
	return ctx
}
