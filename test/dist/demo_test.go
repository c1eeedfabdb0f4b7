package dist

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// The demo counts what its own checkout left, and nothing of others: neither
// what has ended and waits for its parent, nor what shows nothing of itself.
func TestDemoCountsItsOwnProcesses(t *testing.T) {
	script, err := os.ReadFile("../../scripts/demo")
	if err != nil {
		t.Fatal(err)
	}
	function := regexp.MustCompile(`(?ms)^processes\(\) \{$.*?^\}$`).Find(script)
	if function == nil {
		t.Fatal("scripts/demo has no function processes")
	}
	cat, err := exec.LookPath("cat")
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(cat)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	// start runs a program under a name until the test ends; ended: it has
	// ended, and nobody has asked how.
	start := func(path string, ended bool, args ...string) (pid int) {
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(path); err != nil {
			if err := os.WriteFile(path, program, 0o700); err != nil {
				t.Fatal(err)
			}
		}
		in, hold, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		c := exec.Command(path, args...)
		c.Stdin = in
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		in.Close()
		t.Cleanup(func() { hold.Close(); c.Wait() })
		if ended {
			hold.Close()
			if err := unix.Waitid(unix.P_PID, c.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
				t.Fatal(err)
			}
		}
		return c.Process.Pid
	}
	ours := start("own/bin/creel", false)
	started := start("another/bin/exe", false, "-", filepath.Join(dir, "state", "sandboxes"))
	for _, other := range []int{
		start("own/bin/creel", true), start("another/bin/creel", false), start("another/bin/exe", true), start("another/bin/qemu-system-x86_64", false),
	} {
		if other == ours {
			t.Fatal("a process was started twice")
		}
	}
	c := exec.Command("bash", "-euo", "pipefail", "-c", string(function)+"\nprocesses")
	c.Env = append(os.Environ(), "creel="+filepath.Join(dir, "own/bin/creel"), "CREEL_STATE_DIR="+filepath.Join(dir, "state"))
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	got := map[string]bool{}
	for _, line := range lines {
		pid, _, _ := strings.Cut(line, " ")
		got[pid] = true
	}
	if len(got) != 2 || !got[fmt.Sprint(ours)] || !got[fmt.Sprint(started)] {
		t.Errorf("it counts\n%s\nwant %d and %d", out, ours, started)
	}
}
