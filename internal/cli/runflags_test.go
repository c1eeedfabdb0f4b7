package cli

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"creel/internal/config"
	"creel/internal/sandbox"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"
)

var update = flag.Bool("update", false, "rewrite golden files")

// specOf parses a command line as `creel run` does.
func specOf(t *testing.T, args ...string) (sandbox.Spec, error) {
	t.Helper()
	var f runFlags
	fs := pflag.NewFlagSet("run", pflag.ContinueOnError)
	f.register(fs)
	if err := fs.Parse(args); err != nil {
		return sandbox.Spec{}, err
	}
	spec, err := f.spec(fs.Args(), func(name string) (string, bool) { return "from-env", name == "SET" })
	if err == nil {
		f.fillIn(&spec, config.Config{Accel: sandbox.AccelAuto, Confinement: sandbox.ConfinementFull, Timeout: time.Hour})
	}
	return spec, err
}

// Each golden file is the Spec of one command line: the translation is what a
// user's words mean.
func TestRunFlagsToSpec(t *testing.T) {
	file := filepath.Join(t.TempDir(), "vars")
	if err := os.WriteFile(file, []byte("# comment\nA=1\nSET\nUNSET\n\nB=has = and spaces \n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, args := range map[string][]string{
		"plain":      {"debian", "true"},
		"words":      {"debian", "sh", "-c", "echo -i", "-t"},
		"streams":    {"-i", "-t", "-h", "box", "--name", "web", "debian"},
		"env":        {"--env-file", file, "-e", "A=2", "-e", "SET", "-e", "UNSET", "debian"},
		"process":    {"-w", "/src", "-u", "nobody:nogroup", "--entrypoint", "/bin/echo", "debian", "hi"},
		"no-entry":   {"--entrypoint", "", "debian", "true"},
		"limits":     {"--cpus", "1.5", "-m", "300m", "--pids-limit", "64", "--disk", "1g", "--timeout", "90s", "debian"},
		"no-limit":   {"--pids-limit", "-1", "debian"},
		"tmpfs":      {"--tmpfs", "/run:size=64m,mode=755,exec", "--tmpfs", "/tmp", "--read-only", "debian"},
		"labels":     {"-l", "team=ci", "--label", "bare", "debian"},
		"background": {"-d", "--accel", "tcg", "--confinement", "reduced", "debian"},
	} {
		t.Run(name, func(t *testing.T) {
			spec, err := specOf(t, args...)
			if err != nil {
				t.Fatal(err)
			}
			if err := (func() error { s := spec; s.Name = "x"; return s.Validate() })(); err != nil {
				t.Errorf("the Spec is not valid: %v", err)
			}
			spec.ID = ""
			golden(t, filepath.Join("testdata", "spec", name+".json"), spec)
		})
	}
}

func golden(t *testing.T, path string, value any) {
	t.Helper()
	got, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	got = append(got, '\n')
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v; run the test with -update", err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("differs from %s:\n%s", path, diff)
	}
}

func TestRunFlagsRefuse(t *testing.T) {
	for want, args := range map[string][]string{
		"--memory \"lots\"":     {"-m", "lots", "debian"},
		"--disk \"-1\"":         {"--disk", "-1", "debian"},
		"-e \"=x\"":             {"-e", "=x", "debian"},
		"--env-file":            {"--env-file", "/does/not/exist", "debian"},
		"--label \"=x\"":        {"-l", "=x", "debian"},
		"--tmpfs \"/t:colour\"": {"--tmpfs", "/t:colour", "debian"},
		"--pull \"perhaps\"":    {"--pull", "perhaps", "debian"},
		"--restart always":      {"--restart", "always", "debian"},
		"--rm with -d":          {"--rm", "-d", "debian"},
	} {
		if _, err := specOf(t, args...); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%q: got %v, want an error that begins %q", args, err, want)
		}
	}
}
