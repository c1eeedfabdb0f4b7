package preset

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// tools answers for programs, by their words with blanks between.
func tools(t *testing.T, says map[string]string) func(string, ...string) (string, error) {
	t.Helper()
	return func(program string, args ...string) (string, error) {
		words := strings.Join(append([]string{program}, args...), " ")
		for begin, said := range says {
			if !strings.HasPrefix(words, begin) {
				continue
			}
			if failure, failed := strings.CutPrefix(said, "fails: "); failed {
				return "", errors.New(failure)
			}
			return said, nil
		}
		return "", fmt.Errorf("%s: %w", program, ErrNoClient)
	}
}

const help = "  -i, --index-url <url>       Base URL of the Python Package Index (default\n" +
	"                              https://help.test/simple). This should point to\n"

// On stock settings the clients say what they use: no file has it.
func TestClientsAreAsked(t *testing.T) {
	for name, c := range map[string]struct {
		preset string
		says   map[string]string
		files  map[string]string
		want   []string // destinations, or an error
	}{
		"npm": {"npm", map[string]string{"npm config list --json": `{"registry": "https://npm.test/", "@a:registry": "http://a.test:8080/", "json": true,
			"//npm.test/:_authToken": "(protected)", "noproxy": ["https://no.test"], "@b:other": "https://no.test"}`}, nil,
			[]string{"http a.test:8080", "tls npm.test:443"}},
		"npm over a file": {"npm", map[string]string{"npm config list": `{"registry": "https://npm.test/"}`}, map[string]string{"~/.npmrc": "registry=https://old.test/"},
			[]string{"tls npm.test:443"}},
		"npm that fails": {"npm", map[string]string{"npm": "fails: exit status 1"}, map[string]string{"~/.npmrc": "registry=https://old.test/"},
			[]string{"tls old.test:443"}},
		"npm that fails, and no file": {"npm", map[string]string{"npm": "fails: exit status 7"}, nil,
			[]string{"error: preset npm: the settings name no registry, and the client does not say what it uses: exit status 7; install it, or"}},
		"npm that says nonsense": {"npm", map[string]string{"npm": "<html>"}, nil, []string{"error: preset npm: the settings name no registry, and the client does not say"}},
		"npm without a registry": {"npm", map[string]string{"npm": "{}"}, nil, []string{"error: preset npm: the settings name no registry; install it"}},
		"pip by itself": {"pip", map[string]string{
			"python3 -m pip config list": "global.timeout='5'\n:env:.find-links='/opt/wheels'\n", "python3 -c": "https://pip.test/simple files.test\nhttps://try.test/simple no.test\n"}, nil,
			[]string{"tls pip.test:443", "tls files.test:443"}},
		"pip with settings": {"pip", map[string]string{
			"python3 -m pip config list": ":env:.index-url='https://env.test/simple'\nglobal.index-url='https://user:secret@old.test/'\nglobal.extra-index-url='https://b.test\\nhttps://try.test/simple/'\n",
			"python3 -c":                 "https://pip.test/simple no.test\nhttps://try.test/simple tryfiles.test\n"}, nil,
			[]string{"tls env.test:443", "tls b.test:443", "tls try.test:443", "tls tryfiles.test:443"}},
		"pip that keeps its index elsewhere": {"pip", map[string]string{
			"python3 -m pip config list": "", "python3 -c": "fails: no such module", "python3 -m pip download --help": help}, nil,
			[]string{"tls help.test:443"}},
		"pip of python": {"pip", map[string]string{"python -m pip config list": "", "python -c": "https://pip.test/simple files.test\n"}, nil,
			[]string{"tls pip.test:443", "tls files.test:443"}},
		"python without pip": {"pip", map[string]string{"python3": "fails: No module named pip"}, nil,
			[]string{"error: preset pip: the settings name no registry, and pip is not installed here to be asked"}},
		"pip whose help says nothing": {"pip", map[string]string{"python3 -m pip config list": "", "python3 -c": "fails: x", "python3 -m pip download": "nothing"}, nil,
			[]string{"error: preset pip: the settings name no registry, and the client does not say what it uses"}},
		"go": {"go", map[string]string{"go env -json GOPROXY GOSUMDB": `{"GOPROXY": "https://go.test,direct", "GOSUMDB": "sums.test"}`}, nil,
			[]string{"tls go.test:443", "tls sums.test:443"}},
		"go without a proxy": {"go", map[string]string{"go env": `{"GOPROXY": "direct", "GOSUMDB": "sums.test"}`}, nil,
			[]string{"error: preset go: the settings name no registry"}},
	} {
		t.Run(name, func(t *testing.T) {
			r := reader(nil, c.files)
			r.Run = tools(t, c.says)
			rules, err := r.Rules(c.preset)
			if want, fails := strings.CutPrefix(c.want[0], "error: "); fails || err != nil {
				if err == nil || !fails || !strings.HasPrefix(err.Error(), want) || strings.Contains(err.Error(), "secret") {
					t.Errorf("%v, want %s", err, c.want)
				}
				return
			}
			var got []string
			for _, r := range rules {
				got = append(got, fmt.Sprintf("%s %s:%d", r.Protocol, r.Host, r.Ports[0].First))
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// What a client prints is not hostile, and yet may be anything.
func FuzzClients(f *testing.F) {
	f.Add(`{"registry": "https://a"}`)
	f.Add("global.index-url='https://x'\n:env:.find-links='y://z'")
	f.Add(help)
	f.Fuzz(func(t *testing.T, text string) {
		r := reader(nil, nil)
		r.Run = func(string, ...string) (string, error) { return text, nil }
		for _, name := range []string{"npm", "pip", "go"} {
			if rules, err := r.Rules(name); err == nil && len(rules) == 0 {
				t.Errorf("%s: no rules and no error", name)
			}
		}
		if !slices.Contains(Names(), "npm") {
			t.Error("no npm")
		}
	})
}
