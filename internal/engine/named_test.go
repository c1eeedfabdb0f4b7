package engine

import (
	"path/filepath"
	"strings"
	"testing"

	"creel/internal/policy/syntax"
	"creel/internal/secret/store"
)

// A secret that a policy names and that is not kept is named once.
func TestMissingSecretIsNamedOnce(t *testing.T) {
	e, _, _ := admitting(t)
	e.opts.Secrets = store.Open(store.Options{Dir: filepath.Join(t.TempDir(), "secrets")})
	p, _, err := syntax.Parse([]byte("version: 1\nrules:\n  - {allow: api.test, secret: nokey}\n"), syntax.Inputs{})
	if err != nil {
		t.Fatal(err)
	}
	faults := e.judgeSecrets(p)
	if len(faults) != 1 || strings.Count(faults[0], `secret "nokey"`) != 1 || !strings.Contains(faults[0], "not found") {
		t.Errorf("faults %q", faults)
	}
}
