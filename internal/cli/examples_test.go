package cli_test

import (
	"archive/tar"
	"context"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"creel/internal/app"
	"creel/internal/cli"
	"creel/internal/guest/blob"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/spf13/cobra"
)

// parseOnly names a file to which a creel that only parses its words writes
// what it thinks of them.
const parseOnly = "CREEL_TEST_PARSE_ONLY"

// TestMain makes this binary a creel where a test calls it by that name.
func TestMain(m *testing.M) {
	app.Stages(os.Args)
	switch {
	case filepath.Base(os.Args[0]) != "creel":
		os.Exit(m.Run())
	case os.Getenv(parseOnly) != "":
		os.Exit(parse(os.Args[1:], os.Getenv(parseOnly)))
	}
	os.Exit(app.Main(context.Background(), "test", os.Args))
}

func root() *cobra.Command { return cli.Root(cli.Env{Logging: &cli.Logging{}}) }

// parse does what cobra does before it runs a command.
func parse(args []string, report string) int {
	verdict := "ok"
	c, rest, err := root().Find(args)
	if err == nil {
		err = c.ParseFlags(rest)
	}
	if err == nil {
		if !c.DisableFlagParsing {
			rest = c.Flags().Args()
		}
		err = c.ValidateArgs(rest)
	}
	if err == nil && !acts(c) {
		err = fmt.Errorf("%s does nothing by itself", c.CommandPath())
	}
	if err != nil {
		verdict = fmt.Sprintf("creel %q: %v", args, err)
	}
	f, err := os.OpenFile(report, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return 1
	}
	defer f.Close()
	fmt.Fprintln(f, verdict)
	return 0
}

// commands are those that do something, without cobra's own.
func commands(c *cobra.Command) []*cobra.Command {
	var all []*cobra.Command
	for _, sub := range c.Commands() {
		if sub.Hidden { // of TestDockersWordsAreKnown
			continue
		}
		all = append(all, commands(sub)...)
		if acts(sub) {
			all = append(all, sub)
		}
	}
	return all
}

// acts tells commands from those that only hold others.
func acts(c *cobra.Command) bool { return !c.HasSubCommands() || c.Example != "" }

func lines(example string) []string {
	var all []string
	for line := range strings.Lines(example) {
		all = append(all, strings.TrimSpace(line))
	}
	return all
}

func TestEveryCommandHasHelp(t *testing.T) {
	all := commands(root())
	if len(all) < 20 {
		t.Fatalf("found %d commands", len(all))
	}
	for _, c := range all {
		if c.Short == "" || strings.HasSuffix(c.Short, ".") {
			t.Errorf("%s: Short is %q; want words without a full stop", c.CommandPath(), c.Short)
		}
		_, words, _ := strings.Cut(c.Use, " ")
		if takesArguments := strings.Trim(strings.ReplaceAll(words, "[flags]", ""), " ") != ""; takesArguments && c.Example == "" {
			t.Errorf("%s takes arguments and has no Example", c.CommandPath())
		}
		if c.Example != "" && !strings.Contains(c.Example, c.CommandPath()+" ") && !strings.HasSuffix(c.Example, c.CommandPath()) {
			t.Errorf("%s: the example %q is one of another command", c.CommandPath(), c.Example)
		}
	}
}

// shell runs lines as a person would, with nothing but creel, cat and docker to
// be found; docker is a script that hands out what lies in the directory.
type shell struct{ dir, bin, home string }

func newShell(t *testing.T) shell {
	t.Helper()
	s := shell{t.TempDir(), t.TempDir(), t.TempDir()}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(self, filepath.Join(s.bin, "creel")); err != nil {
		t.Fatal(err)
	}
	docker := "#!/bin/sh\ncase $1 in save) exec cat images.tar ;; export) exec cat rootfs.tar ;; esac\n"
	if err := os.WriteFile(filepath.Join(s.bin, "docker"), []byte(docker), 0o700); err != nil {
		t.Fatal(err)
	}
	// A shell reads it before it runs anything.
	if err := os.WriteFile(filepath.Join(s.dir, "key.txt"), []byte("a key of an example\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s shell) run(line string, env ...string) (string, error) {
	cmd := exec.Command("/bin/sh", "-c", line)
	cmd.Dir = s.dir
	cmd.Env = append([]string{"PATH=" + s.bin + ":/usr/sbin:/usr/bin:/sbin:/bin", "HOME=" + s.home}, env...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func TestEveryExampleParses(t *testing.T) {
	for _, c := range commands(root()) {
		for _, line := range lines(c.Example) {
			s := newShell(t)
			report := filepath.Join(s.home, "report")
			// What the rest of a pipeline makes of no data is not looked at.
			out, _ := s.run(line, parseOnly+"="+report)
			verdicts, err := os.ReadFile(report)
			if err != nil {
				t.Errorf("%s: the example %q does not run creel: %s", c.CommandPath(), line, out)
			}
			for verdict := range strings.Lines(string(verdicts)) {
				if verdict != "ok\n" {
					t.Errorf("%s: the example %q: %s", c.CommandPath(), line, verdict)
				}
			}
		}
	}
}

// ran are the commands whose examples are run here, in this order, in one state
// directory.
var ran = []string{
	"config path", "config schema", "config show", "version", "doctor",
	"docs man", "policy check", "policy explain", "policy schema", "policy test", "policy tiers",
	"image import", "image ls", "image inspect", "image tag", "image save", "image load", "image rm", "image prune",
	"template ls", "ps", "audit key show", "audit key rotate", "audit checkpoint", "audit export", "audit prune",
	"secret set", "secret ls", "secret check", "secret rotate", "secret rm",
}

// notRun are those whose examples need what a unit test has not.
var notRun = map[string][]string{
	"a sandbox": {"attach", "cp", "exec", "inspect", "kill", "logs", "pause", "rename", "rm", "run", "stop", "top", "unpause", "wait",
		"audit query", "audit tail", "audit verify", "policy set", "policy show", "receipt", "receipt verify"},
	"a template":       {"template build", "template inspect", "template rm", "template verify"},
	"a kernel package": {"kernel fetch", "kernel import", "kernel show"},
	"a registry":       {"image pull", "image push"},
}

func TestExamplesRun(t *testing.T) {
	if _, err := blob.Agent(); err != nil {
		t.Skip(err)
	}
	byName := map[string]*cobra.Command{}
	for _, c := range commands(root()) {
		name := strings.TrimPrefix(c.CommandPath(), "creel ")
		byName[name] = c
		if known := slices.Concat(append(slices.Collect(maps.Values(notRun)), ran)...); !slices.Contains(known, name) {
			t.Errorf("say in this file whether the examples of %s can be run here", c.CommandPath())
		}
	}
	s := newShell(t)
	s.prepare(t)
	for _, name := range ran {
		if byName[name] == nil {
			continue
		}
		for _, line := range lines(byName[name].Example) {
			if out, err := s.run(line); err != nil {
				t.Errorf("%s: %v\n%s", line, err, out)
			}
		}
	}
}

// prepare makes the files that examples speak of.
func (s shell) prepare(t *testing.T) {
	t.Helper()
	f, err := os.Create(filepath.Join(s.dir, "rootfs.tar"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := tar.NewWriter(f)
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: "etc/", Mode: 0o755}); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	img, err := random.Image(512, 1)
	if err != nil {
		t.Fatal(err)
	}
	if err := tarball.WriteToFile(filepath.Join(s.dir, "images.tar"), name.MustParseReference("debian"), img); err != nil {
		t.Fatal(err)
	}
	policy := "version: 1\nrules:\n  - {allow: api.example.com, methods: POST}\n  - {allow: db.example.com, ports: 5432}\n" +
		"tests:\n  - deny: GET https://api.example.com/\n"
	if err := os.WriteFile(filepath.Join(s.dir, "agent.yaml"), []byte(policy), 0o600); err != nil {
		t.Fatal(err)
	}
}
