package keeper

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"creel/internal/vm"
)

// heartbeat judges by beats whether a guest still lives. Only a beat in which
// the guest could have answered counts against it.
type heartbeat struct {
	period time.Duration
	// patience is for a VMM that says nothing at all while this process, on the
	// same host, is on time: it is stopped or hangs, and nobody else would end it.
	patience time.Duration

	last       time.Time // of the beat before, by the steady clock
	heard      int64     // bytes from the guest until then
	silent     int       // beats that counted without a byte
	unanswered int       // beats that counted without an answer

	mute time.Duration // since the VMM has said something, in periods that were on time
}

// The limits are generous: emulation on a busy machine is slow, and a run that
// is ended cannot be had back.
const (
	beatsSilent     = 5
	beatsUnanswered = 60 // a guest that is busy, or says other things, but does not answer
)

// A beat is what is known at the end of one period.
type beat struct {
	now      time.Time
	heard    int64 // bytes from the guest so far
	answered bool  // the guest answered since the last beat, or was not asked
	unwell   error // the agent's own word that it cannot work
	vmm      vmmWord
}

// vmmWord is what the VMM said in the period when it was asked.
type vmmWord int

const (
	vmmSilent  vmmWord = iota // nothing: it may have had no processor, as its guest
	vmmStopped                // the virtual CPUs do not run
	vmmRunning                // they may, and the guest has hardly used them
	vmmBusy                   // the guest has used them
)

// take judges one more beat. Its error says what is wrong with the guest.
func (h *heartbeat) take(b beat) error {
	// A beat that comes late is this process's own: it was stopped, or the host
	// had no processor for it, and then hardly one for the VMM.
	late := !h.last.IsZero() && b.now.Sub(h.last) > h.period*3/2
	passed := b.now.Sub(h.last)
	if h.last.IsZero() {
		passed = h.period
	}
	spoke := b.heard != h.heard
	h.last, h.heard = b.now, b.heard
	switch {
	case b.answered, b.vmm == vmmStopped:
		h.silent, h.unanswered, h.mute = 0, 0, 0
	case late:
	case b.vmm == vmmSilent:
		h.mute += passed
	case b.unwell == nil && (spoke || b.vmm == vmmBusy):
		h.silent = 0
		h.unanswered++
	default:
		h.silent++
		h.unanswered++
	}
	if spoke || b.vmm != vmmSilent {
		h.mute = 0
	}
	switch {
	case h.mute >= h.patience:
		return fmt.Errorf("the VMM does not answer: it said nothing for %s, stopped or hanging, and was killed; run the sandbox again", h.patience)
	case h.silent >= beatsSilent && b.unwell != nil:
		return fmt.Errorf("the guest's agent cannot work any more: %w", b.unwell)
	case h.silent >= beatsSilent:
		return errors.New("the guest has stopped: its VM is there, but its kernel or its agent does nothing any more")
	case h.unanswered >= beatsUnanswered:
		return errors.New("the guest does not answer any more: it may have too little memory for what runs in it, or its agent is gone")
	}
	return nil
}

// watchGuest begins to listen to the guest's heartbeat and ends the run when it
// has stopped. The returned function ends the watch; the conversation with the
// guest has to have ended then.
func (r *Run) watchGuest() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() {
		if err := r.listen(ctx, &done); err != nil {
			r.abandon(err)
		}
	})
	return func() {
		cancel()
		done.Wait()
	}
}

// listen asks the guest for a sign of life at each beat, and the VMM about it
// when none came since the last. It returns why the guest is given up, or nil
// when the watch has ended.
func (r *Run) listen(ctx context.Context, asking *sync.WaitGroup) error {
	// An idle guest is seldom asked, as each answer is work for it; one that owes
	// an answer is looked at more often.
	calm, anxious := r.limit.beat, r.limit.beat*2/5
	h := &heartbeat{period: calm, patience: r.limit.mute}
	answers, words := make(chan error, 1), make(chan vmmWord, 1)
	asked, askedVMM := false, false
	var cpu time.Duration // of the VMM; whoever asks it has this
	tick := time.NewTicker(h.period)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-r.guest.Done():
			return nil // whoever waits for the guest says why
		case <-tick.C:
		}
		b := beat{now: time.Now(), heard: r.guest.Heard(), answered: !asked}
		select {
		case err := <-answers:
			asked, b.answered, b.unwell = false, err == nil, err
		default:
		}
		select {
		case b.vmm = <-words:
			askedVMM = false
		default:
		}
		if err := h.take(b); err != nil {
			return err
		}
		if !asked {
			asked = true
			asking.Go(func() { answers <- r.guest.Ping(ctx) })
		}
		if h.period = calm; !b.answered {
			h.period = anxious
		}
		tick.Reset(h.period)
		if !b.answered && !askedVMM {
			askedVMM = true
			asking.Go(func() { words <- r.askVMM(ctx, &cpu) })
		}
	}
}

// busyShare is the part of a period of which a guest that is busy uses a
// processor, even on a host that is busy, too. One that has stopped uses none.
const busyShare = 50

// askVMM returns when the VMM has answered, or has ended. cpu is what it had used
// when it was asked last, some period ago.
func (r *Run) askVMM(ctx context.Context, cpu *time.Duration) vmmWord {
	p, ok := r.machine.(vm.Prober)
	if !ok {
		return vmmRunning // all that can be known of such a machine
	}
	vitals, err := p.Probe(ctx)
	used := vitals.CPU - *cpu
	if *cpu == 0 {
		used = 0 // since when is not known
	}
	*cpu = vitals.CPU
	switch {
	case err != nil:
		return vmmSilent
	case !vitals.Running:
		return vmmStopped
	case used > r.limit.beat/busyShare:
		return vmmBusy
	}
	return vmmRunning
}
