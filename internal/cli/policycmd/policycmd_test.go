package policycmd

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"creel/internal/cli/command"
)

func TestPolicyCommands(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("HOME", dir)
	t.Setenv("npm_config_registry", "")
	t.Setenv("NPM_CONFIG_REGISTRY", "")
	write := func(name, text string) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	write(".npmrc", "registry=https://npm.corp.test/\n")
	write("ca.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
	good := write("good.yaml", `version: 1
presets: npm
rules:
  - {allow: api.test, methods: GET, upstream: {address: "10.0.0.1:8443", ca: ca.pem}}
  - {allow: "**.amazonaws.com"}
tests:
  - allow: GET https://npm.corp.test/left-pad
  - deny: POST https://api.test/
`)
	failing := write("failing.yaml", "version: 1\nrules: [{allow: a.test}]\ntests: [{deny: GET https://a.test/}, {allow: GET https://a.test/}]\n")
	bad := write("bad.yaml", "version: 1\nrules:\n  - {alow: a.test}\n  - {allow: a..test}\n")

	for _, c := range []struct {
		args  []string
		code  int
		wants []string // in stdout, stderr or the error
	}{
		{[]string{"check", good}, 0, []string{"3 rules, no faults", "creel: warning: line 5: **.amazonaws.com reaches places where anyone can receive data"}},
		{[]string{"check", bad}, 1, []string{"line 3: unknown key", "line 4: host \"a..test\""}},
		{[]string{"check", filepath.Join(dir, "none")}, 1, []string{"read policy"}},
		{[]string{"explain", good, "get", "https://api.test/x"}, 1, []string{"denied: the method is not written in capitals"}},
		{[]string{"explain", good, "GET", "https://api.test/x"}, 0, []string{"allowed by rule \"line 4\"", "spoken: tls, opened", "allows it"}},
		{[]string{"explain", good, "POST", "https://api.test/x"}, 1, []string{"denied: no rule", "what would allow it: add method \"POST\""}},
		{[]string{"explain", good, "tcp://db.test:5432"}, 1, []string{"what would allow it: --allow db.test:5432"}},
		{[]string{"explain", good, "GET", "gopher://x"}, 1, []string{"want https://HOST/PATH"}},
		{[]string{"test", good}, 0, []string{"2 tests, 0 failed"}},
		{[]string{"test", failing}, 1, []string{"FAIL line 3: deny GET https://a.test/: allowed by rule", "2 tests, 1 failed"}},
		{[]string{"schema"}, 0, []string{`"title": "Creel policy"`}},
	} {
		var out bytes.Buffer
		cmd := New(Env{Streams: command.Streams{Out: &out, Err: &out}})
		cmd.SetArgs(c.args)
		cmd.SetOut(&out)
		cmd.SetErr(&out)
		cmd.SilenceUsage, cmd.SilenceErrors = true, true
		code := 0
		if err := cmd.Execute(); err != nil {
			code = 1
			if exit, ok := errors.AsType[*command.ExitError](err); ok {
				code = exit.Code
			}
			out.WriteString(err.Error())
		}
		for _, want := range c.wants {
			if !strings.Contains(out.String(), want) {
				t.Errorf("%v: %q is not in\n%s", c.args, want, out.String())
			}
		}
		if code != c.code {
			t.Errorf("%v: exit code %d, want %d\n%s", c.args, code, c.code, out.String())
		}
	}
}
