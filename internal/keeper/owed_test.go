package keeper

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"creel/internal/audit"
	"creel/internal/audit/event"
	"creel/internal/audit/query"
	"creel/internal/guest/api"
	"creel/internal/keeper/launch"
	"creel/internal/keeper/socket"
	"creel/internal/sandbox"
	"creel/internal/wire"

	"golang.org/x/sys/unix"
)

// ways are those to end a run or to take something away from it. Ended is the
// exit code where it is over then.
var ways = map[string]struct {
	args  []string
	do    func(context.Context, *rig, *socket.Client) error
	kind  string // on record once that can be; "": nothing is
	ended int
}{
	"signal": {nil, func(ctx context.Context, _ *rig, c *socket.Client) error { return c.Signal(ctx, int(unix.SIGTERM)) }, "signal", 143},
	"kill":   {nil, func(ctx context.Context, _ *rig, c *socket.Client) error { return c.Signal(ctx, sigkill) }, "signal", 137},
	"kill what takes no signals": {[]string{"deaf"}, func(ctx context.Context, _ *rig, c *socket.Client) error {
		return c.Signal(ctx, sigkill)
	}, "signal", 137},
	"stop":                       {nil, func(ctx context.Context, _ *rig, c *socket.Client) error { return c.Stop(ctx, 0, time.Second) }, "signal", 143},
	"stop what takes no signals": {[]string{"deaf"}, func(ctx context.Context, _ *rig, c *socket.Client) error { return c.Stop(ctx, 0, time.Millisecond) }, "signal", 137},
	"end the machine":            {nil, func(ctx context.Context, _ *rig, c *socket.Client) error { return c.Kill(ctx) }, "signal", 137},
	"end the keeper":             {nil, func(_ context.Context, r *rig, _ *socket.Client) error { r.stop(); return nil }, "", 125},
	"pause":                      {nil, func(ctx context.Context, _ *rig, c *socket.Client) error { return c.Pause(ctx) }, "step:pause", -1},
	"policy": {nil, func(ctx context.Context, _ *rig, c *socket.Client) error {
		return c.SetPolicy(ctx, "")
	}, "policy", -1},
}

func quickly(d *deadlines) { d.kill = 50 * time.Millisecond }

// Ending a run, and taking something away, does not depend on a record.
func TestTakingAwayNeedsNoRecord(t *testing.T) {
	for name, way := range ways {
		t.Run(name, func(t *testing.T) {
			r, c := started(t, options{args: way.args, limit: quickly})
			defer time.AfterFunc(20*time.Second, r.stop).Stop() // one that does not end fails, and does not hang
			before := len(r.audit.kinds())
			r.audit.failAll(true)
			if err := way.do(t.Context(), r, c); err != nil {
				t.Error(err)
			}
			if way.ended < 0 {
				if s, err := c.Status(t.Context()); err != nil || s.Paused != (name == "pause") {
					t.Errorf("status %+v, %v", s, err)
				}
				r.audit.failAll(false)
				if err := c.Kill(t.Context()); err != nil {
					t.Error(err)
				}
				r.final(c)
			} else {
				if s := r.final(c); s.ExitCode != way.ended {
					t.Errorf("ended with %+v", s)
				}
			}
			after := r.audit.kinds()[before:]
			kind, _, _ := strings.Cut(way.kind, ":")
			if way.kind != "" && !has(after, way.kind) && exitOf(t, r).Unrecorded[audit.Kind(kind)] == 0 {
				t.Errorf("it never came on record: %v", after)
			}
		})
	}
}

// What never came on record, the record of the end says.
func TestTheEndSaysWhatIsNotOnRecord(t *testing.T) {
	r, c := started(t, options{args: []string{"deaf"}, limit: quickly}) // it is not over before the last
	r.audit.failOnly(audit.KindSignal)
	if err := errors.Join(c.Signal(t.Context(), int(unix.SIGUSR1)), c.Kill(t.Context())); err != nil {
		t.Fatal(err)
	}
	r.final(c)
	if exit := exitOf(t, r); exit.Unrecorded[audit.KindSignal] != 2 {
		t.Errorf("%+v", exit)
	}
}

func exitOf(t *testing.T, r *rig) event.Exit {
	t.Helper()
	for _, e := range r.audit.events {
		if exit, ok := e.Data.(event.Exit); ok {
			return exit
		}
	}
	t.Error("the end is not on record")
	return event.Exit{}
}

func TestTimeoutNeedsNoRecord(t *testing.T) {
	r, c := begin(t, options{
		with:  func(_ *rig, cfg *launch.Config, _ *Deps) { cfg.Spec.Timeout = 20 * time.Millisecond },
		limit: quickly,
	})
	if _, err := c.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.audit.failOnly(audit.KindSignal)
	if err := c.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s := r.final(c); !s.TimedOut || s.ExitCode != 143 {
		t.Errorf("%+v", s)
	}
}

// A guest that does not answer at the end has no more time after a timeout than
// a timeout leaves.
func TestTimeoutDoesNotWaitForTheGuestsGoodbye(t *testing.T) {
	silent := &script{answer: func(ctx context.Context, s *wire.Stream) bool {
		if s.Op() == api.OpUsage {
			<-ctx.Done()
			return true
		}
		return false
	}}
	r, c := begin(t, options{
		guest: silent,
		with:  func(_ *rig, cfg *launch.Config, _ *Deps) { cfg.Spec.Timeout = 20 * time.Millisecond },
		limit: func(d *deadlines) { d.goodbye, d.last = time.Hour, 50*time.Millisecond },
	})
	if err := c.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s := r.final(c); !s.TimedOut {
		t.Errorf("%+v", s)
	}
}

// A guest that has used up its log's quota keeps nobody from anything but from
// giving it more.
func TestFullQuota(t *testing.T) {
	for name, way := range ways {
		t.Run(name, func(t *testing.T) {
			home := filepath.Join(t.TempDir(), "audit")
			ledger, err := audit.OpenLedger(home)
			if err != nil {
				t.Fatal(err)
			}
			defer ledger.Close()
			ledger.MaxLog = audit.MinMaxLog
			at := t.TempDir()
			var log *audit.Log
			r, c := started(t, options{args: way.args, limit: quickly, with: func(_ *rig, cfg *launch.Config, d *Deps) {
				key, err := ledger.OpenSandbox(t.Context(), string(cfg.Spec.ID), at)
				if err != nil {
					t.Fatal(err)
				}
				if log, err = audit.OpenLog(at, key); err != nil {
					t.Fatal(err)
				}
				d.Audit = log
			}})
			id := string(r.run.cfg.Spec.ID)
			if s, err := c.Status(t.Context()); err != nil || s.AuditFull != "" {
				t.Errorf("status %+v, %v", s, err)
			}
			for _, size := range []int{4 << 10, 0} { // to the last byte
				guest := audit.Event{Kind: event.KindLookup, Data: event.Destination{Host: strings.Repeat("x", size)}}
				for err = nil; err == nil; {
					err = r.run.deps.Audit.Append(t.Context(), guest)
				}
				if !errors.Is(err, audit.ErrQuota) {
					t.Fatal(err)
				}
			}
			if s, err := c.Status(t.Context()); err != nil || !strings.HasPrefix(s.AuditFull, "its audit log is full (1 MiB): the task reaches nothing more") {
				t.Errorf("status %+v, %v", s, err)
			}
			if x, err := c.Exec(t.Context(), sandbox.Process{Args: []string{"echo", "x"}}); err != nil {
				t.Errorf("exec: %v", err)
			} else {
				x.Close()
			}
			if err := way.do(t.Context(), r, c); err != nil {
				t.Error(err)
			}
			if way.ended < 0 {
				if err := c.Kill(t.Context()); err != nil {
					t.Error(err)
				}
			}
			if s := r.final(c); s.AuditFull == "" {
				t.Errorf("the last status is %+v", s)
			}
			if err := errors.Join(log.Close(), ledger.CloseSandbox(t.Context(), id, at)); err != nil {
				t.Fatal(err)
			}
			var kinds []string
			for rec, err := range query.Records(t.Context(), home, query.Filter{Sandbox: id}) {
				if err != nil {
					t.Fatal(err)
				}
				var step event.Step
				kind := string(rec.Kind)
				if json.Unmarshal(rec.Data, &step); rec.Kind == event.KindStep {
					kind += ":" + step.Step
				}
				kinds = append(kinds, kind)
			}
			for _, kind := range []string{way.kind, "exec", "exit", "cleanup", "closed"} {
				if kind != "" && !slices.Contains(kinds, kind) {
					t.Errorf("no %s on record: %d kinds, the last %v", kind, len(kinds), kinds[max(0, len(kinds)-8):])
				}
			}
		})
	}
}

// A log that has no more room for visitors is not full for the task.
func TestFullForVisitors(t *testing.T) {
	disk := &quotaRecord{visitors: true}
	stale := make(chan struct{}, 1)
	room := &heeded{Recorder: disk, log: slog.New(slog.DiscardHandler), stale: stale}
	room.Append(t.Context())
	if words := room.words(); !strings.Contains(words, "(8 MiB)") || !strings.Contains(words, "the task goes on") {
		t.Errorf("it says %q", words)
	}
	select {
	case <-stale:
	default:
		t.Error("the written status is not renewed")
	}
	disk.visitors = false
	failed := false
	if room.Note(func(error) { failed = true }); !failed || !strings.Contains(room.words(), "is full (8 MiB)") {
		t.Errorf("failed %v, it says %q", failed, room.words())
	}
}

// quotaRecord is a record without room.
type quotaRecord struct{ visitors bool }

func (q *quotaRecord) Append(context.Context, ...audit.Event) error {
	return fmt.Errorf("write: %w", &audit.QuotaError{Bytes: 8 << 20, Visitors: q.visitors})
}

func (q *quotaRecord) Note(failed func(error), _ ...audit.Event) {
	failed(q.Append(context.Background()))
}

// A keeper says which policy is in force, whoever put it there.
func TestPolicyInForce(t *testing.T) {
	const before = "version: 1\nrules: [{allow: a.test}]\n"
	_, c := started(t, options{with: func(_ *rig, cfg *launch.Config, _ *Deps) { cfg.Spec.Policy = before }})
	if got, err := c.Policy(t.Context()); err != nil || got != before {
		t.Errorf("in force is %q, %v; it started with %q", got, err, before)
	}
	if err := c.SetPolicy(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	if got, err := c.Policy(t.Context()); err != nil || got != "" {
		t.Errorf("in force is %q, %v, after it was taken away", got, err)
	}
}
