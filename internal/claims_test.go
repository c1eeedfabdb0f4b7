package internal

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Every witness that docs/claims.md names is a test that exists.
func TestClaimsHaveTheirWitnesses(t *testing.T) {
	claims, err := os.ReadFile("../docs/claims.md")
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string]bool{}
	declared := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(`)
	err = filepath.WalkDir("..", func(path string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		code, err := os.ReadFile(path)
		for _, m := range declared.FindAllSubmatch(code, -1) {
			tests[string(m[1])] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	named := regexp.MustCompile(`\b(?:Test|Fuzz)[A-Z]\w+`).FindAllString(string(claims), -1)
	if len(named) < 12 {
		t.Fatalf("only %d witnesses are named", len(named))
	}
	for _, name := range named {
		if !tests[name] {
			t.Errorf("docs/claims.md names %s, which is no test", name)
		}
	}
}
