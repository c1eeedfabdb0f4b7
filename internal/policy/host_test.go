package policy_test

import (
	"testing"

	. "creel/internal/policy"
)

func TestCovers(t *testing.T) {
	for _, c := range []struct {
		pattern, other string
		want           bool
	}{
		{"a.test", "a.test", true},
		{"a.test", "b.test", false},
		{"a.test", "*.test", false},
		{"a.test", "x.a.test", false},
		{"*.test", "a.test", true},
		{"*.test", "*.test", true},
		{"*.test", "test", false},
		{"*.test", "b.a.test", false},
		{"*.test", "**.test", false},
		{"*.test", "*.a.test", false},
		{"**.test", "a.test", true},
		{"**.test", "b.a.test", true},
		{"**.test", "test", false},
		{"**.test", "atest", false},
		{"**.test", "*.test", true},
		{"**.test", "*.a.test", true},
		{"**.test", "**.a.test", true},
		{"**.test", "**.atest", false},
		{"**.a.test", "**.test", false},
		{"**.a.test", "*.test", false},
		{"**.test", "**", false},
		{"*.test", "**", false},
		{"**", "**", true},
		{"**", "*.test", true},
		{"**", "**.test", true},
		{"**", "a.test", true},
		{"**", HostAlias, false},
		{"**.internal", HostAlias, false},
		{HostAlias, HostAlias, true},
	} {
		if got := Covers(c.pattern, c.other); got != c.want {
			t.Errorf("Covers(%q, %q) = %v", c.pattern, c.other, got)
		}
	}
}

// What a pattern covers it matches, name by name.
func TestCoversIsAboutNames(t *testing.T) {
	names := []string{"test", "a.test", "b.a.test", "c.b.a.test", "atest", "x.atest", "other", HostAlias, "x." + HostAlias}
	patterns := append([]string{"**", "*.test", "**.test", "*.a.test", "**.a.test", "*.creel.internal", "**.internal"}, names...)
	for _, p := range patterns {
		for _, o := range patterns {
			if !Covers(p, o) {
				continue
			}
			for _, n := range names {
				if PatternMatches(o, n) && !PatternMatches(p, n) {
					t.Errorf("Covers(%q, %q), and only the second matches %q", p, o, n)
				}
			}
		}
	}
}
