package engine

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"creel/internal/audit/event"
	"creel/internal/guest/api"
	"creel/internal/keeper/rundir"
	"creel/internal/keeper/socket"
	"creel/internal/policy/syntax"
	"creel/internal/policy/tier"
	"creel/internal/sandbox"
	"creel/internal/undo"
	"creel/internal/wire"
)

// keeperOf answers as a keeper of a sandbox would, and notes what it is asked.
type keeperOf struct {
	id sandbox.ID

	mu     sync.Mutex
	asked  []string
	policy string // in force
}

func (k *keeperOf) serve(ctx context.Context, s *wire.Stream) {
	k.mu.Lock()
	k.asked = append(k.asked, s.Op())
	k.mu.Unlock()
	if s.Op() == socket.OpHello {
		s.Send(ctx, socket.HelloReply{Version: socket.Version, ID: k.id})
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	switch s.Op() {
	case socket.OpInForce:
		s.Send(ctx, socket.PolicyReply{Policy: k.policy})
		return
	case socket.OpPolicy:
		var req socket.PolicyRequest
		if err := s.Body(&req); err == nil {
			k.policy = req.Policy
		}
	}
	s.Send(ctx, api.Reply{})
}

// startKeeper makes a running sandbox of a spec, with a keeper in this process.
func startKeeper(t *testing.T, e *Engine, spec sandbox.Spec) (*keeperOf, Found) {
	t.Helper()
	rec := planNamed("otter", true)
	spec.ID, spec.Name, spec.Keep = rec.Config.Spec.ID, "otter", true
	rec.Config.Spec = spec
	lock, err := e.reserve(&rec, &undo.Stack{}, nobodyWaits)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { lock.Close() })
	dir := e.store.KeeperDir(spec.ID)
	l, err := socket.Listen(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	k := &keeperOf{id: spec.ID, policy: spec.Policy}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func(c net.Conn) {
				w := wire.NewConn(c, wire.Options{Handler: k.serve})
				<-w.Done()
				w.Close()
			}(c)
		}
	}()
	if err := rundir.WriteStatus(dir, sandbox.Status{State: sandbox.StateRunning}); err != nil {
		t.Fatal(err)
	}
	f, err := e.Find(t.Context(), "otter")
	if err != nil {
		t.Fatal(err)
	}
	return k, f
}

func TestDigestOfNoPolicy(t *testing.T) {
	if d := syntax.Digest(syntax.Canonical("")); d != event.NoPolicy {
		t.Errorf("it is %s", d)
	}
}

// After everything was taken away the same may be given again, or taken away
// once more: the keeper knows whether it has a network.
func TestPolicyAfterNone(t *testing.T) {
	for name, text := range map[string]string{"none": "", "some": policyOf(t, "a.test")} {
		t.Run(name, func(t *testing.T) {
			e := engineIn(t.TempDir(), &ledger{})
			e.opts.Tiers = tier.Default()
			k, f := startKeeper(t, e, modest("trusted"))
			if err := e.SetPolicy(t.Context(), f, text, func(string) {}); err != nil || !slices.Contains(k.asked, socket.OpPolicy) {
				t.Errorf("error %v, asked %v", err, k.asked)
			}
		})
	}
}

// A policy that was put in force, and could not be written down, is what the
// next is held against: the one before it is admitted anew.
func TestPolicyIsHeldAgainstWhatIsInForce(t *testing.T) {
	both, one := policyOf(t, "a.test", "b.test"), policyOf(t, "a.test")
	l := &ledger{}
	e := engineIn(t.TempDir(), l)
	e.opts.Tiers = tier.Default()
	spec := modest("trusted")
	spec.Policy, spec.Tier = both, "untrusted" // allows none of it any more
	k, f := startKeeper(t, e, spec)
	record := filepath.Join(e.store.Dir(f.Record.Config.Spec.ID), "record.json")
	if err := os.Rename(record, record+".away"); err != nil { // a directory in its place cannot be replaced
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(record, "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := e.SetPolicy(t.Context(), f, one, func(string) {}); err == nil || !strings.Contains(err.Error(), "in force") || k.policy != one {
		t.Fatalf("error %v, and in force is %q", err, k.policy)
	}
	if err := errors.Join(os.RemoveAll(record), os.Rename(record+".away", record)); err != nil {
		t.Fatal(err)
	}
	f, err := e.Find(t.Context(), "otter")
	if err != nil || f.Record.Config.Spec.Policy != both {
		t.Fatalf("written down is %q, %v", f.Record.Config.Spec.Policy, err)
	}
	if err := e.SetPolicy(t.Context(), f, both, func(string) {}); err == nil || k.policy != one || l.kinds[len(l.kinds)-1] != "refused" {
		t.Errorf("rights were given back: %v, %v", err, l.kinds)
	}
	for _, less := range []string{one, ""} { // nothing is given by these
		if err := e.SetPolicy(t.Context(), f, less, func(string) {}); err != nil || k.policy != less {
			t.Errorf("%q: %v, and in force is %q", less, err, k.policy)
		}
	}
}

// To take rights away needs no record, no tier's consent and no secret's value.
// To give some does.
func TestPolicyThatTakesAwayNeedsNoRecord(t *testing.T) {
	full := unix.ENOSPC
	both, one, more := policyOf(t, "a.test", "b.test"), policyOf(t, "a.test"), policyOf(t, "a.test", "b.test", "c.test")
	for name, c := range map[string]struct {
		text string
		full error
		set  bool
	}{
		"none":               {"", full, true},
		"fewer":              {one, full, true},
		"none, with room":    {"", nil, true},
		"more":               {more, full, false},
		"over its tier, now": {one, nil, true},
	} {
		t.Run(name, func(t *testing.T) {
			l := &ledger{}
			e := engineIn(t.TempDir(), l)
			e.opts.Tiers = tier.Default()
			spec := modest("trusted")
			spec.Policy = both
			if name == "over its tier, now" {
				spec.Tier = "untrusted" // allows none of it any more
			}
			k, f := startKeeper(t, e, spec)
			l.fill(c.full)
			err := e.SetPolicy(t.Context(), f, c.text, func(string) {})
			if c.full != nil && (!errors.Is(err, c.full) || strings.Contains(err.Error(), "in force") != c.set) || c.full == nil && err != nil {
				t.Errorf("error %v", err)
			}
			if got := slices.Contains(k.asked, socket.OpPolicy); got != c.set {
				t.Errorf("it is in force: %v", got)
			}
			l.fill(nil)
			again, err := e.Find(t.Context(), "otter")
			if err != nil || (again.Record.Config.Spec.Policy == c.text) != c.set {
				t.Errorf("the record says %q, %v", again.Record.Config.Spec.Policy, err)
			}
			if c.set && c.text != "" { // once there is room, the same command writes it down
				if err := e.SetPolicy(t.Context(), again, c.text, func(string) {}); err != nil || l.kinds[len(l.kinds)-1] != "admitted" {
					t.Errorf("again: %v, %v", err, l.kinds)
				}
			}
		})
	}
}
