package cli_test

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"unicode"

	"creel/internal/engine/store"
	"creel/internal/guest/blob"
	"creel/internal/keeper/launch"
	"creel/internal/sandbox"
)

// creel is a command of this binary in a state directory of its own.
func creel(t *testing.T, state string, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, args...)
	cmd.Args[0] = "creel"
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir(), "CREEL_STATE_DIR=" + state}
	return cmd
}

// printing are commands that print and need no machine.
var printing = [][]string{
	{"--help"}, {"help", "run"}, {"image", "--help"}, {"image"}, {"version"}, {"version", "--json"}, {"ps"}, {"ps", "-a", "--format", "json"},
	{"config", "show"}, {"config", "path"}, {"config", "schema"}, {"image", "ls"}, {"image", "prune"}, {"template", "ls"}, {"doctor"},
	{"doctor", "--json"}, {"policy", "schema"}, {"policy", "tiers"}, {"secret", "ls"}, {"audit", "key", "show"}, {"audit", "query"},
	{"audit", "verify"}, {"audit", "checkpoint"}, {"audit", "export"}, {"audit", "tail"}, {"completion", "bash"}, {"__complete", "ps", ""},
}

// silent are those of printing that have nothing to say in a new state directory.
var silent = map[string]bool{"ps -a --format json": true}

func TestEveryCommandTellsThatItsOutputIsLost(t *testing.T) {
	if _, err := blob.Agent(); err != nil {
		t.Skip(err)
	}
	state := filepath.Join(t.TempDir(), "state")
	if out, err := creel(t, state, "audit", "key", "rotate").CombinedOutput(); err != nil { // something to show
		t.Fatalf("%v: %s", err, out)
	}
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skip(err)
	}
	defer full.Close()
	for _, args := range printing {
		name := strings.Join(args, " ")
		if silent[name] {
			continue
		}
		var errs bytes.Buffer
		cmd := creel(t, state, args...)
		cmd.Stdout, cmd.Stderr = full, &errs
		cmd.Run()
		if code := cmd.ProcessState.ExitCode(); code != 1 || !strings.Contains(errs.String(), "no space left on device") {
			t.Errorf("creel %s >/dev/full: code %d, %q", name, code, errs.String())
		}
		reader, writer, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		reader.Close()
		errs.Reset()
		cmd = creel(t, state, args...)
		cmd.Stdout, cmd.Stderr = writer, &errs
		cmd.Run()
		writer.Close()
		if code := cmd.ProcessState.ExitCode(); code != 141 || strings.Contains(errs.String(), "creel:") {
			t.Errorf("creel %s without a reader: code %d, %q", name, code, errs.String())
		}
	}
}

// hostile is what a keeper that was taken over puts wherever a text goes.
const hostile = "evil\x1b]0;owned\x07\x1b[2J\r\u009b31m\x7f\u202etxt\nforged row"

// What a keeper left in its directory never reaches the terminal as it is.
func TestHostileStatusIsSafeToShow(t *testing.T) {
	if _, err := blob.Agent(); err != nil {
		t.Skip(err)
	}
	state := filepath.Join(t.TempDir(), "state")
	if out, err := creel(t, state, "ps").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	id := sandbox.NewID()
	write := func(path string, v any) {
		t.Helper()
		data, err := json.Marshal(v)
		if err == nil {
			err = os.MkdirAll(filepath.Dir(path), 0o700)
		}
		if err == nil {
			err = os.WriteFile(path, data, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	dir := filepath.Join(state, "sandboxes", string(id))
	record := store.NewRecord(launch.Config{Spec: sandbox.Spec{
		ID: id, Name: "web", Image: hostile, Keep: true, Labels: map[string]string{"a": hostile}}})
	record.Config.Process.Args = []string{hostile}
	for _, status := range []sandbox.Status{
		{ID: id, State: sandbox.StateExited, Error: hostile, Ports: []sandbox.Port{{HostIP: hostile, HostPort: 1, GuestPort: 1, Proto: hostile}},
			Denials: []sandbox.Denial{{Target: hostile, Reason: hostile, Hint: hostile}}, Denied: 1},
		{ID: id, State: sandbox.StateLost, Error: strings.Repeat(hostile, 1000)},
		{ID: id, State: sandbox.State(hostile), Error: hostile, Accel: hostile},
	} {
		write(filepath.Join(dir, "record.json"), record)
		write(filepath.Join(dir, "run", "status.json"), status)
		write(filepath.Join(dir, "settled"), "")
		for _, args := range [][]string{
			{"ps", "-a"}, {"ps", "-a", "--no-trunc"}, {"ps", "-a", "--format", "{{.Image}} {{.Status}} {{.Ports}} {{.State}} {{.Labels}}"},
			{"ps", "-a", "--format", "json"}, {"inspect", "web"}, {"inspect", "-f", "{{.Status}} {{.Record}}", "web"},
			{"inspect", "-f", "{{json .}}", "web"}, {"attach", "web"}, {"logs", "web"}, {"doctor"}, {"rm", "-f", "nobody" + hostile},
		} {
			var out bytes.Buffer
			cmd := creel(t, state, args...)
			cmd.Stdout, cmd.Stderr = &out, &out
			cmd.Run()
			for _, r := range out.String() {
				if unicode.IsControl(r) && r != '\n' && r != '\t' || r == '\u202e' || r == '\ufffd' {
					t.Fatalf("creel %q shows %q", args, out.String())
				}
			}
			if args[0] == "ps" && !strings.Contains(out.String(), "evil") {
				t.Errorf("creel %q shows %q, which is not of this sandbox", args, out.String())
			}
			if args[0] == "ps" && len(args) < 4 && out.Len() > 4<<10 {
				t.Errorf("creel %q fills the screen with %d bytes", args, out.Len())
			}
			if len(args) == 2 && args[0] == "ps" && strings.Contains(out.String(), "\nforged") {
				t.Errorf("creel %q has a forged row: %q", args, out.String())
			}
			if n := len(args); args[0] == "inspect" && n == 2 || args[n-1] == "json" {
				var v any
				if err := json.NewDecoder(&out).Decode(&v); err != nil {
					t.Errorf("creel %q is no JSON: %v", args, err)
				}
			}
		}
	}
}
