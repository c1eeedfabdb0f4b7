package confine

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"creel/internal/procs"
	"creel/internal/sandbox"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case StageArg:
			StageMain()
		case standInArg:
			standIn(os.Args[2])
			os.Exit(0)
		case selfArg:
			selfConfined(os.Args[2])
			os.Exit(0)
		case keeperArg:
			keeper(os.Args[2])
			os.Exit(0)
		}
	}
	os.Exit(m.Run())
}

// The other tests lock a VMM in fully, so it can be done here.
func TestAvailable(t *testing.T) {
	if err := Available(); err != nil {
		t.Error(err)
	}
}

func TestStartRefusesNonsense(t *testing.T) {
	_, err := Start(VMM{Level: "none"})
	if err == nil || !strings.Contains(err.Error(), "level") {
		t.Errorf("Start = %v", err)
	}
}

// TestUnprivileged runs this file's tests again as an ordinary user.
func TestUnprivileged(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("not root: the other tests are this one")
	}
	cmd := exec.Command("setpriv", "--reuid=1000", "--regid=1000", "--clear-groups", programCopy(t),
		"-test.v", "-test.run=TestAvailable|TestMisbehaving|TestVMMDies|TestSelf")
	cmd.Dir, cmd.Env = "/tmp", []string{"TMPDIR=/tmp", "PATH=/usr/bin"}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Logf("%s", out)
}

// goal makes everything that the stand-in goes for.
func goal(t *testing.T) target {
	t.Helper()
	dir := t.TempDir()
	g := target{Parent: os.Getpid(), File: filepath.Join(dir, "secret"), Socket: filepath.Join(dir, "s"),
		Abstract: fmt.Sprintf("@creel-confine-%d", os.Getpid()), Dir: dir}
	if err := os.WriteFile(g.File, []byte("secret"), 0o644); err != nil {
		t.Fatal(err)
	}
	for dir != "/tmp" && dir != "/" { // so that modes are not what refuses
		os.Chmod(dir, 0o777)
		dir = filepath.Dir(dir)
	}
	for network, address := range map[string]string{"unix": g.Socket, "unix ": g.Abstract, "tcp": "127.0.0.1:0"} {
		l, err := net.Listen(strings.TrimSpace(network), address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		if a, ok := l.Addr().(*net.TCPAddr); ok {
			g.TCPPort = a.Port
		}
	}
	os.Chmod(g.Socket, 0o777)
	return g
}

func TestMisbehavingVMMIsRefusedEverything(t *testing.T) {
	program := programCopy(t)
	for _, level := range []sandbox.Confinement{sandbox.ConfinementFull, sandbox.ConfinementReduced} {
		t.Run(string(level), func(t *testing.T) {
			memory := sealedMemory(t)
			seal(t, memory)
			order, _ := json.Marshal(goal(t))
			ours, theirs, err := procs.Files()
			if err != nil {
				t.Fatal(err)
			}
			defer ours.Close()
			dir := t.TempDir()
			p, err := Start(VMM{Path: program, Args: []string{standInArg, string(order)}, Files: []*os.File{memory, theirs},
				Stderr: os.Stderr, Level: level, UID: 20001, GID: 20001, Dir: dir, MaxFileBytes: 1 << 20})
			theirs.Close()
			if err != nil {
				t.Fatal(err)
			}
			defer p.Kill()
			var succeeded []string
			if err := json.NewDecoder(ours).Decode(&succeeded); err != nil {
				t.Fatal(err)
			}
			if len(succeeded) > 0 {
				t.Errorf("not refused: %v", succeeded)
			}
			checkOutside(t, p.PID(), level)
			if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
				t.Errorf("left in its directory: %v, %v", left, err)
			}
		})
	}
}

// TestUnconfinedControl shows that the attempts are ones that can succeed.
func TestUnconfinedControl(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: mount and unshare are among the attempts")
	}
	ours, theirs, err := procs.Files()
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	g := goal(t)
	order, _ := json.Marshal(g)
	cmd := exec.Command("unshare", "-m", programCopy(t), standInArg, string(order))
	cmd.ExtraFiles = []*os.File{sealedMemory(t), theirs} // not sealed
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	theirs.Close()
	var succeeded []string
	if err := json.NewDecoder(ours).Decode(&succeeded); err != nil {
		t.Fatal(err)
	}
	ours.Close()
	cmd.Wait()
	os.Remove(fmt.Sprintf("/tmp/creel-stand-in-%d", g.Parent))
	var want []string
	for name := range attempts(target{}) {
		want = append(want, name)
	}
	slices.Sort(want)
	slices.Sort(succeeded)
	if diff := cmp.Diff(want, succeeded); diff != "" {
		t.Errorf("what was tried and what can succeed:\n%s", diff)
	}
}

// checkOutside looks at the VMM from where the host sees it.
func checkOutside(t *testing.T, pid int, level sandbox.Confinement) {
	t.Helper()
	s := status(t, pid)
	uid := os.Getuid()
	if uid == 0 {
		uid = 20001
	}
	none := "0000000000000000"
	want := map[string]string{
		"Uid": strings.TrimSpace(strings.Repeat(strconv.Itoa(uid)+" ", 4)), "NoNewPrivs": "1", "Seccomp": "2",
		"CapInh": none, "CapPrm": none, "CapEff": none, "CapAmb": none,
	}
	if os.Getuid() == 0 || level == sandbox.ConfinementFull {
		want["CapBnd"] = none
	}
	for k, v := range want {
		if s[k] != v {
			t.Errorf("%s is %q, want %q", k, s[k], v)
		}
	}
	for _, ns := range []string{"mnt", "pid", "net", "ipc", "uts", "cgroup"} {
		own, err := os.Readlink("/proc/self/ns/" + ns)
		if err != nil {
			t.Fatal(err)
		}
		its, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, ns))
		if err == nil && (own != its) != (level == sandbox.ConfinementFull) {
			t.Errorf("namespace %s: ours %s, its %s", ns, own, its)
		}
	}
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		name, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", pid, fd.Name()))
		// Above the five handed over, the stand-in's Go runtime has its own.
		if n, _ := strconv.Atoi(fd.Name()); n > 4 && !strings.HasPrefix(name, "anon_inode:[event") {
			t.Errorf("descriptor %s is %s, which was not handed over", fd.Name(), name)
		}
	}
}
