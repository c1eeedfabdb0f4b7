package integration

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"creel/test/rig"

	"golang.org/x/sys/unix"
)

// auditCopy copies the shared rig's audit directory, for a test to spoil.
func auditCopy(t *testing.T, r *rig.Rig) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "audit")
	if err := os.CopyFS(dir, os.DirFS(filepath.Join(r.State, "audit"))); err != nil {
		t.Fatal(err)
	}
	return dir
}

// replaceIn changes the first place in one of the files that has old.
func replaceIn(t *testing.T, files []string, old, new string) {
	t.Helper()
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if changed := bytes.Replace(data, []byte(old), []byte(new), 1); !bytes.Equal(changed, data) {
			if err := os.WriteFile(file, changed, 0o600); err != nil {
				t.Fatal(err)
			}
			return
		}
	}
	t.Fatalf("%q is in none of %v", old, files)
}

func glob(t *testing.T, pattern string) []string {
	t.Helper()
	files, err := filepath.Glob(pattern)
	if err != nil || len(files) == 0 {
		t.Fatalf("%s: %v, %v", pattern, files, err)
	}
	return files
}

// What happened to a task is on record in order, whole, and signed for; a
// change of any of it shows.
func TestRecordOfARunIsWholeAndTamperingShows(t *testing.T) {
	r := machines(t)
	out := t.TempDir()
	receipt, key, checkpoint := filepath.Join(out, "receipt.json"), filepath.Join(out, "key.pub"), filepath.Join(out, "checkpoint")
	token := "gh" + "p_" + strings.Repeat("aB3x", 9)
	got := r.Run(t, "run", "--name", "audited", "--receipt", receipt, "--allow", "api.example.com", "debian", "sh", "-c", "exit 3", token)
	if got.Code != 3 {
		t.Fatalf("exit code %d: %s", got.Code, got.Err)
	}
	write := func(file, text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(key, r.Must(t, "audit", "key", "show"))
	write(checkpoint, r.Must(t, "audit", "checkpoint"))

	var kinds []string
	for line := range strings.Lines(r.Must(t, "audit", "query", "--sandbox", "audited", "--json")) {
		var rec struct{ Kind string }
		if err := json.Unmarshal([]byte(line), &rec); err != nil {
			t.Fatal(err)
		}
		if strings.Contains(line, token) {
			t.Errorf("a token is on record: %s", line)
		}
		if rec.Kind != "step" && !slices.Contains([]string{"opened", "closed"}, rec.Kind) {
			kinds = append(kinds, rec.Kind)
		}
	}
	if want := []string{"admitted", "template", "policy", "confined", "started", "exit", "cleanup", "cleanup"}; !slices.Equal(kinds, want) {
		t.Errorf("on record: %v, want %v", kinds, want)
	}
	said := r.Must(t, "receipt", "verify", receipt, "--key", key)
	for _, want := range []string{"exit code     3", "tier          trusted", "full; keeper: seccomp", "nothing; looked for", "sha256:"} {
		if !strings.Contains(said, want) {
			t.Errorf("the receipt does not say %q:\n%s", want, said)
		}
	}
	again := filepath.Join(out, "again.json")
	write(again, r.Must(t, "receipt", "audited")) // its sandbox is gone
	r.Must(t, "receipt", "verify", again)
	whole := auditCopy(t, r)
	r.Must(t, "audit", "verify", whole, "--key", key, "--expect", receipt, "--expect", checkpoint)

	for name, c := range map[string]struct {
		spoil func(dir string)
		want  string
	}{
		"ledger edited": {func(dir string) {
			replaceIn(t, glob(t, dir+"/ledger/*"), `"name":"audited"`, `"name":"audlted"`)
		}, "edited"},
		"log edited": {func(dir string) { replaceIn(t, glob(t, dir+"/logs/*"), `"exitCode":3`, `"exitCode":0`) }, "edited"},
		"log removed": {func(dir string) {
			for _, f := range glob(t, dir+"/logs/*") {
				os.Remove(f)
			}
		}, "is missing"},
		"end cut off": {func(dir string) {
			segments := glob(t, dir+"/ledger/*")
			last := segments[len(segments)-1]
			data, err := os.ReadFile(last)
			if err != nil {
				t.Fatal(err)
			}
			lines := bytes.SplitAfter(data, []byte("\n"))
			write(last, string(bytes.Join(lines[:len(lines)-3], nil))) // the last commit: a record and its checkpoint
		}, "cut off"},
	} {
		dir := auditCopy(t, r)
		c.spoil(dir)
		got := r.Run(t, "audit", "verify", dir, "--key", key, "--expect", receipt, "--expect", again, "--expect", checkpoint)
		if got.Code != 1 || !strings.Contains(got.Out, c.want) {
			t.Errorf("%s: exit code %d, %q does not say %q", name, got.Code, got.Out, c.want)
		}
	}

	forgeReceipt(t, receipt)
	if got := r.Run(t, "receipt", "verify", receipt, "--key", key); got.Code != 1 || !strings.Contains(got.Err, "not signed by") {
		t.Errorf("a forged receipt: exit code %d: %s", got.Code, got.Err)
	}
}

// forgeReceipt makes a receipt claim another tier.
func forgeReceipt(t *testing.T, file string) {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var e map[string]any
	if err := json.Unmarshal(data, &e); err != nil {
		t.Fatal(err)
	}
	var payload []byte
	if err := json.Unmarshal([]byte(`"`+e["payload"].(string)+`"`), &payload); err != nil {
		t.Fatal(err)
	}
	e["payload"] = bytes.Replace(payload, []byte(`"tier":"trusted"`), []byte(`"tier":"trustee"`), 1)
	if data, err = json.Marshal(e); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// Files that go in and out are on the receipt by the digest of their archive.
func TestReceiptHasTheFilesThatCrossed(t *testing.T) {
	r := machines(t)
	name := background(t, r, "--tier", "restricted", "--pids-limit", "64", "--timeout", "10m", "debian", "sleep", "600")
	if got := r.Run(t, "receipt", name); got.Code != 1 || !strings.Contains(got.Err, "has not ended") {
		t.Errorf("a receipt of a task that runs: exit code %d: %s", got.Code, got.Err)
	}
	in := filepath.Join(t.TempDir(), "note")
	if err := os.WriteFile(in, []byte("hello\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	r.Must(t, "cp", in, name+":/note")
	archive := r.Must(t, "cp", name+":/note", "-")
	r.Must(t, "exec", name, "true")
	r.Must(t, "kill", name)
	r.Must(t, "wait", name)
	file := filepath.Join(t.TempDir(), "receipt.json")
	if err := os.WriteFile(file, []byte(r.Must(t, "receipt", name)), 0o600); err != nil {
		t.Fatal(err)
	}
	var said struct {
		Tier              string
		ExitCode          int
		FilesIn, FilesOut []struct{ Path, Digest string }
		Cleanup           struct {
			Complete bool
			Kept     []string
		}
	}
	if err := json.Unmarshal([]byte(r.Must(t, "receipt", "verify", file, "--json")), &said); err != nil {
		t.Fatal(err)
	}
	if said.Tier != "restricted" || said.ExitCode != 137 || !said.Cleanup.Complete || len(said.Cleanup.Kept) == 0 {
		t.Errorf("the receipt says %+v", said)
	}
	if len(said.FilesIn) != 1 || len(said.FilesOut) != 1 || said.FilesOut[0].Path != "/note" ||
		said.FilesOut[0].Digest != "sha256:"+sha256Hex([]byte(archive)) {
		t.Errorf("in %v, out %v", said.FilesIn, said.FilesOut)
	}
	if show := r.Must(t, "policy", "show", name); !strings.Contains(show, "tier restricted") || !strings.Contains(show, "version: 1") {
		t.Errorf("policy show: %s", show)
	}
}

// A ledger that takes no more records stops everything: the disk that it is on
// is full, or read-only.
func TestNothingStartsWithoutARecord(t *testing.T) {
	r := machines(t)
	if os.Geteuid() != 0 {
		t.Skip("mounting a small file system needs root")
	}
	state := t.TempDir()
	for _, name := range []string{"images", "templates", "kernels", "scratch"} {
		if err := os.Symlink(filepath.Join(r.State, name), filepath.Join(state, name)); err != nil {
			t.Fatal(err)
		}
	}
	at := filepath.Join(state, "audit")
	if err := os.Mkdir(at, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("none", at, "tmpfs", 0, "size=128k"); err != nil {
		t.Skipf("mount: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(at, 0); err != nil {
			t.Error(err)
		}
	})
	run := func() (string, error) {
		cmd := r.Cmd("run", "debian", "echo", "it ran")
		cmd.Env = append(cmd.Env, "CREEL_STATE_DIR="+state)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	if out, err := run(); err != nil || !strings.Contains(out, "it ran") {
		t.Fatalf("with room: %v: %s", err, out)
	}
	fill, err := os.Create(filepath.Join(at, "fill"))
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = fill.Write(make([]byte, 512))
	}
	fill.Close()
	for _, how := range []string{"full", "read-only"} {
		if how == "read-only" {
			if err := unix.Mount("none", at, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
				t.Fatal(err)
			}
		}
		out, err := run()
		if err == nil || strings.Contains(out, "it ran") {
			t.Errorf("%s: it ran: %s", how, out)
		}
		if !strings.Contains(out, "ledger") && !strings.Contains(out, "record") {
			t.Errorf("%s: it does not say why: %s", how, out)
		}
		if left, _ := os.ReadDir(filepath.Join(state, "sandboxes")); len(left) > 0 {
			t.Errorf("%s: there is %v", how, left)
		}
	}
}
