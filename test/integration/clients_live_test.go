package integration

import (
	"fmt"
	"io"
	"net"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"creel/internal/audit/event"
	"creel/test/rig"

	"github.com/google/go-cmp/cmp"
)

// heldProgram keeps a connection open, and tells how it ends unless it is told
// before what more to say.
const heldProgram = `
import select, socket, sys
s = socket.create_connection((sys.argv[1], 7000), 60)
s.settimeout(None)
s.sendall(b"hello\n")
print(s.recv(100).decode().strip(), flush=True)
if sys.stdin in select.select([s, sys.stdin], [], [])[0]:
    s.sendall(sys.stdin.readline().encode())
try: print(s.recv(100).decode().strip())
except OSError as e: print(e.strerror)`

func echoStream(c net.Conn) error {
	_, err := io.Copy(c, c)
	return err
}

// A policy that is changed holds at once: for what is open, for what is asked
// from then on, on record, and in what is shown of the sandbox.
func TestPolicySetOnARunningSandbox(t *testing.T) {
	r := machines(t)
	w := newWorld(t)
	echo := serveStreams(t, echoStream)
	rule := func(hosts ...string) (file string) {
		text := "rules:\n"
		for _, h := range hosts {
			text += fmt.Sprintf("  - {allow: %s, ports: 7000, upstream: {address: %q}}\n", h, echo)
		}
		return w.policy(t, text)
	}
	name := background(t, r, "--policy", rule("old.example.com", "both.example.com"), "debian", "sleep", "10000")
	hold := func(host string) *rig.Running {
		c := r.Start(t, "exec", "-i", name, "python3", "-c", heldProgram, host)
		if line := c.Line(); line != "hello" {
			t.Fatalf("%s answered %q", host, line)
		}
		return c
	}
	old, both := hold("old.example.com"), hold("both.example.com")
	first := shownPolicy(t, r, name)
	r.Must(t, "policy", "set", name, rule("new.example.com", "both.example.com"))
	changed := time.Now()
	if line := old.Line(); line != "Connection reset by peer" {
		t.Errorf("what is denied now ended with %q", line)
	}
	t.Logf("what was open was cut %d ms after the policy had changed, an exec's way included", time.Since(changed).Milliseconds())
	hold("new.example.com")
	if got := r.Run(t, "exec", name, "python3", "-c", heldProgram, "old.example.com"); !strings.Contains(got.Err, "Name or service not known") {
		t.Errorf("a name that is denied now: %+v", got)
	}
	second := shownPolicy(t, r, name)
	if listed, inspected := deniedOf(t, r, name); inspected == 0 || listed != strconv.FormatInt(inspected, 10) {
		t.Errorf("denials are %s in ps, %d in inspect", listed, inspected)
	}
	io.WriteString(both.Stdin, "still here\n")
	if line := both.Line(); line != "still here" {
		t.Errorf("what is still allowed ended with %q", line)
	}
	var got []string
	for _, p := range recordsOf[event.Policy](t, r, name, "policy") {
		got = append(got, fmt.Sprint(p.Generation, " ", p.Policy))
	}
	if diff := cmp.Diff([]string{"1 " + first, "2 " + second}, got); diff != "" || first == second {
		t.Errorf("generations on record (-want +got):\n%s", diff)
	}
}

// shownPolicy is the digest that `policy show` has.
func shownPolicy(t *testing.T, r *rig.Rig, name string) string {
	t.Helper()
	shown := r.Must(t, "policy", "show", name)
	found := regexp.MustCompile(`(?m)^# policy (\S+)$`).FindStringSubmatch(shown)
	if found == nil {
		t.Fatalf("the policy is shown as %q", shown)
	}
	return found[1]
}

// What is denied to a task is printed when it ends, each destination with the
// flag that allows it, which can be pasted as it is; on a terminal it is shown
// when it happens.
func TestDenialsTellWhatAllowsThem(t *testing.T) {
	r := machines(t)
	run := func(flags ...string) rig.Result {
		return r.Run(t, append(append([]string{"run"}, flags...), "debian", "getent", "hosts", "example.com")...)
	}
	got := run("--allow", "other.example.com")
	hints := regexp.MustCompile(`to allow it: (--allow \S+)\n`).FindAllStringSubmatch(got.Err, -1)
	if len(hints) != 1 || got.Code == 0 || !strings.Contains(got.Err, "denied:\n") || !strings.Contains(got.Err, "does the task need it") {
		t.Fatalf("with another name: %+v", got)
	}
	got = run(strings.Fields(hints[0][1])...)
	if got.Code != 0 || strings.Contains(got.Err, "denied") {
		t.Errorf("with %q: %+v", hints[0][1], got)
	}
	// This machine, its network and its metadata are suggested to nobody.
	got = r.Run(t, "run", "debian", "python3", "-c",
		"import urllib.request as u\nfor h in ['169.254.169.254', '10.0.0.1:8080', 'host.creel.internal:80', 'metadata.google.internal']:\n"+
			" try: u.urlopen('http://' + h, timeout=20)\n except OSError: pass")
	if strings.Contains(got.Err, "--allow") || strings.Count(got.Err, "no task should have it") != 2 || strings.Count(got.Err, "decide whether") != 2 {
		t.Errorf("of what is not public: %s", got.Err)
	}
}

func TestDenialsOnATerminal(t *testing.T) {
	r := machines(t)
	master, slave := openTerminal(t)
	cmd := r.Cmd("run", "-it", "--allow", "example.com", "debian", "sh", "-c",
		`getent hosts other.example.com; read line; getent hosts third.example.com; echo "and $line"`)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr.Setsid, cmd.SysProcAttr.Setctty = true, true
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	slave.Close()
	screen := newScreen(t, master)
	screen.await("\r\ncreel: denied other.example.com: no rule names this destination; to allow it: --allow other.example.com\r\n")
	if _, err := master.WriteString("on it goes\n"); err != nil { // the task waits: the note came while it ran
		t.Fatal(err)
	}
	screen.await("creel: denied third.example.com:")
	screen.await("denied:\r\n")
	screen.await("third.example.com")
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

// A secret that is rotated while a sandbox runs is used from the next request
// on, and the sandbox goes on without it.
func TestSecretRotatedWhileInUse(t *testing.T) {
	r := machines(t)
	w := newWorld(t)
	const host = "api.example.com"
	before := keepSecret(t, r, w, "rotated", "--host", host, "--as", "bearer")
	name := background(t, r, "--policy", w.policy(t, "rules: [{allow: "+host+", secret: rotated, upstream: UPSTREAM}]\n"), "debian", "sleep", "10000")
	ask := func(path string) rig.Result {
		return r.Run(t, "exec", name, "python3", "-c", "import urllib.request as u; print(u.urlopen('https://"+host+path+"').read().decode())")
	}
	pid := r.Inspect(t, name).Status.KeeperPID
	first := ask("/one/hello")
	const after = "sk-another-0123456789abcdef"
	rotated := r.RunIn(t, strings.NewReader(after), "secret", "rotate", "rotated")
	second := ask("/two/hello")
	for _, got := range []rig.Result{first, rotated, second} {
		if got.Code != 0 || strings.Contains(got.Out+got.Err, before) || strings.Contains(got.Out+got.Err, after) {
			t.Errorf("got %+v", got)
		}
	}
	for path, key := range map[string]string{"/one/": before, "/two/": after} {
		if all := w.arrived(host, path); len(all) != 1 || all[0].Header.Get("Authorization") != "Bearer "+key {
			t.Errorf("%s arrived as %v, want the key %s", path, all, key)
		}
	}
	if now := r.Inspect(t, name).Status.KeeperPID; now != pid {
		t.Errorf("the keeper was %d and is %d", pid, now)
	}
	if pushed := recordsOf[event.Secrets](t, r, name, "secrets"); len(pushed) != 1 || pushed[0].Names[0] != "rotated" {
		t.Errorf("on record are %v", pushed)
	}
}
