package policycmd

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"creel/internal/policy/preset"
)

// fakeTools puts scripts on PATH, and nothing else.
func fakeTools(t *testing.T, scripts map[string]string) {
	t.Helper()
	dir := t.TempDir()
	for name, body := range scripts {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+body), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir)
	t.Setenv("HOME", t.TempDir())
}

// policyOf is what `creel run --preset NAME` would hand on.
func policyOf(t *testing.T, name string) (string, error) {
	t.Helper()
	f := Flags{presets: []string{name}}
	return f.Text(&bytes.Buffer{})
}

func TestPresetsAskClientsOnPath(t *testing.T) {
	fakeTools(t, map[string]string{
		"npm":     `test "$1 $2" = "config list" && test "$(pwd)" = / && echo '{"registry": "https://npm.test/"}'`,
		"python3": `case "$*" in "-m pip config list") ;; -c*) echo "https://pip.test/simple files.test" ;; *) exit 9 ;; esac`,
		"go":      `test "$GOTOOLCHAIN" = local && echo '{"GOPROXY": "https://go.test", "GOSUMDB": "off"}'`,
	})
	for name, want := range map[string][]string{"npm": {"npm.test"}, "pip": {"pip.test", "files.test"}, "go": {"go.test"}} {
		got, err := policyOf(t, name)
		for _, host := range want {
			if err != nil || !strings.Contains(got, "allow: "+host+"\n") {
				t.Errorf("%s: %v\n%s", name, err, got)
			}
		}
	}
}

func TestPresetsSayWhatToDoWithoutClients(t *testing.T) {
	fakeTools(t, nil)
	for _, name := range []string{"npm", "pip", "go"} {
		if got, err := policyOf(t, name); err == nil || !strings.Contains(err.Error(), name+" is not installed here to be asked; install it, or ") {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	fakeTools(t, map[string]string{"npm": "echo it is broken >&2; exit 3"})
	if got, err := policyOf(t, "npm"); err == nil || !strings.Contains(err.Error(), "it is broken") || !strings.Contains(err.Error(), "exit status 3") {
		t.Errorf("a client that fails: %q, %v", got, err)
	}
	if _, err := runTool("nothing-of-this-name"); !errors.Is(err, preset.ErrNoClient) {
		t.Error(err)
	}
}

// The clients that are here, on stock settings: each names a registry. What a
// project that is somebody else's says is not asked.
func TestPresetsAskTheRealClients(t *testing.T) {
	path := os.Getenv("PATH")
	project := t.TempDir()
	for name, text := range map[string]string{".npmrc": "registry=https://evil.test/\n", "pip.conf": "[global]\nindex-url=https://evil.test\n"} {
		if err := os.WriteFile(filepath.Join(project, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Chdir(project)
	for name, program := range map[string]string{"npm": "npm", "pip": "python3", "go": "go"} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("PATH", path)
			if _, err := exec.LookPath(program); err != nil {
				t.Skip(err)
			}
			if name == "pip" && exec.Command("python3", "-m", "pip", "--version").Run() != nil {
				t.Skip("python3 has no pip")
			}
			got, err := policyOf(t, name)
			if err != nil || !strings.Contains(got, "name: 'preset "+name+": ") || strings.Contains(got, "evil.test") {
				t.Errorf("%v\n%s", err, got)
			}
		})
	}
}
