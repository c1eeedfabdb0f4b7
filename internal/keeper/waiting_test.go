package keeper

import (
	"context"
	"creel/internal/keeper/launch"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"creel/internal/guest/api"
	"creel/internal/sandbox"
	"creel/internal/vm"
	"creel/internal/wire"
)

// waitsFor makes a rig's machine one that waited, and was prepared or not.
func waitsFor(t *testing.T, guest *script, confine func(*Waiting) error) options {
	return options{args: []string{"exit", "0"}, guest: guest, with: func(r *rig, _ *launch.Config, d *Deps) {
		parts, _ := d.Parts(t.Context())
		w, err := Restore(t.Context(), r.driver, vm.Config{}, parts)
		if err != nil {
			t.Fatal(err)
		}
		w.Prepare()
		d.Waiting, d.Driver = w, nil // nothing else is started
		if confine != nil {
			d.Confine = func() error { return confine(w) }
		}
	}}
}

// What the guest of a waiting VM says is not read before the keeper is locked
// in.
func TestWaitingGuestIsNotHeardBeforeConfinement(t *testing.T) {
	var prepared atomic.Bool
	guest := &script{answer: func(ctx context.Context, s *wire.Stream) bool {
		if s.Op() != api.OpPrepare {
			return false
		}
		prepared.Store(true)
		s.Send(ctx, api.Reply{})
		return true
	}}
	confined := false
	r, c := begin(t, waitsFor(t, guest, func(w *Waiting) error {
		for deadline := time.Now().Add(10 * time.Second); !prepared.Load() && time.Now().Before(deadline); {
			time.Sleep(time.Millisecond)
		}
		time.Sleep(50 * time.Millisecond) // the answer has been there for a while
		select {
		case err := <-w.prepared:
			t.Errorf("its answer was read: %v", err)
		default:
		}
		confined = true
		return nil
	}))
	if _, err := c.Ready(t.Context()); err != nil || !confined {
		t.Fatalf("%v; it was confined: %v", err, confined)
	}
	if err := c.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.final(c)
	if kinds := r.audit.kinds(); !slices.Contains(kinds, "step:standby") || slices.Contains(kinds, "step:machine") {
		t.Errorf("on record are %v", kinds)
	}
}

func TestRunFailsWithItsWaitingGuest(t *testing.T) {
	refuses := func(op string) func(context.Context, *wire.Stream) bool {
		return func(ctx context.Context, s *wire.Stream) bool {
			return s.Op() == op && s.Send(ctx, api.Reply{Error: &api.Error{Code: api.CodeInternal, Message: "no"}}) == nil
		}
	}
	for name, tc := range map[string]struct {
		answer func(context.Context, *wire.Stream) bool
		want   string
	}{
		"not prepared": {refuses(api.OpPrepare), "prepare the waiting VM: guest: prepare: no"},
		"no identity":  {refuses(api.OpIdentity), "guest: identity: no"},
		"silent":       {func(ctx context.Context, s *wire.Stream) bool { <-ctx.Done(); return true }, "not ready within"},
	} {
		t.Run(name, func(t *testing.T) {
			o := waitsFor(t, &script{answer: tc.answer}, nil)
			o.limit = func(d *deadlines) { d.identity, d.goodbye = 200*time.Millisecond, 10*time.Millisecond }
			r, c := begin(t, o)
			if _, err := c.Ready(t.Context()); err == nil {
				t.Error("it is ready")
			}
			want(t, r.final(c), sandbox.ExitCreel, tc.want)
		})
	}
}
