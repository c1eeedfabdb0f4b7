package cli

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"

	"creel/internal/cli/command"
)

// fails is a stream that cannot be written after some bytes.
type fails struct {
	room int
	err  error
}

func (f *fails) Write(p []byte) (int, error) {
	if f.room -= len(p); f.room < 0 {
		return 0, f.err
	}
	return len(p), nil
}

// A task that writes for ever ends when its output cannot be written.
func TestCarryGivesUpWhereOutputCannotBeWritten(t *testing.T) {
	for name, tc := range map[string]struct{ out, err io.Writer }{
		"output":       {&fails{10, syscall.ENOSPC}, io.Discard},
		"error output": {io.Discard, &fails{10, syscall.ENOSPC}},
		"both":         {&fails{10, syscall.ENOSPC}, &fails{20, syscall.ENOSPC}},
	} {
		stdout, task := io.Pipe()
		stderr, task2 := io.Pipe()
		ended := 0
		done := make(chan error)
		go func() {
			done <- carry(outputs{tc.out, tc.err}, stdout, stderr, func() {
				ended++
				task.Close()
				task2.Close()
			})
		}()
		for _, w := range []*io.PipeWriter{task, task2} {
			go func() {
				for {
					if _, err := io.WriteString(w, "more\n"); err != nil {
						return // it was ended
					}
				}
			}()
		}
		if err := <-done; !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("%s: %v", name, err)
		}
		if ended != 1 {
			t.Errorf("%s: the task was ended %d times", name, ended)
		}
	}
}

// The end of the task's streams by an error of theirs is for others to explain.
func TestCarryLeavesReadErrors(t *testing.T) {
	var out bytes.Buffer
	err := carry(outputs{&out, io.Discard}, io.MultiReader(strings.NewReader("said"), iotest.ErrReader(io.ErrUnexpectedEOF)), nil,
		func() { t.Error("the task was ended") })
	if err != nil || out.String() != "said" {
		t.Errorf("%q, %v", out.String(), err)
	}
}

// mainWith runs a command line whose state cannot be opened, for that reason.
func mainWith(out, errs io.Writer, reason error, args ...string) int {
	return Main(context.Background(), Env{
		Streams: Streams{In: os.Stdin, Out: out, Err: errs}, Logging: &Logging{},
		Open: func(context.Context) (*App, error) { return nil, reason },
	}, args)
}

func TestErrorsAreSafeToShow(t *testing.T) {
	var errs bytes.Buffer
	code := mainWith(io.Discard, &errs, errors.New("the guest says \x1b]0;owned\x07\u202e\ncreel: all is well\r"), "ps")
	want := `creel: the guest says \u001b]0;owned\u0007\u202e` + "\n" + `  creel: all is well\u000d` + "\n"
	if code != 1 || errs.String() != want {
		t.Errorf("code %d, %q, want %q", code, errs.String(), want)
	}
}

func TestOutputThatCannotBeWritten(t *testing.T) {
	for name, tc := range map[string]struct {
		err   error
		open  error
		args  []string
		code  int
		words []string
	}{
		"full":                {syscall.ENOSPC, nil, []string{"--help"}, 1, []string{"write standard output: no space left on device"}},
		"no reader":           {&os.PathError{Op: "write", Path: "/dev/stdout", Err: syscall.EPIPE}, nil, []string{"--help"}, 141, nil},
		"nothing was printed": {syscall.ENOSPC, errors.New("closed"), []string{"ps"}, 1, []string{"creel: closed\n"}},
	} {
		var errs bytes.Buffer
		code := mainWith(&fails{20, tc.err}, &errs, tc.open, tc.args...)
		if code != tc.code || len(tc.words) == 0 && errs.Len() > 0 {
			t.Errorf("%s: code %d, %q", name, code, errs.String())
		}
		for _, w := range tc.words {
			if !strings.Contains(errs.String(), w) {
				t.Errorf("%s: %q does not say %q", name, errs.String(), w)
			}
		}
	}
}

func TestUnwrittenKeepsOtherErrors(t *testing.T) {
	full := &os.PathError{Op: "write", Path: "/dev/stdout", Err: syscall.ENOSPC}
	both := unwritten(&ExitError{Code: 125, Err: errors.New("other")}, "standard output", full)
	if both.Code != 125 || !strings.Contains(both.Err.Error(), "other") || !strings.Contains(both.Err.Error(), "no space left") {
		t.Errorf("got %d, %v", both.Code, both.Err)
	}
	own := &ExitError{Code: 125, Err: full}
	if got := unwritten(own, "standard output", full); got != own {
		t.Errorf("got %d, %v", got.Code, got.Err)
	}
}

// A task's bytes pass as they are, and what Creel says beside them does not.
func TestRawIsRaw(t *testing.T) {
	var b bytes.Buffer
	o := command.NewOutput(&b)
	io.WriteString(command.Raw(o), "\x1b[1m\x00\xff")
	io.WriteString(o, "\x1b")
	if b.String() != "\x1b[1m\x00\xff"+`\u001b` {
		t.Errorf("got %q", b.String())
	}
	o = command.NewOutput(&fails{0, syscall.ENOSPC})
	if _, err := command.Raw(o).Write([]byte("x")); err == nil || !errors.Is(o.Finish(), syscall.ENOSPC) {
		t.Errorf("an error of the raw stream was lost: %v", err)
	}
}

// What comes between the end of the task and the end of its streams is dropped:
// a task that waits to be read would never end.
func TestCarryDropsWhatStillComes(t *testing.T) {
	stdout, task := io.Pipe()
	gaveUp := make(chan bool, 1)
	done := make(chan error)
	go func() {
		done <- carry(outputs{&fails{0, syscall.ENOSPC}, io.Discard}, stdout, nil, func() { gaveUp <- true })
	}()
	io.WriteString(task, "first")
	<-gaveUp
	for range 100 {
		if _, err := io.WriteString(task, "still on its way"); err != nil {
			t.Fatal(err)
		}
	}
	task.Close()
	if err := <-done; !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("got %v", err)
	}
}

// An archive of a sandbox would steer the terminal that it is written to.
func TestArchiveIsNotForATerminal(t *testing.T) {
	terminal, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("there are no pseudo-terminals: %v", err)
	}
	defer terminal.Close()
	out := command.NewOutput(terminal)
	if !command.IsTerminal(out) || !command.IsTerminal(command.Raw(out)) || command.IsTerminal(command.NewOutput(io.Discard)) {
		t.Error("a terminal is not known for one, or something else is")
	}
	k := hostileKeeper(t, func(io.Writer) { t.Error("the sandbox was asked for its archive") })
	if err := copyFrom(t.Context(), Env{Streams: Streams{Out: out}}, k, "/out", "-", copyOut{}); err == nil || !strings.Contains(err.Error(), "not for a terminal") {
		t.Errorf("got %v", err)
	}
}

// To a pipe it goes as it is, and an error of writing it is one.
func TestArchiveGoesOutAsItIs(t *testing.T) {
	archive := tarball(t, tar.Header{Name: "out\x1b", Typeflag: tar.TypeFifo})
	k := hostileKeeper(t, func(w io.Writer) { w.Write(archive) })
	var b bytes.Buffer
	if err := copyFrom(t.Context(), Env{Streams: Streams{Out: command.NewOutput(&b)}}, k, "/out", "-", copyOut{}); err != nil || !bytes.Equal(b.Bytes(), archive) {
		t.Errorf("%d bytes of %d, %v", b.Len(), len(archive), err)
	}
	full := command.NewOutput(&fails{100, syscall.ENOSPC})
	if err := copyFrom(t.Context(), Env{Streams: Streams{Out: full}}, k, "/out", "-", copyOut{}); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("got %v", err)
	}
}
