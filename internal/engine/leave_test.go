package engine

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"creel/internal/audit"
	"creel/internal/audit/event"
	"creel/internal/durable"
	"creel/internal/engine/store"
	"creel/internal/guest/api"
	"creel/internal/keeper/launch"
	"creel/internal/keeper/rundir"
	"creel/internal/keeper/socket"
	"creel/internal/procs"
	"creel/internal/sandbox"
	"creel/internal/scratch"
	"creel/internal/undo"
	"creel/internal/wire"
)

// reserved is a sandbox whose lock is held until the returned file is closed.
func reserved(t *testing.T, e *Engine, rec plan) *durable.Lock {
	t.Helper()
	lock, err := e.reserve(&rec, &undo.Stack{}, nobodyWaits)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { lock.Close() })
	return lock
}

// Who changes a part of a record leaves the others' changes in it, whatever they
// had read before.
func TestARecordIsChangedAsItIs(t *testing.T) {
	e := engineIn(t.TempDir(), &ledger{})
	rec := planNamed("otter", false)
	reserved(t, e, rec)
	id := rec.Config.Spec.ID
	found, err := e.Find(t.Context(), "otter")
	if err != nil {
		t.Fatal(err)
	}
	s := &Sandbox{plan: plan{Record: found.Record}, Client: keeperThat(t, id, nil), engine: e}
	s.Record.Config.Spec.KeepDetached = true
	if err := errors.Join(e.Rename(found, "pike"), s.Detach(t.Context()), e.notePolicy(id, "version: 1\n")); err != nil {
		t.Fatal(err)
	}
	now, err := e.store.Read(id)
	if spec := now.Config.Spec; err != nil || spec.Name != "pike" || !spec.Keep || spec.Policy != "version: 1\n" {
		t.Errorf("the record has %+v, %v", spec, err)
	}
	if left, err := os.ReadDir(filepath.Join(e.opts.Dir, "names")); err != nil || len(left) != 1 || left[0].Name() != "pike" {
		t.Errorf("names: %v, %v", left, err)
	}
}

// keeperThat is a client of a keeper that answers a detach with an error or
// without.
func keeperThat(t *testing.T, id sandbox.ID, refuses *api.Error) *socket.Client {
	t.Helper()
	ours, theirs := net.Pipe()
	keeper := wire.NewConn(theirs, wire.Options{Handler: func(ctx context.Context, s *wire.Stream) {
		if s.Op() == socket.OpHello {
			s.Send(ctx, socket.HelloReply{Version: socket.Version, ID: id})
			return
		}
		s.Send(ctx, api.Reply{Error: refuses})
	}})
	c, err := socket.NewClient(t.Context(), ours, id)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); keeper.Close() })
	return c
}

// The record says that a sandbox is kept once its keeper does.
func TestDetachAsksTheKeeperFirst(t *testing.T) {
	for name, c := range map[string]struct {
		keep    bool
		refuses *api.Error
		want    bool
	}{
		"kept":     {true, nil, true},
		"not kept": {false, nil, false},
		"refused":  {true, &api.Error{Code: api.CodeInvalid, Message: "it has ended"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			e := engineIn(t.TempDir(), &ledger{})
			rec := planNamed("otter", false)
			rec.Config.Spec.KeepDetached = c.keep
			reserved(t, e, rec)
			s := &Sandbox{plan: rec, Client: keeperThat(t, rec.Config.Spec.ID, c.refuses), engine: e}
			if err := s.Detach(t.Context()); (err != nil) != (c.refuses != nil) {
				t.Errorf("error %v", err)
			}
			if now, err := e.store.Read(rec.Config.Spec.ID); err != nil || now.Config.Spec.Keep != c.want {
				t.Errorf("keep is %v, %v", now.Config.Spec.Keep, err)
			}
		})
	}
}

// A disk that may come to be kept is one that survives its VM.
func TestWhatMayBeKeptIsDurable(t *testing.T) {
	for spec, want := range map[struct{ keep, later bool }]scratch.Kind{
		{false, false}: scratch.Disposable, {true, false}: scratch.Durable, {false, true}: scratch.Durable,
	} {
		if got := diskKind(sandbox.Spec{Keep: spec.keep, KeepDetached: spec.later}); got != want {
			t.Errorf("%+v: %s", spec, got)
		}
	}
}

// A run that has ended in order is released by the next command where nobody
// else does, and was not lost.
func TestARunThatEndedIsNotLost(t *testing.T) {
	for state, lost := range map[sandbox.State]int{sandbox.StateExited: 0, sandbox.StateRunning: 1} {
		l := &ledger{}
		e := engineIn(t.TempDir(), l)
		rec := planNamed("otter", false)
		lock := reserved(t, e, rec)
		if err := rundir.WriteStatus(e.store.KeeperDir(rec.Config.Spec.ID), sandbox.Status{State: state}); err != nil {
			t.Fatal(err)
		}
		lock.Close()
		if err := e.Reconcile(t.Context()); err != nil {
			t.Error(err)
		}
		if e.store.Exists(rec.Config.Spec.ID) || l.count(event.KindLost) != lost || l.count(audit.KindCleanup) != 1 {
			t.Errorf("%s: on the ledger is %v", state, l.kinds)
		}
	}
}

// That a sandbox is lost is said once, however often its removal fails.
func TestLostIsSaidOnce(t *testing.T) {
	l := &ledger{}
	e := engineIn(t.TempDir(), l)
	rec := planNamed("otter", false)
	reserved(t, e, rec).Close()
	unclosed := filepath.Join(e.opts.AuditDir, "unclosed")
	id := rec.Config.Spec.ID
	if _, err := l.OpenSandbox(t.Context(), string(id), filepath.Join(e.store.Dir(id), store.AuditName)); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.RemoveAll(unclosed), os.WriteFile(unclosed, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	l.open = errors.New("cannot be closed")
	for range 3 {
		if err := e.Reconcile(t.Context()); err == nil || !e.store.Exists(rec.Config.Spec.ID) {
			t.Fatalf("it was removed: %v", err)
		}
	}
	l.open = nil
	if err := os.Remove(unclosed); err != nil {
		t.Fatal(err)
	}
	if err := e.Reconcile(t.Context()); e.store.Exists(rec.Config.Spec.ID) {
		t.Errorf("it is left: %v", err)
	}
	if n := l.count(event.KindLost); n != 1 {
		t.Errorf("it was said %d times", n)
	}
}

// What cannot be said before a removal is said after it: there may be room then.
func TestLostIsSaidOnceThereIsRoom(t *testing.T) {
	l := &ledger{}
	e := engineIn(t.TempDir(), l)
	rec := planNamed("otter", false)
	reserved(t, e, rec)
	l.fill(unix.ENOSPC)
	err := e.removeLost(t.Context(), rec.Config.Spec.ID, "a test", func() error { l.fill(nil); return nil })
	if err != nil || l.count(event.KindLost) != 1 {
		t.Errorf("on the ledger is %v, %v", l.kinds, err)
	}
}

// What a sandbox's own user still runs is ended, and nobody else's.
func TestEndUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can be another user")
	}
	e := engineIn(t.TempDir(), &ledger{})
	const uid = 0x70000000 + 4711
	start := func(uid uint32) (*exec.Cmd, chan error) {
		cmd := exec.Command("/bin/cat") // until its input ends
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		t.Cleanup(func() { in.Close() })
		return cmd, ended
	}
	_, first := start(uid)
	_, second := start(uid)
	other, _ := start(uid + 1)
	if n, err := e.endUser(uid); n != 2 || err != nil {
		t.Errorf("ended %d, %v", n, err)
	}
	for _, ended := range []chan error{first, second} {
		select {
		case <-ended:
		case <-time.After(20 * time.Second):
			t.Error("a process of the user lives")
		}
	}
	if !lives(other.Process.Pid) {
		t.Error("another user's process was ended")
	}
	for _, own := range []int{0, os.Geteuid(), 0x70000000 - 1, 0x70000000 + 1<<27} {
		if n, err := e.endUser(own); n != 0 || err != nil {
			t.Errorf("user %d: ended %d, %v", own, n, err)
		}
	}
}

// A keeper that has gone is not said to have been sent a signal.
func TestNobodyEndedIsNoSignal(t *testing.T) {
	l := &ledger{}
	e := engineIn(t.TempDir(), l)
	rec := planNamed("otter", true)
	reserved(t, e, rec)
	gone := innocent(t)
	who, err := procs.Identify(gone.Process.Pid)
	if err := errors.Join(err, gone.Process.Kill(), noteKeeper(e.store.Dir(rec.Config.Spec.ID), who)); err != nil {
		t.Fatal(err)
	}
	gone.Wait()
	if err := e.endKeeper(t.Context(), rec.Record); err != nil || l.count(audit.KindSignal) != 0 {
		t.Errorf("on the ledger is %v, %v", l.kinds, err)
	}
}

// A lock that cannot be taken keeps nobody from removing a sandbox with force,
// unless somebody has it.
func TestRemoveWithoutALock(t *testing.T) {
	e := engineIn(t.TempDir(), &ledger{})
	e.leaves = 100 * time.Millisecond
	rec := planNamed("otter", true)
	reserved(t, e, rec).Close()
	f := Found{Record: rec.Record, Status: sandbox.Status{State: sandbox.StateExited}}
	lock := filepath.Join(e.store.Dir(rec.Config.Spec.ID), launch.LockName)
	if err := errors.Join(os.Remove(lock), os.Mkdir(lock, 0o700)); err != nil {
		t.Fatal(err)
	}
	if err := e.Remove(t.Context(), f, false); err == nil || !strings.Contains(err.Error(), "rm -f") {
		t.Errorf("without force: %v", err)
	}
	held, err := os.Open(lock)
	if err == nil {
		err = unix.Flock(int(held.Fd()), unix.LOCK_EX)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Remove(t.Context(), f, true); err == nil || !e.store.Exists(rec.Config.Spec.ID) {
		t.Errorf("it was removed while somebody holds it: %v", err)
	}
	held.Close()
	if err := e.Remove(t.Context(), f, true); err != nil || e.store.Exists(rec.Config.Spec.ID) {
		t.Errorf("with force: %v", err)
	}
}

// What a keeper has written, or who has taken it over, does not end it in the
// eyes of others: the lock tells whether it lives.
func TestWhatIsWrittenEndsNoKeeper(t *testing.T) {
	e := engineIn(t.TempDir(), &ledger{})
	e.leaves = 100 * time.Millisecond
	p := planNamed("otter", true)
	lock := reserved(t, e, p)
	status := filepath.Join(e.store.KeeperDir(p.ID()), "status.json")
	for _, text := range []string{"", "{\"state\":", "garbage"} {
		if err := os.WriteFile(status, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := e.Find(t.Context(), "otter")
		if err != nil || !f.Running() || f.Status.Error == "" {
			t.Errorf("%q: %+v, %v", text, f.Status, err)
		}
	}
	if err := rundir.WriteStatus(e.store.KeeperDir(p.ID()), sandbox.Status{State: sandbox.StateExited}); err != nil {
		t.Fatal(err)
	}
	f, err := e.Find(t.Context(), "otter")
	if err != nil || f.Running() {
		t.Fatalf("%+v, %v", f.Status, err)
	}
	if err := e.ConfirmEnd(t.Context(), f); err == nil || !strings.Contains(err.Error(), "rm -f") {
		t.Errorf("it is held to have ended: %v", err)
	}
	lock.Close()
	if err := e.ConfirmEnd(t.Context(), f); err != nil {
		t.Errorf("it has ended: %v", err)
	}
}
