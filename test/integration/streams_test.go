package integration

import (
	"bytes"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"creel/test/rig"

	"golang.org/x/sys/unix"
)

func TestStreamsAreTheTasksOwn(t *testing.T) {
	r := machines(t)
	got := r.RunIn(t, strings.NewReader("in\x00put"), "run", "-q", "-i", "debian", "sh", "-c", "cat; echo to-err >&2; exit 3")
	if got.Out != "in\x00put" || got.Err != "to-err\n" || got.Code != 3 {
		t.Errorf("got %+v", got)
	}
}

func TestWithoutInteractiveStdinIsAtItsEnd(t *testing.T) {
	r := machines(t)
	got := r.RunIn(t, strings.NewReader("not for the task"), "run", "-q", "debian", "cat")
	if got.Out != "" || got.Code != 0 {
		t.Errorf("got %+v", got)
	}
}

func TestStdinOfAMegabyteArrivesWhole(t *testing.T) {
	r := machines(t)
	data := bytes.Repeat([]byte("0123456789abcde\n"), 1<<16)
	got := r.RunIn(t, bytes.NewReader(data), "run", "-q", "-i", "debian", "sha256sum")
	if sum := sha256Hex(data); got.Out != sum+"  -\n" {
		t.Errorf("the task read %q, want %s", got.Out, sum)
	}
}

func TestExitCodes(t *testing.T) {
	r := machines(t)
	for _, test := range []struct {
		name string
		args []string
		code int
		says string // in standard error
	}{
		{"its own", []string{"debian", "sh", "-c", "exit 42"}, 42, "exit 42 after"},
		{"a signal", []string{"debian", "sh", "-c", "kill -USR1 $$"}, 138, "exit 138"},
		{"not found", []string{"debian", "no-such-program"}, 127, "no-such-program"},
		{"not executable", []string{"debian", "/etc/passwd"}, 126, "permission denied"},
		{"no such user", []string{"-u", "nemo", "debian", "true"}, 125, "nemo"},
		{"no such image", []string{"--pull", "never", "no-such-image", "true"}, 125, "not found in the local store"},
		{"over memory", []string{"-m", "300m", "debian", "python3", "-c", "x = b'x' * (400 << 20)"}, 137, "out of memory"},
		{"over time", []string{"--timeout", "1s", "debian", "sleep", "1000"}, 143, "timeout of 1s"},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := r.Run(t, append([]string{"run"}, test.args...)...)
			if got.Code != test.code || !strings.Contains(got.Err, test.says) {
				t.Errorf("exit code %d, want %d; standard error %q, want %q in it", got.Code, test.code, got.Err, test.says)
			}
		})
	}
}

func TestSignalsReachTheTask(t *testing.T) {
	r := machines(t)
	task := r.Start(t, "run", "-q", "debian", "sh", "-c",
		`trap 'echo got HUP' HUP; trap 'echo got USR1' USR1; trap 'echo got INT; exit 7' INT; echo ready; while :; do sleep 0.1; done`)
	if line := task.Line(); line != "ready" {
		t.Fatalf("the task said %q", line)
	}
	for _, s := range []struct {
		signal syscall.Signal
		says   string
	}{{unix.SIGHUP, "got HUP"}, {unix.SIGUSR1, "got USR1"}, {unix.SIGINT, "got INT"}} {
		if err := task.Cmd.Process.Signal(s.signal); err != nil {
			t.Fatal(err)
		}
		if line := task.Line(); line != s.says {
			t.Errorf("after %s the task said %q", s.signal, line)
		}
	}
	if code := task.Wait(); code != 7 {
		t.Errorf("exit code %d, want 7; %s", code, task.Stderr)
	}
}

func TestTerminal(t *testing.T) {
	r := machines(t)
	master, slave := openTerminal(t)
	setSize(t, master, 33, 111)
	cmd := r.Cmd("run", "-q", "-it", "debian", "sh", "-c",
		`test -t 0 && test -t 1 && test -t 2 && echo terminal; trap 'stty size' WINCH; stty size; read line; echo "read $line" >&2; read line; exit 9`)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr.Setsid, cmd.SysProcAttr.Setctty = true, true
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	slave.Close()
	screen := newScreen(t, master)
	screen.await("terminal\r\n")
	screen.await("33 111\r\n")
	setSize(t, master, 44, 99)
	screen.await("44 99\r\n")
	if _, err := master.WriteString("hello\n"); err != nil {
		t.Fatal(err)
	}
	screen.await("read hello\r\n") // standard error is the terminal too
	if _, err := master.WriteString("\n"); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); cmd.ProcessState.ExitCode() != 9 {
		t.Errorf("%v, want exit code 9", err)
	}
}

func TestTerminalNeedsATerminal(t *testing.T) {
	r := machines(t)
	if got := r.Run(t, "run", "-t", "debian", "true"); got.Code != 125 || !strings.Contains(got.Err, "-t needs a terminal") {
		t.Errorf("got %+v", got)
	}
}

// openTerminal makes a pseudo-terminal.
func openTerminal(t *testing.T) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("there are no pseudo-terminals: %v", err)
	}
	t.Cleanup(func() { master.Close() })
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	fd, _, errno := unix.Syscall(unix.SYS_IOCTL, master.Fd(), unix.TIOCGPTPEER, uintptr(unix.O_RDWR|unix.O_NOCTTY))
	if errno != 0 {
		t.Fatalf("open the terminal's other end: %v", errno)
	}
	return master, os.NewFile(fd, "terminal")
}

func setSize(t *testing.T, master *os.File, rows, cols uint16) {
	t.Helper()
	if err := unix.IoctlSetWinsize(int(master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols}); err != nil {
		t.Fatal(err)
	}
}

// Issue 11, number 17: a run whose output cannot be written ended with 0, or
// never. It ends in time, says why, and leaves nothing.
func TestRunWhoseOutputIsLost(t *testing.T) {
	r := machines(t)
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	for name, tc := range map[string]struct {
		out  func(t *testing.T) *os.File
		task []string
		code int
		says string
	}{
		"full, a word":      {func(*testing.T) *os.File { return full }, []string{"echo", "hello"}, 125, "no space left on device"},
		"full, without end": {func(*testing.T) *os.File { return full }, []string{"yes"}, 125, "no space left on device"},
		"no reader":         {unread, []string{"yes"}, 141, ""},
	} {
		t.Run(name, func(t *testing.T) {
			before := r.Snapshot(t)
			var said bytes.Buffer
			cmd := r.Cmd(append([]string{"run", "-q", "debian"}, tc.task...)...)
			cmd.Stdout, cmd.Stderr = tc.out(t), &said
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			limit := time.AfterFunc(rig.Patience, func() { cmd.Process.Kill() })
			cmd.Wait()
			if !limit.Stop() {
				t.Fatalf("it did not end; it said %q", &said)
			}
			if code := cmd.ProcessState.ExitCode(); code != tc.code || !strings.Contains(said.String(), tc.says) || tc.says == "" && said.Len() > 0 {
				t.Errorf("exit code %d, want %d; it said %q", code, tc.code, &said)
			}
			r.Clean(t, before)
		})
	}
	t.Run("exec", func(t *testing.T) {
		name := background(t, r, "debian", "sleep", "1000")
		cmd := r.Cmd("exec", name, "yes")
		cmd.Stdout = full
		cmd.Run()
		if code := cmd.ProcessState.ExitCode(); code != 125 {
			t.Errorf("exit code %d", code)
		}
		if got := r.Must(t, "exec", name, "sh", "-c", "echo the task is still there"); !strings.Contains(got, "still there") {
			t.Errorf("got %q", got)
		}
	})
}

// unread is a pipe that nobody reads.
func unread(t *testing.T) *os.File {
	t.Helper()
	reader, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	reader.Close()
	t.Cleanup(func() { writer.Close() })
	return writer
}
