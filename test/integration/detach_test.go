package integration

import (
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"creel/test/rig"
)

const detachKeys = "\x10\x11" // ctrl-p ctrl-q

// onTerminal starts a command on a terminal of its own.
func onTerminal(t *testing.T, r *rig.Rig, args ...string) (cmd *exec.Cmd, s *screen, write func(string)) {
	t.Helper()
	master, slave := openTerminal(t)
	cmd = r.Cmd(args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr.Setsid, cmd.SysProcAttr.Setctty = true, true
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	slave.Close()
	return cmd, newScreen(t, master), func(text string) {
		t.Helper()
		if _, err := master.WriteString(text); err != nil {
			t.Fatal(err)
		}
	}
}

// A run that its user leaves by Docker's keys goes on, can be joined and left
// again, and is kept until it is removed.
func TestDetachFromATerminal(t *testing.T) {
	r := machines(t)
	const name = "detached"
	cmd, s, write := onTerminal(t, r, "run", "-it", "--name", name, "debian", "sh", "-c",
		`echo begun; while read line; do echo "read <$line>"; test "$line" = end && exit 4; done; echo "stdin ended"; exit 5`)
	t.Cleanup(func() { r.Run(t, "rm", "-f", name) })
	s.await("begun\r\n")
	write("one\n")
	s.await("read <one>\r\n")
	write(detachKeys)
	s.await("creel: detached; the task goes on, and `creel attach detached` joins it again")
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if got := r.Must(t, "ps", "--filter", "name="+name, "--format", "{{.State}}"); got != "running\n" {
		t.Fatalf("its state is %q", got)
	}

	cmd, s, write = onTerminal(t, r, "attach", "--detach-keys", "ctrl-x,q", name)
	write("two\n")
	s.await("read <two>\r\n")
	write("\x18q")
	s.await("creel: detached")
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}

	cmd, s, write = onTerminal(t, r, "attach", name)
	write("end\n")
	s.await("read <end>\r\n")
	if err := cmd.Wait(); cmd.ProcessState.ExitCode() != 4 {
		t.Errorf("%v, want exit code 4", err)
	}
	if got := r.Must(t, "ps", "-a", "--filter", "name="+name, "--format", "{{.State}}"); got != "exited\n" {
		t.Errorf("its state is %q", got)
	}
	if got := r.Must(t, "logs", name); !strings.Contains(got, "read <two>") || !strings.Contains(got, "read <end>") {
		t.Errorf("its log is %q", got)
	}
	r.Must(t, "rm", name)
}

// A process beside the task that its user leaves goes on, as does one that was
// started with -d; one whose terminal goes away ends.
func TestDetachedExec(t *testing.T) {
	r := machines(t)
	name := background(t, r, "debian", "sleep", "1000")
	cmd, s, write := onTerminal(t, r, "exec", "-it", name, "sh", "-c", "echo begun; exec sleep 111")
	s.await("begun\r\n")
	write(detachKeys)
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	r.Must(t, "exec", "-d", name, "sleep", "222")
	// The image has no ps, or is not asked for it.
	got := r.Must(t, "top", name, "-o", "user,args")
	for _, want := range []string{"root", "sleep 1000\n", "sleep 111\n", "sleep 222\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q among the processes:\n%s", want, got)
		}
	}
	got = r.Must(t, "top", name)
	if heads := strings.Fields(lines(got)[0]); strings.Join(heads, " ") != "USER PID PPID C STIME TTY TIME CMD" || len(lines(got)) != 4 {
		t.Errorf("top:\n%s", got)
	}
}

// A task that minds no signal does not hold who waits for it: signal after
// signal kills it, and the run ends as any other, with its receipt. Signals now
// and then do not.
func TestSignalAfterSignalIsAWayOut(t *testing.T) {
	r := machines(t)
	receipt := filepath.Join(t.TempDir(), "receipt.json")
	task := r.Start(t, "run", "--receipt", receipt, "--name", "stubborn", "debian", "sh", "-c",
		`trap 'echo no' INT; echo ready; while :; do sleep 0.1; done`)
	t.Cleanup(func() { r.Run(t, "rm", "-f", "stubborn") })
	task.Line()
	ended := make(chan int, 1)
	go func() { ended <- task.Wait() }()
	again := time.NewTicker(200 * time.Millisecond) // each is one signal, and no two are merged
	defer again.Stop()
	for code := -1; code < 0; {
		select {
		case <-again.C:
			task.Cmd.Process.Signal(syscall.SIGINT) // one that has ended gets none
		case code = <-ended:
			if said := task.Stderr.String(); code != 137 || !strings.Contains(said, "killing the task") || !strings.Contains(said, "creel: exit 137 after") || !strings.Contains(said, "killed by you") {
				t.Errorf("exit code %d; %s", code, said)
			}
		}
	}
	r.Must(t, "receipt", "verify", receipt)
}

// Signals to attach are the task's, unless they are not to be.
func TestAttachPassesSignalsOnRequest(t *testing.T) {
	r := machines(t)
	name := background(t, r, "debian", "sh", "-c", `trap 'echo got INT' INT; while :; do echo tick; sleep 0.2; done`)
	for _, proxy := range []string{"false", "true"} {
		watcher := r.Start(t, "attach", "--sig-proxy="+proxy, name)
		watcher.Line()
		if err := watcher.Cmd.Process.Signal(unix.SIGINT); err != nil {
			t.Fatal(err)
		}
		if proxy == "false" {
			if code := watcher.Wait(); code != -1 {
				t.Errorf("without --sig-proxy it ended with %d", code)
			}
			continue
		}
		for watcher.Line() != "got INT" {
		}
	}
	if got := r.Must(t, "logs", name); strings.Count(got, "got INT") != 1 {
		t.Errorf("the task got the signal %d times, want 1", strings.Count(got, "got INT"))
	}
}
