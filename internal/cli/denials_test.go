package cli

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"creel/internal/sandbox"
)

// What is printed at the end can be pasted where there is something to paste,
// and says what there is to decide.
func TestDenialsSayWhatToDecide(t *testing.T) {
	var out bytes.Buffer
	printDenials(&out, sandbox.Status{Denied: 9, Alerts: 1, Denials: []sandbox.Denial{
		{Target: "a.test", Reason: "no rule names this destination", Hint: "--allow a.test", Count: 8},
		{Target: "[2606:4700::1]:22", Reason: "no rule names this destination", Hint: "--allow '[2606:4700::1]:22'", Count: 1},
	}})
	want := "creel: 9 denied, with 1 alert:\n" +
		"creel:   a.test (8 times): no rule names this destination; to allow it: --allow a.test\n" +
		"creel:   [2606:4700::1]:22: no rule names this destination; to allow it: --allow '[2606:4700::1]:22'\n" +
		"creel: before you allow one, decide: does the task need it, and may all that the task knows be sent there?\n"
	if out.String() != want {
		t.Errorf("%s, want\n%s", out.String(), want)
	}
	out.Reset()
	printDenials(&out, sandbox.Status{Denied: 1, Denials: []sandbox.Denial{{Target: "10.0.0.1:22", Reason: "no rule", Hint: "decide whether", Count: 1}}})
	if strings.Contains(out.String(), "before you allow") {
		t.Errorf("there is nothing to allow:\n%s", out.String())
	}
}

func TestTroublesAreTold(t *testing.T) {
	var out bytes.Buffer
	printTroubles(&out, sandbox.Status{})
	if out.Len() > 0 {
		t.Errorf("told of nothing: %s", out.String())
	}
	var many []sandbox.Trouble
	for i := range maxDenialLines + 3 {
		many = append(many, sandbox.Trouble{Target: fmt.Sprintf("h%d.test:443\x1b[2J", i), Reason: "it refused", Hint: "check", Count: 2})
	}
	printTroubles(&out, sandbox.Status{ID: "0123456789abcdef0123456789abcdef", Troubles: many})
	for _, want := range []string{"allowed, but it did not work:\n", "h0.test:443\\u001b[2J (2 times): it refused; check\n", "and 3 more; `creel audit query --sandbox 0123456789ab`"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
}

// A log without room is told at the end, and by `ps`, in every state that has
// no error to tell first.
func TestAFullLogIsTold(t *testing.T) {
	const full = "its audit log is full (64 MiB): the task reaches nothing more"
	var out bytes.Buffer
	printFull(&out, sandbox.Status{})
	if printFull(&out, sandbox.Status{AuditFull: full}); out.String() != "creel: "+full+"\n" {
		t.Errorf("it says %q", out.String())
	}
	for _, s := range []sandbox.State{sandbox.StateRunning, sandbox.StateExited} {
		if got := describe(sandbox.Status{State: s, AuditFull: full}); !strings.HasSuffix(got, ": "+full) {
			t.Errorf("%s: %q", s, got)
		}
	}
}
