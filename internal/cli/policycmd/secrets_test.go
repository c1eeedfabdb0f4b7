package policycmd

import (
	"context"
	"errors"
	"strings"
	"testing"

	"creel/internal/policy/syntax"
	"creel/internal/secret"
)

// A policy is held against the secrets that there are: what is missing, what is
// bound elsewhere, and what nobody uses.
func TestSecretWarnings(t *testing.T) {
	have := map[string]secret.Binding{
		"model": {Hosts: []string{"api.test"}}, "wide": {Hosts: []string{"*.wide.test"}}, "unused": {Hosts: []string{"plain.test"}},
		"elsewhere": {Hosts: []string{"nobody.test"}},
	}
	for rules, want := range map[string]string{
		"- {allow: api.test, secret: model}":                    "",
		"- {allow: a.wide.test, secret: wide}":                  "",
		"- {allow: \"*.wide.test\", secret: wide}":              "",
		"- {allow: api.test, secret: none}":                     "line 3: secret \"none\" does not exist; creel secret set none --host 'api.test'",
		"- {allow: other.test, secret: model}":                  "line 3: secret \"model\" is not bound to other.test, and is not used there; creel secret set model --host 'other.test'",
		"- {allow: wide.test, secret: wide}":                    "is not bound to wide.test",
		"- {allow: plain.test}":                                 "line 3: secret \"unused\" is bound to plain.test, and no rule uses it: the task does not get it; write `secret: unused`",
		"- {deny: plain.test}\n  - {allow: x.test}":             "",
		"- {allow: plain.test, ports: 99}\n  - {allow: x.test}": "secret \"unused\" is bound to plain.test",
	} {
		p, _, err := syntax.Parse([]byte("version: 1\nrules:\n  "+rules+"\n"), syntax.Inputs{})
		if err != nil {
			t.Fatalf("%s: %v", rules, err)
		}
		env := Env{Secrets: func(context.Context) (map[string]secret.Binding, error) { return have, nil }}
		got := secretWarnings(t.Context(), env, p).Error()
		if (got == "") != (want == "") || !strings.Contains(got, want) {
			t.Errorf("%s: %q, want %q", rules, got, want)
		}
		env.Secrets = func(context.Context) (map[string]secret.Binding, error) { return nil, errors.New("no identity") }
		if got := secretWarnings(t.Context(), env, p).Error(); !strings.Contains(got, "could not be seen: no identity") {
			t.Errorf("without a store: %q", got)
		}
	}
}
