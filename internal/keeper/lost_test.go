package keeper

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"creel/internal/guest/api"
	"creel/internal/keeper/socket"
	"creel/internal/sandbox"
	"creel/internal/wire"
)

// When the VMM has died, whatever was asked of the guest meanwhile says so, and
// not that a connection has ended.
func TestWhatIsAskedWhenTheVMMDies(t *testing.T) {
	killed := errors.New("the VMM was killed (signal 9, killed)")
	for op, ask := range map[string]func(*testing.T, *socket.Client) error{
		"start": func(t *testing.T, c *socket.Client) error { return c.Start(t.Context()) },
		api.OpExec: func(t *testing.T, c *socket.Client) error {
			_, err := c.Exec(t.Context(), sandbox.Process{Args: []string{"exit", "0"}})
			return err
		},
		api.OpCopyIn: func(t *testing.T, c *socket.Client) error {
			return c.CopyIn(t.Context(), api.CopyRequest{Path: "/"}, strings.NewReader("x"))
		},
		api.OpCopyOut: func(t *testing.T, c *socket.Client) error { _, err := c.CopyOut(t.Context(), "/x"); return err },
		api.OpStat:    func(t *testing.T, c *socket.Client) error { _, err := c.Stat(t.Context(), "/x"); return err },
		api.OpUsage:   func(t *testing.T, c *socket.Client) error { _, err := c.Usage(t.Context()); return err },
		api.OpTop:     func(t *testing.T, c *socket.Client) error { _, err := c.Top(t.Context()); return err },
	} {
		t.Run(op, func(t *testing.T) {
			var r *rig
			asked := op
			if op == "start" {
				asked = api.OpExec
			}
			ran := op == "start"
			guest := &script{answer: func(ctx context.Context, s *wire.Stream) bool {
				if s.Op() != asked || !ran {
					ran = ran || s.Op() == api.OpExec
					return false
				}
				m := r.driver.Machines()[0]
				m.GuestControl().Close() // what a process that dies closes is seen before its end
				time.AfterFunc(20*time.Millisecond, func() { m.Die(killed) })
				return true
			}}
			var c *socket.Client
			r, c = begin(t, options{guest: guest})
			if _, err := c.Ready(t.Context()); err != nil {
				t.Fatal(err)
			}
			if op != "start" {
				if err := c.Start(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			if err := ask(t, c); err == nil || !strings.Contains(err.Error(), killed.Error()) {
				t.Errorf("got %v", err)
			}
			want(t, r.final(c), 125, killed.Error())
		})
	}
}

// A stop lasts as long as it was said to, and not much longer, whatever the guest
// does with its signals.
func TestStopOfADeafGuestIsSoonOver(t *testing.T) {
	r, c := started(t, options{args: []string{"deaf"}, limit: func(d *deadlines) {
		d.last, d.kill = 20*time.Millisecond, time.Hour
	}})
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	defer cancel()
	if err := c.Stop(ctx, 15, 20*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	want(t, r.final(c), 137)
}
