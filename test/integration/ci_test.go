package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// docs/ci.md says what a pipeline may lack.

func TestPipelineWithoutHomeOrTerminal(t *testing.T) {
	r := machines(t)
	cmd := exec.Command("setsid", "--wait", r.Creel, "run", "debian", "sh", "-c", "echo out; test -t 0 || exit 6")
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "CREEL_STATE_DIR=" + r.State}
	cmd.Dir = "/"
	var out, complaint strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &complaint
	if err := cmd.Run(); cmd.ProcessState.ExitCode() != 6 || out.String() != "out\n" {
		t.Errorf("%v: %q, %q", err, &out, &complaint)
	}
	if !strings.HasPrefix(complaint.String(), "creel: exit 6 after ") || strings.Count(complaint.String(), "\n") != 1 {
		t.Errorf("standard error is %q, want the one line of the task's end", &complaint)
	}
}

func TestPipelineWithoutHomeHasAState(t *testing.T) {
	r := machines(t)
	tmp := t.TempDir()
	creel := func(args ...string) string {
		cmd := exec.Command(r.Creel, args...)
		cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "TMPDIR=" + tmp}
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("creel %s: %v", strings.Join(args, " "), err)
		}
		return string(out)
	}
	version := filepath.Join(tmp, fmt.Sprintf("creel-%d", os.Geteuid()), "version")
	if out := creel("ps", "-aq"); out != "" {
		t.Errorf("ps shows %q", out)
	}
	if _, err := os.Stat(version); err == nil {
		t.Error("looking made a state directory")
	}
	creel("audit", "key", "rotate")
	if _, err := os.Stat(version); err != nil {
		t.Error(err)
	}
}

// The mount is made in a namespace that ends with the shell.
func TestPipelineWithReadOnlyCheckout(t *testing.T) {
	r := machines(t)
	checkout := t.TempDir()
	if err := os.WriteFile(filepath.Join(checkout, "source"), []byte("from the checkout\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() != 0 {
		t.Skip("an ordinary user mounts in a user namespace, where Creel would take itself for root")
	}
	unshare := []string{"unshare", "--mount", "--propagation", "private", "sh", "-c"}
	const readOnly = `mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && cd "$1" && ! touch new 2>/dev/null`
	if out, err := exec.Command(unshare[0], append(unshare[1:], readOnly, "sh", checkout)...).CombinedOutput(); err != nil {
		t.Skipf("nothing can be mounted here: %v: %s", err, out)
	}
	script := readOnly + ` && tar c . | "$2" run -q -i debian sh -c 'cd /tmp && tar x && cat source && touch new'`
	cmd := r.Cmd()
	cmd.Path, cmd.Err = exec.LookPath("unshare")
	cmd.Args = append(unshare, script, "sh", checkout, r.Creel)
	if out, err := cmd.CombinedOutput(); err != nil || string(out) != "from the checkout\n" {
		t.Errorf("%v: %q", err, out)
	}
}
