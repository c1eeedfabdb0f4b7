package integration

import (
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"creel/internal/audit/event"
	"creel/test/rig"

	"golang.org/x/sys/unix"
)

// floodProgram asks for names that are denied, and then asks a server until its
// log has no room for one more request.
const floodProgram = `
import http.client, signal, socket
for n in range(1500):
    try: socket.getaddrinfo("n%d.denied.example" % n, 80)
    except OSError: pass
print("flooded", flush=True)
c = None
while True:
    if c is None: c = http.client.HTTPConnection("web.example.com", 80, timeout=60)
    try:
        c.request("GET", "/" + "x" * 1500)
        r = c.getresponse()
        r.read()
        if r.status == 503: break
    except OSError: break
    except http.client.HTTPException: break
print("full", flush=True)
signal.pause()`

// flooded is a sandbox whose task has used up the quota of its log.
func flooded(t *testing.T, r *rig.Rig, policy string) (name string) {
	t.Helper()
	name = background(t, r, "--policy", policy, "debian", "python3", "-c", floodProgram)
	logs := r.Start(t, "logs", "-f", name)
	for _, want := range []string{"flooded", "full"} {
		if line := logs.Line(); line != want {
			t.Fatalf("the task says %q, want %q", line, want)
		}
	}
	return name
}

// A guest that has used up its log's quota keeps nobody from ending it, nor from
// taking the network away, and what it was denied is a bounded part of the log.
func TestAFloodedSandboxIsStillInHand(t *testing.T) {
	r := machines(t).With("CREEL_AUDIT_QUOTA=1m")
	w := newWorld(t)
	w.mux.HandleFunc("/", func(out http.ResponseWriter, _ *http.Request) { out.WriteHeader(http.StatusNoContent) })
	policy := w.policy(t, "rules:\n  - {allow: web.example.com, ports: 80, methods: [GET], upstream: PLAIN}\n  - {allow: other.example.com, ports: 80, upstream: PLAIN}\n")
	fewer := w.policy(t, "rules:\n  - {allow: other.example.com, ports: 80, upstream: PLAIN}\n")
	none := w.policy(t, "rules: []\n")
	ended := func(t *testing.T, name string, code int) {
		t.Helper()
		if s := r.Inspect(t, name).Status; s.State != "exited" || s.ExitCode != code {
			t.Errorf("its status is %+v, want exit code %d", s, code)
		}
		if got := r.Run(t, "audit", "verify"); got.Code != 0 {
			t.Errorf("the record: %+v", got)
		}
		if exits := recordsOf[event.Exit](t, r, name, "exit"); len(exits) != 1 || len(exits[0].Unrecorded) > 0 {
			t.Errorf("the end on record: %+v", exits)
		}
	}
	t.Run("policy-set-exec-stop", func(t *testing.T) {
		name := flooded(t, r, policy)
		r.Must(t, "policy", "set", name, fewer)
		r.Must(t, "policy", "set", name, none)
		if got := r.Must(t, "exec", name, "echo", "looked"); got != "looked\n" {
			t.Errorf("exec says %q", got)
		}
		r.Must(t, "pause", name)
		r.Must(t, "unpause", name)
		r.Must(t, "stop", "-t", "20", name)
		ended(t, name, 143)
		names := recordsOf[event.Tally](t, r, name, "name")
		count := int64(0)
		for _, n := range names {
			count += n.Count
		}
		if count < 1500 || len(names) > 1100 {
			t.Errorf("%d records count %d names that were asked for", len(names), count)
		}
		if p := recordsOf[event.Policy](t, r, name, "policy"); len(p) != 3 || p[2].Policy != event.NoPolicy {
			t.Errorf("policies on record: %+v", p)
		}
	})
	t.Run("kill", func(t *testing.T) {
		name := flooded(t, r, policy)
		r.Must(t, "kill", name)
		r.Must(t, "wait", name)
		ended(t, name, 137)
	})
	t.Run("rm-f", func(t *testing.T) {
		name := flooded(t, r, policy)
		r.Must(t, "rm", "-f", name)
		if got := r.Run(t, "audit", "verify"); got.Code != 0 {
			t.Errorf("the record: %+v", got)
		}
	})
}

// A keeper that does not answer cannot keep its sandbox: rm -f ends it, and its
// VMM, from outside.
func TestRemoveEndsAKeeperThatDoesNotAnswer(t *testing.T) {
	r := machines(t)
	before := r.Snapshot(t)
	name := background(t, r, "debian", "sleep", "10000")
	keeper, vmm := find(t, r, rig.Keeper), find(t, r, rig.VMM)
	// What it says of itself names this test.
	status := filepath.Join(r.State, "sandboxes", r.Inspect(t, name).Record.Config.Spec.ID, "run", "status.json")
	text, err := os.ReadFile(status)
	if err == nil {
		forged := strings.ReplaceAll(string(text), `"keeperPid": `, `"keeperPid": 1`)
		err = os.WriteFile(status, []byte(forged), 0o600)
	}
	if err := errors.Join(err, unix.Kill(keeper.PID, unix.SIGSTOP)); err != nil {
		t.Fatal(err)
	}
	r.Must(t, "rm", "-f", name)
	rig.Await(t, keeper, vmm)
	r.Clean(t, before)
	if signals := recordsOf[event.Signal](t, r, name, "signal"); !slices.ContainsFunc(signals, func(s event.Signal) bool { return s.Target == "keeper" }) {
		t.Errorf("signals on record: %+v", signals)
	}
}

// fullDisk is a rig whose state directory is a small file system of its own, but
// for what is made once. Fill takes all the room that is left.
func fullDisk(t *testing.T) (r *rig.Rig, fill func() (free func())) {
	t.Helper()
	whole := machines(t)
	state := filepath.Join(t.TempDir(), "state")
	if err := os.Mkdir(state, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", state, "tmpfs", 0, "size=96m,mode=0700"); err != nil {
		t.Skipf("a small file system cannot be mounted: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(state, unix.MNT_DETACH) })
	whole.Must(t, "run", "-q", "debian", "true") // its template and disk are there from then on
	for _, dir := range []string{"images", "kernels", "templates", "scratch", "accel.json"} {
		if err := os.Symlink(filepath.Join(whole.State, dir), filepath.Join(state, dir)); err != nil {
			t.Fatal(err)
		}
	}
	other := whole.With("CREEL_STATE_DIR=" + state)
	other.State = state
	return other, func() func() {
		ballast := filepath.Join(state, "ballast")
		f, err := os.Create(ballast)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for err == nil {
			_, err = f.Write(make([]byte, 4<<10))
		}
		if !errors.Is(err, unix.ENOSPC) {
			t.Fatal(err)
		}
		return func() { os.Remove(ballast) }
	}
}

// With the host's disk full, runs are ended and rights taken away all the same,
// and the record is whole once there is room.
func TestFullDisk(t *testing.T) {
	r, fill := fullDisk(t)
	w := newWorld(t)
	policy := w.policy(t, "rules:\n  - {allow: web.example.com, ports: 80, upstream: PLAIN}\n")
	none, more := w.policy(t, "rules: []\n"), w.policy(t, "rules:\n  - {allow: web.example.com, ports: 80, upstream: PLAIN}\n  - {allow: more.example.com, ports: 80, upstream: PLAIN}\n")
	r.Must(t, "secret", "set", "key", "--from", "env:HOME", "--host", "web.example.com", "--as", "bearer")
	start := func(name string) {
		r.Must(t, "run", "-d", "--name", name, "--policy", policy, "debian", "sleep", "10000")
		t.Cleanup(func() { r.Run(t, "rm", "-f", name) })
	}
	for _, name := range []string{"stopped", "killed", "removed"} {
		start(name)
	}
	free := fill()
	if got := r.Run(t, "policy", "set", "stopped", more); got.Code == 0 {
		t.Errorf("more is allowed without a record: %+v", got)
	}
	if got := r.Run(t, "policy", "set", "stopped", none); got.Code == 0 || !strings.Contains(got.Err, "is in force") {
		t.Errorf("policy set: %+v", got)
	}
	if got := r.Run(t, "run", "-q", "debian", "true"); got.Code == 0 {
		t.Errorf("a task was run without a record: %+v", got)
	}
	r.Must(t, "secret", "rm", "key")
	r.Must(t, "pause", "killed")
	r.Must(t, "stop", "-t", "20", "stopped")
	r.Must(t, "kill", "killed")
	if got := r.Run(t, "rm", "-f", "removed"); r.Run(t, "inspect", "removed").Code == 0 {
		t.Errorf("rm -f: %+v", got)
	}
	if got := r.Run(t, "audit", "verify"); got.Code != 0 {
		t.Errorf("the record on a full disk: %+v", got)
	}
	free()
	r.Must(t, "wait", "killed")
	if got := r.Must(t, "ps", "-a"); strings.Contains(got, "Up") {
		t.Errorf("something runs: %s", got)
	}
	r.Must(t, "rm", "stopped", "killed")
	if got := r.Must(t, "audit", "verify"); !strings.Contains(got, "3 logs closed") || !strings.Contains(got, " 0 open") {
		t.Errorf("the record in the end: %s", got)
	}
}
