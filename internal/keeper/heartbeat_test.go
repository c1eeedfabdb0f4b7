package keeper

import (
	"context"
	"creel/internal/keeper/launch"
	"errors"
	"strings"
	"testing"
	"time"

	"creel/internal/guest/api"
	"creel/internal/vm"
	"creel/internal/wire"
)

// Only beats in which the guest could have answered count against it.
func TestHeartbeat(t *testing.T) {
	const period = 3 * time.Second
	times := func(n int, b string) string { return strings.Repeat(b+" ", n) }
	for name, c := range map[string]struct {
		beats string // see judge
		dead  string // "": it lives
	}{
		"answers":                             {beats: times(100, "answer")},
		"stops":                               {times(5, "answer") + times(beatsSilent, "none"), "has stopped"},
		"stops at once":                       {times(beatsSilent, "none"), "has stopped"},
		"answers at last":                     {beats: times(10, times(beatsSilent-1, "none")+"answer ")},
		"is paused":                           {beats: times(100, "stopped")},
		"is paused when it had missed some":   {beats: times(10, times(beatsSilent-1, "none")+"stopped ")},
		"its VMM has no processor":            {beats: times(10, times(beatsSilent-1, "none")+times(19, "starved")+"answer ")},
		"its VMM is stopped":                  {times(beatsSilent-1, "none") + times(20, "starved"), "the VMM does not answer"},
		"its VMM is stopped while it is busy": {times(19, "starved") + "busy " + times(20, "starved"), "the VMM does not answer"},
		"its VMM and its keeper are stopped":  {beats: times(19, "starved late-starved")},
		"its host has no processor":           {beats: times(beatsSilent-1, "none") + times(100, "late")},
		"stops on a host that is busy":        {times(20, "late starved none"), "has stopped"},
		"stops after its keeper was stopped":  {"late " + times(beatsSilent, "none"), "has stopped"},
		"talks, and does not answer":          {times(beatsUnanswered, "talk"), "does not answer"},
		"talks, and answers late":             {beats: times(10, times(beatsUnanswered-1, "talk")+"answer ")},
		"talks now and then, and then stops":  {times(3, "talk none none") + times(beatsSilent, "none"), "has stopped"},
		"talks now and then, and answers not": {times(beatsUnanswered, "none talk"), "does not answer"},
		"is busy":                             {beats: times(beatsUnanswered-1, "busy")},
		"is busy for ever":                    {times(beatsUnanswered, "busy"), "does not answer"},
		"is busy, and then stops":             {times(20, "busy") + times(beatsSilent, "none"), "has stopped"},
		"is debugged":                         {times(beatsSilent, "unwell"), "cannot work any more: thread 1"},
		"was debugged":                        {beats: times(10, times(beatsSilent-1, "unwell")+"answer ")},
	} {
		if dead := judge(period, strings.Fields(c.beats)); (c.dead == "") != (dead == nil) || dead != nil && !strings.Contains(dead.Error(), c.dead) {
			t.Errorf("a guest that %s: %v, want %q", name, dead, c.dead)
		}
	}
}

// judge takes beats by their words until the guest is given up.
func judge(period time.Duration, beats []string) error {
	h := &heartbeat{period: period, patience: 20 * period}
	b := beat{now: time.Now()}
	for _, word := range beats {
		b.now = b.now.Add(period)
		b.answered, b.unwell, b.vmm = word == "answer", nil, vmmRunning
		switch word {
		case "unwell":
			b.heard++
			b.unwell = errors.New("thread 1 is stopped")
		case "talk":
			b.heard++
		case "late":
			b.now = b.now.Add(period)
		case "late-starved":
			b.now = b.now.Add(period)
			b.vmm = vmmSilent
		case "starved":
			b.vmm = vmmSilent
		case "busy":
			b.vmm = vmmBusy
		case "stopped":
			b.vmm = vmmStopped
		}
		if err := h.take(b); err != nil {
			return err
		}
	}
	return nil
}

func quickBeat(d *deadlines) { d.beat = 20 * time.Millisecond }

// A guest that stops ends its run, which asks it nothing any more.
func TestGuestStops(t *testing.T) {
	r, c := started(t, options{guest: silent(api.OpPing), args: []string{"deaf"}, limit: quickBeat,
		with: func(_ *rig, cfg *launch.Config, _ *Deps) { cfg.Spec.Keep = true }})
	want(t, r.final(c), 125, "the guest has stopped")
	if r.guest.synced.Load() {
		t.Error("the guest was asked to write out its disk")
	}
}

// One that stops before it has its identity does not take up the whole time
// that it has for that.
func TestGuestStopsWhileComingUp(t *testing.T) {
	r, c := begin(t, options{limit: quickBeat, guest: &script{answer: func(ctx context.Context, s *wire.Stream) bool {
		<-ctx.Done()
		return true
	}}})
	if _, err := c.Ready(t.Context()); err == nil {
		t.Error("it was ready")
	}
	want(t, r.final(c), 125, "the guest has stopped")
}

// A VMM that hangs ends its run, though it has not ended itself.
func TestVMMHangs(t *testing.T) {
	r, c := started(t, options{guest: silent(api.OpPing), args: []string{"deaf"}, limit: func(d *deadlines) {
		quickBeat(d)
		d.mute = 10 * d.beat
	}})
	r.driver.Machines()[0].Hang()
	want(t, r.final(c), 125, "the VMM does not answer")
}

// A paused guest answers nothing, and lives.
func TestPausedGuestHasNotStopped(t *testing.T) {
	hold := make(chan struct{}, 1)
	hold <- struct{}{}
	held := make(chan struct{})
	guest := &script{answer: func(ctx context.Context, s *wire.Stream) bool {
		if s.Op() != api.OpPing {
			return false
		}
		select {
		case <-hold: // the first is answered when the guest goes on
			select {
			case <-held:
			case <-ctx.Done():
			}
		default:
		}
		return false
	}}
	r, c := started(t, options{guest: guest, limit: quickBeat})
	if err := c.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	m := r.driver.Machines()[0]
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for from := m.Probes(); m.Probes() < from+3*beatsSilent; {
		select {
		case <-tick.C:
		case <-r.done:
			t.Fatalf("the run has ended: %+v", r.run.Status())
		case <-t.Context().Done():
			t.Fatal("the VMM is not asked")
		}
	}
	if err := c.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	close(held)
	if err := c.Signal(t.Context(), 15); err != nil {
		t.Fatal(err)
	}
	want(t, r.final(c), 143)
}

func TestGuestEndsTheMachine(t *testing.T) {
	for _, end := range []struct {
		err   error
		code  int
		words string
	}{
		{nil, 137, "the guest powered itself off"},
		{&vm.GuestEnded{How: "the guest rebooted itself"}, 137, "the guest rebooted itself"},
		{&vm.GuestEnded{How: "the guest's kernel panicked: x", Panicked: true}, 125, "the guest's kernel panicked: x"},
		{errors.New("the VMM was killed (signal 9, killed)"), 125, "the VM ended unexpectedly: the VMM was killed (signal 9, killed)"},
	} {
		r, c := started(t, options{})
		r.driver.Machines()[0].Die(end.err)
		status := r.final(c)
		want(t, status, end.code, end.words)
		if status.Error != end.words {
			t.Errorf("error %q, want %q", status.Error, end.words)
		}
	}
}
