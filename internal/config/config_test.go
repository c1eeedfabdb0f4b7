package config

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

func env(t *testing.T, file string, vars map[string]string) func(string) (string, bool) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.yaml")
	if file != "" {
		if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return func(name string) (string, bool) {
		if name == "CREEL_CONFIG" {
			return path, true
		}
		v, ok := vars[name]
		return v, ok
	}
}

func TestEnvironmentOverFileOverDefault(t *testing.T) {
	c, values, err := Load(env(t, "memory: 2g\ntimeout: 10m\n", map[string]string{
		"CREEL_MEMORY": "1g", "XDG_STATE_HOME": "/var/state",
	}))
	if err != nil {
		t.Fatal(err)
	}
	if c.MemoryBytes != 1<<30 || c.Timeout != 10*time.Minute || c.DiskBytes != 10<<30 || c.StateDir != "/var/state/creel" {
		t.Errorf("got %+v", c)
	}
	want := map[string]string{"memory": "environment CREEL_MEMORY", "timeout": "config.yaml line 2", "disk": "default"}
	for _, v := range values {
		if w := want[v.Name]; w != "" && !strings.HasSuffix(v.Source, w) {
			t.Errorf("%s comes from %q, want %q", v.Name, v.Source, w)
		}
	}
}

func TestEveryFaultIsNamedWithItsPlace(t *testing.T) {
	_, _, err := Load(env(t, "memory: lots\ncolour: red\n", map[string]string{"CREEL_CPUS": "99"}))
	for _, want := range []string{"memory \"lots\"", "line 1", "line 2: \"colour\" is not a setting", "environment CREEL_CPUS"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not say %q", err, want)
		}
	}
}

func TestMalformedFilesAreRefused(t *testing.T) {
	for name, file := range map[string]string{
		"list": "- a\n", "nested": "memory:\n  a: b\n", "twice": "cpus: 1\ncpus: 2\n", "broken": "a: [\n",
	} {
		if _, _, err := Load(env(t, file, nil)); err == nil || !strings.Contains(err.Error(), "config.yaml") {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

// The schema is of use only if it accepts what Load accepts.
func TestSchemaPatternsAcceptTheDefaults(t *testing.T) {
	for _, s := range settings("/state") {
		if s.pattern != "" && !regexp.MustCompile(s.pattern).MatchString(s.fallback) {
			t.Errorf("%s: default %q does not match %s", s.name, s.fallback, s.pattern)
		}
	}
}

func TestAUserWithoutHomeHasAStateDirectory(t *testing.T) {
	c, _, err := Load(func(string) (string, bool) { return "", false })
	if err != nil || !filepath.IsAbs(c.StateDir) {
		t.Errorf("state directory %q, error %v", c.StateDir, err)
	}
}
