package qemu

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"

	"creel/internal/vm"
)

// endOf is the state of a process that a shell has run.
func endOf(t *testing.T, script string) *os.ProcessState {
	t.Helper()
	cmd := exec.Command("sh", "-c", script)
	if err := cmd.Run(); err == nil && script != "exit 0" {
		t.Fatalf("%s: it succeeded", script)
	}
	return cmd.ProcessState
}

func TestEndingSaysWhatIsKnown(t *testing.T) {
	ok := endOf(t, "exit 0")
	for name, c := range map[string]struct {
		reason, console string
		state           *os.ProcessState
		want            string // "": no error
		byGuest         bool
	}{
		"power-off":          {reason: guestShutdown, state: endOf(t, "kill -KILL $$")},
		"reboot":             {reason: guestReset, state: ok, want: "the guest rebooted itself", byGuest: true},
		"panic":              {guestReset, "[1] BUG\n[2] Kernel panic - not syncing: sysrq triggered crash\r\n[3] CPU: 0", ok, `panicked: "sysrq triggered crash"`, true},
		"the last panic":     {guestReset, panicMark + "one\n" + panicMark + "two", ok, `"two"`, true},
		"a hostile panic":    {guestReset, panicMark + "\x1b[2J\x07" + strings.Repeat("x", 5000), ok, `"\x1b[2J\ax`, true},
		"SIGTERM to the VMM": {reason: hostSignal, state: ok, want: "told to end by a signal"},
		"killed":             {state: endOf(t, "kill -KILL $$"), want: "the VMM was killed (signal 9, killed)"},
		"nothing":            {want: "not known"},
	} {
		err := ending(c.reason, c.console, c.state, nil)
		if (c.want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
		if err != nil && (len(err.Error()) > 1000 || strings.ContainsAny(err.Error(), "\x1b\n")) {
			t.Errorf("%s: the guest's text is not bounded or quoted: %q", name, err)
		}
		if _, is := errors.AsType[*vm.GuestEnded](err); is != c.byGuest {
			t.Errorf("%s: ended by the guest: %v", name, is)
		}
	}
}
