package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"creel/internal/guest/api"
	"creel/internal/sandbox"

	"github.com/spf13/cobra"
)

// A name of the state directory that is mistyped is told, and makes nothing.
func TestLookingMakesNoStateDirectory(t *testing.T) {
	for words, want := range map[string]string{
		"ps": "SANDBOX ", "ps -q": "", "image ls": "NAME ", "images": "NAME ", "template ls": "TEMPLATE ",
		"inspect web": "!", "logs web": "!", "stop web": "!", "rm web": "!", "rename a b": "!", "exec web true": "!", "attach web": "!", "wait web": "!",
		"cp web:/x .": "!", "top web": "!", "image inspect x": "!", "image save x": "!", "__complete stop x": "", "__complete run x": "",
	} {
		dir := filepath.Join(t.TempDir(), "mistyped")
		t.Setenv("CREEL_STATE_DIR", dir)
		var out, errs bytes.Buffer
		env := Env{Streams: Streams{In: os.Stdin, Out: &out, Err: &errs}, Logging: &Logging{}, Open: func(context.Context) (*App, error) {
			t.Errorf("%s: it opens, and makes, what is not there", words)
			return nil, errors.New("opened")
		}}
		code := Main(t.Context(), env, strings.Fields(words))
		if _, err := os.Lstat(dir); err == nil {
			t.Errorf("%s: it made %s", words, dir)
		}
		switch completes := strings.HasPrefix(words, "__"); {
		case completes:
		case want == "!" && code == 0, want != "!" && (code != 0 || !strings.HasPrefix(out.String(), want) || strings.Count(out.String(), "\n") > 1):
			t.Errorf("%s: exit %d, %q", words, code, out.String())
		case !strings.Contains(errs.String(), "mistyped does not exist; check CREEL_STATE_DIR"):
			t.Errorf("%s: it says %q", words, errs.String())
		}
	}
}

// A command without arguments says so in words of people.
func TestNoArgumentsIsSaid(t *testing.T) {
	for _, words := range []string{"ps x", "version x", "template ls x", "secret ls x"} {
		root := Root(Env{Logging: &Logging{}})
		root.SetArgs(strings.Fields(words))
		err := root.ExecuteContext(t.Context())
		if err == nil || !strings.HasPrefix(err.Error(), "`creel "+strings.TrimSuffix(words, " x")+"` takes no arguments") {
			t.Errorf("%s: %v", words, err)
		}
	}
}

// What is not in a sandbox is said to be missing there, without the names of
// what the question went through.
func TestMissingInASandbox(t *testing.T) {
	for message, want := range map[string]string{
		`guest: copy-in: copy to "/nosuch": stat /nosuch: no such file or directory`: "/nosuch: no such file or directory in sandbox k",
		`guest: copy-out: lstat /a/b c: not a directory`:                             "/a/b c: not a directory in sandbox k",
		`guest: copy-out: odd`: "sandbox k: guest: copy-out: odd",
	} {
		if got := missingIn("k", fmt.Errorf("%w", &api.Error{Code: api.CodeNotFound, Message: message})); got.Error() != want {
			t.Errorf("%s: %v, want %s", message, got, want)
		}
	}
	if missingIn("k", nil) != nil {
		t.Error("no error became one")
	}
}

// A paused sandbox is paused wherever its state is shown.
func TestStateOfAPausedSandbox(t *testing.T) {
	for want, s := range map[string]sandbox.Status{
		"paused": {State: sandbox.StateRunning, Paused: true}, "running": {State: sandbox.StateRunning}, "exited": {State: sandbox.StateExited, Paused: true},
	} {
		if got := stateOf(s); got != want {
			t.Errorf("%+v: %s", s, got)
		}
	}
}

// Warnings of a run are silenced by -q; how far its start is, is not.
func TestQuietRunPrintsNoWarnings(t *testing.T) {
	for _, quiet := range []bool{true, false} {
		var errs bytes.Buffer
		f := runFlags{quiet: quiet}
		env := Env{Streams: Streams{Err: &errs}}
		fmt.Fprint(f.warnings(env), "creel: warning: of a policy\n")
		f.progress(env)("warning: of a tier")
		f.progress(env)("booting")
		if n := strings.Count(errs.String(), "warning"); (n == 0) != quiet || !strings.Contains(errs.String(), "creel: booting") {
			t.Errorf("quiet %v: %q", quiet, errs.String())
		}
	}
}

// The shell is offered the values of flags that have a list of them.
func TestFlagsOfListsComplete(t *testing.T) {
	for words, want := range map[string][]string{
		"run --platform ": {"linux/amd64"}, "image pull --platform ": {"linux/amd64"}, "kill -s ": {"TERM", "HUP", "USR1"}, "stop -s ": {"TERM"},
		"ps --filter ": {"status=", "name="}, "ps -f status=pa": {"status=paused"}, "audit query --kind ": {"exec", "denied"}, "audit tail --kind ": {"exec"},
	} {
		var out bytes.Buffer
		root := Root(Env{Logging: &Logging{}, Streams: Streams{Out: &out, Err: &bytes.Buffer{}}})
		root.SetArgs(append([]string{cobra.ShellCompNoDescRequestCmd}, strings.Split(words, " ")...))
		if err := root.ExecuteContext(t.Context()); err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(out.String(), "\n")
		for _, one := range want {
			if !slices.Contains(lines, one) {
				t.Errorf("%s: %q is not in %q", words, one, lines)
			}
		}
	}
}

// Every kind of record that there is is offered.
func TestEveryKindIsOffered(t *testing.T) {
	var out bytes.Buffer
	root := Root(Env{Logging: &Logging{}, Streams: Streams{Out: &out, Err: &bytes.Buffer{}}})
	root.SetArgs([]string{cobra.ShellCompNoDescRequestCmd, "audit", "query", "--kind", ""})
	if err := root.ExecuteContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	offered := strings.Split(out.String(), "\n")
	kind := regexp.MustCompile(`(?m)^\t?(?:const )?Kind\w+ +(?:audit\.)?Kind += "([a-z-]+)"`)
	n := 0
	for _, file := range []string{"audit/audit.go", "audit/event/event.go", "audit/query/query.go"} {
		source, err := os.ReadFile(filepath.Join("..", file))
		if err != nil {
			t.Fatal(err)
		}
		for _, found := range kind.FindAllStringSubmatch(string(source), -1) {
			n++
			if !slices.Contains(offered, found[1]) {
				t.Errorf("%s of %s is not offered", found[1], file)
			}
		}
	}
	if n < 30 {
		t.Fatalf("found %d kinds in the sources", n)
	}
}
