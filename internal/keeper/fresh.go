package keeper

import (
	"context"
	"creel/internal/keeper/launch"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"creel/internal/guest/api"
)

const (
	seedBytes     = 64
	clockPeriod   = 2 * time.Second
	clockMaxDrift = 200 * time.Millisecond
)

// makeFresh gives the clone what no sibling has, before any task code runs. An
// error of any step means that the task does not start.
func (r *Run) makeFresh(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, r.limit.identity)
	defer cancel()
	var err error
	r.guest, err = r.clone.converse(ctx)
	r.undo.Push("guest connection", r.guest.Close)
	stop := r.watchGuest()
	r.undo.Push("heartbeat", func() error {
		r.guest.Close() // whatever the watch is waiting for
		stop()
		return nil
	})
	if err == nil {
		id := identity(r.cfg)
		r.equip(&id)
		err = r.guest.Identity(ctx, id)
	}
	switch {
	case err == nil:
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return fmt.Errorf("the guest was not ready within %s; try again when this machine is less busy", r.limit.identity)
	case ctx.Err() == nil && r.guest.Err() != nil:
		return r.lost(err)
	default:
		return err
	}
	watched := watchClock(r.guest.Clock)
	r.undo.Push("clock watch", func() error {
		r.guest.Close() // whatever the watch is waiting for
		return watched()
	})
	return nil
}

func identity(cfg launch.Config) api.Identity {
	random := make([]byte, seedBytes+16)
	rand.Read(random)
	spec := cfg.Spec
	hostname := spec.Hostname
	if hostname == "" {
		hostname = spec.ID.Short()
	}
	return api.Identity{
		Version: api.Version, Seed: random[:seedBytes], UnixNano: time.Now().UnixNano(),
		Hostname: hostname, MachineID: hex.EncodeToString(random[seedBytes:]),
		Hosts:        fmt.Sprintf("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost\n127.0.1.1\t%s\n", hostname),
		Resolv:       "nameserver 192.168.127.1\n",
		ReadOnlyRoot: spec.ReadOnly, Mounts: spec.Mounts, Limits: spec.Resources,
	}
}

// watchClock sets the guest's clock whenever the host's wall clock has moved
// against its steady clock: the host slept, or its clock was set. The returned
// function ends the watch.
func watchClock(set func(context.Context, time.Time) error) func() error {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(clockPeriod)
		defer tick.Stop()
		base := time.Now()
		for {
			select {
			case <-ctx.Done():
				return
			case now := <-tick.C:
				if drift(base, now).Abs() < clockMaxDrift {
					continue
				}
				if set(ctx, time.Now()) != nil {
					continue // the next tick tries again
				}
				base = time.Now()
			}
		}
	}()
	return func() error {
		cancel()
		<-done
		return nil
	}
}

// drift is how far the wall clock has moved against the steady clock between
// two readings: Round strips the steady part of a Time.
func drift(base, now time.Time) time.Duration {
	return now.Round(0).Sub(base.Round(0)) - now.Sub(base)
}
