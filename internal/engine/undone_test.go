package engine

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"creel/internal/audit"
	"creel/internal/engine/store"
	"creel/internal/keeper/rundir"
	"creel/internal/sandbox"
	"creel/internal/scratch"
	"creel/internal/undo"
)

// noScratch is a disk that cannot be made: fail is called first.
func noScratch(fail func()) func(context.Context, string, int64, scratch.Kind) error {
	return func(context.Context, string, int64, scratch.Kind) error {
		fail()
		return unix.ENOSPC
	}
}

// blockAside has nothing be set aside, until it is called.
func blockAside(t *testing.T, e *Engine) (unblock func()) {
	t.Helper()
	aside := filepath.Join(e.opts.AuditDir, "unclosed")
	if err := errors.Join(os.Remove(aside), os.WriteFile(aside, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	return func() { os.Remove(aside) }
}

// A launch that is undone while nothing can be recorded keeps its log until that
// can be closed, where a removal would.
func TestUndoneLaunchKeepsItsLog(t *testing.T) {
	for name, aside := range map[string]bool{"set aside": true, "kept in its place": false} {
		t.Run(name, func(t *testing.T) {
			l := &ledger{}
			e := engineIn(t.TempDir(), l)
			e.opts.Scratch = noScratch(func() { l.fill(unix.ENOSPC) })
			unblock := func() {}
			if !aside {
				unblock = blockAside(t, e)
			}
			rec := planNamed("otter", false)
			_, err := e.make(t.Context(), rec, network{}, nobodyWaits)
			if err == nil || !strings.Contains(err.Error(), "make the writable disk") || !strings.Contains(err.Error(), "is kept") {
				t.Errorf("error %v", err)
			}
			if e.store.Exists(rec.Config.Spec.ID) == aside {
				t.Errorf("the directory is there: %v", !aside)
			}
			unblock()
			if aside {
				wantWhole(t, e, l, 1, 0)
			} else {
				wantWhole(t, e, l, 0, 0)
			}
			l.fill(nil)
			if err := e.Reconcile(t.Context()); err != nil {
				t.Error(err)
			}
			wantWhole(t, e, l, 0, 1)
			if e.store.Exists(rec.Config.Spec.ID) {
				t.Error("the directory is left")
			}
		})
	}
}

// An opening that is on record though its call failed is closed as well.
func TestUndoneLaunchClosesWhatFailedBehindTheRecord(t *testing.T) {
	l := &ledger{}
	e := engineIn(t.TempDir(), l)
	head := filepath.Join(e.opts.AuditDir, audit.HeadName)
	if err := l.Append(t.Context(), audit.Event{Kind: audit.KindAdmitted}); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(head)
	if err != nil {
		t.Fatal(err)
	}
	l.opening = func() { os.Remove(head); os.Mkdir(head, 0o700) } // it is noted last
	l.opened = func() { os.Remove(head); os.WriteFile(head, before, 0o600) }
	if _, err := e.make(t.Context(), planNamed("otter", false), network{}, nobodyWaits); err == nil {
		t.Fatal("it was made")
	}
	wantWhole(t, e, l, 0, 1)
}

// The same of a helper's: what its undoing could not do is said.
func TestUndoneHelperKeepsItsLog(t *testing.T) {
	l := &ledger{}
	e := engineIn(t.TempDir(), l)
	f, _ := endedRun(t, e, l, 3)
	if err := e.settle(t.Context(), f.Record); err != nil {
		t.Fatal(err)
	}
	e.opts.KeeperCommand = []string{"/nonexistent"}
	l.opened = func() { l.fill(unix.ENOSPC) }
	if _, err := e.Files(t.Context(), f); !errors.Is(err, fs.ErrNotExist) || !errors.Is(err, unix.ENOSPC) {
		t.Errorf("error %v", err)
	}
	wantWhole(t, e, l, 1, 1)
	l.fill(nil)
	// Another's log is where the first was, and is no part of it.
	l.opened = nil
	dir := filepath.Join(e.store.Dir(f.Record.Config.Spec.ID), store.AuditName+".1")
	if _, err := l.OpenSandbox(t.Context(), string(f.Record.Config.Spec.ID), dir); err != nil {
		t.Fatal(err)
	}
	if err := e.Reconcile(t.Context()); err != nil {
		t.Error(err)
	}
	wantWhole(t, e, l, 0, 2)
	if err := e.Remove(t.Context(), f, false); err != nil {
		t.Error(err)
	}
	wantWhole(t, e, l, 0, 3)
}

// A sandbox that runs and has lost its record is shown, ended and removed like
// one whose record is damaged.
func TestRunningSandboxWithoutItsRecord(t *testing.T) {
	l := &ledger{}
	e := engineIn(t.TempDir(), l)
	e.patience, e.leaves = 100*time.Millisecond, 200*time.Millisecond
	f, keeper, child := deafKeeper(t, e, sandbox.StateRunning, innocent(t).Process.Pid)
	id := f.Record.Config.Spec.ID
	if _, err := l.OpenSandbox(t.Context(), string(id), filepath.Join(e.store.Dir(id), store.AuditName)); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(e.store.Dir(id), "record.json")); err != nil {
		t.Fatal(err)
	}
	found, err := e.FindAny(t.Context(), "otter")
	if err != nil || found.Damage == "" || !found.Running() {
		t.Fatalf("found %+v, %v", found, err)
	}
	if damaged, err := e.Damaged(); err != nil || len(damaged) != 1 {
		t.Errorf("damaged are %v, %v", damaged, err)
	}
	if err := e.Remove(t.Context(), found, false); err == nil || !lives(keeper.Process.Pid) {
		t.Errorf("without force: %v", err)
	}
	waited := make(chan error, 1)
	go func() { waited <- keeper.Wait() }() // a killed child is there until it is waited for
	if err := e.Remove(t.Context(), found, true); err != nil {
		t.Error(err)
	}
	<-waited
	if lives(child) || lives(keeper.Process.Pid) {
		t.Error("its processes live")
	}
	if e.store.Exists(id) {
		t.Error("it is left")
	}
	wantWhole(t, e, l, 0, 1)
}

// Nobody but `rm -f` takes away what has lost its record with its log unclosed,
// whoever of it is left.
func TestEndedSandboxWithoutItsRecordKeepsItsLog(t *testing.T) {
	l := &ledger{}
	e := engineIn(t.TempDir(), l)
	f, _ := endedRun(t, e, l, 3)
	id := f.Record.Config.Spec.ID
	if err := os.Remove(filepath.Join(e.store.Dir(id), "record.json")); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := e.Reconcile(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := e.remove(t.Context(), id); err == nil {
		t.Error("removed as if it had never been complete")
	}
	wantWhole(t, e, l, 0, 0)
	found, err := e.FindAny(t.Context(), "otter")
	if err != nil || found.Running() {
		t.Fatalf("found %+v, %v", found, err)
	}
	if err := e.Remove(t.Context(), found, true); err != nil {
		t.Error(err)
	}
	wantWhole(t, e, l, 0, 1)
}

// A launcher that is just making a sandbox is not disturbed.
func TestSandboxThatIsBeingMadeIsNotDamaged(t *testing.T) {
	e := engineIn(t.TempDir(), &ledger{})
	rec := planNamed("otter", false)
	lock, err := e.store.MakeDir(&rec.Record, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if all, err := e.List(t.Context()); err != nil || len(all) != 0 {
		t.Errorf("listed %+v, %v", all, err)
	}
	if !e.store.Exists(rec.Config.Spec.ID) {
		t.Error("its directory was removed")
	}
}

// A removal that is killed at any point leaves nothing that looks damaged.
func TestRemovalTakesTheRecordBehindWhatNeedsIt(t *testing.T) {
	e := engineIn(t.TempDir(), &ledger{})
	rec := planNamed("otter", true)
	lock, err := e.reserve(&rec, &undo.Stack{}, nobodyWaits)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	dir := e.store.Dir(rec.Config.Spec.ID)
	for _, stuck := range []string{store.AuditName, store.AuditName + ".1", store.ProcessName, "settled"} { // cannot be removed
		stuck = filepath.Join(dir, stuck)
		if err := os.Mkdir(stuck, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("tmpfs", stuck, "tmpfs", 0, ""); err != nil {
			t.Skipf("nothing can be mounted: %v", err)
		}
		err := e.store.RemoveDir(rec.ID())
		unix.Unmount(stuck, unix.MNT_DETACH)
		if err == nil {
			t.Fatal("it was removed")
		}
		if _, err := e.store.Read(rec.Config.Spec.ID); err != nil {
			t.Errorf("the record goes before %s: %v", filepath.Base(stuck), err)
		}
		if err := os.Remove(stuck); err != nil {
			t.Fatal(err)
		}
	}
	if err := e.store.RemoveDir(rec.ID()); err != nil || e.store.Exists(rec.Config.Spec.ID) {
		t.Errorf("it is left: %v", err)
	}
}

// What a keeper said of its end is gone: that it has ended is not.
func TestEndedSandboxWithoutItsStatus(t *testing.T) {
	l := &ledger{}
	e := engineIn(t.TempDir(), l)
	f, _ := endedRun(t, e, l, 1)
	if err := e.settle(t.Context(), f.Record); err != nil {
		t.Fatal(err)
	}
	run := e.store.KeeperDir(f.Record.Config.Spec.ID)
	if _, err := rundir.ReadStatus(run); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(run, "status.json")); err != nil {
		t.Fatal(err)
	}
	found, err := e.Find(t.Context(), "otter")
	if err != nil || found.Running() || found.Status.State != sandbox.StateLost || found.Status.Name != "otter" {
		t.Fatalf("found %+v, %v", found, err)
	}
	if err := e.Remove(t.Context(), found, false); err != nil {
		t.Error(err)
	}
}
