package agent

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"creel/internal/guest/api"
	"creel/internal/guest/host"
	"creel/internal/procs"
	"creel/internal/sandbox"
)

// children are those of this process, whichever agent started them.
var children = newReaper()

// bench is a platform without a machine.
type bench struct {
	mu    sync.Mutex
	steps []string
	kills int64
	limit sync.Mutex
}

func (*bench) Kernel() string                 { return "6.1-test" }
func (*bench) Freeze(api.FreezeRequest) error { return nil }
func (*bench) SetClock(time.Time) error       { return nil }
func (*bench) Alive() error                   { return nil }
func (*bench) Shutdown(context.Context) error { return nil }
func (b *bench) OOMKills() int64              { return b.kills }
func (*bench) Usage() (api.UsageReply, error) { return api.UsageReply{PIDs: 3}, nil }
func (b *bench) Rehearse(func(int) error) error {
	return b.Step("rehearsal", nil) // run would start this test again
}
func (b *bench) Started(f func(int) error) error {
	b.limit.Lock()
	defer b.limit.Unlock()
	return f(-1)
}

func (b *bench) Step(name string, _ *api.Identity) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.steps = append(b.steps, name)
	return nil
}

// connect serves an agent over root and returns its host.
func connect(t *testing.T, b *bench, root string) *host.Client {
	t.Helper()
	return connectWith(t, b, root, hangUpGrace)
}

func connectWith(t *testing.T, b *bench, root string, grace time.Duration) *host.Client {
	t.Helper()
	near, far, err := procs.Conns()
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	a := newAgent(b, root, children)
	a.grace = grace
	serving.Go(func() { a.Serve(far) })
	c := host.New(near)
	t.Cleanup(func() { c.Close(); serving.Wait() })
	return c
}

func ready(t *testing.T, root string) *host.Client {
	t.Helper()
	c := connect(t, &bench{}, root)
	if err := c.Identity(t.Context(), api.Identity{Version: api.Version, Hostname: "otter", Env: []string{"SHARED=1", "OVER=identity"}}); err != nil {
		t.Fatal(err)
	}
	return c
}

// result is how a process ended and what it said.
type result struct {
	exit     api.ExecExit
	out, err string
}

func run(t *testing.T, c *host.Client, p sandbox.Process, stdin string) (result, error) {
	t.Helper()
	x, err := c.Exec(t.Context(), p)
	if err != nil {
		return result{}, err
	}
	defer x.Close()
	var out, errs bytes.Buffer
	var streams sync.WaitGroup
	streams.Go(func() { io.WriteString(x.Stdin(), stdin); x.Stdin().Close() })
	streams.Go(func() { io.Copy(&out, x.Stdout()) })
	streams.Go(func() { io.Copy(&errs, x.Stderr()) })
	exit, err := x.Wait(t.Context())
	streams.Wait()
	return result{exit, out.String(), errs.String()}, err
}

func sh(script string) sandbox.Process {
	return sandbox.Process{Args: []string{"/bin/sh", "-c", script}, Interactive: true}
}

func TestExecStreamsAndCodes(t *testing.T) {
	c := ready(t, "/")
	for name, tc := range map[string]struct {
		process sandbox.Process
		stdin   string
		want    result
	}{
		"separate outputs": {sh("echo out; echo err >&2"), "", result{out: "out\n", err: "err\n"}},
		"exit code":        {sh("exit 7"), "", result{exit: api.ExecExit{Code: 7}}},
		"signal":           {sh("kill -TERM $$"), "", result{exit: api.ExecExit{Code: 143, Signal: 15}}},
		"stdin to its end": {sh("cat"), "hello", result{out: "hello"}},
		"no stdin":         {sandbox.Process{Args: []string{"cat"}}, "", result{}},
		"directory":        {sandbox.Process{Args: []string{"pwd"}, Dir: "/usr"}, "", result{out: "/usr\n"}},
		"environment": {sandbox.Process{Args: []string{"sh", "-c", "echo $SHARED $OVER $MINE $HOME $HOSTNAME"}, Env: []string{"OVER=process", "MINE=2"}},
			"", result{out: "1 process 2 /root otter\n"}},
		"umask":      {sh("umask"), "", result{out: "0022\n"}},
		"background": {sh("sleep 20 & echo started"), "", result{out: "started\n"}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := run(t, c, tc.process, tc.stdin)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, got, cmp.AllowUnexported(result{})); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestExecRefusals(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string, mode os.FileMode) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, []byte(content), mode); err != nil {
			t.Fatal(err)
		}
		return p
	}
	c := ready(t, "/")
	for name, tc := range map[string]struct {
		args []string
		user string
		env  []string
		code api.Code
		text string
	}{
		"not in path":       {[]string{"no-such-command"}, "", nil, api.CodeNotFound, `"no-such-command": executable file not found in $PATH`},
		"own path":          {[]string{"sh"}, "", []string{"PATH=/nowhere"}, api.CodeNotFound, "not found in $PATH"},
		"no such file":      {[]string{"/no/such"}, "", nil, api.CodeNotFound, "no such file"},
		"no interpreter":    {[]string{write("script", "#!/no/interpreter\n", 0o755)}, "", nil, api.CodeNotFound, "no such file"},
		"directory":         {[]string{dir}, "", nil, api.CodeNotExecutable, "is a directory"},
		"not executable":    {[]string{write("plain", "x", 0o644)}, "", nil, api.CodeNotExecutable, "permission denied"},
		"not a program":     {[]string{write("junk", "\x01\x02\x03", 0o755)}, "", nil, api.CodeNotExecutable, "exec format error"},
		"only in path as x": {[]string{"plain"}, "", []string{"PATH=" + dir}, api.CodeNotExecutable, "permission denied"},
		"no user":           {[]string{"true"}, "nobody-here", nil, api.CodeInvalid, "unable to find user nobody-here"},
		"no group":          {[]string{"true"}, "0:nobody-here", nil, api.CodeInvalid, "unable to find group"},
		"no command":        {nil, "", nil, api.CodeInvalid, "no command"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := c.Exec(t.Context(), sandbox.Process{Args: tc.args, User: tc.user, Env: tc.env})
			if err == nil || api.ErrorCode(err) != tc.code || !strings.Contains(err.Error(), tc.text) {
				t.Errorf("got %q, %v", api.ErrorCode(err), err)
			}
		})
	}
}

func TestSignalsReachTheProcess(t *testing.T) {
	c := ready(t, "/")
	x, err := c.Exec(t.Context(), sh(`trap 'echo got; exit 3' USR1; echo ready; while :; do sleep 0.01; done`))
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	line := make([]byte, 6)
	if _, err := io.ReadFull(x.Stdout(), line); err != nil {
		t.Fatal(err)
	}
	if err := x.Signal(t.Context(), int(syscall.SIGUSR1)); err != nil {
		t.Fatal(err)
	}
	rest, _ := io.ReadAll(x.Stdout())
	io.Copy(io.Discard, x.Stderr())
	exit, err := x.Wait(t.Context())
	if err != nil || exit.Code != 3 || string(rest) != "got\n" {
		t.Fatalf("got %+v, %q, %v", exit, rest, err)
	}
}

func TestTerminal(t *testing.T) {
	c := ready(t, "/")
	p := sandbox.Process{Args: []string{"sh", "-c", "stty size; read x; stty size; echo $TERM $x; tty"}, TTY: true, Interactive: true, Rows: 33, Cols: 77}
	x, err := c.Exec(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	size := make([]byte, 7)
	if _, err := io.ReadFull(x.Stdout(), size); err != nil || string(size) != "33 77\r\n" {
		t.Fatalf("size %q, %v", size, err)
	}
	if err := x.Resize(t.Context(), 10, 20); err != nil {
		t.Fatal(err)
	}
	// The size and the input travel on different channels: input that is
	// typed until the size is seen would race, so the size is asked for
	// through a second message that the agent answers in order.
	if err := x.Signal(t.Context(), int(syscall.SIGCONT)); err != nil {
		t.Fatal(err)
	}
	io.WriteString(x.Stdin(), "typed\n")
	rest, _ := io.ReadAll(x.Stdout())
	io.Copy(io.Discard, x.Stderr())
	exit, err := x.Wait(t.Context())
	if err != nil || exit.Code != 0 || !strings.Contains(string(rest), "10 20\r\nxterm typed\r\n/dev/pts/") {
		t.Fatalf("got %+v, %q, %v", exit, rest, err)
	}
}

func TestTerminalInterruptComesFromTheKeyboard(t *testing.T) {
	c := ready(t, "/")
	x, err := c.Exec(t.Context(), sandbox.Process{Args: []string{"sh", "-c", "echo ready; exec sleep 1000"}, TTY: true, Interactive: true})
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	io.ReadFull(x.Stdout(), make([]byte, 7))
	x.Stdin().Write([]byte{3})
	io.Copy(io.Discard, x.Stdout())
	io.Copy(io.Discard, x.Stderr())
	if exit, err := x.Wait(t.Context()); err != nil || exit.Code != 130 {
		t.Fatalf("got %+v, %v", exit, err)
	}
}

func TestFloodToASlowReaderDoesNotBlockOthers(t *testing.T) {
	c := ready(t, "/")
	const size = 64 << 20
	x, err := c.Exec(t.Context(), sh(fmt.Sprintf("head -c %d /dev/zero | tr '\\0' x", size)))
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	for i := range 20 {
		got, err := run(t, c, sh(fmt.Sprintf("echo %d", i)), "")
		if err != nil || got.out != fmt.Sprintln(i) {
			t.Fatalf("exec beside a stuck one: %+v, %v", got, err)
		}
	}
	sum := sha256.New()
	n, err := io.Copy(sum, x.Stdout())
	io.Copy(io.Discard, x.Stderr())
	if err != nil || n != size {
		t.Fatalf("%d of %d bytes, %v", n, size, err)
	}
	want := sha256.New()
	block := bytes.Repeat([]byte("x"), 1<<20)
	for range size >> 20 {
		want.Write(block)
	}
	if !bytes.Equal(sum.Sum(nil), want.Sum(nil)) {
		t.Fatal("bytes were changed")
	}
	if exit, err := x.Wait(t.Context()); err != nil || exit.Code != 0 {
		t.Fatalf("got %+v, %v", exit, err)
	}
}

func TestManyExecsAtOnce(t *testing.T) {
	c := ready(t, "/")
	var all sync.WaitGroup
	for i := range 32 {
		all.Go(func() {
			got, err := run(t, c, sh(fmt.Sprintf("cat; exit %d", i)), fmt.Sprint(i))
			if err != nil || got.exit.Code != i || got.out != fmt.Sprint(i) {
				t.Errorf("%d: %+v, %v", i, got, err)
			}
		})
	}
	all.Wait()
}

func TestUsersOfTheImage(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: becomes other users")
	}
	root := t.TempDir()
	os.Mkdir(filepath.Join(root, "etc"), 0o755)
	os.WriteFile(filepath.Join(root, "etc/passwd"), []byte("root:x:0:0::/root:/bin/sh\nann:x:1000:1001::/home/ann:/bin/sh\nbad line\n"), 0o644)
	os.WriteFile(filepath.Join(root, "etc/group"), []byte("root:x:0:\nstaff:x:50:ann,bob\nwheel:x:10:ann\n"), 0o644)
	a := newAgent(&bench{}, root, children)
	for user, want := range map[string]account{
		"":          {home: "/root"},
		"ann":       {uid: 1000, gid: 1001, groups: []uint32{50, 10}, home: "/home/ann"},
		"1000":      {uid: 1000, gid: 1001, groups: []uint32{50, 10}, home: "/home/ann"},
		"ann:staff": {uid: 1000, gid: 50, home: "/home/ann"},
		"4242":      {uid: 4242, home: "/"},
		"4242:77":   {uid: 4242, gid: 77, home: "/"},
	} {
		got, err := a.account(user)
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(account{})); diff != "" || err != nil {
			t.Errorf("%q: %v %s", user, err, diff)
		}
	}
	got, err := run(t, ready(t, "/"), sandbox.Process{Args: []string{"id", "-u"}, User: "4242"}, "")
	if err != nil || got.out != "4242\n" {
		t.Errorf("ran as %+v, %v", got, err)
	}
}

func TestOrderOfOperations(t *testing.T) {
	b := &bench{}
	c := connect(t, b, "/")
	if _, err := c.Hello(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Exec(t.Context(), sh("true")); api.ErrorCode(err) != api.CodeNotReady {
		t.Fatalf("exec before identity: %v", err)
	}
	if _, err := c.Usage(t.Context()); api.ErrorCode(err) != api.CodeNotReady {
		t.Fatalf("usage before identity: %v", err)
	}
	if err := errors.Join(c.Freeze(t.Context(), api.FreezeRequest{}), c.Clock(t.Context(), time.Now())); err != nil {
		t.Fatal(err)
	}
	if err := c.Identity(t.Context(), api.Identity{Version: api.Version}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(api.IdentitySteps, b.steps); diff != "" {
		t.Error(diff)
	}
	if err := c.Identity(t.Context(), api.Identity{Version: api.Version}); api.ErrorCode(err) != api.CodeNotReady {
		t.Fatalf("second identity: %v", err)
	}
	if u, err := c.Usage(t.Context()); err != nil || u.PIDs != 3 {
		t.Fatalf("usage: %+v, %v", u, err)
	}
}

// A clone that waited is prepared with an identity of nobody, and then is
// whatever the next one says; only its root is not changed again.
func TestPreparedThenIdentity(t *testing.T) {
	b := &bench{}
	c := connect(t, b, "/")
	nobody := api.Identity{Version: api.Version, Hostname: "nobody", Env: []string{"OWN=nobody"}}
	if err := c.Prepare(t.Context(), nobody); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Exec(t.Context(), sh("true")); api.ErrorCode(err) != api.CodeNotReady {
		t.Errorf("exec of nobody: %v", err)
	}
	if err := c.Prepare(t.Context(), nobody); api.ErrorCode(err) != api.CodeNotReady {
		t.Errorf("prepared again: %v", err)
	}
	if err := c.Identity(t.Context(), api.Identity{Version: api.Version, Hostname: "otter"}); err != nil {
		t.Fatal(err)
	}
	again := slices.DeleteFunc(slices.Clone(api.IdentitySteps), func(step string) bool { return step == "root" })
	want := slices.Concat(api.IdentitySteps, again, []string{"rehearsal"}, again)
	if diff := cmp.Diff(want, b.steps); diff != "" {
		t.Error(diff)
	}
	if got, err := run(t, c, sh(`echo "$HOSTNAME$OWN"`), ""); got.out != "otter\n" || err != nil {
		t.Errorf("the task is %+v, %v", got, err)
	}
	if err := c.Prepare(t.Context(), nobody); api.ErrorCode(err) != api.CodeNotReady {
		t.Errorf("prepared afterwards: %v", err)
	}
}

func TestFailedPreparationLeavesTheAgentUseless(t *testing.T) {
	for _, step := range api.IdentitySteps {
		c := connect(t, &bench{}, "/")
		err := c.Prepare(t.Context(), api.Identity{Version: api.Version, FailStep: step})
		if e, ok := errors.AsType[*api.Error](err); !ok || e.Step != step {
			t.Errorf("%s: got %v", step, err)
		}
		if err := c.Identity(t.Context(), api.Identity{Version: api.Version}); api.ErrorCode(err) != api.CodeNotReady {
			t.Errorf("%s: identity after it: %v", step, err)
		}
	}
}

func TestEachFailedStepLeavesTheAgentUseless(t *testing.T) {
	for i, step := range api.IdentitySteps {
		b := &bench{}
		c := connect(t, b, "/")
		err := c.Identity(t.Context(), api.Identity{Version: api.Version, FailStep: step})
		if e, ok := errors.AsType[*api.Error](err); !ok || e.Step != step {
			t.Errorf("%s: got %v", step, err)
		}
		if len(b.steps) != i+1 {
			t.Errorf("%s: steps %v", step, b.steps)
		}
		if _, err := c.Exec(t.Context(), sh("true")); api.ErrorCode(err) != api.CodeNotReady {
			t.Errorf("%s: exec: %v", step, err)
		}
	}
}

// A host that hangs up, whose client was killed, say, ends the process and what
// belongs to it, whatever it makes of signals; the agent goes on.
func TestHostThatHangsUp(t *testing.T) {
	const patient, brief = time.Minute, 10 * time.Millisecond
	for name, tc := range map[string]struct {
		script string // prints the numbers of two processes
		tty    bool
		grace  time.Duration
		goesOn bool // the second one
	}{
		"it takes the signal":      {"sleep 1000 & echo $$ $!; wait", false, patient, false},
		"it is deaf":               {"trap '' HUP TERM INT; sleep 1000 & echo $$ $!; wait; sleep 1000", false, brief, false},
		"it writes for ever":       {"sleep 1000 & echo $$ $!; exec yes", false, patient, false},
		"a terminal":               {"sleep 1000 & echo $$ $!; wait", true, patient, false},
		"a terminal, deaf":         {"trap '' HUP; sleep 1000 & echo $$ $!; wait; sleep 1000", true, brief, false},
		"it began another session": {"setsid sh -c 'echo '$$' $$; exec sleep 1000' & wait", false, patient, true},
		"it is stopped":            {"sleep 1000 & echo $$ $!; kill -STOP $$", false, brief, false},
	} {
		t.Run(name, func(t *testing.T) {
			c := connectWith(t, &bench{}, "/", tc.grace)
			if err := c.Identity(t.Context(), api.Identity{Version: api.Version, Hostname: "otter"}); err != nil {
				t.Fatal(err)
			}
			p := sh(tc.script)
			p.TTY = tc.tty
			x, err := c.Exec(t.Context(), p)
			if err != nil {
				t.Fatal(err)
			}
			var first, second int
			if _, err := fmt.Fscan(x.Stdout(), &first, &second); err != nil || first != x.PID() {
				t.Fatalf("it says %d, %d: %v", first, second, err)
			}
			t.Cleanup(func() { syscall.Kill(second, syscall.SIGKILL) })
			x.Close()
			awaitEnd(t, first)
			if tc.goesOn {
				if err := syscall.Kill(second, 0); err != nil {
					t.Errorf("what has a session of its own did not go on: %v", err)
				}
			} else {
				awaitEnd(t, second)
			}
			got, err := run(t, c, sh("echo still here"), "")
			if err != nil || got.out != "still here\n" {
				t.Fatalf("%+v, %v", got, err)
			}
		})
	}
}

// awaitEnd waits until a process has ended, and was reaped where it is a child.
func awaitEnd(t *testing.T, pid int) {
	t.Helper()
	process, err := procs.Open(pid)
	if errors.Is(err, procs.ErrGone) {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	defer process.Close()
	if ended, err := process.Ends(20 * time.Second); err != nil || !ended {
		t.Errorf("process %d goes on: %v", pid, err)
	}
}

func TestOOMKillIsReportedOnce(t *testing.T) {
	b := &bench{kills: 1}
	c := connect(t, b, "/")
	if err := c.Identity(t.Context(), api.Identity{Version: api.Version}); err != nil {
		t.Fatal(err)
	}
	for i, want := range []bool{true, false} {
		got, err := run(t, c, sh("kill -KILL $$"), "")
		if err != nil || got.exit != (api.ExecExit{Code: 137, Signal: 9, OOMKilled: want}) {
			t.Errorf("%d: %+v, %v", i, got.exit, err)
		}
	}
}
