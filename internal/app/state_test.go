package app

import (
	"bytes"
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"creel/internal/cli"
	"creel/internal/engine/store"
	"creel/internal/keeper/launch"
	"creel/internal/keeper/rundir"
	"creel/internal/sandbox"
)

func TestMain(m *testing.M) {
	Stages(os.Args) // what looks at the machine starts this program again
	os.Exit(m.Run())
}

// state is a state directory with one of everything that needs no machine.
type state struct {
	dir string
	id  sandbox.ID // of a kept sandbox that has ended
}

// use makes a directory the one that commands work on.
func use(t *testing.T, dir string) {
	t.Setenv("CREEL_STATE_DIR", dir)
	t.Setenv("CREEL_CONFIG", filepath.Join(dir, "none.yaml"))
	t.Setenv("CREEL_ACCEL", "tcg")
	t.Setenv("CREEL_STANDBY", "0")
}

// creel runs a command on the directory in use.
func creel(t *testing.T, args ...string) (code int, said string) {
	t.Helper()
	in, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	var out bytes.Buffer
	code = cli.Main(t.Context(), frontDoor("test", cli.Streams{In: in, Out: &out, Err: &out}), args)
	return code, out.String()
}

func newState(t *testing.T) state {
	t.Helper()
	s := state{filepath.Join(t.TempDir(), "state"), sandbox.NewID()}
	use(t, s.dir)
	rootfs := filepath.Join(t.TempDir(), "empty.tar")
	must(t, os.WriteFile(rootfs, make([]byte, 1024), 0o600))
	value := filepath.Join(t.TempDir(), "value")
	must(t, os.WriteFile(value, []byte("a value of some length"), 0o600))
	for _, args := range [][]string{
		{"image", "import", rootfs, "tiny"}, {"audit", "key", "rotate"},
		{"secret", "set", "api", "--host", "api.example.com", "--as", "bearer", "--from", "file:" + value},
	} {
		if code, said := creel(t, args...); code != 0 {
			t.Fatalf("creel %q: %s", args, said)
		}
	}
	at := filepath.Join(s.dir, "sandboxes", string(s.id))
	run := filepath.Join(at, "run")
	must(t, os.MkdirAll(run, 0o700))
	must(t, os.MkdirAll(filepath.Join(s.dir, "standby", "SOMETHING"), 0o700))
	must(t, os.MkdirAll(filepath.Join(s.dir, "templates"), 0o700))
	spec := sandbox.Spec{ID: s.id, Name: "otter", Image: "tiny", Keep: true, Tier: "trusted"}
	record, err := json.Marshal(store.NewRecord(launch.Config{Spec: spec}))
	must(t, err)
	entry, err := json.Marshal(rundir.Entry{Time: time.Now(), Stream: 1, Data: []byte("written\n")})
	must(t, err)
	must(t, rundir.WriteStatus(run, sandbox.Status{ID: s.id, Name: "otter", State: sandbox.StateExited, ExitCode: 7}))
	for path, text := range map[string][]byte{
		"names/otter": []byte(s.id), "lock": nil, "accel.json": []byte("{}"), "vmm.json": []byte("{}"), "tsc.json": []byte("{}"),
		"sandboxes/" + string(s.id) + "/record.json":  record,
		"sandboxes/" + string(s.id) + "/keeper.lock":  nil,
		"sandboxes/" + string(s.id) + "/keeper.log":   nil,
		"sandboxes/" + string(s.id) + "/scratch.img":  make([]byte, 4096),
		"sandboxes/" + string(s.id) + "/settled":      nil,
		"sandboxes/" + string(s.id) + "/run/task.log": append(entry, '\n'),
		"standby/SOMETHING/standby.json":              []byte("{}"),
	} {
		must(t, os.MkdirAll(filepath.Dir(filepath.Join(s.dir, path)), 0o700))
		must(t, os.WriteFile(filepath.Join(s.dir, path), text, 0o600))
	}
	return s
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// reading are commands that change nothing: by name, with what of a state
// directory each needs.
var reading = map[string]struct {
	args  []string
	needs []string
}{
	"ps":          {[]string{"ps", "-a"}, []string{"sandboxes"}},
	"ps -q":       {[]string{"ps", "-aq"}, []string{"sandboxes"}},
	"inspect":     {[]string{"inspect", "OTTER"}, []string{"sandboxes", "record"}},
	"logs":        {[]string{"logs", "OTTER"}, []string{"sandboxes", "log", "record"}},
	"image ls":    {[]string{"image", "ls"}, []string{"images"}},
	"template ls": {[]string{"template", "ls"}, []string{"templates"}},
	"secret ls":   {[]string{"secret", "ls"}, []string{"secrets", "ledger"}},
	"audit query": {[]string{"audit", "query"}, []string{"ledger"}},
	"tiers":       {[]string{"policy", "tiers"}, nil},
	"config":      {[]string{"config", "show"}, nil},
	"version":     {[]string{"version"}, nil},
}

// damages are the ways in which a file may be found.
var damages = map[string]func(path string) error{
	"flipped": func(path string) error {
		data, err := os.ReadFile(path)
		if err == nil && len(data) == 0 {
			data = []byte{0xff}
		} else if err == nil {
			data[len(data)/2] ^= 0xff
		}
		return overwrite(path, data, err)
	},
	"truncated": func(path string) error {
		data, err := os.ReadFile(path)
		return overwrite(path, data[:len(data)/2], err)
	},
	"empty":   func(path string) error { return overwrite(path, nil, nil) },
	"garbage": func(path string) error { return overwrite(path, bytes.Repeat([]byte("\x00\x1b[2J{"), 1000), nil) },
	"missing": os.RemoveAll,
	"a directory": func(path string) error {
		return replace(path, func() error { return os.MkdirAll(filepath.Join(path, "full"), 0o700) })
	},
	"a link":     func(path string) error { return replace(path, func() error { return os.Symlink("/dev/null", path) }) },
	"a pipe":     func(path string) error { return replace(path, func() error { return unix.Mkfifo(path, 0o600) }) },
	"a file":     func(path string) error { return replace(path, func() error { return os.WriteFile(path, nil, 0o600) }) },
	"unreadable": func(path string) error { return os.Chmod(path, 0) },
}

func overwrite(path string, data []byte, err error) error {
	if err != nil {
		return err
	}
	return replace(path, func() error { return os.WriteFile(path, data, 0o600) })
}

func replace(path string, with func() error) error {
	if err := os.RemoveAll(path); err != nil {
		return err
	}
	return with()
}

// kinds are the files and directories of docs/format/state.md, with what each
// is part of.
func (s state) kinds() map[string]string {
	at := "sandboxes/" + string(s.id) + "/"
	return map[string]string{
		"lock": "", "accel.json": "", "vmm.json": "", "tsc.json": "", "images/index.json": "images", "images/": "images", "kernels/": "",
		"templates/": "templates", "templates/0123456789abcdef0123456789abcdef/manifest.json": "templates", "scratch/": "",
		"secrets/api.json": "secrets", "secrets/": "secrets", "audit/": "ledger", "audit/ledger/": "ledger", "audit/key": "ledger",
		"names/otter": "", "names/": "", "standby/": "", "standby/SOMETHING/standby.json": "", "sandboxes/": "sandboxes",
		at: "sandbox", at + "record.json": "record", at + "keeper.lock": "", at + "keeper.log": "", at + "scratch.img": "", at + "settled": "",
		at + "run/": "log", at + "run/status.json": "", at + "run/task.log": "log",
	}
}

// Whatever is damaged in a state directory, a command that does not need it
// works, one that does says what to do, and `creel rm -f` leaves nothing of a
// sandbox and frees its name.
func TestDamagedState(t *testing.T) {
	s := newState(t)
	for kind, part := range s.kinds() {
		for way, damage := range damages {
			isDir := strings.HasSuffix(kind, "/")
			if isDir && way != "missing" && way != "a file" && way != "a link" || !isDir && way == "a file" || way == "a pipe" && !strings.Contains(kind, "/run/") || way == "unreadable" && os.Geteuid() == 0 {
				continue
			}
			t.Run(strings.ReplaceAll(kind, "/", "_")+" "+way, func(t *testing.T) {
				dir := filepath.Join(t.TempDir(), "state")
				s.copy(t, dir)
				use(t, dir)
				path := filepath.Join(dir, strings.TrimSuffix(kind, "/"))
				if _, err := os.Lstat(path); err != nil && part != "" && part != "templates" {
					t.Fatalf("the table has what is not there: %v", err)
				} else if err != nil {
					must(t, os.MkdirAll(filepath.Dir(path), 0o700))
					must(t, os.WriteFile(path, nil, 0o600))
				}
				must(t, damage(path))
				checkReading(t, s, part, way)
				checkRemoval(t, s, dir, part, way)
			})
		}
	}
}

// copy copies the whole state, for its user alone.
func (s state) copy(t *testing.T, dir string) {
	t.Helper()
	must(t, os.CopyFS(dir, os.DirFS(s.dir)))
	must(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return err
		}
		return os.Chmod(path, 0o700)
	}))
}

func checkReading(t *testing.T, s state, part, way string) {
	t.Helper()
	for name, c := range reading {
		if name == "version" && way != "missing" {
			continue // it starts programs
		}
		var args []string
		for _, a := range c.args {
			args = append(args, strings.ReplaceAll(a, "OTTER", string(s.id)))
		}
		code, said := creel(t, args...)
		needed := part == "sandbox" && strings.Contains(strings.Join(c.args, " "), "OTTER")
		for _, n := range c.needs {
			needed = needed || n == part
		}
		if code != 0 && !needed {
			t.Errorf("creel %s does not need it, and fails: %s", name, said)
		}
		if code != 0 && part != "ledger" && !strings.Contains(said, "`") && !strings.Contains(said, "look ") {
			t.Errorf("creel %s does not say what to do: %q", name, said)
		}
		if strings.Contains(said, "panic") || strings.Contains(said, "\x1b") {
			t.Errorf("creel %s: %q", name, said)
		}
	}
	if part == "" || way != "missing" && way != "garbage" && way != "a file" {
		return // it starts programs
	}
	named := map[string]string{
		"images": "fail  images", "record": "→ creel rm -f " + s.id.Short(), "sandboxes": "fail  sandboxes", "templates": "fail  templates",
		"ledger": "fail  record",
	}[part]
	if way == "missing" && part != "record" {
		named = "" // as on the first day
	}
	if _, said := creel(t, "doctor"); !strings.Contains(said, named) || !strings.Contains(said, "leftovers") {
		t.Errorf("creel doctor does not say %q: %s", named, said)
	}
}

func checkRemoval(t *testing.T, s state, dir, part, way string) {
	t.Helper()
	at := filepath.Join(dir, "sandboxes", string(s.id))
	if _, err := os.Lstat(at); err != nil || part == "ledger" || part == "sandboxes" {
		return // there is none; or nothing is done without a record
	}
	if part == "record" && way != "flipped" { // one that was flipped may still be read
		hint := "`creel rm -f " + s.id.Short() + "`"
		for _, args := range [][]string{{"rm", "otter"}, {"rename", "otter", "pike"}, {"receipt", "otter"}, {"ps", "-a"}} {
			if code, said := creel(t, args...); code == 0 && args[0] != "ps" || !strings.Contains(said, hint) {
				t.Errorf("creel %q: %d, %s; want %s", args, code, said, hint)
			}
		}
	}
	code, said := creel(t, "rm", "-f", string(s.id))
	if code != 0 && strings.Contains(said, "`rm -r ") {
		return // something else has to be mended first
	}
	if _, err := os.Lstat(at); err == nil {
		t.Errorf("creel rm -f leaves it: %d, %s", code, said)
	}
	if _, err := os.Lstat(filepath.Join(dir, "names", "otter")); err == nil && code == 0 {
		t.Errorf("creel rm -f leaves its name: %s", said)
	}
}

// A state directory that cannot be written is still read, and what may be out
// of date is said to be.
func TestReadOnlyState(t *testing.T) {
	s := newState(t)
	at := filepath.Join(s.dir, "sandboxes", string(s.id))
	must(t, os.Remove(filepath.Join(at, "settled"))) // its keeper was killed, and no command has run since
	must(t, rundir.WriteStatus(filepath.Join(at, "run"), sandbox.Status{ID: s.id, Name: "otter", State: sandbox.StateRunning}))
	use(t, readOnly(t, s.dir))
	for name, c := range reading {
		var args []string
		for _, a := range c.args {
			args = append(args, strings.ReplaceAll(a, "OTTER", "otter"))
		}
		code, said := creel(t, args...)
		if code != 0 {
			t.Errorf("creel %s: %d, %s", name, code, said)
		}
		warned := strings.Contains(said, "what is shown may be out of date")
		if slices.Contains(c.needs, "sandboxes") != warned {
			t.Errorf("creel %s: %s", name, said)
		}
	}
	for _, args := range [][]string{
		{"policy", "show", "otter"}, {"image", "inspect", "tiny"}, {"image", "save", "tiny"}, {"secret", "check"},
		{"audit", "verify"}, {"audit", "tail"}, {"audit", "export"}, {"audit", "checkpoint"}, {"audit", "key", "show"}, {"config", "path"},
	} {
		if code, said := creel(t, args...); code != 0 {
			t.Errorf("creel %q: %d, %s", args, code, said)
		}
	}
	if _, said := creel(t, "ps", "-a"); !strings.Contains(said, "Lost: its keeper has gone") {
		t.Errorf("a sandbox whose keeper has gone: %s", said)
	}
	if _, said := creel(t, "doctor"); !strings.Contains(said, "fail  permissions") || !strings.Contains(said, "warn  leftovers") {
		t.Errorf("creel doctor: %s", said)
	}
	for _, args := range [][]string{{"rm", "-f", "otter"}, {"image", "rm", "tiny"}, {"secret", "rm", "api"}, {"run", "tiny"}} {
		if code, said := creel(t, args...); code == 0 || !strings.Contains(said, "read-only file system") {
			t.Errorf("creel %q: %d, %s", args, code, said)
		}
	}
}

// readOnly is dir, mounted so that it cannot be written.
func readOnly(t *testing.T, dir string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can mount")
	}
	to := t.TempDir()
	if err := unix.Mount(dir, to, "", unix.MS_BIND, ""); err != nil {
		t.Skipf("mount: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(to, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	must(t, unix.Mount("", to, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	return to
}

// What says how far the ledger had come is missing: doctor says so, and so does
// each command that would put something on record, until one has.
func TestMissingHeadIsSaid(t *testing.T) {
	s := newState(t)
	use(t, s.dir)
	must(t, os.Remove(filepath.Join(s.dir, "audit", "head")))
	if code, said := creel(t, "doctor"); !strings.Contains(said, "warn  record") || !strings.Contains(said, "head is missing") {
		t.Errorf("creel doctor: %d, %s", code, said)
	}
	const anew = "made anew, on record"
	if code, said := creel(t, "ps"); code != 0 || !strings.Contains(said, anew) {
		t.Errorf("creel ps: %d, %s", code, said)
	}
	if code, said := creel(t, "rm", "-f", string(s.id)); code != 0 || !strings.Contains(said, anew) {
		t.Errorf("creel rm: %d, %s", code, said)
	}
	if code, said := creel(t, "ps"); code != 0 || strings.Contains(said, anew) {
		t.Errorf("creel ps, afterwards: %d, %s", code, said)
	}
	if code, said := creel(t, "audit", "query", "--kind", "head"); code != 0 || !strings.Contains(said, "head") {
		t.Errorf("creel audit query: %d, %s", code, said)
	}
}
