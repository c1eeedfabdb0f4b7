package keeper

import (
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"creel/internal/audit/event"
	"creel/internal/guest/api"
	"creel/internal/keeper/launch"
	"creel/internal/keeper/rundir"
	"creel/internal/keeper/socket"
	"creel/internal/sandbox"
)

// Who detaches leaves a task whose stdin goes on with the next client, and
// whose output from then on is kept.
func TestDetachedRunGoesOn(t *testing.T) {
	r, c := begin(t, options{args: []string{"cat"}})
	stdin, _ := attach(t, c, everything)
	if err := c.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	io.WriteString(stdin, "before ")
	other := r.dial()
	att, err := other.Attach(t.Context(), socket.AttachRequest{Stdin: true, EndsStdin: true, Stdout: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Detach(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	c.Close()
	awaitFeeds(t, 1) // the end of its stdin has been dealt with before anybody types on
	const after = "after"
	if _, err := io.WriteString(att.Stdin, after); err != nil {
		t.Fatal(err)
	}
	out := make([]byte, 0, 64)
	for buf := make([]byte, 64); !strings.HasSuffix(string(out), after); {
		n, err := att.Stdout.Read(buf)
		if err != nil {
			t.Fatalf("%q, %v", out, err)
		}
		out = append(out, buf[:n]...)
	}
	if err := other.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.final(other)
	var kept strings.Builder
	if err := rundir.ReadLog(r.dir, func(e rundir.Entry) error { kept.Write(e.Data); return nil }); err != nil || !strings.HasSuffix(kept.String(), after) {
		t.Errorf("the log has %q, %v", kept.String(), err)
	}
	if !has(r.audit.kinds(), "step:detach") {
		t.Errorf("records %v", r.audit.kinds())
	}
}

// awaitFeeds waits until no more than n clients write to tasks.
func awaitFeeds(t *testing.T, n int) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond) // no event tells of a goroutine's end
	defer tick.Stop()
	buf := make([]byte, 4<<20)
	for strings.Count(string(buf[:runtime.Stack(buf, true)]), "keeper.(*Run).feed(") > n {
		select {
		case <-tick.C:
		case <-t.Context().Done():
			t.Fatal("a client that has gone still writes to the task")
		}
	}
}

// With keep the disk is written out at the end; without it the run goes on and
// keeps nothing.
func TestDetachedRunKeepsWhatWasAskedFor(t *testing.T) {
	for _, keep := range []bool{true, false} {
		r, c := started(t, options{})
		if err := c.Detach(t.Context(), keep); err != nil {
			t.Fatal(err)
		}
		c.Close()
		other := r.dial()
		if err := other.Signal(t.Context(), 15); err != nil {
			t.Fatal(err)
		}
		want(t, r.final(other), 143)
		_, err := os.Stat(filepath.Join(r.dir, "task.log"))
		if (err == nil) != keep || r.guest.synced.Load() != keep {
			t.Errorf("keep %v: the log: %v, the disk is written out: %v", keep, err, r.guest.synced.Load())
		}
	}
}

// A process beside the task ends with its client, but for one that was told to
// go on.
func TestDetachedExecGoesOn(t *testing.T) {
	for _, detached := range []bool{true, false} {
		ended := make(chan struct{})
		r, c := started(t, options{guest: &script{closed: func(args []string) {
			if args[0] == "deaf" {
				close(ended)
			}
		}}})
		other := r.dial()
		x, err := other.Exec(t.Context(), sandbox.Process{Args: []string{"deaf"}, Interactive: true})
		if err != nil {
			t.Fatal(err)
		}
		if detached {
			if err := x.Detach(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		x.Close()
		other.Close()
		r.awaitClients(1)
		if detached {
			select {
			case <-ended:
				t.Error("it ended with its client")
			default:
			}
		} else {
			<-ended
		}
		if err := c.Stop(t.Context(), 9, time.Millisecond); err != nil {
			t.Fatal(err)
		}
		r.final(c)
	}
}

// What the user typed wrong is answered without the names of what it came through.
func TestErrorsAreNamedOnce(t *testing.T) {
	r, c := started(t, options{})
	defer r.final(c)
	defer c.Stop(t.Context(), 9, time.Millisecond)
	_, err := c.Exec(t.Context(), sandbox.Process{Args: []string{"nosuch"}})
	if err == nil || err.Error() != "nosuch: not found" || api.ErrorCode(err) != api.CodeNotFound {
		t.Errorf("%v, of class %s", err, api.ErrorCode(err))
	}
	// An agent that names the operation itself is not named after it.
	if _, err := c.Exec(t.Context(), sandbox.Process{Args: []string{"exec: nosuch"}}); err == nil || err.Error() != "nosuch: not found" {
		t.Error(err)
	}
	if _, err := c.Exec(t.Context(), sandbox.Process{Args: []string{"script.txt"}}); err == nil || strings.Contains(err.Error(), "guest: ") {
		t.Error(err)
	}
}

// on_alert ends a task that is about to give something away, and not one that
// asks for many names: of those none has left.
func TestOnlyMarksEndATaskOnAlert(t *testing.T) {
	r, c := started(t, options{with: func(_ *rig, cfg *launch.Config, _ *Deps) {
		cfg.Spec.Policy = "version: 1\non_alert: end\nrules:\n  - {allow: a.test}\n"
	}})
	r.run.alerted(event.Alert{Alert: event.AlertNames, Name: "a.test"})
	if status, err := c.Status(t.Context()); err != nil || status.State != sandbox.StateRunning || status.Alerts != 1 {
		t.Errorf("after many names: %+v, %v", status, err)
	}
	r.run.alerted(event.Alert{Alert: "canary", Name: "git", Destination: event.Destination{Host: "a.test"}})
	want(t, r.final(c), 125, "canary", "git")
}
