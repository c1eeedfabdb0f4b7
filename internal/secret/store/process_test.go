package store

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"creel/internal/secret"
)

// writerDir makes this binary a process that changes a store without end.
const writerDir = "CREEL_TEST_WRITE_SECRETS"

func TestMain(m *testing.M) {
	if dir := os.Getenv(writerDir); dir != "" {
		if err := writeForever(dir, os.Getenv("CREEL_TEST_NAME")); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// writeForever gives one secret two values in turn, and another, of its own
// name, one. It says so after each.
func writeForever(dir, own string) error {
	s := Open(Options{Dir: dir})
	ctx := context.Background()
	for i := 0; i < 100_000; i++ {
		text := []string{plain, strings.Repeat(other, 900)}[i%2]
		v, err := secret.NewValue(text)
		if err != nil {
			return err
		}
		_, err = s.Set(ctx, Request{Name: "shared", Source: Source{Kind: Age}, Binding: bearer, Value: v})
		_, err2 := s.Set(ctx, Request{Name: fmt.Sprintf("%s-%d", own, i%50), Source: Source{Kind: Age}, Binding: bearer, Value: v})
		if err := errors.Join(err, err2); err != nil {
			return err
		}
		fmt.Println(i)
	}
	return errors.New("nobody ended this")
}

func startWriter(t *testing.T, dir, name string) (cmd *exec.Cmd, done *bufio.Scanner) {
	t.Helper()
	cmd = exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), writerDir+"="+dir, "CREEL_TEST_NAME="+name)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd, bufio.NewScanner(out)
}

// A writer that is killed at any moment leaves the old or the new value, and
// nothing beside it once somebody else has written.
func TestKilledWritersLeaveOldOrNew(t *testing.T) {
	s, _ := newStore(t)
	for i := range 15 {
		cmd, done := startWriter(t, s.dir, "own")
		for range 1 + i%3 {
			done.Scan()
		}
		// At another moment of a write each time.
		time.AfterFunc(time.Duration(i)*397*time.Microsecond, func() { cmd.Process.Kill() })
		_ = cmd.Wait() // killed
		if got := revealed(t, s, "shared"); got != plain && got != strings.Repeat(other, 900) {
			t.Fatalf("left %.60q", got)
		}
		if _, err := s.List(); err != nil {
			t.Fatal(err)
		}
	}
	set(t, s, "last", Source{Kind: Age}, value(t, plain))
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".part-") {
			t.Errorf("%s is left", e.Name())
		}
	}
}

// Two processes begin with no store at all, and each finds what it kept.
func TestTwoProcessesAtOnce(t *testing.T) {
	s, _ := newStore(t)
	a, doneA := startWriter(t, s.dir, "a")
	b, doneB := startWriter(t, s.dir, "b")
	for range 12 {
		if !doneA.Scan() || !doneB.Scan() {
			t.Fatal("a writer stopped")
		}
	}
	for _, cmd := range []*exec.Cmd{a, b} {
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait() // killed
	}
	for _, name := range []string{"a-0", "a-11", "b-0", "b-11", "shared"} {
		if got := revealed(t, s, name); got != plain && got != strings.Repeat(other, 900) {
			t.Errorf("%s is %.60q", name, got)
		}
	}
}
