package syntax

import (
	"encoding/json"
	"flag"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite the golden file")

func TestSchemaGolden(t *testing.T) {
	const file = "../../../docs/policy.schema.json"
	got, err := json.MarshalIndent(Schema(), "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	got = append(got, '\n')
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("rewrite with -update if meant:\n%s", diff)
	}
}

// The parser's own lists of keys, as its faults print them, are the schema's.
func TestSchemaHasTheParsersKeys(t *testing.T) {
	root := Schema()["properties"].(map[string]any)
	items := func(key string) map[string]any {
		return root[key].(map[string]any)["items"].(map[string]any)["properties"].(map[string]any)
	}
	rule := items("rules")
	for text, props := range map[string]map[string]any{
		"version: 1\nx: 1":                                  root,
		"version: 1\nrules: [{x: 1}]":                       rule,
		"version: 1\ntests: [{x: 1}]":                       items("tests"),
		"version: 1\nbudget: {x: 1}":                        root["budget"].(map[string]any)["properties"].(map[string]any),
		"version: 1\nrules: [{allow: a, upstream: {x: 1}}]": rule["upstream"].(map[string]any)["properties"].(map[string]any),
	} {
		_, _, err := Parse([]byte(text), Inputs{})
		want := "the keys here are " + strings.Join(slices.Sorted(maps.Keys(props)), ", ")
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", text, err, want)
		}
	}
}
