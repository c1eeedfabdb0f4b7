package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"creel/test/rig"
)

// standingBy is a rig whose last run left a VM that waits. The end of the test
// ends it.
func standingBy(t *testing.T, r *rig.Rig) *rig.Rig {
	t.Helper()
	w := r.With("CREEL_STANDBY=1")
	w.Must(t, "run", "-q", imageOf(r), "true")
	t.Cleanup(func() { noneWaits(t, r) })
	awaitStandby(t, w)
	return w
}

// leavingNothing is standingBy for a test whose end leaves nothing.
func leavingNothing(t *testing.T, r *rig.Rig) *rig.Rig {
	t.Helper()
	before := r.Snapshot(t)
	t.Cleanup(func() { r.Clean(t, before) }) // once none waits
	return standingBy(t, r)
}

// awaitStandby waits until a VM waits for a task.
func awaitStandby(t *testing.T, w *rig.Rig) {
	t.Helper()
	for deadline := time.Now().Add(rig.Patience); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if found, _ := filepath.Glob(filepath.Join(w.State, "standby", "*", "keeper.sock")); len(found) > 0 {
			return
		}
	}
	t.Fatalf("no VM waits: %v", w.Processes())
}

// noneWaits has the waiting VM end, by a command that wants none.
func noneWaits(t *testing.T, r *rig.Rig) {
	t.Helper()
	isStandby := func(p rig.Process) bool { return p.Kind == rig.Standby }
	for deadline := time.Now().Add(rig.Patience); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		r.Must(t, "ps", "-aq") // one that only begins to get ready is not seen by it
		if !slices.ContainsFunc(r.Processes(), isStandby) {
			return
		}
	}
	t.Errorf("one still waits: %v", r.Processes())
}

// waited reports whether the sandbox took a VM that had waited.
func waited(t *testing.T, r *rig.Rig, ref string) bool {
	t.Helper()
	return strings.Contains(r.Must(t, "audit", "export", "--sandbox", ref), `"step":"standby"`)
}

// A task in a VM that waited is like any other: itself, and its own.
func TestStandby(t *testing.T) {
	r := machines(t)
	w := leavingNothing(t, r)
	owner := map[string]int{}
	for i := range 3 {
		name := fmt.Sprintf("waited-%d", i)
		run := w.Start(t, "run", "-q", "-i", "--name", name, "-e", "OWN="+name, "-h", name, "debian", "sh", "-c",
			"echo $OWN; cat /etc/hostname; grep -c $OWN /etc/hosts; cat /sys/fs/cgroup/*/pids.max"+marksProgram)
		if own, host, hosts := run.Line(), run.Line(), run.Line(); own != name || host != name || hosts != "1" {
			t.Errorf("%s: its variable is %q, its host name %q, lines about it in its hosts %s", name, own, host, hosts)
		}
		if groups := run.Line(); groups != "max" {
			t.Errorf("a cgroup beside the task's: %q", groups)
		}
		for _, mark := range markNames[:4] {
			mark += " " + run.Line()
			if other, taken := owner[mark]; taken {
				t.Errorf("runs %d and %d have the same %s", other, i, mark)
			}
			owner[mark] = i
		}
		if host := run.Line(); host != name {
			t.Errorf("its host name is %q", host)
		}
		if said, now := seconds(t, run.Line()), time.Now(); now.Sub(said).Abs() > 3*time.Second {
			t.Errorf("its clock is %s after the host's", said.Sub(now))
		}
		if !waited(t, r, name) {
			t.Errorf("run %d did not take the VM that waited", i)
		}
		run.Stdin.Close()
		run.Wait()
		awaitStandby(t, w)
	}
	if got := w.Run(t, "run", "-q", "--name", "other-disk", "--disk", "128m", "debian", "echo", "cold"); got.Out != "cold\n" {
		t.Errorf("of another disk: %+v", got)
	}
}

func TestStandbyIsConfined(t *testing.T) {
	r := machines(t)
	w := leavingNothing(t, r)
	checkConfined(t, w)
}

// The keeper of a VM that waited holds its sandbox's lock as long as the task
// runs, also when it has collected its garbage, a second after its start.
func TestStandbyIsLookedAfter(t *testing.T) {
	r := machines(t)
	w := leavingNothing(t, r)
	run := w.Start(t, "run", "-q", "-i", "--name", "long", "debian", "sh", "-c", "echo begun; sleep 4; echo goes on; read x")
	for _, want := range []string{"begun", "goes on"} {
		if line := run.Line(); line != want {
			t.Fatalf("it says %q, want %q", line, want)
		}
		if state := r.Inspect(t, "long").Status.State; state != "running" {
			t.Fatalf("it is %s", state)
		}
	}
	if !waited(t, r, "long") {
		t.Error("it did not take the VM that waited")
	}
	run.Stdin.Close()
	run.Wait()
}

// A detached task that is kept takes one with a disk that outlives its VM.
func TestStandbyOfAKeptSandbox(t *testing.T) {
	r := machines(t)
	w := leavingNothing(t, r)
	for i := range 2 {
		name := fmt.Sprintf("kept-%d", i)
		t.Cleanup(func() { r.Run(t, "rm", "-f", name) })
		w.Must(t, "run", "-d", "--name", name, "debian", "sh", "-c", "echo $$ > /file; echo written")
		w.Must(t, "wait", name)
		if took := waited(t, r, name); took != (i == 1) {
			t.Errorf("run %d took the VM that waited: %v", i, took)
		}
		if got := w.Run(t, "cp", name+":/file", "-"); got.Code != 0 {
			t.Errorf("%+v", got)
		}
		if got := w.Must(t, "logs", name); got != "written\n" {
			t.Errorf("its log is %q", got)
		}
		w.Must(t, "rm", name)
		awaitStandby(t, w)
	}
}

// Whoever dies, whenever: the next run goes on without it, and nothing is left.
func TestStandbyKilled(t *testing.T) {
	r := machines(t)
	before := r.Snapshot(t)
	for _, victim := range []rig.Kind{rig.Standby, rig.VMM} {
		t.Run(string(victim), func(t *testing.T) {
			w := standingBy(t, r)
			if err := unix.Kill(find(t, r, victim).PID, unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			for _, p := range w.Processes() { // one's end is the other's
				if p.Kind != rig.Holder {
					rig.Await(t, p)
				}
			}
			if got := w.Run(t, "run", "-q", "debian", "echo", "cold"); got.Out != "cold\n" {
				t.Errorf("%+v", got)
			}
			awaitStandby(t, w)
			noneWaits(t, r)
			r.Clean(t, before)
		})
	}
	for i := range 10 {
		t.Run(fmt.Sprintf("taker-%d", i), func(t *testing.T) {
			w := standingBy(t, r)
			run := w.Start(t, "run", "-q", "debian", "true")
			time.Sleep(time.Duration(i) * 12 * time.Millisecond) // somewhere between its start and its end
			run.Cmd.Process.Kill()
			run.Wait()
			noneWaits(t, r)
			r.Clean(t, before)
		})
	}
}

// A VM that waits and does not answer, or whose keeper does not, is replaced by
// another one: the task notices nothing but the time.
func TestStandbyWedged(t *testing.T) {
	r := machines(t)
	before := r.Snapshot(t)
	for _, victim := range []rig.Kind{rig.Standby, rig.VMM} {
		t.Run(string(victim), func(t *testing.T) {
			w := standingBy(t, r)
			if err := unix.Kill(find(t, r, victim).PID, unix.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			got := w.Run(t, "run", "--name", "wedged", "debian", "echo", "cold")
			if got.Out != "cold\n" || got.Code != 0 || !strings.Contains(got.Err, "warning: a VM that waited could not be used") {
				t.Errorf("%+v", got)
			}
			awaitStandby(t, w)
			noneWaits(t, r)
			r.Clean(t, before)
		})
	}
}

// A VM of another template takes the place of one where only one may wait, and
// goes with its template.
func TestStandbyGoesWithItsTemplate(t *testing.T) {
	r := machines(t)
	w := standingBy(t, r)
	first := templateThatWaits(w)
	importBusybox(t, r)
	t.Cleanup(func() { r.Run(t, "image", "rm", "busybox") })
	w.Must(t, "run", "-q", "busybox", "true")
	second := ""
	for deadline := time.Now().Add(rig.Patience); second == "" || second == first; time.Sleep(20 * time.Millisecond) {
		if second = templateThatWaits(w); time.Now().After(deadline) {
			t.Fatalf("a VM of %s waits", second)
		}
	}
	awaitStandby(t, w)
	w.Must(t, "template", "rm", second)
	if left := templateThatWaits(w); left != "" {
		t.Errorf("one of %s waits", left)
	}
}

// templateThatWaits is the digest of the template whose VM waits.
func templateThatWaits(w *rig.Rig) string {
	keys, _ := filepath.Glob(filepath.Join(w.State, "standby", "*", "standby.json"))
	if len(keys) == 0 {
		return ""
	}
	text, _ := os.ReadFile(keys[0]) // gone since: none waits
	_, rest, _ := strings.Cut(string(text), `"template":"`)
	digest, _, _ := strings.Cut(rest, `"`)
	return digest
}
