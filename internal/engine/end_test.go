package engine

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"creel/internal/audit"
	"creel/internal/engine/store"
	"creel/internal/keeper/rundir"
	"creel/internal/keeper/socket"
	"creel/internal/procs"
	"creel/internal/sandbox"
	"creel/internal/undo"
)

// deafEnv makes the test binary a keeper that was taken over, in that directory:
// it takes clients and never answers. With a number it is what such a keeper has
// started.
const deafEnv = "CREEL_TEST_DEAF"

func beDeaf(dir string) {
	signal.Ignore(unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGPIPE)
	if dir != "child" {
		l, err := socket.Listen(dir)
		if err != nil {
			panic(err)
		}
		child := exec.Command(os.Args[0])
		child.Env = append(os.Environ(), deafEnv+"=child")
		if err := child.Start(); err != nil {
			panic(err)
		}
		fmt.Println(child.Process.Pid)
		for held := []net.Conn(nil); len(held) < 100; {
			c, err := l.Accept()
			if err != nil {
				panic(err)
			}
			held = append(held, c)
		}
	}
	r, _, _ := os.Pipe()
	r.Read(make([]byte, 1)) // for ever
}

// deafKeeper starts one for a sandbox that is then found to be in state.
func deafKeeper(t *testing.T, e *Engine, state sandbox.State, innocent int) (f Found, keeper *exec.Cmd, child int) {
	t.Helper()
	rec := planNamed("otter", true)
	lock, err := e.reserve(&rec, &undo.Stack{}, nobodyWaits)
	if err != nil {
		t.Fatal(err)
	}
	run := e.store.KeeperDir(rec.Config.Spec.ID)
	keeper = exec.Command(os.Args[0])
	keeper.Env = append(os.Environ(), deafEnv+"="+run)
	keeper.ExtraFiles = []*os.File{lock.File}
	keeper.Stderr = t.Output()
	out, err := keeper.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := keeper.Start(); err != nil {
		t.Fatal(err)
	}
	lock.Close()
	who, err := procs.Identify(keeper.Process.Pid)
	if err == nil {
		err = noteKeeper(e.store.Dir(rec.Config.Spec.ID), who)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { keeper.Process.Kill(); keeper.Wait() })
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	if child, err = strconv.Atoi(strings.TrimSpace(line)); err != nil {
		t.Fatal(err)
	}
	// What it says of itself leads to another process.
	if err := rundir.WriteStatus(run, sandbox.Status{State: state, KeeperPID: innocent, VMMPID: innocent}); err != nil {
		t.Fatal(err)
	}
	if f, err = e.Find(t.Context(), "otter"); err != nil {
		t.Fatal(err)
	}
	return f, keeper, child
}

func innocent(t *testing.T) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), deafEnv+"=child")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	return cmd
}

func lives(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !strings.Contains(string(stat), ") Z ")
}

// A keeper that was taken over cannot keep its sandbox from being removed, and
// cannot have another process ended in its place.
func TestRemoveEndsAKeeperFromOutside(t *testing.T) {
	for _, state := range []sandbox.State{sandbox.StateRunning, sandbox.StateExited} { // as it says
		t.Run(string(state), func(t *testing.T) {
			l := &ledger{}
			e := engineIn(t.TempDir(), l)
			e.patience, e.leaves = 100*time.Millisecond, 200*time.Millisecond
			other := innocent(t)
			f, keeper, child := deafKeeper(t, e, state, other.Process.Pid)
			if err := e.Remove(t.Context(), f, false); err == nil || !lives(keeper.Process.Pid) {
				t.Errorf("without force: %v", err)
			}
			waited := make(chan error, 1)
			go func() { waited <- keeper.Wait() }()
			if err := e.Remove(t.Context(), f, true); err != nil {
				t.Error(err)
			}
			select {
			case <-waited:
			case <-time.After(10 * time.Second):
				t.Error("the keeper lives")
			}
			if l.count(audit.KindSignal) != 1 {
				t.Errorf("on the ledger is %v", l.kinds)
			}
			if lives(child) {
				t.Error("what it had started lives")
			}
			if !lives(other.Process.Pid) {
				t.Error("another process was ended")
			}
			if e.store.Exists(f.Record.Config.Spec.ID) {
				t.Error("the sandbox is left")
			}
		})
	}
}

// A number that another process has by now ends nothing.
func TestARecycledNumberEndsNobody(t *testing.T) {
	e := engineIn(t.TempDir(), &ledger{})
	e.patience, e.leaves = 100*time.Millisecond, 200*time.Millisecond
	other := innocent(t)
	f, keeper, _ := deafKeeper(t, e, sandbox.StateRunning, other.Process.Pid)
	dir := e.store.Dir(f.Record.Config.Spec.ID)
	real, err := procs.Identify(keeper.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	now, err := procs.Identify(other.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	for name, p := range map[string]procs.Instance{
		"started later":   {PID: other.Process.Pid, Start: now.Start - 1000, Boot: now.Boot},
		"of another boot": {PID: other.Process.Pid, Start: now.Start, Boot: "00000000-0000-0000-0000-000000000000"},
	} {
		if err := noteKeeper(dir, p); err != nil {
			t.Fatal(err)
		}
		if err := e.Remove(t.Context(), f, true); err == nil {
			t.Errorf("%s: the sandbox was removed, which its keeper holds", name)
		}
		if !lives(other.Process.Pid) || !lives(keeper.Process.Pid) {
			t.Fatalf("%s: a process was ended", name)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, store.ProcessName), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := e.Remove(t.Context(), f, true); err == nil {
		t.Error("removed while its keeper holds it")
	}
	data, err := json.Marshal(real)
	if err := errors.Join(err, os.WriteFile(filepath.Join(dir, store.ProcessName), data, 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := e.Remove(t.Context(), f, true); err != nil {
		t.Error(err)
	}
}
