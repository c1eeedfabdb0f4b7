package secret_test

import (
	"math"
	"strings"
	"testing"

	. "creel/internal/secret"
)

func TestStandInsHaveTheShape(t *testing.T) {
	for name, c := range map[string]struct{ value, keep string }{
		"anthropic": {"sk-ant-api03-AbCd_Ef-0123456789abcdefghijklmnop", "sk-ant-api03-"},
		"openai":    {"sk-proj-ab_cd-ABCDEFGHIJ0123456789", "sk-proj-"},
		"github":    {"ghp_0123456789abcdefghijABCDEFGHIJ012345", "ghp_"},
		"aws":       {"AKIAIOSFODNN7EXAMPLEXX", "AKIA"},
		"uuid":      {"550e8400-e29b-41d4-a716-446655440000", ""},
		"words":     {"correct-horse-battery-staple", ""},
		"base64":    {"q83vEjRWeJASNFZ4kBI0VniQEjRWeJA+/w==", ""},
		"utf-8":     {"pässwörd-mit-umläuten-0123", ""},
	} {
		v := value(t, c.value)
		seen := map[string]bool{}
		for range 200 {
			s := StandIn(v)
			if seen[s] || s == c.value {
				t.Fatalf("%s: %q is not new", name, s)
			}
			seen[s] = true
			if !strings.HasPrefix(s, c.keep) || kinds(s) != kinds(c.value) {
				t.Fatalf("%s: %q is not of the shape of %q", name, s, c.value)
			}
		}
		for i := len(c.keep); i < len(c.value); i++ {
			if kinds(c.value)[i] == c.value[i] {
				continue // it stays
			}
			same := true
			for s := range seen {
				same = same && s[i] == c.value[i]
			}
			if same {
				t.Errorf("%s: character %d of the value is in every stand-in", name, i)
			}
		}
	}
}

// kinds is a text with each character replaced by what it is.
func kinds(s string) string {
	out := []byte(s)
	for i, c := range out {
		switch {
		case '0' <= c && c <= '9':
			out[i] = 0
		case 'a' <= c && c <= 'z':
			out[i] = 1
		case 'A' <= c && c <= 'Z':
			out[i] = 2
		}
	}
	return string(out)
}

func TestStandInsAreUnguessable(t *testing.T) {
	for name, c := range map[string]struct{ value, keep string }{
		"digits": {"12345678", ""}, "short": {"abcdefgh", ""}, "no letters": {"!!!!!!!!", ""}, "one letter": {"!!a!!!!!", ""},
		"only a prefix": {"sk-ant-api03-", "sk-"}, "prefix and little": {"sk-!!!!!!!!", "sk-"}, "prefix and digits": {"ghp_00000000", "ghp_"},
		"long and empty": {strings.Repeat("-", MaxBytes), ""},
	} {
		v := value(t, c.value)
		for range 20 {
			out := StandIn(v)
			bits := 0.0
			for _, kind := range []byte(kinds(out)[len(c.keep):]) {
				switch kind {
				case 0:
					bits += math.Log2(10)
				case 1, 2:
					bits += math.Log2(26)
				}
			}
			if bits < 64 || strings.Contains(out, c.value) || len(out) < len(c.value) || len(out) > 3*len(c.value) {
				t.Fatalf("%s: %.60q for %.60q has %.0f bits", name, out, c.value, bits)
			}
		}
	}
}

func FuzzStandIn(f *testing.F) {
	f.Add("sk-ant-api03-AbCd_Ef-0123456789")
	f.Add("1!!!!!!!")
	f.Add("sk-\n\n\n\n\n\n\n\n")
	f.Fuzz(func(t *testing.T, s string) {
		v, err := NewValue(s)
		if err != nil {
			return
		}
		if out := StandIn(v); strings.Contains(out, s) || len(out) < len(s) {
			t.Fatalf("%q for %q", out, s)
		}
	})
}
