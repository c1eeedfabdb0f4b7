package config

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite what the documentation has from the code")

// The file is what `creel config schema` prints.
func TestSchemaFile(t *testing.T) {
	schema, err := json.MarshalIndent(Schema(), "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	compare(t, "../../docs/config.schema.json", func(string) string { return string(schema) + "\n" })
}

func TestTableOfSettings(t *testing.T) {
	const begin, end = "<!-- settings -->\n", "<!-- end of settings -->\n"
	var table strings.Builder
	table.WriteString("| setting | default | variable | what |\n|---|---|---|---|\n")
	for _, s := range settings("`~/.local/state/creel`") {
		fallback := s.fallback
		if !strings.HasPrefix(fallback, "`") && fallback != "" {
			fallback = "`" + fallback + "`"
		}
		fmt.Fprintf(&table, "| `%s` | %s | `%s` | %s |\n", s.name, fallback, s.env(), s.about)
	}
	compare(t, "../../docs/config.md", func(page string) string {
		before, rest, ok := strings.Cut(page, begin)
		_, after, closed := strings.Cut(rest, end)
		if !ok || !closed {
			t.Fatal("docs/config.md has lost the marks around its table")
		}
		return before + begin + table.String() + end + after
	})
}

// compare holds a file against what it should be, which may depend on the rest
// of it.
func compare(t *testing.T, path string, want func(string) string) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil && !*update {
		t.Fatal(err)
	}
	text := want(string(got))
	if *update {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(text, string(got)); diff != "" {
		t.Errorf("%s is not what the code says; run the test with -update:\n%s", path, diff)
	}
}
