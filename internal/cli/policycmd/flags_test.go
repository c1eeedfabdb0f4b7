package policycmd

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"creel/internal/policy/syntax"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"
)

func TestFlagsBecomeOneCanonicalPolicy(t *testing.T) {
	dir := t.TempDir()
	fakeTools(t, nil)
	t.Setenv("HOME", dir)
	file := filepath.Join(dir, "agent.yaml")
	if err := os.WriteFile(file, []byte("version: 1\nrules:\n  - {allow: api.test, methods: GET}\n  - {allow: \"**.amazonaws.com\"}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	api := "  - allow: api.test\n    name: line 3\n    ports: [\"443\"]\n    methods: [GET]\n"
	aws := "  - allow: '**.amazonaws.com'\n    name: line 4\n    ports: [\"443\"]\n"
	db := "  - allow: db.test\n    name: --allow db.test:5432\n    ports: [\"5432\"]\n"
	for _, c := range []struct {
		args, want string // of want, "" is nothing allowed
		said       string // on standard error, or by the error
		fails      bool
	}{
		{"", "", "", false},
		{"--net none", "", "", false},
		{"--allow db.test:5432", "version: 1\nrules:\n" + db, "", false},
		{"--policy " + file, "version: 1\nrules:\n" + api + aws, "reaches places where anyone can receive data", false},
		{"--policy " + file + " --allow db.test:5432", "version: 1\nrules:\n" + api + aws + db, "warning: line 4", false},
		{"--preset anthropic", "version: 1\nrules:\n  - allow: api.anthropic.com\n    name: 'preset anthropic: api.anthropic.com:443'\n" +
			"    ports: [\"443\"]\n    protocol: tls\n", "", false},
		{"--net none --allow db.test", "", "--net none: contradicts", true},
		{"--net host", "", "--net host: a sandbox has a network of its own", true},
		{"--allow a..test --preset nothing", "", "--preset nothing: preset \"nothing\" is not known", true},
		{"--policy " + file + ".none", "", "read policy: open", true},
		{"--preset npm", "", "install it, or write `registry=URL` in ~/.npmrc", true},
	} {
		var f Flags
		fs := pflag.NewFlagSet("run", pflag.ContinueOnError)
		f.Register(fs)
		if err := fs.Parse(strings.Fields(c.args)); err != nil {
			t.Fatal(err)
		}
		var said bytes.Buffer
		got, err := f.Text(&said)
		if err != nil {
			said.WriteString(err.Error())
		}
		if (err != nil) != c.fails || !strings.Contains(said.String(), c.said) || c.said == "" && said.Len() > 0 {
			t.Errorf("%s: %v, %q does not say %q", c.args, err, &said, c.said)
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s:\n%s", c.args, diff)
		}
		if strings.Count(said.String(), "warning") > 1 {
			t.Errorf("%s: it warns twice:\n%s", c.args, &said)
		}
		if got == "" {
			continue
		}
		// The engine reads it back without any file, and finds it canonical.
		p, _, err := syntax.Parse([]byte(got), syntax.Inputs{})
		if err != nil || string(syntax.Text(p)) != got {
			t.Errorf("%s: read back: %v", c.args, err)
		}
	}
}
