// Package script runs the command line as testscript files say: testdata/*.txtar
// for what needs no machine, testdata/vm/*.txtar for what boots one.
package script

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"creel/test/images"
	"creel/test/rig"
)

func TestCommands(t *testing.T) {
	bin := os.Getenv("CREEL_TEST_BIN")
	if bin == "" {
		t.Skip("CREEL_TEST_BIN is not set; `make test` sets it")
	}
	testscript.Run(t, params("testdata", func(e *testscript.Env) error {
		return setUp(e, bin, filepath.Join(e.WorkDir, "state"))
	}))
}

// Scripts that boot machines have one state directory, with the image busybox
// and its template.
func TestMachines(t *testing.T) {
	if lack := rig.Lack(); lack != "" {
		t.Skip(lack)
	}
	r, err := rig.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	tar, err := images.Busybox(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	r.Must(t, "image", "import", tar, "busybox")
	r.Must(t, "template", "build", "busybox")
	testscript.Run(t, params("testdata/vm", func(e *testscript.Env) error { return setUp(e, r.Creel, r.State) }))
}

func params(dir string, setup func(*testscript.Env) error) testscript.Params {
	return testscript.Params{
		Dir: dir, Setup: setup, RequireExplicitExec: true, RequireUniqueNames: true,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"code": code},
	}
}

func setUp(e *testscript.Env, bin, state string) error {
	bin, err := filepath.Abs(bin)
	if err != nil {
		return err
	}
	dir := filepath.Join(e.WorkDir, ".bin")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	e.Setenv("PATH", dir+string(os.PathListSeparator)+e.Getenv("PATH"))
	e.Setenv("HOME", e.WorkDir)
	e.Setenv("CREEL_STATE_DIR", state)
	return os.Symlink(bin, filepath.Join(dir, "creel"))
}

var exitStatus = regexp.MustCompile(`^exit status ([0-9]+)$`)

// code runs a command, `code N creel …`, that has to end with that exit code;
// testscript itself knows only success and failure.
func code(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: code N command [args...]")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		m := exitStatus.FindStringSubmatch(err.Error())
		if m == nil {
			ts.Fatalf("%v", err)
		}
		fmt.Sscan(m[1], &got) // digits
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}
