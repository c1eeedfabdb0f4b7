package cli

import (
	"context"
	"errors"
	"math"
	"os"
	"strings"
	"testing"
	"time"

	"creel/internal/sandbox"
)

// As Docker's: less than nothing is as long as it takes, and so is what no
// clock counts to. Neither kills at once.
func TestGrace(t *testing.T) {
	for seconds, want := range map[int]time.Duration{
		-1: math.MaxInt64, math.MinInt: math.MaxInt64, math.MaxInt: math.MaxInt64, 9223372037: math.MaxInt64, 0: 0, 10: 10 * time.Second,
	} {
		if got := grace(seconds); got != want {
			t.Errorf("%d: %s, want %s", seconds, got, want)
		}
	}
}

// Only a task whose terminal is followed needs this process to have one.
func TestDetachedTaskNeedsNoTerminal(t *testing.T) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	opened := errors.New("opened")
	env := Env{Streams: Streams{In: null}, Open: func(context.Context) (*App, error) { return nil, opened }}
	for _, detached := range []bool{true, false} {
		err := run(t.Context(), env, sandbox.Spec{TTY: true, Interactive: true, Keep: detached}, &runFlags{detachKeys: usualKeys})
		if errors.Is(err, opened) != detached || !detached && !strings.Contains(err.Error(), "-t needs a terminal") {
			t.Errorf("detached %v: %v", detached, err)
		}
	}
}

// A value that a flag does not take is answered with what it takes, not with
// what its parser says.
func TestFlagsSayWhatTheyTake(t *testing.T) {
	for words, want := range map[string]string{
		"run --timeout 3 debian": `--timeout "3": want a duration such as 3s`, "stop -t abc web": `--time "abc": want seconds`, "run --cpus two debian": `--cpus "two": want a number`,
		"ps -n x": `--last "x": want a whole number`, "run --rm=perhaps debian": `--rm "perhaps": want true or false`,
	} {
		root := Root(Env{Logging: &Logging{}})
		root.SetArgs(strings.Fields(words))
		err := root.ExecuteContext(t.Context())
		if err == nil || !strings.HasPrefix(err.Error(), want) || strings.Contains(err.Error(), "strconv") {
			t.Errorf("%s: %v", words, err)
		}
	}
}
