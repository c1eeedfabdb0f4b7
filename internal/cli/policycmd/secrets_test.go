package policycmd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"creel/internal/cli/command"
	"creel/internal/cli/secretcmd"
	"creel/internal/policy/syntax"
	"creel/internal/secret"
	"creel/internal/secret/store"
)

// A policy is held against the secrets that there are: what is missing, what is
// bound elsewhere, and what nobody uses.
func TestSecretWarnings(t *testing.T) {
	have := map[string]Secret{}
	for name, host := range map[string]string{"model": "api.test", "wide": "*.wide.test", "unused": "plain.test", "elsewhere": "nobody.test"} {
		have[name] = Secret{Binding: secret.Binding{Hosts: []string{host}, Use: secret.Use{As: secret.AsBearer}}}
	}
	for rules, want := range map[string]string{
		"- {allow: api.test, secret: model}":                                        "",
		"- {allow: a.wide.test, secret: wide}":                                      "",
		"- {allow: \"*.wide.test\", secret: wide}":                                  "",
		"- {allow: api.test, secret: none}":                                         "line 3: secret \"none\" does not exist: a run is refused; creel secret set none --host 'api.test'",
		"- {allow: other.test, secret: model}":                                      "line 3: secret \"model\" is not bound to other.test: a run is refused; creel secret set model --host 'api.test' --host 'other.test' --as 'bearer' binds",
		"- {allow: api.test, secret: model, upstream: {address: \"gate.test:99\"}}": "secret \"model\" is not bound to the upstream gate.test:99",
		"- {allow: wide.test, secret: wide}":                                        "is not bound to wide.test",
		"- {allow: plain.test}":                                                     "line 3: secret \"unused\" is bound to plain.test, and no rule uses it: the task does not get it; write `secret: unused`",
		"- {deny: plain.test}\n  - {allow: x.test}":                                 "",
		"- {allow: plain.test, ports: 99}\n  - {allow: x.test}":                     "secret \"unused\" is bound to plain.test",
	} {
		p, _, err := syntax.Parse([]byte("version: 1\nrules:\n  "+rules+"\n"), syntax.Inputs{})
		if err != nil {
			t.Fatalf("%s: %v", rules, err)
		}
		env := Env{Secrets: func(context.Context) (map[string]Secret, error) { return have, nil }}
		warnings, refused := secretWarnings(t.Context(), env, p)
		got := warnings.Error()
		if refused != (strings.Contains(want, "not bound") || strings.Contains(want, "not exist")) || strings.Contains(got, "a run is refused") != refused {
			t.Errorf("%s: refused %v; %s", rules, refused, got)
		}
		if (got == "") != (want == "") || !strings.Contains(got, want) {
			t.Errorf("%s: %q, want %q", rules, got, want)
		}
		env.Secrets = func(context.Context) (map[string]Secret, error) { return nil, errors.New("no identity") }
		if warnings, refused := secretWarnings(t.Context(), env, p); refused || !strings.Contains(warnings.Error(), "could not be seen: no identity") {
			t.Errorf("without a store: %q", warnings)
		}
	}
}

// What the warning says to paste binds the secret to what the policy needs, and
// takes nothing of its binding away.
func TestHintKeepsTheBinding(t *testing.T) {
	keys := secret.Binding{Hosts: []string{"api.test", "*.b.test"}, Methods: []string{"GET", "POST"}, Paths: []string{`/a,"b'/**`, "/c"},
		Upstreams: []string{"gate.test:99"}, Clear: true}
	for _, use := range []secret.Use{
		{As: secret.AsHeader, Name: "X-Key", Prefix: "token it's "}, {As: secret.AsBearer}, {As: secret.AsBasic, User: "me"}, {As: secret.AsQuery, Name: "k"},
		{As: secret.AsStandIn, Env: "KEY", File: "/etc/a key", In: []string{"header:A", "query:b"}},
	} {
		was := Secret{Binding: keys, From: `command:["cat","a b"]`, MaxAge: 48 * time.Hour}
		was.Use = use
		p, _, err := syntax.Parse([]byte("version: 1\nrules:\n  - {allow: x.test, secret: s}\n  - {allow: y.test, secret: s}\n  - {allow: api.test, secret: s}\n"), syntax.Inputs{})
		if err != nil {
			t.Fatal(err)
		}
		env := Env{Secrets: func(context.Context) (map[string]Secret, error) { return map[string]Secret{"s": was}, nil }}
		warnings, _ := secretWarnings(t.Context(), env, p)
		if len(warnings) != 2 {
			t.Fatalf("warnings %v", warnings)
		}
		for _, one := range warnings {
			line, _, ok := strings.Cut(one.Mend, " binds it there as well")
			words, err := exec.Command("sh", "-c", `printf '%s\0' `+strings.TrimPrefix(line, "creel secret ")).Output()
			if !ok || err != nil {
				t.Fatalf("%s: %v", one.Mend, err)
			}
			s := store.Open(store.Options{Dir: filepath.Join(t.TempDir(), "secrets")})
			c := secretcmd.New(secretcmd.Env{Streams: command.Streams{In: os.Stdin, Out: io.Discard, Err: io.Discard}, Open: func(context.Context) (*store.Store, error) { return s, nil }})
			c.SetArgs(strings.Split(strings.TrimSuffix(string(words), "\x00"), "\x00"))
			if err := c.Execute(); err != nil {
				t.Fatalf("%s: %v", line, err)
			}
			got, err := s.Get("s")
			want := was.Binding
			want.Hosts = []string{"api.test", "*.b.test", "x.test", "y.test"}
			if err != nil || fmt.Sprintf("%+v", got.Binding) != fmt.Sprintf("%+v", want) || got.MaxAge != was.MaxAge || got.Source.String() != was.From {
				t.Errorf("%s:\n%+v, %v; want\n%+v", line, got, err, want)
			}
		}
	}
}
