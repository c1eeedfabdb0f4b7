package auditcmd

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"creel/internal/audit"
	"creel/internal/audit/chain"
	"creel/internal/audit/event"
	"creel/internal/audit/receipt"
	"creel/internal/cli/command"
	"creel/internal/printable"

	"github.com/spf13/cobra"
)

func ledgerIn(t *testing.T) (*audit.Ledger, string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "audit")
	l, err := audit.OpenLedger(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l, dir
}

func add(t *testing.T, l *audit.Ledger, kind audit.Kind, sandbox string, data any) {
	t.Helper()
	if err := l.Append(t.Context(), audit.Event{Kind: kind, Sandbox: sandbox, Data: data}); err != nil {
		t.Fatal(err)
	}
}

// signed is a receipt over the ledger as it is now.
func signed(t *testing.T, l *audit.Ledger) []byte {
	t.Helper()
	checkpoint, err := l.Checkpoint()
	if err != nil {
		t.Fatal(err)
	}
	head, err := chain.ParseCheckpoint(checkpoint)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := l.Signer()
	if err != nil {
		t.Fatal(err)
	}
	code := 0
	data, err := receipt.Sign(receipt.Receipt{
		Sandbox: "aa", Name: "we\x1b[2Jb", Tier: "untrusted", ExitCode: &code, Secrets: []string{"API_KEY"},
		Hosts: append([]receipt.Host{
			{Host: "api.example.com", Port: 443, Decision: "allow", Count: 2, BytesOut: 90, BytesIn: 2000, Failed: 1}, {Host: "e\x1bvil", Decision: "deny", Count: 1},
		}, append(slices.Repeat([]receipt.Host{{Host: "10.0.0.1", Port: 22, Decision: "deny", Count: 6}}, 30), receipt.Host{Decision: "deny", Others: true, Count: 77})...),
		Ports:          []receipt.Port{{Port: 80, Proto: "tcp", Count: 1}},
		Budgets:        []receipt.Budget{{Name: "bytes_out", Limit: 100, Used: 90, Spent: true}, {Name: "requests", Rule: "api", Spent: true}},
		Alerts:         []receipt.Alert{{Alert: "canary", Name: "aws", Where: "body", Host: "e\x1bvil", Port: 80, Count: 3}},
		Contradictions: []string{"policy x was in force"},
		Audit:          receipt.Audit{Log: head, Ledger: head},
	}, signer)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestCommands(t *testing.T) {
	l, dir := ledgerIn(t)
	closedLog(t, l, "cc33")
	add(t, l, audit.KindAdmitted, "aa11", map[string]any{"name": "web", "tier": "trusted", "image": "debian"})
	add(t, l, "connection", "aa11", map[string]any{"host": "api.example.com", "decision": "deny"})
	add(t, l, event.KindConnection, "aa11", event.Connection{Destination: event.Destination{Host: "git.example.com", Port: 22, Protocol: "tcp",
		Decision: event.Allow, Rule: "git", Reason: "the rule allows it"}, ID: 4, Address: "192.0.2.7:22"})
	add(t, l, event.KindRequest, "aa11", event.Request{Destination: event.Destination{Host: "2001:db8::1", Port: 443, Decision: event.Allow, Rule: "api"},
		ID: 5, Method: "GET", Path: "/a rule=b"})
	add(t, l, event.KindDenied, "aa11", event.Tally{Count: 7, Others: true})
	add(t, l, audit.KindRefused, "aa11", event.Admitted{Name: "mallory"})
	add(t, l, audit.KindExec, "bb22", map[string]any{"args": []string{"printf", "\x1b[2J", "a b"}})
	out := t.TempDir()
	file := func(name string, data []byte) string {
		path := filepath.Join(out, name)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good := file("receipt.json", signed(t, l))
	other, _ := ledgerIn(t)
	foreign := file("foreign.json", signed(t, other))
	otherKey, err := other.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	otherFile := file("other.pub", []byte(otherKey+"\n"))

	for _, c := range []struct {
		args         string
		code         int
		wants, never []string // of stdout and the error
	}{
		{"audit query", 0, []string{"TIME", "admitted", "image=debian name=web tier=trusted", `args=printf,"\x1b[2J","a b"`}, []string{"\x1b", "NAME+"}},
		{"audit query --sandbox web", 0, []string{"aa11"}, []string{"bb22"}},
		{"audit query --sandbox nobody", 1, []string{"no such sandbox: nobody"}, nil},
		{"audit query --host *.example.com --decision deny", 0, []string{"connection"}, []string{"admitted"}},
		{"audit query --kind connection,request,denied", 0, []string{
			`git.example.com:22 allow rule=git reason="the rule allows it" address=192.0.2.7:22 id=4 protocol=tcp`,
			`[2001:db8::1]:443 allow GET "/a rule=b" rule=api id=5`, "others count=7\n"}, nil},
		{"audit query --host 192.0.2.7", 0, []string{"git.example.com:22"}, []string{"api.example.com", "2001"}},
		{"audit query --decision deny", 0, []string{"api.example.com deny", "mallory"}, []string{"git.example.com", "name=web"}},
		{"audit query --decision perhaps", 1, []string{"want allow or deny"}, nil},
		{"audit query --since yesterday", 1, []string{`--since "yesterday": want a time such as`}, nil},
		{"audit query --since 1h --until 2000-01-01T00:00:00Z", 0, nil, []string{"admitted"}},
		{"audit query --kind exec --json", 0, []string{`"kind":"exec","sandbox":"bb22"`}, []string{"admitted"}},
		{"audit tail -n 1", 0, []string{"exec"}, []string{"admitted"}},
		{"audit export --kind admitted", 0, []string{`"v":1,"seq":6`}, []string{"bb22"}},
		{"audit verify", 0, []string{"verified: the record is whole", "1 keys"}, nil},
		{"audit verify --expect " + good, 0, []string{"verified"}, nil},
		{"audit verify --expect " + foreign, 1, []string{"is not signed by"}, nil},
		{"audit verify --key " + otherFile, 1, []string{"none of this ledger's", "not as it was written"}, nil},
		{"audit verify " + out, 1, []string{"read public key", "give --key FILE"}, nil},
		{"audit key show", 0, []string{"creel/ledger/"}, nil},
		{"audit key turn", 1, []string{`"turn" is not a command of`}, nil},
		{"receipt verify " + good, 0, []string{"verified", `"we\x1b[2Jb"`, "not known",
			"secrets used    API_KEY\n", "reached         api.example.com:443, 2 times, 90 bytes out, 2000 in, 1 failed\n", `denied          "e\x1bvil", once` + "\n",
			"denied          10.0.0.1:22, 6 times\n", "denied          others, 77 times\n", "denied          and more, 32 in all; --json lists them\n",
			"port            80/tcp, connected to from outside once\n", "budget          bytes_out: 90 of 100, used up\n", "budget          requests of rule api, used up\n",
			`ALERT           canary aws was about to leave in the body to "e\x1bvil":80, 3 times` + "\n", "CONTRADICTION   policy x"}, []string{"\x1b"}},
		{"receipt verify --json " + good, 0, []string{`"sandbox": "aa"`}, nil},
		{"receipt verify " + foreign, 1, []string{"is not signed by"}, nil},
		{"receipt verify " + foreign + " --key " + otherFile, 0, []string{"verified"}, nil},
		{"receipt web", 0, []string{"the receipt of web"}, nil},
		{"audit prune", 0, []string{"freed 0B"}, []string{"pruned"}},
		{"audit prune --older-than soon", 1, []string{"--older-than", "want a time such as 90d"}, nil},
		{"audit prune --keep -1", 1, []string{"want 0 or more"}, nil},
		{"audit prune --older-than 0 --dry-run", 0, []string{"would prune creel/log/cc33/", "would free"}, []string{"freed"}},
		{"audit verify", 0, []string{"1 logs closed"}, []string{"pruned"}},
		{"audit prune --older-than 0", 0, []string{"pruned creel/log/cc33/", "freed"}, nil},
		{"audit verify", 0, []string{"1 of the closed logs were pruned, on record", "verified"}, nil},
		{"audit query --kind pruned", 0, []string{"cc33", "head=3 lines"}, nil},
		{"audit key rotate", 0, []string{"creel/ledger/"}, nil},
		{"audit verify --expect " + file("checkpoint", []byte(checkpointOf(t, l))), 0, []string{"2 keys"}, nil},
	} {
		var text bytes.Buffer
		env := Env{
			Streams: command.Streams{Out: &text, Err: &text}, Dir: func() (string, error) { return dir, nil },
			Rotate:  func(context.Context) error { return l.RotateKey() },
			Prune:   l.Prune,
			Receipt: func(_ context.Context, ref string) ([]byte, error) { return []byte("the receipt of " + ref), nil },
		}
		root := &cobra.Command{Use: "creel", SilenceErrors: true, SilenceUsage: true}
		root.AddCommand(New(env), NewReceipt(env))
		root.SetArgs(strings.Fields(c.args))
		code := 0
		if err := root.ExecuteContext(t.Context()); err != nil {
			code = 1
			text.WriteString(err.Error())
		}
		if code != c.code {
			t.Errorf("%s: exit code %d, want %d:\n%s", c.args, code, c.code, &text)
		}
		for _, want := range c.wants {
			if !strings.Contains(text.String(), want) {
				t.Errorf("%s: %q is not in\n%s", c.args, want, &text)
			}
		}
		for _, never := range c.never {
			if strings.Contains(text.String(), never) {
				t.Errorf("%s: %q is in\n%s", c.args, never, &text)
			}
		}
	}
}

// closedLog is of a run that has ended.
func closedLog(t *testing.T, l *audit.Ledger, id string) {
	t.Helper()
	dir := t.TempDir()
	key, err := l.OpenSandbox(t.Context(), id, dir)
	if err != nil {
		t.Fatal(err)
	}
	log, err := audit.OpenLog(dir, key)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(log.Close(), l.CloseSandbox(t.Context(), id, dir)); err != nil {
		t.Fatal(err)
	}
}

func checkpointOf(t *testing.T, l *audit.Ledger) string {
	t.Helper()
	c, err := l.Checkpoint()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// Following shows every record once, those that were there and those that come.
func TestTailFollows(t *testing.T) {
	l, dir := ledgerIn(t)
	add(t, l, audit.KindExec, "aa", map[string]any{"n": 1})
	add(t, l, audit.KindExec, "aa", map[string]any{"n": 2})
	ctx, cancel := context.WithCancel(t.Context())
	r, w := io.Pipe()
	env := Env{Streams: command.Streams{Out: w, Err: io.Discard}, Dir: func() (string, error) { return dir, nil }}
	ended := make(chan error, 1)
	go func() {
		c := New(env)
		c.SetArgs([]string{"tail", "-f", "-n", "1", "--kind", "exec"})
		err := c.ExecuteContext(ctx)
		w.Close()
		ended <- err
	}()
	lines := bufio.NewScanner(r)
	next := func(want string) {
		t.Helper()
		if !lines.Scan() || !strings.HasSuffix(lines.Text(), want) {
			t.Fatalf("%q, want %s", lines.Text(), want)
		}
	}
	next("n=2")
	add(t, l, audit.KindSignal, "aa", map[string]any{"n": 3})
	add(t, l, audit.KindExec, "aa", map[string]any{"n": 4})
	next("n=4")
	add(t, l, audit.KindExec, "bb", map[string]any{"n": 5})
	next("n=5")
	cancel()
	if err := <-ended; err != nil || lines.Scan() {
		t.Errorf("ended with %v and %q", err, lines.Text())
	}
}

// A record's texts come from guests and upstreams: each stays in its cell.
func TestHostileRecordStaysInItsRow(t *testing.T) {
	hostile := "evil\x1b[2J\u009b\u202e\tcell\nrow"
	data, err := json.Marshal(map[string]any{"host": hostile, "port": 1, "reason": hostile, hostile: hostile, "args": []string{hostile}})
	if err != nil {
		t.Fatal(err)
	}
	r := audit.Record{Kind: audit.Kind(hostile), Sandbox: "0\x1b[2J\n", Data: data}
	for name, show := range map[string]func(io.Writer) error{
		"tail": func(w io.Writer) error { return tailing{out: w}.print(r) },
		"table": func(w io.Writer) error {
			table := command.Table(w, "TIME", "SANDBOX", "KIND", "WHAT")
			command.Row(table, cells(r)...)
			return table.Flush()
		},
	} {
		var b strings.Builder
		if err := show(&b); err != nil {
			t.Fatal(err)
		}
		rows := strings.Count(b.String(), "\n")
		if want := map[string]int{"tail": 1, "table": 2}[name]; rows != want || !strings.Contains(b.String(), "evil") {
			t.Errorf("%s has %d rows: %q", name, rows, b.String())
		}
		if text := strings.ReplaceAll(b.String(), "\n", ""); !printable.Safe(text) {
			t.Errorf("%s shows %q", name, text)
		}
	}
}
