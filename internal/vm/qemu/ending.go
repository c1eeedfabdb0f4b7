package qemu

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"

	"creel/internal/postmortem"
	"creel/internal/vm"
)

// Reasons of QEMU's SHUTDOWN event.
const (
	guestShutdown = "guest-shutdown"
	guestReset    = "guest-reset"
	hostSignal    = "host-signal"
)

// panicMark is what Linux writes before the reason of a panic.
const panicMark = "Kernel panic - not syncing: "

// maxPanic bounds what is shown of a panic, in bytes.
const maxPanic = 200

// ending says how a machine has ended that nobody closed; nil is a power-off.
// The guest's own word, where there is one, goes before the VMM's, which is
// killed once it has said that.
func ending(reason, console string, state *os.ProcessState, kills *postmortem.Kills) error {
	switch reason {
	case guestShutdown:
		return nil
	case guestReset:
		if text := panicIn(console); text != "" {
			return &vm.GuestEnded{How: fmt.Sprintf("the guest's kernel panicked: %q", text), Panicked: true}
		}
		return &vm.GuestEnded{How: "the guest rebooted itself"}
	case hostSignal:
		return errors.New("the VMM was told to end by a signal from this host")
	}
	return errors.New(postmortem.How("the VMM", state, kills))
}

// panicIn is the reason of the last panic on a console, "" if there is none. It
// is the guest's text: whoever shows it quotes it.
func panicIn(console string) string {
	i := strings.LastIndex(console, panicMark)
	if i < 0 {
		return ""
	}
	text, _, _ := strings.Cut(console[i+len(panicMark):], "\n")
	return string(bytes.TrimSpace([]byte(text[:min(len(text), maxPanic)])))
}
