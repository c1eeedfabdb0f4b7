package confine

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"creel/internal/sandbox"
)

// selfArg is the mode in which the test binary locks itself in and tries what
// is left to it.
const selfArg = "self"

// selfResult maps what was tried to the error's text, "" for success.
type selfResult map[string]string

func selfConfined(order string) {
	var g target
	if err := json.Unmarshal([]byte(order), &g); err != nil {
		os.Exit(3)
	}
	self, _ := os.Executable()
	dir, _ := os.MkdirTemp("", "self-")
	vmm, err := Start(VMM{Path: self, Args: []string{standInArg, "{}"}, Files: []*os.File{os.Stdin, os.Stdout},
		Level: sandbox.ConfinementFull, UID: 20001, GID: 20001, Dir: dir, MaxFileBytes: 1 << 20})
	os.Remove(dir)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(3)
	}
	o := Options{WritePaths: []string{g.Dir}}
	if os.Geteuid() == 0 {
		o.UID, o.GID = 20001, 20001
	}
	before, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(3)
	}
	result := selfResult{}
	note := func(name string, err error) {
		result[name] = ""
		if err != nil {
			result[name] = err.Error()
		}
	}
	_, err = Self(o)
	note("self", err)
	note("write in its directory", os.WriteFile(filepath.Join(g.Dir, "own"), nil, 0o600))
	note("kill its VMM", vmm.Kill())
	_, err = os.ReadFile("/etc/passwd")
	note("read /etc/passwd", err)
	_, err = os.Open("/proc/self/mem")
	note("open its memory", err)
	note("run a program", exec.Command("/bin/true").Run())
	note("signal another", unix.Kill(g.Parent, 0))
	_, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if unix.Listen(before, 1) == nil {
		err = nil // it has one that it can be reached at
	}
	note("make a TCP socket", err)
	note("unshare", unix.Unshare(unix.CLONE_FS))
	note("become root", unix.Setuid(0))
	json.NewEncoder(os.Stderr).Encode(result)
}

func TestSelf(t *testing.T) {
	if err := Available(); err != nil {
		t.Skip(err)
	}
	g := goal(t)
	order, _ := json.Marshal(target{Parent: g.Parent, Dir: g.Dir})
	cmd := exec.Command(programCopy(t), selfArg, string(order))
	in, _, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdin = in
	report, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var got selfResult
	if err := json.NewDecoder(report).Decode(&got); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	for _, name := range []string{"self", "write in its directory", "kill its VMM"} {
		if got[name] != "" {
			t.Errorf("%s: %s", name, got[name])
		}
		delete(got, name)
	}
	if len(got) != 7 {
		t.Errorf("tried %d things: %v", len(got), got)
	}
	for name, text := range got {
		if text == "" {
			t.Errorf("%s: not refused", name)
		}
	}
}
