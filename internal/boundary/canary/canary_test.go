package canary

import (
	"strings"
	"testing"
)

func TestCanariesAreWhereTheySayAndNobodyElses(t *testing.T) {
	mine, others := Make("/root"), Make("/root")
	if len(mine) != 5 {
		t.Fatalf("%d canaries", len(mine))
	}
	for i, c := range mine {
		if len(c.Value) < 32 || c.Value == others[i].Value {
			t.Errorf("%s: %q is not a value of its own", c.Name, c.Value)
		}
		if c.Path != "" && (!strings.HasPrefix(c.Path, "/root/.") || !strings.Contains(c.Text, c.Value)) {
			t.Errorf("%s: %s does not hold the value", c.Name, c.Path)
		}
		if c.Path == "" && c.Env == "" {
			t.Errorf("%s is nowhere", c.Name)
		}
	}
}

func TestRandomUsesTheWholeAlphabet(t *testing.T) {
	text := random(lower, 5000)
	for _, c := range lower {
		if n := strings.Count(text, string(c)); n < 100 || n > 300 {
			t.Errorf("%q comes %d times in 5000", c, n)
		}
	}
}
