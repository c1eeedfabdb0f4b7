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
