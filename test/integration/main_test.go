// Package integration runs the built program against real virtual machines.
package integration

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"creel/test/images"
	"creel/test/rig"
)

// shared is the one state directory of these tests: making templates takes
// longer than using them. Only TestMain sets it; nil where Lack says why.
var shared *rig.Rig

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) (code int) {
	if rig.Lack() != "" {
		return m.Run()
	}
	var err error
	if shared, err = rig.New(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() {
		if err := shared.Close(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}()
	if err := prepare(shared); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// prepare makes the image that most tests run, and its template.
func prepare(r *rig.Rig) error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*rig.Patience)
	defer cancel()
	tar, err := images.Debian(ctx)
	if err != nil {
		return err
	}
	for _, cmd := range []*exec.Cmd{r.Cmd("image", "import", "-", "debian"), r.Cmd("run", "debian", "true")} {
		if cmd.Stdin, err = os.Open(tar); err != nil {
			return err
		}
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%q: %w: %s", cmd.Args, err, out)
		}
	}
	return nil
}

// machines is the shared rig, in tests that boot something.
func machines(t *testing.T) *rig.Rig {
	t.Helper()
	if lack := rig.Lack(); lack != "" {
		t.Skip(lack)
	}
	return shared
}

// background starts a task with creel run -d, which the end of the test removes.
func background(t *testing.T, r *rig.Rig, args ...string) (name string) {
	t.Helper()
	name = strings.ReplaceAll(t.Name(), "/", ".")
	r.Must(t, append([]string{"run", "-d", "--name", name}, args...)...)
	t.Cleanup(func() { r.Run(t, "rm", "-f", name) })
	return name
}
