package secretcmd

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"creel/internal/audit"
	"creel/internal/audit/event"
	"creel/internal/cli/command"
	"creel/internal/secret/store"

	"golang.org/x/sys/unix"
)

const plain = "s3cr3t-of-the-test"

// rig runs command lines against a store and a record of its own.
type rig struct {
	t      *testing.T
	dir    string
	now    time.Time
	in     *os.File // nil: what run is given
	prompt func()   // when something is asked for
	pushed []string
	push   error
}

func newRig(t *testing.T) *rig { return &rig{t: t, dir: t.TempDir(), now: time.Now()} }

type prompts struct {
	bytes.Buffer
	prompt func()
}

func (p *prompts) Write(b []byte) (int, error) {
	if p.prompt != nil && bytes.Contains(b, []byte("value of")) {
		p.prompt()
	}
	return p.Buffer.Write(b)
}

// run gives stdin to a command line. None prints a value, whatever it says.
func (r *rig) run(stdin string, args ...string) (stdout, stderr string, code int) {
	r.t.Helper()
	in := r.in
	if in == nil {
		path := filepath.Join(r.t.TempDir(), "stdin")
		if err := os.WriteFile(path, []byte(stdin), 0o600); err != nil {
			r.t.Fatal(err)
		}
		var err error
		if in, err = os.Open(path); err != nil {
			r.t.Fatal(err)
		}
		defer in.Close()
	}
	out, errs := &bytes.Buffer{}, &prompts{prompt: r.prompt}
	root := New(Env{
		Streams: command.Streams{In: in, Out: out, Err: errs},
		Open: func(context.Context) (*store.Store, error) {
			return store.Open(store.Options{Dir: filepath.Join(r.dir, "secrets"), Now: func() time.Time { return r.now }}), nil
		},
		AuditDir: func() (string, error) { return filepath.Join(r.dir, "audit"), nil },
		Push: func(_ context.Context, names []string) (int, error) {
			r.pushed = append(r.pushed, names...)
			return 2, r.push
		},
	})
	root.SetArgs(args)
	root.SetOut(out)
	root.SetErr(errs)
	root.SilenceUsage = true
	if err := root.Execute(); err != nil {
		code = 1
		fmt.Fprint(errs, err)
	}
	if all := out.String() + errs.String(); strings.Contains(all, plain) || strings.Contains(all, "czNjcjN0") {
		r.t.Errorf("%q prints the value: %s", args, all)
	}
	return out.String(), errs.String(), code
}

// must wants a command line to work and returns what it printed.
func (r *rig) must(stdin string, args ...string) string {
	r.t.Helper()
	out, errs, code := r.run(stdin, args...)
	if code != 0 {
		r.t.Fatalf("%q: %s", args, errs)
	}
	return out
}

func (r *rig) value(name string) string {
	r.t.Helper()
	s := store.Open(store.Options{Dir: filepath.Join(r.dir, "secrets")})
	g, err := s.Resolve(r.t.Context(), []string{name})
	if err != nil {
		r.t.Fatal(err)
	}
	return g[0].Value.Reveal()
}

func TestALifeOfASecret(t *testing.T) {
	r := newRig(t)
	if out := r.must(plain+"\n", "set", "key", "--host", "API.test,*.b.test", "--method", "GET,POST", "--path", "/v1/**",
		"--as", "header:X-Api-Key", "--max-age", "90d"); out != "set key\n" || r.pushed != nil {
		t.Errorf("set prints %q and pushes %v", out, r.pushed)
	}
	if got := r.value("key"); got != plain {
		t.Errorf("the value is %q", got)
	}
	out := r.must("", "ls")
	for _, want := range []string{"NAME", "key", "age", "GET,POST api.test,*.b.test /v1/**", "header X-Api-Key", "3 months"} {
		if !strings.Contains(out, want) {
			t.Errorf("ls prints %q without %q", out, want)
		}
	}
	if out := r.must("another-of-the-test\r\n", "rotate", "key"); out != "rotated key\npushed to 2 running\n" {
		t.Errorf("rotate prints %q", out)
	}
	if got := r.value("key"); got != "another-of-the-test" {
		t.Errorf("the value is %q", got)
	}
	if out := r.must(plain, "set", "key", "--host", "api.test", "--as", "stand-in", "--env", "KEY", "--in", "header:X"); out != "set key\npushed to 2 running\n" {
		t.Errorf("set prints %q", out)
	}
	if out := r.must("", "check"); !strings.Contains(out, "key    ok") {
		t.Errorf("check prints %q", out)
	}
	r.push = errors.New("one does not answer")
	if _, errs, code := r.run(plain, "rotate", "key"); code == 0 || !strings.Contains(errs, "may have the old one: one does not answer") {
		t.Errorf("a push that fails: %d, %q", code, errs)
	}
	if out := r.must("", "rm", "key"); out != "removed key\n" {
		t.Errorf("rm prints %q", out)
	}
	if out := r.must("", "ls", "--json"); out != "[]\n" {
		t.Errorf("ls prints %q", out)
	}
}

func TestFaults(t *testing.T) {
	r := newRig(t)
	for name, c := range map[string]struct {
		args []string
		want []string
	}{
		"all at once":    {[]string{"set", "key", "--from", "paper", "--max-age", "soon", "--as", "bearer:x"}, []string{"--from: source \"paper\"", "--max-age: \"soon\"", "--as: \"bearer:x\"", "--host: name"}},
		"no way":         {[]string{"set", "key", "--host", "a.test"}, []string{"--as: say how"}},
		"unknown way":    {[]string{"set", "key", "--host", "a.test", "--as", "cookie"}, []string{"as: \"cookie\": want header"}},
		"method":         {[]string{"set", "key", "--host", "a.test", "--as", "bearer", "--method", "post"}, []string{"methods: \"post\": want a method in upper case"}},
		"every host":     {[]string{"set", "key", "--host", "**", "--as", "bearer"}, []string{"every host"}},
		"name":           {[]string{"set", "-", "--host", "a.test", "--as", "bearer"}, []string{"secret name \"-\""}},
		"not in words":   {[]string{"set", "key", plain + "x", "--host", "a.test", "--as", "bearer"}, []string{"accepts 1 arg"}},
		"nothing to say": {[]string{"set", "key", "--host", "a.test", "--as", "bearer"}, []string{"standard input: a secret of 0 bytes"}},
		"rotate nothing": {[]string{"rotate", "key"}, []string{"not found", "creel secret set"}},
		"rm nothing":     {[]string{"rm", "a", "b"}, []string{`"a": not found`, `"b": not found`}},
	} {
		_, errs, code := r.run("", c.args...)
		for _, want := range c.want {
			if code == 0 || !strings.Contains(errs, want) {
				t.Errorf("%s: code %d, %q does not say %q", name, code, errs, want)
			}
		}
	}
	if _, errs, code := r.run(strings.Repeat(plain, 1000), "set", "key", "--host", "a.test", "--as", "bearer"); code == 0 || !strings.Contains(errs, "more than 16384") {
		t.Errorf("a long value: %d %q", code, errs)
	}
}

func TestSourcesAreAskedAtOnce(t *testing.T) {
	r := newRig(t)
	t.Setenv("CREEL_TEST_SECRET", plain)
	r.must("", "set", "env", "--from", "env:CREEL_TEST_SECRET", "--host", "a.test", "--as", "basic:user")
	if got := r.value("env"); got != plain {
		t.Errorf("the value is %q", got)
	}
	_, errs, code := r.run("", "set", "none", "--from", "env:CREEL_TEST_UNSET", "--host", "a.test", "--as", "query:key")
	if code != 0 || !strings.Contains(errs, "warning: it is set, but cannot be used as things are: ") {
		t.Errorf("code %d, %q", code, errs)
	}
	out, errs, code := r.run("", "check")
	if code != 1 || !strings.Contains(out, "env    ok") || !strings.Contains(out, "CREEL_TEST_UNSET is not set") || !strings.Contains(errs, "1 of 2") {
		t.Errorf("check: code %d, %q, %q", code, out, errs)
	}
	if out := r.must("", "rotate", "env"); out != "rotated env\npushed to 2 running\n" {
		t.Errorf("rotate prints %q", out)
	}
}

func TestTooOldIsSaid(t *testing.T) {
	r := newRig(t)
	r.now = time.Now().Add(-48 * time.Hour)
	r.must(plain, "set", "old", "--host", "a.test", "--as", "bearer", "--max-age", "1d")
	r.now = time.Now()
	if out := r.must("", "ls"); !strings.Contains(out, "2 days, too old") {
		t.Errorf("ls prints %q", out)
	}
	if out, _, code := r.run("", "check"); code != 1 || !strings.Contains(out, "creel secret rotate old") {
		t.Errorf("check: code %d, %q", code, out)
	}
	r.must(plain, "rotate", "old")
	r.must("", "check")
}

// Last use and users come from the ledger (names) and from logs that are
// closed and open (uses).
func TestUsesAreThoseOnRecord(t *testing.T) {
	r := newRig(t)
	r.must(plain, "set", "key", "--host", "a.test", "--as", "bearer")
	r.must(plain, "set", "idle", "--host", "a.test", "--as", "bearer")
	ledger, err := audit.OpenLedger(filepath.Join(r.dir, "audit"))
	if err != nil {
		t.Fatal(err)
	}
	defer ledger.Close()
	add := func(to audit.Recorder, e audit.Event) {
		t.Helper()
		if err := to.Append(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	for i, id := range []string{"aa11", "bb22", "cc33", "dd44", "aa11"} {
		if i < 4 {
			add(ledger, audit.Event{Kind: audit.KindAdmitted, Sandbox: id, Data: event.Admitted{Name: "run-" + id}})
		}
		dir := filepath.Join(r.dir, fmt.Sprint("log", i))
		key, err := ledger.OpenSandbox(t.Context(), id, dir)
		if err != nil {
			t.Fatal(err)
		}
		log, err := audit.OpenLog(dir, key)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			add(log, audit.Event{Kind: event.KindSecret, Sandbox: id, Data: event.Secret{Name: "key", As: "bearer"}})
		}
		if i == 1 {
			defer log.Close() // its run goes on
			continue
		}
		if err := errors.Join(log.Close(), ledger.CloseSandbox(t.Context(), id, dir)); err != nil {
			t.Fatal(err)
		}
	}
	out := r.must("", "ls")
	if !strings.Contains(out, "run-aa11,run-dd44,run-cc33 and 1 more") {
		t.Errorf("ls prints %q", out)
	}
	var rows []row
	if err := json.Unmarshal([]byte(r.must("", "ls", "--json")), &rows); err != nil {
		t.Fatal(err)
	}
	if len(rows) != 2 || rows[0].LastUse != nil || len(rows[0].Sandboxes) != 0 {
		t.Fatalf("%+v", rows)
	}
	if k := rows[1]; k.LastUse == nil || time.Since(*k.LastUse) > time.Minute || len(k.Sandboxes) != 4 || k.Sandboxes[3] != (user{"bb22", "run-bb22"}) {
		t.Errorf("%+v", k)
	}
}

// terminal is both ends of one.
func terminal(t *testing.T) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { master.Close() })
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { slave.Close() })
	return master, slave
}

func TestATerminalDoesNotShowTheValue(t *testing.T) {
	r := newRig(t)
	master, slave := terminal(t)
	typed := make(chan error, 1)
	patience := time.Now().Add(5 * time.Second)
	r.in = slave
	r.prompt = func() {
		go func() {
			for {
				mode, err := unix.IoctlGetTermios(int(slave.Fd()), unix.TCGETS)
				if err == nil && mode.Lflag&unix.ECHO != 0 && time.Now().Before(patience) {
					runtime.Gosched()
					continue
				}
				_, err2 := master.WriteString(plain + "\n\x04") // and an end, for who does not stop at the line
				typed <- errors.Join(err, err2)
				return
			}
		}()
	}
	_, errs, code := r.run("", "set", "key", "--host", "a.test", "--as", "bearer")
	if code != 0 || errs != "value of key: \n" {
		t.Fatalf("code %d, %q", code, errs)
	}
	if err := <-typed; err != nil {
		t.Fatal(err)
	}
	if got := r.value("key"); got != plain {
		t.Errorf("the value is %q", got)
	}
	if _, err := slave.WriteString("end"); err != nil {
		t.Fatal(err)
	}
	var echo [256]byte
	n, err := master.Read(echo[:])
	if err != nil || strings.Contains(string(echo[:n]), plain) {
		t.Errorf("the terminal shows %q, %v", echo[:n], err)
	}
}
