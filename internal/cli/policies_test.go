package cli_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Policies in examples/ have no fault, pass their own tests, and say which
// commands they are for: those parse, and the secret that they make is what the
// policy names.
func TestExamplePolicies(t *testing.T) {
	files, err := filepath.Glob("../../examples/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("%v, %v", files, err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		s := newShell(t)
		if err := os.WriteFile(filepath.Join(s.dir, "policy.yaml"), text, 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := s.run("creel policy check policy.yaml"); err != nil || !strings.Contains(out, "does not exist: a run is refused; creel secret set ") {
			t.Errorf("%s: its secret is missing, and nobody says so: %v: %s", file, err, out)
		}
		_, comment, _ := strings.Cut(strings.ReplaceAll(string(text), "\\\n#", ""), "#   creel ")
		comment, _, _ = strings.Cut(comment, "\n#\n")
		report := filepath.Join(s.home, "report")
		commands := strings.Split(comment, "\n#   creel ")
		for _, words := range commands {
			s.run("creel "+words, parseOnly+"="+report)
		}
		verdicts, err := os.ReadFile(report)
		if want := strings.Repeat("ok\n", len(commands)); err != nil || string(verdicts) != want || len(commands) != 3 {
			t.Errorf("%s: its commands %q: %v %s", file, commands, err, verdicts)
		}
		out, err := s.run("creel " + commands[0])
		name := strings.Fields(out)
		if err != nil || len(name) != 2 || !strings.Contains(string(text), "\n    secret: "+name[1]+"\n") {
			t.Errorf("%s: %s: %v: %s", file, commands[0], err, out)
		}
		for _, line := range []string{"creel policy check policy.yaml", "creel policy test policy.yaml"} {
			if out, err := s.run(line); err != nil || strings.Contains(out, "warning") {
				t.Errorf("%s: %s: %v: %s", file, line, err, out)
			}
		}
	}
}
