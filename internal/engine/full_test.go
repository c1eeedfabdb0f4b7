package engine

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"creel/internal/audit"
	"creel/internal/engine/store"
	"creel/internal/keeper/launch"
	"creel/internal/keeper/rundir"
	"creel/internal/sandbox"
	"creel/internal/undo"
)

// endedRun is a kept sandbox with a log of n records whose keeper has gone.
func endedRun(t *testing.T, e *Engine, l *ledger, n int) (Found, string) {
	t.Helper()
	rec := planNamed("otter", true)
	lock, err := e.reserve(&rec, &undo.Stack{}, nobodyWaits)
	if err != nil {
		t.Fatal(err)
	}
	id := rec.Config.Spec.ID
	dir := filepath.Join(e.store.Dir(id), store.AuditName)
	key, err := l.OpenSandbox(t.Context(), string(id), dir)
	if err != nil {
		t.Fatal(err)
	}
	log, err := audit.OpenLog(dir, key)
	if err != nil {
		t.Fatal(err)
	}
	for range n {
		if err := log.Append(t.Context(), audit.Event{Kind: audit.KindExec, Sandbox: string(id), Data: map[string]string{"x": strings.Repeat("x", 1<<10)}}); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(log.Close(), rundir.WriteStatus(e.store.KeeperDir(id), sandbox.Status{State: sandbox.StateExited})); err != nil {
		t.Fatal(err)
	}
	lock.Close()
	return Found{Record: rec.Record, Status: sandbox.Status{State: sandbox.StateExited}}, dir
}

// wantWhole fails where the verifier finds a fault, or another number of logs
// that wait for their closing.
func wantWhole(t *testing.T, e *Engine, l *ledger, aside, closed int) {
	t.Helper()
	public, err := l.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	r, err := audit.Verify(t.Context(), e.opts.AuditDir, public, audit.Options{Live: true})
	if err != nil || len(r.Faults) > 0 || r.Aside != aside || r.Closed != closed {
		t.Errorf("the verifier says %+v, %v; want %d aside, %d closed", r, err, aside, closed)
	}
}

// A removal while nothing can be recorded keeps the evidence, and the next
// command puts it on the ledger.
func TestRemovalWithoutRecordKeepsTheLog(t *testing.T) {
	l := &ledger{}
	e := engineIn(t.TempDir(), l)
	f, _ := endedRun(t, e, l, 3)
	l.fill(unix.ENOSPC)
	if _, err := e.Find(t.Context(), "otter"); err != nil { // settles it, in vain
		t.Fatal(err)
	}
	wantWhole(t, e, l, 0, 0)
	if err := e.Remove(t.Context(), f, true); !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "is kept until its closing can be recorded") {
		t.Errorf("error %v", err)
	}
	if e.store.Exists(f.Record.Config.Spec.ID) {
		t.Error("the sandbox is left")
	}
	wantWhole(t, e, l, 1, 0)
	if _, err := e.List(t.Context()); err != nil {
		t.Error(err)
	}
	wantWhole(t, e, l, 1, 0)
	l.fill(nil)
	if _, err := e.List(t.Context()); err != nil {
		t.Error(err)
	}
	wantWhole(t, e, l, 0, 1)
}

// Where the log can be kept nowhere else, the sandbox stays.
func TestRemovalThatWouldDestroyTheLogIsRefused(t *testing.T) {
	l := &ledger{}
	e := engineIn(t.TempDir(), l)
	f, log := endedRun(t, e, l, 3)
	if err := os.Remove(filepath.Join(e.opts.AuditDir, "unclosed")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(e.opts.AuditDir, "unclosed"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	l.fill(unix.ENOSPC)
	if err := e.Remove(t.Context(), f, true); err == nil || !strings.Contains(err.Error(), "is kept, since") {
		t.Errorf("error %v", err)
	}
	if _, err := os.Stat(filepath.Join(log, audit.LogName)); err != nil {
		t.Errorf("the log is gone: %v", err)
	}
	l.fill(nil)
	os.Remove(filepath.Join(e.opts.AuditDir, "unclosed"))
	if err := e.Remove(t.Context(), f, true); err != nil {
		t.Error(err)
	}
	wantWhole(t, e, l, 0, 1)
}

// What a killed command left is removed whether or not that can be recorded: it
// may hold the room.
func TestReconcileOnAFullDisk(t *testing.T) {
	dir, l := t.TempDir(), &ledger{}
	e := engineIn(dir, l)
	cmd, _ := hold(t, dir, "otter")
	cmd.Process.Kill()
	cmd.Wait()
	l.fill(unix.ENOSPC)
	if err := e.Reconcile(t.Context()); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("error %v", err)
	}
	if left, err := os.ReadDir(filepath.Join(dir, "sandboxes")); err != nil || len(left) != 0 {
		t.Errorf("left are %v, %v", left, err)
	}
}

// On a file system that is really full, the same: a sandbox that holds the room
// gives it back and is closed at once; where something else holds it, later.
func TestRemovalOnAFullDisk(t *testing.T) {
	for name, frees := range map[string]bool{"the sandbox holds the room": true, "something else does": false} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
				t.Skipf("a small file system cannot be mounted: %v", err)
			}
			t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
			l := &ledger{}
			e := engineIn(dir, l)
			t.Cleanup(func() { l.Ledger.Close() })
			f, _ := endedRun(t, e, l, 200)
			ballast := filepath.Join(dir, "ballast")
			if frees {
				ballast = filepath.Join(e.store.Dir(f.Record.Config.Spec.ID), launch.DiskName)
			}
			b, err := os.Create(ballast)
			for err == nil {
				_, err = b.Write(make([]byte, 4<<10))
			}
			b.Close()
			if !errors.Is(err, unix.ENOSPC) {
				t.Fatal(err)
			}
			err = e.Remove(t.Context(), f, true)
			if e.store.Exists(f.Record.Config.Spec.ID) {
				t.Errorf("the sandbox is left: %v", err)
			}
			if frees {
				if err != nil {
					t.Error(err)
				}
				wantWhole(t, e, l, 0, 1)
				return
			}
			if !errors.Is(err, unix.ENOSPC) {
				t.Errorf("error %v", err)
			}
			wantWhole(t, e, l, 1, 0)
			if err := os.Remove(ballast); err != nil {
				t.Fatal(err)
			}
			if err := e.Reconcile(t.Context()); err != nil {
				t.Error(err)
			}
			wantWhole(t, e, l, 0, 1)
		})
	}
}

// On a full disk a command about one sandbox says nothing of the others, and one
// that lists them says it once, in one line.
func TestWhatIsSaidOfLeftovers(t *testing.T) {
	l := &ledger{}
	e := engineIn(t.TempDir(), l)
	var said strings.Builder
	e.opts.Log = slog.New(slog.NewTextHandler(&said, &slog.HandlerOptions{Level: slog.LevelWarn}))
	endedRun(t, e, l, 1)
	for _, name := range []string{"pike", "perch"} {
		rec := planNamed(name, true)
		lock, err := e.reserve(&rec, &undo.Stack{}, nobodyWaits)
		if err != nil {
			t.Fatal(err)
		}
		lock.Close()
	}
	l.fill(unix.ENOSPC)
	if _, err := e.Find(t.Context(), "otter"); err != nil || said.String() != "" {
		t.Errorf("%v, said %q", err, said.String())
	}
	for range 2 {
		if all, err := e.List(t.Context()); err != nil || len(all) != 3 {
			t.Errorf("%d sandboxes, %v", len(all), err)
		}
	}
	if n := strings.Count(said.String(), "\n"); n != 1 || strings.Contains(said.String(), `\n`) {
		t.Errorf("%d lines: %s", n, said.String())
	}
}
