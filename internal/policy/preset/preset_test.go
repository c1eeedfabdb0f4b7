package preset

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"creel/internal/policy/syntax"

	"github.com/google/go-cmp/cmp"
)

func reader(env, files map[string]string) Reader {
	return Reader{
		Env: func(name string) string { return env[name] },
		Files: func(pattern string) ([][]byte, error) {
			if text, ok := files[pattern]; ok {
				return [][]byte{[]byte(text)}, nil
			}
			return nil, nil
		},
	}
}

func TestToolSettings(t *testing.T) {
	for _, c := range []struct {
		preset     string
		env, files map[string]string
		want       []string // destinations, or an error
	}{
		{"npm", nil, map[string]string{
			"/etc/npmrc": "registry=https://old.test/",
			"~/.npmrc":   "; mine\nregistry = \"https://Npm.corp.test/npm/\"\n@team:registry=http://team.test:8080/\n//npm.corp.test/:_authToken=x\n",
		}, []string{"http team.test:8080", "tls npm.corp.test:443"}},
		{"npm", map[string]string{"npm_config_registry": "https://env.test"}, map[string]string{"~/.npmrc": "registry=https://old.test/"}, []string{"tls env.test:443"}},
		{"npm", nil, map[string]string{"~/.npmrc": "registry=http://127.0.0.1:4873"}, []string{"error: preset npm: the settings name 127.0.0.1"}},
		{"npm", nil, map[string]string{"~/.npmrc": "fund=false"}, []string{"error: preset npm: the settings name no registry, and npm is not installed here to be asked; install it, or write"}},
		{"pip", nil, map[string]string{"~/.config/pip/pip.conf": "[global]\nindex-url = https://user:secret@pip.corp.test/simple\nextra-index-url =\n    https://b.test/\n    https://c.test:8443/\ntimeout = 5\n"},
			[]string{"tls pip.corp.test:443", "tls b.test:443", "tls c.test:8443"}},
		{"pip", map[string]string{"PIP_INDEX_URL": "https://env.test/simple", "PIP_FIND_LINKS": "/opt/wheels"}, nil, []string{"tls env.test:443"}},
		{"pip", nil, nil, []string{"error: preset pip: the settings name no registry, and pip is not installed here to be asked; install it, or set PIP_INDEX_URL"}},
		{"go", map[string]string{"GOPROXY": "https://a.test/x,https://b.test|direct", "GOSUMDB": "sums.test+abc"}, nil,
			[]string{"tls a.test:443", "tls b.test:443", "tls sums.test:443"}},
		{"go", nil, map[string]string{"~/.config/go/env": "GOPROXY=https://a.test\nGOSUMDB=off\n"}, []string{"tls a.test:443"}},
		{"go", map[string]string{"GOPROXY": "direct"}, nil, []string{"error: preset go: the settings name no registry, and go is not installed here to be asked; install it, or set GOPROXY"}},
		{"apt", nil, map[string]string{
			"/etc/apt/sources.list":             "# deb http://no.test x\ndeb [signed-by=/k] http://deb.test/debian stable main # c\ndeb cdrom:[x]/ y\n",
			"/etc/apt/sources.list.d/*.sources": "Types: deb\n# http://no.test/\nURIs: https://d822.test/a\n  http://more.test/\nSuites: x\n  http://not.test/\n",
		}, []string{"http deb.test:80", "tls d822.test:443", "http more.test:80"}},
		{"apt", nil, nil, []string{"error: preset apt: the settings name no registry"}},
		{"anthropic", nil, nil, []string{"tls api.anthropic.com:443"}},
		{"gitlab", nil, nil, []string{"tls gitlab.com:443", "tcp gitlab.com:22"}},
		{"nope", nil, nil, []string{`error: preset "nope" is not known; the presets are anthropic, apt, bitbucket`}},
	} {
		var got []string
		rules, err := reader(c.env, c.files).Rules(c.preset)
		if err != nil {
			want, ok := strings.CutPrefix(c.want[0], "error: ")
			if !ok || !strings.HasPrefix(err.Error(), want) || strings.Contains(err.Error(), "secret") {
				t.Errorf("%s: %v, want %s", c.preset, err, c.want)
			}
			continue
		}
		for _, r := range rules {
			got = append(got, fmt.Sprintf("%s %s:%d", r.Protocol, r.Host, r.Ports[0].First))
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s: %s", c.preset, diff)
		}
	}
}

// Every preset makes a policy that is right on its own, and all of them
// together do.
func TestPresetsParse(t *testing.T) {
	all := reader(map[string]string{"GOPROXY": "https://go.test", "PIP_INDEX_URL": "https://pip.test", "npm_config_registry": "https://npm.test"},
		map[string]string{"/etc/apt/sources.list": "deb http://apt.test x"})
	for _, names := range append([]string{strings.Join(Names(), ", ")}, Names()...) {
		p, _, err := syntax.Parse([]byte("version: 1\npresets: ["+names+"]\n"), syntax.Inputs{Preset: all.Rules})
		if err != nil || len(p.Rules) == 0 {
			t.Errorf("%s: %v", names, err)
			continue
		}
		if _, _, err := syntax.Parse(syntax.Text(p), syntax.Inputs{}); err != nil {
			t.Errorf("%s: the printed policy: %v", names, err)
		}
	}
}

func TestUnreadableSettingsAreAnError(t *testing.T) {
	r := Reader{Env: func(string) string { return "" }, Files: func(string) ([][]byte, error) { return nil, os.ErrPermission }}
	for _, name := range []string{"npm", "pip", "go", "apt"} {
		if _, err := r.Rules(name); !errors.Is(err, os.ErrPermission) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzSettings(f *testing.F) {
	f.Add("deb http://a b\nURIs: https://x\nregistry=https://y\nindex-url = z://\nGOPROXY=a,b|c")
	f.Fuzz(func(t *testing.T, text string) {
		r := Reader{Env: func(string) string { return "" }, Files: func(string) ([][]byte, error) { return [][]byte{[]byte(text)}, nil }}
		for _, name := range []string{"npm", "pip", "go", "apt"} {
			if rules, err := r.Rules(name); err == nil && len(rules) == 0 {
				t.Errorf("%s: no rules and no error", name)
			}
		}
	})
}
