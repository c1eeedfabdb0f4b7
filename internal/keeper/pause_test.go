package keeper

import (
	"context"
	"strings"
	"testing"
	"time"

	"creel/internal/audit"
	"creel/internal/guest/api"
	"creel/internal/keeper/launch"
	"creel/internal/keeper/socket"
	"creel/internal/sandbox"
)

// What needs the guest is refused at once while it is paused, with what to do.
func TestPausedRefusesAtOnce(t *testing.T) {
	r, c := started(t, options{})
	if err := c.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	for what, act := range map[string]func() error{
		"exec":   func() error { _, err := c.Exec(t.Context(), sandbox.Process{Args: []string{"echo"}}); return err },
		"attach": func() error { _, err := c.Attach(t.Context(), socket.AttachRequest{Stdout: true}); return err },
		"signal": func() error { return c.Signal(t.Context(), 15) },
		"resize": func() error { return c.Resize(t.Context(), 24, 80) },
		"copy in": func() error {
			return c.CopyIn(t.Context(), api.CopyRequest{Path: "/"}, strings.NewReader("x"))
		},
		"copy out": func() error { _, err := c.CopyOut(t.Context(), "/x"); return err },
		"stat":     func() error { _, err := c.Stat(t.Context(), "/x"); return err },
		"usage":    func() error { _, err := c.Usage(t.Context()); return err },
	} {
		if err := act(); err == nil || !strings.Contains(err.Error(), "paused; unpause it first") {
			t.Errorf("%s: %v", what, err)
		}
	}
	if r.guest.signal.Load() != 0 || r.guest.ran.Load() != 1 {
		t.Error("the guest was asked")
	}
	if err := c.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Usage(t.Context()); err != nil {
		t.Errorf("after it: %v", err)
	}
}

// A paused sandbox is let go on to end.
func TestPausedEnds(t *testing.T) {
	for name, tc := range map[string]struct {
		end     func(*socket.Client) error
		code    int
		resumed bool
	}{
		"stop":           {func(c *socket.Client) error { return c.Stop(t.Context(), 0, time.Minute) }, 143, true},
		"kill":           {func(c *socket.Client) error { return c.Kill(t.Context()) }, 137, false},
		"signal SIGKILL": {func(c *socket.Client) error { return c.Signal(t.Context(), 9) }, 137, false},
	} {
		t.Run(name, func(t *testing.T) {
			r, c := started(t, options{})
			if err := c.Pause(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := tc.end(c); err != nil {
				t.Fatal(err)
			}
			want(t, r.final(c), tc.code)
			if paused := r.driver.Machines()[0].Paused(); paused == tc.resumed {
				t.Errorf("paused at its end: %v", paused)
			}
		})
	}
}

// A timeout ends a paused sandbox, too.
func TestPausedTimesOut(t *testing.T) {
	r, c := started(t, options{with: func(_ *rig, cfg *launch.Config, _ *Deps) { cfg.Spec.Timeout = 2 * time.Second }})
	if err := c.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	want(t, r.final(c), 143)
}

// What needs nothing of the guest does not wait for it to go on: rights above
// all can be taken away.
func TestPausedTakesWhatNeedsNoGuest(t *testing.T) {
	r, c := started(t, options{with: func(_ *rig, cfg *launch.Config, _ *Deps) {
		cfg.Spec.Policy = "version: 1\non_alert: end\nrules:\n  - {allow: a.test}\n"
	}})
	if err := c.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := c.SetSecrets(t.Context(), nil); err != nil {
		t.Errorf("secrets: %v", err)
	}
	if err := c.SetPolicy(t.Context(), ""); err != nil {
		t.Errorf("policy: %v", err)
	}
	if r.run.edge.EndOnAlert() {
		t.Error("the policy that was taken away is in force")
	}
	if err := c.Detach(t.Context(), true); err != nil {
		t.Errorf("detach: %v", err)
	}
	if err := c.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.final(c)
}

// hooked is a recorder that says what it is about to record.
type hooked struct {
	audit.Recorder
	before func(audit.Kind)
}

func (h hooked) Append(ctx context.Context, events ...audit.Event) error {
	for _, e := range events {
		h.before(e.Kind)
	}
	return h.Recorder.Append(ctx, events...)
}

// A pause that comes while an exec is put on record does not let it hang.
func TestPausedBetweenAnExecAndItsRecord(t *testing.T) {
	r, c := started(t, options{with: func(r *rig, _ *launch.Config, d *Deps) {
		d.Audit = hooked{d.Audit, func(kind audit.Kind) {
			if kind == audit.KindExec {
				r.run.setRunning(t.Context(), false, r.run.tellStep)
			}
		}}
	}})
	if _, err := c.Exec(t.Context(), sandbox.Process{Args: []string{"echo"}}); err == nil || !strings.Contains(err.Error(), "paused; unpause it first") {
		t.Errorf("exec: %v", err)
	}
	if r.guest.ran.Load() != 1 {
		t.Error("the guest was asked")
	}
	if err := c.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.final(c)
}
