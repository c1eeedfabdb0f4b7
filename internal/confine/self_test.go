package confine

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
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
	const more = 256 << 20
	o := Options{WritePaths: []string{g.Dir}, DataBytes: mapped() + more}
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
	_, err = unix.Mmap(-1, 0, 2*more, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	note("map more memory than it may", err)
	note("lift its limit", unix.Prlimit(0, unix.RLIMIT_DATA, &unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}, nil))
	json.NewEncoder(os.Stderr).Encode(result)
	for range 64 {
		grown = append(grown, bytes.Repeat([]byte{1}, more/16))
	}
}

var grown [][]byte // for the compiler to leave it

// mapped is what counts against DataBytes.
func mapped() (bytes uint64) {
	status, _ := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(status)) {
		fmt.Sscanf(line, "VmData: %d kB", &bytes)
	}
	return bytes << 10
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
	lines := bufio.NewReader(report)
	line, err := lines.ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &got)
	}
	if err != nil {
		t.Fatal(err)
	}
	words, err := io.ReadAll(lines)
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil || !regexp.MustCompile(`out of memory|cannot (allocate|map)|failed to allocate`).Match(words) {
		t.Errorf("when it wanted more than its limit, it ended with %v and said\n%.2000s", err, words)
	}
	for _, name := range []string{"self", "write in its directory", "kill its VMM"} {
		if got[name] != "" {
			t.Errorf("%s: %s", name, got[name])
		}
		delete(got, name)
	}
	if len(got) != 9 {
		t.Errorf("tried %d things: %v", len(got), got)
	}
	for name, text := range got {
		if text == "" {
			t.Errorf("%s: not refused", name)
		}
	}
}
