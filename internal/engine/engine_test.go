package engine

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"creel/internal/audit"
	"creel/internal/engine/store"
	"creel/internal/keeper/launch"
	"creel/internal/keeper/socket"
	"creel/internal/sandbox"
	"creel/internal/standby"
	"creel/internal/undo"
)

// holdEnv makes the test binary reserve a sandbox, say so, and hold it.
const holdEnv = "CREEL_TEST_HOLD"

func TestMain(m *testing.M) {
	if dir := os.Getenv(deafEnv); dir != "" {
		beDeaf(dir)
	}
	if spec := os.Getenv(holdEnv); spec != "" {
		dir, name, _ := strings.Cut(spec, "|")
		rec := planNamed(strings.TrimPrefix(name, "keep:"), strings.HasPrefix(name, "keep:"))
		lock, err := engineIn(dir, &ledger{}).reserve(&rec, &undo.Stack{}, nobodyWaits)
		if err != nil {
			fmt.Println("refused")
			os.Exit(0)
		}
		fmt.Println(rec.Config.Spec.ID, rec.UID)
		io.Copy(io.Discard, os.Stdin)
		lock.Close()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// ledger is a real one that notes what is asked of it.
type ledger struct {
	*audit.Ledger
	mu     sync.Mutex
	kinds  []string
	closed []string
	full   error // of every record, while it is set

	opening, opened func() // around each opening, unless nil
	open            error  // of every closing, while it is set
}

func (l *ledger) OpenSandbox(ctx context.Context, id, dir string) (audit.SandboxKey, error) {
	if l.opening != nil {
		l.opening()
	}
	key, err := l.Ledger.OpenSandbox(ctx, id, dir)
	if l.opened != nil {
		l.opened()
	}
	return key, err
}

// count is how many records of a kind came.
func (l *ledger) count(kind audit.Kind) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, k := range l.kinds {
		if k == string(kind) {
			n++
		}
	}
	return n
}

func (l *ledger) fill(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.full = err
}

func (l *ledger) Append(ctx context.Context, events ...audit.Event) error {
	l.mu.Lock()
	full := l.full
	for _, e := range events {
		if full == nil {
			l.kinds = append(l.kinds, string(e.Kind))
		}
	}
	l.mu.Unlock()
	if full != nil {
		return full
	}
	return l.Ledger.Append(ctx, events...)
}

func (l *ledger) CloseSandbox(ctx context.Context, id, dir string) error {
	l.mu.Lock()
	full := errors.Join(l.full, l.open)
	if full == nil {
		l.closed = append(l.closed, id)
	}
	l.mu.Unlock()
	if full != nil {
		return full
	}
	return l.Ledger.CloseSandbox(ctx, id, dir)
}

func (l *ledger) CloseAside(ctx context.Context) error {
	l.mu.Lock()
	full := l.full
	l.mu.Unlock()
	if full != nil {
		return full
	}
	return l.Ledger.CloseAside(ctx)
}

func engineIn(dir string, l *ledger) *Engine {
	at := filepath.Join(dir, "audit")
	var err error
	if l.Ledger, err = audit.OpenLedger(at); err != nil {
		panic(err)
	}
	return New(Options{Dir: dir, Ledger: l, AuditDir: at, Standby: &standby.Pool{}, Log: slog.New(slog.DiscardHandler)})
}

func namePath(e *Engine, name string) string { return filepath.Join(e.opts.Dir, "names", name) }

func planNamed(name string, keep bool) plan {
	rec := store.NewRecord(launch.Config{Spec: sandbox.Spec{ID: sandbox.NewID(), Name: name, Keep: keep}})
	return plan{Record: rec, auditDir: store.AuditName}
}

// hold starts a process that reserves name; it answers with what it said.
func hold(t *testing.T, dir, name string) (*exec.Cmd, string) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), holdEnv+"="+dir+"|"+name)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); cmd.Process.Kill(); cmd.Wait() })
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return cmd, strings.TrimSpace(line)
}

func TestNamesAndUsersAcrossProcesses(t *testing.T) {
	dir := t.TempDir()
	var mu sync.Mutex
	said := map[string]int{}
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			_, line := hold(t, dir, "otter")
			mu.Lock()
			defer mu.Unlock()
			if line == "refused" {
				said[line]++
				return
			}
			said["reserved"]++
		})
	}
	all.Wait()
	if said["reserved"] != 1 || said["refused"] != 3 {
		t.Errorf("of four processes: %v", said)
	}
	e := engineIn(dir, &ledger{})
	uids := map[int]bool{}
	for n := range 20 {
		rec := planNamed(fmt.Sprintf("n%d", n), false)
		lock, err := e.reserve(&rec, &undo.Stack{}, nobodyWaits)
		if err != nil {
			t.Fatal(err)
		}
		defer lock.Close()
		if os.Geteuid() == 0 && (uids[rec.UID] || !store.OwnUser(rec.UID)) {
			t.Errorf("user %d was handed out twice, or is no sandbox's", rec.UID)
		}
		uids[rec.UID] = true
	}
}

func TestReconcileAfterKill(t *testing.T) {
	for name, tc := range map[string]struct {
		name string
		kept bool
	}{"disposable": {"otter", false}, "kept": {"keep:otter", true}} {
		t.Run(name, func(t *testing.T) {
			dir, l := t.TempDir(), &ledger{}
			e := engineIn(dir, l)
			cmd, _ := hold(t, dir, tc.name)
			before, err := e.List(t.Context())
			if err != nil || len(before) != 1 {
				t.Fatalf("while it is held: %d, %v", len(before), err)
			}
			cmd.Process.Kill()
			cmd.Wait()
			if n, err := e.Leftovers(); n != 1 || err != nil {
				t.Errorf("%d leftovers, %v", n, err)
			}
			after, err := e.List(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if !tc.kept {
				if len(after) != 0 || !cmp.Equal(l.kinds[:1], []string{"lost"}) {
					t.Errorf("left %d, on record %v", len(after), l.kinds)
				}
				if entries, _ := os.ReadDir(filepath.Join(dir, "names")); len(entries) != 0 {
					t.Error("the name is left")
				}
				return
			}
			if len(after) != 1 || after[0].Status.State != sandbox.StateLost || after[0].Status.ExitCode != 125 || len(l.closed) != 1 {
				t.Fatalf("after: %+v, closed %v", after, l.closed)
			}
			if _, err := e.List(t.Context()); err != nil || len(l.closed) != 1 {
				t.Errorf("it was settled twice: %v, %v", l.closed, err)
			}
			for range 2 { // to itself it is no fault
				if err := e.Rename(after[0], "pike"); err != nil {
					t.Fatal(err)
				}
			}
			if err := e.store.TakeName("pike", sandbox.NewID()); err == nil || strings.Contains(err.Error(), "--name") {
				t.Errorf("a name that is taken: %v", err) // rename has no such flag
			}
			f, err := e.Find(t.Context(), string(after[0].Record.Config.Spec.ID[:8]))
			if err != nil || f.Record.Config.Spec.Name != "pike" {
				t.Errorf("found %+v, %v", f, err)
			}
			if err := e.Remove(t.Context(), f, false); err != nil {
				t.Error(err)
			}
			if _, err := e.Find(t.Context(), "pike"); !errors.Is(err, errdefs.ErrNotFound) {
				t.Errorf("after removal: %v", err)
			}
		})
	}
}

// What a kill leaves of a reservation: each prefix of what reserve makes.
func TestReconcileHalfMadeSandboxes(t *testing.T) {
	dir := t.TempDir()
	e := engineIn(dir, &ledger{})
	bare, locked := sandbox.NewID(), sandbox.NewID()
	for _, id := range []sandbox.ID{bare, locked} {
		if err := os.Mkdir(e.store.Dir(id), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	os.WriteFile(filepath.Join(e.store.Dir(locked), launch.LockName), nil, 0o600)
	os.WriteFile(namePath(e, "torn"), nil, 0o600) // killed between making and writing it
	os.WriteFile(namePath(e, "stale"), []byte(sandbox.NewID()), 0o600)
	if err := e.Reconcile(t.Context()); err != nil {
		t.Fatal(err)
	}
	if entries, _ := os.ReadDir(filepath.Join(dir, "sandboxes")); len(entries) != 0 {
		t.Errorf("%d directories are left", len(entries))
	}
	for _, name := range []string{"torn", "stale"} {
		rec := planNamed(name, false)
		var steps undo.Stack
		lock, err := e.reserve(&rec, &steps, nobodyWaits)
		if err != nil {
			t.Errorf("the name %q is lost for ever: %v", name, err)
			continue
		}
		lock.Close()
		if err := steps.Unwind(); err != nil {
			t.Error(err)
		}
	}
}

// A sandbox that another creel made, or whose record is damaged, is left alone
// and keeps nobody from the others.
func TestRecordsThatCannotBeReadAreLeftAlone(t *testing.T) {
	e := engineIn(t.TempDir(), &ledger{})
	newer, garbage, fine := planNamed("newer", true), planNamed("garbage", true), planNamed("fine", true)
	for _, rec := range []*plan{&newer, &garbage, &fine} {
		lock, err := e.reserve(rec, &undo.Stack{}, nobodyWaits)
		if err != nil {
			t.Fatal(err)
		}
		defer lock.Close()
	}
	newer.Version++
	if err := e.store.Write(newer.Record); err != nil {
		t.Fatal(err)
	}
	id := garbage.Config.Spec.ID
	if err := os.WriteFile(filepath.Join(e.store.Dir(id), "record.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	found, err := e.List(t.Context())
	if err != nil || len(found) != 3 {
		t.Fatalf("found %+v, %v", found, err)
	}
	for _, f := range found {
		if name := f.Record.Config.Spec.Name; (f.Damage == "") != (name == "fine") {
			t.Errorf("%s: damage %q", name, f.Damage)
		}
	}
	for _, rec := range []plan{newer, garbage} {
		if _, err := os.Stat(e.store.Dir(rec.Config.Spec.ID)); err != nil {
			t.Errorf("%s is gone: %v", rec.Config.Spec.Name, err)
		}
	}
}

// A keeper that a guest has taken over can lay what it likes into its own
// directory. Each of these would make a careless reader follow, wait or fail.
func TestWhatAKeeperLeavesIsNotTrusted(t *testing.T) {
	for name, lay := range map[string]func(path string) error{
		"a pipe":          func(p string) error { return unix.Mkfifo(p, 0o666) },
		"a link":          func(p string) error { return os.Symlink("/etc/passwd", p) },
		"a directory":     func(p string) error { return os.MkdirAll(filepath.Join(p, "full"), 0o755) },
		"garbage":         func(p string) error { return os.WriteFile(p, []byte("{"), 0o600) },
		"another's words": func(p string) error { return os.WriteFile(p, []byte(`{"id":"x","name":"y","state":"running"}`), 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			e := engineIn(t.TempDir(), &ledger{})
			rec := planNamed("otter", true)
			lock, err := e.reserve(&rec, &undo.Stack{}, nobodyWaits)
			if err != nil {
				t.Fatal(err)
			}
			run := e.store.KeeperDir(rec.Config.Spec.ID)
			for _, file := range []string{"status.json", "status.json.new", socket.Name} {
				if err := lay(filepath.Join(run, file)); err != nil {
					t.Fatal(err)
				}
			}
			lock.Close() // the keeper dies
			found, err := e.Find(t.Context(), "otter")
			if err != nil || found.Record.Config.Spec.Name != "otter" || found.Status.Name != "otter" || found.Running() {
				t.Errorf("found %+v, %v", found, err)
			}
			if _, err := os.Stat(filepath.Join(e.store.Dir(rec.Config.Spec.ID), "settled")); err != nil {
				t.Errorf("it is not settled: %v", err)
			}
			if err := e.Remove(t.Context(), found, false); err != nil {
				t.Error(err)
			}
			if _, err := os.Stat("/etc/passwd"); err != nil {
				t.Error(err)
			}
		})
	}
}

// What a command leaves of names that was killed between two steps is removed by
// the next one, and nothing else is.
func TestAbandonedNamesAreRemoved(t *testing.T) {
	e := engineIn(t.TempDir(), &ledger{})
	rec := planNamed("otter", true)
	lock, err := e.reserve(&rec, &undo.Stack{}, nobodyWaits)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	other := planNamed("starting", false)
	if err := os.Mkdir(e.store.Dir(other.Config.Spec.ID), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, id := range map[string]string{
		"gone": string(sandbox.NewID()), "gone.1234": string(sandbox.NewID()), "empty.1234": "",
		"renamed": string(rec.Config.Spec.ID), "starting": string(other.Config.Spec.ID),
	} {
		if err := os.WriteFile(namePath(e, name), []byte(id), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := e.Reconcile(t.Context()); err != nil {
		t.Fatal(err)
	}
	left, err := os.ReadDir(filepath.Join(e.opts.Dir, "names"))
	if err != nil || len(left) != 1 || left[0].Name() != "otter" {
		t.Errorf("left are %v, %v", left, err)
	}
}

// Between the record and the keeper's socket a sandbox is there and nobody
// answers yet.
func TestConnectToOneThatStarts(t *testing.T) {
	e := engineIn(t.TempDir(), &ledger{})
	rec := planNamed("otter", false)
	lock, err := e.reserve(&rec, &undo.Stack{}, nobodyWaits)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	found, err := e.Find(t.Context(), "otter")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.Connect(t.Context(), found); err == nil || !strings.Contains(err.Error(), "still starting") {
		t.Errorf("error %v", err)
	}
}

// A keeper tells its clients of the end before it goes: a removal right behind
// that waits for it.
func TestRemoveWaitsForAKeeperThatLeaves(t *testing.T) {
	e := engineIn(t.TempDir(), &ledger{})
	rec := planNamed("otter", true)
	lock, err := e.reserve(&rec, &undo.Stack{}, nobodyWaits)
	if err != nil {
		t.Fatal(err)
	}
	ended := Found{Record: rec.Record, Status: sandbox.Status{State: sandbox.StateExited}}
	removed := make(chan error, 1)
	go func() { removed <- e.Remove(t.Context(), ended, false) }()
	select {
	case err := <-removed:
		t.Fatalf("it did not wait: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	lock.Close()
	if err := <-removed; err != nil {
		t.Error(err)
	}
}
