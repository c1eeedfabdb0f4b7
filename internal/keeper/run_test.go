package keeper

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"creel/internal/audit"
	"creel/internal/guest/agent"
	"creel/internal/guest/api"
	"creel/internal/keeper/launch"
	"creel/internal/keeper/rundir"
	"creel/internal/keeper/socket"
	"creel/internal/sandbox"
	"creel/internal/vm"
	"creel/internal/wire"

	"github.com/google/go-cmp/cmp"
)

// bench is a real agent's platform without a machine.
type bench struct{}

func (bench) Kernel() string                   { return "6.1-test" }
func (bench) Freeze(api.FreezeRequest) error   { return nil }
func (bench) Step(string, *api.Identity) error { return nil }
func (bench) SetClock(time.Time) error         { return nil }
func (bench) Alive() error                     { return nil }
func (bench) Usage() (api.UsageReply, error)   { return api.UsageReply{MemoryPeakBytes: 1}, nil }
func (bench) Shutdown(context.Context) error   { return nil }
func (bench) Started(f func(int) error) error  { return f(-1) }
func (bench) Rehearse(func(int) error) error   { return nil }
func (bench) OOMKills() int64                  { return 0 }

// attach joins the streams and collects what they say.
func attach(t *testing.T, c *socket.Client, req socket.AttachRequest) (stdin io.WriteCloser, output func() (string, string)) {
	t.Helper()
	att, err := c.Attach(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	var out, errs bytes.Buffer
	var reading sync.WaitGroup
	reading.Go(func() { io.Copy(&out, att.Stdout) })
	reading.Go(func() { io.Copy(&errs, att.Stderr) })
	return att.Stdin, func() (string, string) {
		reading.Wait()
		att.Close()
		return out.String(), errs.String()
	}
}

var everything = socket.AttachRequest{Stdin: true, Stdout: true, Stderr: true, EndsStdin: true}

// The one agent of this process serves this test: an agent waits for every
// child.
func TestRunWithTheRealAgent(t *testing.T) {
	r, c := begin(t, options{
		args: []string{"/bin/sh", "-c", "cat; echo to-stderr >&2; exit 3"},
		with: func(r *rig, _ *launch.Config, _ *Deps) {
			real := agent.New(bench{}, "/")
			r.driver.Guest = func(port net.Conn) { real.Serve(port) }
		},
	})
	stdin, output := attach(t, c, everything)
	if err := c.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	io.WriteString(stdin, "in and out")
	stdin.Close()
	if out, errs := output(); out != "in and out" || errs != "to-stderr\n" {
		t.Errorf("output %q, %q", out, errs)
	}
	want(t, r.final(c), 3)
}

func TestRunFromAttachToStatus(t *testing.T) {
	r, c := begin(t, options{args: []string{"cat"}})
	if status, err := c.Ready(t.Context()); err != nil || status.State != sandbox.StateCreated {
		t.Fatalf("ready: %+v, %v", status, err)
	}
	stdin, output := attach(t, c, everything)
	if err := c.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := c.Start(t.Context()); err == nil {
		t.Error("the task was started twice")
	}
	if cpu := r.driver.Machines()[0].Config.CPU; cpu != "the template's" {
		t.Errorf("the clone's CPU is %q", cpu)
	}
	if onDisk, err := rundir.ReadStatus(r.dir); err != nil || onDisk.State != sandbox.StateRunning {
		t.Errorf("status on disk %+v, %v", onDisk, err)
	}
	long := strings.Repeat("0123456789", 100<<10)
	io.WriteString(stdin, long)
	stdin.Close()
	if out, _ := output(); out != long {
		t.Errorf("%d bytes came back of %d", len(out), len(long))
	}
	status := r.final(c)
	want(t, status, 0)
	if status.MemoryPeakBytes != 7<<20 || status.DiskWrittenBytes != 9 || status.StartedAt.IsZero() || status.FinishedAt.IsZero() {
		t.Errorf("status %+v", status)
	}
	if diff := cmp.Diff([]string{"step:machine", "step:boundary", "policy", "step:confine", "step:log", "step:identity", "started", "exit", "cleanup"}, r.audit.kinds()); diff != "" {
		t.Error(diff)
	}
	if r.err != nil {
		t.Error(r.err)
	}
}

func TestExitCodes(t *testing.T) {
	for name, tc := range map[string]struct {
		args  []string
		code  int
		words []string
	}{
		"own":            {[]string{"exit", "3"}, 3, nil},
		"not found":      {[]string{"nonesuch"}, 127, []string{"nonesuch: not found"}},
		"not executable": {[]string{"script.txt"}, 126, []string{"permission denied"}},
	} {
		t.Run(name, func(t *testing.T) {
			r, c := begin(t, options{args: tc.args})
			err := c.Start(t.Context())
			if (err != nil) != (tc.words != nil) {
				t.Errorf("start: %v", err)
			}
			want(t, r.final(c), tc.code, tc.words...)
		})
	}
}

func TestKeptRunSyncsItsDiskAndKeepsItsOutput(t *testing.T) {
	r, c := started(t, options{args: []string{"echo", "kept"}, with: func(_ *rig, cfg *launch.Config, _ *Deps) { cfg.Spec.Keep = true }})
	want(t, r.final(c), 0)
	if !r.guest.synced.Load() {
		t.Error("the guest was not told to write out its disk")
	}
	var out string
	if err := rundir.ReadLog(r.dir, func(e rundir.Entry) error { out += string(e.Data); return nil }); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out, "kept") {
		t.Errorf("the log has %q", out)
	}
}

func TestExecBesideTheTask(t *testing.T) {
	r, c := started(t, options{})
	x, err := c.Exec(t.Context(), sandbox.Process{Args: []string{"cat"}, Interactive: true})
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	io.WriteString(x.Stdin(), "hello")
	x.Stdin().Close()
	out, _ := io.ReadAll(x.Stdout())
	exit, err := x.Wait(t.Context())
	if string(out) != "hello" || err != nil || exit.Code != 0 {
		t.Errorf("output %q, exit %+v, %v", out, exit, err)
	}
	if _, err := c.Exec(t.Context(), sandbox.Process{Args: []string{"nonesuch"}}); api.ErrorCode(err) != api.CodeNotFound {
		t.Errorf("a missing command: %v", err)
	}
	y, err := c.Exec(t.Context(), sandbox.Process{Args: []string{"wait"}})
	if err != nil {
		t.Fatal(err)
	}
	defer y.Close()
	y.Signal(t.Context(), 2)
	if exit, err := y.Wait(t.Context()); err != nil || exit.Code != 130 {
		t.Errorf("exit %+v, %v", exit, err)
	}
	if err := c.Signal(t.Context(), 15); err != nil {
		t.Error(err)
	}
	want(t, r.final(c), 143)
}

func TestCopyStatUsage(t *testing.T) {
	r, c := started(t, options{})
	if err := c.CopyIn(t.Context(), api.CopyRequest{Path: "/"}, strings.NewReader("tar")); err != nil || r.guest.copied.Load() != 3 {
		t.Errorf("copy in: %v, %d bytes", err, r.guest.copied.Load())
	}
	tar, err := c.CopyOut(t.Context(), "/x")
	if err != nil {
		t.Fatal(err)
	}
	if data, err := io.ReadAll(tar); string(data) != "tar" || err != nil {
		t.Errorf("copy out: %q, %v", data, err)
	}
	tar.Close()
	if st, err := c.Stat(t.Context(), "/x"); err != nil || st.Size != 3 {
		t.Errorf("stat: %+v, %v", st, err)
	}
	if u, err := c.Usage(t.Context()); err != nil || u.MemoryPeakBytes != 7<<20 {
		t.Errorf("usage: %+v, %v", u, err)
	}
}

func TestStop(t *testing.T) {
	quick := func(d *deadlines) { d.kill = 50 * time.Millisecond }
	for name, tc := range map[string]struct {
		args []string
		code int
	}{
		"listens":             {[]string{"wait"}, 143},
		"ignores SIGKILL too": {[]string{"deaf"}, 137},
	} {
		t.Run(name, func(t *testing.T) {
			r, c := started(t, options{args: tc.args, limit: quick})
			if err := c.Stop(t.Context(), 0, 50*time.Millisecond); err != nil {
				t.Error(err)
			}
			if err := c.Stop(t.Context(), 0, time.Minute); err != nil {
				t.Errorf("stopping what has ended: %v", err)
			}
			want(t, r.final(c), tc.code)
		})
	}
}

func TestKillDoesNotAskTheGuest(t *testing.T) {
	r, c := started(t, options{args: []string{"deaf"}})
	if err := c.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	want(t, r.final(c), 137)
	if r.guest.signal.Load() != 0 {
		t.Error("the guest was sent a signal")
	}
}

func TestKillWhileComingUp(t *testing.T) {
	asked := make(chan struct{})
	r, c := begin(t, options{guest: &script{answer: func(ctx context.Context, s *wire.Stream) bool {
		close(asked)
		<-ctx.Done()
		return true
	}}})
	<-asked
	if err := c.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := c.Start(t.Context()); err == nil {
		t.Error("a killed run was started")
	}
	want(t, r.final(c), 125, "killed before its task was started")
}

func TestTimeout(t *testing.T) {
	for _, args := range []string{"wait", "deaf"} {
		r, c := started(t, options{args: []string{args},
			with: func(_ *rig, cfg *launch.Config, _ *Deps) { cfg.Spec.Timeout = 20 * time.Millisecond },
			limit: func(d *deadlines) {
				d.timeout, d.last, d.kill = 30*time.Millisecond, 30*time.Millisecond, time.Hour
			},
		})
		status := r.final(c)
		want(t, status, map[string]int{"wait": 143, "deaf": 137}[args])
		if !status.TimedOut {
			t.Errorf("%s: the status does not say that it timed out", args)
		}
	}
}

func TestPauseAndResume(t *testing.T) {
	clock := make(chan struct{}, 1)
	r, c := started(t, options{guest: &script{answer: func(_ context.Context, s *wire.Stream) bool {
		if s.Op() == api.OpClock {
			clock <- struct{}{}
		}
		return false
	}}})
	m := r.driver.Machines()[0]
	if err := c.Pause(t.Context()); err != nil || !m.Paused() {
		t.Fatalf("pause: %v", err)
	}
	if s, err := rundir.ReadStatus(r.dir); err != nil || !s.Paused {
		t.Errorf("status on disk %+v, %v", s, err)
	}
	if err := c.Resume(t.Context()); err != nil || m.Paused() {
		t.Fatalf("resume: %v", err)
	}
	<-clock
	if s, err := c.Status(t.Context()); err != nil || s.Paused {
		t.Errorf("status %+v, %v", s, err)
	}
}

func TestLauncherEndsBeforeStart(t *testing.T) {
	r, c := begin(t, options{})
	other := r.dial()
	if _, err := other.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.Close()
	want(t, r.final(other), 125, "launcher ended before the task was started")
	if r.guest.ran.Load() != 0 {
		t.Error("the task ran")
	}
}

// A task that is kept does not need its launcher.
func TestLauncherEndsAfterStart(t *testing.T) {
	r, c := started(t, options{with: func(_ *rig, cfg *launch.Config, _ *Deps) { cfg.Spec.Keep = true }})
	other := r.dial()
	_, output := attach(t, c, socket.AttachRequest{Stdout: true})
	c.Close()
	output()
	r.awaitClients(1)
	if s, err := other.Status(t.Context()); err != nil || s.State != sandbox.StateRunning {
		t.Errorf("status %+v, %v", s, err)
	}
	if err := other.Signal(t.Context(), 9); err != nil {
		t.Error(err)
	}
	want(t, r.final(other), 137)
}

func TestMachineDies(t *testing.T) {
	r, c := started(t, options{})
	r.driver.Machines()[0].Die(errors.New("triple fault"))
	want(t, r.final(c), 125, "the VM ended unexpectedly", "triple fault")
}

func TestGuestConnectionDies(t *testing.T) {
	r, c := begin(t, options{limit: func(d *deadlines) { d.lastWords = 10 * time.Millisecond }})
	if _, err := c.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := c.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.driver.Machines()[0].Control().Close()
	want(t, r.final(c), 125, "the guest agent was lost")
}

func TestKeeperIsToldToEnd(t *testing.T) {
	r, c := started(t, options{})
	r.stop()
	want(t, r.final(c), 125, "told to end")
}

// A run whose directory is taken away still ends, and says how.
func TestDirectoryIsRemoved(t *testing.T) {
	r, c := started(t, options{})
	if err := os.RemoveAll(r.dir); err != nil {
		t.Fatal(err)
	}
	c.Signal(t.Context(), 15)
	status, err := c.Wait(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want(t, status, 143)
	c.Close()
	r.wait()
	if r.err == nil {
		t.Error("the keeper says nothing of the status that it could not write")
	}
}

func TestHelperServesFilesAndRunsNothing(t *testing.T) {
	r, c := begin(t, options{with: func(_ *rig, cfg *launch.Config, _ *Deps) { cfg.Helper = true }})
	if _, err := c.Stat(t.Context(), "/x"); err != nil {
		t.Error(err)
	}
	if err := c.Start(t.Context()); err == nil || r.guest.ran.Load() != 0 {
		t.Errorf("a helper ran a task: %v", err)
	}
	c.Close()
	r.wait()
	if _, err := rundir.ReadStatus(r.dir); err == nil {
		t.Error("a helper wrote a status")
	}
}

// Every step that fails leaves nothing, and says which it was.
func TestEachStepFails(t *testing.T) {
	fault := errors.New("no luck")
	cases := map[string]options{
		"parts": {with: func(_ *rig, _ *launch.Config, d *Deps) {
			d.Parts = func(context.Context) (*Parts, error) { return nil, fault }
		}},
		"confine": {with: func(_ *rig, _ *launch.Config, d *Deps) { d.Confine = func() error { return fault } }},
		"machine": {with: func(r *rig, _ *launch.Config, _ *Deps) { r.driver.FailStart = func(vm.Config) error { return fault } }},
		"log": {with: func(r *rig, c *launch.Config, d *Deps) {
			c.Spec.Keep = true
			os.Mkdir(r.dir+"/"+"task.log", 0o700)
		}},
	}
	words := map[string][]string{
		"parts": {"machine", "no luck"}, "confine": {"confine", "no luck"}, "machine": {"machine", "no luck"},
		"log": {"open task log"},
	}
	for _, step := range api.IdentitySteps {
		cases["identity "+step] = options{guest: &script{answer: func(ctx context.Context, s *wire.Stream) bool {
			if s.Op() != api.OpIdentity {
				return false
			}
			s.Send(ctx, api.Reply{Error: &api.Error{Code: api.CodeInternal, Step: step, Message: "no luck"}})
			return true
		}}}
		words["identity "+step] = []string{"identity", step, "no luck"}
	}
	for name, o := range cases {
		t.Run(name, func(t *testing.T) {
			r, c := begin(t, o)
			if _, err := c.Ready(t.Context()); err == nil {
				t.Error("it is said to be ready")
			}
			if err := c.Start(t.Context()); err == nil {
				t.Error("the task was started")
			}
			want(t, r.final(c), 125, words[name]...)
			if r.guest.ran.Load() != 0 {
				t.Error("the task ran")
			}
		})
	}
}

func TestEachRecordFails(t *testing.T) {
	const records = 9 // of a whole run, see TestRunFromAttachToStatus
	for n := 1; n <= records; n++ {
		rec := &recorder{failFrom: n}
		r, c := begin(t, options{args: []string{"exit", "0"}, audit: rec})
		startErr := c.Start(t.Context())
		status := r.final(c)
		if before := n <= 7; before != (startErr != nil) || before != (r.guest.ran.Load() == 0) || before != (status.ExitCode == 125) {
			t.Errorf("record %d: start %v, %d processes, status %+v", n, startErr, r.guest.ran.Load(), status)
		}
		if r.err == nil && n > 7 {
			t.Errorf("record %d: the keeper's log says nothing of the records that failed", n)
		}
		if n == 1 && len(r.driver.Machines()) > 0 {
			t.Error("a machine was started without a record")
		}
	}
}

// What gives something needs its record first.
func TestNoRecordNoAct(t *testing.T) {
	for kind, act := range map[string]func(context.Context, *socket.Client) error{
		"exec": func(ctx context.Context, c *socket.Client) error {
			_, err := c.Exec(ctx, sandbox.Process{Args: []string{"wait"}})
			return err
		},
		"copy": func(ctx context.Context, c *socket.Client) error {
			return c.CopyIn(ctx, api.CopyRequest{Path: "/"}, strings.NewReader("x"))
		},
		"step": func(ctx context.Context, c *socket.Client) error { return c.Resume(ctx) },
	} {
		t.Run(kind, func(t *testing.T) {
			r, c := started(t, options{})
			if kind == "step" {
				if err := c.Pause(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			r.audit.failOnly(audit.Kind(kind))
			if err := act(t.Context(), c); err == nil || !strings.Contains(err.Error(), "disk full") {
				t.Errorf("error %v", err)
			}
			if s, err := c.Status(t.Context()); err != nil || s.State != sandbox.StateRunning || s.Paused != (kind == "step") {
				t.Errorf("status %+v, %v", s, err)
			}
			if g := r.guest; g.ran.Load() != 1 || g.copied.Load() != 0 {
				t.Error("it happened")
			}
		})
	}
}

// An end is not held up by a record that cannot be made: on a full disk it is
// what makes room.
func TestEndWithoutARecord(t *testing.T) {
	for name, end := range map[string]func(context.Context, *socket.Client) error{
		"stop":           func(ctx context.Context, c *socket.Client) error { return c.Stop(ctx, 0, time.Millisecond) },
		"stop of paused": func(ctx context.Context, c *socket.Client) error { return c.Stop(ctx, 0, time.Millisecond) },
		"kill":           func(ctx context.Context, c *socket.Client) error { return c.Kill(ctx) },
	} {
		t.Run(name, func(t *testing.T) {
			r, c := started(t, options{args: []string{"deaf"}, limit: func(d *deadlines) { d.kill = 20 * time.Millisecond }})
			if name == "stop of paused" {
				if err := c.Pause(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			r.audit.mu.Lock()
			r.audit.failFrom = 1
			r.audit.mu.Unlock()
			if err := end(t.Context(), c); err != nil {
				t.Error(err)
			}
			want(t, r.final(c), 137)
		})
	}
}
