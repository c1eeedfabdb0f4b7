package postmortem

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// endOf is the state of a shell that has run script.
func endOf(t *testing.T, script string) *os.ProcessState {
	t.Helper()
	cmd := exec.Command("sh", "-c", script)
	cmd.Run() // most fail: that is what they are for
	if cmd.ProcessState == nil {
		t.Fatalf("%s did not run", script)
	}
	return cmd.ProcessState
}

func TestHow(t *testing.T) {
	for script, want := range map[string]string{
		"kill -KILL $$": "the VMM was killed (signal 9, killed)",
		"kill -SEGV $$": "the VMM crashed (signal 11, segmentation fault)",
		"kill -SYS $$":  "the VMM crashed (signal 31, bad system call)",
		"kill -HUP $$":  "the VMM was ended from outside (signal 1, hangup)",
		"exit 3":        "the VMM ended by itself: exit status 3",
		"exit 0":        "the VMM ended by itself: exit status 0",
	} {
		if got := How("the VMM", endOf(t, script), nil); got != want {
			t.Errorf("%s: %q, want %q", script, got, want)
		}
	}
	if got := How("the VMM", nil, nil); !strings.Contains(got, "not known") {
		t.Errorf("nothing known: %q", got)
	}
}

// Lack of memory is named where the kernel has killed for it, of SIGKILL alone.
func TestHowWithKills(t *testing.T) {
	path := filepath.Join(t.TempDir(), "vmstat")
	write := func(text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("oom_kill 5\n")
	kills, err := open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer kills.Close()
	killed, crashed := endOf(t, "kill -KILL $$"), endOf(t, "kill -SEGV $$")
	if got := How("it", killed, kills); strings.Contains(got, "memory") {
		t.Errorf("none was killed for memory: %q", got)
	}
	write("oom_kill 7\n")
	if got := How("it", killed, kills); !strings.Contains(got, "ran out of memory") || !strings.Contains(got, "(2 in all)") {
		t.Errorf("two were killed for memory: %q", got)
	}
	if got := How("it", crashed, kills); strings.Contains(got, "memory") {
		t.Errorf("a crash is no lack of memory: %q", got)
	}
}
